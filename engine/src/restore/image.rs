//! The image file under replay, behind a cache of bounded size: small transactions touch the same pages over and over.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::page::{PageNo, PageSize};
use crate::restore::progress::{Cancel, Tracker};
use crate::restore::sums::Sums;
use crate::segment::PageStore;
use crate::transaction::Transaction;

/// Bytes of pages in the cache.
const CACHE_BYTES: usize = 64 * 1024 * 1024;

struct Slot {
    /// `None` when it holds nothing any more.
    page: Option<PageNo>,
    dirty: bool,
    /// Used since the hand last came by.
    used: bool,
}

/// An image in a file. Writes reach the file when a page leaves the cache, and at [`ImageFile::flush`].
pub(crate) struct ImageFile {
    file: Arc<File>,
    page_size: PageSize,
    pages: u32,
    /// Pages the file has room for; those beyond `pages` are zeros.
    file_pages: u32,
    slots: Vec<Slot>,
    bytes: Vec<u8>,
    places: HashMap<PageNo, usize>,
    slots_max: usize,
    hand: usize,
    tracker: Arc<Tracker>,
    cancel: Cancel,
    reached: Option<Transaction>,
    sums: Sums,
}

impl ImageFile {
    /// Over a file that holds `pages` pages, and zeros up to `file_pages`.
    pub(crate) fn new(
        file: Arc<File>,
        page_size: PageSize,
        pages: u32,
        file_pages: u32,
        tracker: Arc<Tracker>,
        cancel: Cancel,
    ) -> Self {
        let slots_max = CACHE_BYTES / page_size.bytes();
        Self {
            file,
            page_size,
            pages,
            file_pages: file_pages.max(pages),
            slots: Vec::new(),
            bytes: Vec::new(),
            places: HashMap::new(),
            slots_max,
            hand: 0,
            tracker,
            cancel,
            reached: None,
            sums: Sums::unknown(page_size),
        }
    }

    /// The same, with the checksums of what the file holds: they are kept for what is not written.
    pub(crate) fn with_sums(self, sums: Sums) -> Self {
        Self { sums, ..self }
    }

    /// The checksums of what was not written. After [`ImageFile::flush`].
    pub(crate) fn into_sums(self) -> Sums {
        self.sums
    }

    /// The last transaction that was completed.
    pub(crate) fn reached(&self) -> Option<Transaction> {
        self.reached
    }

    /// Writes what is only in the cache, in the order of the file, and gives the file its length.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let mut dirty: Vec<(PageNo, usize)> = self.places.iter().map(|(page, slot)| (*page, *slot)).collect();
        dirty.retain(|(_, slot)| self.slots.get(*slot).is_some_and(|slot| slot.dirty));
        dirty.sort_unstable();
        for (_, slot) in dirty {
            self.write_back(slot)?;
        }
        self.file_pages = self.pages;
        self.file.set_len(u64::from(self.pages) * u64::from(self.page_size.get()))
    }

    fn place(&self, slot: usize) -> std::ops::Range<usize> {
        let start = slot * self.page_size.bytes();
        start..start + self.page_size.bytes()
    }

    fn write_back(&mut self, slot: usize) -> io::Result<()> {
        let place = self.place(slot);
        if let (Some(slot), Some(bytes)) = (self.slots.get_mut(slot), self.bytes.get(place))
            && let Some(page) = slot.page
        {
            self.sums.forget(page);
            self.file.write_all_at(bytes, page.offset(self.page_size))?;
            slot.dirty = false;
        }
        Ok(())
    }

    /// The slot of a page that is in the cache.
    fn cached(&mut self, page: PageNo) -> Option<usize> {
        let slot = *self.places.get(&page)?;
        self.slots.get_mut(slot)?.used = true;
        Some(slot)
    }

    /// A slot for a page that is not in the cache; its bytes are of no meaning yet.
    fn claim(&mut self, page: PageNo) -> io::Result<usize> {
        let fresh = Slot { page: Some(page), dirty: false, used: true };
        let slot = if self.slots.len() < self.slots_max {
            self.bytes.resize(self.bytes.len() + self.page_size.bytes(), 0);
            self.slots.push(fresh);
            self.slots.len() - 1
        } else {
            let victim = self.victim()?;
            let before = self.slots.get_mut(victim).map(|slot| std::mem::replace(slot, fresh));
            if let Some(page) = before.and_then(|slot| slot.page) {
                self.places.remove(&page);
            }
            victim
        };
        self.places.insert(page, slot);
        Ok(slot)
    }

    /// Goes round and takes the first slot that was not used since the last time. Clean when it is given.
    fn victim(&mut self) -> io::Result<usize> {
        loop {
            let at = self.hand;
            self.hand = (self.hand + 1) % self.slots_max;
            match self.slots.get_mut(at) {
                Some(slot) if slot.used => slot.used = false,
                Some(slot) if slot.dirty => {
                    self.write_back(at)?;
                    return Ok(at);
                }
                _ => return Ok(at),
            }
        }
    }

    /// Forgets the cached pages that are cut off. Their slots are taken again in time.
    fn forget_after(&mut self, pages: u32) {
        for slot in &mut self.slots {
            if let Some(page) = slot.page.filter(|page| page.get() > pages) {
                self.places.remove(&page);
                *slot = Slot { page: None, dirty: false, used: false };
            }
        }
    }
}

impl PageStore for ImageFile {
    fn page_size(&self) -> PageSize {
        self.page_size
    }

    fn page_count(&self) -> u32 {
        self.pages
    }

    fn read(&mut self, page: PageNo, buffer: &mut [u8]) -> io::Result<()> {
        let slot = match self.cached(page) {
            Some(slot) => slot,
            None => {
                let slot = self.claim(page)?;
                let place = self.place(slot);
                let bytes = self.bytes.get_mut(place).unwrap_or_default();
                if let Err(error) = self.file.read_exact_at(bytes, page.offset(self.page_size)) {
                    self.places.remove(&page);
                    if let Some(slot) = self.slots.get_mut(slot) {
                        slot.page = None;
                    }
                    return Err(error);
                }
                slot
            }
        };
        let bytes = self.bytes.get(self.place(slot)).filter(|bytes| bytes.len() == buffer.len());
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::InvalidInput)?);
        Ok(())
    }

    fn write(&mut self, page: PageNo, image: &[u8]) -> io::Result<()> {
        let slot = match self.cached(page) {
            Some(slot) => slot,
            None => self.claim(page)?,
        };
        let place = self.place(slot);
        let bytes = self.bytes.get_mut(place).filter(|bytes| bytes.len() == image.len());
        bytes.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(image);
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.dirty = true;
        }
        Ok(())
    }

    fn resize(&mut self, pages: u32) -> io::Result<()> {
        let page_bytes = u64::from(self.page_size.get());
        self.sums.forget_after(pages.min(self.pages));
        if pages < self.pages {
            self.forget_after(pages);
            // Cut off at once: what comes back later must be zeros.
            self.file.set_len(u64::from(pages) * page_bytes)?;
            self.file_pages = pages;
        } else if pages > self.file_pages {
            self.file.set_len(u64::from(pages) * page_bytes)?;
            self.file_pages = pages;
        }
        self.pages = pages;
        Ok(())
    }

    fn committed(&mut self, transaction: &Transaction) -> io::Result<()> {
        self.reached = Some(*transaction);
        self.tracker.replayed(1);
        if self.cancel.is_cancelled() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "cancelled"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::page::StateChecksum;
    use crate::restore::prove::hash_pages;
    use crate::segment::MemoryImage;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u32, u8),
        Read(u32),
        Resize(u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            5 => (1u32..40, any::<u8>()).prop_map(|(page, value)| Step::Write(page, value)),
            3 => (1u32..40).prop_map(Step::Read),
            1 => (1u32..40).prop_map(Step::Resize),
        ];
        proptest::collection::vec(step, 0..200)
    }

    /// Replays steps behind a tiny cache, and on a model in memory. Page numbers and sizes come as they may.
    fn replay(steps: Vec<Step>, image: &mut ImageFile, model: &mut MemoryImage) -> Result<(), TestCaseError> {
        let size = model.page_size();
        image.slots_max = 3;
        for step in steps {
            match step {
                Step::Resize(pages) => {
                    image.resize(pages).unwrap();
                    model.resize(pages).unwrap();
                }
                Step::Write(page, value) if page <= model.page_count() => {
                    let bytes = vec![value; size.bytes()];
                    image.write(PageNo::new(page).unwrap(), &bytes).unwrap();
                    model.write(PageNo::new(page).unwrap(), &bytes).unwrap();
                }
                Step::Read(page) if page <= model.page_count() => {
                    let mut bytes = vec![1; size.bytes()];
                    image.read(PageNo::new(page).unwrap(), &mut bytes).unwrap();
                    prop_assert_eq!(Some(&bytes[..]), model.page(PageNo::new(page).unwrap()));
                }
                _ => {}
            }
        }
        image.flush().unwrap();
        Ok(())
    }

    fn image_file(file: &Arc<File>, size: PageSize, pages: u32) -> ImageFile {
        let tracker = Arc::new(Tracker::new(Arc::new(|_| {}), 0, 0, 0));
        ImageFile::new(Arc::clone(file), size, pages, pages, tracker, Cancel::new())
    }

    proptest! {
        #[test]
        fn a_tiny_cache_over_a_file_is_an_image_like_any_other(steps in steps()) {
            let file = Arc::new(tempfile::tempfile().unwrap());
            let (mut image, mut model) = (image_file(&file, PageSize::MIN, 0), MemoryImage::new(PageSize::MIN));
            replay(steps, &mut image, &mut model)?;
            let mut bytes = vec![0; model.bytes().len()];
            file.read_exact_at(&mut bytes, 0).unwrap();
            prop_assert_eq!(file.metadata().unwrap().len(), bytes.len() as u64);
            prop_assert!(bytes == model.bytes());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Of three stretches; whatever is written, the sums that are left are those of what the file holds.
        #[test]
        fn what_is_still_known_of_a_written_file_is_true(steps in steps()) {
            let (size, pages) = (PageSize::MAX, 40);
            let file = Arc::new(tempfile::tempfile().unwrap());
            let mut model = MemoryImage::new(size);
            model.resize(pages).unwrap();
            for page in (1..=pages).filter_map(PageNo::new) {
                model.write(page, &vec![page.get() as u8; size.bytes()]).unwrap();
            }
            file.write_all_at(model.bytes(), 0).unwrap();
            let hash = |before: u32, pages: &[u8]| {
                let mut hashes = Vec::new();
                hash_pages(before, pages, size, &mut hashes);
                hashes
            };
            let mut sums = Sums::to_be_added(size, None, pages);
            sums.add(0, &hash(0, model.bytes()));
            let mut image = image_file(&file, size, pages).with_sums(sums);
            replay(steps, &mut image, &mut model)?;
            let sums = image.into_sums();
            let mut state = sums.total();
            for run in sums.unknown_runs(model.page_count()) {
                let mut bytes = vec![0; (run.end - run.start) as usize * size.bytes()];
                file.read_exact_at(&mut bytes, u64::from(run.start) * size.bytes() as u64).unwrap();
                state = hash(run.start, &bytes).into_iter().fold(state, StateChecksum::with);
            }
            prop_assert_eq!(state, model.state());
        }
    }
}

//! What is known of an image file that is being written: the checksum of each stretch of pages, as it was read back from
//! the file right after it was written, while it is still in the processor's cache. What is written later is forgotten,
//! and read again at the end.

use std::ops::Range;

use crate::page::{PageHash, PageNo, PageSize, StateChecksum};

/// Bytes of a stretch: small, so that a few changed pages do not cost reading everything again; 16 bytes are kept of each.
const STRETCH_BYTES: u32 = 1024 * 1024;
/// Bytes that are read again at a time, at most.
const RUN_BYTES: u32 = 16 * 1024 * 1024;

/// The checksums of an image file's stretches, as far as they are known.
#[derive(Clone, Debug)]
pub(crate) struct Sums {
    page_size: PageSize,
    /// The page that the source never stores: it is in no checksum.
    left_out: Option<PageNo>,
    stretches: Vec<Option<StateChecksum>>,
}

impl Sums {
    /// Of an image of which nothing is known.
    pub(crate) fn unknown(page_size: PageSize) -> Self {
        Self { page_size, left_out: None, stretches: Vec::new() }
    }

    /// Of an image of so many pages, none of which has been added yet. Each is to be added once.
    pub(crate) fn to_be_added(page_size: PageSize, left_out: Option<PageNo>, pages: u32) -> Self {
        let each = pages_of(STRETCH_BYTES, page_size);
        let stretches = vec![Some(StateChecksum::EMPTY); pages.div_ceil(each) as usize];
        Self { page_size, left_out, stretches }
    }

    /// Adds pages as they were read back, from the one after the first `before` on.
    pub(crate) fn add(&mut self, before: u32, hashes: &[PageHash]) {
        for (page, hash) in (before.saturating_add(1)..).map_while(PageNo::new).zip(hashes) {
            let stretch = self.stretch_of(page);
            if let Some(Some(sum)) = self.stretches.get_mut(stretch)
                && Some(page) != self.left_out
            {
                *sum = sum.with(*hash);
            }
        }
    }

    /// A page was written.
    pub(crate) fn forget(&mut self, page: PageNo) {
        let stretch = self.stretch_of(page);
        if let Some(sum) = self.stretches.get_mut(stretch) {
            *sum = None;
        }
    }

    /// The pages after the first `before` were cut off, or some were put there.
    pub(crate) fn forget_after(&mut self, before: u32) {
        let first = (before / pages_of(STRETCH_BYTES, self.page_size)) as usize;
        self.stretches.iter_mut().skip(first).for_each(|sum| *sum = None);
    }

    /// The checksum of all that is known.
    pub(crate) fn total(&self) -> StateChecksum {
        self.stretches.iter().flatten().fold(StateChecksum::EMPTY, |sum, more| sum.join(*more))
    }

    /// The pages of an image of so many pages that are not known: runs to be read at a time, as counts of pages before
    /// the first and up to the last.
    pub(crate) fn unknown_runs(&self, pages: u32) -> Vec<Range<u32>> {
        let (each, most) = (pages_of(STRETCH_BYTES, self.page_size), pages_of(RUN_BYTES, self.page_size));
        let mut runs: Vec<Range<u32>> = Vec::new();
        for (index, before) in (0..pages).step_by(each as usize).enumerate() {
            if matches!(self.stretches.get(index), Some(Some(_))) {
                continue;
            }
            let end = before.saturating_add(each).min(pages);
            match runs.last_mut() {
                Some(run) if run.end == before && end - run.start <= most => run.end = end,
                _ => runs.push(before..end),
            }
        }
        runs
    }

    fn stretch_of(&self, page: PageNo) -> usize {
        ((page.get() - 1) / pages_of(STRETCH_BYTES, self.page_size)) as usize
    }
}

fn pages_of(bytes: u32, page_size: PageSize) -> u32 {
    bytes / page_size.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: PageSize = PageSize::MAX;
    /// Pages of a stretch.
    const EACH: u32 = 16;

    fn hashes(count: u32, of: u64) -> Vec<PageHash> {
        (0..count).map(|_| PageHash::from_raw(of)).collect()
    }

    fn page(number: u32) -> PageNo {
        PageNo::new(number).unwrap()
    }

    fn known(pages: u32) -> Sums {
        let mut sums = Sums::to_be_added(SIZE, None, pages);
        sums.add(0, &hashes(pages, 1));
        sums
    }

    #[test]
    fn a_stretch_is_known_until_one_of_its_pages_is_written() {
        let mut sums = known(4 * EACH + 3);
        assert_eq!(sums.total().get(), u64::from(4 * EACH + 3));
        assert_eq!(sums.unknown_runs(4 * EACH + 3), []);
        for written in [EACH, EACH + 1, 4 * EACH + 3] {
            sums.forget(page(written));
        }
        sums.forget(page(100 * EACH));
        assert_eq!(sums.unknown_runs(4 * EACH + 3), [0..2 * EACH, 4 * EACH..4 * EACH + 3]);
        assert_eq!(sums.total().get(), u64::from(2 * EACH));
        assert_eq!(sums.unknown_runs(6 * EACH), [0..2 * EACH, 4 * EACH..6 * EACH], "beyond what was added");
    }

    #[test]
    fn what_is_cut_off_is_known_no_longer_nor_what_it_leaves_of_its_stretch() {
        let mut sums = known(3 * EACH);
        sums.forget_after(2 * EACH);
        assert_eq!(sums.unknown_runs(2 * EACH), []);
        sums.forget_after(EACH + 1);
        assert!(sums.unknown_runs(EACH + 1).into_iter().eq([EACH..EACH + 1; 1]));
        assert_eq!(sums.total().get(), u64::from(EACH));
    }

    #[test]
    fn runs_are_bounded_and_the_page_left_out_is_in_no_sum() {
        let (pages, most) = (100 * EACH, 16 * EACH);
        let runs = Sums::unknown(SIZE).unknown_runs(pages);
        assert_eq!(runs.len(), 7);
        assert!(runs.iter().all(|run| run.end - run.start <= most));
        let mut sums = Sums::to_be_added(SIZE, Some(page(5)), EACH);
        sums.add(3, &hashes(4, 10));
        assert_eq!(sums.total().get(), 30);
    }
}

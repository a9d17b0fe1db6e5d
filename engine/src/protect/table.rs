//! The page table: one 8-byte hash per page of the image as captured so far, and the checksum of the whole.
//!
//! 2 MiB per GiB of database at 4 KiB pages. It makes three things possible: the state checksum of every commit at the
//! cost of its changed pages, the check of a previous version before it serves as a base for compression, and after a
//! gap the difference instead of a full copy.

use crate::page::{PageHash, PageNo, PageSize, StateChecksum};

/// Hashes of all pages, with an undo log for the transaction under way.
#[derive(Clone, Debug)]
pub(crate) struct PageTable {
    page_size: PageSize,
    /// A page the source never stores; it has no hash and is in no sum.
    never_stored: Option<PageNo>,
    hashes: Vec<u64>,
    state: StateChecksum,
    undo: Vec<Undo>,
}

#[derive(Clone, Copy, Debug)]
enum Undo {
    Changed { index: u32, before: u64 },
    Shrunk { index: u32, before: u64 },
    Grown { index: u32 },
}

impl PageTable {
    /// The table of the empty image.
    #[cfg(test)]
    pub(crate) fn new(page_size: PageSize, never_stored: Option<PageNo>) -> Self {
        Self { page_size, never_stored, hashes: Vec::new(), state: StateChecksum::EMPTY, undo: Vec::new() }
    }

    /// A table read back from disk; its sum is computed anew.
    pub(crate) fn from_hashes(page_size: PageSize, never_stored: Option<PageNo>, hashes: Vec<u64>) -> Self {
        let mut table =
            Self { page_size, never_stored, hashes, state: StateChecksum::EMPTY, undo: Vec::new() };
        table.state = (0..table.hashes.len())
            .filter(|&index| !table.is_never_stored(index))
            .filter_map(|index| table.hashes.get(index))
            .fold(StateChecksum::EMPTY, |sum, &hash| sum.with(PageHash::from_raw(hash)));
        table
    }

    pub(crate) fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// The checksum of the image, the transaction under way included.
    pub(crate) fn state(&self) -> StateChecksum {
        self.state
    }

    /// Pages in the image.
    pub(crate) fn pages(&self) -> u32 {
        u32::try_from(self.hashes.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn hashes(&self) -> &[u64] {
        &self.hashes
    }

    /// The hash of a page; `None` beyond the image and for a page that is never stored.
    pub(crate) fn get(&self, page: PageNo) -> Option<PageHash> {
        let hash = self.hashes.get(page.index()).copied()?;
        (!self.is_never_stored(page.index())).then_some(PageHash::from_raw(hash))
    }

    /// Sets a page's hash; grows the image to hold it.
    pub(crate) fn set(&mut self, page: PageNo, hash: PageHash) {
        if self.is_never_stored(page.index()) {
            return;
        }
        if page.get() > self.pages() {
            self.resize(page.get());
        }
        if let Some(slot) = self.hashes.get_mut(page.index()) {
            self.undo.push(Undo::Changed { index: page.get() - 1, before: *slot });
            self.state = self.state.without(PageHash::from_raw(*slot)).with(hash);
            *slot = hash.get();
        }
    }

    /// Makes the image this many pages long. New pages are zeros until set, as they are in a restored file.
    pub(crate) fn resize(&mut self, pages: u32) {
        while self.pages() > pages {
            let index = self.hashes.len() - 1;
            let Some(before) = self.hashes.pop() else { return };
            if !self.is_never_stored(index) {
                self.state = self.state.without(PageHash::from_raw(before));
            }
            self.undo.push(Undo::Shrunk { index: index as u32, before });
        }
        if self.pages() < pages {
            let zeros = vec![0; self.page_size.bytes()];
            while let Some(page) =
                PageNo::new(self.pages().wrapping_add(1)).filter(|page| page.get() <= pages)
            {
                let stored = !self.is_never_stored(page.index());
                let hash = if stored { PageHash::of(page, &zeros) } else { PageHash::from_raw(0) };
                self.hashes.push(hash.get());
                self.state = if stored { self.state.with(hash) } else { self.state };
                self.undo.push(Undo::Grown { index: page.get() - 1 });
            }
        }
    }

    /// Keeps the changes of the transaction under way and returns the pages it touched with their new hashes, ascending.
    pub(crate) fn commit(&mut self) -> Vec<(u32, u64)> {
        let mut touched: Vec<u32> = self.undo.iter().filter_map(|undo| undo.changed_index()).collect();
        touched.sort_unstable();
        touched.dedup();
        self.undo.clear();
        touched.into_iter().filter_map(|index| Some((index, *self.hashes.get(index as usize)?))).collect()
    }

    /// Takes the changes of the transaction under way back.
    pub(crate) fn rollback(&mut self) {
        while let Some(undo) = self.undo.pop() {
            match undo {
                Undo::Changed { index, before } => {
                    if let Some(slot) = self.hashes.get_mut(index as usize) {
                        let after = PageHash::from_raw(*slot);
                        self.state = self.state.without(after).with(PageHash::from_raw(before));
                        *slot = before;
                    }
                }
                Undo::Shrunk { index, before } => {
                    self.hashes.push(before);
                    if !self.is_never_stored(index as usize) {
                        self.state = self.state.with(PageHash::from_raw(before));
                    }
                }
                Undo::Grown { .. } => {
                    let index = self.hashes.len().saturating_sub(1);
                    if let Some(after) = self.hashes.pop()
                        && !self.is_never_stored(index)
                    {
                        self.state = self.state.without(PageHash::from_raw(after));
                    }
                }
            }
        }
    }

    fn is_never_stored(&self, index: usize) -> bool {
        self.never_stored.is_some_and(|page| page.index() == index)
    }
}

impl Undo {
    fn changed_index(self) -> Option<u32> {
        match self {
            Self::Changed { index, .. } | Self::Grown { index } => Some(index),
            Self::Shrunk { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page(number: u32) -> PageNo {
        PageNo::new(number).unwrap()
    }

    fn table() -> PageTable {
        PageTable::new(PageSize::new(512).unwrap(), Some(page(5)))
    }

    #[test]
    fn the_page_that_is_never_stored_is_in_no_sum() {
        let mut with = table();
        with.resize(6);
        let mut without = PageTable::new(PageSize::new(512).unwrap(), None);
        without.resize(6);
        assert_ne!(with.state(), without.state());
        assert_eq!(with.get(page(5)), None);
        let read_back = PageTable::from_hashes(with.page_size(), Some(page(5)), with.hashes().to_vec());
        assert_eq!(read_back.state(), with.state());
    }

    proptest! {
        #[test]
        fn the_running_sum_is_the_sum_and_rollback_undoes(
            steps in prop::collection::vec((prop::bool::ANY, prop::collection::vec((1u32..12, 0u64..9), 0..6), 0u32..12), 0..20)
        ) {
            let mut table = table();
            for (keep, changes, size) in steps {
                let before = (table.hashes().to_vec(), table.state());
                for (number, hash) in changes {
                    table.set(page(number), PageHash::from_raw(hash));
                }
                table.resize(size);
                if keep {
                    table.commit();
                } else {
                    table.rollback();
                    prop_assert_eq!((table.hashes().to_vec(), table.state()), before);
                }
                let anew = PageTable::from_hashes(table.page_size(), Some(page(5)), table.hashes().to_vec());
                prop_assert_eq!(anew.state(), table.state());
            }
        }
    }
}

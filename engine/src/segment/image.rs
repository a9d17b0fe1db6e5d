//! What a replay works on.
#![warn(clippy::indexing_slicing)]

use std::io;

use crate::page::{PageHash, PageNo, PageSize, StateChecksum};
use crate::transaction::Transaction;

/// An image under replay: pages that can be read back, written and cut off.
pub trait PageStore {
    /// Bytes in a page.
    fn page_size(&self) -> PageSize;

    /// Pages in the image.
    fn page_count(&self) -> u32;

    /// Reads the present version of a page within the image into a buffer of one page.
    ///
    /// # Errors
    /// Ends the replay.
    fn read(&mut self, page: PageNo, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes a page within the image.
    ///
    /// # Errors
    /// Ends the replay.
    fn write(&mut self, page: PageNo, image: &[u8]) -> io::Result<()>;

    /// Makes the image this many pages long. Pages it gains are zeros, also where there were pages before.
    ///
    /// # Errors
    /// Ends the replay.
    fn resize(&mut self, pages: u32) -> io::Result<()>;

    /// A transaction is complete: the image is now exactly its state.
    ///
    /// # Errors
    /// Ends the replay. A check of the state after every transaction fails here.
    fn committed(&mut self, transaction: &Transaction) -> io::Result<()> {
        let _ = transaction;
        Ok(())
    }
}

/// An image in memory, for tests and small databases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryImage {
    page_size: PageSize,
    bytes: Vec<u8>,
}

impl MemoryImage {
    /// An image without pages.
    #[must_use]
    pub fn new(page_size: PageSize) -> Self {
        Self { page_size, bytes: Vec::new() }
    }

    /// An image of these bytes; `None` unless they are whole pages.
    #[must_use]
    pub fn from_bytes(page_size: PageSize, bytes: Vec<u8>) -> Option<Self> {
        bytes.len().is_multiple_of(page_size.bytes()).then_some(Self { page_size, bytes })
    }

    /// All pages, one after another.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// One page; `None` beyond the end.
    #[must_use]
    pub fn page(&self, page: PageNo) -> Option<&[u8]> {
        let start = page.index() * self.page_size.bytes();
        self.bytes.get(start..start + self.page_size.bytes())
    }

    /// The checksum of the image, computed over all of it.
    #[must_use]
    pub fn state(&self) -> StateChecksum {
        let pages = (1..).map_while(PageNo::new).zip(self.bytes.chunks_exact(self.page_size.bytes()));
        pages.fold(StateChecksum::EMPTY, |sum, (page, image)| sum.with(PageHash::of(page, image)))
    }
}

fn beyond(page: PageNo) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("page {page} is beyond the end of the image"))
}

impl PageStore for MemoryImage {
    fn page_size(&self) -> PageSize {
        self.page_size
    }

    fn page_count(&self) -> u32 {
        u32::try_from(self.bytes.len() / self.page_size.bytes()).unwrap_or(u32::MAX)
    }

    fn read(&mut self, page: PageNo, buffer: &mut [u8]) -> io::Result<()> {
        let image = self.page(page).ok_or_else(|| beyond(page))?;
        if image.len() != buffer.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        buffer.copy_from_slice(image);
        Ok(())
    }

    fn write(&mut self, page: PageNo, image: &[u8]) -> io::Result<()> {
        let size = self.page_size.bytes();
        let start = page.index() * size;
        let place = self.bytes.get_mut(start..start + size).ok_or_else(|| beyond(page))?;
        if image.len() != size {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        place.copy_from_slice(image);
        Ok(())
    }

    fn resize(&mut self, pages: u32) -> io::Result<()> {
        let bytes = pages as usize * self.page_size.bytes();
        let more = bytes.saturating_sub(self.bytes.len());
        self.bytes.try_reserve_exact(more).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        self.bytes.resize(bytes, 0);
        Ok(())
    }
}

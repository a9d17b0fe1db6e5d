//! Takes an image from one transaction to a later one.
#![warn(clippy::indexing_slicing)]

use std::io;
use std::slice;

use bytes::Bytes;

use crate::compress::Decompressor;
use crate::ids::TxId;
use crate::page::PageNo;
use crate::segment::{FrameCodec, FrameEntry, PageStore, PageVersion, Part, Prologue, SegmentError};
use crate::transaction::Transaction;

/// Replays parts; keeps its buffers and zstd's context from one to the next (about 2.5 MiB at most).
#[derive(Default)]
pub struct Replayer {
    decompressor: Decompressor,
    versions: Vec<PageVersion>,
    prefix: Vec<u8>,
    images: Vec<u8>,
}

impl Replayer {
    /// A replayer without buffers yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes `image`, which is the state of transaction `from`, on to `until` or to the end of the part, whichever
    /// comes first, and says where it is then. `fetch` gives the bytes of a frame; it is asked in order, only for the
    /// frames needed, and its answers are checked.
    ///
    /// `from` is the transaction before the part's first, or one inside it that ends on a frame's end: a base is
    /// always at one.
    ///
    /// # Errors
    /// [`SegmentError`]; the image is then between two states.
    pub fn replay(
        &mut self,
        prologue: &Prologue,
        fetch: &mut dyn FnMut(&FrameEntry) -> io::Result<Bytes>,
        from: TxId,
        until: TxId,
        image: &mut dyn PageStore,
    ) -> Result<TxId, SegmentError> {
        let page_size = prologue.header.page_size;
        if image.page_size() != page_size {
            return Err(SegmentError::PageSize { expected: page_size, found: image.page_size() });
        }
        let wanted = transactions_after(prologue, from, until)?;
        let skipped = versions_up_to(prologue, from);
        let end = skipped + wanted.iter().map(|tx| u64::from(tx.pages)).sum::<u64>();
        let mut versions = prologue.versions();
        let mut cursor = Cursor::new(wanted);
        for frame in &prologue.frames {
            if u64::from(frame.first_version) >= end {
                break;
            }
            self.versions.clear();
            self.versions.extend(versions.by_ref().take(frame.images as usize));
            if u64::from(frame.first_version) < skipped {
                continue;
            }
            let bytes =
                fetch(frame).map_err(|source| SegmentError::Fetch { offset: frame.offset, source })?;
            frame.check(&bytes)?;
            // Previous versions are those of the state before the frame, cut and grown as it was.
            cursor.settle(image)?;
            self.read_prefix(page_size.bytes(), image)?;
            let images = match frame.codec {
                FrameCodec::Raw => &bytes[..],
                FrameCodec::Zstd => {
                    self.images.resize(frame.images as usize * page_size.bytes(), 0);
                    self.decompressor
                        .decompress(&self.prefix, &bytes, &mut self.images)
                        .map_err(|why| SegmentError::Compression { part: "frame", why })?;
                    &self.images
                }
            };
            let needed = usize::try_from(end - u64::from(frame.first_version)).unwrap_or(usize::MAX);
            let images = images.chunks_exact(page_size.bytes());
            for (version, bytes) in self.versions.iter().zip(images).take(needed) {
                cursor.write(version.page, bytes, image)?;
            }
        }
        cursor.finish(image)?;
        Ok(wanted.last().map_or(from, |tx| tx.tx))
    }

    /// [`Replayer::replay`] for a part whose frames are at hand.
    ///
    /// # Errors
    /// As there.
    pub fn replay_part(
        &mut self,
        part: &Part,
        from: TxId,
        until: TxId,
        image: &mut dyn PageStore,
    ) -> Result<TxId, SegmentError> {
        self.replay(&part.prologue, &mut |frame| part.frame(frame), from, until, image)
    }

    fn read_prefix(&mut self, page_bytes: usize, image: &mut dyn PageStore) -> Result<(), SegmentError> {
        let image_pages = image.page_count();
        let based = self.versions.iter().filter(|version| version.has_previous);
        self.prefix.resize(based.clone().count() * page_bytes, 0);
        for (PageVersion { page, .. }, place) in based.zip(self.prefix.chunks_exact_mut(page_bytes)) {
            if page.get() > image_pages {
                return Err(SegmentError::NoPrevious { page: *page, image_pages });
            }
            image.read(*page, place).map_err(|source| SegmentError::Image { page: page.get(), source })?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Replayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replayer").finish_non_exhaustive()
    }
}

fn transactions_after(prologue: &Prologue, from: TxId, until: TxId) -> Result<&[Transaction], SegmentError> {
    let range = prologue.header.range;
    let not_adjacent = SegmentError::NotAdjacent { from, first: range.first(), last: range.last() };
    let adjacent = from.next() == range.first();
    if !(adjacent || range.contains(from) && ends_on_a_frame(prologue, from)) {
        return Err(not_adjacent);
    }
    let wanted = |tx: &Transaction| tx.tx > from && tx.tx <= until;
    let start = prologue.transactions.iter().position(wanted).unwrap_or(0);
    let count = prologue.transactions.iter().filter(|tx| wanted(tx)).count();
    let transactions = prologue.transactions.get(start..start + count).unwrap_or_default();
    match transactions.iter().find(|tx| tx.flags.needs_base) {
        Some(tx) => Err(SegmentError::NeedsBase { tx: tx.tx }),
        None => Ok(transactions),
    }
}

fn versions_up_to(prologue: &Prologue, tx: TxId) -> u64 {
    let before = prologue.transactions.iter().take_while(|transaction| transaction.tx <= tx);
    before.map(|transaction| u64::from(transaction.pages)).sum()
}

fn ends_on_a_frame(prologue: &Prologue, tx: TxId) -> bool {
    let versions = versions_up_to(prologue, tx);
    versions == u64::from(prologue.header.page_versions)
        || prologue.frames.iter().any(|frame| u64::from(frame.first_version) == versions)
}

/// Walks along the transactions while their pages are written.
struct Cursor<'a> {
    rest: slice::Iter<'a, Transaction>,
    current: Option<(&'a Transaction, u32)>,
}

impl<'a> Cursor<'a> {
    fn new(transactions: &'a [Transaction]) -> Self {
        Self { rest: transactions.iter(), current: None }
    }

    fn write(&mut self, page: PageNo, bytes: &[u8], image: &mut dyn PageStore) -> Result<(), SegmentError> {
        self.settle(image)?;
        if self.current.is_none() {
            self.begin(image)?;
        }
        let Some((tx, left)) = &mut self.current else {
            return Err(SegmentError::List { list: "transactions" });
        };
        *left -= 1;
        // A page beyond the end is not part of the state: it was cut off by the transaction that wrote it.
        if page.get() <= tx.image_pages {
            image.write(page, bytes).map_err(|source| SegmentError::Image { page: page.get(), source })?;
        }
        Ok(())
    }

    /// Makes the state that the next page is written to: ends the transactions that have all their pages.
    fn settle(&mut self, image: &mut dyn PageStore) -> Result<(), SegmentError> {
        loop {
            match (self.current, self.rest.as_slice().first()) {
                (Some((tx, 0)), _) => {
                    self.current = None;
                    end(tx, image).map_err(|source| SegmentError::Commit { tx: tx.tx, source })?;
                }
                (None, Some(next)) if next.pages == 0 => self.begin(image)?,
                _ => return Ok(()),
            }
        }
    }

    fn finish(&mut self, image: &mut dyn PageStore) -> Result<(), SegmentError> {
        self.settle(image)?;
        let done = self.current.is_none() && self.rest.as_slice().is_empty();
        if done { Ok(()) } else { Err(SegmentError::List { list: "transactions" }) }
    }

    /// Begins the next transaction, if there is one. The image grows before its pages are written and shrinks after.
    fn begin(&mut self, image: &mut dyn PageStore) -> Result<(), SegmentError> {
        let Some(next) = self.rest.next() else { return Ok(()) };
        if next.image_pages > image.page_count() {
            let grown = image.resize(next.image_pages);
            grown.map_err(|source| SegmentError::Commit { tx: next.tx, source })?;
        }
        self.current = Some((next, next.pages));
        Ok(())
    }
}

fn end(tx: &Transaction, image: &mut dyn PageStore) -> io::Result<()> {
    if tx.image_pages < image.page_count() {
        image.resize(tx.image_pages)?;
    }
    image.committed(tx)
}

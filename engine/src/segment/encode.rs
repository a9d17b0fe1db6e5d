//! Makes a part out of captured transactions.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

use crate::compress::{Compressor, Setting};
use crate::digest::{Hasher, Hashing};
use crate::error::{ErrorKind, Explain};
use crate::ids::{DatabaseId, Digest, TimelineId, TxId, TxRange};
use crate::page::{PageNo, PageSize};
use crate::segment::prologue::fits_flags;
use crate::segment::tables::{Span, TableBuilder, TablesMark};
use crate::segment::{
    FRAME_BYTES, FRAME_BYTES_MAX, FRAMES_MAX, FrameCodec, HEADER_BYTES, LISTS_BYTES_MAX, Prologue,
    SegmentError, SegmentHeader, TRANSACTIONS_MAX,
};
use crate::transaction::Transaction;

/// Lists shorter than this are stored as they are, in bytes.
const LISTS_BYTES_RAW: usize = 64;

/// How hard to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// zstd 1: 1.2-2 GB/s of log a core on small transactions. For the hot path.
    Hot,
    /// zstd 3: up to 5 % smaller, a third slower. For idle times.
    Thorough,
}

/// Takes the finished frames of a part, in order.
pub trait FrameSink {
    /// Appends bytes.
    ///
    /// # Errors
    /// The encoder's call fails; after [`Encoder::rollback`] it can go on.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Forgets everything after the first `len` bytes.
    ///
    /// # Errors
    /// The encoder cannot be used any more.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
}

impl FrameSink for Vec<u8> {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.extend_from_slice(bytes);
        Ok(())
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        Vec::truncate(self, usize::try_from(len).unwrap_or(usize::MAX));
        Ok(())
    }
}

/// A file of its own, from its first byte.
impl FrameSink for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)?;
        self.seek(SeekFrom::Start(len)).map(drop)
    }
}

/// What an encoder must know before the first transaction.
#[derive(Clone, Debug)]
pub struct EncoderParams {
    /// Whose history.
    pub database: DatabaseId,
    /// On which line.
    pub timeline: TimelineId,
    /// Bytes in a page.
    pub page_size: PageSize,
    /// The number of the first transaction.
    pub first: TxId,
    /// Pages in the image before the first transaction: a page beyond has no previous version.
    pub image_pages: u32,
    /// The chain hash of the history before it.
    pub chain_before: Digest,
    /// How hard to try.
    pub effort: Effort,
}

/// A finished part. The object is `prologue` followed by the frames.
#[derive(Debug)]
pub struct Finished<W> {
    /// What is in it.
    pub header: SegmentHeader,
    /// Header and tables as stored.
    pub prologue: Vec<u8>,
    /// The sink with all frames.
    pub frames: W,
}

/// Why an encoder does not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// A page image, or the previous version, is not of the page size.
    #[error("an image of page {page} has {found} bytes, expected {expected}")]
    PageLength {
        /// The page.
        page: PageNo,
        /// The page size.
        expected: PageSize,
        /// Bytes given.
        found: usize,
    },
    /// A transaction does not follow the one before, or its fields contradict each other or the pages given.
    #[error("transaction {tx} does not fit its segment: {field} is {found}, expected {expected}")]
    Transaction {
        /// The transaction.
        tx: TxId,
        /// Which field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// The part would pass a limit of the format. Such a state needs a base.
    #[error("the segment would have too many {what}, the limit is {limit}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// It was to be finished with no transaction in it, or amid one.
    #[error("a segment cannot be finished {when}")]
    NotWhole {
        /// In words.
        when: &'static str,
    },
    /// What was encoded does not decode to what went in: a broken machine, or a fault in Everwhen.
    #[error("encoding was checked and found wrong: {why}")]
    Check {
        /// In words.
        why: String,
    },
    /// The sink does not take the frames.
    #[error("write a frame of the segment")]
    Sink(#[source] io::Error),
}

impl Explain for EncodeError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Failed
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Check { .. } => Some("nothing was stored; check the memory of this machine".into()),
            _ => None,
        }
    }
}

/// The images of the frame being filled, and the previous versions of its pages.
#[derive(Debug)]
pub(super) struct OpenFrame {
    pub(super) images: Vec<u8>,
    prefix: Vec<u8>,
    /// The pages in it in order of first appearance, and the same as a set.
    pages: Vec<PageNo>,
    known: HashSet<PageNo>,
    based: usize,
    /// The fewest pages the image had at any commit from the one before the frame on. A page beyond was cut off since,
    /// or never was: the reader does not have its previous version.
    floor: u32,
}

#[derive(Clone, Copy, Debug)]
struct FrameMark {
    images: usize,
    prefix: usize,
    pages: usize,
    based: usize,
}

impl OpenFrame {
    fn new(floor: u32) -> Self {
        let (images, prefix, pages) = (Vec::new(), Vec::new(), Vec::new());
        Self { images, prefix, pages, known: HashSet::new(), based: 0, floor }
    }

    fn mark(&self) -> FrameMark {
        FrameMark {
            images: self.images.len(),
            prefix: self.prefix.len(),
            pages: self.pages.len(),
            based: self.based,
        }
    }

    fn go_back(&mut self, mark: FrameMark) {
        self.images.truncate(mark.images);
        self.prefix.truncate(mark.prefix);
        for page in self.pages.drain(mark.pages..) {
            self.known.remove(&page);
        }
        self.based = mark.based;
    }

    fn mostly_new(&self, page_size: PageSize) -> bool {
        self.based * 2 < self.images.len() / page_size.bytes()
    }

    fn is_full(&self, page_size: PageSize) -> bool {
        let bytes = self.images.len();
        bytes >= FRAME_BYTES_MAX || bytes >= FRAME_BYTES && !self.mostly_new(page_size)
    }
}

/// The transaction whose pages are coming in.
#[derive(Debug)]
struct UnderWay {
    pages: u32,
    tables: TablesMark,
    frame: FrameMark,
    /// How things were before it, once a frame with pages of it was written.
    undo: Option<Box<Undo>>,
    /// The highest page of it in frames written already.
    written_up_to: u32,
    /// The highest page of it in the open frame.
    open_up_to: u32,
}

#[derive(Debug)]
struct Undo {
    frame: OpenFrame,
    frames_len: u64,
    frames_raw_len: u64,
    frames_hash: Hashing,
}

/// Encodes one part, transaction by transaction.
///
/// Finished frames go to the sink; in memory are the open frame with its prefix (2 MiB at most, as much again while a
/// transaction is under way that has filled frames) and the tables, a byte or two a page. So a transaction may have
/// millions of pages.
///
/// After an error of [`Encoder::page`] or [`Encoder::commit`] call [`Encoder::rollback`]: all transactions committed
/// before are intact.
#[derive(Debug)]
pub struct Encoder<W> {
    params: EncoderParams,
    pub(super) sink: W,
    tables: TableBuilder,
    pub(super) open: OpenFrame,
    under_way: Option<UnderWay>,
    pub(super) frames_len: u64,
    frames_raw_len: u64,
    frames_hash: Hashing,
    image_pages: u32,
}

impl<W: FrameSink> Encoder<W> {
    /// Begins a part. `sink` is empty.
    pub fn new(params: EncoderParams, sink: W) -> Self {
        Self {
            sink,
            tables: TableBuilder::default(),
            open: OpenFrame::new(params.image_pages),
            under_way: None,
            frames_len: 0,
            frames_raw_len: 0,
            frames_hash: Hasher::Plain.start(),
            image_pages: params.image_pages,
            params,
        }
    }

    /// Whether [`Encoder::page`] has a use for the previous version of this page: not when the page is in the open
    /// frame already, and not when readers do not have that version.
    #[must_use]
    pub fn wants_previous(&self, page: PageNo) -> bool {
        let floor = if self.is_full() { self.image_pages } else { self.open.floor };
        page.get() <= floor
            && (self.is_full() || !self.open.known.contains(&page))
            && self.under_way.as_ref().is_none_or(|tx| {
                page.get() > tx.written_up_to && (!self.is_full() || page.get() > tx.open_up_to)
            })
    }

    /// Takes a page image of the transaction under way. `previous` is the page's version before this transaction; leave
    /// it out when it is not known for certain. It is not used unless [`Encoder::wants_previous`].
    ///
    /// # Errors
    /// [`EncodeError`]; then roll back.
    pub fn page(&mut self, page: PageNo, image: &[u8], previous: Option<&[u8]>) -> Result<(), EncodeError> {
        let expected = self.params.page_size;
        for bytes in previous.into_iter().chain([image]) {
            if bytes.len() != expected.bytes() {
                return Err(EncodeError::PageLength { page, expected, found: bytes.len() });
            }
        }
        self.check_room()?;
        if self.is_full() {
            self.close_frame()?;
        }
        let previous = previous.filter(|_| self.wants_previous(page));
        let tx = self.under_way.get_or_insert_with(|| UnderWay {
            pages: 0,
            tables: self.tables.mark(),
            frame: self.open.mark(),
            undo: None,
            written_up_to: 0,
            open_up_to: 0,
        });
        tx.pages += 1;
        tx.open_up_to = tx.open_up_to.max(page.get());
        self.tables.version(page, previous.is_some());
        self.open.images.extend_from_slice(image);
        // A page that is in the frame already finds its earlier version there: it is not new either.
        let first = self.open.known.insert(page);
        if first {
            self.open.pages.push(page);
        }
        self.open.based += usize::from(!first || previous.is_some());
        self.open.prefix.extend_from_slice(previous.unwrap_or_default());
        Ok(())
    }

    /// Forgets the pages of the transaction under way, also those in frames already written: the sink is truncated to
    /// where it was. The transactions committed before stay. Does nothing when no transaction is under way, but for
    /// clearing away what a failed write left in the sink.
    ///
    /// # Errors
    /// [`EncodeError::Sink`]: the encoder cannot be used any more.
    pub fn rollback(&mut self) -> Result<(), EncodeError> {
        if let Some(tx) = self.under_way.take() {
            self.tables.go_back(tx.tables);
            match tx.undo {
                None => self.open.go_back(tx.frame),
                Some(undo) => {
                    self.open = undo.frame;
                    self.frames_len = undo.frames_len;
                    self.frames_raw_len = undo.frames_raw_len;
                    self.frames_hash = undo.frames_hash;
                }
            }
        }
        self.sink.truncate(self.frames_len).map_err(EncodeError::Sink)
    }

    /// Ends the transaction under way; one without pages needs no page before.
    ///
    /// # Errors
    /// [`EncodeError::Transaction`] when it does not follow the transaction before, when its number of pages is not
    /// what came in, or when its flags do not allow its place; then roll back.
    pub fn commit(&mut self, transaction: &Transaction) -> Result<(), EncodeError> {
        self.check_transaction(transaction)?;
        self.check_room()?;
        self.under_way = None;
        self.tables.transaction(transaction);
        self.image_pages = transaction.image_pages;
        self.open.floor = self.open.floor.min(transaction.image_pages);
        Ok(())
    }

    /// Transactions committed so far.
    #[must_use]
    pub fn transactions(&self) -> u64 {
        self.tables.span.map_or(0, |span| span.count.into())
    }

    /// Page images taken so far, those of the transaction under way included.
    #[must_use]
    pub fn page_versions(&self) -> u64 {
        self.tables.versions().into()
    }

    /// About how many bytes the part would have if it were finished now: exact but for the open frame, which is counted
    /// as the frames before it went, the first one as a quarter of its images. Costs nothing.
    #[must_use]
    pub fn encoded_bytes(&self) -> u64 {
        let open = self.open.images.len() as u64;
        let open = if self.frames_raw_len == 0 {
            open / 4
        } else {
            (u128::from(open) * u128::from(self.frames_len) / u128::from(self.frames_raw_len)) as u64
        };
        (HEADER_BYTES + self.tables.len()) as u64 + self.frames_len + open
    }

    /// Ends the part: closes the last frame, makes the prologue and reads it back.
    ///
    /// # Errors
    /// [`EncodeError`]. The encoder is gone, and its transactions with it.
    pub fn finish(mut self) -> Result<Finished<W>, EncodeError> {
        if self.under_way.is_some() {
            return Err(EncodeError::NotWhole { when: "amid a transaction" });
        }
        let span = self.tables.span.ok_or(EncodeError::NotWhole { when: "without a transaction" })?;
        if !self.open.images.is_empty() {
            self.close_frame()?;
        }
        let (header, prologue) = self.make_prologue(&span)?;
        check_prologue(&header, &prologue, self.frames_hash.finish())
            .map_err(|error| EncodeError::Check { why: error.to_string() })?;
        Ok(Finished { header, prologue, frames: self.sink })
    }

    pub(super) fn is_full(&self) -> bool {
        self.open.is_full(self.params.page_size)
    }

    fn check_room(&self) -> Result<(), EncodeError> {
        let too_large = |what, limit: u64| Err(EncodeError::TooLarge { what, limit });
        // A page takes 6 bytes at most in the lists, a transaction 24, a frame 10.
        if self.tables.lists_len() + 64 > LISTS_BYTES_MAX {
            too_large("page versions", LISTS_BYTES_MAX as u64)
        } else if self.tables.frames() + 2 > FRAMES_MAX {
            too_large("frames", FRAMES_MAX.into())
        } else if self.transactions() >= TRANSACTIONS_MAX.into() {
            too_large("transactions", TRANSACTIONS_MAX.into())
        } else {
            Ok(())
        }
    }

    fn check_transaction(&self, transaction: &Transaction) -> Result<(), EncodeError> {
        let Transaction { tx, time, not_before, flags, pages, .. } = *transaction;
        let check = |fits: bool, field, found: &dyn ToString, expected: &dyn ToString| {
            let (found, expected) = (found.to_string(), expected.to_string());
            let misfit = || EncodeError::Transaction { tx, field, found, expected };
            fits.then_some(()).ok_or_else(misfit)
        };
        let span = self.tables.span;
        let expected = span.map_or(self.params.first, |span| span.last.next());
        check(tx == expected, "the number", &tx, &expected)?;
        let given = self.under_way.as_ref().map_or(0, |tx| tx.pages);
        check(pages == given, "the number of pages", &pages, &given)?;
        let fits = fits_flags(flags, not_before, time, pages);
        check(fits, "flags", &flags.bits(), &"such as allow its times and pages")?;
        if let Some(span) = span {
            check(!flags.any(), "flags", &flags.bits(), &"none, or to be the first")?;
            check(time >= span.to, "the time", &time, &format!("{} or later", span.to))?;
            let same = !span.flags.opens_window() || time == span.to;
            check(same, "the time", &time, &format!("{} as of the first", span.to))?;
        }
        Ok(())
    }

    fn close_frame(&mut self) -> Result<(), EncodeError> {
        let setting = match self.params.effort {
            _ if self.open.images.len() > FRAME_BYTES => Setting::Wide,
            Effort::Hot => Setting::Hot,
            Effort::Thorough => Setting::Thorough,
        };
        let OpenFrame { images, prefix, .. } = &self.open;
        let count = (images.len() / self.params.page_size.bytes()) as u32;
        let (sink, hash) = (&mut self.sink, &mut self.frames_hash);
        let before = self.under_way.as_ref().is_some_and(|tx| tx.undo.is_none()).then(|| hash.clone());
        let (codec, len, entry) = Compressor::with(setting, |compressor| {
            let compressed =
                compressor.compress(prefix, images).map_err(|why| EncodeError::Check { why: why.into() })?;
            let codec = if compressed.is_some() { FrameCodec::Zstd } else { FrameCodec::Raw };
            let bytes = compressed.unwrap_or(images);
            sink.append(bytes).map_err(EncodeError::Sink)?;
            hash.update(bytes);
            Ok((codec, bytes.len() as u64, crc32fast::hash(bytes)))
        })?;
        self.tables.frame(count, codec, len, entry);
        let (frames_len, frames_raw_len) = (self.frames_len, self.frames_raw_len);
        self.frames_len += len;
        self.frames_raw_len += images.len() as u64;
        let mut closed = std::mem::replace(&mut self.open, OpenFrame::new(self.image_pages));
        if let Some(tx) = &mut self.under_way {
            tx.written_up_to = tx.written_up_to.max(tx.open_up_to);
            tx.open_up_to = 0;
            if let Some(frames_hash) = before {
                closed.go_back(tx.frame);
                tx.undo = Some(Box::new(Undo { frame: closed, frames_len, frames_raw_len, frames_hash }));
                return Ok(());
            }
        }
        self.open.reuse(closed);
        Ok(())
    }

    fn make_prologue(&self, span: &Span) -> Result<(SegmentHeader, Vec<u8>), EncodeError> {
        let lists = self.tables.lists();
        let mut tables = if lists.len() < LISTS_BYTES_RAW {
            lists.clone()
        } else {
            Compressor::with(Setting::Plain, |compressor| {
                let compressed = compressor.compress(&[], &lists);
                compressed.map(|bytes| bytes.unwrap_or(&lists).to_vec())
            })
            .map_err(|why| EncodeError::Check { why: why.into() })?
        };
        let lists_len = tables.len() as u32;
        tables.extend(self.tables.states_and_crcs().concat());
        let range = TxRange::new(span.first, span.last)
            .ok_or(EncodeError::NotWhole { when: "without a transaction" })?;
        let mut header = SegmentHeader {
            database: self.params.database,
            timeline: self.params.timeline,
            page_size: self.params.page_size,
            range,
            from: span.from,
            to: span.to,
            flags: span.flags,
            page_versions: self.tables.versions(),
            frames: self.tables.frames(),
            lists_len,
            lists_raw_len: lists.len() as u32,
            frames_len: self.frames_len,
            tables_crc: crc32fast::hash(&tables),
            chain_before: self.params.chain_before,
            chain_after: self.params.chain_before,
        };
        header.chain_after = header.chain(Hasher::Plain.digest(&tables), self.frames_hash.finish());
        let mut prologue = header.encode();
        prologue.extend(tables);
        Ok((header, prologue))
    }
}

impl OpenFrame {
    /// Takes over the buffers of a frame that is no longer needed.
    fn reuse(&mut self, mut closed: Self) {
        closed.go_back(FrameMark { images: 0, prefix: 0, pages: 0, based: 0 });
        closed.floor = self.floor;
        *self = closed;
    }
}

fn check_prologue(header: &SegmentHeader, bytes: &[u8], frames: Digest) -> Result<(), SegmentError> {
    let read = Prologue::parse(bytes)?;
    if read.header != *header {
        return Err(SegmentError::List { list: "fields" });
    }
    read.check_chain(frames)
}

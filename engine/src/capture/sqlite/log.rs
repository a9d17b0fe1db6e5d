//! Reading published frames: first all of a range is checked, then its transactions are handed over.
//!
//! A range that fits the buffer is read once; a longer one is streamed twice in chunks, so that memory does not grow
//! with the size of a transaction. Published frames do not change while a pin is held, so both passes see the same.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::page::{PageNo, PageSize};
use crate::sqlite::wal::{self, FRAME_HEADER_LEN, FrameHeader, RunningChecksum, Salts, WordOrder};

/// Bytes read at once; a range up to this size is read once.
const CHUNK_BYTES: usize = 2 << 20;
/// A transaction with more frames than this is handed over last frame first, with one bit of memory a page.
const LISTED_FRAMES: u32 = 65_536;
/// Pages whose last frame is remembered; beyond that (a log of more than 8 GiB) earlier versions are not looked up.
const REMEMBERED_PAGES: usize = 2_000_000;

/// Frames of the log, a chunk at a time.
#[derive(Default)]
pub(super) struct Frames {
    buffer: Vec<u8>,
    first: u32,
    count: u32,
}

/// One committed transaction in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: u32,
    pub(super) last: u32,
    pub(super) image_pages: u32,
}

/// A range of frames that is not what was published. Passes, or the log is broken.
#[derive(Debug)]
pub(super) struct Mismatch(pub(super) String);

impl Frames {
    /// Forgets what is in the buffer: the log was reset.
    pub(super) fn forget(&mut self) {
        self.count = 0;
    }

    fn chunk_frames(page_size: PageSize) -> u32 {
        (CHUNK_BYTES / frame_len(page_size)).max(1) as u32
    }

    /// Makes `first..=last`, or as much of it as fits, available; gives the last one that is.
    fn load(&mut self, file: &File, page_size: PageSize, first: u32, last: u32) -> io::Result<u32> {
        let end = last.min(first.saturating_add(Self::chunk_frames(page_size) - 1));
        if first >= self.first && end < self.first.saturating_add(self.count) {
            return Ok(end);
        }
        let count = end - first + 1;
        self.count = 0;
        self.buffer.resize(count as usize * frame_len(page_size), 0);
        file.read_exact_at(&mut self.buffer, wal::frame_offset(first, page_size))?;
        (self.first, self.count) = (first, count);
        Ok(end)
    }

    /// A loaded frame, header and page.
    fn frame(&self, page_size: PageSize, number: u32) -> &[u8] {
        let start = number.wrapping_sub(self.first) as usize * frame_len(page_size);
        self.buffer.get(start..start + frame_len(page_size)).unwrap_or_default()
    }

    /// Checks the chain of `first..=last` from `before` on and gives its transactions. The last frame must be a commit
    /// frame with the checksum that was published for it.
    ///
    /// With `psow=0` SQLite repeats the commit frame up to the end of a disk sector. A commit frame with the page, size
    /// and image of the commit frame right before it belongs to the same transaction.
    pub(super) fn survey(&mut self, range: &Range<'_>) -> Result<Vec<Span>, Mismatch> {
        let mut spans: Vec<Span> = Vec::new();
        let mut running = range.before;
        let mut next_first = range.first;
        let mut repeated: Option<(PageNo, u64)> = None;
        let mut number = range.first;
        while number <= range.last {
            let end = self
                .load(range.file, range.page_size, number, range.last)
                .map_err(|error| Mismatch(format!("frames from {number} on cannot be read: {error}")))?;
            for at in number..=end {
                let bytes = self.frame(range.page_size, at);
                let Some(header) = wal::check_frame(bytes, range.salts, running, range.order) else {
                    return Err(Mismatch(format!("frame {at} does not continue the log")));
                };
                running = header.checksum;
                let Some(size) = header.commit else {
                    repeated = None;
                    continue;
                };
                let image = xxhash_rust::xxh3::xxh3_64(bytes.get(FRAME_HEADER_LEN..).unwrap_or_default());
                match spans.last_mut() {
                    Some(span)
                        if span.last + 1 == at
                            && span.image_pages == size.get()
                            && repeated == Some((header.page, image)) =>
                    {
                        span.last = at;
                    }
                    _ => spans.push(Span { first: next_first, last: at, image_pages: size.get() }),
                }
                repeated = Some((header.page, image));
                next_first = at + 1;
            }
            number = end + 1;
        }
        if running != range.published {
            return Err(Mismatch(format!("the checksum at frame {} is not the published one", range.last)));
        }
        if next_first != range.last + 1 {
            return Err(Mismatch(format!("frame {} is published but is no commit frame", range.last)));
        }
        Ok(spans)
    }

    /// Hands over each page of a transaction once, with the image of its last frame; a page beyond the image's end is
    /// not part of it. Gives the checksum at its end.
    pub(super) fn hand_over<E>(
        &mut self,
        source: LogFile<'_>,
        span: Span,
        page: impl FnMut(PageNo, u32, &[u8]) -> Result<(), E>,
    ) -> Result<RunningChecksum, HandOver<E>> {
        if span.last - span.first < LISTED_FRAMES {
            self.hand_over_listed(source, span, page)?;
        } else {
            self.hand_over_backwards(source, span, page)?;
        }
        self.load(source.file, source.page_size, span.last, span.last)?;
        Ok(self.header(source.page_size, span.last)?.checksum)
    }

    fn hand_over_listed<E>(
        &mut self,
        source: LogFile<'_>,
        span: Span,
        mut page: impl FnMut(PageNo, u32, &[u8]) -> Result<(), E>,
    ) -> Result<(), HandOver<E>> {
        let mut last_of = HashMap::new();
        if span.first != span.last {
            self.each(source, span, |number, header, _| {
                last_of.insert(header.page, number);
                Ok(())
            })?;
        }
        self.each(source, span, |number, header, image| {
            let last = last_of.get(&header.page).is_none_or(|last| *last == number);
            if last && header.page.get() <= span.image_pages {
                page(header.page, number, image)
            } else {
                Ok(())
            }
        })
    }

    fn each<E>(
        &mut self,
        source: LogFile<'_>,
        span: Span,
        mut visit: impl FnMut(u32, FrameHeader, &[u8]) -> Result<(), E>,
    ) -> Result<(), HandOver<E>> {
        let mut number = span.first;
        while number <= span.last {
            let end = self.load(source.file, source.page_size, number, span.last)?;
            for at in number..=end {
                let header = self.header(source.page_size, at)?;
                let image = self.frame(source.page_size, at).get(FRAME_HEADER_LEN..).unwrap_or_default();
                visit(at, header, image).map_err(HandOver::Sink)?;
            }
            number = end + 1;
        }
        Ok(())
    }

    fn hand_over_backwards<E>(
        &mut self,
        source: LogFile<'_>,
        span: Span,
        mut page: impl FnMut(PageNo, u32, &[u8]) -> Result<(), E>,
    ) -> Result<(), HandOver<E>> {
        let mut seen = PageSet::default();
        let mut end = span.last;
        loop {
            let start = end.saturating_sub(Self::chunk_frames(source.page_size) - 1).max(span.first);
            self.load(source.file, source.page_size, start, end)?;
            for at in (start..=end).rev() {
                let header = self.header(source.page_size, at)?;
                if header.page.get() <= span.image_pages && seen.insert(header.page) {
                    let image = self.frame(source.page_size, at).get(FRAME_HEADER_LEN..).unwrap_or_default();
                    page(header.page, at, image).map_err(HandOver::Sink)?;
                }
            }
            if start == span.first {
                return Ok(());
            }
            end = start - 1;
        }
    }

    fn header<E>(&self, page_size: PageSize, number: u32) -> Result<FrameHeader, HandOver<E>> {
        FrameHeader::parse(self.frame(page_size, number)).ok_or_else(|| {
            HandOver::Log(io::Error::other(format!("frame {number} changed while it was read")))
        })
    }
}

/// The log and its page size.
#[derive(Clone, Copy)]
pub(super) struct LogFile<'a> {
    pub(super) file: &'a File,
    pub(super) page_size: PageSize,
}

/// A published range of frames and what is known of it.
pub(super) struct Range<'a> {
    pub(super) file: &'a File,
    pub(super) page_size: PageSize,
    pub(super) salts: Salts,
    pub(super) order: WordOrder,
    pub(super) first: u32,
    pub(super) last: u32,
    /// The checksum at the frame before `first`.
    pub(super) before: RunningChecksum,
    /// The checksum published for `last`.
    pub(super) published: RunningChecksum,
}

/// Why a transaction was not handed over.
#[derive(Debug)]
pub(super) enum HandOver<E> {
    Log(io::Error),
    Sink(E),
}

impl<E> From<io::Error> for HandOver<E> {
    fn from(error: io::Error) -> Self {
        Self::Log(error)
    }
}

fn frame_len(page_size: PageSize) -> usize {
    FRAME_HEADER_LEN + page_size.bytes()
}

/// Reads the page of one frame and checks that it is the page's.
pub(super) fn read_frame(source: LogFile<'_>, number: u32, page: PageNo, image: &mut [u8]) -> io::Result<()> {
    let mut head = [0; FRAME_HEADER_LEN];
    let offset = wal::frame_offset(number, source.page_size);
    source.file.read_exact_at(&mut head, offset)?;
    source.file.read_exact_at(image, offset + FRAME_HEADER_LEN as u64)?;
    match FrameHeader::parse(&head) {
        Some(header) if header.page == page => Ok(()),
        _ => Err(io::Error::other(format!("frame {number} of the log does not hold page {page}"))),
    }
}

/// Reads the header of one frame.
pub(super) fn read_frame_header(source: LogFile<'_>, number: u32) -> io::Result<Option<FrameHeader>> {
    let mut head = [0; FRAME_HEADER_LEN];
    source.file.read_exact_at(&mut head, wal::frame_offset(number, source.page_size))?;
    Ok(FrameHeader::parse(&head))
}

/// The last captured frame of each page in the present generation.
#[derive(Clone, Debug)]
pub(super) struct LastFrames {
    frames: HashMap<PageNo, u32>,
    /// Whether every captured frame is in it.
    complete: bool,
}

impl Default for LastFrames {
    fn default() -> Self {
        Self { frames: HashMap::new(), complete: true }
    }
}

impl LastFrames {
    /// The log was reset.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Takes in the frames `first..=last` by their headers. A page's entry counts only up to the limit.
    pub(super) fn scan(
        &mut self,
        source: LogFile<'_>,
        first: u32,
        last: u32,
        limit: usize,
    ) -> io::Result<()> {
        for number in first..=last {
            let Some(header) = read_frame_header(source, number)? else {
                return Err(io::Error::other(format!("frame {number} of the log has no page")));
            };
            self.insert_up_to(header.page, number, limit);
        }
        Ok(())
    }

    pub(super) fn insert(&mut self, page: PageNo, frame: u32) {
        self.insert_up_to(page, frame, REMEMBERED_PAGES);
    }

    fn insert_up_to(&mut self, page: PageNo, frame: u32, limit: usize) {
        if self.frames.len() < limit || self.frames.contains_key(&page) {
            self.frames.insert(page, frame);
        } else {
            self.complete = false;
        }
    }

    /// What is in it may be wrong: a transaction was given up half-way.
    pub(super) fn spoil(&mut self) {
        self.frames = HashMap::new();
        self.complete = false;
    }

    pub(super) fn pages(&self) -> impl Iterator<Item = PageNo> + '_ {
        self.frames.keys().copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.complete && self.frames.is_empty()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// `Ok(Some)`: in this frame. `Ok(None)`: in none. `Err`: not known.
    pub(super) fn get(&self, page: PageNo) -> Result<Option<u32>, ()> {
        match self.frames.get(&page) {
            Some(frame) => Ok(Some(*frame)),
            None if self.complete => Ok(None),
            None => Err(()),
        }
    }
}

/// The limit of [`LastFrames::scan`] for what is kept.
pub(super) const fn remembered_pages() -> usize {
    REMEMBERED_PAGES
}

/// A set of pages: a bit each, in blocks that exist where there are members.
#[derive(Default)]
struct PageSet {
    blocks: HashMap<u32, Box<[u64; 512]>>,
}

impl PageSet {
    /// Whether the page was new.
    fn insert(&mut self, page: PageNo) -> bool {
        let (block, bit) = (page.get() >> 15, page.get() & 0x7fff);
        let block = self.blocks.entry(block).or_insert_with(|| Box::new([0; 512]));
        let Some(word) = block.get_mut((bit >> 6) as usize) else { return false };
        let mask = 1 << (bit & 63);
        let new = *word & mask == 0;
        *word |= mask;
        new
    }
}

//! Reading published frames: first all of a range is checked, then its transactions are handed over.
//!
//! A range that fits the buffer is read once; a longer one is streamed again in chunks, so that memory does not grow
//! with the size of a transaction. Published frames do not change while a pin is held; but at times none is, and what
//! is read again is checked again, a chunk before any page of it is handed over. So a sink is given the very bytes that
//! were checked, or else learns before the transaction's end that they are not.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;

use super::chain::{Chain, Followed};
use crate::page::{PageNo, PageSize};
use crate::sqlite::wal::{
    self, FRAME_HEADER_LEN, FrameHeader, HEADER_LEN, RunningChecksum, Salts, WalHeader, WordOrder,
};

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
    /// What is in the buffer has been found to continue the log.
    checked: bool,
}

/// One committed transaction in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: u32,
    pub(super) last: u32,
    pub(super) image_pages: u32,
    salts: Salts,
    order: WordOrder,
    /// The checksum at the frame before it.
    before: RunningChecksum,
    /// The checksum at its last frame.
    pub(super) checksum: RunningChecksum,
    /// What the frames after it continue: the same, unless its last frame is blank.
    pub(super) continued: RunningChecksum,
    /// It is one frame, the same commit frame as the one before it.
    pub(super) repeats: bool,
}

/// With `psow=0` SQLite repeats a transaction's commit frame up to the end of a disk sector: such frames belong to the
/// transaction before. A commit that writes the same page once more looks the same, but the state after it is, too.
pub(super) fn without_repeats(spans: Vec<Span>) -> Vec<Span> {
    let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
    for span in spans {
        match merged.last_mut() {
            Some(before) if span.repeats => {
                (before.last, before.checksum, before.continued) = (span.last, span.checksum, span.continued);
            }
            _ => merged.push(span),
        }
    }
    merged
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
        (self.count, self.checked) = (0, false);
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

    /// Checks the chain of `first..=last` from `before` on and gives what ends with a commit frame each: transactions,
    /// and perhaps repeats. The last frame must be a commit frame with the checksum that was published for it.
    pub(super) fn survey(&mut self, range: &Range<'_>) -> Result<Vec<Span>, Mismatch> {
        let mut spans: Vec<Span> = Vec::new();
        let mut chain = Chain::new(range.salts, range.order, range.before);
        let (mut next_first, mut next_before) = (range.first, range.before);
        let mut committed: Option<(PageNo, PageNo, u64)> = None;
        let mut number = range.first;
        while number <= range.last {
            let end = self
                .load(range.file, range.page_size, number, range.last)
                .map_err(|error| Mismatch(format!("frames from {number} on cannot be read: {error}")))?;
            for at in number..=end {
                let bytes = self.frame(range.page_size, at);
                let Some(Followed { header, from }) = chain.follow(bytes) else {
                    return Err(Mismatch(format!("frame {at} does not continue the log")));
                };
                if at == next_first {
                    next_before = from;
                    spans.last_mut().into_iter().for_each(|span| span.continued = from);
                }
                let Some(size) = header.commit else { continue };
                let image = xxhash_rust::xxh3::xxh3_64(bytes.get(FRAME_HEADER_LEN..).unwrap_or_default());
                let commit = Some((header.page, size, image));
                spans.push(Span {
                    first: next_first,
                    last: at,
                    image_pages: size.get(),
                    salts: range.salts,
                    order: range.order,
                    before: next_before,
                    checksum: header.checksum,
                    continued: header.checksum,
                    repeats: at == next_first && commit == committed,
                });
                committed = commit;
                next_first = at + 1;
            }
            self.checked = true;
            number = end + 1;
        }
        if next_first != range.last + 1 {
            return Err(Mismatch(format!("frame {} is published but is no commit frame", range.last)));
        }
        range.accept_end(&chain, spans.last_mut())?;
        Ok(spans)
    }

    /// Hands over each page of a transaction once, with the image of its last frame; a page beyond the image's end is
    /// not part of it.
    ///
    /// After an error the pages handed over are to be taken back: some of them may not be of this transaction.
    pub(super) fn hand_over<E>(
        &mut self,
        source: LogFile<'_>,
        span: Span,
        page: impl FnMut(PageNo, u32, &[u8]) -> Result<(), E>,
    ) -> Result<(), HandOver<E>> {
        if span.last - span.first < LISTED_FRAMES {
            self.hand_over_listed(source, span, page)
        } else {
            self.hand_over_backwards(source, span, page)
        }
    }

    fn hand_over_listed<E>(
        &mut self,
        source: LogFile<'_>,
        span: Span,
        mut page: impl FnMut(PageNo, u32, &[u8]) -> Result<(), E>,
    ) -> Result<(), HandOver<E>> {
        let last_of = self.last_of_each_page(source, span)?;
        let mut running = span.before;
        let mut number = span.first;
        while number <= span.last {
            let end = self.load(source.file, source.page_size, number, span.last)?;
            running = self.check_again(source, span, number..=end, running)?;
            for at in number..=end {
                let header = self.header(source.page_size, at)?;
                let last = last_of.get(&header.page).is_none_or(|last| *last == at);
                if last && header.page.get() <= span.image_pages {
                    let image = self.frame(source.page_size, at).get(FRAME_HEADER_LEN..).unwrap_or_default();
                    page(header.page, at, image).map_err(HandOver::Sink)?;
                }
            }
            number = end + 1;
        }
        if running == span.checksum { Ok(()) } else { Err(changed(span.last)) }
    }

    /// Not checked: a frame that was overwritten stays so, and the reading after this one finds it.
    fn last_of_each_page<E>(
        &mut self,
        source: LogFile<'_>,
        span: Span,
    ) -> Result<HashMap<PageNo, u32>, HandOver<E>> {
        let mut last_of = HashMap::new();
        let mut number = span.first;
        while number <= span.last && span.first != span.last {
            let end = self.load(source.file, source.page_size, number, span.last)?;
            for at in number..=end {
                last_of.insert(self.header(source.page_size, at)?.page, at);
            }
            number = end + 1;
        }
        Ok(last_of)
    }

    /// A chunk's chain begins with what the frame before it says of itself, which is checked as the end of the next
    /// chunk.
    fn hand_over_backwards<E>(
        &mut self,
        source: LogFile<'_>,
        span: Span,
        mut page: impl FnMut(PageNo, u32, &[u8]) -> Result<(), E>,
    ) -> Result<(), HandOver<E>> {
        let mut seen = PageSet::default();
        let (mut end, mut at_end) = (span.last, span.checksum);
        loop {
            let start = end.saturating_sub(Self::chunk_frames(source.page_size) - 1).max(span.first);
            let before = if start == span.first {
                span.before
            } else {
                read_frame_header(source, start - 1)?.ok_or_else(|| changed(start - 1))?.checksum
            };
            self.load(source.file, source.page_size, start, end)?;
            if self.check_again(source, span, start..=end, before)? != at_end {
                return Err(changed(end));
            }
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
            (end, at_end) = (start - 1, before);
        }
    }

    /// Checks loaded frames as [`Frames::survey`] did, unless they are still the ones it has read. Gives the checksum at
    /// the last one.
    fn check_again<E>(
        &self,
        source: LogFile<'_>,
        span: Span,
        frames: RangeInclusive<u32>,
        before: RunningChecksum,
    ) -> Result<RunningChecksum, HandOver<E>> {
        if self.checked {
            return Ok(self.header(source.page_size, *frames.end())?.checksum);
        }
        let mut chain = Chain::new(span.salts, span.order, before);
        for at in frames {
            chain.follow(self.frame(source.page_size, at)).ok_or_else(|| changed(at))?;
        }
        if chain.has_blanks() && !is_of(source.file, span.salts) {
            return Err(changed(span.last));
        }
        Ok(chain.running())
    }

    fn header<E>(&self, page_size: PageSize, number: u32) -> Result<FrameHeader, HandOver<E>> {
        FrameHeader::parse(self.frame(page_size, number)).ok_or_else(|| changed(number))
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

impl Range<'_> {
    /// Whether the chain of its frames ends as it was published.
    fn accept_end(&self, chain: &Chain, last: Option<&mut Span>) -> Result<(), Mismatch> {
        if chain.has_blanks() && !is_of(self.file, self.salts) {
            return Err(Mismatch("the log was reset while it was read".to_owned()));
        }
        if chain.running() == self.published {
            return Ok(());
        }
        if !chain.is_open() {
            return Err(Mismatch(format!("the checksum at frame {} is not the published one", self.last)));
        }
        last.into_iter().for_each(|span| span.continued = self.published);
        Ok(())
    }
}

/// Whether the header of the log is that of a generation: then nothing has overwritten what was read of it by now.
fn is_of(log: &File, salts: Salts) -> bool {
    read_header(log).is_ok_and(|header| header.salts == salts)
}

/// Reads the header of the log.
pub(super) fn read_header(log: &File) -> Result<WalHeader, String> {
    let mut bytes = [0; HEADER_LEN];
    log.read_exact_at(&mut bytes, 0).map_err(|error| format!("the header of the log: {error}"))?;
    WalHeader::parse(&bytes).map_err(|error| format!("the header of the log: {error}"))
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

fn changed<E>(frame: u32) -> HandOver<E> {
    HandOver::Log(io::Error::other(format!("frame {frame} changed while it was read")))
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

/// What the frames after a commit frame of a generation continue, with at least one of them there. `None` when it is no
/// commit frame of the generation.
pub(super) fn read_continued(
    source: LogFile<'_>,
    number: u32,
    salts: Salts,
    order: WordOrder,
) -> io::Result<Option<RunningChecksum>> {
    let header = read_frame_header(source, number)?.filter(|header| header.commit.is_some());
    Ok(match header {
        Some(header) if header.salts == salts => Some(header.checksum),
        Some(header) if header.is_blank() => {
            let mut next = vec![0; frame_len(source.page_size)];
            source
                .file
                .read_exact_at(&mut next, wal::frame_offset(number.saturating_add(1), source.page_size))?;
            wal::continued_by(&next, order).filter(|_| is_of(source.file, salts))
        }
        _ => None,
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::sqlite::chain::tests::{ORDER, SALTS, push_blank};

    const FRAMES: u32 = 9_000;

    fn salts(generation: u32) -> Salts {
        Salts(generation, 7)
    }

    /// One transaction of more than two chunks, in a file without a name.
    fn written(generation: u32) -> (File, LogFrames) {
        let (page_size, order) = (PageSize::MIN, WordOrder::Little);
        let mut bytes = WalHeader::encode(page_size, salts(generation), order).to_vec();
        let before = WalHeader::parse(&bytes).unwrap().checksum;
        let mut running = before;
        for number in 1..=FRAMES {
            let (page, commit) =
                (PageNo::new(number % 4_001 + 1).unwrap(), (number == FRAMES).then_some(4_001));
            let image = (number ^ generation << 20).to_le_bytes().repeat(page_size.bytes() / 4);
            let commit = commit.and_then(PageNo::new);
            running = wal::push_frame(&mut bytes, page, commit, &image, salts(generation), running, order);
        }
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        (file, LogFrames { bytes, before, published: running })
    }

    struct LogFrames {
        bytes: Vec<u8>,
        before: RunningChecksum,
        published: RunningChecksum,
    }

    /// The pages handed over; `None` when that failed. At each, `meddle` may change the log.
    fn handed_over(
        backwards: bool,
        log: &(File, LogFrames),
        meddle: impl Fn(usize),
    ) -> Option<HashMap<PageNo, Vec<u8>>> {
        let (file, LogFrames { before, published, .. }) = log;
        let (page_size, order, before, published) = (PageSize::MIN, WordOrder::Little, *before, *published);
        let range =
            Range { file, page_size, salts: salts(1), order, first: 1, last: FRAMES, before, published };
        let mut frames = Frames::default();
        let [span] = frames.survey(&range).unwrap()[..] else { panic!("one transaction") };
        let (source, mut pages) = (LogFile { file, page_size }, HashMap::new());
        let page = |page, _, image: &[u8]| {
            meddle(pages.len());
            assert_eq!(pages.insert(page, image.to_vec()), None);
            Ok::<(), ()>(())
        };
        let outcome = if backwards {
            frames.hand_over_backwards(source, span, page)
        } else {
            frames.hand_over_listed(source, span, page)
        };
        outcome.is_ok().then_some(pages)
    }

    #[test]
    fn both_ways_hand_over_the_last_image_of_each_page() {
        let log = written(1);
        let pages = handed_over(false, &log, |_| ()).unwrap();
        assert_eq!(pages.len(), 4_001);
        assert_eq!(handed_over(true, &log, |_| ()), Some(pages));
    }

    #[test]
    fn a_log_that_is_overwritten_meanwhile_is_not_handed_over_as_what_it_was() {
        let overwritten = written(2).1.bytes;
        let expected = handed_over(false, &written(1), |_| ());
        let cases = [(false, 0), (false, 3_000), (true, 0), (true, 3_000)];
        for ((backwards, at), part) in cases.iter().flat_map(|case| [1, 4, 8].map(|part| (*case, part))) {
            let log = written(1);
            let meddle = |pages| {
                if pages == at {
                    log.0.write_all_at(&overwritten[..overwritten.len() / 8 * part], 0).unwrap();
                }
            };
            let pages = handed_over(backwards, &log, meddle);
            // What had been read by then is right whatever comes.
            assert!(pages.is_none() || pages == expected, "{backwards} {at} {part}");
            assert!(pages.is_none() || (!backwards && (at, part) != (0, 8)), "{backwards} {at} {part}");
        }
    }

    /// Three pages: of a sound transaction (frames 1 and 2), of one that is blank (3 to 5), of one that continues what stands
    /// nowhere (6), and of one that is blank at first (7 and 8). Gives the checksums published for frames 5 and 8.
    fn written_by_an_old_release() -> (File, [RunningChecksum; 2]) {
        let mut bytes = WalHeader::encode(PageSize::MIN, SALTS, ORDER).to_vec();
        let mut running = WalHeader::parse(&bytes).unwrap().checksum;
        let [one, two, three] = [1, 2, 3].map(|page| PageNo::new(page).unwrap());
        let push = |bytes: &mut Vec<u8>, page, commit, fill, before| {
            wal::push_frame(bytes, page, commit, &[fill; 512], SALTS, before, ORDER)
        };
        running = push(&mut bytes, one, None, 1, running);
        push(&mut bytes, two, Some(two), 2, running);
        push_blank(&mut bytes, 3, None, &[3; 512]);
        push_blank(&mut bytes, 1, None, &[4; 512]);
        push_blank(&mut bytes, 3, Some(3), &[5; 512]);
        let nowhere = RunningChecksum(0xdead, 0xbeef);
        push(&mut bytes, two, Some(three), 6, nowhere);
        push_blank(&mut bytes, 2, None, &[7; 512]);
        let published = push(&mut bytes, one, Some(three), 8, RunningChecksum(0, 0));
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        (file, [nowhere, published])
    }

    fn range_of(
        file: &File,
        frames: RangeInclusive<u32>,
        before: RunningChecksum,
        published: RunningChecksum,
    ) -> Range<'_> {
        let (first, last) = frames.into_inner();
        Range { file, page_size: PageSize::MIN, salts: SALTS, order: ORDER, first, last, before, published }
    }

    #[test]
    fn transactions_with_blank_frames_are_handed_over_whole_and_in_one_read_or_several() {
        let (file, [nowhere, published]) = written_by_an_old_release();
        let mut header = [0; HEADER_LEN];
        file.read_exact_at(&mut header, 0).unwrap();
        let before = WalHeader::parse(&header).unwrap().checksum;
        let source = LogFile { file: &file, page_size: PageSize::MIN };
        let at_once = Frames::default().survey(&range_of(&file, 1..=8, before, published)).unwrap();
        let mut in_two = Frames::default().survey(&range_of(&file, 1..=5, before, nowhere)).unwrap();
        in_two.extend(Frames::default().survey(&range_of(&file, 6..=8, nowhere, published)).unwrap());
        assert_eq!(at_once, in_two);
        assert_eq!(
            at_once.iter().map(|span| (span.first, span.last)).collect::<Vec<_>>(),
            [(1, 2), (3, 5), (6, 6), (7, 8)]
        );
        let expected: [&[(u32, u8)]; 4] =
            [&[(1, 1), (2, 2)], &[(1, 4), (3, 5)], &[(2, 6)], &[(1, 8), (2, 7)]];
        for (span, expected) in at_once.into_iter().zip(expected) {
            let continued = read_continued(source, span.last, SALTS, ORDER);
            assert!(span.last == 8 || continued.unwrap() == Some(span.continued), "{span:?}");
            for backwards in [false, true] {
                let mut pages = Vec::new();
                let page = |page: PageNo, _, image: &[u8]| {
                    pages.push((page.get(), image[0]));
                    Ok::<(), ()>(())
                };
                let outcome = if backwards {
                    Frames::default().hand_over_backwards(source, span, page)
                } else {
                    Frames::default().hand_over_listed(source, span, page)
                };
                assert!(outcome.is_ok(), "{span:?}");
                pages.sort_unstable();
                assert_eq!(pages, expected);
            }
        }
    }

    #[test]
    fn blank_frames_of_a_log_that_was_reset_are_not_taken() {
        let (file, [nowhere, _]) = written_by_an_old_release();
        let mut header = [0; HEADER_LEN];
        file.read_exact_at(&mut header, 0).unwrap();
        let range = range_of(&file, 1..=5, WalHeader::parse(&header).unwrap().checksum, nowhere);
        let spans = Frames::default().survey(&range).unwrap();
        file.write_all_at(&WalHeader::encode(PageSize::MIN, Salts(9, 9), ORDER), 0).unwrap();
        assert!(Frames::default().survey(&range).is_err());
        let source = LogFile { file: &file, page_size: PageSize::MIN };
        let outcomes = spans
            .into_iter()
            .map(|span| Frames::default().hand_over_listed(source, span, |_, _, _| Ok::<(), ()>(())).is_ok());
        assert_eq!(outcomes.collect::<Vec<_>>(), [true, false], "the sound one has its checksums");
        assert_eq!(read_continued(source, 5, SALTS, ORDER).unwrap(), None);
    }
}

//! Laws of SQLite's files and of the token that says where to go on in one.
#![allow(
    clippy::unwrap_used,
    clippy::host_endian_bytes,
    reason = "a law that does not hold panics: that is what it is for; a wal-index has the machine's byte order"
)]

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::log::{Frames, LogFile, Range, Span};
use super::resume::ResumePoint;
use crate::laws::{SLACK, memory, mend, take};
use crate::page::{PageNo, PageSize};
use crate::sqlite::header::{self, DatabaseHeader};
use crate::sqlite::index::{HEAD_LEN, IndexHead};
use crate::sqlite::wal::{
    FRAME_HEADER_LEN, FrameHeader, HEADER_LEN, RunningChecksum, Salts, WalHeader, WordOrder, check_frame,
    frame_offset, push_frame,
};

/// What the reader of the log holds: two chunks of 2 MiB while one grows into the other, each with a page more.
const LOG_READER: usize = 2 * (2 << 20) + 2 * 65_536 + SLACK;

/// Any bytes are a database header, the head of a wal-index, a WAL and a resume point, or an error; frames that follow
/// from them are surveyed and handed over as they were written, and an altered one is noticed.
pub fn sqlite_files(input: &[u8]) {
    memory::within(SLACK, || {
        database_header(input);
        wal_index(input);
        wal_header(input);
        resume_point(input);
    });
    log(input);
}

fn database_header(input: &[u8]) {
    let mut magic = input.to_vec();
    if let Some(place) = magic.get_mut(..16) {
        place.copy_from_slice(b"SQLite format 3\0");
    }
    for bytes in [input, &magic] {
        if let Ok(header) = DatabaseHeader::parse(bytes) {
            assert!(bytes.len() >= header::LEN);
            let stored = u16::from_be_bytes([bytes[16], bytes[17]]);
            assert_eq!(if stored == 1 { 65_536 } else { u32::from(stored) }, header.page_size.get());
        }
    }
}

fn wal_index(input: &[u8]) {
    let mut twice = input.to_vec();
    if let Some(head) = twice.get_mut(..HEAD_LEN) {
        let order = if cfg!(target_endian = "little") { WordOrder::Little } else { WordOrder::Big };
        let sums = RunningChecksum::default().over(&head[..40], order);
        head[40..44].copy_from_slice(&sums.0.to_ne_bytes());
        head[44..48].copy_from_slice(&sums.1.to_ne_bytes());
        head.copy_within(..48, 48);
    }
    for bytes in [input, &twice] {
        let Ok(head) = IndexHead::parse(bytes) else { continue };
        for at in 0..HEAD_LEN {
            let mut altered = bytes.to_vec();
            altered[at] ^= 1 << (head.change % 8);
            assert!(IndexHead::parse(&altered).is_err(), "byte {at}");
        }
    }
}

fn wal_header(input: &[u8]) {
    let Ok(header) = WalHeader::parse(input) else { return };
    let again = WalHeader::encode(header.page_size, header.salts, header.order);
    assert_eq!(WalHeader::parse(&again).map(|again| again.salts), Ok(header.salts));
    let mut running = header.checksum;
    for frame in input[HEADER_LEN..].chunks(FRAME_HEADER_LEN + header.page_size.bytes()) {
        let Some(found) = check_frame(frame, header.salts, running, header.order) else { break };
        assert_eq!(FrameHeader::parse(frame), Some(found));
        running = found.checksum;
    }
}

fn resume_point(input: &[u8]) {
    let mut sound = input.to_vec();
    if let Some(end) = sound.len().checked_sub(4) {
        mend(&mut sound, end, 0..end);
    }
    for bytes in [input, &sound] {
        if let Some(point) = ResumePoint::decode(bytes) {
            assert_eq!(point.encode(), bytes);
        }
    }
}

/// A log of frames that are each 16 bytes of the input: page, size after a commit, and what fills the page.
fn log(input: &[u8]) {
    let mut rest = input;
    let [shape, altered @ ..] = take::<5>(&mut rest);
    let page_size = PageSize::new(512 << (shape & 1)).unwrap();
    let order = if shape & 4 == 0 { WordOrder::Little } else { WordOrder::Big };
    let salts = Salts(u32::from(shape), 2);
    let mut wal = WalHeader::encode(page_size, salts, order).to_vec();
    let before = WalHeader::parse(&wal).unwrap().checksum;
    let mut written = Vec::new();
    let mut running = before;
    while !rest.is_empty() && written.len() < 24 {
        let [page, commit, fill] =
            [take(&mut rest), take(&mut rest), take(&mut rest)].map(u32::from_le_bytes);
        // Pages are few, so that they meet; most sizes are small, some are any number.
        let page = PageNo::new(page % 16 + 1).unwrap();
        let commit = PageNo::new(if commit & 0x100 == 0 { commit % 32 } else { commit });
        let image = fill.to_le_bytes().repeat(page_size.bytes() / 4);
        running = push_frame(&mut wal, page, commit, &image, salts, running, order);
        written.push((page, commit, image));
    }
    let last = written.len() as u32;
    if last == 0 {
        return;
    }
    with_file(&wal, |file| {
        let range = Range { file, page_size, salts, order, first: 1, last, before, published: running };
        let mut frames = Frames::default();
        let spans = memory::within(LOG_READER, || frames.survey(&range));
        assert_eq!(spans.is_ok(), written.last().unwrap().1.is_some());
        let Ok(spans) = spans else { return };
        let mut next = 1;
        for span in &spans {
            assert_eq!(span.first, next);
            next = span.last + 1;
            hand_over(&mut frames, LogFile { file, page_size }, *span, &written);
        }
        assert_eq!(next, last + 1);
        // A byte of a frame altered: no longer what was published.
        let frame_bytes = wal.len() - HEADER_LEN;
        let at = HEADER_LEN + u32::from_le_bytes(altered) as usize % frame_bytes;
        file.write_all_at(&[wal[at] ^ (1 << (shape >> 5))], at as u64).unwrap();
        assert!(Frames::default().survey(&range).is_err(), "byte {at}");
        // Nor is it handed over, as long as it is read again: the checked bytes may still be at hand.
        frames.forget();
        let log = LogFile { file, page_size };
        let mut unchanged = |span: &Span| frames.hand_over(log, *span, |_, _, _| Ok::<(), ()>(())).is_ok();
        assert_eq!(spans.iter().filter(|span| unchanged(span)).count(), spans.len() - 1);
    });
}

/// Each page of the transaction is handed over once, as its last frame has it, unless it is beyond the end.
fn hand_over(
    frames: &mut Frames,
    source: LogFile<'_>,
    span: Span,
    written: &[(PageNo, Option<PageNo>, Vec<u8>)],
) {
    let within = &written[span.first as usize - 1..span.last as usize];
    let mut expected: HashMap<PageNo, &[u8]> = HashMap::new();
    for (page, _, image) in within.iter().filter(|(page, ..)| page.get() <= span.image_pages) {
        expected.insert(*page, image);
    }
    let handed_over = frames.hand_over(source, span, |page, number, image| {
        assert_eq!(written[number as usize - 1].0, page);
        assert_eq!(expected.remove(&page), Some(image));
        Ok::<(), ()>(())
    });
    assert!(expected.is_empty());
    let mut head = [0; FRAME_HEADER_LEN];
    source.file.read_exact_at(&mut head, frame_offset(span.last, source.page_size)).unwrap();
    assert!(handed_over.is_ok());
    assert_eq!(Some(span.checksum), FrameHeader::parse(&head).map(|header| header.checksum));
}

fn with_file(bytes: &[u8], work: impl FnOnce(&File)) {
    let file = File::from(rustix::fs::memfd_create("law", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.write_all_at(bytes, 0).unwrap();
    work(&file);
}

pub(crate) fn files() -> Vec<Vec<u8>> {
    let mut database = [0; header::LEN];
    database[..16].copy_from_slice(b"SQLite format 3\0");
    database[16..20].copy_from_slice(&[16, 0, 2, 2]);
    let mut wal = WalHeader::encode(PageSize::MIN, Salts(1, 2), WordOrder::Big).to_vec();
    let start = WalHeader::parse(&wal).unwrap().checksum;
    push_frame(&mut wal, PageNo::FIRST, Some(PageNo::FIRST), &[7; 512], Salts(1, 2), start, WordOrder::Big);
    let point = ResumePoint {
        inode: 12,
        page_size: PageSize::MAX,
        salts: Salts(1, 2),
        frame: 3,
        checksum: RunningChecksum(4, 5),
        image_pages: 6,
        looked: crate::time::Timestamp::from_micros(1_795_219_200_000_000),
    };
    // Of a database of one page on this kind of machine: version, unused, change, initialised, word order, page size.
    let mut index: Vec<u8> = [3_007_000_u32, 0, 9].iter().flat_map(|word| word.to_ne_bytes()).collect();
    index.extend([1, 0]);
    index.extend(4096_u16.to_ne_bytes());
    index.extend([0; 80]);
    let frames = [[1, 0, 7], [2, 2, 8], [2, 2, 8], [1, 0, 9], [1, 0, 10], [30, 16, 11]];
    let frames = frames.iter().flatten().flat_map(|word: &u32| word.to_le_bytes());
    vec![database.to_vec(), wal, index, point.encode(), [2, 99, 1, 0, 0].into_iter().chain(frames).collect()]
}

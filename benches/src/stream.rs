//! A workload's log as SQLite wrote it, taken apart into transactions: what the encoder is fed in measurements.

use std::path::Path;

use bytes::Bytes;
use everwhen_engine::ids::{DatabaseId, Digest, TimelineId, TxId};
use everwhen_engine::page::{PageHash, PageNo, StateChecksum};
use everwhen_engine::segment::{
    Effort, Encoder, EncoderParams, MemoryImage, PageStore, Replayer, SegmentError, parts,
};
use everwhen_engine::sqlite::wal::{FRAME_HEADER_LEN, FrameHeader, HEADER_LEN, WalHeader};
use everwhen_engine::time::Timestamp;
use everwhen_engine::transaction::{Transaction, TxFlags};

use crate::Outcome;
use crate::database::prepared;
use crate::measure::{Clock, Stopwatch};
use crate::workload::{Steps, Workload};

/// The log of a workload and the image it starts from.
#[derive(Debug)]
pub struct Stream {
    /// The starting database.
    pub start: MemoryImage,
    /// All frames, as SQLite wrote them.
    pub wal: Vec<u8>,
    /// Per transaction its pages (each once, its last image, by number), and the size of the image after it.
    pub commits: Vec<(Vec<(PageNo, usize)>, u32)>,
}

/// What encoding a stream cost.
#[derive(Debug, Default)]
pub struct Encoded {
    /// The segments, one object each.
    pub objects: Vec<Bytes>,
    /// Processor seconds of the encoder, its own check of each frame included.
    pub encode_s: f64,
    /// Processor seconds of hashing: the previous version checked, the new one added to the state.
    pub hash_s: f64,
    /// The image at the end.
    pub end: Option<MemoryImage>,
}

impl Stream {
    /// Runs the workload in `folder` without checkpoints and reads the log.
    ///
    /// # Errors
    /// SQLite's, and when the log is not as SQLite writes it.
    pub fn record(folder: &Path, workload: Workload, rows: u64, transactions: u64) -> Outcome<Self> {
        let path = folder.join("app.db");
        let (mut connection, mut writer) = prepared(&path, workload, rows)?;
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        connection.pragma_update(None, "synchronous", "off")?;
        for _ in 0..transactions {
            writer.step(&mut connection)?;
        }
        let wal = std::fs::read(path.with_extension("db-wal"))?;
        let image = std::fs::read(&path)?;
        drop(connection);
        let header = WalHeader::parse(&wal)?;
        let start = MemoryImage::from_bytes(header.page_size, image).ok_or("not whole pages")?;
        let commits = commits(&wal, &header);
        if commits.len() as u64 != transactions {
            return Err(format!("the log has {} transactions, expected {transactions}", commits.len()).into());
        }
        Ok(Self { start, wal, commits })
    }

    /// Bytes of the log.
    #[must_use]
    pub fn raw_bytes(&self) -> usize {
        self.wal.len() - HEADER_LEN
    }

    /// The page image at an offset of the log.
    #[must_use]
    pub fn image(&self, offset: usize) -> &[u8] {
        self.wal.get(offset..offset + self.start.page_size().bytes()).unwrap_or_default()
    }

    /// Encodes it all, in segments of so many transactions, timed by a clock.
    ///
    /// # Errors
    /// The encoder's.
    pub fn encode(&self, per_segment: usize, effort: Effort, clock: Clock) -> Outcome<Encoded> {
        let mut image = self.start.clone();
        let mut result = Encoded::default();
        let (mut encoding, mut hashing) = (Stopwatch::new(clock), Stopwatch::new(clock));
        let (mut tx, mut chain) = (TxId::FIRST, Digest::from_bytes([0; 32]));
        let mut state = StateChecksum::EMPTY;
        for run in self.commits.chunks(per_segment.max(1)) {
            let params = EncoderParams {
                database: DatabaseId::from_bytes([1; 8]),
                timeline: TimelineId::FIRST,
                page_size: self.start.page_size(),
                first: tx.next(),
                image_pages: image.page_count(),
                chain_before: chain,
                effort,
            };
            let mut encoder = Encoder::new(params, Vec::new());
            for (pages, image_pages) in run {
                tx = tx.next();
                state = hashing.run(|| self.hash(&image, pages, state));
                let transaction = transaction(tx, pages.len(), *image_pages, state);
                encoding.run(|| self.feed(&mut encoder, &image, pages, &transaction))?;
                self.apply(&mut image, pages, *image_pages)?;
            }
            let finished = encoding.run(|| encoder.finish())?;
            chain = finished.header.chain_after;
            result.objects.push([finished.prologue, finished.frames].concat().into());
        }
        (result.encode_s, result.hash_s, result.end) = (encoding.seconds(), hashing.seconds(), Some(image));
        Ok(result)
    }

    fn hash(&self, image: &MemoryImage, pages: &[(PageNo, usize)], state: StateChecksum) -> StateChecksum {
        pages.iter().fold(state, |state, (page, offset)| {
            let before = image.page(*page).map(|before| PageHash::of(*page, before));
            let state = before.map_or(state, |before| state.without(before));
            state.with(PageHash::of(*page, self.image(*offset)))
        })
    }

    fn feed(
        &self,
        encoder: &mut Encoder<Vec<u8>>,
        image: &MemoryImage,
        pages: &[(PageNo, usize)],
        transaction: &Transaction,
    ) -> Outcome<()> {
        for (page, offset) in pages {
            let previous = if encoder.wants_previous(*page) { image.page(*page) } else { None };
            encoder.page(*page, self.image(*offset), previous)?;
        }
        Ok(encoder.commit(transaction)?)
    }

    fn apply(&self, image: &mut MemoryImage, pages: &[(PageNo, usize)], image_pages: u32) -> Outcome<()> {
        if image_pages != image.page_count() {
            image.resize(image_pages)?;
        }
        for (page, offset) in pages.iter().filter(|(page, _)| page.get() <= image_pages) {
            image.write(*page, self.image(*offset))?;
        }
        Ok(())
    }
}

/// Replays segments on an image; the seconds it took, by a clock.
///
/// # Errors
/// The decoder's.
pub fn replay(objects: &[Bytes], image: &mut MemoryImage, clock: Clock) -> Result<f64, SegmentError> {
    let mut stopwatch = Stopwatch::new(clock);
    stopwatch.run(|| {
        let (mut replayer, mut at) = (Replayer::new(), TxId::FIRST);
        for object in objects {
            for part in parts(object) {
                let part = part?;
                at = replayer.replay_part(&part, at, part.prologue.header.range.last(), image)?;
            }
        }
        Ok(())
    })?;
    Ok(stopwatch.seconds())
}

fn transaction(tx: TxId, pages: usize, image_pages: u32, state: StateChecksum) -> Transaction {
    let micros = i64::try_from(tx.get()).unwrap_or(i64::MAX).saturating_mul(10_000);
    let time = Timestamp::from_micros(1_795_219_200_000_000_i64.saturating_add(micros));
    let pages = u32::try_from(pages).unwrap_or(u32::MAX);
    Transaction { tx, time, not_before: time, flags: TxFlags::NONE, pages, image_pages, state }
}

fn commits(wal: &[u8], header: &WalHeader) -> Vec<(Vec<(PageNo, usize)>, u32)> {
    let mut all = Vec::new();
    let mut pages = std::collections::BTreeMap::new();
    let frames = wal.get(HEADER_LEN..).unwrap_or_default();
    for (index, frame) in frames.chunks_exact(FRAME_HEADER_LEN + header.page_size.bytes()).enumerate() {
        let Some(read) = FrameHeader::parse(frame).filter(|read| read.salts == header.salts) else { break };
        pages.insert(read.page, HEADER_LEN + index * frame.len() + FRAME_HEADER_LEN);
        if let Some(size) = read.commit {
            all.push((std::mem::take(&mut pages).into_iter().collect(), size.get()));
        }
    }
    all
}

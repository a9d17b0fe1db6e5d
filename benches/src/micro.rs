//! Single pure operations, to be timed (`cargo bench -p everwhen-benches`) and to have their instructions counted (the
//! question `instructions`).

use std::hint::black_box;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use everwhen_engine::catalog::{Catalog, Cataloged};
use everwhen_engine::digest::Hasher;
use everwhen_engine::history::{BaseEntry, Findings, History, Seen, SegmentEntry, Timeline};
use everwhen_engine::ids::{DatabaseId, Digest, HostId, Position, TimelineId, TxId, TxRange};
use everwhen_engine::page::{PageHash, PageNo, StateChecksum};
use everwhen_engine::plan::{Target, locate, route};
use everwhen_engine::restore::{Inventory, Objects, ReadError};
use everwhen_engine::segment::{Effort, Prologue};
use everwhen_engine::sqlite::wal::{FRAME_HEADER_LEN, HEADER_LEN, WalHeader, check_frame};
use everwhen_engine::store::keys::{BaseKey, SegmentKey};
use everwhen_engine::time::Timestamp;
use everwhen_engine::transaction::{Transaction, TxFlags};

use crate::Outcome;
use crate::measure::Clock;
use crate::random::Random;
use crate::stream::{Stream, replay};
use crate::workload::Workload;

/// Segments of the histories: more than a day of one a second.
const SEGMENTS: u64 = 100_000;
const PER_SEGMENT: u64 = 10;

/// An operation that can be done again and again.
pub struct Operation {
    /// What it works on, in bytes or, where these mean nothing, in items.
    pub size: Size,
    /// Does it once.
    pub run: Box<dyn FnMut() -> Outcome<()>>,
}

/// How much an operation works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Bytes.
    Bytes(u64),
    /// Segments or transactions.
    Items(u64),
}

/// Prepares an operation.
pub type Prepare = fn() -> Outcome<Operation>;

/// All operations by name.
pub const ALL: [(&str, Prepare); 17] = [
    ("parse the log", parse_log),
    ("hash a page of 512", || hash_page(512)),
    ("hash a page of 4096", || hash_page(4096)),
    ("hash a page of 65536", || hash_page(65_536)),
    ("name an object of 4 KiB", || name_object(4096)),
    ("name an object of 256 KiB", || name_object(262_144)),
    ("encode W2 point updates", || encode(Workload::PointUpdate)),
    ("encode W3 order entry", || encode(Workload::Orders)),
    ("encode W8 blobs", || encode(Workload::Blobs)),
    ("replay W2 point updates", || decode(Workload::PointUpdate)),
    ("replay W3 order entry", || decode(Workload::Orders)),
    ("replay W8 blobs", || decode(Workload::Blobs)),
    ("read a segment's tables", read_tables),
    ("build a history from a listing", build_history),
    ("plan a restore", plan),
    ("history from the catalog", catalog_history),
    ("a segment's times from the catalog", catalog_transactions),
];

/// Prepares the operation of a name.
///
/// # Errors
/// When there is none, or it cannot be prepared.
pub fn operation(name: &str) -> Outcome<Operation> {
    let known =
        ALL.iter().find(|(known, _)| *known == name).ok_or_else(|| format!("no operation '{name}'"))?;
    known.1()
}

/// Does an operation, recognizable by its symbol: an instruction counter counts from here to its return.
///
/// # Errors
/// The operation's.
#[inline(never)]
pub fn counted_operation(operation: &mut Operation) -> Outcome<()> {
    black_box((operation.run)())
}

fn of(size: Size, run: impl FnMut() -> Outcome<()> + 'static) -> Operation {
    Operation { size, run: Box::new(run) }
}

fn stream(workload: Workload) -> Outcome<Stream> {
    let folder = tempfile::tempdir()?;
    Stream::record(folder.path(), workload, workload.rows() / 20, (workload.transactions() / 20).max(2))
}

/// Checksum and header of every frame, as capture does.
fn parse_log() -> Outcome<Operation> {
    let stream = stream(Workload::PointUpdate)?;
    let header = WalHeader::parse(&stream.wal)?;
    let frame = FRAME_HEADER_LEN + header.page_size.bytes();
    Ok(of(Size::Bytes(stream.raw_bytes() as u64), move || {
        let mut sum = header.checksum;
        for frame in stream.wal.get(HEADER_LEN..).unwrap_or_default().chunks_exact(frame) {
            let checked =
                check_frame(frame, header.salts, sum, header.order).ok_or("a frame does not fit")?;
            sum = checked.checksum;
        }
        black_box(sum);
        Ok(())
    }))
}

/// One page for the state checksum.
fn hash_page(bytes: usize) -> Outcome<Operation> {
    let page = Random::new(1).noise(bytes);
    Ok(of(Size::Bytes(bytes as u64), move || {
        black_box(PageHash::of(PageNo::FIRST, black_box(&page)));
        Ok(())
    }))
}

fn name_object(bytes: usize) -> Outcome<Operation> {
    let object = Random::new(1).noise(bytes);
    Ok(of(Size::Bytes(bytes as u64), move || {
        black_box(Hasher::Plain.digest(black_box(&object)));
        Ok(())
    }))
}

/// Segments of 100 transactions, checked; page hashes and the image's upkeep are part of it.
fn encode(workload: Workload) -> Outcome<Operation> {
    let stream = stream(workload)?;
    Ok(of(Size::Bytes(stream.raw_bytes() as u64), move || {
        black_box(stream.encode(100, Effort::Hot, Clock::still())?);
        Ok(())
    }))
}

/// The same segments replayed on a copy of the image; the copy is part of it.
fn decode(workload: Workload) -> Outcome<Operation> {
    let stream = stream(workload)?;
    let encoded = stream.encode(100, Effort::Hot, Clock::still())?;
    Ok(of(Size::Bytes(stream.raw_bytes() as u64), move || {
        let mut image = stream.start.clone();
        replay(&encoded.objects, &mut image, Clock::still())?;
        black_box(image);
        Ok(())
    }))
}

/// The tables of a segment of 1000 transactions, as a restore to a moment reads them.
fn read_tables() -> Outcome<Operation> {
    let encoded = stream(Workload::PointUpdate)?.encode(1000, Effort::Hot, Clock::still())?;
    let object = encoded.objects.first().cloned().ok_or("nothing was encoded")?;
    Ok(of(Size::Items(1000), move || {
        black_box(Prologue::parse(black_box(&object))?);
        Ok(())
    }))
}

/// Keys as a store lists them, read and put in order.
fn build_history() -> Outcome<Operation> {
    let findings = findings()?;
    let keys: Vec<String> = findings.segments.iter().map(|entry| entry.key.to_string()).collect();
    let others = Findings { segments: Vec::new(), ..findings };
    Ok(of(Size::Items(SEGMENTS), move || {
        let read =
            |key: &String| Ok::<_, ReadKeyError>(SegmentEntry { key: SegmentKey::parse(key)?, size: 4096 });
        let segments = keys.iter().map(read).collect::<Result<_, _>>()?;
        black_box(History::build(database(), Findings { segments, ..others.clone() }));
        Ok(())
    }))
}

type ReadKeyError = everwhen_engine::ids::ParseIdError;

/// From a moment at the end to the base at the begin and all segments between.
fn plan() -> Outcome<Operation> {
    let history = History::build(database(), findings()?);
    let last = segment(SEGMENTS - 1)?;
    Ok(of(Size::Items(SEGMENTS), move || {
        black_box(locate(&history, Target::Time(last.to), last.to)?);
        let route = route(&history, Position::new(TimelineId::FIRST, last.range.last()))?;
        if route.segments.len() as u64 != SEGMENTS {
            return Err(format!("the route has {} segments", route.segments.len()).into());
        }
        black_box(route);
        Ok(())
    }))
}

/// A catalog that knows all segments, asked for the history.
fn catalog_history() -> Outcome<Operation> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let cataloged = Cataloged::new(Listed(Arc::new(findings()?)), Catalog::in_memory()?);
    runtime.block_on(cataloged.history(database(), None))?;
    Ok(of(Size::Items(SEGMENTS), move || {
        black_box(runtime.block_on(cataloged.history(database(), None))?);
        Ok(())
    }))
}

/// A catalog that knows a segment of 1000 transactions, asked for them.
fn catalog_transactions() -> Outcome<Operation> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let cataloged = Cataloged::new(Listed(Arc::new(Findings::default())), Catalog::in_memory()?);
    let entry = SegmentEntry { key: segment_of(1, 1000)?, size: 4096 };
    runtime.block_on(cataloged.transactions(entry))?;
    Ok(of(Size::Items(1000), move || {
        black_box(runtime.block_on(cataloged.transactions(entry))?);
        Ok(())
    }))
}

fn database() -> DatabaseId {
    DatabaseId::from_bytes([1; 8])
}

/// Segment `index` of the histories: ten transactions in a second.
fn segment(index: u64) -> Outcome<SegmentKey> {
    segment_of(index * PER_SEGMENT + 2, PER_SEGMENT)
}

fn segment_of(first: u64, count: u64) -> Outcome<SegmentKey> {
    let range = TxId::new(first)
        .zip(TxId::new(first + count - 1))
        .and_then(|(first, last)| TxRange::new(first, last));
    let range = range.ok_or("no such transactions")?;
    Ok(SegmentKey {
        database: database(),
        timeline: TimelineId::FIRST,
        range,
        from: time_of(range.first()),
        to: time_of(range.last()),
        flags: TxFlags::NONE,
        digest: Digest::from_bytes([first as u8; 32]),
    })
}

fn time_of(tx: TxId) -> Timestamp {
    let micros = i64::try_from(tx.get()).unwrap_or(i64::MAX).saturating_mul(100_000);
    Timestamp::from_micros(1_795_219_200_000_000_i64.saturating_add(micros))
}

/// A base at transaction 1 and the segments from there on.
fn findings() -> Outcome<Findings> {
    let base = Position::new(TimelineId::FIRST, TxId::FIRST);
    let entry = |index| Ok(SegmentEntry { key: segment(index)?, size: 4096 });
    Ok(Findings {
        timelines: vec![Timeline {
            id: TimelineId::FIRST,
            parent: None,
            why: "the first".into(),
            host: HostId::from_bytes([7; 8]),
            host_name: "bench".into(),
            claimed_at: time_of(TxId::FIRST),
        }],
        segments: (0..SEGMENTS).map(entry).collect::<Outcome<_>>()?,
        bases: vec![BaseEntry {
            key: BaseKey { database: database(), position: base, digest: Digest::from_bytes([9; 32]) },
            size: 4096,
        }],
        seen: Vec::new(),
    })
}

/// A repository that can be listed, and has no objects to read.
#[derive(Clone)]
struct Listed(Arc<Findings>);

fn nothing_to_read<T>() -> Result<T, ReadError> {
    Err(ReadError::Missing { object: "of a repository that is only a listing".into() })
}

impl Objects for Listed {
    async fn hasher(&self, _: DatabaseId) -> Result<Hasher, ReadError> {
        Ok(Hasher::Plain)
    }

    async fn segment(&self, _: SegmentKey) -> Result<Bytes, ReadError> {
        nothing_to_read()
    }

    async fn transactions(&self, entry: SegmentEntry) -> Result<Vec<Transaction>, ReadError> {
        let numbers = entry.key.range.first().get()..=entry.key.range.last().get();
        let transaction = |tx: TxId| Transaction {
            tx,
            time: time_of(tx),
            not_before: time_of(tx),
            flags: TxFlags::NONE,
            pages: 3,
            image_pages: 1000,
            state: StateChecksum::EMPTY,
        };
        Ok(numbers.filter_map(TxId::new).map(transaction).collect())
    }

    async fn segment_range(&self, _: SegmentKey, _: Range<u64>) -> Result<Bytes, ReadError> {
        nothing_to_read()
    }

    async fn base(&self, _: BaseKey) -> Result<Bytes, ReadError> {
        nothing_to_read()
    }

    async fn pack_range(&self, _: DatabaseId, _: Digest, _: Range<u64>) -> Result<Bytes, ReadError> {
        nothing_to_read()
    }
}

impl Inventory for Listed {
    async fn timelines(&self, _: DatabaseId) -> Result<Vec<Timeline>, ReadError> {
        Ok(self.0.timelines.clone())
    }

    async fn segments(
        &self,
        _: DatabaseId,
        _: TimelineId,
        after: Option<TxId>,
    ) -> Result<Vec<SegmentEntry>, ReadError> {
        let all = self.0.segments.iter().copied();
        Ok(all.filter(|entry| after.is_none_or(|after| entry.key.range.first() > after)).collect())
    }

    async fn logged_timelines(&self, _: DatabaseId) -> Result<Vec<TimelineId>, ReadError> {
        Ok(self.0.timelines.iter().map(|timeline| timeline.id).collect())
    }

    async fn all_segments(&self, _: DatabaseId) -> Result<Vec<SegmentEntry>, ReadError> {
        Ok(self.0.segments.clone())
    }

    async fn bases(&self, _: DatabaseId) -> Result<Vec<BaseEntry>, ReadError> {
        Ok(self.0.bases.clone())
    }

    async fn seen(&self, _: DatabaseId) -> Result<Vec<Seen>, ReadError> {
        Ok(self.0.seen.clone())
    }

    async fn packs(&self, _: DatabaseId) -> Result<Vec<(Digest, u64)>, ReadError> {
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_operation_can_be_done_twice() {
        for (name, prepare) in super::ALL {
            let mut operation = prepare().unwrap();
            for _ in 0..2 {
                super::counted_operation(&mut operation).unwrap_or_else(|error| panic!("{name}: {error}"));
            }
        }
    }
}

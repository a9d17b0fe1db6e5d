//! Every object once, against its name and against its neighbours.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;

use crate::base::{Manifest, check_pack};
use crate::digest::Hasher;
use crate::history::{BaseEntry, History, SegmentEntry};
use crate::ids::{DatabaseId, Digest, TimelineId, TxId};
use crate::restore::{Objects, ReadError, RestoreError, open_manifest};
use crate::segment::{Part, Prologue, SegmentError, SegmentHeader, chain_start, parts};
use crate::store::keys::{SegmentKey, pack_key};
use crate::transaction::Transaction;
use crate::verify::twice::{Twice, overlapping};
use crate::verify::{Problem, VerifyOptions, VerifyProgress, VerifyReport};

/// Segments up to this size are read and decoded whole.
const WHOLE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Bytes of one read of anything larger.
const PIECE_BYTES: u64 = 8 * 1024 * 1024;
/// Objects under way at a time: at most 128 MiB of them.
const AT_A_TIME: usize = 8;

/// What one object turned out to be.
struct Checked {
    bytes: u64,
    headers: Vec<SegmentHeader>,
    transactions: Vec<Transaction>,
    manifest: Option<Manifest>,
    problem: Option<Problem>,
}

impl Checked {
    fn sound(bytes: u64) -> Self {
        Self { bytes, headers: Vec::new(), transactions: Vec::new(), manifest: None, problem: None }
    }
}

/// Adds what is found to the report.
pub(crate) async fn verify_objects<O: Objects>(
    objects: &O,
    history: &History,
    packs: &[(Digest, u64)],
    options: &VerifyOptions<'_>,
    report: &mut VerifyReport,
) -> Result<(), RestoreError> {
    let database = history.database();
    let segments: Vec<SegmentEntry> = history.segments().collect();
    let bases: Vec<BaseEntry> = history.bases().collect();
    let mut progress = VerifyProgress {
        total_objects: (segments.len() + bases.len() + packs.len()) as u64,
        total_bytes: segments.iter().map(|entry| entry.size).sum::<u64>()
            + bases.iter().map(|entry| entry.size).sum::<u64>()
            + packs.iter().map(|(_, size)| size).sum::<u64>(),
        ..VerifyProgress::default()
    };
    let mut chain = Chain::new(history);
    let (shared, mut twice, mut order) = (overlapping(&segments), Twice::default(), segments.iter());
    let checks = segments.iter().enumerate();
    let checks = checks.map(|(at, entry)| check_segment(objects, *entry, shared.contains(&at)));
    each(checks, options, report, &mut progress, |report, checked| {
        report.segments += 1;
        checked.headers.iter().for_each(|header| chain.add(header));
        let entry = order.next();
        report.problems.extend(entry.and_then(|entry| twice.add(&entry.key, &checked.transactions)));
    })
    .await?;
    report.problems.extend(chain.problems(database));
    report.problems.extend(without_base(history));
    let mut named = BTreeMap::new();
    let checks = bases.iter().map(|entry| check_base(objects, *entry));
    each(checks, options, report, &mut progress, |report, checked| {
        report.bases += 1;
        named.extend(
            checked.manifest.iter().flat_map(|manifest| &manifest.packs).map(|pack| (pack.digest, pack.len)),
        );
    })
    .await?;
    report.problems.extend(missing_packs(database, packs, &named));
    report.unused_packs = packs.iter().filter(|(digest, _)| !named.contains_key(digest)).count() as u64;
    let checks = packs.iter().map(|(digest, size)| check_pack_object(objects, database, *digest, *size));
    each(checks, options, report, &mut progress, |report, _| report.packs += 1).await
}

/// Segments of which nothing can be rebuilt: a log is never stored before its base.
fn without_base(history: &History) -> Vec<Problem> {
    let lines = history.timelines().into_iter().filter_map(|active| history.line(active.timeline.id));
    let lost = lines.flat_map(|line| &line.pieces).filter(|piece| piece.rebuilds_from.is_none());
    let what = "it builds on no base that is there: its states cannot be rebuilt";
    lost.map(|piece| Problem::new(&piece.key, &what)).collect()
}

/// Runs the checks, a few at a time, and counts.
async fn each(
    checks: impl Iterator<Item = impl Future<Output = Result<Checked, ReadError>>>,
    options: &VerifyOptions<'_>,
    report: &mut VerifyReport,
    progress: &mut VerifyProgress,
    mut take: impl FnMut(&mut VerifyReport, &Checked),
) -> Result<(), RestoreError> {
    let mut done = futures::stream::iter(checks).buffered(AT_A_TIME);
    while let Some(checked) = done.next().await {
        if options.cancel.is_cancelled() {
            return Err(RestoreError::Cancelled);
        }
        let checked = checked?;
        report.objects += 1;
        report.bytes += checked.bytes;
        take(report, &checked);
        report.problems.extend(checked.problem);
        progress.objects += 1;
        progress.bytes = report.bytes;
        (options.progress)(*progress);
    }
    Ok(())
}

/// A damaged or missing object is a finding, a store that fails is an error.
fn finding(result: Result<Checked, ReadError>) -> Result<Checked, ReadError> {
    match result {
        Err(error) => match Problem::of(&error) {
            Some(problem) => Ok(Checked { problem: Some(problem), ..Checked::sound(0) }),
            None => Err(error),
        },
        sound => sound,
    }
}

/// Keeps its transactions only if another segment has some of them too.
async fn check_segment<O: Objects>(
    objects: &O,
    entry: SegmentEntry,
    shared: bool,
) -> Result<Checked, ReadError> {
    let checked = finding(if entry.size <= WHOLE_BYTES_MAX {
        check_whole_segment(objects, entry.key).await
    } else {
        check_large_segment(objects, entry).await
    });
    checked.map(|checked| match shared {
        true => checked,
        false => Checked { transactions: Vec::new(), ..checked },
    })
}

async fn check_whole_segment<O: Objects>(objects: &O, key: SegmentKey) -> Result<Checked, ReadError> {
    let bytes = objects.segment(key).await?;
    let len = bytes.len() as u64;
    let work = move || {
        let checked = |part: Result<Part, SegmentError>| {
            let part = part?;
            part.check().map(|()| (part.prologue.header, part.prologue.transactions))
        };
        parts(&bytes).map(checked).collect::<Result<(Vec<_>, Vec<_>), _>>()
    };
    let checked = tokio::task::spawn_blocking(work).await;
    let checked = checked.map_err(|error| ReadError::died(&key, error))?;
    let (headers, transactions) = checked.map_err(|error| ReadError::of_segment(&key, &error))?;
    agree(&key, &headers)?;
    Ok(Checked { headers, transactions: transactions.concat(), ..Checked::sound(len) })
}

/// Reads it piece by piece: its digest, and the parts' tables and chains.
async fn check_large_segment<O: Objects>(objects: &O, entry: SegmentEntry) -> Result<Checked, ReadError> {
    let key = entry.key;
    let damaged = |error: SegmentError| ReadError::of_segment(&key, &error);
    let mut hashing = objects.hasher(key.database).await?.start();
    let (mut headers, mut transactions) = (Vec::new(), Vec::new());
    // The part under way: its tables once they are there, and the digest of its frames so far.
    let mut pending = BytesMut::new();
    let mut part: Option<(Prologue, u64, crate::digest::Hashing)> = None;
    let mut at = 0;
    while at < entry.size {
        let end = (at + PIECE_BYTES).min(entry.size);
        let piece = objects.segment_range(key, at..end).await?;
        hashing.update(&piece);
        pending.extend_from_slice(&piece);
        at = end;
        loop {
            if let Some((prologue, left, frames)) = part.as_mut() {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(pending.len());
                frames.update(&pending.split_to(here));
                *left -= here as u64;
                if *left > 0 {
                    break;
                }
                prologue.check_chain(frames.finish()).map_err(damaged)?;
                headers.push(prologue.header.clone());
                transactions.append(&mut prologue.transactions);
                part = None;
            }
            let needed = Prologue::needed(&pending).map_err(damaged)?;
            if pending.len() < needed || pending.is_empty() {
                break;
            }
            let prologue = Prologue::parse(&pending).map_err(damaged)?;
            let _ = pending.split_to(needed);
            let left = prologue.header.frames_len;
            part = Some((prologue, left, Hasher::Plain.start()));
        }
    }
    if part.is_some() || !pending.is_empty() {
        return Err(ReadError::damaged(&key, &"it ends inside a part"));
    }
    let found = hashing.finish();
    if found != key.digest {
        return Err(ReadError::damaged(&key, &format!("its bytes have digest {found}")));
    }
    agree(&key, &headers)?;
    Ok(Checked { headers, transactions, ..Checked::sound(entry.size) })
}

/// The parts' headers together must say what the key says.
fn agree(key: &SegmentKey, headers: &[SegmentHeader]) -> Result<(), ReadError> {
    let (Some(first), Some(last)) = (headers.first(), headers.last()) else {
        return Err(ReadError::damaged(key, &"it is empty"));
    };
    let same = first.database == key.database
        && first.timeline == key.timeline
        && first.range.first() == key.range.first()
        && last.range.last() == key.range.last()
        && first.from == key.from
        && last.to == key.to
        && first.flags == key.flags;
    let joined = headers.windows(2).all(|pair| matches!(pair, [a, b] if a.joins(b).is_ok()));
    if !same {
        return Err(ReadError::damaged(key, &"its headers do not say what its name says"));
    }
    if joined { Ok(()) } else { Err(ReadError::damaged(key, &"its parts do not follow each other")) }
}

async fn check_base<O: Objects>(objects: &O, entry: BaseEntry) -> Result<Checked, ReadError> {
    let opened = open_manifest(objects, entry.key).await;
    finding(opened.map(|manifest| Checked { manifest: Some(manifest), ..Checked::sound(entry.size) }))
}

async fn check_pack_object<O: Objects>(
    objects: &O,
    database: DatabaseId,
    digest: Digest,
    size: u64,
) -> Result<Checked, ReadError> {
    finding(hash_pack(objects, database, digest, size).await)
}

async fn hash_pack<O: Objects>(
    objects: &O,
    database: DatabaseId,
    digest: Digest,
    size: u64,
) -> Result<Checked, ReadError> {
    let key = pack_key(database, digest);
    let mut hashing = objects.hasher(database).await?.start();
    let mut at = 0;
    while at < size {
        let end = (at + PIECE_BYTES).min(size);
        let piece: Bytes = objects.pack_range(database, digest, at..end).await?;
        if at == 0 {
            check_pack(&piece).map_err(|error| ReadError::damaged(&key, &error))?;
        }
        let work = move || {
            hashing.update(&piece);
            hashing
        };
        let hashed = tokio::task::spawn_blocking(work).await;
        hashing = hashed.map_err(|error| ReadError::died(&key, error))?;
        at = end;
    }
    let found = hashing.finish();
    if found != digest {
        return Err(ReadError::damaged(&key, &format!("its bytes have digest {found}")));
    }
    Ok(Checked::sound(size))
}

fn missing_packs(
    database: DatabaseId,
    packs: &[(Digest, u64)],
    named: &BTreeMap<Digest, u64>,
) -> Vec<Problem> {
    let there: BTreeMap<Digest, u64> = packs.iter().copied().collect();
    let wrong = named.iter().filter_map(|(digest, len)| match there.get(digest) {
        None => Some(Problem::new(&pack_key(database, *digest), &"it is missing")),
        Some(size) if size != len => {
            let what = format!("it has {size} bytes, a base says {len}");
            Some(Problem::new(&pack_key(database, *digest), &what))
        }
        Some(_) => None,
    });
    wrong.collect()
}

/// The chain hashes of all parts: each part must go on where one before it ended, wide or narrow.
///
/// Several may end there with different hashes: a put that was broken off, and what was put in its place, hold the same
/// transactions in other parts. Whether they say the same of them is for [`Twice`] to tell.
struct Chain {
    roots: BTreeSet<TimelineId>,
    after: BTreeMap<(TimelineId, TxId), BTreeSet<Digest>>,
    before: Vec<(TimelineId, TxId, Digest)>,
}

impl Chain {
    fn new(history: &History) -> Self {
        let roots = history.timelines().into_iter().filter(|active| active.timeline.parent.is_none());
        Self {
            roots: roots.map(|active| active.timeline.id).collect(),
            after: BTreeMap::new(),
            before: Vec::new(),
        }
    }

    fn add(&mut self, header: &SegmentHeader) {
        let end = (header.timeline, header.range.last());
        self.after.entry(end).or_default().insert(header.chain_after);
        self.before.push((header.timeline, header.range.first(), header.chain_before));
    }

    fn problems(self, database: DatabaseId) -> Vec<Problem> {
        let is_broken = |(timeline, first, found): &&(TimelineId, TxId, Digest)| match first.previous() {
            Some(before) => {
                let ends = self.after.get(&(*timeline, before));
                ends.is_some_and(|ends| !ends.contains(found))
            }
            None => self.roots.contains(timeline) && chain_start(database, *timeline) != *found,
        };
        let problem = |(timeline, first, _): &(TimelineId, TxId, Digest)| {
            let what = "the chain is broken: it does not follow the transaction before it";
            Problem::new(&format!("position {timeline}/{first}"), &what)
        };
        self.before.iter().filter(is_broken).map(problem).collect()
    }
}

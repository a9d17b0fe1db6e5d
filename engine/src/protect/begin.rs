//! Where protection begins: the decision at every start, and after everything that broke the thread.
//!
//! | what is known | what is done |
//! | --- | --- |
//! | nothing, here or in the repository | a new database, timeline 1, its first transaction given by a base |
//! | the journal, and the repository is where it says (or the spool goes on from there) | go on with the same timeline |
//! | the journal is gone, or behind the repository | the next timeline, forked at the repository's last state |
//! | the same numbers may be given out twice ([`Beyond`]) | the next timeline, forked where the log goes on |
//!
//! Then the source is asked whether its log goes on from there. If not, the page table tells the difference, which is
//! one transaction that ends a gap. Only when the table is of no use is the state given by a new base.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::base::Manifest;
use crate::error::Explain;
use crate::ids::{DatabaseId, Position, TimelineId, TxId, TxRange};
use crate::page::{PageNo, PageSize, StateChecksum};
use crate::plan::Target;
use crate::protect::ProtectOptions;
use crate::protect::base::BaseFacts;
use crate::protect::error::ProtectError;
use crate::protect::fork::{claim, first_mark, last_state};
use crate::protect::frames::PartBody;
use crate::protect::journal::{Journal, Mark, Recovered};
use crate::protect::outbox::Part;
use crate::protect::spool::{Spool, SpooledPart};
use crate::protect::table::PageTable;
use crate::repository::{DatabaseRecord, ForkReason, NewDatabase, Repository};
use crate::restore::{self, RestoreError};
use crate::segment::{HEADER_BYTES, Prologue, chain_start};
use crate::sqlite::lock_byte_page;
use crate::store::keys::BaseKey;
use crate::time::Timestamp;

/// Where the log goes on.
pub(crate) struct Beginning {
    pub(crate) mark: Mark,
    /// The page table there; `None` when the state is not known locally.
    pub(crate) table: Option<PageTable>,
    /// The state there as the repository knows it; `None` at the start of a history.
    pub(crate) state: Option<StateChecksum>,
    /// The last transaction in the repository, with its time (or a moment shortly after).
    pub(crate) stored: Option<(TxId, Timestamp)>,
    /// Parts of the spool that the repository does not have.
    pub(crate) spooled: Vec<Part>,
    /// What else this timeline may hold.
    pub(crate) beyond: Beyond,
    /// The newest base from which the present timeline can be replayed.
    pub(crate) base: Option<BaseFacts>,
    /// To be told to the operator.
    pub(crate) note: Option<String>,
}

const NOT_OURS: &str = "the local state was lost or is older than the repository";

/// What is numbered on the timeline after the place where it goes on. Whoever gave such a number to another transaction
/// would have two of one name in the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beyond {
    /// Nothing.
    Nothing,
    /// Parts were closed that are not in the repository: a put may be under way still that a kill broke off. If the
    /// source's log goes on, the same transactions get the same numbers again, and it does no harm.
    Closed,
    /// Segments are in the repository behind one that is missing.
    Stored,
}

impl Beginning {
    fn of_nothing(mark: Mark) -> Self {
        Self {
            mark,
            table: None,
            state: None,
            stored: None,
            spooled: Vec::new(),
            beyond: Beyond::Nothing,
            base: None,
            note: None,
        }
    }
}

/// Finds where to begin. Reads local files without further ado: for the capture thread.
pub(crate) async fn begin(
    repository: &Repository,
    options: &ProtectOptions,
    source: &Path,
) -> Result<Beginning, ProtectError> {
    let state_error = |source| ProtectError::State { folder: options.state.clone(), source };
    let Some(recovered) = Journal::recover(&options.state).map_err(state_error)? else {
        return begin_without_journal(repository, options, source).await;
    };
    let oldest = recovered.oldest().clone();
    if repository.database(oldest.database).await?.is_none() {
        return Err(ProtectError::ForeignState { folder: options.state.clone(), database: oldest.database });
    }
    let claims = repository.timelines(oldest.database).await?;
    if !claims.iter().any(|claim| claim.id == oldest.timeline && claim.nonce == oldest.claim) {
        return fork_at_tip(repository, options, oldest.database, NOT_OURS).await;
    }
    let stored = stored_ranges(repository, &oldest).await?;
    let spool = Spool::open(&options.state, oldest.timeline).map_err(state_error)?;
    let mut known = Known::new(recovered, stored, spool.parts().map_err(state_error)?);
    let mut base = base_of(repository, known.reached()).await?;
    let needs_base = known.reached().needs_base;
    if base.is_none() && needs_base > known.tip {
        // Its base was never finished, and nothing of it was ever called durable: the image is taken anew.
        known.forget_from(needs_base);
        base = base_of(repository, known.reached()).await?;
    }
    let Some(end) = known.end() else {
        let chain = chain_start(oldest.database, oldest.timeline);
        let mark = Mark { tx: None, stored: None, needs_base: None, chain, ..oldest };
        return Ok(Beginning::of_nothing(mark));
    };
    let (beyond, tip) = (known.beyond(), known.tip);
    let Some((mark, table)) = known.recovered.at(end, never_stored) else {
        return fork_at_tip(repository, options, oldest.database, NOT_OURS).await;
    };
    let spooled = known.spooled.into_iter().map(read_part).collect::<Result<Vec<_>, _>>();
    let spooled = spooled.map_err(state_error)?;
    let state = Some(table.state());
    let stored = tip.map(|tx| (tx, spooled.first().map_or(mark.time, |part| part.from)));
    Ok(Beginning { mark, table: Some(table), state, stored, spooled, beyond, base, note: None })
}

/// What the journal, the spool and the repository say of the journal's timeline.
struct Known {
    recovered: Recovered,
    /// The segments that the journal does not know to be stored.
    stored: Vec<TxRange>,
    /// The last transaction in the repository with all before it.
    tip: Option<TxId>,
    /// What goes on from there.
    spooled: Vec<SpooledPart>,
}

impl Known {
    /// Deletes of the spool what is of no use.
    fn new(recovered: Recovered, stored: Vec<TxRange>, parts: Vec<SpooledPart>) -> Self {
        let oldest = recovered.oldest();
        let tip = contiguous_tip(oldest.stored, &stored);
        let is_known = |part: &SpooledPart| {
            let last = Some(part.range.last());
            last <= oldest.tx || recovered.marks().any(|mark| mark.tx == last)
        };
        let spooled = continuing_parts(parts, tip, is_known);
        Self { recovered, stored, tip, spooled }
    }

    /// Where the timeline can go on.
    fn end(&self) -> Option<TxId> {
        self.spooled.last().map(|part| part.range.last()).or(self.tip)
    }

    /// The last mark at or before the end.
    fn reached(&self) -> &Mark {
        let end = self.end();
        self.recovered.marks().filter(|mark| mark.tx <= end).last().unwrap_or(self.recovered.oldest())
    }

    /// Deletes the spooled parts from this transaction on.
    fn forget_from(&mut self, first: Option<TxId>) {
        let from = self.spooled.iter().position(|part| Some(part.range.last()) >= first);
        let forgotten = self.spooled.split_off(from.unwrap_or(self.spooled.len()));
        forgotten.iter().for_each(|part| drop(std::fs::remove_file(&part.path)));
    }

    fn beyond(&self) -> Beyond {
        let end = self.end();
        if self.stored.iter().any(|range| Some(range.last()) > end) {
            Beyond::Stored
        } else if self.recovered.marks().any(|mark| mark.tx > end) {
            Beyond::Closed
        } else {
            Beyond::Nothing
        }
    }
}

async fn begin_without_journal(
    repository: &Repository,
    options: &ProtectOptions,
    source: &Path,
) -> Result<Beginning, ProtectError> {
    let source = source.display().to_string();
    let named = repository.databases().await?.into_iter().find(|record| record.name == options.name);
    match named {
        Some(record) if record.source == source => {
            fork_at_tip(
                repository,
                options,
                record.id,
                "no local state: another host, or a lost state folder",
            )
            .await
        }
        Some(record) => Err(name_taken(options, &record)),
        None => {
            let database = repository.register_database(NewDatabase {
                name: options.name.clone(),
                source,
                engine: "sqlite".into(),
                class: options.class.clone(),
                origin: None,
                host: options.host,
                host_name: options.host_name.clone(),
                now: Timestamp::now(),
            });
            let database = database.await?.id;
            let claim =
                claim(repository, options, database, TimelineId::FIRST, None, ForkReason::Began).await?;
            Ok(Beginning::of_nothing(first_mark(database, claim)))
        }
    }
}

fn name_taken(options: &ProtectOptions, record: &DatabaseRecord) -> ProtectError {
    ProtectError::NameTaken {
        name: options.name.clone(),
        other: format!("{} on {}", record.source, record.host_name),
    }
}

/// What the repository holds of the journal's timeline after what the journal knows to be stored.
async fn stored_ranges(repository: &Repository, oldest: &Mark) -> Result<Vec<TxRange>, ProtectError> {
    let segments = repository.segments(oldest.database, oldest.timeline, oldest.stored).await?;
    Ok(segments.into_iter().map(|(key, _)| key.range).collect())
}

/// The last transaction of the run of segments that goes on without a hole after `stored`.
fn contiguous_tip(stored: Option<TxId>, ranges: &[TxRange]) -> Option<TxId> {
    // The first segment of a timeline begins after its fork point, wherever that is.
    ranges.iter().fold(stored, |tip, range| match tip {
        Some(tip) if range.first() > tip.next() => Some(tip),
        _ => tip.max(Some(range.last())),
    })
}

/// The parts that go on from `tip` without a hole, as far as the journal knows them. Older ones are durable already; a
/// part is spooled before its record is written, so one that the journal does not know was cut off right then, and the
/// source has it still. Both are deleted.
fn continuing_parts(
    parts: Vec<SpooledPart>,
    tip: Option<TxId>,
    is_known: impl Fn(&SpooledPart) -> bool,
) -> Vec<SpooledPart> {
    let mut next = tip.map_or(TxId::FIRST, TxId::next);
    let mut continuing = Vec::new();
    for part in parts {
        let (touches, is_new) = (part.range.first() <= next, part.range.last() >= next);
        if touches && is_new && is_known(&part) {
            next = part.range.last().next();
            continuing.push(part);
        } else if touches {
            let _ = std::fs::remove_file(&part.path);
        }
    }
    continuing
}

fn read_part(part: SpooledPart) -> io::Result<Part> {
    // Its frames may be larger than memory, and are not needed.
    let first_bytes = |count: usize| {
        let mut bytes = Vec::new();
        File::open(&part.path)?.take(count as u64).read_to_end(&mut bytes).map(|_| bytes)
    };
    let needed = Prologue::needed(&first_bytes(HEADER_BYTES)?).map_err(io::Error::other)?;
    let prologue = Prologue::parse(&first_bytes(needed)?).map_err(io::Error::other)?;
    let header = &prologue.header;
    Ok(Part {
        range: header.range,
        from: header.from,
        to: header.to,
        flags: header.flags,
        body: PartBody::File { path: part.path, len: part.bytes },
    })
}

/// The newest base from which the states up to `mark` can be rebuilt, if there is one.
async fn base_of(repository: &Repository, mark: &Mark) -> Result<Option<BaseFacts>, ProtectError> {
    let bases = repository.bases(mark.database).await?;
    let serves =
        |key: &BaseKey| key.position.timeline <= mark.timeline && Some(key.position.tx) >= mark.needs_base;
    let newest = bases.iter().filter(|(key, _)| serves(key)).max_by_key(|(key, _)| key.position);
    let Some((key, _)) = newest else { return Ok(None) };
    let manifest = Manifest::decode(&repository.get_base(key).await?)?;
    Ok(Some(BaseFacts::of(&manifest)))
}

/// A new timeline that begins at the last state of the newest one.
async fn fork_at_tip(
    repository: &Repository,
    options: &ProtectOptions,
    database: DatabaseId,
    why: &str,
) -> Result<Beginning, ProtectError> {
    let timelines = repository.timelines(database).await?;
    let newest = timelines.iter().map(|timeline| timeline.id).max();
    let wanted = newest.map_or(TimelineId::FIRST, TimelineId::next);
    let tip = last_state(repository, database, &timelines.iter().map(|t| t.id).collect::<Vec<_>>()).await?;
    let parent = tip.as_ref().map(|tip| tip.position);
    let reason = if timelines.is_empty() { ForkReason::Began } else { ForkReason::NotProven };
    let mut mark = first_mark(database, claim(repository, options, database, wanted, parent, reason).await?);
    if let Some(tip) = &tip {
        mark = Mark {
            tx: Some(tip.position.tx),
            time: tip.last.time,
            page_size: tip.page_size,
            image_pages: tip.last.image_pages,
            stored: Some(tip.position.tx),
            needs_base: tip.needs_base,
            ..mark
        };
    }
    let base = base_of(repository, &mark).await?;
    let note = Some(format!("a new timeline {} was begun: {why}", mark.timeline));
    let state = tip.as_ref().map(|tip| tip.last.state);
    let stored = tip.map(|tip| (tip.position.tx, tip.last.time));
    let (spooled, beyond) = (Vec::new(), Beyond::Nothing);
    Ok(Beginning { mark, table: None, state, stored, spooled, beyond, base, note })
}

/// The page table at a position, rebuilt from the repository in a scratch file; `None` (with a warning) when it cannot be.
pub(crate) async fn rebuilt_table(
    repository: &Repository,
    options: &ProtectOptions,
    database: DatabaseId,
    at: Position,
) -> Option<PageTable> {
    let scratch = options.state.join("rebuild.partial");
    let rebuilt = rebuild(repository, database, at, &scratch).await;
    let _ = std::fs::remove_file(&scratch);
    match rebuilt {
        Ok(table) => Some(table),
        Err(error) => {
            tracing::warn!(%error, advice = error.advice(), "cannot rebuild the page table at {at}: a new base is made");
            None
        }
    }
}

async fn rebuild(
    repository: &Repository,
    database: DatabaseId,
    at: Position,
    scratch: &Path,
) -> Result<PageTable, RestoreError> {
    let history = restore::history_of(repository, database).await?;
    let plan = restore::plan(repository, &history, Target::Position(at), Timestamp::now()).await?;
    let options = restore::Options { left_out: never_stored, ..restore::Options::default() };
    let hashes =
        restore::rebuild_page_hashes(repository, &plan, scratch, &options, &restore::Cancel::new()).await?;
    let mut table = PageTable::from_hashes(plan.page_size, never_stored(plan.page_size), Vec::new());
    for (page, hash) in (1..).filter_map(PageNo::new).zip(hashes) {
        table.set(page, hash);
    }
    table.commit();
    Ok(table)
}

/// The page that the source never stores.
pub(crate) fn never_stored(page_size: PageSize) -> Option<PageNo> {
    Some(lock_byte_page(page_size))
}

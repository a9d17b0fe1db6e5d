//! Where protection begins: the decision at every start, and after everything that broke the thread.
//!
//! | what is known | what is done |
//! | --- | --- |
//! | nothing, here or in the repository | a new database, timeline 1, its first transaction given by a base |
//! | the journal, and the repository is where it says (or the spool goes on from there) | go on with the same timeline |
//! | the journal is gone, or behind the repository | the next timeline, forked at the repository's last state |
//! | the same numbers may be given out twice, or somebody has claimed a later timeline | the next timeline, forked where the log goes on |
//! | nothing of the timeline is certain | the next timeline, its first transaction given by a base |
//!
//! (`known` has the rules.) Then the source is asked whether its log goes on from there. If not, the page table tells
//! the difference, which is one transaction that ends a gap. Only when the table is of no use is the state given by a
//! new base.
//!
//! One object of the repository that is damaged stops nothing: the next best is gone on with, and a warning given.

use std::path::Path;

use crate::base::Manifest;
use crate::error::Explain;
use crate::ids::{DatabaseId, Position, TxId, TxRange};
use crate::page::{PageNo, PageSize, StateChecksum};
use crate::plan::Target;
use crate::protect::ProtectOptions;
use crate::protect::base::BaseFacts;
use crate::protect::claims::{Claims, claim};
use crate::protect::driver::Driver;
use crate::protect::error::ProtectError;
use crate::protect::fork::{first_mark, last_state, readable};
use crate::protect::journal::{Journal, Mark, Recovered};
use crate::protect::known::{Decision, Known, Leaving, Lineage, Next, Recorded, contiguous_tip};
use crate::protect::outbox::Part;
use crate::protect::spool::Spool;
use crate::protect::spooled::{self, Expected, continuing_parts};
use crate::protect::table::PageTable;
use crate::protect::wiring;
use crate::repository::{DatabaseRecord, ForkReason, NewDatabase, Repository};
use crate::restore::{self, RestoreError};
use crate::segment::chain_start;
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
    /// Parts of the spool that the repository does not have. None when the timeline is left: they were stored before.
    pub(crate) spooled: Vec<Part>,
    /// Why the log goes on with the next timeline, which is not claimed yet.
    pub(crate) leaving: Option<Leaving>,
    /// The newest base from which the present timeline can be replayed.
    pub(crate) base: Option<BaseFacts>,
    /// To be told to the operator.
    pub(crate) note: Option<String>,
}

const NOT_OURS: &str = "the local state was lost or is older than the repository";

impl Beginning {
    fn of_nothing(mark: Mark) -> Self {
        Self {
            mark,
            table: None,
            state: None,
            stored: None,
            spooled: Vec::new(),
            leaving: None,
            base: None,
            note: None,
        }
    }
}

/// Finds where to begin. Reads local files without further ado: for the capture thread, while the source's log is held.
pub(crate) async fn begin(driver: &Driver, source: &Path) -> Result<Beginning, ProtectError> {
    let (repository, state) = (&driver.repository, &driver.options.state);
    let Some(recovered) = Journal::recover(state).map_err(ProtectError::state(state))? else {
        return begin_without_journal(driver, source).await;
    };
    let oldest = recovered.oldest().clone();
    if let Some(None) = readable(repository.database(oldest.database).await)? {
        return Err(ProtectError::ForeignState { folder: state.clone(), database: oldest.database });
    }
    let claims = Claims::of(repository, oldest.database).await?;
    if claims.are_of_others(oldest.timeline, oldest.claim) {
        return fork_at_tip(driver, oldest.database, NOT_OURS).await;
    }
    let segments = repository.segments(oldest.database, oldest.timeline, oldest.stored).await?;
    let segments: Vec<TxRange> = segments.into_iter().map(|(key, _)| key.range).collect();
    let parts = read_spool(state, &recovered, contiguous_tip(oldest.stored, &segments)).await?;
    let bases = repository.bases(oldest.database).await?.into_iter().map(|(key, _)| key).collect();
    let known = known(&recovered, &claims, segments, &parts);
    let decided = decide(repository, known, bases).await?;
    go_by(driver, recovered, parts, decided).await
}

/// What is whole of the spool. It may be a gigabyte.
async fn read_spool(
    state: &Path,
    recovered: &Recovered,
    tip: Option<TxId>,
) -> Result<Vec<Part>, ProtectError> {
    let state_error = ProtectError::state(state);
    let spool = Spool::open(state, recovered.oldest().timeline).map_err(&state_error)?;
    let expected = Expected::by(recovered);
    let read = tokio::task::spawn_blocking(move || continuing_parts(&spool, &expected, tip)).await;
    read.map_err(|died| ProtectError::TaskDied { what: died.to_string() })?.map_err(state_error)
}

fn known(recovered: &Recovered, claims: &Claims, segments: Vec<TxRange>, parts: &[Part]) -> Known {
    let oldest = recovered.oldest();
    let recorded = |mark: &Mark| Recorded { tx: mark.tx, needs_base: mark.needs_base };
    Known {
        timeline: oldest.timeline,
        lineage: Lineage::of(oldest.timeline, &claims.parents()),
        newest_claim: claims.newest().unwrap_or(oldest.timeline),
        marks: recovered.marks().map(recorded).collect(),
        stored: oldest.stored,
        segments,
        parts: parts.iter().map(|part| part.range).collect(),
        bases: Vec::new(),
    }
}

/// What is decided.
struct Decided {
    decision: Decision,
    tip: Option<TxId>,
    base: Option<BaseFacts>,
}

/// Decides, with bases that can be read.
async fn decide(
    repository: &Repository,
    mut known: Known,
    mut bases: Vec<BaseKey>,
) -> Result<Decided, ProtectError> {
    loop {
        known.bases = bases.iter().map(|key| key.position).collect();
        let (decision, tip) = (known.decide(), known.tip());
        let Some(chosen) = bases.iter().position(|key| Some(key.position) == decision.base) else {
            return Ok(Decided { decision, tip, base: None });
        };
        let key = bases.swap_remove(chosen);
        if let Some(base) = readable(base_facts(repository, &key).await)? {
            return Ok(Decided { decision, tip, base: Some(base) });
        }
    }
}

async fn base_facts(repository: &Repository, key: &BaseKey) -> Result<BaseFacts, ProtectError> {
    Ok(BaseFacts::of(&Manifest::decode(&repository.get_base(key).await?)?))
}

/// Does as is decided. What the spool holds of a timeline that is left is stored before.
async fn go_by(
    driver: &Driver,
    recovered: Recovered,
    mut parts: Vec<Part>,
    decided: Decided,
) -> Result<Beginning, ProtectError> {
    let Decided { decision, mut tip, base } = decided;
    let oldest = recovered.oldest().clone();
    spooled::discard(&parts.split_off(decision.parts));
    if !matches!(decision.next, Next::GoOn(_))
        && let Some(last) = parts.last()
    {
        let left = Mark { tx: Some(last.range.last()), time: last.to, ..oldest.clone() };
        let stored = tip.map(|tx| (tx, oldest.time));
        tip = left.tx;
        wiring::store_spool(driver, &left, std::mem::take(&mut parts), stored).await?;
    }
    let (end, leaving) = match decision.next {
        Next::First => return Ok(Beginning::of_nothing(at_start(oldest))),
        Next::Anew => return begin_anew(driver, oldest.database).await,
        Next::AtTip => return fork_at_tip(driver, oldest.database, NOT_OURS).await,
        Next::Fork(end, leaving) => (end, Some(leaving)),
        Next::GoOn(end) => (end, None),
    };
    let Some((mut mark, table)) = recovered.at(end, never_stored) else {
        return fork_at_tip(driver, oldest.database, NOT_OURS).await;
    };
    match Journal::log_begun_anew(&driver.options.state, &mark.resume) {
        Ok(resume) => mark.resume = resume.unwrap_or(mark.resume),
        Err(error) => tracing::warn!(%error, "cannot read where the source's log was begun anew"),
    }
    let state = Some(table.state());
    let stored = tip.map(|tx| (tx, parts.first().map_or(mark.time, |part| part.from)));
    Ok(Beginning { mark, table: Some(table), state, stored, spooled: parts, leaving, base, note: None })
}

fn at_start(mark: Mark) -> Mark {
    let chain = chain_start(mark.database, mark.timeline);
    Mark { tx: None, stored: None, needs_base: None, chain, ..mark }
}

async fn begin_without_journal(driver: &Driver, source: &Path) -> Result<Beginning, ProtectError> {
    let (repository, options) = (&driver.repository, &driver.options);
    let source = source.display().to_string();
    match named(repository, &options.name).await? {
        Some(record) if record.source == source => {
            fork_at_tip(driver, record.id, "no local state: another host, or a lost state folder").await
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
            let claim = claim(driver, database.await?.id, None, ForkReason::Began).await?;
            Ok(Beginning::of_nothing(first_mark(claim)))
        }
    }
}

/// The database of this name, if its record can be read.
async fn named(repository: &Repository, name: &str) -> Result<Option<DatabaseRecord>, ProtectError> {
    for (_, record) in repository.databases_or_errors().await? {
        if let Some(record) = readable(record)?.filter(|record| record.name == name) {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

fn name_taken(options: &ProtectOptions, record: &DatabaseRecord) -> ProtectError {
    ProtectError::NameTaken {
        name: options.name.clone(),
        other: format!("{} on {}", record.source, record.host_name),
    }
}

/// A new timeline without a parent: a put of the first base may be under way still, and two bases at one position would
/// be two states.
async fn begin_anew(driver: &Driver, database: DatabaseId) -> Result<Beginning, ProtectError> {
    let mark = first_mark(claim(driver, database, None, ForkReason::NotProven).await?);
    let note = format!("timeline {} was begun anew: nothing before it is certain", mark.timeline);
    Ok(Beginning { note: Some(note), ..Beginning::of_nothing(mark) })
}

/// A new timeline that begins at the last state of the newest one.
async fn fork_at_tip(driver: &Driver, database: DatabaseId, why: &str) -> Result<Beginning, ProtectError> {
    let repository = &driver.repository;
    let is_new = Claims::of(repository, database).await?.are_none();
    let reason = if is_new { ForkReason::Began } else { ForkReason::NotProven };
    let tip = last_state(repository, database).await?;
    let claim = claim(driver, database, tip.as_ref().map(|tip| tip.position), reason).await?;
    let note = Some(format!("a new timeline {} was begun: {why}", claim.timeline));
    let Some(tip) = tip else { return Ok(Beginning { note, ..Beginning::of_nothing(first_mark(claim)) }) };
    let mut mark = tip.mark(claim);
    let base = match &tip.route {
        Some(route) => readable(base_facts(repository, &route.base.key).await)?,
        None => None,
    };
    if base.is_none() {
        // Whatever older bases there are: they do not lead here.
        mark.needs_base = mark.tx;
    }
    Ok(Beginning {
        state: Some(tip.last.state),
        stored: Some((tip.position.tx, tip.last.time)),
        base,
        note,
        ..Beginning::of_nothing(mark)
    })
}

/// The page table at a position, rebuilt from the repository in a scratch file; `None` (with a warning) when it cannot
/// be.
pub(crate) async fn rebuilt_table(driver: &Driver, database: DatabaseId, at: Position) -> Option<PageTable> {
    let scratch = driver.options.state.join("rebuild.partial");
    let rebuilt = rebuild(&driver.repository, database, at, &scratch).await;
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

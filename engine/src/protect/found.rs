//! How the source is found when capture begins: where its log goes on, or else what its state is.

use crate::capture::sink::Image;
use crate::capture::sqlite::{Attach, SqliteSource};
use crate::ids::{Position, TxId};
use crate::protect::begin::{self, Beginning};
use crate::protect::driver::Driver;
use crate::protect::error::ProtectError;
use crate::protect::journal::Mark;
use crate::protect::outbox::Part;
use crate::protect::scan::{Scanned, scan};
use crate::protect::table::PageTable;
use crate::time::Timestamp;

/// What capture goes on from.
pub(crate) struct Found {
    pub(crate) mark: Mark,
    /// The table that the recorder begins with.
    pub(crate) table: PageTable,
    pub(crate) record: Record,
    /// What the journal says until the found state is recorded.
    pub(crate) journal: Option<(Mark, PageTable)>,
    /// The source as it is, and since when, when its log does not go on.
    pub(crate) found: Option<(Box<dyn Image>, Timestamp)>,
    /// What the spool holds of the timeline that goes on.
    pub(crate) spooled: Vec<Part>,
    /// The last transaction of that timeline, or of its fork, in the repository.
    pub(crate) stored: Option<(TxId, Timestamp)>,
}

/// What of the found state has to be recorded.
#[derive(Debug)]
pub(crate) enum Record {
    /// It is the state the log ends with.
    Nothing,
    /// The pages that differ from the state of this table, which is the found one.
    Difference(PageTable),
    /// A base, made now.
    Image,
}

/// Compares what is recorded with what the source is.
pub(crate) fn find(
    driver: &Driver,
    source: &mut SqliteSource,
    mut beginning: Beginning,
    attach: &Attach,
) -> Result<Found, ProtectError> {
    let no_table = || ProtectError::TaskDied { what: "page table".into() };
    let Attach::Unknown { reason, behind } = attach else {
        let Beginning { mark, table, spooled, stored, .. } = beginning;
        return Ok(Found {
            mark,
            table: table.ok_or_else(no_table)?,
            record: Record::Nothing,
            journal: None,
            found: None,
            spooled,
            stored,
        });
    };
    let Scanned { table: scanned, image, at } = scan(source, &driver.options.state)?;
    let same = if beginning.state == Some(scanned.state()) {
        tracing::info!(reason, "the source's log does not go on, its state does: nothing was missed");
        true
    } else if *behind {
        fork(driver, &mut beginning, &scanned, reason)?
    } else {
        tracing::info!(reason, "the state of the source is taken anew");
        false
    };
    let Beginning { mut mark, mut table, state, spooled, stored, .. } = beginning;
    if !same
        && table.is_none()
        && state.is_some()
        && let Some(tx) = mark.tx
    {
        let at = Position::new(mark.timeline, tx);
        let rebuilt = begin::rebuilt_table(&driver.repository, &driver.options, mark.database, at);
        table = driver.runtime.block_on(rebuilt);
    }
    // Nothing says yet how the found state came about: whoever begins before that is recorded shall find it anew.
    mark.resume = Vec::new();
    let (table, record, journal) = match table {
        _ if same => {
            mark.resume = source.resume();
            (scanned, Record::Nothing, None)
        }
        Some(table) if table.page_size() == scanned.page_size() => (table, Record::Difference(scanned), None),
        recorded => {
            let recorded =
                recorded.unwrap_or_else(|| PageTable::from_hashes(mark.page_size, None, Vec::new()));
            (scanned, Record::Image, Some((mark.clone(), recorded)))
        }
    };
    (mark.page_size, mark.image_pages) = (table.page_size(), table.pages());
    Ok(Found { mark, table, record, journal, found: Some((image, at)), spooled, stored })
}

/// The source is behind the repository: a new timeline begins where it really is. Whether it was found there exactly.
fn fork(
    driver: &Driver,
    beginning: &mut Beginning,
    scanned: &PageTable,
    reason: &str,
) -> Result<bool, ProtectError> {
    let mark = &mut beginning.mark;
    if !beginning.spooled.is_empty() {
        // What only the spool has belongs to the timeline that is left; fork from what is stored.
        let left = beginning.spooled.len();
        driver.board.note(format!("{left} parts of timeline {} stay in the spool", mark.timeline));
        beginning.spooled.clear();
        beginning.table = None;
        (mark.tx, mark.time) = beginning.stored.map_or((None, mark.time), |(tx, time)| (Some(tx), time));
    }
    let forked = begin::fork_behind(&driver.repository, &driver.options, mark, scanned.state());
    let (forked, exact) = driver.runtime.block_on(forked)?;
    driver.board.note(format!(
        "the repository was ahead of the source ({reason}): timeline {} was begun",
        forked.timeline
    ));
    *mark = forked;
    // What was stored beyond the fork belongs to the timeline that is left.
    beginning.stored = mark.tx.map(|tx| (tx, mark.time));
    Ok(exact)
}

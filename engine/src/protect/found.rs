//! How the source is found when capture begins: where its log goes on, or else what its state is.

use crate::capture::sqlite::{Attach, SqliteSource};
use crate::ids::{Position, TxId};
use crate::protect::begin::{self, Beginning};
use crate::protect::driver::Driver;
use crate::protect::error::ProtectError;
use crate::protect::fork;
use crate::protect::journal::Mark;
use crate::protect::known::Leaving;
use crate::protect::outbox::Part;
use crate::protect::scan::Scan;
use crate::protect::spooled;
use crate::protect::table::PageTable;
use crate::repository::ForkReason;
use crate::time::Timestamp;

/// What capture goes on from.
pub(crate) struct Found {
    pub(crate) mark: Mark,
    /// The table that the recorder begins with.
    pub(crate) table: PageTable,
    pub(crate) record: Record,
    /// What the journal says until the found state is recorded.
    pub(crate) journal: Option<(Mark, PageTable)>,
    /// What the spool holds of the timeline that goes on.
    pub(crate) spooled: Vec<Part>,
    /// The last transaction of that timeline, or of its fork, in the repository.
    pub(crate) stored: Option<(TxId, Timestamp)>,
}

/// What of the found state has to be recorded.
pub(crate) enum Record {
    /// Nothing: the log goes on.
    Nothing,
    /// Nothing but another place in the log: it is the state the recorded log ends with.
    Place(Scan),
    /// The pages that differ.
    Difference(Scan),
    /// A base, made now.
    Image(Scan),
}

/// Whether a timeline that something in the spool belongs to is left now. It has to be whole before.
pub(crate) fn leaves_spool(beginning: &Beginning, attach: &Attach) -> bool {
    let behind = matches!(attach, Attach::Unknown { behind: true, .. });
    // Without a base nothing is stored, and nothing of the spool was promised.
    behind && beginning.base.is_some() && !beginning.spooled.is_empty()
}

/// Compares what is recorded with what the source is.
pub(crate) fn find(
    driver: &Driver,
    source: &mut SqliteSource,
    mut beginning: Beginning,
    attach: &Attach,
) -> Result<Found, ProtectError> {
    let Attach::Unknown { reason, behind } = attach else {
        leave(driver, &mut beginning)?;
        let Beginning { mark, table, spooled, stored, .. } = beginning;
        let table = table.ok_or_else(|| ProtectError::TaskDied { what: "page table".into() })?;
        return Ok(Found { mark, table, record: Record::Nothing, journal: None, spooled, stored });
    };
    let mut scan = Scan::of(source, &driver.options, &|| driver.go_on())?;
    let mut same = beginning.state == Some(scan.state());
    if same {
        tracing::info!(reason, "the source's log does not go on, its state does: nothing was missed");
    } else {
        tracing::info!(reason, "the state of the source is taken anew");
    }
    if *behind && !same {
        same = fork_behind(driver, source, &mut beginning, &mut scan, reason)?;
    } else {
        leave(driver, &mut beginning)?;
    }
    if !same {
        rebuild_table(driver, source, &mut beginning, &mut scan)?;
    }
    Ok(compare(beginning, scan, same.then(|| source.resume())))
}

/// What there is to record, given the place in the log if the state is the recorded one.
fn compare(beginning: Beginning, mut scan: Scan, same: Option<Vec<u8>>) -> Found {
    let Beginning { mut mark, table, spooled, stored, .. } = beginning;
    // Nothing says yet how the found state came about: whoever begins before that is recorded shall find it anew.
    mark.resume = Vec::new();
    let (table, record, journal) = match (same, table) {
        (Some(resume), _) => {
            mark.resume = resume;
            (scan.take_table(), Record::Place(scan), None)
        }
        (None, Some(table)) if table.page_size() == scan.table().page_size() => {
            (table, Record::Difference(scan), None)
        }
        (None, recorded) => {
            (scan.table().clone(), Record::Image(scan), Some(until_recorded(&mark, recorded)))
        }
    };
    (mark.page_size, mark.image_pages) = (table.page_size(), table.pages());
    Found { mark, table, record, journal, spooled, stored }
}

/// What the journal says until an image is recorded: the state before it. Where that is not known, only whose the
/// timeline is, so that the next start finds the last state in the repository.
fn until_recorded(mark: &Mark, recorded: Option<PageTable>) -> (Mark, PageTable) {
    let (tx, table) = match recorded {
        Some(recorded) => (mark.tx, recorded),
        None => (None, PageTable::from_hashes(mark.page_size, None, Vec::new())),
    };
    (Mark { tx, page_size: table.page_size(), image_pages: table.pages(), ..mark.clone() }, table)
}

/// The page table of the recorded state, if it was lost and can be had from the repository.
fn rebuild_table(
    driver: &Driver,
    source: &mut SqliteSource,
    beginning: &mut Beginning,
    scan: &mut Scan,
) -> Result<(), ProtectError> {
    let Beginning { mark, table: table @ None, state: Some(_), .. } = beginning else { return Ok(()) };
    let Some(tx) = mark.tx else { return Ok(()) };
    let at = Position::new(mark.timeline, tx);
    let rebuilt = begin::rebuilt_table(driver, mark.database, at);
    *table = driver.wait_for(rebuilt, || scan.look(source).map(drop))?;
    Ok(())
}

/// Goes on with a new timeline where the present one is left.
fn leave(driver: &Driver, beginning: &mut Beginning) -> Result<(), ProtectError> {
    let left = beginning.mark.timeline;
    let (reason, why) = match beginning.leaving {
        None => return Ok(()),
        Some(Leaving::Superseded) => (ForkReason::OtherWriter, "is no longer the newest"),
        Some(Leaving::NumberedBeyond) => (ForkReason::NotProven, "may still get what is not what happened"),
    };
    let forked = fork::fork_from(driver, &beginning.mark, reason);
    let forked = driver.wait_for(forked, || Ok(()))??;
    tracing::warn!(timeline = %forked.timeline, "timeline {left} {why}: a new one was begun");
    go_on_as(beginning, forked);
    Ok(())
}

/// The source is behind the repository: a new timeline begins where it really is. Whether it was found there exactly.
fn fork_behind(
    driver: &Driver,
    source: &mut SqliteSource,
    beginning: &mut Beginning,
    scan: &mut Scan,
    reason: &str,
) -> Result<bool, ProtectError> {
    leave_spool(driver, beginning);
    let (state, mut moved) = (scan.state(), false);
    let forked = fork::fork_behind(driver, &beginning.mark, state);
    let look = || {
        moved |= scan.look(source)?;
        Ok(())
    };
    let (forked, exact) = driver.wait_for(forked, look)??;
    driver.board.note(format!(
        "the repository was ahead of the source ({reason}): timeline {} was begun",
        forked.timeline
    ));
    if exact {
        // The table is of the state that was left behind, the one found is of the fork.
        beginning.table = None;
    }
    go_on_as(beginning, forked);
    Ok(exact && !moved)
}

fn go_on_as(beginning: &mut Beginning, forked: Mark) {
    // What was stored beyond the fork belongs to the timeline that is left.
    beginning.stored = forked.tx.map(|tx| (tx, forked.time));
    beginning.mark = forked;
}

/// What only the spool has belongs to the timeline that is left, and no base leads to it: the new one begins at what is
/// stored.
fn leave_spool(driver: &Driver, beginning: &mut Beginning) {
    let (left, mark) = (beginning.spooled.len(), &mut beginning.mark);
    if left == 0 {
        return;
    }
    driver.board.note(format!("{left} parts of timeline {} are of no use without a base", mark.timeline));
    spooled::discard(&beginning.spooled);
    (mark.tx, mark.time) = beginning.stored.map_or((None, mark.time), |(tx, time)| (Some(tx), time));
    beginning.spooled.clear();
    beginning.table = None;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{DatabaseId, Digest, TimelineId};
    use crate::page::PageSize;
    use crate::protect::journal::Journal;

    #[test]
    fn until_an_image_is_recorded_the_journal_can_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let (before, found) = (PageSize::new(512).unwrap(), PageSize::new(4096).unwrap());
        let mark = Mark {
            database: DatabaseId::from_bytes([1; 8]),
            timeline: TimelineId::FIRST,
            claim: [7; 8],
            tx: TxId::new(9),
            time: Timestamp::from_micros(5),
            chain: Digest::from_bytes([3; 32]),
            page_size: found,
            image_pages: 77,
            stored: TxId::new(9),
            needs_base: None,
            log_versions: 0,
            log_bytes: 0,
            resume: Vec::new(),
        };
        for (recorded, tx, pages) in
            [(Some(PageTable::from_hashes(before, None, vec![4, 5, 6])), mark.tx, 3), (None, None, 0)]
        {
            let (mark, table) = until_recorded(&mark, recorded);
            Journal::start(folder.path(), &mark, &table).unwrap();
            let recovered = Journal::recover(folder.path()).unwrap().unwrap();
            assert_eq!((recovered.oldest().tx, recovered.oldest().image_pages), (tx, pages));
        }
    }
}

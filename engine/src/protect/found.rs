//! How the source is found when capture begins: where its log goes on, or else what its state is.

use crate::capture::sink::{Commit, Image, PreviousPage, Sink};
use crate::capture::sqlite::{Attach, SqliteSource};
use crate::ids::{Position, TxId};
use crate::page::{PageHash, PageNo};
use crate::protect::begin::{self, Beginning};
use crate::protect::driver::Driver;
use crate::protect::error::ProtectError;
use crate::protect::journal::Mark;
use crate::protect::outbox::Part;
use crate::protect::table::PageTable;
use crate::time::Timestamp;

/// What capture goes on from.
pub(crate) struct Found {
    pub(crate) mark: Mark,
    pub(crate) table: PageTable,
    pub(crate) record: Record,
    /// The source as it is, when its log does not go on.
    pub(crate) image: Option<Box<dyn Image>>,
    /// What the spool holds of the timeline that goes on.
    pub(crate) spooled: Vec<Part>,
    /// The last transaction of that timeline, or of its fork, in the repository.
    pub(crate) stored: Option<(TxId, Timestamp)>,
}

/// What of the found state has to be recorded.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Record {
    /// It is the state the log ends with.
    Nothing,
    /// The pages that differ.
    Difference,
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
            image: None,
            spooled,
            stored,
        });
    };
    let mut image = source.image(&mut Ignore)?;
    let folder = || driver.options.state.clone();
    let scanned = scan(&mut *image).map_err(|source| ProtectError::State { folder: folder(), source })?;
    let mut record = if beginning.state == Some(scanned.state()) {
        tracing::info!(reason, "the source's log does not go on, its state does: nothing was missed");
        Record::Nothing
    } else if *behind {
        fork(driver, &mut beginning, &scanned, reason)?
    } else {
        tracing::info!(reason, "the state of the source is taken anew");
        Record::Difference
    };
    let Beginning { mut mark, mut table, state, spooled, stored, .. } = beginning;
    if matches!(record, Record::Difference) {
        let at =
            mark.tx.filter(|_| table.is_none() && state.is_some()).map(|tx| Position::new(mark.timeline, tx));
        if let Some(at) = at {
            let rebuilt = begin::rebuilt_table(&driver.repository, &driver.options, mark.database, at);
            table = driver.runtime.block_on(rebuilt);
        }
        if table.as_ref().is_none_or(|table| table.page_size() != scanned.page_size()) {
            record = Record::Image;
        }
    }
    let table = match record {
        Record::Nothing | Record::Image => scanned,
        Record::Difference => table.ok_or_else(no_table)?,
    };
    mark.resume = source.resume();
    (mark.page_size, mark.image_pages) = (table.page_size(), table.pages());
    Ok(Found { mark, table, record, image: Some(image), spooled, stored })
}

/// The source is behind the repository: a new timeline begins where it really is.
fn fork(
    driver: &Driver,
    beginning: &mut Beginning,
    scanned: &PageTable,
    reason: &str,
) -> Result<Record, ProtectError> {
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
    Ok(if exact { Record::Nothing } else { Record::Difference })
}

/// Takes no transaction: while the source's state is looked up anew, the image is what counts.
struct Ignore;

impl Sink for Ignore {
    type Error = std::convert::Infallible;
    fn page(&mut self, _: PageNo, _: &[u8], _: PreviousPage<'_>) -> Result<(), Self::Error> {
        Ok(())
    }
    fn commit(&mut self, _: Commit) -> Result<(), Self::Error> {
        Ok(())
    }
    fn unwatched(&mut self, _: Timestamp) -> Result<(), Self::Error> {
        Ok(())
    }
    fn watched(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
    fn rollback(&mut self) {}
    fn secure(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// The page table of an image. Reading is the whole cost: 0.1-0.3 s per GiB from the page cache.
fn scan(image: &mut dyn Image) -> std::io::Result<PageTable> {
    let page_size = image.page_size();
    let mut hashes = Vec::with_capacity(image.page_count() as usize);
    let mut buffer = vec![0; page_size.bytes()];
    for page in (1..=image.page_count()).filter_map(PageNo::new) {
        let stored = image.read(page, &mut buffer)?;
        hashes.push(stored.map_or(0, |()| PageHash::of(page, &buffer).get()));
    }
    Ok(PageTable::from_hashes(page_size, begin::never_stored(page_size), hashes))
}

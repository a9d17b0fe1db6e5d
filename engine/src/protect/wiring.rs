//! Puts together what lies between the source and the store.

use crate::history::Point;
use crate::ids::{Position, TxId};
use crate::protect::base;
use crate::protect::begin::Beginning;
use crate::protect::driver::Driver;
use crate::protect::error::ProtectError;
use crate::protect::held::CHECK_EVERY;
use crate::protect::journal::{Journal, Mark};
use crate::protect::outbox::{Outbox, OutboxLimits, OutboxQueue, Part};
use crate::protect::recorder::Recorder;
use crate::protect::ship::Shipper;
use crate::protect::spool::Spool;
use crate::protect::table::PageTable;
use crate::time::Timestamp;

/// Sends what the spool holds of a timeline that is left on its way, and waits until it is stored.
pub(super) fn ship_spool(driver: &Driver, beginning: Beginning) -> Result<(), ProtectError> {
    let Beginning { mark, spooled, stored, .. } = beginning;
    tracing::info!(parts = spooled.len(), timeline = %mark.timeline, "storing what the spool holds before a new timeline");
    let (_, queue, shipper) = shipping(driver, &mark, spooled, stored)?;
    queue.close();
    let shipping = driver.runtime.spawn(shipper.run());
    while !shipping.is_finished() {
        if let Err(stopped) = driver.go_on() {
            shipping.abort();
            return Err(stopped);
        }
        std::thread::sleep(CHECK_EVERY);
    }
    Ok(())
}

/// Makes everything between the source and the store, and sends what the spool held on its way.
pub(super) fn set_up(
    driver: &Driver,
    (mark, table): (Mark, PageTable),
    journal: Option<&(Mark, PageTable)>,
    spooled: Vec<Part>,
    stored: Option<(TxId, Timestamp)>,
    watched_until: Timestamp,
) -> Result<(Recorder, OutboxQueue, tokio::task::JoinHandle<()>), ProtectError> {
    let options = &driver.options;
    let state = |source| ProtectError::State { folder: options.state.clone(), source };
    base::sweep(&options.state).map_err(state)?;
    let (outbox, queue, shipper) = shipping(driver, &mark, spooled, stored)?;
    let (known, known_table) = journal.map_or((&mark, &table), |(mark, table)| (mark, table));
    let journal = Journal::start(&options.state, known, known_table).map_err(state)?;
    let recorder = Recorder::new(mark, table, journal, outbox, driver.board.clone(), watched_until);
    Ok((recorder, queue, driver.runtime.spawn(shipper.run())))
}

/// The way to the store from `mark` on, with what the spool held of its timeline on it.
fn shipping(
    driver: &Driver,
    mark: &Mark,
    spooled: Vec<Part>,
    stored: Option<(TxId, Timestamp)>,
) -> Result<(Outbox, OutboxQueue, Shipper), ProtectError> {
    let options = &driver.options;
    let state = |source| ProtectError::State { folder: options.state.clone(), source };
    let spool = Spool::open(&options.state, mark.timeline).map_err(state)?;
    let queue = OutboxQueue::new(driver.board.clone());
    let limits = OutboxLimits { memory: options.memory_queue_bytes, spool: options.spool_bytes };
    let mut outbox = Outbox::new(queue.clone(), spool, options.state.clone(), limits);
    spooled.into_iter().for_each(|part| outbox.push(part));
    outbox.ship();
    let shipper = Shipper {
        repository: driver.repository.clone(),
        database: mark.database,
        timeline: mark.timeline,
        queue: queue.clone(),
        board: driver.board.clone(),
        spool: outbox.spool().clone(),
    };
    let point = |tx, time| Point { position: Position::new(mark.timeline, tx), time };
    driver.board.resumed(mark.tx.map(|tx| point(tx, mark.time)), stored.map(|(tx, time)| point(tx, time)));
    Ok((outbox, queue, shipper))
}

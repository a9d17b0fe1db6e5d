//! Puts together what lies between the source and the store.

use std::sync::Arc;

use tracing::Instrument;

use crate::history::Point;
use crate::ids::{Position, TxId};
use crate::protect::base;
use crate::protect::begin::Beginning;
use crate::protect::driver::Driver;
use crate::protect::error::ProtectError;
use crate::protect::journal::{Journal, Mark};
use crate::protect::outbox::{Outbox, OutboxLimits, OutboxQueue, Part};
use crate::protect::recorder::Recorder;
use crate::protect::rival::RivalWatch;
use crate::protect::ship::Shipper;
use crate::protect::spool::Spool;
use crate::protect::table::PageTable;
use crate::time::Timestamp;

/// Sends what the spool holds of a timeline that is left on its way, and waits until it is stored.
pub(super) fn ship_spool(driver: &Driver, beginning: Beginning) -> Result<(), ProtectError> {
    let Beginning { mark, spooled, stored, .. } = beginning;
    driver.wait_for(store_spool(driver, &mark, spooled, stored), || Ok(()))?
}

/// The same, for who looks after the source meanwhile. There is a base.
pub(super) async fn store_spool(
    driver: &Driver,
    mark: &Mark,
    spooled: Vec<Part>,
    stored: Option<(TxId, Timestamp)>,
) -> Result<(), ProtectError> {
    tracing::info!(parts = spooled.len(), timeline = %mark.timeline, "storing what the spool holds before a new timeline");
    driver.board.base_ready();
    let (_, queue, shipper) = shipping(driver, mark, spooled, stored)?;
    queue.close();
    shipper.run().await;
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
    let state = &driver.options.state;
    let state_error = ProtectError::state(state);
    base::sweep(state).map_err(&state_error)?;
    let (outbox, queue, shipper) = shipping(driver, &mark, spooled, stored)?;
    let (known, known_table) = journal.map_or((&mark, &table), |(mark, table)| (mark, table));
    let journal = Journal::start(state, known, known_table).map_err(&state_error)?;
    driver.unused_claim.take();
    outbox.spool().sweep_others(state).map_err(&state_error)?;
    let recorder = Recorder::new(mark, table, journal, outbox, driver.board.clone(), watched_until);
    Ok((recorder, queue, driver.runtime.spawn(shipper.run().in_current_span())))
}

/// The way to the store from `mark` on, with what the spool held of its timeline on it.
fn shipping(
    driver: &Driver,
    mark: &Mark,
    spooled: Vec<Part>,
    stored: Option<(TxId, Timestamp)>,
) -> Result<(Outbox, OutboxQueue, Shipper), ProtectError> {
    let options = &driver.options;
    let spool = Spool::open(&options.state, mark.timeline).map_err(ProtectError::state(&options.state))?;
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
        watch: RivalWatch {
            rival: Arc::clone(&driver.rival),
            waker: driver.waker.clone(),
            silence: options.rival_silence,
            known: None,
            silent_since: None,
        },
    };
    let point = |tx, time| Point { position: Position::new(mark.timeline, tx), time };
    driver.board.resumed(mark.tx.map(|tx| point(tx, mark.time)), stored.map(|(tx, time)| point(tx, time)));
    Ok((outbox, queue, shipper))
}

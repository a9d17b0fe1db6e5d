//! The outbox: closed parts on their way to the store.
//!
//! The capture thread pushes parts and ships them in groups; a task of the runtime puts one group after another, each
//! as one segment, and reports them durable. Groups that wait for it grow together. Memory is bounded: past the limit
//! parts wait in the spool. The spool is bounded too: past its limit [`Outbox::secure`] refuses, and the source keeps
//! its log instead.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::disk;
use crate::ids::{TxId, TxRange};
use crate::protect::error::ProtectError;
use crate::protect::frames::{FrameBuffer, PartBody};
use crate::protect::spool::Spool;
use crate::protect::status::Board;
use crate::time::Timestamp;
use crate::transaction::TxFlags;

/// A segment is not grown past this by waiting parts. 64 MiB.
const SEGMENT_MAX: u64 = 64 << 20;

/// One closed part of the log.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) range: TxRange,
    pub(crate) from: Timestamp,
    pub(crate) to: Timestamp,
    pub(crate) flags: TxFlags,
    pub(crate) body: PartBody,
}

/// Parts that become one segment.
#[derive(Clone, Debug)]
pub(crate) struct Shipment {
    pub(crate) parts: Vec<Part>,
    pub(crate) range: TxRange,
}

impl Shipment {
    /// Whether both can be one segment: a flagged transaction is the first of its segment, and what opens a window or
    /// begins with a base has a segment of its own.
    fn goes_on_with(&self, next: &Self) -> bool {
        let (Some(first), Some(then)) = (self.parts.first(), next.parts.first()) else { return false };
        !first.stands_alone() && !then.flags.any() && self.bytes() + next.bytes() <= SEGMENT_MAX
    }

    fn append(&mut self, next: Self) {
        self.range = TxRange::new(self.range.first(), next.range.last()).unwrap_or(self.range);
        self.parts.extend(next.parts);
    }

    fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.body.len()).sum()
    }

    fn memory_bytes(&self) -> u64 {
        self.parts.iter().map(Part::memory_bytes).sum()
    }

    fn spooled_bytes(&self) -> u64 {
        self.bytes() - self.memory_bytes()
    }
}

impl Part {
    fn stands_alone(&self) -> bool {
        self.flags.opens_window() || self.flags.needs_base
    }

    fn memory_bytes(&self) -> u64 {
        if matches!(self.body, PartBody::Memory(_)) { self.body.len() } else { 0 }
    }
}

#[derive(Default)]
struct Queue {
    shipments: VecDeque<Shipment>,
    /// Whether the front is being put.
    taken: bool,
    closed: bool,
}

impl Queue {
    fn push(&mut self, shipment: Shipment) {
        let fixed = usize::from(self.taken);
        let last = if self.shipments.len() > fixed { self.shipments.back_mut() } else { None };
        match last.filter(|last| last.goes_on_with(&shipment)) {
            Some(last) => last.append(shipment),
            None => self.shipments.push_back(shipment),
        }
    }
}

/// What the capture thread and the shipping task share.
#[derive(Clone)]
pub(crate) struct OutboxQueue {
    queue: Arc<Mutex<Queue>>,
    arrived: Arc<Notify>,
    board: Board,
}

impl OutboxQueue {
    pub(crate) fn new(board: Board) -> Self {
        Self { queue: Arc::default(), arrived: Arc::default(), board }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn push(&self, shipment: Shipment) {
        self.lock().push(shipment);
        self.publish();
        self.arrived.notify_one();
    }

    /// The next group to put; it stays in the queue until [`OutboxQueue::done`].
    pub(crate) fn take(&self) -> Option<Shipment> {
        let mut queue = self.lock();
        let next = queue.shipments.front().filter(|_| !queue.taken).cloned()?;
        queue.taken = true;
        Some(next)
    }

    /// The front group is durable.
    pub(crate) fn done(&self) {
        let mut queue = self.lock();
        queue.shipments.pop_front();
        queue.taken = false;
        drop(queue);
        self.publish();
    }

    /// The parts that wait in memory, the oldest first.
    fn in_memory(&self) -> Vec<(TxRange, Bytes)> {
        let queue = self.lock();
        let parts = queue.shipments.iter().flat_map(|shipment| &shipment.parts);
        let in_memory = parts.filter_map(|part| match &part.body {
            PartBody::Memory(bytes) => Some((part.range, bytes.clone())),
            PartBody::File { .. } => None,
        });
        in_memory.collect()
    }

    /// A part lies in the spool from now on. It was written without the lock, which those who ship take on threads that
    /// serve others, too; `false` when it waits no longer.
    fn spooled(&self, range: TxRange, path: PathBuf) -> bool {
        let mut queue = self.lock();
        let mut parts = queue.shipments.iter_mut().flat_map(|shipment| &mut shipment.parts);
        let Some(part) = parts.find(|part| part.range == range) else { return false };
        part.body = PartBody::File { path, len: part.body.len() };
        drop(queue);
        self.publish();
        true
    }

    /// Waits until something was pushed, or the queue was closed.
    pub(crate) async fn arrival(&self) {
        self.arrived.notified().await;
    }

    /// Nothing more will be pushed.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_one();
    }

    /// Whether everything that will ever be pushed is durable.
    pub(crate) fn is_finished(&self) -> bool {
        let queue = self.lock();
        queue.closed && queue.shipments.is_empty()
    }

    /// Bytes waiting, in memory and in the spool.
    fn waiting(&self) -> (u64, u64) {
        let queue = self.lock();
        let sum = |of: fn(&Shipment) -> u64| queue.shipments.iter().map(of).sum();
        (sum(Shipment::memory_bytes), sum(Shipment::spooled_bytes))
    }

    /// Bytes of the largest part that waits.
    fn largest(&self) -> Option<u64> {
        let queue = self.lock();
        queue.shipments.iter().flat_map(|shipment| &shipment.parts).map(|part| part.body.len()).max()
    }

    fn publish(&self) {
        let (queue_bytes, spool_bytes) = self.waiting();
        self.board.update(|status| (status.queue_bytes, status.spool_bytes) = (queue_bytes, spool_bytes));
    }
}

/// Limits of what waits for the store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutboxLimits {
    /// Bytes in memory.
    pub(crate) memory: u64,
    /// Bytes in the spool.
    pub(crate) spool: u64,
}

/// The capture thread's end.
pub(crate) struct Outbox {
    queue: OutboxQueue,
    unshipped: Vec<Part>,
    spool: Spool,
    state: PathBuf,
    limits: OutboxLimits,
}

impl Outbox {
    pub(crate) fn new(queue: OutboxQueue, spool: Spool, state: PathBuf, limits: OutboxLimits) -> Self {
        Self { queue, unshipped: Vec::new(), spool, state, limits }
    }

    pub(crate) fn spool(&self) -> &Spool {
        &self.spool
    }

    /// A buffer for the frames of the part that begins with `first`.
    pub(crate) fn frame_buffer(&self, first: TxId) -> FrameBuffer {
        FrameBuffer::new(self.spool.scratch(&format!("frames-{first}")))
    }

    pub(crate) fn state_error(&self, source: io::Error) -> ProtectError {
        ProtectError::State { folder: self.state.clone(), source }
    }

    pub(crate) fn has_unshipped_parts(&self) -> bool {
        !self.unshipped.is_empty()
    }

    pub(crate) fn unshipped_bytes(&self) -> u64 {
        self.unshipped.iter().map(|part| part.body.len()).sum()
    }

    /// Takes a closed part; it waits for [`Outbox::ship`].
    ///
    /// A flagged transaction is the first of its segment, so whatever came before goes on its way.
    pub(crate) fn push(&mut self, part: Part) {
        if part.flags.any() || self.unshipped_bytes() + part.body.len() > SEGMENT_MAX {
            self.ship();
        }
        let alone = part.stands_alone();
        self.unshipped.push(part);
        if alone {
            self.ship();
        }
    }

    /// Sends the waiting parts on their way as one segment. `false` when there are none.
    pub(crate) fn ship(&mut self) -> bool {
        let parts = std::mem::take(&mut self.unshipped);
        let range = parts
            .first()
            .zip(parts.last())
            .and_then(|(first, last)| TxRange::new(first.range.first(), last.range.last()));
        let Some(range) = range else { return false };
        self.queue.push(Shipment { parts, range });
        if self.queue.waiting().0 > self.limits.memory
            && let Err(error) = self.spool_all()
        {
            tracing::warn!(%error, "keep waiting parts in memory past its limit");
        }
        true
    }

    /// Makes sure that a kill of this process loses no closed part: each is durable, or in the spool.
    ///
    /// The largest part does not count: a transaction larger than the spool is on the disk already, and refusing it
    /// would make nothing smaller. And what fits into memory is always taken: the log would grow by more.
    ///
    /// # Errors
    /// When the spool is full or cannot be written.
    pub(crate) fn secure(&mut self) -> Result<(), ProtectError> {
        let (memory, spooled) = self.queue.waiting();
        let unshipped = self.unshipped.iter().map(Part::memory_bytes).sum::<u64>();
        let (new, bytes) = (memory + unshipped, memory + spooled + self.unshipped_bytes());
        let largest = self.queue.largest().max(self.unshipped.iter().map(|part| part.body.len()).max());
        let counted = bytes - largest.unwrap_or(0);
        let is_much = counted > self.limits.memory && new > 0;
        if counted > self.limits.spool || is_much && !disk::has_room(self.spool.folder(), new) {
            return Err(ProtectError::SpoolFull { bytes });
        }
        match self.spool_all() {
            Err(ProtectError::State { source, .. }) if disk::is_full(&source) => {
                Err(ProtectError::SpoolFull { bytes })
            }
            other => other,
        }
    }

    /// Whether there is room again, with some to spare.
    pub(crate) fn has_room(&self) -> bool {
        let (memory, spooled) = self.queue.waiting();
        memory + spooled < self.limits.spool / 2
    }

    /// Writes every closed part that is not durable to the spool; the oldest first, so that a full disk leaves no hole.
    ///
    /// # Errors
    /// When the spool cannot be written.
    pub(crate) fn spool_all(&mut self) -> Result<(), ProtectError> {
        let failed = ProtectError::state(&self.state);
        for (range, bytes) in self.queue.in_memory() {
            let path = self.spool.keep(range, &bytes).map_err(&failed)?;
            if !self.queue.spooled(range, path) {
                // It became durable meanwhile.
                self.spool.remove(range);
            }
        }
        for part in &mut self.unshipped {
            if let PartBody::Memory(bytes) = &part.body {
                let path = self.spool.keep(part.range, bytes).map_err(&failed)?;
                part.body = PartBody::File { path, len: part.body.len() };
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TimelineId;

    fn outbox(state: &std::path::Path, limits: OutboxLimits) -> Outbox {
        let board = Board::new("app", PathBuf::new());
        let spool = Spool::open(state, TimelineId::FIRST).unwrap();
        Outbox::new(OutboxQueue::new(board), spool, state.to_owned(), limits)
    }

    fn part(tx: u64, bytes: usize) -> Part {
        let tx = TxId::new(tx).unwrap();
        Part {
            range: TxRange::new(tx, tx).unwrap(),
            from: Timestamp::from_micros(0),
            to: Timestamp::from_micros(0),
            flags: TxFlags::NONE,
            body: PartBody::Memory(vec![1; bytes].into()),
        }
    }

    #[test]
    fn parts_of_one_interval_travel_together_and_past_the_memory_limit_in_the_spool() {
        let state = tempfile::tempdir().unwrap();
        let mut outbox = outbox(state.path(), OutboxLimits { memory: 100, spool: 1000 });
        outbox.push(part(1, 30));
        outbox.push(part(2, 30));
        assert!(outbox.ship());
        assert!(!outbox.ship());
        assert_eq!(outbox.queue.waiting(), (60, 0));
        assert_eq!(outbox.queue.take().unwrap().range.count(), 2);
        outbox.push(part(3, 50));
        outbox.ship();
        assert_eq!(outbox.queue.waiting(), (0, 110));
        assert!(outbox.queue.take().is_none(), "one at a time");
        outbox.queue.done();
        assert_eq!(outbox.queue.take().unwrap().range.first().get(), 3);
    }

    #[test]
    fn groups_that_wait_grow_together_but_for_what_stands_alone() {
        let state = tempfile::tempdir().unwrap();
        let mut outbox = outbox(state.path(), OutboxLimits { memory: 1000, spool: 1000 });
        let mut ship = |part: Part| {
            outbox.push(part);
            outbox.ship();
            outbox.queue.clone()
        };
        let queue = ship(part(1, 10));
        assert_eq!(queue.take().unwrap().range.count(), 1, "nothing joins what is under way");
        ship(part(2, 10));
        ship(part(3, 10));
        ship(Part { flags: TxFlags { ends_gap: true, ..TxFlags::NONE }, ..part(4, 10) });
        ship(part(5, 10));
        ship(Part { flags: TxFlags { held_clock: true, ..TxFlags::NONE }, ..part(6, 10) });
        ship(part(7, 10));
        let firsts = std::iter::from_fn(|| {
            queue.done();
            queue.take().map(|shipment| (shipment.range.first().get(), shipment.range.count()))
        });
        assert_eq!(firsts.collect::<Vec<_>>(), [(2, 2), (4, 1), (5, 1), (6, 2)]);
    }

    #[test]
    fn a_disk_that_is_full_leaves_no_hole_in_the_spool() {
        let state = tempfile::tempdir().unwrap();
        let mut outbox = outbox(state.path(), OutboxLimits { memory: 1000, spool: 1000 });
        outbox.push(part(1, 10));
        outbox.ship();
        outbox.push(part(2, 10));
        // The older of the two cannot be written.
        let older = outbox.spool.scratch(&TxId::FIRST.to_string());
        std::fs::create_dir(&older).unwrap();
        assert!(outbox.spool_all().is_err());
        std::fs::remove_dir(&older).unwrap();
        assert_eq!(outbox.spool.parts().unwrap(), []);
        outbox.spool_all().unwrap();
        assert_eq!(outbox.spool.parts().unwrap().len(), 2);
    }

    #[test]
    fn a_part_that_became_durable_while_it_was_spooled_waits_no_longer() {
        let state = tempfile::tempdir().unwrap();
        let mut outbox = outbox(state.path(), OutboxLimits { memory: 1000, spool: 1000 });
        outbox.push(part(1, 10));
        outbox.ship();
        let [(range, _)] = outbox.queue.in_memory()[..] else { panic!("one part") };
        outbox.queue.take().unwrap();
        outbox.queue.done();
        assert!(!outbox.queue.spooled(range, PathBuf::new()));
        assert_eq!(outbox.queue.waiting(), (0, 0));
    }

    #[test]
    fn a_full_spool_refuses_to_let_the_source_go() {
        let state = tempfile::tempdir().unwrap();
        let mut outbox = outbox(state.path(), OutboxLimits { memory: 100, spool: 100 });
        outbox.push(part(1, 90));
        outbox.secure().unwrap();
        outbox.push(part(2, 90));
        outbox.secure().unwrap();
        outbox.push(part(3, 20));
        assert!(matches!(outbox.secure(), Err(ProtectError::SpoolFull { bytes: 200 })));
        assert!(outbox.has_unshipped_parts());
        assert_eq!(outbox.spool.parts().unwrap().len(), 2, "what is refused is not written");
    }

    #[test]
    fn a_transaction_larger_than_the_spool_does_not_fill_it() {
        let state = tempfile::tempdir().unwrap();
        let mut outbox = outbox(state.path(), OutboxLimits { memory: 100, spool: 100 });
        outbox.push(part(1, 5_000));
        outbox.secure().unwrap();
        outbox.ship();
        outbox.push(part(2, 50));
        outbox.secure().unwrap();
        outbox.push(part(3, 60));
        assert!(outbox.secure().is_err());
    }
}

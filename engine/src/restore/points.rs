//! The restore points of an interval, one after another.

use futures::StreamExt;
use serde::Serialize;

use crate::history::{History, SegmentEntry};
use crate::ids::Position;
use crate::restore::{Objects, ReadError};
use crate::time::Timestamp;

/// Segments looked into at a time.
const AT_A_TIME: usize = 16;

/// One restore point, as it is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RestorePoint {
    /// Its exact name.
    pub position: Position,
    /// When it was committed.
    pub time: Timestamp,
    /// Pages it changed.
    pub pages: u32,
}

/// Gives every restore point of the main line from `from` through `to` to `each`, in order, until it says `false`.
///
/// # Errors
/// [`ReadError`] when a segment cannot be read.
pub async fn points<O: Objects>(
    objects: &O,
    history: &History,
    from: Timestamp,
    to: Timestamp,
    mut each: impl FnMut(RestorePoint) -> bool,
) -> Result<(), ReadError> {
    for active in history.active() {
        let (from, to) = (from.max(active.from), to.min(active.last_moment()));
        let Some(line) = history.line(active.timeline).filter(|_| from <= to) else { continue };
        // Collected, so that the stream holds no closure over borrowed pieces and callers may send this future.
        let mut pieces = Vec::new();
        for piece in line.pieces.iter().filter(|piece| piece.key.to >= from && piece.begins() <= to) {
            let Some(first) = piece.rebuilds_from else { continue };
            pieces.push((SegmentEntry { key: piece.key, size: piece.size }, first.max(piece.first)));
        }
        let read = |(entry, first)| async move {
            objects.transactions(entry).await.map(|transactions| (first, transactions))
        };
        let mut reads = futures::stream::iter(pieces).map(read).buffered(AT_A_TIME);
        while let Some(read) = reads.next().await {
            let (first, transactions) = read?;
            let wanted = transactions.iter().filter(|tx| tx.tx >= first && from <= tx.time && tx.time <= to);
            for transaction in wanted {
                let position = Position::new(active.timeline, transaction.tx);
                if !each(RestorePoint { position, time: transaction.time, pages: transaction.pages }) {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

//! Figures of the prototype by which the format was chosen, to compare with: its encoding "prefix frame 64, zstd 1,
//! hash table of 2^17" at 100 transactions a segment, on streams of the same kinds (not the same bytes), one core of a
//! like machine.

use crate::workload::Workload;

/// What the prototype came to for one workload.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prototype {
    /// Stored bytes, in percent of SQLite's log.
    pub percent: f64,
    /// Stored bytes of a transaction.
    pub bytes_per_tx: f64,
    /// MB of log a second, encoded. Its frames were not decoded again for a check, as ours are.
    pub encode_mb_s: f64,
    /// MB of log a second, decoded and applied.
    pub replay_mb_s: f64,
}

/// The figures of a workload.
#[must_use]
pub const fn prototype(workload: Workload) -> Prototype {
    let (percent, bytes_per_tx, encode_mb_s, replay_mb_s) = match workload {
        Workload::Append => (1.64, 150.0, 1698.0, 7383.0),
        Workload::PointUpdate => (1.07, 50.0, 1376.0, 5310.0),
        Workload::Orders => (1.37, 736.0, 1381.0, 6119.0),
        Workload::Queue => (1.18, 173.0, 2043.0, 8532.0),
        Workload::Json => (1.28, 55.0, 1390.0, 5129.0),
        Workload::Bulk => (44.0, 7_344_929.0, 274.0, 852.0),
        Workload::FullText => (15.2, 8_657.0, 534.0, 2455.0),
        Workload::Blobs => (81.8, 50_867.0, 1189.0, 3011.0),
    };
    Prototype { percent, bytes_per_tx, encode_mb_s, replay_mb_s }
}

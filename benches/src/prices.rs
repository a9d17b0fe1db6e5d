//! What an object store charges: list prices of Amazon S3 Standard in us-east-1, in US dollars, as published in 2025.
//! Deletes and data sent to the store cost nothing.

/// A million PUT, COPY, POST or LIST requests.
pub const MILLION_WRITES: f64 = 5.0;
/// A million GET or HEAD requests.
pub const MILLION_READS: f64 = 0.4;
/// A gigabyte (10^9 bytes) kept for a month.
pub const GIGABYTE_MONTH: f64 = 0.023;
/// Hours of a month.
pub const HOURS: f64 = 730.0;

/// What is asked of a store in an hour, and what is kept in it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// PUT, POST and LIST requests an hour.
    pub writes_h: f64,
    /// GET and HEAD requests an hour.
    pub reads_h: f64,
    /// Bytes kept, on average.
    pub kept: f64,
}

impl Load {
    /// Dollars a month.
    #[must_use]
    pub fn a_month(self) -> f64 {
        let requests = self.writes_h * MILLION_WRITES + self.reads_h * MILLION_READS;
        requests * HOURS / 1e6 + self.kept / 1e9 * GIGABYTE_MONTH
    }
}

/// One database under Everwhen, at an even pace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Everwhen {
    /// Transactions a second; 0 is idle.
    pub per_second: f64,
    /// Seconds from segment to segment under load.
    pub flush_s: f64,
    /// Stored bytes of a transaction.
    pub bytes_per_tx: f64,
    /// Stored bytes of a full copy. Two are kept.
    pub base_bytes: f64,
    /// Days of history.
    pub days: f64,
    /// Databases that share a daemon, and so its covered-through marks.
    pub databases: f64,
}

impl Everwhen {
    /// A daemon puts one mark in ten minutes, for all of its databases together.
    pub const MARKS_H: f64 = 6.0;

    /// While it ships, it looks every 5 s (a HEAD) whether another host has claimed the database.
    pub const CLAIM_LOOKS_H: f64 = 720.0;

    /// What it asks of the store: a segment an interval, or one a transaction when they are rarer; marks; looks at the
    /// claim.
    #[must_use]
    pub fn load(self) -> Load {
        let segments_h = 3600.0 * self.per_second.min(1.0 / self.flush_s);
        let log = self.per_second * self.bytes_per_tx * self.days * 86_400.0;
        Load {
            writes_h: segments_h + Self::MARKS_H / self.databases,
            reads_h: segments_h.min(Self::CLAIM_LOOKS_H),
            kept: log + 2.0 * self.base_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: Everwhen = Everwhen {
        per_second: 100.0,
        flush_s: 1.0,
        bytes_per_tx: 50.0,
        base_bytes: 1e9,
        days: 30.0,
        databases: 1.0,
    };

    #[test]
    fn a_busy_database_pays_for_its_segments() {
        let load = BUSY.load();
        assert!((load.writes_h - 3606.0).abs() < 1e-9);
        assert!((load.kept - (100.0 * 50.0 * 2_592_000.0 + 2e9)).abs() < 1.0);
        // 3606 * 730 * 5 / 1e6 + 720 * 730 * 0.4 / 1e6 + 14.96 GB * 0.023
        assert!((load.a_month() - (13.1619 + 0.21024 + 0.34408)).abs() < 1e-3, "{}", load.a_month());
    }

    #[test]
    fn an_idle_fleet_pays_for_the_marks_of_one_daemon() {
        let idle = Everwhen { per_second: 0.0, base_bytes: 0.0, databases: 1000.0, ..BUSY };
        assert!((idle.load().a_month() * 1000.0 - 6.0 * 730.0 * 5.0 / 1e6).abs() < 1e-9);
    }
}

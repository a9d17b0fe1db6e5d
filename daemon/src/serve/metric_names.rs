//! The names of all metrics: the contract with dashboards and alerts. Units are suffixes. Names are added, never
//! changed.

/// How a value behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Goes up and down.
    Gauge,
    /// Only goes up, from 0 at the start of the process.
    Counter,
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Metric {
    /// Its name.
    pub(crate) name: &'static str,
    /// How it behaves.
    pub(crate) behaviour: Behaviour,
    /// What it says.
    pub(crate) help: &'static str,
}

const fn gauge(name: &'static str, help: &'static str) -> Metric {
    Metric { name, behaviour: Behaviour::Gauge, help }
}

const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric { name, behaviour: Behaviour::Counter, help }
}

/// The headline: alert on this one.
pub(crate) const UNPROTECTED_SECONDS: Metric = gauge(
    "everwhen_unprotected_seconds",
    "Age of the oldest commit that is not yet durable in the repository; 0 when none is waiting.",
);
/// See its help.
pub(crate) const HEALTH: Metric = gauge(
    "everwhen_health",
    "1 for the present health of the database (ok, attention, failing), 0 for the others.",
);
/// See its help.
pub(crate) const DURABLE_TIME: Metric = gauge(
    "everwhen_durable_timestamp_seconds",
    "Time of the last commit that is durable, in seconds since 1970; absent before the first.",
);
/// See its help.
pub(crate) const TRANSACTIONS: Metric =
    counter("everwhen_transactions_total", "Commits captured since the daemon began.");
/// See its help.
pub(crate) const SEGMENTS: Metric =
    counter("everwhen_segments_total", "Segments put since the daemon began.");
/// See its help.
pub(crate) const STORED_BYTES: Metric =
    counter("everwhen_stored_bytes_total", "Bytes put since the daemon began, as stored.");
/// See its help.
pub(crate) const QUEUE_BYTES: Metric =
    gauge("everwhen_queue_bytes", "Bytes in memory that wait for the store.");
/// See its help.
pub(crate) const SPOOL_BYTES: Metric =
    gauge("everwhen_spool_bytes", "Bytes on local disk that wait for the store.");
/// See its help.
pub(crate) const DATABASES: Metric = gauge("everwhen_databases", "Databases that this daemon protects.");
/// See its help.
pub(crate) const RESIDENT_BYTES: Metric =
    gauge("process_resident_memory_bytes", "Resident memory of the daemon.");
/// See its help.
pub(crate) const CPU_SECONDS: Metric =
    counter("process_cpu_seconds_total", "CPU time of the daemon, user and system.");
/// See its help.
pub(crate) const START_TIME: Metric =
    gauge("process_start_time_seconds", "When the daemon began, in seconds since 1970.");
/// See its help.
pub(crate) const BUILD: Metric = gauge("everwhen_build_info", "1, with the version as a label.");

//! Named points at which the crash tests kill the process, as `kill -9` would.
//!
//! Only with the feature `failpoints`, and in a program that calls [`arm`]: cargo turns a feature on for all that it
//! builds together, so the feature alone would reach a program that people run. Then `EVERWHEN_FAILPOINT=name` kills at
//! the first passage of that point, `name:3` at the third. [`ALL`] is the list the crash tests walk through.

/// Every point there is, in the order in which a protected commit passes them.
pub const ALL: &[&str] = &[
    "timeline_before_claim",
    "timeline_after_claim",
    "part_closed",
    "journal_appended",
    "part_spooled",
    "segment_before_put",
    "segment_after_put",
    "spool_after_delete",
    "pack_after_put",
    "base_before_manifest",
    "base_after_manifest",
    "table_before_rename",
    "table_after_rename",
];

/// Between finding a state that the log does not explain and recording it.
pub const FOUND: &[&str] = &["found_not_recorded"];

/// Those that a restore passes.
pub const RESTORE: &[&str] = &["restore_before_publish"];

/// What the environment asked for when this program was armed.
#[cfg(feature = "failpoints")]
static ARMED: std::sync::OnceLock<String> = std::sync::OnceLock::new();

/// From now on this process dies where the environment asks for it. For the program of the crash tests.
#[cfg(feature = "failpoints")]
pub fn arm() {
    if let Ok(wanted) = std::env::var("EVERWHEN_FAILPOINT") {
        let _ = ARMED.set(wanted);
    }
}

/// Dies here when the program is armed and the environment asked for this point.
#[cfg(feature = "failpoints")]
pub fn hit(name: &'static str) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static PASSED: AtomicU32 = AtomicU32::new(0);
    debug_assert!(
        [ALL, FOUND, RESTORE].iter().any(|list| list.contains(&name)),
        "failpoint {name} is in no list"
    );
    let Some(wanted) = ARMED.get() else { return };
    let (point, count) =
        wanted.split_once(':').map_or((wanted.as_str(), 1), |(p, n)| (p, n.parse().unwrap_or(1)));
    if point == name && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == count {
        eprintln!("failpoint {name}: dying");
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
}

/// Nothing, in a program that people run.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn hit(_name: &'static str) {}

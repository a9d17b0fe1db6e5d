//! What does a restart after kill -9 cost on a large database: time to catch up, and bytes uploaded?

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::json;

use crate::Outcome;
use crate::daemon::{Daemon, System, stored_in};
use crate::database::{connect, rows_of, write};
use crate::measure::Sample;
use crate::report::{Answer, Table, bytes};
use crate::workload::{Steps, Workload, Writer};
use crate::world::World;

/// Kills each daemon, writes three rows, starts it again, and looks at the store.
pub(crate) fn ask(world: &World) -> Outcome<Answer> {
    let mut answer = Answer::new("restart", "Restart");
    let title =
        format!("Killed with -9, three rows written, started again: a database of {} MiB", world.large_mib());
    let mut table = Table::new(&title, &["daemon", "seconds until the rows are stored", "bytes uploaded"]);
    for system in System::daemons(world) {
        let path = world.fresh("restart")?.join("app.db");
        world.accounts(world.large_mib(), &path)?;
        let mut connection = connect(&path)?;
        let mut writer = Writer::new(Workload::PointUpdate, rows_of(world.large_mib()), 3);
        let mut daemon = Daemon::start_and_settle(world, system, &path)?;
        write(&mut connection, &mut writer, Some(100.0), |done, _| done >= 100)?;
        let (mut seconds, mut uploaded) = (Sample::default(), Sample::default());
        for _ in 0..world.scale.pick(1, 2, 5) {
            let again = kill_and_restart(world, system, &path, daemon, &mut connection, &mut writer)?;
            seconds.push(again.seconds);
            uploaded.push(again.uploaded);
            daemon = again.daemon;
        }
        table.row([
            system.name().to_owned(),
            seconds.with_spread(|value| format!("{value:.2}")),
            uploaded.with_spread(|value| bytes(value as u64)),
        ]);
        answer.raw(json!({
            "daemon": system.name(), "seconds": seconds.values(), "uploaded_bytes": uploaded.values(),
        }));
    }
    answer.table(table);
    answer.note("Seconds count from the start of the process until a new object of the log is in the store. Compaction that falls into the time is in litestream's bytes.");
    world.discard("restart")?;
    Ok(answer)
}

/// A daemon that was started again.
pub(super) struct Again {
    pub(super) daemon: Daemon,
    /// From the start of its process until a new object of the log is stored.
    pub(super) seconds: f64,
    /// Bytes more in the store, once it is quiet again.
    pub(super) uploaded: f64,
}

/// Kills a daemon with -9 once it is quiet, writes three rows, and starts it again.
pub(super) fn kill_and_restart(
    world: &World,
    system: System,
    path: &Path,
    daemon: Daemon,
    connection: &mut Connection,
    writer: &mut impl Steps,
) -> Outcome<Again> {
    let quiet = Duration::from_millis(world.scale.pick(300, 1500, 2500));
    daemon.wait_until_quiet(quiet)?;
    // Dropping it is kill -9.
    drop(daemon);
    let before = stored_in(&path.with_extension("store"));
    write(connection, writer, None, |done, _| done >= 3)?;
    let began = Instant::now();
    let daemon = Daemon::start(world, system, path)?;
    let is_log = |name: &String| name.contains("/log/") || name.ends_with(".ltx");
    daemon.wait_for(|now| {
        now.names.iter().filter(|name| is_log(name)).any(|name| !before.names.contains(name))
    })?;
    let seconds = began.elapsed().as_secs_f64();
    let after = daemon.wait_until_quiet(quiet)?;
    Ok(Again { daemon, seconds, uploaded: after.bytes.saturating_sub(before.bytes) as f64 })
}

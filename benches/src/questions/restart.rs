//! What does a restart after kill -9 cost on a large database: time to catch up, and bytes uploaded?

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use rusqlite::Connection;
use serde_json::json;

use crate::Outcome;
use crate::daemon::{Daemon, System, stored_in};
use crate::database::{connect, prepared, rows_of, write};
use crate::measure::{Sample, timed, turns};
use crate::report::{Answer, Table, bytes, millis_of};
use crate::workload::{Steps, Workload, Writer};
use crate::world::World;

/// Kills each daemon, writes three rows, starts it again, and looks at the store.
pub(crate) fn ask(world: &World) -> Outcome<Answer> {
    let mut answer = Answer::new("restart", "Restart");
    let title =
        format!("Killed with -9, three rows written, started again: a database of {} MiB", world.large_mib());
    let mut table = Table::new(&title, &["daemon", "seconds until the rows are stored", "bytes uploaded"]);
    for system in System::daemons(world) {
        world.discard("restart")?;
        world.rest();
        let path = world.fresh("restart")?.join("app.db");
        world.accounts(world.large_mib(), &path)?;
        let mut connection = connect(&path)?;
        let mut writer = Writer::new(Workload::PointUpdate, rows_of(world.large_mib()), 3);
        let mut daemon = Daemon::start_and_compact(world, system, &path, &mut connection, &mut writer)?;
        write(&mut connection, &mut writer, Some(100.0), |done, _| done >= 100)?;
        let (mut seconds, mut uploaded) = (Sample::default(), Sample::default());
        for _ in 0..world.rounds() {
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
    starts(world, &mut answer)?;
    answer.note("Seconds count from the start of the process until a new object of the log is in the store. One daemon after the other; killing begins when the first full copy is compacted. What litestream compacts every 30 s and falls into the time is in its bytes.");
    world.discard("restart")?;
    Ok(answer)
}

/// What every call of a program pays: it says its version, then what is in the small repository of a daemon.
fn starts(world: &World, answer: &mut Answer) -> Outcome<()> {
    let folder = world.fresh("restart")?;
    let mut programs: Vec<(&str, &Path, Vec<String>)> = Vec::new();
    for system in System::daemons(world) {
        let path = folder.join(format!("{}.db", system.name()));
        let (connection, _) = prepared(&path, Workload::PointUpdate, 500)?;
        let daemon = Daemon::start_and_settle(world, system, &path)?;
        let store = daemon.store.display().to_string();
        daemon.stop()?;
        drop(connection);
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        match (system, &world.litestream) {
            (System::Litestream, Some(program)) => {
                let url = format!("file://{}", std::path::absolute(&store)?.display());
                programs.push(("litestream version", program, words(&["version"])));
                programs.push(("litestream ltx", program, words(&["ltx", &url])));
            }
            _ => {
                programs.push(("everwhen --version", &world.everwhen, words(&["--version"])));
                programs.push(("everwhen status", &world.everwhen, words(&["status", "--store", &store])));
            }
        }
    }
    let mut took = vec![Sample::default(); programs.len()];
    for round in 0..world.scale.pick(2, 11, 21) {
        for index in turns(programs.len(), round) {
            let (name, program, arguments) = &programs[index];
            let mut command = Command::new(program);
            let (seconds, output) = timed(|| command.args(arguments).output())?;
            if !output.status.success() {
                return Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr)).into());
            }
            took[index].push(seconds * 1e3);
        }
    }
    let mut table =
        Table::new("A program's whole life, on a repository of one small database", &["program", "time"]);
    for ((name, _, _), took) in programs.iter().zip(&took) {
        table.row([(*name).to_owned(), millis_of(took)]);
        answer.raw(json!({ "program": name, "ms": took.values() }));
    }
    answer.table(table);
    Ok(())
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
    daemon.settle(world)?;
    // Dropping it is kill -9.
    drop(daemon);
    let before = stored_in(&path.with_extension("store"));
    write(connection, writer, None, |done, _| done >= 3)?;
    let began = Instant::now();
    let daemon = Daemon::start(world, system, path)?;
    daemon.wait_for(|now| now.names.difference(&before.names).any(|name| system.is_log(name)))?;
    let seconds = began.elapsed().as_secs_f64();
    let after = daemon.settle(world)?;
    Ok(Again { daemon, seconds, uploaded: after.bytes.saturating_sub(before.bytes) as f64 })
}

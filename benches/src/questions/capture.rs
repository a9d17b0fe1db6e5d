//! How fast does a daemon work off a log, and what processor time does a GB of it take?

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use everwhen_engine::ids::Position;
use serde_json::{Value, json};

use crate::Outcome;
use crate::daemon::{Daemon, System, stored_in};
use crate::database::{prepared, write};
use crate::measure::Sample;
use crate::report::{Answer, Table};
use crate::workload::Workload;
use crate::world::World;

/// When nothing was stored for so long, all is: litestream looks once a second.
const QUIET: Duration = Duration::from_millis(2500);

/// Lets all workloads write while the daemon is stopped, and then lets it go on.
pub(crate) fn ask(world: &World) -> Outcome<Answer> {
    let mut answer = Answer::new("capture", "Capturing a log");
    let mut table = Table::new(
        "A log written while the daemon was stopped (SIGSTOP): from SIGCONT until all of it is stored, median (range)",
        &["workload", "log", "daemon", "MB/s of log", "transactions/s", "processor seconds a GB of log"],
    );
    let workloads = world.scale.pick(&Workload::ALL[..2], &Workload::ALL[..], &Workload::ALL[..]);
    for workload in workloads.iter().copied() {
        for system in System::daemons(world) {
            let found = measure(world, workload, system)?;
            let text =
                |sample: &Sample, digits: usize| sample.with_spread(|value| format!("{value:.digits$}"));
            table.row([
                workload.name().to_owned(),
                format!("{:.0} MB", found.log_mb),
                system.name().to_owned(),
                text(&found.mb_s, 0),
                text(&found.transactions_s, 0),
                text(&found.cpu_s_per_gb, 2),
            ]);
            answer.raw(json!({
                "workload": workload.name(), "daemon": system.name(), "log_mb": found.log_mb,
                "mb_s": found.mb_s.values(), "transactions_s": found.transactions_s.values(),
                "cpu_s_per_gb": found.cpu_s_per_gb.values(),
            }));
        }
    }
    world.discard("capture")?;
    answer.table(table);
    answer.note("Reading the log, checking it, hashing and encoding its pages, writing and syncing objects: everything a daemon does, on both cores if it can use them, with no writer beside it. That Everwhen then holds each transaction as a point of its own is checked. litestream puts the pages of all of them into one file, for one point, and compacts them every 30 s, which may fall into the time. Both times hold the waiting for the next flush, which counts most where the log is small; the processor seconds hold what a daemon does in the quiet seconds after.");
    Ok(answer)
}

#[derive(Default)]
struct Found {
    log_mb: f64,
    mb_s: Sample,
    transactions_s: Sample,
    cpu_s_per_gb: Sample,
}

fn measure(world: &World, workload: Workload, system: System) -> Outcome<Found> {
    let mut found = Found::default();
    for round in 0..world.long_rounds() {
        found.take(world, workload, system, round)?;
    }
    Ok(found)
}

impl Found {
    /// One round, with a database and a daemon of its own: litestream's pin keeps a log from being emptied.
    fn take(&mut self, world: &World, workload: Workload, system: System, round: u64) -> Outcome<()> {
        let shrink = world.scale.pick(100, 4, 1);
        let transactions = (workload.transactions() / shrink).max(2);
        world.discard("capture")?;
        world.rest();
        let path = world.fresh("capture")?.join("app.db");
        let (mut connection, mut writer) = prepared(&path, workload, (workload.rows() / shrink).max(50))?;
        // The log is to stay as it is written.
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        let daemon = Daemon::start_and_settle(world, system, &path)?;
        let before = position(world, &daemon, system)?;
        daemon.stand_still()?;
        write(&mut connection, &mut writer, None, |done, _| done >= transactions)?;
        self.log_mb = std::fs::metadata(path.with_extension("db-wal"))?.len() as f64 / 1e6;
        let processor = daemon.look()?.seconds;
        let seconds = seconds_to_store(&daemon)?;
        self.mb_s.push(self.log_mb / seconds);
        self.transactions_s.push(transactions as f64 / seconds);
        self.cpu_s_per_gb.push((daemon.look()?.seconds - processor) * 1e3 / self.log_mb);
        if let (Some(before), Some(after)) = (before, position(world, &daemon, system)?)
            && after.checked_sub(before) != Some(transactions)
        {
            let name = workload.name();
            return Err(format!(
                "{name}, round {round}: of {transactions} transactions after {before}, {after} is the last"
            )
            .into());
        }
        daemon.stop()
    }
}

/// Lets a daemon that stands still go on; how long until nothing more is stored.
fn seconds_to_store(daemon: &Daemon) -> Outcome<f64> {
    let mut bytes = stored_in(&daemon.store).bytes;
    let began = Instant::now();
    daemon.go_on()?;
    let mut last = None;
    while last.map_or(began.elapsed() < Duration::from_secs(60), |at: Instant| at.elapsed() < QUIET) {
        daemon.look()?;
        // Each look reads all names, which takes from the cores that the daemon works on.
        let long = began.elapsed() > Duration::from_secs(1);
        std::thread::sleep(Duration::from_millis(if long { 20 } else { 2 }));
        let now = stored_in(&daemon.store).bytes;
        if now != bytes {
            (bytes, last) = (now, Some(Instant::now()));
        }
    }
    let last = last.ok_or("a daemon stored nothing of a log in a minute")?;
    Ok((last - began).as_secs_f64())
}

/// The number of the last stored transaction, of ours.
fn position(world: &World, daemon: &Daemon, system: System) -> Outcome<Option<u64>> {
    if system != System::Everwhen {
        return Ok(None);
    }
    last_transaction(&world.everwhen, &daemon.store).map(Some)
}

fn last_transaction(everwhen: &Path, store: &Path) -> Outcome<u64> {
    let output = Command::new(everwhen).args(["status", "--json", "--store"]).arg(store).output()?;
    let status: Value = serde_json::from_slice(&output.stdout)?;
    let position = status.pointer("/databases/0/durable/position").and_then(Value::as_str);
    let transaction =
        position.and_then(|position| position.parse::<Position>().ok()).map(|position| position.tx.get());
    transaction.ok_or_else(|| format!("no position in {status}").into())
}

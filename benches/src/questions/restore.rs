//! How long does a restore take, against the size of the database and the length of the log?

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use everwhen_engine::plan::Target;
use everwhen_engine::restore::{Cancel, Options, history_of, restore};
use everwhen_engine::store::Store;
use everwhen_engine::time::Timestamp;
use serde_json::json;

use crate::Outcome;
use crate::daemon::{Daemon, System};
use crate::database::{connect, copy_synced, mib_of, prepared, rows_of, write};
use crate::measure::{Sample, timed};
use crate::plot::{Axis, Line, Plot};
use crate::protected::Protected;
use crate::report::{Answer, Table};
use crate::workload::{Workload, Writer};
use crate::world::World;

/// Times against size beside `cp` and the peer, then against the length of the log.
pub(crate) fn ask(world: &World) -> Outcome<Answer> {
    let mut answer = Answer::new("restore", "Restore");
    by_size(world, &mut answer)?;
    by_log(world, &mut answer)?;
    Ok(answer)
}

fn by_size(world: &World, answer: &mut Answer) -> Outcome<()> {
    let head = ["database", "how", "seconds", "times cp + fsync"];
    let mut table = Table::new(
        "Newest state from local files to a new file, fsynced; 200 transactions of log; whole processes, rounds interleaved, median (range)",
        &head,
    );
    let mut lines: Vec<Line> = Vec::new();
    for mib in world.scale.pick(vec![4], vec![16, 128], vec![64, 256, 1024]) {
        let folder = world.fresh("restore")?;
        drop(prepared(&folder.join("source.db"), Workload::PointUpdate, rows_of(mib))?);
        let mut ways: Vec<(&str, Daemon)> = Vec::new();
        for system in System::available(world) {
            let path = folder.join(format!("{}.db", system.name().replace(' ', "-")));
            std::fs::copy(folder.join("source.db"), &path)?;
            let mut connection = connect(&path)?;
            let mut writer = Writer::new(Workload::PointUpdate, rows_of(mib), 6);
            let daemon = Daemon::start_and_settle(world, system, &path)?;
            if system != System::Nothing {
                write(&mut connection, &mut writer, Some(200.0), |done, _| done >= 200)?;
                std::thread::sleep(Duration::from_millis(world.scale.pick(200, 2500, 2500)));
            }
            ways.push((system.name(), daemon));
        }
        let mut samples = vec![Sample::default(); ways.len()];
        for _ in 0..world.scale.pick(1, 3, 5) {
            for ((name, daemon), sample) in ways.iter().zip(&mut samples) {
                let to = folder.join("restored.db");
                let from = daemon.store.with_extension("db");
                sample.push(timed(|| once(world, name, daemon, &from, &to))?.0);
                std::fs::remove_file(&to)?;
            }
        }
        let limit = samples.first().cloned().unwrap_or_default();
        for ((name, _), sample) in ways.iter().zip(&samples) {
            let name = if *name == System::Nothing.name() { "cp + fsync" } else { name };
            let seconds = sample.with_spread(|value| format!("{value:.2}"));
            table.row([format!("{mib} MiB"), name.to_owned(), seconds, sample.ratio_to(&limit)]);
            answer.raw(json!({ "database_mib": mib, "how": name, "seconds": sample.values() }));
            match lines.iter_mut().find(|line| line.name == name) {
                Some(line) => line.points.push((mib as f64, sample.median())),
                None => lines.push(Line::new(name).through(vec![(mib as f64, sample.median())])),
            }
        }
    }
    answer.table(table);
    let (across, up) = (Axis::log("MiB of database"), Axis::log("seconds"));
    answer
        .plot("restore_by_size", Plot { title: "Restore, by size of the database", across, up, lines }.svg());
    answer.note("Everwhen's time includes reading the finished file back and proving its checksum; litestream does not check the database (and does not fsync less).");
    world.discard("restore")
}

fn once(world: &World, name: &str, daemon: &Daemon, from: &Path, to: &Path) -> Outcome<()> {
    let store = daemon.store.display().to_string();
    let mut command = match (name, &world.litestream) {
        ("everwhen", _) => {
            let mut command = Command::new(&world.everwhen);
            command.args(["restore", "everwhen", "--latest", "--store", &store, "--to"]).arg(to);
            command.arg("--state").arg(daemon.store.with_extension("restore-state"));
            command
        }
        ("litestream", Some(program)) => {
            let mut command = Command::new(program);
            command.args(["restore", "-o"]).arg(to).arg(format!("file://{store}"));
            command
        }
        _ => return copy_synced(from, to),
    };
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("{name} restore: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(())
}

fn by_log(world: &World, answer: &mut Answer) -> Outcome<()> {
    let head = ["transactions of log", "log of SQLite", "stored log", "seconds", "more than without log"];
    let rows = world.scale.pick(500, 20_000, 150_000);
    let title = format!(
        "Against the length of the log: point updates on {rows} rows ({} MiB), in one process, proof included, median (range)",
        mib_of(rows)
    );
    let mut table = Table::new(&title, &head);
    let folder = world.fresh("restore_log")?;
    let path = folder.join("app.db");
    let (mut connection, mut writer) = prepared(&path, Workload::PointUpdate, rows)?;
    let store = Store::open(&folder.join("store").display().to_string())?;
    let protected = world.runtime.block_on(Protected::start(&path, store, &folder.join("state")))?;
    let (mut points, mut without, mut done) = (Vec::new(), f64::NAN, 0_u64);
    for length in world.scale.pick(vec![0, 50], vec![0, 5_000, 20_000], vec![0, 25_000, 50_000, 100_000]) {
        write(&mut connection, &mut writer, None, |written, _| written >= length - done)?;
        done = length;
        world.runtime.block_on(protected.protection.wait_durable(None, Duration::from_secs(120)))?;
        let database = protected.database()?;
        let mut sample = Sample::default();
        for round in 0..world.scale.pick(1, 3, 5) {
            let to = folder.join(format!("restored-{round}.db"));
            sample.push(in_this_process(world, &protected, &to, length)?);
            std::fs::remove_file(to)?;
        }
        if length == 0 {
            without = sample.median();
        }
        let history = world.runtime.block_on(history_of(&protected.repository, database))?;
        let stored: u64 = history.segments().map(|entry| entry.size).sum();
        table.row([
            length.to_string(),
            crate::report::bytes(length * 4120),
            crate::report::bytes(stored),
            sample.with_spread(|value| format!("{value:.3}")),
            format!("{:.3} s", sample.median() - without),
        ]);
        answer.raw(json!({ "transactions": length, "stored_log_bytes": stored, "seconds": sample.values() }));
        points.push((length as f64, sample.median()));
    }
    world.runtime.block_on(protected.protection.stop())?;
    answer.table(table);
    let lines = vec![Line::new("everwhen").through(points)];
    let (across, up) = (Axis::even("transactions since the base"), Axis::even("seconds"));
    answer.plot("restore_by_log", Plot { title: "Restore, by length of the log", across, up, lines }.svg());
    world.discard("restore_log")
}

/// Seconds of a restore of the newest state, which must be at least `length.min(1)` transactions after the base.
fn in_this_process(world: &World, protected: &Protected, to: &Path, length: u64) -> Outcome<f64> {
    let (repository, database) = (&protected.repository, protected.database()?);
    let options = Options { reserve_bytes: 0, ..Options::default() };
    let (progress, cancel, now) = (Arc::new(|_| {}), Cancel::new(), Timestamp::now());
    let restored = async {
        let history = history_of(repository, database).await?;
        let restored =
            restore(repository, &history, Target::Latest, now, to, &options, progress, &cancel).await?;
        Outcome::Ok(restored)
    };
    let (seconds, report) = timed(|| world.runtime.block_on(restored))?;
    if report.transactions < length.min(1) {
        return Err("the restore did not reach the newest transaction".into());
    }
    Ok(seconds)
}

//! How long until a large database is protected for the first time, and what does the application feel of it?

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::json;

use crate::Outcome;
use crate::daemon::{Daemon, System, stored_in};
use crate::database::{connect, copy_synced, rows_of, write};
use crate::measure::{Sample, timed};
use crate::report::{Answer, Table, bytes, millis};
use crate::workload::{Workload, Writer};
use crate::world::World;

/// Copies one database file to another place.
type FullCopy = fn(&Path, &Path) -> Outcome<()>;

/// Times the first full copy of each daemon beside plain copies, with a writer at 50 commits a second.
pub(crate) fn ask(world: &World) -> Outcome<Answer> {
    let mut answer = Answer::new("first_base", "The first full copy");
    let title =
        format!("A database of {} MiB; a writer commits 50 times a second meanwhile", world.large_mib());
    let head = ["how", "seconds", "times cp + fsync", "stored", "commit p50", "commit p99", "commit max"];
    let mut table = Table::new(&title, &head);
    let rounds = world.scale.pick(1, 1, 3);
    let mut copies = Sample::default();
    let mut rows = Vec::new();
    let folder = world.fresh("first_base")?;
    world.accounts(world.large_mib(), &folder.join("source.db"))?;
    let plain: [(&str, FullCopy); 3] = [
        ("cp + fsync", copy_synced),
        ("sqlite3 .backup + fsync", backup),
        ("VACUUM INTO + fsync", vacuum_into),
    ];
    for (name, copy) in plain {
        let mut sample = Sample::default();
        for _ in 0..rounds {
            let to = folder.join("copy.db");
            sample.push(timed(|| copy(&folder.join("source.db"), &to))?.0);
            rows.push((name, sample.clone(), std::fs::metadata(&to)?.len(), Sample::default()));
            std::fs::remove_file(to)?;
        }
        if copies.is_empty() {
            copies = sample.clone();
        }
        rows.retain(|row| row.0 != name || row.1.len() == rounds);
    }
    for system in System::daemons(world) {
        let (mut sample, mut commits, mut stored) = (Sample::default(), Sample::default(), 0);
        for _ in 0..rounds {
            let beside = world.fresh("first_base_run")?;
            std::fs::copy(folder.join("source.db"), beside.join("app.db"))?;
            let (seconds, latency, size) = with_daemon(world, system, &beside.join("app.db"))?;
            sample.push(seconds);
            commits.extend(&latency);
            stored = size;
        }
        rows.push((system.name(), sample, stored, commits));
    }
    for (name, sample, stored, commits) in rows {
        let commit = |share| millis(commits.quantile(share));
        table.row([
            name.to_owned(),
            sample.with_spread(|seconds| format!("{seconds:.2}")),
            format!("{:.1}", sample.median() / copies.median()),
            bytes(stored),
            commit(0.5),
            commit(0.99),
            commit(1.0),
        ]);
        answer.raw(json!({
            "how": name, "seconds": sample.values(), "stored_bytes": stored, "commit_ms": commits.values(),
        }));
    }
    answer.table(table);
    answer.note("Plain copies are made without a writer. A daemon's time counts from the start of its process until the copy can be seen in the store; litestream compresses each page by LZ4 and does not fsync as it goes, Everwhen compresses chunks by zstd 3, names them by BLAKE3 and fsyncs each object.");
    world.discard("first_base")?;
    let _ = world.discard("first_base_run");
    Ok(answer)
}

fn with_daemon(world: &World, system: System, path: &Path) -> Outcome<(f64, Sample, u64)> {
    let mut connection = connect(path)?;
    let mut writer = Writer::new(Workload::PointUpdate, rows_of(world.large_mib()), 2);
    let done = std::sync::atomic::AtomicBool::new(false);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        let writing =
            scope.spawn(|| write(&mut connection, &mut writer, Some(50.0), |_, _| done.load(relaxed)));
        std::thread::sleep(Duration::from_millis(100));
        let began = Instant::now();
        let waited = Daemon::start(world, system, path).and_then(|daemon| {
            let _ = daemon.wait_for_first_copy()?;
            Ok((began.elapsed().as_secs_f64(), daemon))
        });
        done.store(true, relaxed);
        let written = writing.join().map_err(|_| "the writer died")??;
        let (seconds, daemon) = waited?;
        let stored = stored_in(&daemon.store).bytes;
        daemon.stop()?;
        Ok((seconds, written.latency, stored))
    })
}

fn backup(from: &Path, to: &Path) -> Outcome<()> {
    let source = Connection::open(from)?;
    let mut target = Connection::open(to)?;
    rusqlite::backup::Backup::new(&source, &mut target)?.run_to_completion(i32::MAX, Duration::ZERO, None)?;
    drop(target);
    Ok(std::fs::File::open(to)?.sync_all()?)
}

fn vacuum_into(from: &Path, to: &Path) -> Outcome<()> {
    Connection::open(from)?.execute("VACUUM INTO ?1", [to.display().to_string()])?;
    Ok(std::fs::File::open(to)?.sync_all()?)
}

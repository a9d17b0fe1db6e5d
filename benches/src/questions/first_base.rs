//! How long until a large database is protected for the first time, and what does the application feel of it?

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::json;

use crate::Outcome;
use crate::daemon::{Daemon, System, stored_in};
use crate::database::{Checkpoints, checkpoint, connect, copy_synced, make_accounts, rows_of, write};
use crate::measure::{Sample, timed, turns};
use crate::report::{Answer, Table, bytes, millis};
use crate::workload::{Workload, Writer};
use crate::world::World;

/// The larger database, measured only when asked: 10 GiB.
const HUGE_MIB: u64 = 10 * 1024;

/// One way to make a full copy.
#[derive(Clone, Copy)]
enum How {
    Plain(fn(&Path, &Path) -> Outcome<()>),
    Daemon(Run),
}

/// A daemon, and whether it stores encrypted.
#[derive(Clone, Copy)]
struct Run {
    system: System,
    sealed: bool,
}

/// What came of it over the rounds.
#[derive(Default)]
struct Made {
    seconds: Sample,
    stored: u64,
    commits: Sample,
    /// The application's TRUNCATE checkpoints, in runs of their own.
    truncates: Checkpoints,
    highest: u64,
}

/// Between two checkpoints of an application that makes them itself.
const TRUNCATE_EVERY: Duration = Duration::from_millis(300);

/// Times the first full copy of each daemon beside plain copies, with a writer at 50 commits a second.
pub(crate) fn ask(world: &World) -> Outcome<Answer> {
    let mut answer = Answer::new("first_base", "The first full copy");
    of_size(world, world.large_mib(), world.scale.pick(1, 1, 3), &mut answer)?;
    if world.large {
        of_size(world, world.scale.pick(8, HUGE_MIB, HUGE_MIB), 1, &mut answer)?;
    }
    answer.note("Plain copies are made without a writer, the two of SQLite in this process; the shell's .backup takes 100 pages a step. A new key is drawn within the time of the encrypted one. The database is in the page cache. A daemon's time counts from the start of its process until the copy can be seen in the store; litestream compresses each page by LZ4 and does not fsync as it goes, Everwhen compresses chunks by zstd 3, names them by BLAKE3 and fsyncs each object.");
    Ok(answer)
}

fn of_size(world: &World, mib: u64, rounds: u64, answer: &mut Answer) -> Outcome<()> {
    // The source and a copy of it, or the peer's three of half its size.
    world.needs_mib(mib * 3)?;
    let folder = world.fresh("first_base")?;
    let source = folder.join("app.db");
    make_accounts(&source, mib)?;
    let ways = ways(world);
    let mut made: Vec<Made> = ways.iter().map(|_| Made::default()).collect();
    for round in 0..rounds {
        for index in turns(ways.len(), round) {
            once(world, ways[index].1, &source, mib, &mut made[index])?;
        }
    }
    world.discard("first_base")?;
    answer.table(table(&ways, &made, mib));
    for ((name, _), made) in ways.iter().zip(&made) {
        answer.raw(json!({
            "how": name, "database_mib": mib, "seconds": made.seconds.values(), "stored_bytes": made.stored,
            "commit_ms": made.commits.values(), "resident_max": made.highest,
            "truncate_ms": made.truncates.ms.values(), "truncates_completed": made.truncates.completed,
        }));
    }
    Ok(())
}

/// One way in one round, the disk at rest before it.
fn once(world: &World, how: How, source: &Path, mib: u64, made: &mut Made) -> Outcome<()> {
    world.rest();
    match how {
        How::Plain(copy) => plain(copy, source, made),
        How::Daemon(run) => {
            by_daemon(world, run, source, mib, false, made)?;
            world.rest();
            // A run of its own, since the checkpoints would show in the commits.
            by_daemon(world, run, source, mib, true, made)
        }
    }
}

fn ways(world: &World) -> Vec<(&'static str, How)> {
    let mut ways = vec![
        ("cp + fsync", How::Plain(copy_synced)),
        ("sqlite3_backup in one step + fsync", How::Plain(backup)),
        ("VACUUM INTO + fsync", How::Plain(vacuum_into)),
    ];
    let plain = |system: System| (system.name(), How::Daemon(Run { system, sealed: false }));
    ways.extend(System::daemons(world).into_iter().map(plain));
    ways.push(("everwhen, encrypted", How::Daemon(Run { system: System::Everwhen, sealed: true })));
    ways
}

fn table(ways: &[(&str, How)], made: &[Made], mib: u64) -> Table {
    let title =
        format!("A database of {mib} MiB; a writer commits 50 times a second meanwhile; rounds interleaved");
    let head = [
        "how",
        "seconds",
        "times cp + fsync",
        "stored",
        "commit p50",
        "p99",
        "max",
        "TRUNCATE, median",
        "longest",
        "completed",
        "resident, highest",
    ];
    let mut table = Table::new(&title, &head);
    let limit = made.first().map(|made| made.seconds.clone()).unwrap_or_default();
    for ((name, _), made) in ways.iter().zip(made) {
        let commit = |share| millis(made.commits.quantile(share));
        table.row([
            (*name).to_owned(),
            made.seconds.with_spread(|seconds| format!("{seconds:.2}")),
            made.seconds.ratio_to(&limit),
            bytes(made.stored),
            commit(0.5),
            commit(0.99),
            commit(1.0),
            millis(made.truncates.ms.median()),
            millis(made.truncates.ms.quantile(1.0)),
            made.truncates.share(),
            if made.highest == 0 { "-".into() } else { format!("{} MiB", made.highest >> 20) },
        ]);
    }
    table
}

fn plain(copy: fn(&Path, &Path) -> Outcome<()>, source: &Path, made: &mut Made) -> Outcome<()> {
    let to = source.with_file_name("copy.db");
    made.seconds.push(timed(|| copy(source, &to))?.0);
    made.stored = fs::metadata(&to)?.len();
    Ok(fs::remove_file(to)?)
}

/// The daemon works beside the source itself, moved to a folder of its own: a copy of 10 GiB would cost disk and time.
fn by_daemon(
    world: &World,
    run: Run,
    source: &Path,
    mib: u64,
    checkpoints: bool,
    made: &mut Made,
) -> Outcome<()> {
    let path: PathBuf = world.fresh("first_base_run")?.join("app.db");
    fs::rename(source, &path)?;
    with_writer(world, run, &path, mib, checkpoints, made)?;
    checkpoint(&connect(&path)?, "TRUNCATE")?;
    fs::rename(&path, source)?;
    world.discard("first_base_run")
}

fn with_writer(
    world: &World,
    run: Run,
    path: &Path,
    mib: u64,
    checkpoints: bool,
    made: &mut Made,
) -> Outcome<()> {
    let mut connection = connect(path)?;
    let mut writer = Writer::new(Workload::PointUpdate, rows_of(mib), 2);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writing = scope
            .spawn(|| write(&mut connection, &mut writer, Some(50.0), |_, _| done.load(Ordering::Relaxed)));
        let checkpointing =
            checkpoints.then(|| scope.spawn(|| truncate(path, &done).map_err(|error| error.to_string())));
        std::thread::sleep(Duration::from_millis(100));
        let began = Instant::now();
        let waited = run.start(world, path).and_then(|daemon| {
            daemon.wait_for_first_copy()?;
            Ok((began.elapsed().as_secs_f64(), daemon))
        });
        done.store(true, Ordering::Relaxed);
        let written = writing.join().map_err(|_| "the writer died")??;
        let (seconds, daemon) = waited?;
        made.highest = made.highest.max(daemon.look()?.resident_max);
        if let Some(checkpointing) = checkpointing {
            made.truncates.extend(&checkpointing.join().map_err(|_| "the checkpoints died")??);
        } else {
            made.commits.extend(&written.latency);
            made.seconds.push(seconds);
            made.stored = stored_in(&daemon.store).bytes;
        }
        daemon.stop()
    })
}

impl Run {
    fn start(self, world: &World, path: &Path) -> Outcome<Daemon> {
        match self.sealed {
            true => Daemon::start_sealed(world, path, &path.with_extension("key")),
            false => Daemon::start(world, self.system, path),
        }
    }
}

/// TRUNCATE checkpoints of the application, one after the other.
fn truncate(path: &Path, done: &AtomicBool) -> Outcome<Checkpoints> {
    let connection = connect(path)?;
    let mut all = Checkpoints::default();
    while !done.load(Ordering::Relaxed) {
        std::thread::sleep(TRUNCATE_EVERY);
        all.push(checkpoint(&connection, "TRUNCATE")?);
    }
    Ok(all)
}

fn backup(from: &Path, to: &Path) -> Outcome<()> {
    let source = Connection::open(from)?;
    let mut target = Connection::open(to)?;
    rusqlite::backup::Backup::new(&source, &mut target)?.run_to_completion(i32::MAX, Duration::ZERO, None)?;
    drop(target);
    Ok(fs::File::open(to)?.sync_all()?)
}

fn vacuum_into(from: &Path, to: &Path) -> Outcome<()> {
    Connection::open(from)?.execute("VACUUM INTO ?1", [to.display().to_string()])?;
    Ok(fs::File::open(to)?.sync_all()?)
}

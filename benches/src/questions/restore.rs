//! How long does a restore take, against the size of the database and the length of the log?

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use everwhen_engine::plan::Target;
use everwhen_engine::restore::{Cancel, Options, Order, history_of, restore};
use everwhen_engine::sqlite::wal::FRAME_HEADER_LEN;
use everwhen_engine::store::Store;
use everwhen_engine::time::Timestamp;
use rusqlite::Connection;
use serde_json::json;

use crate::Outcome;
use crate::daemon::{Daemon, System, stored_where};
use crate::database::{connect, copy_synced, mib_of, prepared, rows_of, write};
use crate::measure::{Sample, timed, turns};
use crate::plot::{Axis, Line, Plot};
use crate::protected::Protected;
use crate::report::{Answer, Table, bytes};
use crate::workload::{Workload, Writer};
use crate::world::World;

/// Times against size beside `cp`, raw reads and the peer, then against the length of the log.
pub(crate) fn ask(world: &World) -> Outcome<Answer> {
    let mut answer = Answer::new("restore", "Restore");
    by_size(world, &mut answer)?;
    by_log(world, &mut answer)?;
    answer.note("Everwhen's time includes reading the finished file back and proving its checksum; litestream does not check the database (and does not fsync less). \"Raw reads\" is a read of every object that Everwhen's restore reads, and nothing done with them: what the store itself takes. Daemons are stopped, and everything is on the disk, before a restore begins; one round before those that count fills the caches, so files and objects are read from memory, by all alike.");
    world.discard("restore")?;
    Ok(answer)
}

/// A way to come by a database again.
enum Way {
    /// `cp` and fsync of the database itself.
    Copy(PathBuf),
    /// Reads of all objects, of which nothing is made.
    RawReads(Vec<PathBuf>),
    /// A restore by the program whose daemon stored at a folder, with a key file if it is sealed.
    Restore(System, PathBuf, Option<PathBuf>),
}

fn by_size(world: &World, answer: &mut Answer) -> Outcome<()> {
    let head = ["database", "how", "reads", "seconds", "times cp + fsync"];
    let mut table = Table::new(
        "Newest state from local files to a new file, fsynced; 200 transactions of log; whole processes, rounds interleaved, median (range)",
        &head,
    );
    let mut lines: Vec<Line> = Vec::new();
    for mib in world.scale.pick(vec![4], vec![16, 128], vec![64, 256, 1024]) {
        let folder = world.fresh("restore")?;
        let ways = ways(world, &folder, mib)?;
        let samples = rounds(world, &ways, &folder.join("restored.db"))?;
        for (way, sample) in ways.iter().zip(&samples) {
            let (name, read) = (way.name(), way.reads());
            let seconds = sample.with_spread(|value| format!("{value:.2}"));
            let ratio = sample.ratio_to(&samples[0]);
            table.row([format!("{mib} MiB"), name.to_owned(), bytes(read), seconds, ratio]);
            answer.raw(
                json!({ "database_mib": mib, "how": name, "read_bytes": read, "seconds": sample.values() }),
            );
            if lines.iter().all(|line| line.name != name) {
                lines.push(Line::new(name));
            }
            let line = lines.iter_mut().find(|line| line.name == name).ok_or("a line is missing")?;
            line.push(mib as f64, sample, 1.0);
        }
    }
    answer.table(table);
    let (across, up) = (Axis::log("MiB of database"), Axis::log("seconds"));
    let title = "Restore, by size of the database";
    answer.plot("restore_by_size", Plot { title, across, up, lines }.svg());
    Ok(())
}

/// Stores a database of so many MiB with each daemon, which then ends.
fn ways(world: &World, folder: &Path, mib: u64) -> Outcome<Vec<Way>> {
    let source = folder.join("source.db");
    world.accounts(mib, &source)?;
    let mut ways = vec![Way::Copy(source)];
    for system in System::daemons(world) {
        let store = stored(world, system, &folder.join(format!("{}.db", system.name())), mib, None)?;
        if system == System::Everwhen {
            ways.push(Way::RawReads(objects_of(&store)));
        }
        ways.push(Way::Restore(system, store, None));
    }
    let (path, key) = (folder.join("sealed.db"), folder.join("sealed.key"));
    let store = stored(world, System::Everwhen, &path, mib, Some(&key))?;
    ways.push(Way::Restore(System::Everwhen, store, Some(key)));
    Ok(ways)
}

/// A store with a first copy and the log of 200 transactions.
fn stored(world: &World, system: System, path: &Path, mib: u64, key: Option<&Path>) -> Outcome<PathBuf> {
    world.accounts(mib, path)?;
    let mut connection = connect(path)?;
    let daemon = match key {
        Some(key) => Daemon::start_sealed(world, path, key)?,
        None => Daemon::start(world, system, path)?,
    };
    daemon.wait_for_first_copy()?;
    let mut writer = Writer::new(Workload::PointUpdate, rows_of(mib), 6);
    write(&mut connection, &mut writer, Some(200.0), |done, _| done >= 200)?;
    daemon.settle(world)?;
    let store = daemon.store.clone();
    daemon.stop()?;
    Ok(store)
}

/// What a restore of the newest state reads where there is one base: all of it, the log, and the base's chunks.
fn objects_of(store: &Path) -> Vec<PathBuf> {
    let is_read = |name: &str| ["/base/", "/chunk/", "/log/"].iter().any(|part| name.contains(part));
    stored_where(store, is_read).names.into_iter().map(PathBuf::from).collect()
}

/// All ways in turn, each time from a disk that has nothing left to write; the first round does not count.
fn rounds(world: &World, ways: &[Way], to: &Path) -> Outcome<Vec<Sample>> {
    let mut samples = vec![Sample::default(); ways.len()];
    for round in 0..=world.rounds() {
        for index in turns(ways.len(), round) {
            world.rest();
            let (seconds, ()) = timed(|| ways[index].go(world, to))?;
            if to.exists() {
                std::fs::remove_file(to)?;
            }
            if round > 0 {
                samples[index].push(seconds);
            }
        }
    }
    Ok(samples)
}

impl Way {
    fn name(&self) -> &'static str {
        match self {
            Self::Copy(_) => "cp + fsync",
            Self::RawReads(_) => "raw reads",
            Self::Restore(_, _, Some(_)) => "everwhen, encrypted",
            Self::Restore(system, _, None) => system.name(),
        }
    }

    /// Bytes that it reads at most.
    fn reads(&self) -> u64 {
        let size = |path: &PathBuf| std::fs::metadata(path).map_or(0, |data| data.len());
        match self {
            Self::Copy(path) => size(path),
            Self::RawReads(paths) => paths.iter().map(size).sum(),
            Self::Restore(System::Everwhen, store, _) => objects_of(store).iter().map(size).sum(),
            Self::Restore(_, store, _) => stored_where(store, |_| true).bytes,
        }
    }

    fn go(&self, world: &World, to: &Path) -> Outcome<()> {
        match (self, &world.litestream) {
            (Self::Copy(from), _) => copy_synced(from, to),
            (Self::RawReads(objects), _) => objects.iter().try_for_each(|object| read_through(object)),
            (Self::Restore(System::Litestream, store, _), Some(program)) => {
                let url = format!("file://{}", std::path::absolute(store)?.display());
                succeed(Command::new(program).args(["restore", "-o"]).arg(to).arg(url))
            }
            (Self::Restore(_, store, key), _) => {
                let mut command = Command::new(&world.everwhen);
                let database = store.file_stem().unwrap_or_default();
                command.arg("restore").arg(database).args(["--latest", "--store"]).arg(store);
                command.arg("--to").arg(to).arg("--state").arg(store.with_extension("restore-state"));
                command.envs(key.iter().map(|key| ("EVERWHEN_KEY_FILE", key)));
                succeed(&mut command)
            }
        }
    }
}

fn read_through(object: &Path) -> Outcome<()> {
    let (mut file, mut buffer) = (File::open(object)?, vec![0; 1 << 20]);
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

fn succeed(command: &mut Command) -> Outcome<()> {
    let output = command.output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

fn by_log(world: &World, answer: &mut Answer) -> Outcome<()> {
    let rows = world.scale.pick(500, 20_000, 150_000);
    let folder = world.fresh("restore")?;
    let path = folder.join("app.db");
    let (mut connection, mut writer) = prepared(&path, Workload::PointUpdate, rows)?;
    let store = Store::open(&folder.join("store").display().to_string())?;
    let protected = world.runtime.block_on(Protected::start(&path, store, &folder.join("state")))?;
    let head = ["transactions of log", "log of SQLite", "stored log", "seconds", "more than without log"];
    let title = format!(
        "Against the length of the log: point updates on {rows} rows ({} MiB), in one process, proof included, median (range)",
        mib_of(rows)
    );
    let mut table = Table::new(&title, &head);
    let (mut line, mut without, mut done) = (Line::new("everwhen"), f64::NAN, 0);
    for length in world.scale.pick(vec![0, 50], vec![0, 5_000, 20_000], vec![0, 25_000, 50_000, 100_000]) {
        grow(world, &protected, &mut connection, &mut writer, length - done)?;
        done = length;
        let (seconds, stored) = of_length(world, &protected, &folder.join("restored.db"), length)?;
        if length == 0 {
            without = seconds.median();
        }
        table.row([
            length.to_string(),
            bytes(length * (FRAME_HEADER_LEN as u64 + 4096)),
            bytes(stored),
            seconds.with_spread(|value| format!("{value:.3}")),
            format!("{:.3} s", seconds.median() - without),
        ]);
        answer
            .raw(json!({ "transactions": length, "stored_log_bytes": stored, "seconds": seconds.values() }));
        line.push(length as f64, &seconds, 1.0);
    }
    world.runtime.block_on(protected.protection.stop())?;
    answer.table(table);
    let (across, up) = (Axis::even("transactions since the base"), Axis::even("seconds"));
    let title = "Restore, by length of the log";
    answer.plot("restore_by_log", Plot { title, across, up, lines: vec![line] }.svg());
    Ok(())
}

/// Writes so many more transactions, and waits until they are stored.
fn grow(
    world: &World,
    protected: &Protected,
    connection: &mut Connection,
    writer: &mut Writer,
    more: u64,
) -> Outcome<()> {
    write(connection, writer, None, |written, _| written >= more)?;
    world.runtime.block_on(protected.protection.wait_durable(None, Duration::from_secs(120)))?;
    Ok(())
}

/// Seconds of several restores over a log of so many transactions, and how many bytes of it are stored.
fn of_length(world: &World, protected: &Protected, to: &Path, length: u64) -> Outcome<(Sample, u64)> {
    let mut seconds = Sample::default();
    for round in 0..=world.rounds() {
        world.rest();
        let took = in_this_process(world, protected, to, length)?;
        std::fs::remove_file(to)?;
        // The first fills the caches.
        if round > 0 {
            seconds.push(took);
        }
    }
    let history = world.runtime.block_on(history_of(&protected.repository, protected.database()?))?;
    Ok((seconds, history.segments().map(|entry| entry.size).sum()))
}

/// Seconds of a restore of the newest state, which must come by replaying exactly `length` transactions: a base that was
/// made meanwhile would hide the log.
fn in_this_process(world: &World, protected: &Protected, to: &Path, length: u64) -> Outcome<f64> {
    let (repository, database) = (&protected.repository, protected.database()?);
    let options = Options { reserve_bytes: Some(0), ..Options::default() };
    let order = Order {
        target: Target::Latest,
        now: Timestamp::now(),
        to,
        options: &options,
        planned: &|_| {},
        progress: Arc::new(|_| {}),
        cancel: &Cancel::new(),
    };
    let restored = async {
        let history = history_of(repository, database).await?;
        Outcome::Ok(restore(repository, &history, &order).await?)
    };
    let (seconds, report) = timed(|| world.runtime.block_on(restored))?;
    match report.transactions == length {
        true => Ok(seconds),
        false => Err(format!("{} transactions were replayed, not {length}", report.transactions).into()),
    }
}

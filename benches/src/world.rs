//! Where questions are asked: scratch folders, databases, protections in this process, and daemons beside it.

use std::cell::OnceCell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use everwhen_engine::ids::{DatabaseId, HostId};
use everwhen_engine::protect::{ProtectOptions, Protection};
use everwhen_engine::repository::{CreateOptions, Repository};
use everwhen_engine::store::Store;
use everwhen_engine::store::testing::Recording;
use everwhen_engine::time::Timestamp;
use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::workload::{Workload, Writer};

/// How much to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Whether it runs at all: seconds for everything, figures without meaning.
    Smoke,
    /// A first impression.
    Quick,
    /// What the README shows.
    Full,
}

impl Scale {
    /// One of three values.
    #[must_use]
    pub fn pick<T>(self, smoke: T, quick: T, full: T) -> T {
        match self {
            Self::Smoke => smoke,
            Self::Quick => quick,
            Self::Full => full,
        }
    }
}

/// The surroundings of a run.
#[derive(Debug)]
pub struct World {
    /// How much to measure.
    pub scale: Scale,
    /// The `everwhen` binary, for what is asked of a whole process.
    pub everwhen: Option<PathBuf>,
    /// The peer.
    pub litestream: Option<PathBuf>,
    /// For what is asked in this process.
    pub runtime: Runtime,
    folder: PathBuf,
    large: OnceCell<PathBuf>,
}

impl World {
    /// Works below `folder`.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn new(scale: Scale, folder: &Path) -> Outcome<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        Ok(Self {
            scale,
            everwhen: None,
            litestream: None,
            runtime,
            folder: folder.into(),
            large: OnceCell::new(),
        })
    }

    /// An empty folder of that name.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn fresh(&self, name: &str) -> Outcome<PathBuf> {
        let folder = self.folder.join(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Removes a folder of [`World::fresh`].
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn discard(&self, name: &str) -> Outcome<()> {
        Ok(std::fs::remove_dir_all(self.folder.join(name))?)
    }

    /// Rows of a point-update database of about so many MiB.
    #[must_use]
    pub fn rows_of(mib: u64) -> u64 {
        mib * 2_250
    }

    /// How large the large database is, in MiB: 1024 in a full run.
    #[must_use]
    pub fn large_mib(&self) -> u64 {
        self.scale.pick(4, 128, 1024)
    }

    /// A copy of the large database, at `to`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn large_copy(&self, to: &Path) -> Outcome<()> {
        if self.large.get().is_none() {
            let path = self.fresh("large")?.join("app.db");
            drop(prepared(&path, Workload::PointUpdate, Self::rows_of(self.large_mib()))?);
            let _ = self.large.set(path);
        }
        let large = self.large.get().ok_or("no large database")?;
        copy_synced(large, to)?;
        Ok(())
    }
}

/// What `cp` and an fsync do: the limit of a restore.
///
/// # Errors
/// The file system's.
pub fn copy_synced(from: &Path, to: &Path) -> Outcome<()> {
    std::fs::copy(from, to)?;
    File::open(to)?.sync_all()?;
    Ok(())
}

/// Opens a database as an application does.
///
/// # Errors
/// SQLite's.
pub fn connect(path: &Path) -> Outcome<Connection> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Makes the starting database of a workload, its log empty, and goes on writing to it.
///
/// # Errors
/// SQLite's.
pub fn prepared(path: &Path, workload: Workload, rows: u64) -> Outcome<(Connection, Writer)> {
    let mut connection = connect(path)?;
    let mut writer = Writer::new(workload, rows, 1);
    writer.prepare(&mut connection)?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    Ok((connection, writer))
}

/// Writes transactions at a pace (`None`: back to back) and gives the commit times in milliseconds. A paced writer that
/// falls behind catches up; its latency counts from when the transaction was due.
///
/// # Errors
/// SQLite's.
pub fn write(
    connection: &mut Connection,
    writer: &mut Writer,
    per_second: Option<f64>,
    until: impl Fn(u64, Duration) -> bool,
) -> Outcome<Written> {
    let began = Instant::now();
    let mut written = Written::default();
    while !until(written.transactions, began.elapsed()) {
        if let Some(rate) = per_second {
            let due = began + Duration::from_secs_f64(written.transactions as f64 / rate);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let at = Instant::now();
        let mut busy = false;
        while let Err(error) = writer.step(connection) {
            match error.sqlite_error_code() {
                Some(rusqlite::ErrorCode::DatabaseBusy) => busy = true,
                _ => return Err(error.into()),
            }
        }
        written.latency.push(at.elapsed().as_secs_f64() * 1e3);
        written.busy += u64::from(busy);
        written.transactions += 1;
    }
    written.seconds = began.elapsed().as_secs_f64();
    Ok(written)
}

/// What a writer saw.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Commits.
    pub transactions: u64,
    /// In so many seconds.
    pub seconds: f64,
    /// Commits that were told `SQLITE_BUSY` and tried again, by a busy timeout of 0.
    pub busy: u64,
    /// From begin to the return of commit, in milliseconds.
    pub latency: crate::measure::Sample,
}

/// A protection in this process, its store counted.
#[derive(Debug)]
pub struct Protected {
    /// The protection.
    pub protection: Protection,
    /// Where it stores.
    pub repository: Repository,
    /// What it asked of the store.
    pub recording: Recording,
}

impl Protected {
    /// Protects `database` into `store`, keeping state in `state`, and waits for the first base.
    ///
    /// # Errors
    /// The engine's.
    pub async fn start(database: &Path, store: Store, state: &Path) -> Outcome<Self> {
        let recording = Recording::new();
        let store = store.wrap(|inner| recording.wrap(inner));
        let repository = open_repository(store).await?;
        let host = HostId::from_bytes([7; 8]);
        let options = ProtectOptions::new(database.into(), "app".into(), state.into(), host, "bench".into());
        let protection = Protection::start(repository.clone(), options).await?;
        let protected = Self { protection, repository, recording };
        protected.protection.wait_durable(None, Duration::from_secs(600)).await?;
        Ok(protected)
    }

    /// Its database's id.
    ///
    /// # Errors
    /// When it has none yet.
    pub fn database(&self) -> Outcome<DatabaseId> {
        Ok(self.protection.status().database.ok_or("the database has no id yet")?)
    }
}

/// Opens a repository in the clear, making it if there is none.
///
/// # Errors
/// The engine's.
pub async fn open_repository(store: Store) -> Outcome<Repository> {
    let options = CreateOptions { encryption: None, location: String::new(), now: Timestamp::now() };
    Ok(Repository::open_or_create(store, options).await?)
}

/// Which daemon, if any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// None.
    Nothing,
    /// Ours.
    Everwhen,
    /// The peer.
    Litestream,
}

impl System {
    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no daemon",
            Self::Everwhen => "everwhen",
            Self::Litestream => "litestream",
        }
    }

    /// Those that can be had in this run.
    #[must_use]
    pub fn available(world: &World) -> Vec<Self> {
        let mut all = vec![Self::Nothing];
        all.extend(world.everwhen.is_some().then_some(Self::Everwhen));
        all.extend(world.litestream.is_some().then_some(Self::Litestream));
        all
    }
}

/// A daemon in a process of its own; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Option<Child>,
    /// The folder it stores in.
    pub store: PathBuf,
    system: System,
}

impl Daemon {
    /// Starts one beside `database`, with `store` and its state next to it. Does not wait.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(world: &World, system: System, database: &Path) -> Outcome<Self> {
        let beside = |suffix: &str| database.with_extension(suffix);
        let store = beside("store");
        let log = File::options().create(true).append(true).open(beside("daemon.log"))?;
        let mut command = match (system, &world.everwhen, &world.litestream) {
            (System::Everwhen, Some(program), _) => {
                let mut command = Command::new(program);
                command
                    .arg("run")
                    .arg(database)
                    .arg("--store")
                    .arg(&store)
                    .arg("--state")
                    .arg(beside("state"));
                command.args(["--listen", "off", "--metrics", "off"]);
                command
            }
            (System::Litestream, _, Some(program)) => {
                let mut command = Command::new(program);
                command.arg("replicate").arg(database).arg(format!("file://{}", store.display()));
                command
            }
            _ => return Ok(Self { child: None, store, system }),
        };
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Self { child: Some(command.spawn()?), store, system })
    }

    /// Starts one and waits until a first full copy is stored, and then until nothing new is stored for a while.
    ///
    /// # Errors
    /// When that takes ten minutes.
    pub fn start_and_settle(world: &World, system: System, database: &Path) -> Outcome<Self> {
        let daemon = Self::start(world, system, database)?;
        if daemon.child.is_some() {
            daemon.wait_for_first_copy()?;
            daemon.wait_until_quiet(Duration::from_millis(world.scale.pick(300, 1500, 2500)))?;
        }
        Ok(daemon)
    }

    /// Waits until it has stored a first full copy; gives how many objects and bytes there are.
    ///
    /// # Errors
    /// When that takes ten minutes.
    pub fn wait_for_first_copy(&self) -> Outcome<Stored> {
        let is_copy = |name: &str| match self.system {
            System::Everwhen => name.contains("/base/"),
            _ => name.ends_with(".ltx"),
        };
        self.wait_for(|stored| stored.names.iter().any(|name| is_copy(name)))
    }

    /// Waits until what is stored is as wanted, looking every few milliseconds.
    ///
    /// # Errors
    /// When that takes ten minutes.
    pub fn wait_for(&self, wanted: impl Fn(&Stored) -> bool) -> Outcome<Stored> {
        let began = Instant::now();
        loop {
            let stored = stored_in(&self.store);
            if wanted(&stored) {
                return Ok(stored);
            }
            if began.elapsed() > Duration::from_secs(600) {
                return Err(format!("{} stored nothing in ten minutes", self.system.name()).into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until nothing was stored for so long.
    ///
    /// # Errors
    /// None but those of [`Daemon::wait_for`].
    pub fn wait_until_quiet(&self, quiet: Duration) -> Outcome<Stored> {
        let mut last = stored_in(&self.store);
        let mut since = Instant::now();
        while since.elapsed() < quiet {
            std::thread::sleep(Duration::from_millis(20));
            let now = stored_in(&self.store);
            if now.bytes != last.bytes {
                (last, since) = (now, Instant::now());
            }
        }
        Ok(last)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Asks it to end, and waits.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub fn stop(mut self) -> Outcome<()> {
        if let Some(mut child) = self.child.take() {
            let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or("no process id")?;
            kill_process(pid, Signal::TERM)?;
            child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What is in a folder, whatever the program.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// Paths of all files below it.
    pub names: Vec<String>,
    /// Bytes in them.
    pub bytes: u64,
}

impl Stored {
    /// Files.
    #[must_use]
    pub fn objects(&self) -> u64 {
        self.names.len() as u64
    }
}

/// Looks at all files below a folder. Files that go away meanwhile are not counted.
#[must_use]
pub fn stored_in(folder: &Path) -> Stored {
    let mut stored = Stored::default();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(data) if data.is_dir() => folders.push(entry.path()),
                Ok(data) => {
                    stored.bytes += data.len();
                    stored.names.push(entry.path().display().to_string());
                }
                Err(_) => {}
            }
        }
    }
    stored
}

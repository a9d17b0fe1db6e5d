//! Daemons in processes of their own, and what they leave in folders.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};

use crate::Outcome;
use crate::process::{ProcessUse, process_use};
use crate::workload::Steps;
use crate::world::World;

/// When nothing was stored for so long, litestream has compacted what it had: it looks every 30 s.
pub const COMPACTED: Duration = Duration::from_secs(35);

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

    /// Whether an object of that name makes a full copy complete.
    #[must_use]
    pub fn is_full_copy(self, object: &str) -> bool {
        match self {
            Self::Everwhen => object.contains("/base/"),
            Self::Litestream => object.ends_with(".ltx"),
            Self::Nothing => false,
        }
    }

    /// Whether an object of that name holds transactions.
    #[must_use]
    pub fn is_log(self, object: &str) -> bool {
        match self {
            Self::Everwhen => object.contains("/log/"),
            Self::Litestream => object.ends_with(".ltx"),
            Self::Nothing => false,
        }
    }

    /// Those that can be had in this run.
    #[must_use]
    pub fn available(world: &World) -> Vec<Self> {
        let mut all = vec![Self::Nothing, Self::Everwhen];
        all.extend(world.litestream.is_some().then_some(Self::Litestream));
        all
    }

    /// Those of them that are programs.
    #[must_use]
    pub fn daemons(world: &World) -> Vec<Self> {
        Self::available(world).into_iter().filter(|system| *system != Self::Nothing).collect()
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
        Self::start_at(world, system, database, &store_url(database)?, &[])
    }

    /// Starts Everwhen with a new key, drawn into a file, that seals all it stores next to `database`. Does not wait.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start_sealed(world: &World, database: &Path, key: &Path) -> Outcome<Self> {
        let url = store_url(database)?;
        let mut command = Command::new(&world.everwhen);
        let output = command.args(["key", "init", "--store", &url]).arg(key).output()?;
        if !output.status.success() {
            return Err(format!("no key: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        let environment = [("EVERWHEN_KEY_FILE".to_owned(), key.display().to_string())];
        Self::start_at(world, System::Everwhen, database, &url, &environment)
    }

    /// Starts one that stores at a URL, which it reaches with the help of its environment. Does not wait.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start_at(
        world: &World,
        system: System,
        database: &Path,
        url: &str,
        environment: &[(String, String)],
    ) -> Outcome<Self> {
        let store = database.with_extension("store");
        let command = match (system, &world.litestream) {
            (System::Everwhen, _) => {
                let mut command = Command::new(&world.everwhen);
                command.arg("run").arg(database).args(["--store", url]);
                command.arg("--state").arg(database.with_extension("state"));
                command.args(["--listen", "off", "--metrics", "off"]);
                command
            }
            (System::Litestream, Some(program)) => {
                let mut command = Command::new(program);
                command.arg("replicate").arg(database).arg(url);
                command
            }
            _ => return Ok(Self { child: None, store, system }),
        };
        Self::spawn(command, environment, store, system)
    }

    /// Starts one beside several databases in a folder, with one store for all in `all.store`. Does not wait.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start_beside_many(
        world: &World,
        system: System,
        databases: &[PathBuf],
        folder: &Path,
    ) -> Outcome<Self> {
        let all = folder.join("all.db");
        let url = store_url(&all)?;
        let command = match (system, &world.litestream) {
            (System::Litestream, Some(program)) => {
                let mut config = "dbs:\n".to_owned();
                for (number, path) in databases.iter().enumerate() {
                    let path = std::path::absolute(path)?;
                    config +=
                        &format!("  - path: {}\n    replica:\n      url: {url}/{number}\n", path.display());
                }
                let file = folder.join("litestream.yml");
                std::fs::write(&file, config)?;
                let mut command = Command::new(program);
                command.args(["replicate", "-config"]).arg(file);
                command
            }
            _ => {
                let mut command = Command::new(&world.everwhen);
                command.arg("run").args(databases).args(["--store", &url, "--state"]);
                command.arg(all.with_extension("state")).args(["--listen", "off", "--metrics", "off"]);
                command
            }
        };
        Self::spawn(command, &[], all.with_extension("store"), system)
    }

    /// Its output goes to a log next to its store.
    fn spawn(
        mut command: Command,
        environment: &[(String, String)],
        store: PathBuf,
        system: System,
    ) -> Outcome<Self> {
        let log = File::options().create(true).append(true).open(store.with_extension("daemon.log"))?;
        // What the shell says of other stores (a certificate, an endpoint, a key) is not meant for this one.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AWS_")) {
            command.env_remove(name);
        }
        command.envs(environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Self { child: Some(command.spawn()?), store, system })
    }

    /// Starts one and waits until a first full copy is stored, and then until nothing new is stored for a while. With no
    /// daemon it waits as long: the disk comes to rest.
    ///
    /// # Errors
    /// When that takes ten minutes.
    pub fn start_and_settle(world: &World, system: System, database: &Path) -> Outcome<Self> {
        let daemon = Self::start(world, system, database)?;
        if daemon.child.is_some() {
            daemon.wait_for_first_copy()?;
        }
        daemon.settle(world)?;
        Ok(daemon)
    }

    /// Starts one, and waits until its first full copy is compacted too, which litestream does within half a minute
    /// once there is something new: a transaction of `writer` gives it that.
    ///
    /// # Errors
    /// When that takes ten minutes, and SQLite's.
    pub fn start_and_compact(
        world: &World,
        system: System,
        database: &Path,
        connection: &mut Connection,
        writer: &mut impl Steps,
    ) -> Outcome<Self> {
        let daemon = Self::start_and_settle(world, system, database)?;
        writer.step(connection)?;
        daemon.wait_until_quiet(world.scale.pick(Duration::ZERO, COMPACTED, COMPACTED))?;
        Ok(daemon)
    }

    /// Waits until nothing was stored for a while and everything is on the disk.
    ///
    /// # Errors
    /// None but those of [`Daemon::wait_for`].
    pub fn settle(&self, world: &World) -> Outcome<Stored> {
        rustix::fs::sync();
        self.wait_until_quiet(Duration::from_millis(world.scale.pick(300, 1500, 2500)))
    }

    /// Waits until it has stored a first full copy; gives how many objects and bytes there are.
    ///
    /// # Errors
    /// When that takes ten minutes.
    pub fn wait_for_first_copy(&self) -> Outcome<Stored> {
        self.wait_for(|stored| stored.names.iter().any(|name| self.system.is_full_copy(name)))
    }

    /// Waits until what is stored is as wanted, looking every 2 ms for a second, then every 20: each look reads all
    /// names, which takes from the cores that it works on.
    ///
    /// # Errors
    /// When that takes ten minutes.
    pub fn wait_for(&self, wanted: impl Fn(&Stored) -> bool) -> Outcome<Stored> {
        let began = Instant::now();
        let mut looked = began;
        loop {
            let stored = stored_in(&self.store);
            if wanted(&stored) {
                return Ok(stored);
            }
            if began.elapsed() > Duration::from_secs(600) {
                return Err(format!("{} stored nothing in ten minutes", self.system.name()).into());
            }
            if looked.elapsed() > Duration::from_millis(500) {
                self.look()?;
                looked = Instant::now();
            }
            let long = began.elapsed() > Duration::from_secs(1);
            std::thread::sleep(Duration::from_millis(if long { 20 } else { 2 }));
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

    /// How many objects with transactions are in its store.
    #[must_use]
    pub fn logs(&self) -> u64 {
        stored_where(&self.store, |name| self.system.is_log(name)).objects()
    }

    /// Memory, files and processor time of its process.
    ///
    /// # Errors
    /// When it ended; with the last line of its log.
    pub fn look(&self) -> Outcome<ProcessUse> {
        let process = self.child.as_ref().and_then(|child| process_use(child.id()));
        process.ok_or_else(|| {
            let path = self.store.with_extension("daemon.log");
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            let last = log.lines().last().unwrap_or("nothing");
            format!("{} ended; the last it said in {}: {last}", self.system.name(), path.display()).into()
        })
    }

    /// Keeps it from doing anything.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn stand_still(&self) -> Outcome<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on after [`Daemon::stand_still`].
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn go_on(&self) -> Outcome<()> {
        self.signal(Signal::CONT)
    }

    /// Asks it to end, and waits.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub fn stop(mut self) -> Outcome<()> {
        if self.child.is_some() {
            self.signal(Signal::TERM)?;
        }
        if let Some(mut child) = self.child.take() {
            child.wait()?;
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Outcome<()> {
        let pid = self.child.as_ref().and_then(|child| Pid::from_raw(i32::try_from(child.id()).ok()?));
        Ok(kill_process(pid.ok_or("no process")?, signal)?)
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

/// The store next to a database.
fn store_url(database: &Path) -> Outcome<String> {
    Ok(format!("file://{}", std::path::absolute(database.with_extension("store"))?.display()))
}

/// What is in a folder, whatever the program.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// Paths of all files below it.
    pub names: HashSet<String>,
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
    stored_where(folder, |_| true)
}

/// Looks at the files below a folder whose paths fit.
#[must_use]
pub fn stored_where(folder: &Path, fits: impl Fn(&str) -> bool) -> Stored {
    let mut stored = Stored::default();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(data) if data.is_dir() => folders.push(entry.path()),
                Ok(data) => {
                    let name = entry.path().display().to_string();
                    if fits(&name) {
                        stored.bytes += data.len();
                        stored.names.insert(name);
                    }
                }
                Err(_) => {}
            }
        }
    }
    stored
}

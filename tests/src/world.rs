//! A temporary folder with one database, and the real program run in it.

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::Value;
use tempfile::TempDir;

/// One database in a folder of its own.
pub struct World {
    folder: TempDir,
    program: PathBuf,
    store: Option<String>,
    environment: Vec<(String, String)>,
}

/// What the program answered.
#[derive(Debug)]
pub struct Answer {
    /// The exit code; -1 for a signal.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Answer {
    /// Standard output as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// Standard output as one JSON value a line.
    ///
    /// # Panics
    /// When a line is none.
    #[must_use]
    pub fn json_lines(&self) -> Vec<Value> {
        self.out
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}")))
            .collect()
    }

    /// The JSON error on standard error.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn error(&self) -> Value {
        let start = self.err.rfind("{\"error\"").unwrap_or_else(|| panic!("no JSON error in {self:?}"));
        serde_json::from_str::<Value>(self.err[start..].trim())
            .unwrap_or_else(|error| panic!("{error} in {self:?}"))["error"]
            .clone()
    }

    /// Itself, if the exit code is the expected one.
    ///
    /// # Panics
    /// Otherwise.
    #[must_use]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }
}

impl World {
    /// A new folder; `program` is `env!("CARGO_BIN_EXE_everwhen-under-test")`.
    ///
    /// # Panics
    /// When no folder can be made.
    #[must_use]
    pub fn new(program: &str) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        Self { folder, program: program.into(), store: None, environment: Vec::new() }
    }

    /// With this store instead of the embedded one.
    #[must_use]
    pub fn with_store(mut self, store: &str) -> Self {
        self.store = Some(store.to_owned());
        self
    }

    /// With this environment variable for every run of the program.
    #[must_use]
    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// A path in the folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.path("app.db")
    }

    /// The embedded repository.
    #[must_use]
    pub fn repository(&self) -> PathBuf {
        self.path("app.db.everwhen")
    }

    /// A connection as an application has one, in WAL mode, with no busy timeout.
    ///
    /// # Panics
    /// When it cannot be opened.
    #[must_use]
    pub fn connect(&self) -> Connection {
        let connection = Connection::open(self.database()).expect("open");
        connection.pragma_update(None, "journal_mode", "wal").expect("wal");
        connection
    }

    /// The program with these arguments, in the folder and with the environment of this world.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).current_dir(self.folder.path()).env_remove("EVERWHEN_FAILPOINT");
        command.env("XDG_STATE_HOME", self.path("state-home")).env("HOME", self.folder.path());
        if let Some(store) = &self.store {
            command.env("EVERWHEN_STORE", store).env("EVERWHEN_STATE", self.path("state"));
        }
        for (name, value) in &self.environment {
            command.env(name, value);
        }
        command
    }

    /// Runs the program to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn everwhen(&self, arguments: &[&str]) -> Answer {
        let Output { status, stdout, stderr } = self.command(arguments).output().expect("run everwhen");
        Answer {
            code: status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&stdout).into_owned(),
            err: String::from_utf8_lossy(&stderr).into_owned(),
        }
    }

    /// Starts the daemon on the database.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn daemon(&self) -> Daemon<'_> {
        self.daemon_with(&[], &[])
    }

    /// Starts the daemon with more arguments and environment.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn daemon_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Daemon<'_> {
        self.daemon_at("off", arguments, environment)
    }

    /// Starts the daemon with its API at this address.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn daemon_at(&self, address: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Daemon<'_> {
        let database = self.database();
        let state = self.path("state");
        let mut all = vec!["run", database.to_str().expect("path"), "--listen", address, "--metrics", "off"];
        if self.store.is_some() {
            all.extend(["--state", state.to_str().expect("path")]);
        }
        all.extend(arguments);
        let log =
            std::fs::File::options().create(true).append(true).open(self.path("daemon.log")).expect("log");
        let mut command = self.command(&all);
        command.envs(environment.iter().copied()).stdout(Stdio::null()).stderr(log).stdin(Stdio::null());
        Daemon { child: command.spawn().expect("start the daemon"), world: self }
    }

    /// What the daemons of this world logged.
    #[must_use]
    pub fn daemon_log(&self) -> String {
        std::fs::read_to_string(self.path("daemon.log")).unwrap_or_default()
    }

    /// The status of the database, if it can be had.
    #[must_use]
    pub fn status(&self) -> Option<Value> {
        let database = self.database();
        let mut arguments = vec!["status", database.to_str()?, "--json"];
        let state = self.path("state");
        if self.store.is_some() {
            arguments.extend(["--state", state.to_str()?]);
        }
        let answer = self.everwhen(&arguments);
        if answer.code != 0 {
            return None;
        }
        answer.json()["databases"].get(0).cloned()
    }

    /// All restore points.
    ///
    /// # Panics
    /// When they cannot be listed.
    #[must_use]
    pub fn points(&self) -> Vec<Value> {
        self.everwhen(&["points", self.database().to_str().expect("path"), "--json"]).exits(0).json_lines()
    }

    /// Restores to a new file under `name` and returns the answer.
    ///
    /// # Panics
    /// When the program cannot be started.
    #[must_use]
    pub fn restore(&self, point: &[&str], name: &str) -> (Answer, PathBuf) {
        let (database, target) = (self.database(), self.path(name));
        let mut arguments = vec![
            "restore",
            database.to_str().expect("path"),
            "--json",
            "--to",
            target.to_str().expect("path"),
        ];
        arguments.extend(point);
        (self.everwhen(&arguments), target)
    }
}

/// A running daemon; killed when dropped.
pub struct Daemon<'a> {
    child: Child,
    world: &'a World,
}

impl Daemon<'_> {
    /// Waits until everything committed so far is durable.
    ///
    /// # Panics
    /// When that takes longer than 30 s.
    pub fn settle(&mut self) {
        let wanted = Instant::now() + Duration::from_secs(30);
        let mut last = None;
        // Twice the same: what was committed before the call has been seen and is durable.
        let mut same = 0;
        while Instant::now() < wanted {
            assert!(
                self.child.try_wait().expect("wait").is_none(),
                "the daemon died: {}",
                self.world.daemon_log()
            );
            let status = self.world.status();
            if let Some(status) = &status {
                let (captured, durable) = (&status["captured"]["position"], &status["durable"]["position"]);
                let settled = captured.is_string() && captured == durable && status["lag_ms"] == 0;
                same = if settled && last.as_ref() == Some(captured) { same + 1 } else { 0 };
                last = settled.then(|| captured.clone());
                if same >= 2 {
                    return;
                }
            }
            std::thread::sleep(Duration::from_millis(60));
        }
        panic!("not durable: {:?}\n{}", self.world.status(), self.world.daemon_log());
    }

    /// `kill -9`.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        self.child.wait().expect("wait");
    }

    /// SIGTERM, and the exit status.
    ///
    /// # Panics
    /// When it does not end within 30 s.
    #[must_use]
    pub fn terminate(mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status().expect("kill");
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return status;
            }
            assert!(Instant::now() < until, "the daemon does not end: {}", self.world.daemon_log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for it to end by itself (a failpoint).
    ///
    /// # Errors
    /// When it does not within `max`.
    pub fn wait_for_death(&mut self, max: Duration) -> Result<ExitStatus, String> {
        let until = Instant::now() + max;
        loop {
            if let Some(status) = self.child.try_wait().map_err(|error| error.to_string())? {
                return Ok(status);
            }
            if Instant::now() > until {
                return Err("it lives".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

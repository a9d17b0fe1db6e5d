//! A state folder: what one daemon keeps on its own machine, beside what is in the repository.
//!
//! ```text
//! host                      this installation's id, drawn once
//! daemon.lock               held by the running daemon; holds its process id
//! api.sock                  its API
//! stores                    the stores that databases were protected into
//! databases.toml            databases added by `everwhen databases add`, in the form of the configuration
//! <name>-<repository>/      the engine's, of a database: journal, page hashes, spool
//! repository-<repository>/  the catalog
//! ```
//! Losing the folder loses no history: the next start compares the database with the repository and goes on.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use everwhen_engine::error::ErrorKind;
use everwhen_engine::ids::HostId;
use rustix::fs::FlockOperation;

use crate::config::{Config, DatabaseEntry};
use crate::failure::Failure;

/// One state folder, made if it was not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StateFolder {
    path: PathBuf,
}

/// The proof that this process is the only daemon on a state folder. Let go when dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl StateFolder {
    /// Names a folder; makes nothing.
    pub(crate) fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where state lies when nobody says: root has the system's place, everyone else their own.
    pub(crate) fn usual() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(home) = variable("XDG_STATE_HOME").filter(|home| home.is_absolute()) {
            return Self::at(home.join("everwhen"));
        }
        match variable("HOME") {
            Some(home) if !rustix::process::geteuid().is_root() => {
                Self::at(home.join(".local/state/everwhen"))
            }
            _ => Self::at("/var/lib/everwhen"),
        }
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The daemon's socket in it.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join("api.sock")
    }

    /// Makes the folder, for its owner only: it holds parts of databases.
    pub(crate) fn make(&self) -> Result<(), Failure> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path).map_err(|error| {
            Failure::io(format!("cannot make the state folder {}", self.path.display()), &error)
                .advise("name another one with --state")
        })
    }

    /// Takes the folder for this process.
    pub(crate) fn lock(&self) -> Result<Lock, Failure> {
        let path = self.path.join("daemon.lock");
        let doing = || format!("cannot lock {}", path.display());
        let options =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = options
            .map_err(|error| Failure::io(doing(), &error).advise("name another state folder with --state"))?;
        if !is_locked(&file).map_err(|error| Failure::io(doing(), &error))? {
            let mut pid = String::new();
            let _ = (&mut file).take(32).read_to_string(&mut pid);
            return Err(Failure::new(
                ErrorKind::Refused,
                format!("another daemon (process {}) runs on the state folder {}", pid.trim(), self.path.display()),
            )
            .advise("add databases to it with `everwhen databases add`, or give this one a folder of its own with --state"));
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|error| Failure::io(doing(), &error))?;
        Ok(Lock { _file: file })
    }

    /// This installation's id; drawn at the first call.
    pub(crate) fn host(&self) -> Result<HostId, Failure> {
        let path = self.path.join("host");
        match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map_err(|error| {
                Failure::new(ErrorKind::Failed, format!("the host id in {} is damaged", path.display()))
                    .caused_by(&error)
                    .advise("delete the file: a new id is drawn")
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let host = HostId::from_bytes(random_bytes()?);
                write_whole(&path, &format!("{host}\n"))?;
                Ok(host)
            }
            Err(error) => Err(Failure::io(format!("cannot read {}", path.display()), &error)),
        }
    }

    fn stores_path(&self) -> PathBuf {
        self.path.join("stores")
    }

    /// Whether databases were protected into this store from here before.
    pub(crate) fn has_used(&self, store: &str) -> Result<bool, Failure> {
        Ok(self.stores()?.lines().any(|line| line == store))
    }

    /// The stores, one a line.
    fn stores(&self) -> Result<String, Failure> {
        let path = self.stores_path();
        match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            read => read.map_err(|error| Failure::io(format!("cannot read {}", path.display()), &error)),
        }
    }

    /// Remembers a store that databases are protected into.
    pub(crate) fn remember(&self, store: &str) -> Result<(), Failure> {
        if self.has_used(store)? {
            return Ok(());
        }
        write_whole(&self.stores_path(), &format!("{}{store}\n", self.stores()?))
    }

    fn added_path(&self) -> PathBuf {
        self.path.join("databases.toml")
    }

    /// The databases that were added by hand.
    pub(crate) fn added(&self) -> Result<Vec<DatabaseEntry>, Failure> {
        let path = self.added_path();
        if !path.exists() {
            return Ok(Vec::new());
        }
        Config::load_list(&path).map_err(|error| Failure::of(&error))
    }

    /// Replaces the list of databases that were added by hand.
    pub(crate) fn set_added(&self, entries: &[DatabaseEntry]) -> Result<(), Failure> {
        self.make()?;
        let mut text =
            String::from("# Written by `everwhen databases`. The daemon reads it when it starts.\n");
        for entry in entries {
            text.push_str(&entry.to_toml());
        }
        write_whole(&self.added_path(), &text)
    }
}

/// 8 bytes from the system's generator.
fn random_bytes() -> Result<[u8; 8], Failure> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(|error| Failure::io("cannot draw a random id", &error))?;
    Ok(bytes)
}

/// Writes a small file whole or not at all, durably.
fn write_whole(path: &Path, text: &str) -> Result<(), Failure> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|error| Failure::io(format!("cannot write {}", path.display()), &error))
}

/// Locks a file for this process; `false` when another one has it.
fn is_locked(file: &File) -> std::io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use everwhen_engine::capture::sqlite::SqliteOptions;

    use super::*;

    fn folder() -> (tempfile::TempDir, StateFolder) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateFolder::at(dir.path().join("state"));
        state.make().unwrap();
        (dir, state)
    }

    #[test]
    fn a_folder_has_one_daemon() {
        let (_dir, state) = folder();
        let lock = state.lock().unwrap();
        let refused = state.lock().unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Refused);
        assert!(refused.message().contains(&std::process::id().to_string()), "{}", refused.message());
        drop(lock);
        state.lock().unwrap();
    }

    #[test]
    fn the_host_is_drawn_once() {
        let (_dir, state) = folder();
        assert_eq!(state.host().unwrap(), state.host().unwrap());
        std::fs::write(state.path().join("host"), "nonsense").unwrap();
        assert!(state.host().unwrap_err().advice.is_some());
    }

    #[test]
    fn a_list_of_stores_that_cannot_be_read_is_not_an_empty_one() {
        let (_dir, state) = folder();
        assert!(!state.has_used("file:///a").unwrap());
        state.remember("file:///a").unwrap();
        state.remember("file:///b").unwrap();
        assert!(state.has_used("file:///a").unwrap() && state.has_used("file:///b").unwrap());
        std::fs::write(state.stores_path(), [0xff]).unwrap();
        assert!(state.has_used("file:///a").is_err() && state.remember("file:///c").is_err());
        assert_eq!(std::fs::read(state.stores_path()).unwrap(), [0xff]);
    }

    #[test]
    fn added_databases_are_read_back() {
        let (_dir, state) = folder();
        assert_eq!(state.added().unwrap(), []);
        let entries = [
            DatabaseEntry {
                name: Some("tr\"icky\\\n".into()),
                sqlite: SqliteOptions { convert_to_wal: true, hard_frames: None, ..SqliteOptions::default() },
                ..DatabaseEntry::of("/a/b.db")
            },
            DatabaseEntry { class: "mine".into(), ..DatabaseEntry::of("/c.db") },
        ];
        state.set_added(&entries).unwrap();
        assert_eq!(state.added().unwrap(), entries);
    }
}

//! Where questions are asked: how much to measure, which programs, scratch folders, and large databases to copy.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::database::{copy_synced, make_accounts};

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

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.pick("smoke", "quick", "full")
    }
}

/// What to measure, by which programs, and where.
#[derive(Clone, Debug)]
pub struct Setting {
    /// How much to measure.
    pub scale: Scale,
    /// Also what takes tens of GiB and many minutes.
    pub large: bool,
    /// How long the soak takes, in minutes.
    pub minutes: f64,
    /// The `everwhen` binary, for what is asked of a whole process.
    pub everwhen: PathBuf,
    /// The commit it is built from.
    pub revision: String,
    /// The peer.
    pub litestream: Option<PathBuf>,
    /// Where to work. One run at a time.
    pub folder: PathBuf,
    /// Where answers of earlier questions are kept.
    pub results: PathBuf,
}

/// The surroundings of a run.
#[derive(Debug)]
pub struct World {
    setting: Setting,
    /// For what is asked in this process.
    pub runtime: Runtime,
    made: Mutex<BTreeMap<u64, PathBuf>>,
    measured: Mutex<BTreeMap<&'static str, Value>>,
    _lock: File,
}

impl std::ops::Deref for World {
    type Target = Setting;

    fn deref(&self) -> &Setting {
        &self.setting
    }
}

impl World {
    /// Works as it is set.
    ///
    /// # Errors
    /// When another run works in the folder, or threads cannot be started.
    pub fn new(setting: Setting) -> Outcome<Self> {
        std::fs::create_dir_all(&setting.folder)?;
        let lock = File::create(setting.folder.join("lock"))?;
        lock.try_lock().map_err(|_| {
            let folder = setting.folder.display();
            format!("another run works in {folder}: give this one a folder of its own by --work")
        })?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        Ok(Self { setting, runtime, made: Mutex::default(), measured: Mutex::default(), _lock: lock })
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

    /// Removes a folder of [`World::fresh`], if it is there.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn discard(&self, name: &str) -> Outcome<()> {
        let folder = self.folder.join(name);
        if folder.exists() {
            std::fs::remove_dir_all(folder)?;
        }
        Ok(())
    }

    /// Keeps what a question measured, for those that reckon with it.
    pub fn keep(&self, question: &'static str, measured: Value) {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner).insert(question, measured);
    }

    /// What a question measured, in this run or, as it was kept in a file, in an earlier one; and of which build.
    ///
    /// # Errors
    /// When it was asked in neither.
    pub fn measured(&self, question: &str) -> Outcome<(Value, String)> {
        let kept = self.measured.lock().unwrap_or_else(PoisonError::into_inner).get(question).cloned();
        if let Some(kept) = kept {
            return Ok((kept, self.revision.clone()));
        }
        let path = self.results.join(format!("{question}.json"));
        let text = std::fs::read_to_string(&path)
            .map_err(|error| format!("{}: {error}; ask '{question}' as well", path.display()))?;
        let mut value: Value = serde_json::from_str(&text)?;
        let revision = value["revision"].as_str().unwrap_or("an unknown build").to_owned();
        Ok((value["measured"].take(), revision))
    }

    /// Rounds of something that is measured against something else: odd, so that their median is one that was measured.
    #[must_use]
    pub fn rounds(&self) -> u64 {
        self.scale.pick(1, 3, 5)
    }

    /// Rounds, where one takes many seconds.
    #[must_use]
    pub fn long_rounds(&self) -> u64 {
        self.scale.pick(1, 1, 3)
    }

    /// Waits until the machine is as each measurement is to find it: see [`rest`](mod@crate::rest).
    pub fn rest(&self) {
        crate::rest::rest(self.scale);
    }

    /// Makes sure that so many MiB are free where we work.
    ///
    /// # Errors
    /// When they are not.
    pub fn needs_mib(&self, mib: u64) -> Outcome<()> {
        let disk = rustix::fs::statvfs(&self.folder)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize) >> 20;
        if free < mib {
            let folder = self.folder.display();
            return Err(format!(
                "{free} MiB are free in {folder}, and {mib} are needed: choose another by --work"
            )
            .into());
        }
        Ok(())
    }

    /// How large the large database is, in MiB: 1024 in a full run.
    #[must_use]
    pub fn large_mib(&self) -> u64 {
        self.scale.pick(4, 128, 1024)
    }

    /// A copy of a point-update database of so many MiB, at `to`. It is made once a run.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn accounts(&self, mib: u64, to: &Path) -> Outcome<()> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let path = match made.entry(mib) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let path = self.fresh(&format!("accounts-{mib}"))?.join("app.db");
                make_accounts(&path, mib)?;
                unknown.insert(path)
            }
        };
        copy_synced(path, to)
    }
}

impl Drop for World {
    /// Leaves no databases behind.
    fn drop(&mut self) {
        for mib in self.made.lock().unwrap_or_else(PoisonError::into_inner).keys() {
            let _ = self.discard(&format!("accounts-{mib}"));
        }
    }
}

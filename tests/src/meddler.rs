//! What stands between a process and the system: a clock that is off, a kill at a sync, a full or read-only folder.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A library that is loaded before all others, and the folder from which it reads what is to happen.
pub struct Meddler {
    folder: PathBuf,
    library: PathBuf,
}

impl Meddler {
    /// Builds it in a new folder under `within`.
    ///
    /// # Panics
    /// When there is no C compiler: `cc` is needed to build SQLite as well.
    #[must_use]
    pub fn new(within: &Path) -> Self {
        let folder = within.join("meddler");
        std::fs::create_dir(&folder).expect("folder");
        let (source, library) = (folder.join("meddler.c"), folder.join("meddler.so"));
        std::fs::write(&source, include_str!("meddler.c")).expect("source");
        let built =
            Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).args([&library, &source]).status();
        assert!(built.expect("cc").success());
        Self { folder, library }
    }

    /// The environment of a process that is to be meddled with.
    ///
    /// # Panics
    /// When a path is no text.
    #[must_use]
    pub fn environment(&self) -> [(&str, &str); 2] {
        fn text(path: &Path) -> &str {
            path.to_str().expect("path")
        }
        [("LD_PRELOAD", text(&self.library)), ("EVERWHEN_MEDDLER", text(&self.folder))]
    }

    /// From now on: `clock` (seconds to add), `die-at-sync` (the end of a name), `full` or `read-only` (a folder).
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn tell(&self, what: &str, word: &str) {
        // As a whole: a process may be reading.
        let draft = self.folder.join("draft");
        std::fs::write(&draft, word).expect("write");
        std::fs::rename(draft, self.folder.join(what)).expect("rename");
    }

    /// No more of that.
    ///
    /// # Panics
    /// When it was not told.
    pub fn untell(&self, what: &str) {
        std::fs::remove_file(self.folder.join(what)).expect("remove");
    }
}

//! The process's descriptors of wal-indexes (`-shm`), and what is remembered of those that sources have left.
//!
//! An index is opened once and **kept as long as it has a name**. Closing any descriptor of it would drop all POSIX
//! locks this process has on it, those of SQLite's pins among them. That is why [`shared`] gives up only a file that was
//! deleted and that no source is on any more.
//!
//! A source that leaves a file because its path leads elsewhere may leave others behind: an application on an index that
//! was deleted, or a log that belongs to the file that was there before. To SQLite only names count: whoever opens the
//! database next begins a second index beside the first, or lays the log over the new file. So [`stray`] is asked first.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::files::{FileId, beside, others_have_open};

/// An index that was opened by this path.
struct Known {
    path: PathBuf,
    id: FileId,
    file: Arc<File>,
    left: Option<Left>,
}

/// What a source was on when it left. The log is held open so that no other file can get its inode.
struct Left {
    database: FileId,
    log: File,
    /// Another process was on it too. Who came when all had closed is on what the names led to by then.
    shared: bool,
}

/// What is in the way of opening a database that was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stray {
    /// Another process is on an index that was deleted.
    Index,
    /// Another process is on a log that was deleted or replaced.
    Log,
    /// The log is that of another database file.
    Database,
}

static KNOWN: Mutex<Vec<Known>> = Mutex::new(Vec::new());

/// The process's one descriptor of the index at a path, opened for reading at the first call. It is closed when nobody
/// can come to the file any more and the last source on it has let go: before that connections of this process may be on
/// it, and we could not know.
pub(super) fn shared(path: &Path) -> io::Result<(FileId, Arc<File>)> {
    let mut all = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let at_path = FileId::of(&std::fs::metadata(path)?);
    all.iter_mut().filter(|known| known.path == path).for_each(|known| known.left = None);
    if let Some(known) = all.iter().find(|known| known.id == at_path) {
        return Ok((known.id, known.file.clone()));
    }
    all.retain(Known::is_needed);
    let file = Arc::new(File::open(path)?);
    // Registered before anything can fail, under the name of what was really opened.
    let id = file.metadata().map_or(at_path, |metadata| FileId::of(&metadata));
    all.push(Known { path: path.to_owned(), id, file: file.clone(), left: None });
    Ok((id, file))
}

/// A source is about to leave this index. Of an empty log that nobody else is on nothing is
/// to be remembered: what will be in it is of the file that is there then.
pub(super) fn leave(index: FileId, database: FileId, log: &File) {
    let mut all = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = all.iter_mut().find(|known| known.id == index) {
        let shared = others_have_open(&known.file);
        let empty = log.metadata().is_ok_and(|log| log.len() == 0);
        let log = log.try_clone().ok().filter(|_| shared || !empty);
        known.left = log.map(|log| Left { database, log, shared });
    }
}

/// What is in the way of opening this database, which is the file `id` now.
pub(super) fn stray(database: &Path, id: FileId) -> io::Result<Option<Stray>> {
    let (index, log) = (beside(database, "-shm"), beside(database, "-wal"));
    let index_id = FileId::at(&index)?;
    let log_id = FileId::at(&log)?;
    let all = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    for known in all.iter().filter(|known| known.path == index) {
        if let Some(stray) = known.stray(id, index_id, log_id)? {
            return Ok(Some(stray));
        }
    }
    Ok(None)
}

impl Known {
    /// What is in the way when these are the files at the paths.
    fn stray(
        &self,
        database: FileId,
        index: Option<FileId>,
        log: Option<FileId>,
    ) -> io::Result<Option<Stray>> {
        if !self.has_name() && others_have_open(&self.file) {
            return Ok(Some(Stray::Index));
        }
        let Some(left) = &self.left else { return Ok(None) };
        // One that was moved away with all that belongs to it is no concern of this path.
        let used = left.shared && index == Some(self.id) && others_have_open(&self.file);
        let metadata = left.log.metadata()?;
        Ok(if log != Some(FileId::of(&metadata)) {
            used.then_some(Stray::Log)
        } else if left.database != database && (used || metadata.len() > 0) {
            Some(Stray::Database)
        } else {
            None
        })
    }

    fn is_needed(&self) -> bool {
        let in_use = Arc::strong_count(&self.file) > 1 || self.left.is_some();
        in_use || self.has_name() || others_have_open(&self.file)
    }

    /// Whether some path leads to it. Not knowing counts as yes.
    fn has_name(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        self.file.metadata().map_or(true, |metadata| metadata.nlink() > 0)
    }
}

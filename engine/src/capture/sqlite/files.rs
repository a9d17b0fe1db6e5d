//! The files of a database: which ones they are, whether they still are the same, and the descriptors we may hold.
//!
//! - `-wal`: SQLite takes no locks on it, so we open and close it as we like.
//! - `-shm`: opened once and **kept as long as it has a name**. Closing any descriptor of it would drop all POSIX
//!   locks this process has on it, those of SQLite's pins among them. That is why [`shared_index`] gives up only a file
//!   that was deleted and that no source is on any more.
//! - the database: never opened by us; see [`crate::capture::sqlite_ffi`].

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Flock, FlockType, fcntl_getlk};

use crate::sqlite::index;
use crate::sqlite::wal::Salts;

/// Which file a path led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    device: u64,
    pub(super) inode: u64,
}

impl FileId {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }

    /// The file at the path now; `None` when there is none.
    pub(super) fn at(path: &Path) -> io::Result<Option<Self>> {
        match std::fs::metadata(path) {
            Ok(metadata) => Ok(Some(Self::of(&metadata))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The name SQLite gives to a file that belongs to the database.
pub(super) fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(database.as_os_str());
    name.push(suffix);
    PathBuf::from(name)
}

static INDEXES: Mutex<Vec<(FileId, Arc<File>)>> = Mutex::new(Vec::new());

/// The process's one descriptor of a `-shm` file, opened for reading at the first call. It is closed when nobody can come
/// to the file any more and the last source on it has let go: before that connections of this process may be on it, and
/// we could not know.
pub(super) fn shared_index(path: &Path) -> io::Result<(FileId, Arc<File>)> {
    let mut known = INDEXES.lock().unwrap_or_else(PoisonError::into_inner);
    let at_path = FileId::of(&std::fs::metadata(path)?);
    if let Some((id, file)) = known.iter().find(|(id, _)| *id == at_path) {
        return Ok((*id, file.clone()));
    }
    known.retain(|(_, file)| Arc::strong_count(file) > 1 || has_name(file));
    let file = Arc::new(File::open(path)?);
    // Registered before anything can fail, under the name of what was really opened.
    let id = file.metadata().map_or(at_path, |metadata| FileId::of(&metadata));
    known.push((id, file.clone()));
    Ok((id, file))
}

/// Whether some path leads to an open file. Not knowing counts as yes.
fn has_name(file: &File) -> bool {
    file.metadata().map_or(true, |metadata| metadata.nlink() > 0)
}

/// Whether one other process holds both the writer's and the checkpointer's lock: a checkpoint that blocks writers is
/// under way there, and may be waiting for our pin. (A process that writes on one connection and checkpoints on another
/// looks the same.)
pub(super) fn checkpoint_blocks_writers(index: &File) -> bool {
    // A holder in another PID namespace, that of a container beside ours, has no number here: two such count as one.
    let pid_of = |start| holder(index, start, 1, FlockType::ReadLock).map(|lock| lock.pid);
    let checkpointer = pid_of(index::CHECKPOINT_LOCK_OFFSET);
    checkpointer.is_some() && checkpointer == pid_of(index::WRITE_LOCK_OFFSET)
}

/// Whether another process runs a checkpoint.
pub(super) fn others_checkpoint(index: &File) -> bool {
    holder(index, index::CHECKPOINT_LOCK_OFFSET, 1, FlockType::ReadLock).is_some()
}

/// Whether another process writes.
pub(super) fn others_write(index: &File) -> bool {
    holder(index, index::WRITE_LOCK_OFFSET, 1, FlockType::ReadLock).is_some()
}

/// Whether another process has a lock on any of the readers' slots.
pub(super) fn others_read(index: &File) -> bool {
    holder(index, index::READ_LOCKS_OFFSET, index::READ_LOCKS, FlockType::WriteLock).is_some()
}

/// A lock of another process that would keep us from locking these bytes in this way.
fn holder(index: &File, start: u64, length: u64, kind: FlockType) -> Option<Flock> {
    fcntl_getlk(index, &Flock { start, length, ..Flock::from(kind) }).ok().flatten()
}

/// The raw head of the wal-index and the number of backfilled frames, in one read.
pub(super) fn read_head(index: &File) -> io::Result<[u8; index::HEAD_LEN + 4]> {
    let mut bytes = [0; index::HEAD_LEN + 4];
    match index.read_exact_at(&mut bytes, 0) {
        // A file that is still being set up.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok([0; index::HEAD_LEN + 4]),
        other => other.map(|()| bytes),
    }
}

/// Which log, and how much of it is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Backfill {
    pub(super) salts: Salts,
    pub(super) frames: u32,
}

/// How much of which log is in the file; `None` while more may be, or nobody knows.
pub(super) fn read_backfill(index: &File) -> io::Result<Option<Backfill>> {
    let mut bytes = [0; index::BACKFILL_ATTEMPTED_OFFSET as usize + 4];
    match index.read_exact_at(&mut bytes, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let frames = index::native32(&bytes, index::BACKFILL_OFFSET as usize);
    let attempted = index::native32(&bytes, index::BACKFILL_ATTEMPTED_OFFSET as usize);
    let head = index::IndexHead::parse(&bytes).ok().filter(|_| attempted <= frames);
    Ok(head.map(|head| Backfill { salts: head.salts, frames }))
}

/// The number of backfilled frames.
pub(super) fn read_backfilled(index: &File) -> io::Result<u32> {
    let mut bytes = [0; 4];
    index.read_exact_at(&mut bytes, index::BACKFILL_OFFSET)?;
    Ok(index::native32(&bytes, 0))
}

/// The kind of a file system on which shared memory or locks do not reach all users of a file.
#[cfg(target_os = "linux")]
pub(super) fn network_file_system(path: &Path) -> Option<&'static str> {
    let kind = rustix::fs::statfs(path).ok()?.f_type as u64 & 0xffff_ffff;
    Some(match kind {
        0x6969 => "NFS",
        0x517b | 0xfe53_4d42 => "SMB",
        0xff53_4d42 => "CIFS",
        0x6573_5546 => "a FUSE file system",
        0x00c3_6400 => "Ceph",
        0x0102_1997 => "9P",
        0x786f_4256 => "a VirtualBox share",
        0x5346_414f => "AFS",
        0x0116_1970 => "GFS2",
        0x7461_636f => "OCFS2",
        0x0bd0_0bd0 => "Lustre",
        _ => return None,
    })
}

/// Elsewhere we cannot tell.
#[cfg(not(target_os = "linux"))]
pub(super) fn network_file_system(_path: &Path) -> Option<&'static str> {
    None
}

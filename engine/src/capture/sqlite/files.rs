//! The files of a database: which ones they are, whether they still are the same, and the descriptors we may hold.
//!
//! - `-wal`: SQLite takes no locks on it, so we open and close it as we like.
//! - `-shm`: opened once and kept; see [`super::indexes`].
//! - the database: never opened by us; see [`crate::capture::sqlite_ffi`].

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

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

/// Whether one other process holds both the writer's and the checkpointer's lock: a checkpoint that blocks writers is
/// under way there, and may be waiting for our pin. (A process that writes on one connection and checkpoints on another
/// looks the same.)
pub(super) fn checkpoint_blocks_writers(index: &File) -> bool {
    // A holder in another PID namespace, that of a container beside ours, has no number here: two such count as one.
    let pid_of = |start| holder(index, start, 1, FlockType::ReadLock).map(|lock| lock.pid);
    let checkpointer = pid_of(index::CHECKPOINT_LOCK_OFFSET);
    checkpointer.is_some() && checkpointer == pid_of(index::WRITE_LOCK_OFFSET)
}

/// Whether another process has the database open by this index.
pub(super) fn others_have_open(index: &File) -> bool {
    let probe = Flock { start: index::OPEN_LOCK_OFFSET, length: 1, ..Flock::from(FlockType::WriteLock) };
    fcntl_getlk(index, &probe).ok().flatten().is_some()
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

/// What the index says of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BackfillState {
    /// It holds so much, after so many commits.
    Known(Backfill, u32),
    /// It may hold more: a checkpoint is under way or was broken off, or the index was recovered and does not know.
    Attempted,
    /// The index is being written.
    Torn,
}

/// How much of which log is in the file.
pub(super) fn read_backfill(index: &File) -> io::Result<BackfillState> {
    let mut bytes = [0; index::BACKFILL_ATTEMPTED_OFFSET as usize + 4];
    match index.read_exact_at(&mut bytes, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(BackfillState::Torn),
        other => other?,
    }
    let frames = index::native32(&bytes, index::BACKFILL_OFFSET as usize);
    let attempted = index::native32(&bytes, index::BACKFILL_ATTEMPTED_OFFSET as usize);
    Ok(match index::IndexHead::parse(&bytes) {
        Err(_) => BackfillState::Torn,
        Ok(_) if attempted > frames => BackfillState::Attempted,
        Ok(head) => BackfillState::Known(Backfill { salts: head.salts, frames }, head.change),
    })
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

//! Why a restore did not happen. Whatever it is, the target is as it was before, with one exception:
//! [`RestoreError::NameNotOnDisk`].

use std::io;
use std::path::PathBuf;

use crate::error::{ErrorKind, Explain};
use crate::history::Nearest;
use crate::ids::Position;
use crate::page::StateChecksum;
use crate::plan::PlanError;
use crate::restore::ReadError;
use crate::segment::SegmentError;
use crate::store::keys::SegmentKey;

/// A restore that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// There is no plan for it.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// An object is missing, damaged or not to be had.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The place to restore to is not fit for it.
    #[error(transparent)]
    Target(#[from] TargetUnfit),
    /// Everything was read, and the result is not the state that was recorded: the one asked for, or that of the base.
    #[error("the restored state of {position} has checksum {found}, expected {expected}")]
    NotProven {
        /// The state.
        position: Position,
        /// As recorded with its transaction, or in the manifest of the base.
        expected: StateChecksum,
        /// Of the result.
        found: StateChecksum,
    },
    /// Everything was read, and the result has another size than was recorded.
    #[error("the restored state of {position} has {found} pages, expected {expected}")]
    OtherSize {
        /// The state that was to be restored.
        position: Position,
        /// As recorded with its transaction.
        expected: u32,
        /// Of the result.
        found: u32,
    },
    /// Two segments that should follow each other do not: one of them tells of another history.
    #[error("segment {segment} does not follow segment {before}: the chain is broken")]
    ChainBroken {
        /// The earlier one.
        before: Box<SegmentKey>,
        /// The later one.
        segment: Box<SegmentKey>,
    },
    /// The log does not go on where the base ends: one of them is not what its name says.
    #[error("segment {segment} does not go on from the base")]
    NotJoined {
        /// The segment.
        segment: Box<SegmentKey>,
        /// Where it would go on.
        #[source]
        source: Box<SegmentError>,
    },
    /// The result could not be written or read back.
    #[error("{action} {path}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file is at its place, whole and proven, but may not be there after a power cut.
    #[error("{path} is restored, but its name could not be brought to disk", path = path.display())]
    NameNotOnDisk {
        /// The restored file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The caller asked to stop.
    #[error("the restore was cancelled")]
    Cancelled,
    /// A task of the restore ended before it was done.
    #[error("the restore stopped unexpectedly")]
    Stopped,
}

/// A target that cannot be restored to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetUnfit {
    /// There is something already.
    #[error("{path} exists already", path = path.display())]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// A file beside it would be taken for a part of it.
    #[error("{beside} exists: {path} is in use, or was not closed cleanly", beside = beside.display(), path = path.display())]
    InUse {
        /// The target.
        path: PathBuf,
        /// The file beside it.
        beside: PathBuf,
    },
    /// Its folder does not exist.
    #[error("there is no folder {folder}", folder = folder.display())]
    NoFolder {
        /// The folder.
        folder: PathBuf,
    },
    /// It names no file.
    #[error("{path} names no file", path = path.display())]
    NoName {
        /// The target.
        path: PathBuf,
    },
    /// The file system has too little room.
    #[error("{folder} has {free_bytes} bytes free, needed are {needed_bytes} and {reserve_bytes} that stay free", folder = folder.display())]
    NoSpace {
        /// The target's folder.
        folder: PathBuf,
        /// Bytes free for us.
        free_bytes: u64,
        /// Bytes the restore takes.
        needed_bytes: u64,
        /// Bytes that are to stay free.
        reserve_bytes: u64,
    },
    /// The file would be larger than the file system or a limit of this process allows.
    #[error("no file in {folder} may be so large", folder = folder.display())]
    TooLarge {
        /// The target's folder.
        folder: PathBuf,
    },
    /// The file system became full while the restore wrote.
    #[error("{folder} became full", folder = folder.display())]
    BecameFull {
        /// The target's folder.
        folder: PathBuf,
    },
    /// We may not write there.
    #[error("no permission to write in {folder}", folder = folder.display())]
    NoPermission {
        /// The target's folder.
        folder: PathBuf,
        /// In the system's words.
        #[source]
        source: io::Error,
    },
}

impl RestoreError {
    /// The object that is missing or damaged, if that is what is wrong.
    #[must_use]
    pub fn lost_object(&self) -> Option<&str> {
        match self {
            Self::Read(error) => error.lost_object(),
            _ => None,
        }
    }

    /// The restore points around what was asked, when there is none as asked.
    #[must_use]
    pub fn nearest(&self) -> Nearest {
        match self {
            Self::Plan(error) => error.nearest(),
            _ => Nearest::default(),
        }
    }
}

impl Explain for RestoreError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Plan(error) => error.kind(),
            Self::Read(error) => error.kind(),
            Self::Target(error) => error.kind(),
            Self::NotProven { .. }
            | Self::OtherSize { .. }
            | Self::ChainBroken { .. }
            | Self::NotJoined { .. } => ErrorKind::Damaged,
            Self::NameNotOnDisk { .. } | Self::Io { .. } | Self::Cancelled | Self::Stopped => {
                ErrorKind::Failed
            }
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Plan(error) => error.advice(),
            Self::Read(error) => error.advice(),
            Self::Target(error) => error.advice(),
            Self::NotProven { .. }
            | Self::OtherSize { .. }
            | Self::ChainBroken { .. }
            | Self::NotJoined { .. } => Some(
                "nothing was handed over; `everwhen verify --deep` finds the first wrong state".to_owned(),
            ),
            Self::NameNotOnDisk { path, .. } => {
                let folder = path.parent().unwrap_or(path);
                Some(format!("`sync -f {}`, and see whether the disk is sound", folder.display()))
            }
            Self::Io { .. } => Some("nothing was left behind; see whether the disk is sound".to_owned()),
            Self::Cancelled => Some("nothing was left behind; the same command starts anew".to_owned()),
            Self::Stopped => Some("nothing was left behind; please report this with the log".to_owned()),
        }
    }
}

impl Explain for TargetUnfit {
    fn kind(&self) -> ErrorKind {
        ErrorKind::TargetUnfit
    }

    fn advice(&self) -> Option<String> {
        Some(match self {
            Self::Exists { path } => {
                format!("choose another path: `--to {}.restored`, or move the file away", path.display())
            }
            Self::InUse { beside, .. } => format!(
                "stop what uses it and move {} away (it may hold commits), or choose another path with --to",
                beside.display()
            ),
            Self::NoFolder { folder } => format!("`mkdir -p {}`", folder.display()),
            Self::NoName { .. } => "give the path of a file with --to".to_owned(),
            Self::NoSpace { .. } => "make room there, or choose another disk".to_owned(),
            Self::BecameFull { .. } => {
                "nothing was left behind; make room there, or choose another disk".to_owned()
            }
            Self::TooLarge { .. } => {
                "nothing was left behind; choose another disk, or raise the limit (`ulimit -f`)".to_owned()
            }
            Self::NoPermission { folder, .. } => {
                format!(
                    "run it as a user who may write in {}, or choose another path with --to",
                    folder.display()
                )
            }
        })
    }
}

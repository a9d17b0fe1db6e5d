//! What can go wrong while a database is protected.

use std::path::{Path, PathBuf};

use crate::base::BaseError;
use crate::capture::sqlite::{CaptureError, SqliteSourceError};
use crate::disk;
use crate::error::{ErrorKind, Explain};
use crate::ids::{DatabaseId, Position};
use crate::page::PageNo;
use crate::repository::RepositoryError;
use crate::restore::ReadError;
use crate::segment::{EncodeError, SegmentError};

/// Why protection could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtectError {
    /// The source cannot be captured.
    #[error(transparent)]
    Source(#[from] SqliteSourceError),
    /// The repository cannot be used.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// What the repository holds cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A captured transaction could not be encoded, or did not decode to itself.
    #[error("encode a segment")]
    Encode(#[from] EncodeError),
    /// A segment of the repository or of the spool cannot be read.
    #[error("read a segment")]
    Segment(#[from] SegmentError),
    /// A base cannot be made or read.
    #[error("make or read a base")]
    Base(#[from] BaseError),
    /// The local state folder cannot be used.
    #[error("use the state folder {folder}")]
    State {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A page of an image cannot be read from the source.
    #[error("read the image of the source")]
    ReadImage(#[source] std::io::Error),
    /// Another process protects this database with the same state folder.
    #[error("another everwhen process holds the state folder {folder}")]
    AlreadyProtected {
        /// The folder.
        folder: PathBuf,
    },
    /// The name belongs to another source.
    #[error("the name '{name}' belongs to {other} in this repository")]
    NameTaken {
        /// The wanted name.
        name: String,
        /// The source that has it.
        other: String,
    },
    /// The state folder belongs to a database that this repository does not hold.
    #[error("the state folder {folder} belongs to database {database}, which this repository does not hold")]
    ForeignState {
        /// The folder.
        folder: PathBuf,
        /// The database it knows.
        database: DatabaseId,
    },
    /// The spool has reached its limit, or has left no more of the disk than is the application's; nothing more is let go
    /// of.
    #[error(
        "{bytes} bytes wait for the store, and the spool has no room for more: the store takes too little"
    )]
    SpoolFull {
        /// Bytes that wait.
        bytes: u64,
    },
    /// The position was not durable in time.
    #[error("{position} is not durable after {waited_ms} ms; durable so far: {durable}")]
    NotDurable {
        /// The position asked for.
        position: Position,
        /// How long was waited.
        waited_ms: u64,
        /// What is durable, in words.
        durable: String,
    },
    /// Nothing can be captured now.
    #[error("protection of '{name}' is interrupted: {reason}")]
    Interrupted {
        /// The database.
        name: String,
        /// Why.
        reason: String,
    },
    /// The protection has ended.
    #[error("protection of '{name}' has stopped")]
    Stopped {
        /// The database.
        name: String,
    },
    /// The source changed in a way that an image of it did not show; it is compared anew.
    #[error("the image at {position} does not have the state that was captured")]
    ImageDiffers {
        /// Where.
        position: Position,
    },
    /// The source was written to behind its own back, or lost what it had; it is compared anew.
    #[error("page {page} of the source is not what was captured before {position}")]
    SourceDiffers {
        /// The page.
        page: PageNo,
        /// The transaction that changes it.
        position: Position,
    },
    /// All numbers of timelines are claimed.
    #[error("database {database} has a claim of the last timeline there can be")]
    NoTimelineLeft {
        /// Whose.
        database: DatabaseId,
    },
    /// After an error that was told before: the next run begins where all is there.
    #[error("captured commits were lost on their way to the store; what is missing is looked for")]
    PartLost,
    /// An engine task died. A defect of ours.
    #[error("a task of the engine died: {what}")]
    TaskDied {
        /// Which.
        what: String,
    },
}

impl ProtectError {
    /// What the system said of a state folder.
    pub(super) fn state(folder: &Path) -> impl Fn(std::io::Error) -> Self + '_ {
        |source| Self::State { folder: folder.to_owned(), source }
    }

    /// Whether it is one object of the repository that is missing, damaged or of a newer format: protection goes on with the
    /// next best. Never when the store did not answer: then nobody knows what there is.
    pub(super) fn is_of_one_object(&self) -> bool {
        match self {
            Self::Repository(RepositoryError::Store(error)) => error.is_missing(),
            Self::Repository(error) => error.kind() == ErrorKind::Damaged,
            Self::Read(error) => error.lost_object().is_some(),
            Self::Segment(_) | Self::Base(_) => true,
            _ => false,
        }
    }
}

impl From<CaptureError<ProtectError>> for ProtectError {
    fn from(error: CaptureError<ProtectError>) -> Self {
        match error {
            CaptureError::Source(source) => Self::Source(source),
            CaptureError::Sink(sink) => sink,
        }
    }
}

impl From<CaptureError<std::convert::Infallible>> for ProtectError {
    fn from(error: CaptureError<std::convert::Infallible>) -> Self {
        match error {
            CaptureError::Source(source) => Self::Source(source),
            CaptureError::Sink(never) => match never {},
        }
    }
}

impl Explain for ProtectError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Source(error) => error.kind(),
            Self::Repository(error) => error.kind(),
            Self::Read(error) => error.kind(),
            Self::NameTaken { .. } | Self::ForeignState { .. } | Self::AlreadyProtected { .. } => {
                ErrorKind::Refused
            }
            Self::State { .. } => ErrorKind::TargetUnfit,
            _ => ErrorKind::Failed,
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Source(error) => error.advice(),
            Self::Repository(error) => error.advice(),
            Self::Read(error) => error.advice(),
            Self::State { source, .. } if disk::is_full(source) => {
                Some("make room on its disk: protection goes on by itself then".into())
            }
            Self::State { .. } => Some("give a folder that this user can write, with --state".into()),
            Self::AlreadyProtected { .. } => Some(
                "`everwhen status` shows what it does; stop it first, or give this one another --state"
                    .into(),
            ),
            Self::NameTaken { .. } => Some(
                "if it is that database, moved or restored: `everwhen databases set NAME --path` its new path, and start \
                 again; else give this one another name (`name` in its [[database]] table)"
                    .into(),
            ),
            Self::ForeignState { .. } => Some(
                "give the store that holds its history, or another --state folder to begin a new history"
                    .into(),
            ),
            Self::NoTimelineLeft { .. } => Some(
                "nobody gets there by counting: look at what wrote the object timeline/ffffffff, and remove it if it is not \
                 a claim of Everwhen"
                    .into(),
            ),
            Self::SpoolFull { .. } | Self::NotDurable { .. } => {
                Some("look at the store: `everwhen status` says what it answers".into())
            }
            _ => None,
        }
    }
}

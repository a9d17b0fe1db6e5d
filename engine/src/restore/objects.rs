//! What a restore reads from: the few verbs it needs of a repository.

use std::error::Error;
use std::future::Future;
use std::ops::Range;

use bytes::Bytes;

use crate::base::BaseError;
use crate::digest::Hasher;
use crate::error::{ErrorKind, Explain};
use crate::history::{BaseEntry, Findings, History, Seen, SegmentEntry, Timeline};
use crate::ids::{DatabaseId, Digest, TimelineId, TxId};
use crate::restore::read_transactions;
use crate::segment::SegmentError;
use crate::store::keys::{BaseKey, SegmentKey};
use crate::transaction::Transaction;

/// Gives objects of a repository, opened: what was encrypted is plain again.
pub trait Objects: Clone + Send + Sync + 'static {
    /// How the names of a database's objects are computed.
    fn hasher(&self, database: DatabaseId) -> impl Future<Output = Result<Hasher, ReadError>> + Send;

    /// A whole segment, checked against its name.
    fn segment(&self, key: SegmentKey) -> impl Future<Output = Result<Bytes, ReadError>> + Send;

    /// The transactions of a segment, as its parts list them.
    fn transactions(
        &self,
        entry: SegmentEntry,
    ) -> impl Future<Output = Result<Vec<Transaction>, ReadError>> + Send {
        read_transactions(self, entry)
    }

    /// Some bytes of a segment, not checked against its name.
    fn segment_range(
        &self,
        key: SegmentKey,
        range: Range<u64>,
    ) -> impl Future<Output = Result<Bytes, ReadError>> + Send;

    /// A whole manifest, checked against its name.
    fn base(&self, key: BaseKey) -> impl Future<Output = Result<Bytes, ReadError>> + Send;

    /// Some bytes of a pack, not checked against its name.
    fn pack_range(
        &self,
        database: DatabaseId,
        pack: Digest,
        range: Range<u64>,
    ) -> impl Future<Output = Result<Bytes, ReadError>> + Send;
}

/// Says what a repository holds of a database.
pub trait Inventory: Objects {
    /// The claims of timelines.
    fn timelines(
        &self,
        database: DatabaseId,
    ) -> impl Future<Output = Result<Vec<Timeline>, ReadError>> + Send;

    /// The claims of timelines, with what is wrong in place of each that is damaged: for those who look for damage.
    fn claims(
        &self,
        database: DatabaseId,
    ) -> impl Future<Output = Result<Vec<Result<Timeline, ReadError>>, ReadError>> + Send {
        async move { Ok(self.timelines(database).await?.into_iter().map(Ok).collect()) }
    }

    /// The segments of a timeline that begin after a transaction, or all of them.
    fn segments(
        &self,
        database: DatabaseId,
        timeline: TimelineId,
        after: Option<TxId>,
    ) -> impl Future<Output = Result<Vec<SegmentEntry>, ReadError>> + Send;

    /// The timelines that have segments, claimed or not.
    fn logged_timelines(
        &self,
        database: DatabaseId,
    ) -> impl Future<Output = Result<Vec<TimelineId>, ReadError>> + Send;

    /// The segments of all timelines, claimed or not.
    fn all_segments(
        &self,
        database: DatabaseId,
    ) -> impl Future<Output = Result<Vec<SegmentEntry>, ReadError>> + Send;

    /// The bases.
    fn bases(&self, database: DatabaseId) -> impl Future<Output = Result<Vec<BaseEntry>, ReadError>> + Send;

    /// What daemons saw last: the newest mark of each.
    fn seen(&self, database: DatabaseId) -> impl Future<Output = Result<Vec<Seen>, ReadError>> + Send;

    /// All packs, with their sizes in bytes.
    fn packs(
        &self,
        database: DatabaseId,
    ) -> impl Future<Output = Result<Vec<(Digest, u64)>, ReadError>> + Send;

    /// Everything that [`History::build`] takes. Marks are read before the segments they vouch for, claims after the
    /// segments that were written under them.
    fn findings(&self, database: DatabaseId) -> impl Future<Output = Result<Findings, ReadError>> + Send {
        async move {
            let seen = self.seen(database).await?;
            let bases = self.bases(database).await?;
            let segments = self.all_segments(database).await?;
            let timelines = self.timelines(database).await?;
            Ok(Findings { timelines, segments, bases, seen })
        }
    }
}

/// Reads what exists of a database.
///
/// # Errors
/// [`ReadError`] when it cannot be listed.
pub async fn history_of<O: Inventory>(objects: &O, database: DatabaseId) -> Result<History, ReadError> {
    Ok(History::build(database, objects.findings(database).await?))
}

/// An object that could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// It is not there.
    #[error("object {object} is missing")]
    Missing {
        /// Its key.
        object: String,
    },
    /// It is there, but it is not what its name says.
    #[error("object {object} is damaged: {what}")]
    Damaged {
        /// Its key.
        object: String,
        /// What is wrong with it.
        what: String,
    },
    /// It is there, and a newer program wrote it.
    #[error("object {object} is of the newer format {found}, this program reads up to {known}")]
    Newer {
        /// Its key.
        object: String,
        /// Its format.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// The store did not give it.
    #[error("read object {object}")]
    Store {
        /// Its key.
        object: String,
        /// What the store's error means.
        kind: ErrorKind,
        /// What to do about it.
        advice: Option<String>,
        /// The store's error.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl ReadError {
    /// Names the object that does not hold what was expected.
    pub(crate) fn damaged(object: &impl ToString, what: &impl ToString) -> Self {
        Self::Damaged { object: object.to_string(), what: what.to_string() }
    }

    /// Names the segment that cannot be decoded.
    pub(crate) fn of_segment(key: &SegmentKey, error: &SegmentError) -> Self {
        match error {
            SegmentError::Version { found, known } => {
                Self::Newer { object: key.to_string(), found: (*found).into(), known: (*known).into() }
            }
            _ => Self::damaged(key, error),
        }
    }

    /// Names the base that cannot be decoded.
    pub(crate) fn of_base(key: &BaseKey, error: &BaseError) -> Self {
        match error {
            BaseError::Version { found, known } => {
                Self::Newer { object: key.to_string(), found: (*found).into(), known: (*known).into() }
            }
            _ => Self::damaged(key, error),
        }
    }

    /// A task that was to check an object ended before it was done: that says nothing of the object.
    pub(crate) fn died(object: &impl ToString, error: tokio::task::JoinError) -> Self {
        let (object, source) = (object.to_string(), Box::new(error));
        Self::Store { object, kind: ErrorKind::Failed, advice: None, source }
    }

    /// The object and what is wrong with it, if it cannot be read however often that is tried.
    pub(crate) fn finding(&self) -> Option<(&str, String)> {
        match self {
            Self::Missing { object } => Some((object, "it is missing".to_owned())),
            Self::Damaged { object, what } => Some((object, what.clone())),
            Self::Newer { object, found, known } => {
                Some((object, format!("it is of the newer format {found}, this program reads up to {known}")))
            }
            Self::Store { .. } => None,
        }
    }

    /// The object, if it is missing or damaged: trying the same again is of no use.
    #[must_use]
    pub fn lost_object(&self) -> Option<&str> {
        self.finding().map(|(object, _)| object)
    }
}

impl Explain for ReadError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Missing { .. } | Self::Damaged { .. } | Self::Newer { .. } => ErrorKind::Damaged,
            Self::Store { kind, .. } => *kind,
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Missing { .. } | Self::Damaged { .. } => {
                Some("`everwhen verify` lists all damage, `everwhen history` what can be restored".to_owned())
            }
            Self::Newer { .. } => {
                Some("use the version of Everwhen that wrote it, or a newer one".to_owned())
            }
            Self::Store { advice, .. } => advice.clone(),
        }
    }
}

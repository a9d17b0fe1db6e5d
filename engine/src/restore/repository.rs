//! The repository as a restore sees it.

use std::ops::Range;

use bytes::Bytes;

use crate::digest::Hasher;
use crate::error::Explain;
use crate::history::{BaseEntry, Seen, SegmentEntry, Timeline};
use crate::ids::{DatabaseId, Digest, TimelineId, TxId};
use crate::repository::{ForkReason, Repository, RepositoryError};
use crate::restore::{Inventory, Objects, ReadError};
use crate::store::StoreError;
use crate::store::keys::{BaseKey, SegmentKey, all_bases_prefix, all_logs_prefix, chunk_prefix, pack_key};
use crate::time::Timestamp;

/// What the repository's error means for the one object that was read.
fn read_error(object: impl Into<String>, error: RepositoryError) -> ReadError {
    let object = object.into();
    match error {
        RepositoryError::Missing { key } | RepositoryError::Store(StoreError::Missing { key, .. }) => {
            ReadError::Missing { object: key }
        }
        RepositoryError::Damaged { key, reason } => ReadError::Damaged { object: key, what: reason },
        RepositoryError::Store(StoreError::Range { key, range, .. }) => ReadError::Damaged {
            object: key,
            what: format!("it has no bytes {} to {}", range.start, range.end),
        },
        error => {
            ReadError::Store { object, kind: error.kind(), advice: error.advice(), source: Box::new(error) }
        }
    }
}

impl Objects for Repository {
    async fn hasher(&self, database: DatabaseId) -> Result<Hasher, ReadError> {
        let hasher = Self::hasher(self, database).await;
        hasher.map_err(|error| read_error(format!("the keys of database {database}"), error))
    }

    async fn segment(&self, key: SegmentKey) -> Result<Bytes, ReadError> {
        self.get_segment(&key).await.map_err(|error| read_error(key.to_string(), error))
    }

    async fn segment_range(&self, key: SegmentKey, range: Range<u64>) -> Result<Bytes, ReadError> {
        self.get_segment_range(&key, range).await.map_err(|error| read_error(key.to_string(), error))
    }

    async fn base(&self, key: BaseKey) -> Result<Bytes, ReadError> {
        self.get_base(&key).await.map_err(|error| read_error(key.to_string(), error))
    }

    async fn pack_range(
        &self,
        database: DatabaseId,
        pack: Digest,
        range: Range<u64>,
    ) -> Result<Bytes, ReadError> {
        let bytes = self.get_pack_range(database, pack, range).await;
        bytes.map_err(|error| read_error(pack_key(database, pack), error))
    }
}

impl Inventory for Repository {
    async fn timelines(&self, database: DatabaseId) -> Result<Vec<Timeline>, ReadError> {
        let claims = Self::timelines(self, database).await;
        let claims = claims.map_err(|error| read_error("the list of timelines", error))?;
        let timeline = |claim: crate::repository::Timeline| Timeline {
            id: claim.id,
            parent: claim.parent,
            why: why(claim.reason).to_owned(),
            host: claim.host,
            host_name: claim.host_name,
            claimed_at: claim.claimed,
        };
        Ok(claims.into_iter().map(timeline).collect())
    }

    async fn segments(
        &self,
        database: DatabaseId,
        timeline: TimelineId,
        after: Option<TxId>,
    ) -> Result<Vec<SegmentEntry>, ReadError> {
        let found = Self::segments(self, database, timeline, after).await;
        let found = found.map_err(|error| read_error(all_logs_prefix(database), error))?;
        Ok(found.into_iter().map(|(key, size)| SegmentEntry { key, size }).collect())
    }

    async fn all_segments(&self, database: DatabaseId) -> Result<Vec<SegmentEntry>, ReadError> {
        let found = Self::all_segments(self, database).await;
        let found = found.map_err(|error| read_error(all_logs_prefix(database), error))?;
        Ok(found.into_iter().map(|(key, size)| SegmentEntry { key, size }).collect())
    }

    async fn bases(&self, database: DatabaseId) -> Result<Vec<BaseEntry>, ReadError> {
        let found = Self::bases(self, database).await;
        let found = found.map_err(|error| read_error(all_bases_prefix(database), error))?;
        Ok(found.into_iter().map(|(key, size)| BaseEntry { key, size }).collect())
    }

    async fn seen(&self, database: DatabaseId) -> Result<Vec<Seen>, ReadError> {
        let seen = Self::seen(self, Timestamp::now()).await;
        let seen = seen.map_err(|error| read_error("the covered-through marks", error))?;
        let mark = seen.get(&database);
        Ok(mark.map(|entry| Seen { position: entry.position, time: entry.through }).into_iter().collect())
    }

    async fn packs(&self, database: DatabaseId) -> Result<Vec<(Digest, u64)>, ReadError> {
        Self::packs(self, database).await.map_err(|error| read_error(chunk_prefix(database), error))
    }
}

fn why(reason: ForkReason) -> &'static str {
    match reason {
        ForkReason::Began => "protection began",
        ForkReason::SourceBehind => "the source had lost its last commits, or an older copy took its place",
        ForkReason::NotProven => "it could not be proven that the source goes on where the timeline ended",
        ForkReason::OtherWriter => "another writer was found on the timeline",
        ForkReason::Restored => "the database was restored in place",
        ForkReason::Unknown => "a newer Everwhen knows why",
    }
}

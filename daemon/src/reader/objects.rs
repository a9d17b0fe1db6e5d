//! A repository as the engine's restore reads it, together with what running daemons say beyond the marks in it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use everwhen_engine::digest::Hasher;
use everwhen_engine::history::{BaseEntry, Seen, SegmentEntry, Timeline};
use everwhen_engine::ids::{DatabaseId, Digest, TimelineId, TxId};
use everwhen_engine::repository::Repository;
use everwhen_engine::restore::{Inventory, Objects, ReadError};
use everwhen_engine::store::keys::{BaseKey, SegmentKey};

/// See the module.
#[derive(Clone)]
pub(crate) struct HeardRepository {
    repository: Repository,
    heard: Arc<Mutex<HashMap<DatabaseId, Seen>>>,
}

impl HeardRepository {
    pub(crate) fn new(repository: Repository) -> Self {
        Self { repository, heard: Arc::default() }
    }

    /// Takes a daemon's word on how far it covers the time of a database.
    pub(crate) fn hear(&self, database: DatabaseId, seen: Seen) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).insert(database, seen);
    }
}

impl Objects for HeardRepository {
    async fn hasher(&self, database: DatabaseId) -> Result<Hasher, ReadError> {
        Objects::hasher(&self.repository, database).await
    }

    async fn segment(&self, key: SegmentKey) -> Result<Bytes, ReadError> {
        self.repository.segment(key).await
    }

    async fn segment_range(&self, key: SegmentKey, range: Range<u64>) -> Result<Bytes, ReadError> {
        self.repository.segment_range(key, range).await
    }

    async fn base(&self, key: BaseKey) -> Result<Bytes, ReadError> {
        self.repository.base(key).await
    }

    async fn pack_range(
        &self,
        database: DatabaseId,
        pack: Digest,
        range: Range<u64>,
    ) -> Result<Bytes, ReadError> {
        self.repository.pack_range(database, pack, range).await
    }
}

impl Inventory for HeardRepository {
    async fn timelines(&self, database: DatabaseId) -> Result<Vec<Timeline>, ReadError> {
        Inventory::timelines(&self.repository, database).await
    }

    async fn segments(
        &self,
        database: DatabaseId,
        timeline: TimelineId,
        after: Option<TxId>,
    ) -> Result<Vec<SegmentEntry>, ReadError> {
        Inventory::segments(&self.repository, database, timeline, after).await
    }

    async fn all_segments(&self, database: DatabaseId) -> Result<Vec<SegmentEntry>, ReadError> {
        Inventory::all_segments(&self.repository, database).await
    }

    async fn bases(&self, database: DatabaseId) -> Result<Vec<BaseEntry>, ReadError> {
        Inventory::bases(&self.repository, database).await
    }

    async fn seen(&self, database: DatabaseId) -> Result<Vec<Seen>, ReadError> {
        // The word was heard before the marks and segments are read, so it vouches for segments that are there.
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner).get(&database).copied();
        let mut seen = Inventory::seen(&self.repository, database).await?;
        seen.extend(heard);
        Ok(seen)
    }

    async fn packs(&self, database: DatabaseId) -> Result<Vec<(Digest, u64)>, ReadError> {
        Inventory::packs(&self.repository, database).await
    }
}

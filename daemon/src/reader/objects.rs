//! A repository as the engine's restore reads it.

use std::ops::Range;

use bytes::Bytes;
use everwhen_engine::digest::Hasher;
use everwhen_engine::error::{ErrorKind, Explain};
use everwhen_engine::history::{BaseEntry, Findings, SegmentEntry, Timeline};
use everwhen_engine::ids::{DatabaseId, Digest};
use everwhen_engine::repository::{Repository, RepositoryError};
use everwhen_engine::restore::{Inventory, Objects, ReadError};
use everwhen_engine::store::keys::{BaseKey, SegmentKey, chunk_prefix, database_prefix, pack_key};

/// See the module.
#[derive(Clone)]
pub(crate) struct RepositoryObjects(pub(crate) Repository);

impl Objects for RepositoryObjects {
    fn hasher(&self, database: DatabaseId) -> Hasher {
        self.0.hasher(database)
    }

    async fn segment(&self, key: SegmentKey) -> Result<Bytes, ReadError> {
        self.0.get_segment(&key).await.map_err(|error| read_error(key.to_string(), error))
    }

    async fn segment_range(&self, key: SegmentKey, range: Range<u64>) -> Result<Bytes, ReadError> {
        self.0.get_segment_range(&key, range).await.map_err(|error| read_error(key.to_string(), error))
    }

    async fn base(&self, key: BaseKey) -> Result<Bytes, ReadError> {
        self.0.get_base(&key).await.map_err(|error| read_error(key.to_string(), error))
    }

    async fn pack_range(
        &self,
        database: DatabaseId,
        pack: Digest,
        range: Range<u64>,
    ) -> Result<Bytes, ReadError> {
        let read = self.0.get_pack_range(database, pack, range).await;
        read.map_err(|error| read_error(pack_key(database, pack), error))
    }
}

impl Inventory for RepositoryObjects {
    async fn findings(&self, database: DatabaseId) -> Result<Findings, ReadError> {
        let failed = |error: RepositoryError| read_error(database_prefix(database), error);
        let claims = self.0.timelines(database).await.map_err(failed)?;
        let bases = self.0.bases(database).await.map_err(failed)?;
        let mut segments = Vec::new();
        for claim in &claims {
            segments.extend(self.0.segments(database, claim.id, None).await.map_err(failed)?);
        }
        let timelines = claims.into_iter().map(|claim| Timeline {
            id: claim.id,
            parent: claim.parent,
            why: claim.why,
            host: claim.host,
            host_name: claim.host_name,
            claimed_at: claim.claimed_at,
        });
        Ok(Findings {
            timelines: timelines.collect(),
            segments: segments.into_iter().map(|(key, size)| SegmentEntry { key, size }).collect(),
            bases: bases.into_iter().map(|(key, size)| BaseEntry { key, size }).collect(),
            seen: Vec::new(),
        })
    }

    async fn packs(&self, database: DatabaseId) -> Result<Vec<(Digest, u64)>, ReadError> {
        self.0.packs(database).await.map_err(|error| read_error(chunk_prefix(database), error))
    }
}

fn read_error(object: String, error: RepositoryError) -> ReadError {
    match error.kind() {
        ErrorKind::Damaged => ReadError::Damaged { object, what: error.to_string() },
        kind => ReadError::Store { object, kind, advice: error.advice(), source: Box::new(error) },
    }
}

//! Interim.
#![allow(missing_docs, reason = "interim")]
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::digest::Hasher;
use crate::error::{ErrorKind, Explain};
use crate::ids::*;
use crate::store::Body;
use crate::store::keys::{self, BaseKey, SegmentKey};
use crate::time::Timestamp;

#[derive(Clone, Debug)]
pub struct Repository {
    root: PathBuf,
}

#[derive(Debug, thiserror::Error)]
#[error("repository")]
pub struct RepositoryError(#[from] io::Error);
impl Explain for RepositoryError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Failed
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DatabaseRecord {
    pub id: DatabaseId,
    pub name: String,
    pub source: String,
    pub host_name: String,
}
pub struct NewDatabase {
    pub name: String,
    pub source: String,
    pub engine: String,
    pub class: String,
    pub host: HostId,
    pub host_name: String,
}
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Timeline {
    pub id: TimelineId,
    pub parent: Option<Position>,
    pub why: String,
    pub host: HostId,
    pub host_name: String,
    pub claimed_at: Timestamp,
    pub nonce: [u8; 16],
}
pub struct ClaimRequest {
    pub parent: Option<Position>,
    pub why: String,
    pub host: HostId,
    pub host_name: String,
    pub at: Timestamp,
}
pub enum Claim {
    Won(Timeline),
    TakenBy(Timeline),
}
type Result<T> = std::result::Result<T, RepositoryError>;

impl Repository {
    pub fn open(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }
    fn write(&self, key: &str, bytes: &[u8]) -> Result<bool> {
        let path = self.root.join(key);
        if path.exists() {
            return Ok(false);
        }
        std::fs::create_dir_all(path.parent().unwrap_or(&self.root))?;
        let tmp = path.with_extension("tmp");
        let file = std::fs::File::create(&tmp)?;
        io::Write::write_all(&mut &file, bytes)?;
        file.sync_all()?;
        std::fs::rename(tmp, path)?;
        Ok(true)
    }
    fn names(&self, prefix: &str) -> Vec<String> {
        let mut all = Vec::new();
        let mut stack = vec![self.root.join(prefix)];
        while let Some(dir) = stack.pop() {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    stack.push(entry.path());
                } else if let Ok(name) = entry.path().strip_prefix(&self.root) {
                    all.push(name.display().to_string());
                }
            }
        }
        all.sort();
        all
    }
    pub fn hasher(&self, _: DatabaseId) -> Hasher {
        Hasher::Plain
    }
    pub async fn put_segment(&self, key: &SegmentKey, body: Body) -> Result<()> {
        self.write(&key.to_string(), &body.into_bytes()?)?;
        Ok(())
    }
    pub async fn put_base(&self, key: &BaseKey, bytes: Body) -> Result<()> {
        self.write(&key.to_string(), &bytes.into_bytes()?)?;
        Ok(())
    }
    pub async fn put_pack(&self, db: DatabaseId, digest: Digest, bytes: Body) -> Result<()> {
        self.write(&keys::pack_key(db, digest), &bytes.into_bytes()?)?;
        Ok(())
    }
    pub async fn get_segment(&self, key: &SegmentKey) -> Result<Bytes> {
        Ok(std::fs::read(self.root.join(key.to_string()))?.into())
    }
    pub async fn get_segment_range(&self, key: &SegmentKey, range: std::ops::Range<u64>) -> Result<Bytes> {
        Ok(self.get_segment(key).await?.slice(range.start as usize..range.end as usize))
    }
    pub async fn get_pack_range(
        &self,
        db: DatabaseId,
        digest: Digest,
        range: std::ops::Range<u64>,
    ) -> Result<Bytes> {
        Ok(Bytes::from(std::fs::read(self.root.join(keys::pack_key(db, digest)))?)
            .slice(range.start as usize..range.end as usize))
    }
    pub async fn get_base(&self, key: &BaseKey) -> Result<Bytes> {
        Ok(std::fs::read(self.root.join(key.to_string()))?.into())
    }
    pub async fn segments(
        &self,
        db: DatabaseId,
        tl: TimelineId,
        after: Option<TxId>,
    ) -> Result<Vec<(SegmentKey, u64)>> {
        Ok(self
            .names(&keys::log_prefix(db, tl))
            .iter()
            .filter_map(|n| SegmentKey::parse(n).ok())
            .filter(|k| after.is_none_or(|a| k.range.last() > a))
            .map(|k| (k, 0))
            .collect())
    }
    pub async fn bases(&self, db: DatabaseId) -> Result<Vec<(BaseKey, u64)>> {
        Ok(self
            .names(&keys::all_bases_prefix(db))
            .iter()
            .filter_map(|n| BaseKey::parse(n).ok())
            .map(|k| (k, 0))
            .collect())
    }
    pub async fn timelines(&self, db: DatabaseId) -> Result<Vec<Timeline>> {
        Ok(self
            .names(&keys::timeline_prefix(db))
            .iter()
            .filter_map(|n| serde_json::from_slice(&std::fs::read(self.root.join(n)).ok()?).ok())
            .collect())
    }
    pub async fn timeline(&self, db: DatabaseId, tl: TimelineId) -> Result<Option<Timeline>> {
        Ok(self.timelines(db).await?.into_iter().find(|t| t.id == tl))
    }
    pub async fn claim_timeline(&self, db: DatabaseId, id: TimelineId, r: ClaimRequest) -> Result<Claim> {
        if let Some(t) = self.timeline(db, id).await? {
            return Ok(Claim::TakenBy(t));
        }
        let t = Timeline {
            id,
            parent: r.parent,
            why: r.why,
            host: r.host,
            host_name: r.host_name,
            claimed_at: r.at,
            nonce: [id.get() as u8; 16],
        };
        self.write(&keys::timeline_key(db, id), &serde_json::to_vec(&t).unwrap_or_default())?;
        Ok(Claim::Won(t))
    }
    pub async fn databases(&self) -> Result<Vec<DatabaseRecord>> {
        Ok(self
            .names("db")
            .iter()
            .filter(|n| n.contains("/record/"))
            .filter_map(|n| serde_json::from_slice(&std::fs::read(self.root.join(n)).ok()?).ok())
            .collect())
    }
    pub async fn database(&self, db: DatabaseId) -> Result<Option<DatabaseRecord>> {
        Ok(self.databases().await?.into_iter().find(|d| d.id == db))
    }
    pub async fn database_named(&self, name: &str) -> Result<Option<DatabaseRecord>> {
        Ok(self.databases().await?.into_iter().find(|d| d.name == name))
    }
    pub async fn register_database(&self, new: NewDatabase) -> Result<DatabaseRecord> {
        let id = DatabaseId::from_bytes((Timestamp::now().as_micros() as u64).to_le_bytes());
        let r = DatabaseRecord { id, name: new.name, source: new.source, host_name: new.host_name };
        self.write(&keys::record_key(id, 1), &serde_json::to_vec(&r).unwrap_or_default())?;
        Ok(r)
    }
}

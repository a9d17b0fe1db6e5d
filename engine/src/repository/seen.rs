//! Covered-through marks: "after this position nothing was committed up to this time". They let an idle database be
//! restored "as of now" without an object for every second of silence.
//!
//! A mark is one object for all databases of a daemon. It repeats what the marks before it said of other databases, so
//! the newest of a host says it all. The newest that can be read counts: marks widen windows, they hold no data.

use std::collections::BTreeMap;

use everwhen_proto::store as proto;

use crate::ids::{DatabaseId, HostId, Position, TimelineId, TxId};
use crate::random;
use crate::store::keys;
use crate::time::Timestamp;

use super::{Repository, RepositoryError, envelope, frame};

/// How far back the newest mark of a host is looked for, before all of its marks are listed.
const LOOK_BACK_MICROS: [i64; 2] = [3_600_000_000, 30 * 86_400_000_000];
/// How many marks are tried before a host counts as unheard.
const TRIES: usize = 8;

/// What a mark says of one database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenEntry {
    /// The last transaction.
    pub position: Position,
    /// Up to when nothing came after it.
    pub through: Timestamp,
}

impl Repository {
    /// Puts a mark for a host. Databases of earlier marks that are not in `entries` are carried over.
    ///
    /// # Errors
    /// Key and store errors.
    pub async fn put_seen(
        &self,
        host: HostId,
        now: Timestamp,
        entries: Vec<(DatabaseId, SeenEntry)>,
    ) -> Result<(), RepositoryError> {
        let mut known = self.inner.seen.lock().await;
        let mut all = match known.get(&host) {
            Some(all) => all.clone(),
            None => self.newest_mark(host, now).await?,
        };
        all.extend(entries);
        let key = keys::seen_key(host, now, random::nonce()?);
        let mark = proto::SeenMark {
            format: frame::FORMAT,
            host_id: host.as_bytes().to_vec(),
            written_micros: now.as_micros(),
            entries: all.iter().map(|(database, entry)| to_proto(*database, entry)).collect(),
        };
        let frame = frame::encode(&key, &mark);
        let bytes = match self.keyring() {
            Some(keyring) => envelope::seal_whole(&keyring.shared, &key, frame)?,
            None => frame.into(),
        };
        self.store().put_new(&key, bytes).await?;
        known.insert(host, all);
        Ok(())
    }

    /// What the newest mark of each host says of its databases. Where several speak of one database all are given: they may
    /// speak of different timelines. One listing of hosts; per host a short listing and a read.
    ///
    /// # Errors
    /// Store errors.
    pub async fn seen(&self, now: Timestamp) -> Result<Vec<(DatabaseId, SeenEntry)>, RepositoryError> {
        let mut seen = Vec::new();
        for folder in self.store().list_folders(keys::HOSTS).await? {
            // Host 0 is nobody: it stands for processes that only probe.
            let Some(host) = folder.parse().ok().filter(|host| *host != HostId::from_bytes([0; 8])) else {
                continue;
            };
            seen.extend(self.newest_mark(host, now).await?);
        }
        Ok(seen)
    }

    async fn newest_mark(
        &self,
        host: HostId,
        now: Timestamp,
    ) -> Result<BTreeMap<DatabaseId, SeenEntry>, RepositoryError> {
        let prefix = keys::seen_prefix(host);
        let mut keys = Vec::new();
        for back in LOOK_BACK_MICROS.map(Some).into_iter().chain([None]) {
            let after = back.map(|back| keys::seen_key(host, now.plus_micros(-back), [0; 8]));
            keys = self.store().list_all(&prefix, after.as_deref()).await?;
            if !keys.is_empty() {
                break;
            }
        }
        for entry in keys.iter().rev().take(TRIES) {
            match self.read_mark(host, &entry.key).await {
                Ok(mark) => return Ok(mark),
                Err(RepositoryError::Store(error)) if !error.is_missing() => return Err(error.into()),
                Err(error) => {
                    tracing::warn!(%error, "a covered-through mark cannot be read; the one before it counts");
                }
            }
        }
        Ok(BTreeMap::new())
    }

    async fn read_mark(
        &self,
        host: HostId,
        key: &str,
    ) -> Result<BTreeMap<DatabaseId, SeenEntry>, RepositoryError> {
        let bytes = self.store().get(key).await?;
        let mark: proto::SeenMark = match self.keyring() {
            Some(keyring) => frame::decode(key, &envelope::open_whole(&keyring.shared, key, &bytes)?)?,
            None => frame::decode(key, &bytes)?,
        };
        let entries = mark.entries.iter().map(from_proto).collect::<Option<_>>();
        entries
            .filter(|_| mark.host_id == host.as_bytes())
            .ok_or_else(|| RepositoryError::damaged(key, "its fields do not fit its name"))
    }
}

pub(super) fn to_proto(database: DatabaseId, entry: &SeenEntry) -> proto::SeenEntry {
    proto::SeenEntry {
        database_id: database.as_bytes().to_vec(),
        timeline: entry.position.timeline.get(),
        tx: entry.position.tx.get(),
        through_micros: entry.through.as_micros(),
    }
}

pub(super) fn from_proto(entry: &proto::SeenEntry) -> Option<(DatabaseId, SeenEntry)> {
    let database = DatabaseId::from_bytes(entry.database_id.as_slice().try_into().ok()?);
    let position = Position::new(TimelineId::new(entry.timeline)?, TxId::new(entry.tx)?);
    Some((database, SeenEntry { position, through: Timestamp::from_micros(entry.through_micros) }))
}

//! The databases of a repository: numbered versions of a record each; the highest counts.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use everwhen_proto::store as proto;
use futures::TryStreamExt;
use serde::Serialize;

use crate::ids::{DatabaseId, HostId, Position, TimelineId, TxId};
use crate::random;
use crate::store::keys;
use crate::time::Timestamp;

use super::{Repository, RepositoryError, envelope, frame, once};

/// What is known of a database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DatabaseRecord {
    /// Its identity, for life.
    pub id: DatabaseId,
    /// Which version of the record this is, from 1.
    pub seq: u64,
    /// How people call it.
    pub name: String,
    /// Where it is: for SQLite the absolute path of its file.
    pub source: String,
    /// Its database engine: "sqlite".
    pub engine: String,
    /// Its retention and safety class.
    pub class: String,
    /// When it was first registered.
    pub created: Timestamp,
    /// When this version was written.
    pub written: Timestamp,
    /// The daemon that wrote this version.
    pub host: HostId,
    /// That daemon's machine.
    pub host_name: String,
    /// For a restored copy: the state of which database it began as.
    pub origin: Option<(DatabaseId, Position)>,
}

/// A database to be registered.
#[derive(Clone, Debug)]
pub struct NewDatabase {
    /// How people will call it; unique in the repository.
    pub name: String,
    /// Where it is.
    pub source: String,
    /// Its database engine.
    pub engine: String,
    /// Its retention and safety class.
    pub class: String,
    /// For a restored copy: the state of which database it begins as.
    pub origin: Option<(DatabaseId, Position)>,
    /// The daemon that registers it.
    pub host: HostId,
    /// That daemon's machine.
    pub host_name: String,
    /// The present time.
    pub now: Timestamp,
}

impl Repository {
    /// The databases of the repository, by name. One listing, and per database a listing and (once) a read.
    ///
    /// # Errors
    /// The first record that cannot be read.
    pub async fn databases(&self) -> Result<Vec<DatabaseRecord>, RepositoryError> {
        self.databases_or_errors().await?.into_iter().map(|(_, record)| record).collect()
    }

    /// Like [`Repository::databases`], with the error in place of each record that cannot be read.
    ///
    /// # Errors
    /// When the repository cannot be listed.
    pub async fn databases_or_errors(
        &self,
    ) -> Result<Vec<(DatabaseId, Result<DatabaseRecord, RepositoryError>)>, RepositoryError> {
        let mut found = Vec::new();
        for folder in self.store().list_folders(keys::DATABASES).await? {
            // Anything else in that folder is not ours.
            let Ok(id) = folder.parse::<DatabaseId>() else { continue };
            match self.database(id).await {
                // Registration was cut short before its first record: there is nothing of it.
                Ok(None) => {}
                Ok(Some(record)) => found.push((id, Ok(record))),
                Err(RepositoryError::Store(error)) => return Err(error.into()),
                Err(error) => found.push((id, Err(error))),
            }
        }
        let name =
            |record: &Result<DatabaseRecord, _>| record.as_ref().ok().map(|record| record.name.clone());
        found.sort_by_cached_key(|(id, record)| (name(record), *id));
        Ok(found)
    }

    /// The databases that have lost their record, in order: objects of them are left, or a daemon's mark that it protected
    /// them. What there is of them can be verified, but nothing says what it is.
    ///
    /// # Errors
    /// Store errors.
    pub async fn lost_databases(&self, now: Timestamp) -> Result<Vec<DatabaseId>, RepositoryError> {
        let mut named: BTreeSet<DatabaseId> = self.seen(now).await?.into_iter().map(|(id, _)| id).collect();
        for folder in self.store().list_folders(keys::DATABASES).await? {
            let Ok(id) = folder.parse() else { continue };
            if self.has_more_than_its_key(id).await? {
                named.insert(id);
            }
        }
        let mut lost = Vec::new();
        for id in named {
            match self.database(id).await {
                Ok(None) => lost.push(id),
                Err(RepositoryError::Store(error)) => return Err(error.into()),
                // There, or there and damaged.
                _ => {}
            }
        }
        Ok(lost)
    }

    /// A registration that was cut short leaves a data key and nothing else.
    async fn has_more_than_its_key(&self, id: DatabaseId) -> Result<bool, RepositoryError> {
        let (prefix, key) = (keys::database_prefix(id), keys::database_key_key(id));
        let mut entries = self.store().list(&prefix, None);
        while let Some(entry) = entries.try_next().await? {
            if entry.key != key {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The newest version of a database's record; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn database(&self, id: DatabaseId) -> Result<Option<DatabaseRecord>, RepositoryError> {
        let prefix = keys::record_prefix(id);
        let entries = self.store().list_all(&prefix, None).await?;
        let names = entries.iter().map(|entry| entry.key.as_str());
        let Some(newest) = once::winners(&prefix, 16, names).pop() else { return Ok(None) };
        let known =
            self.inner.records.lock().unwrap_or_else(PoisonError::into_inner).get(&newest.key).cloned();
        let record = match known {
            Some(record) => record,
            None => {
                let record: proto::DatabaseRecord = self.read_record(id, &newest.key).await?;
                let mut records = self.inner.records.lock().unwrap_or_else(PoisonError::into_inner);
                records.insert(newest.key.clone(), record.clone());
                record
            }
        };
        from_proto(id, newest.number, record)
            .map(Some)
            .ok_or_else(|| RepositoryError::damaged(&newest.key, "its fields do not fit its name"))
    }

    /// The database that goes by this name, source path or id; a name wins over the others.
    ///
    /// # Errors
    /// [`RepositoryError::NoSuchDatabase`], [`RepositoryError::Ambiguous`]; a record that cannot be read, when none of
    /// the others fits.
    pub async fn find_database(&self, wanted: &str) -> Result<DatabaseRecord, RepositoryError> {
        let all = self.databases_or_errors().await?;
        let fits: [fn(&DatabaseRecord, &str) -> bool; 3] = [
            |record, wanted| record.name == wanted,
            |record, wanted| record.id.to_string() == wanted,
            |record, wanted| record.source == wanted,
        ];
        for fit in fits {
            let found: Vec<_> = all
                .iter()
                .filter_map(|(_, record)| record.as_ref().ok())
                .filter(|record| fit(record, wanted))
                .collect();
            match found.as_slice() {
                [] => {}
                [one] => return Ok((*one).clone()),
                several => {
                    let found = several.iter().map(|record| record.id).collect();
                    return Err(RepositoryError::Ambiguous { wanted: wanted.to_owned(), found });
                }
            }
        }
        let mut known = Vec::new();
        for (_, record) in all {
            known.push(record?.name);
        }
        Err(RepositoryError::NoSuchDatabase { wanted: wanted.to_owned(), known })
    }

    /// Registers a database under a fresh id.
    ///
    /// # Errors
    /// [`RepositoryError::NameTaken`]. Two daemons that register one name at the same instant both succeed, with two
    /// ids; from then on the name alone is [`RepositoryError::Ambiguous`].
    pub async fn register_database(&self, new: NewDatabase) -> Result<DatabaseRecord, RepositoryError> {
        for (_, record) in self.databases_or_errors().await? {
            if let Ok(found) = record
                && found.name == new.name
            {
                return Err(RepositoryError::NameTaken { name: new.name, found: found.id });
            }
        }
        self.probe_create_if_absent(new.host).await?;
        let id = DatabaseId::from_bytes(random::nonce()?);
        self.create_data_key(id).await?;
        let record = DatabaseRecord {
            id,
            seq: 1,
            name: new.name,
            source: new.source,
            engine: new.engine,
            class: new.class,
            created: new.now,
            written: new.now,
            host: new.host,
            host_name: new.host_name,
            origin: new.origin,
        };
        self.write_version(record).await
    }

    /// Writes the next version of a record, made from `record` (as read, with changes): number and `written` are set here.
    ///
    /// # Errors
    /// [`RepositoryError::Conflict`] when somebody else wrote a version since `record` was read.
    pub async fn update_database(
        &self,
        record: DatabaseRecord,
        now: Timestamp,
    ) -> Result<DatabaseRecord, RepositoryError> {
        let newest = self.database(record.id).await?.map_or(0, |newest| newest.seq);
        if newest != record.seq {
            return Err(RepositoryError::Conflict { key: keys::record_key(record.id, newest) });
        }
        self.probe_create_if_absent(record.host).await?;
        let seq = record.seq.saturating_add(1);
        self.write_version(DatabaseRecord { seq, written: now, ..record }).await
    }

    async fn write_version(&self, record: DatabaseRecord) -> Result<DatabaseRecord, RepositoryError> {
        let nonce = random::nonce()?;
        let message = to_proto(&record, nonce);
        let keys = self.data_keys(record.id).await?;
        let (prefix, name) = (keys::record_prefix(record.id), format!("{:016x}", record.seq));
        let created =
            self.create_once(&prefix, &name, nonce, |key| seal_record(keys.as_deref(), key, &message));
        if created.await? {
            return Ok(record);
        }
        Err(RepositoryError::Conflict { key: keys::record_key(record.id, record.seq) })
    }

    /// Reads a record that belongs to one database.
    pub(super) async fn read_record<R: frame::Record>(
        &self,
        database: DatabaseId,
        key: &str,
    ) -> Result<R, RepositoryError> {
        let keys = self.data_keys(database).await?;
        let bytes = match self.store().get(key).await {
            Err(error) if error.is_missing() => {
                return Err(RepositoryError::Missing { key: key.to_owned() });
            }
            other => other?,
        };
        match keys {
            Some(keys) => frame::decode(key, &envelope::open_whole(&keys.objects, key, &bytes)?),
            None => frame::decode(key, &bytes),
        }
    }
}

/// The bytes of a record's object.
pub(super) fn seal_record(
    keys: Option<&super::keyring::DataKeys>,
    key: &str,
    message: &impl frame::Record,
) -> Result<Vec<u8>, RepositoryError> {
    let frame = frame::encode(key, message);
    match keys {
        Some(keys) => Ok(envelope::seal_whole(&keys.objects, key, frame)?.into()),
        None => Ok(frame),
    }
}

pub(super) fn to_proto(record: &DatabaseRecord, nonce: [u8; 8]) -> proto::DatabaseRecord {
    proto::DatabaseRecord {
        format: frame::FORMAT,
        database_id: record.id.as_bytes().to_vec(),
        seq: record.seq,
        name: record.name.clone(),
        source: record.source.clone(),
        engine: record.engine.clone(),
        class: record.class.clone(),
        created_micros: record.created.as_micros(),
        written_micros: record.written.as_micros(),
        host_id: record.host.as_bytes().to_vec(),
        host_name: record.host_name.clone(),
        nonce: nonce.to_vec(),
        origin: record.origin.map(|(database, position)| proto::Origin {
            database_id: database.as_bytes().to_vec(),
            timeline: position.timeline.get(),
            tx: position.tx.get(),
        }),
    }
}

pub(super) fn from_proto(id: DatabaseId, seq: u64, record: proto::DatabaseRecord) -> Option<DatabaseRecord> {
    if record.database_id != id.as_bytes() || record.seq != seq {
        return None;
    }
    let origin = match record.origin {
        Some(origin) => {
            let database = DatabaseId::from_bytes(origin.database_id.as_slice().try_into().ok()?);
            let position = Position::new(TimelineId::new(origin.timeline)?, TxId::new(origin.tx)?);
            Some((database, position))
        }
        None => None,
    };
    Some(DatabaseRecord {
        id,
        seq,
        name: record.name,
        source: record.source,
        engine: record.engine,
        class: record.class,
        created: Timestamp::from_micros(record.created_micros),
        written: Timestamp::from_micros(record.written_micros),
        host: HostId::from_bytes(record.host_id.as_slice().try_into().ok()?),
        host_name: record.host_name,
        origin,
    })
}

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
        RepositoryError::NewerFormat { key, found, known } => ReadError::Newer { object: key, found, known },
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
        self.claims(database).await?.into_iter().collect()
    }

    async fn claims(&self, database: DatabaseId) -> Result<Vec<Result<Timeline, ReadError>>, ReadError> {
        let claims = self.timelines_or_errors(database).await;
        let claims = claims.map_err(|error| read_error("the list of timelines", error))?;
        let timeline = |claim: crate::repository::Timeline| Timeline {
            id: claim.id,
            parent: claim.parent,
            why: why(claim.reason).to_owned(),
            host: claim.host,
            host_name: claim.host_name,
            claimed_at: claim.claimed,
        };
        let read = |(key, claim): (String, Result<_, _>)| {
            claim.map(timeline).map_err(|error| read_error(key, error))
        };
        Ok(claims.into_iter().map(read).collect())
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

    async fn logged_timelines(&self, database: DatabaseId) -> Result<Vec<TimelineId>, ReadError> {
        let found = Self::logged_timelines(self, database).await;
        found.map_err(|error| read_error(all_logs_prefix(database), error))
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
        let marks = seen.into_iter().filter(|(of, _)| *of == database);
        Ok(marks.map(|(_, entry)| Seen { position: entry.position, time: entry.through }).collect())
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tempfile::TempDir;

    use super::*;
    use crate::history::testing::Shown;
    use crate::ids::HostId;
    use crate::page::PageSize;
    use crate::plan::Target;
    use crate::repository::{
        Claim, CreateOptions, KeySource, NewDatabase, NewTimeline, RepositoryKey, SeenEntry,
    };
    use crate::restore::testing::{World, order};
    use crate::restore::{Cancel, Options, Order, history_of, restore};
    use crate::store::Store;
    use crate::verify::{VerifyOptions, verify};

    const HOST: [u8; 8] = [3; 8];

    /// A repository that holds what a world holds.
    async fn filled(url: &str, encryption: Option<KeySource>) -> (Repository, DatabaseId, World) {
        let now = Timestamp::from_micros(1);
        let options = CreateOptions { encryption, location: String::new(), now };
        let repository = Repository::create(Store::open(url).unwrap(), options).await.unwrap();
        let (host, host_name) = (HostId::from_bytes(HOST), "here".to_owned());
        let new = NewDatabase {
            name: "app".to_owned(),
            source: "/srv/app.db".to_owned(),
            engine: "sqlite".to_owned(),
            class: "production".to_owned(),
            origin: None,
            host,
            host_name: host_name.clone(),
            now,
        };
        let database = repository.register_database(new).await.unwrap().id;
        let hasher = repository.hasher(database).await.unwrap();
        let mut world = World::of(database, hasher, PageSize::MIN, 20);
        for step in 0..24_u32 {
            world.commit(20 + step % 5, &[(step % 9 + 1, u64::from(step) + 900), (2, u64::from(step))]);
            match step {
                3 | 4 | 9 => world.cut(),
                7 | 14 => world.base(),
                18 => world.fork(1),
                _ => {}
            }
        }
        world.cut();
        world.seen();
        for key in world.objects.keys() {
            let bytes = world.objects.bytes(&key);
            if let Ok(key) = SegmentKey::parse(&key) {
                repository.put_segment(&key, bytes).await.unwrap();
            } else if let Ok(key) = BaseKey::parse(&key) {
                repository.put_base(&key, bytes).await.unwrap();
            } else {
                let digest = key.rsplit('/').next().unwrap().parse().unwrap();
                repository.put_pack(database, digest, bytes).await.unwrap();
            }
        }
        for timeline in &world.findings.timelines {
            let reason = ForkReason::SourceBehind;
            let (id, parent, now) = (timeline.id, timeline.parent, timeline.claimed_at);
            let new = NewTimeline { id, parent, reason, host, host_name: host_name.clone(), now };
            assert!(matches!(repository.claim_timeline(database, new).await.unwrap(), Claim::Won(_)));
        }
        let seen = world.findings.seen.last().unwrap();
        let entry = SeenEntry { position: seen.position, through: seen.time };
        repository.put_seen(host, Timestamp::now(), vec![(database, entry)]).await.unwrap();
        (repository, database, world)
    }

    async fn everything_is_restored(url: &str, encryption: Option<KeySource>) {
        let (repository, database, world) = filled(url, encryption).await;
        let history = history_of(&repository, database).await.unwrap();
        let mut expected = Shown::of(&world.history());
        let found = Shown::of(&history);
        expected.timelines.clone_from(&found.timelines);
        assert_eq!(found, expected);
        let folder = TempDir::new().unwrap();
        let options = Options { reserve_bytes: Some(0), ..Options::default() };
        for (position, (_, image)) in &world.images {
            let to = folder.path().join(position.to_string().replace('/', "-"));
            let target = Target::Position(*position);
            let order = Order { now: Timestamp::MAX, ..order(&world, target, &to, &options) };
            restore(&repository, &history, &order).await.unwrap();
            assert!(std::fs::read(&to).unwrap() == *image, "{position}");
        }
        let options = VerifyOptions {
            deep_in: Some(folder.path()),
            restore: &options,
            progress: Arc::new(|_| {}),
            cancel: &Cancel::new(),
        };
        let packs = Inventory::packs(&repository, database).await.unwrap();
        let report = verify(&repository, &history, &packs, &options).await.unwrap();
        assert_eq!(report.problems, []);
        assert_eq!(report.proven_transactions, world.images.len() as u64);
        let lost = world.findings.segments.last().unwrap().key;
        repository.store().delete(&lost.to_string()).await.unwrap();
        let report = verify(&repository, &history, &packs, &options).await.unwrap();
        assert!(report.problems.iter().any(|problem| problem.object == lost.to_string()), "{report:?}");
    }

    #[tokio::test]
    async fn a_repository_in_the_clear_gives_every_commit_back() {
        everything_is_restored("memory://restore-in-the-clear", None).await;
        let folder = TempDir::new().unwrap();
        everything_is_restored(folder.path().to_str().unwrap(), None).await;
    }

    #[tokio::test]
    async fn an_encrypted_repository_gives_every_commit_back() {
        let key = KeySource::Key(RepositoryKey::generate().unwrap());
        everything_is_restored("memory://restore-encrypted", Some(key)).await;
    }
}

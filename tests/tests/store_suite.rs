//! One suite for every kind of store (memory, a folder, three clouds over real HTTP), and one for a repository on each
//! of them, in the clear and encrypted; then what only some stores do wrong. What clouds do wrong: `clouds.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "what a test needs and does not get fails the test"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use everwhen_engine::digest::Hasher;
use everwhen_engine::error::{ErrorKind, Explain};
use everwhen_engine::ids::{DatabaseId, HostId, Position, RepositoryId, TimelineId, TxId, TxRange};
use everwhen_engine::repository::{
    Claim, CreateOptions, DatabaseRecord, ForkReason, KeySource, NewDatabase, NewTimeline, Repository,
    RepositoryError, RepositoryKey, SeenEntry,
};
use everwhen_engine::store::keys::{SegmentKey, record_key, timeline_prefix};
use everwhen_engine::store::testing::{Fault, Faulty, Recording, Rule, Verb};
use everwhen_engine::store::{Body, PutOutcome, Store, StoreError};
use everwhen_engine::time::Timestamp;
use everwhen_engine::transaction::TxFlags;
use everwhen_tests::cloud::{CloudServer, Dialect};

const NOW: i64 = 1_800_000_000_000_000;

fn now() -> Timestamp {
    Timestamp::from_micros(NOW)
}

fn host(number: u8) -> HostId {
    HostId::from_bytes([number; 8])
}

/// Keeps what a store needs while it is used.
struct Place {
    store: Store,
    folder: Option<tempfile::TempDir>,
    _server: Option<CloudServer>,
}

fn memory(name: &str) -> Place {
    Place { store: Store::open(&format!("memory://{name}")).unwrap(), folder: None, _server: None }
}

fn folder() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("not/there/yet");
    Place { store: Store::open(path.to_str().unwrap()).unwrap(), folder: Some(folder), _server: None }
}

fn cloud(dialect: Dialect) -> Place {
    let server = CloudServer::start(dialect);
    server.fault(|faults| faults.page = 3);
    Place { store: server.open("some/prefix"), folder: None, _server: Some(server) }
}

fn s3() -> CloudServer {
    CloudServer::start(Dialect::S3)
}

async fn keys(store: &Store, prefix: &str, after: Option<&str>) -> Vec<String> {
    store.list_all(prefix, after).await.unwrap().into_iter().map(|entry| entry.key).collect()
}

/// What every store has to do.
async fn conformance(store: &Store) {
    assert!(matches!(store.get("a/missing").await, Err(StoreError::Missing { .. })));
    assert_eq!(store.size("a/missing").await.unwrap(), None);
    assert!(keys(store, "a/", None).await.is_empty());
    assert!(store.list_folders("a/").await.unwrap().is_empty());

    let body = || Bytes::from_static(b"0123456789");
    assert_eq!(store.put_new("a/one", body()).await.unwrap(), PutOutcome::Created);
    assert_eq!(store.put_new("a/one", body()).await.unwrap(), PutOutcome::AlreadyThere);
    let differs = store.put_new("a/one", Bytes::from_static(b"longer than that")).await;
    assert!(matches!(differs, Err(StoreError::Differs { expected: 16, found: 10, .. })), "{differs:?}");
    assert_eq!(store.get("a/one").await.unwrap(), body());
    assert_eq!(store.size("a/one").await.unwrap(), Some(10));

    assert_eq!(store.get_range("a/one", 2..5).await.unwrap(), b"234"[..]);
    assert_eq!(store.get_range("a/one", 0..10).await.unwrap(), body());
    assert!(store.get_range("a/one", 4..4).await.unwrap().is_empty());
    for beyond in [5..11, 10..12, 99..100] {
        let answer = store.get_range("a/one", beyond.clone()).await;
        assert!(matches!(answer, Err(StoreError::Range { .. })), "{beyond:?}: {answer:?}");
    }
    assert_eq!(store.put_new("a/empty", Bytes::new()).await.unwrap(), PutOutcome::Created);
    assert!(store.get("a/empty").await.unwrap().is_empty());

    // Order is the order of texts, also across folders whose names begin alike; and pages do not show.
    for key in ["l/b/1", "l/a-b/1", "l/a/2", "l/a/10", "l/c", "l/a-/0", "l/b/0", "lx/no"] {
        store.put_new(key, body()).await.unwrap();
    }
    let mut sorted = ["l/b/1", "l/a-b/1", "l/a/2", "l/a/10", "l/c", "l/a-/0", "l/b/0"];
    sorted.sort_unstable();
    assert_eq!(keys(store, "l/", None).await, sorted);
    for at in 0..sorted.len() {
        assert_eq!(keys(store, "l/", Some(sorted[at])).await, sorted[at + 1..], "after {}", sorted[at]);
    }
    assert_eq!(keys(store, "l/", Some("l/a/1z")).await, ["l/a/2", "l/b/0", "l/b/1", "l/c"]);
    assert_eq!(store.list_folders("l/").await.unwrap(), ["a", "a-", "a-b", "b"]);

    let large: Vec<u8> = (0..40 * 1024 * 1024u32).map(|i| (i / 7) as u8).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &large).unwrap();
    let from_file = || Body::from(vec![9; 3]).then(Body::file(file.path()).unwrap());
    assert_eq!(store.put_new("big/x", from_file()).await.unwrap(), PutOutcome::Created);
    assert_eq!(store.put_new("big/x", from_file()).await.unwrap(), PutOutcome::AlreadyThere);
    let tail = store.get_range("big/x", large.len() as u64..large.len() as u64 + 3).await.unwrap();
    assert_eq!(tail, large[large.len() - 3..]);
    assert!(store.get("big/x").await.unwrap()[3..] == large);

    // A body that breaks off leaves nothing behind.
    let broken = Body::new(20 << 20, std::iter::once(Ok(Bytes::from_static(b"short"))));
    assert!(matches!(store.put_new("big/broken", broken).await, Err(StoreError::Body { .. })));
    let broken = Body::new(10, std::iter::once(Ok(Bytes::from_static(b"short"))));
    assert!(matches!(store.put_new("big/broken", broken).await, Err(StoreError::Body { .. })));
    assert_eq!(store.size("big/broken").await.unwrap(), None);

    store.delete("a/one").await.unwrap();
    store.delete("a/one").await.unwrap();
    assert!(matches!(store.get("a/one").await, Err(StoreError::Missing { .. })));

    for bad in ["", "/a", "a/", "a//b", "../a", "a/../b", "A", "a b", ".staging/x", "a#1"] {
        assert!(store.create(bad, Bytes::new()).await.is_err(), "'{bad}' is not a key");
    }
    assert!(keys(store, "", None).await.contains(&"lx/no".to_owned()));
}

#[tokio::test]
async fn memory_conforms() {
    conformance(&memory("conformance").store).await;
    conformance(&Store::open("memory://conformance/with/prefix").unwrap()).await;
}

#[tokio::test]
async fn a_folder_conforms() {
    conformance(&folder().store).await;
}

#[tokio::test]
async fn s3_conforms() {
    conformance(&cloud(Dialect::S3).store).await;
}

#[tokio::test]
async fn google_conforms() {
    conformance(&cloud(Dialect::Google).store).await;
}

#[tokio::test]
async fn azure_conforms() {
    conformance(&cloud(Dialect::Azure).store).await;
}

#[tokio::test]
async fn racing_puts_of_one_name_create_it_once() {
    for place in [memory("race"), folder()].into_iter().chain(Dialect::ALL.map(cloud)) {
        let puts = (0..16u8).map(|writer| {
            let store = place.store.clone();
            tokio::spawn(async move { store.create("one/name", vec![writer; 100].into()).await.unwrap() })
        });
        let puts: Vec<_> = puts.collect();
        let mut created = 0;
        for put in puts {
            created += usize::from(put.await.unwrap() == PutOutcome::Created);
        }
        assert_eq!(created, 1, "{}", place.store.url());
        let content = place.store.get("one/name").await.unwrap();
        assert!(content.len() == 100 && content.iter().all(|byte| *byte == content[0]));
    }
}

#[tokio::test]
async fn what_a_killed_process_left_in_a_folder_never_shows_and_is_swept() {
    let place = folder();
    place.store.put_new("a/one", Bytes::from_static(b"x")).await.unwrap();
    let root = place.folder.as_ref().unwrap().path().join("not/there/yet");
    let (old, young) = (root.join(".staging/00aa"), root.join(".staging/00bb"));
    std::fs::write(&old, b"half").unwrap();
    std::fs::write(&young, b"half").unwrap();
    std::fs::write(root.join("a/.hidden"), b"half").unwrap();
    let two_days = std::time::SystemTime::now() - Duration::from_secs(2 * 86_400);
    std::fs::File::open(&old).unwrap().set_modified(two_days).unwrap();
    assert_eq!(keys(&place.store, "", None).await, ["a/one"]);
    assert_eq!(place.store.list_folders("").await.unwrap(), ["a"]);
    // Another process writes for the first time.
    let again = Store::open(root.to_str().unwrap()).unwrap();
    again.put_new("a/two", Bytes::from_static(b"x")).await.unwrap();
    assert!(!old.exists() && young.exists());
    // And nothing of a finished put is left.
    assert_eq!(std::fs::read_dir(root.join(".staging")).unwrap().count(), 1);
}

#[tokio::test]
async fn a_folder_removed_behind_our_back_is_made_again() {
    let place = folder();
    place.store.put_new("a/b/one", Bytes::from_static(b"x")).await.unwrap();
    let root = place.folder.as_ref().unwrap().path().join("not/there/yet");
    std::fs::remove_dir_all(root.join("a")).unwrap();
    place.store.put_new("a/b/two", Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(keys(&place.store, "", None).await, ["a/b/two"]);
}

// ---- The repository -------------------------------------------------------------------------------------------------

fn key() -> KeySource {
    KeySource::Key(RepositoryKey::generate().unwrap())
}

async fn create(store: &Store, encryption: Option<KeySource>) -> Repository {
    let options = CreateOptions { encryption, location: "eu".into(), now: now() };
    Repository::create(store.clone(), options).await.unwrap()
}

fn new_database(name: &str) -> NewDatabase {
    NewDatabase {
        name: name.into(),
        source: format!("/srv/{name}.db"),
        engine: "sqlite".into(),
        class: "production".into(),
        origin: None,
        host: host(1),
        host_name: "here".into(),
        now: now(),
    }
}

fn new_timeline(number: u32, by: u8) -> NewTimeline {
    NewTimeline {
        id: TimelineId::new(number).unwrap(),
        parent: TimelineId::new(number - 1).map(|parent| Position::new(parent, TxId::FIRST)),
        reason: ForkReason::NotProven,
        host: host(by),
        host_name: "there".into(),
        now: now(),
    }
}

fn segment_key(database: DatabaseId, hasher: &Hasher, first: u64, content: &[u8]) -> SegmentKey {
    let tx = TxId::new(first).unwrap();
    SegmentKey {
        database,
        timeline: TimelineId::FIRST,
        range: TxRange::new(tx, tx).unwrap(),
        from: now(),
        to: now(),
        flags: TxFlags::NONE,
        digest: hasher.digest(content),
    }
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 253) as u8).collect()
}

/// What a repository has to do on every store.
async fn repository_conforms(store: &Store, encryption: Option<KeySource>) {
    let missing = Repository::open(store.clone(), encryption.as_ref()).await.unwrap_err();
    assert!(matches!(missing, RepositoryError::NotARepository { .. }), "{missing:?}");
    let repository = create(store, encryption.clone()).await;
    assert_eq!(repository.encrypted(), encryption.is_some());
    let options = CreateOptions { encryption: encryption.clone(), location: String::new(), now: now() };
    let again = Repository::create(store.clone(), options.clone()).await.unwrap_err();
    assert!(matches!(again, RepositoryError::AlreadyThere { .. }), "{again:?}");
    assert_eq!(Repository::open_or_create(store.clone(), options).await.unwrap().id(), repository.id());

    let database = databases(&repository).await;
    timelines(&repository, database.id).await;
    objects(&repository, database.id).await;
    marks(&repository, database.id).await;

    // Another process sees the same.
    let other = Repository::open(store.clone(), encryption.as_ref()).await.unwrap();
    assert_eq!((other.id(), other.location(), other.created()), (repository.id(), "eu", now()));
    other.expect_id(repository.id()).unwrap();
    let foreign = other.expect_id(RepositoryId::from_bytes([9; 8])).unwrap_err();
    assert_eq!(foreign.kind(), ErrorKind::Refused);
    assert_eq!(other.databases().await.unwrap(), repository.databases().await.unwrap());
    assert_eq!(other.timelines(database.id).await.unwrap(), repository.timelines(database.id).await.unwrap());
    assert_eq!(other.seen(now()).await.unwrap(), repository.seen(now()).await.unwrap());
    let segments = other.all_segments(database.id).await.unwrap();
    assert_eq!(segments, repository.all_segments(database.id).await.unwrap());
    other.get_segment(&segments[0].0).await.unwrap();
}

async fn databases(repository: &Repository) -> DatabaseRecord {
    assert!(repository.databases().await.unwrap().is_empty());
    let first = repository.register_database(new_database("app")).await.unwrap();
    let taken = repository.register_database(new_database("app")).await.unwrap_err();
    assert!(matches!(taken, RepositoryError::NameTaken { found, .. } if found == first.id));
    let mut copy = new_database("copy");
    copy.origin = Some((first.id, Position::new(TimelineId::FIRST, TxId::new(7).unwrap())));
    let copy = repository.register_database(copy).await.unwrap();

    let changed = DatabaseRecord { class: "sandbox".into(), ..first.clone() };
    let second = repository.update_database(changed, now().plus_micros(5)).await.unwrap();
    assert_eq!((second.seq, second.created, second.written), (2, now(), now().plus_micros(5)));
    // Who still holds the first version has to look again.
    let stale = repository.update_database(first.clone(), now()).await.unwrap_err();
    assert!(matches!(stale, RepositoryError::Conflict { .. }));

    assert_eq!(repository.databases().await.unwrap(), [second.clone(), copy]);
    for wanted in ["app", "/srv/app.db", &first.id.to_string()] {
        assert_eq!(repository.find_database(wanted).await.unwrap(), second);
    }
    let unknown = repository.find_database("ap").await.unwrap_err();
    assert!(unknown.to_string().contains("app, copy"), "{unknown}");
    assert_eq!(unknown.kind(), ErrorKind::NoSuchPoint);
    second
}

async fn timelines(repository: &Repository, database: DatabaseId) {
    assert!(repository.timelines(database).await.unwrap().is_empty());
    let won = repository.claim_timeline(database, new_timeline(1, 1)).await.unwrap();
    let Claim::Won(first) = won else { panic!("{won:?}") };
    let lost = repository.claim_timeline(database, new_timeline(1, 2)).await.unwrap();
    assert_eq!(lost, Claim::Taken);
    let won = repository.claim_timeline(database, new_timeline(2, 2)).await.unwrap();
    let Claim::Won(second) = won else { panic!("{won:?}") };
    assert_eq!(repository.timelines(database).await.unwrap(), [first, second]);
}

async fn objects(repository: &Repository, database: DatabaseId) {
    let hasher = repository.hasher(database).await.unwrap();
    let mut stored = Vec::new();
    for (number, len) in [0, 1, 300_000, 600_000].into_iter().enumerate() {
        let content = content(len);
        let key = segment_key(database, &hasher, number as u64 + 1, &content);
        let put = repository.put_segment(&key, content.clone()).await.unwrap();
        assert_eq!(put, PutOutcome::Created);
        let put = repository.put_segment(&key, content.clone()).await.unwrap();
        assert_eq!(put, PutOutcome::AlreadyThere);
        assert_eq!(repository.segment_size(&key).await.unwrap(), Some(len as u64));
        assert_eq!(repository.get_segment(&key).await.unwrap(), content);
        for range in [0..1, 0..len, len / 3..len / 2, 262_143..262_145, len.saturating_sub(1)..len] {
            if range.start < range.end && range.end <= len {
                let asked = range.start as u64..range.end as u64;
                let got = repository.get_segment_range(&key, asked).await.unwrap();
                assert_eq!(got, content[range]);
            }
        }
        let beyond = repository.get_segment_range(&key, len as u64..len as u64 + 1).await.unwrap_err();
        assert_eq!(beyond.kind(), ErrorKind::Damaged, "{beyond:?}");
        stored.push((key, len as u64));
    }
    let listed = repository.segments(database, TimelineId::FIRST, None).await.unwrap();
    assert_eq!(listed, stored);
    let behind = repository.segments(database, TimelineId::FIRST, TxId::new(2)).await.unwrap();
    assert_eq!(behind, stored[2..]);
    let other = repository.segments(database, TimelineId::FIRST.next(), None).await.unwrap();
    assert!(other.is_empty());

    // What does not belong under its name is not put, however large.
    for len in [0, 10, 17 << 20] {
        let key = segment_key(database, &hasher, 99, b"something else");
        let refused = repository.put_segment(&key, content(len)).await.unwrap_err();
        assert!(matches!(refused, RepositoryError::WrongContent { .. }), "{refused:?}");
        assert!(matches!(repository.get_segment(&key).await, Err(RepositoryError::Missing { .. })));
    }
    let pack = content(1_000_000);
    let digest = hasher.digest(&pack);
    repository.put_pack(database, digest, pack.clone()).await.unwrap();
    assert_eq!(repository.packs(database).await.unwrap(), [(digest, 1_000_000)]);
    let got = repository.get_pack_range(database, digest, 500_000..900_000).await.unwrap();
    assert_eq!(got, pack[500_000..900_000]);
}

async fn marks(repository: &Repository, database: DatabaseId) {
    let entry = |tx: u64, through: i64| SeenEntry {
        position: Position::new(TimelineId::FIRST, TxId::new(tx).unwrap()),
        through: now().plus_micros(through),
    };
    let gone = DatabaseId::from_bytes([5; 8]);
    assert!(repository.seen(now()).await.unwrap().is_empty());
    let month = 40 * 86_400_000_000;
    repository.put_seen(host(1), now().plus_micros(-month), vec![(gone, entry(1, -month))]).await.unwrap();
    // A mark far back is found, too.
    assert_eq!(repository.seen(now()).await.unwrap(), [(gone, entry(1, -month))]);
    repository.put_seen(host(1), now(), vec![(database, entry(4, 0))]).await.unwrap();
    repository.put_seen(host(2), now(), vec![(database, entry(3, -9))]).await.unwrap();
    // Several daemons may speak of one database: of different timelines.
    let mut seen = repository.seen(now()).await.unwrap();
    seen.sort_by_key(|(database, entry)| (*database, entry.position));
    let mut expected = [(gone, entry(1, -month)), (database, entry(3, -9)), (database, entry(4, 0))];
    expected.sort_by_key(|(database, entry)| (*database, entry.position));
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn repositories_conform_on_every_store_in_the_clear() {
    repository_conforms(&memory("clear").store, None).await;
    repository_conforms(&folder().store, None).await;
    for dialect in Dialect::ALL {
        repository_conforms(&cloud(dialect).store, None).await;
    }
}

#[tokio::test]
async fn repositories_conform_on_every_store_when_encrypted() {
    repository_conforms(&memory("sealed").store, Some(key())).await;
    repository_conforms(&folder().store, Some(key())).await;
    for dialect in Dialect::ALL {
        repository_conforms(&cloud(dialect).store, Some(key())).await;
    }
}

#[tokio::test]
async fn credentials_without_delete_can_run_everything_but_expiry() {
    let server = s3();
    server.fault(|faults| faults.no_delete = true);
    // The server refuses every delete; the one that is tried gives up a large upload whose content was wrong.
    repository_conforms(&server.open("x"), Some(key())).await;
    assert_eq!(server.requests().deletes, 1);
}

#[tokio::test]
async fn nothing_is_replaced_on_a_store_that_ignores_conditions() {
    let server = s3();
    server.fault(|faults| faults.ignores_conditions = true);
    let store = server.open("x");
    let repository = create(&store, None).await;
    assert!(!repository.probe_create_if_absent(host(1)).await.unwrap());
    let database = repository.register_database(new_database("app")).await.unwrap().id;

    // Eight daemons claim one timeline at once: each claim is kept, all agree on the winner.
    let mut claims = Vec::new();
    let recording = Recording::new();
    let recorded = store.wrap(|inner| recording.wrap(inner));
    let mut writers = Vec::new();
    for writer in 1..=8 {
        let repository = Repository::open(recorded.clone(), None).await.unwrap();
        repository.probe_create_if_absent(host(writer)).await.unwrap();
        writers.push((writer, repository));
    }
    // Slow enough that each looks before any of them has put.
    server.fault(|faults| faults.delay = Duration::from_millis(100));
    for (writer, repository) in writers {
        claims.push(tokio::spawn(async move {
            repository.claim_timeline(database, new_timeline(1, writer)).await.unwrap()
        }));
    }
    let mut won = Vec::new();
    for claim in claims {
        if let Claim::Won(timeline) = claim.await.unwrap() {
            won.push(timeline);
        }
    }
    server.fault(|faults| faults.delay = Duration::ZERO);
    assert_eq!(won.len(), 1, "{won:?}");
    assert_eq!(repository.timelines(database).await.unwrap(), won);
    let kept = keys(&store, &timeline_prefix(database), None).await;
    let put = recording
        .requests()
        .into_iter()
        .filter(|(verb, key)| *verb == Verb::Put && key.contains("/timeline/"));
    assert!(put.clone().count() > 1, "nobody raced");
    assert!(put.map(|(_, key)| key).all(|key| kept.contains(&key)), "{kept:?}");

    // A daemon that goes on with an older timeline hears of it.
    let resumed = Repository::open(store.clone(), None).await.unwrap();
    assert_eq!(resumed.newer_claim(database, TimelineId::FIRST).await.unwrap(), None);
    let later = repository.claim_timeline(database, new_timeline(2, 9)).await.unwrap();
    let newer = resumed.newer_claim(database, TimelineId::FIRST).await.unwrap();
    assert_eq!(newer.map(Claim::Won), Some(later));

    // Two versions of a record at once: one is the next, the other is told, and both are kept.
    let record = repository.database(database).await.unwrap().unwrap();
    let other = Repository::open(store.clone(), None).await.unwrap();
    let (one, two) = tokio::join!(
        repository.update_database(DatabaseRecord { class: "one".into(), ..record.clone() }, now()),
        other.update_database(DatabaseRecord { class: "two".into(), ..record.clone() }, now()),
    );
    assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
    let kept = one.or(two).unwrap();
    assert_eq!(repository.database(database).await.unwrap().unwrap(), kept);
}

#[tokio::test]
async fn stores_that_refuse_conditions_are_used_like_those_that_ignore_them() {
    let server = s3();
    server.fault(|faults| faults.refuses_conditions = true);
    let store = server.open("x");
    let repository = create(&store, Some(key())).await;
    assert!(!repository.probe_create_if_absent(host(1)).await.unwrap());
    let database = repository.register_database(new_database("app")).await.unwrap().id;
    assert!(matches!(repository.claim_timeline(database, new_timeline(1, 1)).await.unwrap(), Claim::Won(_)));
    objects(&repository, database).await;
}

#[tokio::test]
async fn a_claim_whose_acknowledgement_is_lost_is_not_claimed_twice() {
    let faulty = Faulty::new();
    let store = memory("lost-ack").store;
    let repository = create(&store, None).await;
    let database = repository.register_database(new_database("app")).await.unwrap().id;
    let through = Repository::open(store.wrap(|inner| faulty.wrap(inner)), None).await.unwrap();
    faulty.add(Rule::always(Verb::Put, Fault::LostAck).on_keys_with("/timeline/").times(1));
    assert!(through.claim_timeline(database, new_timeline(1, 1)).await.unwrap_err().is_passing());
    // It stands: the daemon claims the next number.
    assert_eq!(through.claim_timeline(database, new_timeline(1, 1)).await.unwrap(), Claim::Taken);
    assert_eq!(through.timelines(database).await.unwrap()[0].host, host(1));
}

#[tokio::test]
async fn keys_rotate_without_touching_data() {
    let server = s3();
    let store = server.open("x");
    let (old, new) = (key(), key());
    let repository = create(&store, Some(old.clone())).await;
    let database = repository.register_database(new_database("secret-name")).await.unwrap();
    let hasher = repository.hasher(database.id).await.unwrap();
    let segment = segment_key(database.id, &hasher, 1, b"content");
    repository.put_segment(&segment, b"content".to_vec()).await.unwrap();
    // Names and contents leak nothing.
    assert_ne!(segment.digest, Hasher::Plain.digest(b"content"));
    for (key, _) in server.objects() {
        let object = server.object(&key).unwrap();
        for secret in [&b"secret-name"[..], b"content", b"/srv/"] {
            assert!(!object.windows(secret.len()).any(|window| window == secret), "{key}");
        }
    }
    let data: Vec<_> = server.objects().into_iter().filter(|(key, _)| key.starts_with("x/db/")).collect();

    let before = repository.key_info().await.unwrap().unwrap();
    let rotation = repository.rotate_key(&new, now()).await.unwrap();
    let after = repository.key_info().await.unwrap().unwrap();
    assert_eq!((rotation.from, rotation.to), (before.key, after.key));
    assert!(rotation.left.is_empty());
    assert_eq!((before.seq, after.seq), (1, 2));
    let kept: Vec<_> = server.objects().into_iter().filter(|(key, _)| key.starts_with("x/db/")).collect();
    assert_eq!(kept, data);

    let refused = Repository::open(store.clone(), Some(&old)).await.unwrap_err();
    assert!(matches!(refused, RepositoryError::WrongKey { expected, .. } if expected == after.key));
    assert_eq!(refused.kind(), ErrorKind::Refused);
    let reopened = Repository::open(store.clone(), Some(&new)).await.unwrap();
    assert_eq!(reopened.get_segment(&segment).await.unwrap(), b"content"[..]);
    repository.get_segment(&segment).await.unwrap();

    // Without the right to delete, the operator is told what is left.
    server.fault(|faults| faults.no_delete = true);
    let rotation = reopened.rotate_key(&key(), now()).await.unwrap();
    assert_eq!(rotation.left.len(), 1);
}

#[tokio::test]
async fn keys_that_do_not_fit_are_told_apart() {
    let (plain, sealed) = (memory("no-key").store, memory("with-key").store);
    create(&plain, None).await;
    create(&sealed, Some(key())).await;
    let needed = Repository::open(sealed.clone(), None).await.unwrap_err();
    assert!(matches!(needed, RepositoryError::KeyNeeded { .. }));
    let wrong = Repository::open(sealed, Some(&key())).await.unwrap_err();
    assert!(matches!(wrong, RepositoryError::WrongKey { .. }));
    let useless = Repository::open(plain.clone(), Some(&key())).await.unwrap_err();
    assert!(matches!(useless, RepositoryError::NotEncrypted { .. }));
    for error in [needed, wrong, useless] {
        assert!(error.advice().is_some(), "{error}");
    }
    let plain = Repository::open(plain, None).await.unwrap();
    assert!(plain.rotate_key(&key(), now()).await.is_err());
    assert_eq!(plain.key_info().await.unwrap(), None);
}

/// Flips, cuts, swaps and removes every object of a repository in turn: never a wrong answer, always an error by name.
async fn damage(encryption: Option<KeySource>) {
    let server = s3();
    let store = server.open("x");
    let repository = create(&store, encryption.clone()).await;
    let database = repository.register_database(new_database("app")).await.unwrap();
    repository.register_database(new_database("other")).await.unwrap();
    repository.claim_timeline(database.id, new_timeline(1, 1)).await.unwrap();
    repository.claim_timeline(database.id, new_timeline(2, 1)).await.unwrap();
    let hasher = repository.hasher(database.id).await.unwrap();
    for number in 1..=2 {
        let content = content(100 + number as usize);
        let key = segment_key(database.id, &hasher, number, &content);
        repository.put_segment(&key, content).await.unwrap();
    }
    type Seen = (Vec<DatabaseRecord>, Vec<everwhen_engine::repository::Timeline>, Vec<Bytes>);
    let look = async || -> Result<Seen, RepositoryError> {
        let repository = Repository::open(store.clone(), encryption.as_ref()).await?;
        let databases = repository.databases().await?;
        let timelines = repository.timelines(database.id).await?;
        let mut contents = Vec::new();
        for (key, _) in repository.segments(database.id, TimelineId::FIRST, None).await? {
            contents.push(repository.get_segment(&key).await?);
        }
        Ok((databases, timelines, contents))
    };
    let sound = look().await.unwrap();
    let objects: Vec<_> = server.objects().into_iter().map(|(key, _)| key).collect();
    let counted = |key: &str| !key.contains("/daemon/");
    for key in objects.iter().filter(|key| counted(key)) {
        let original = server.object(key).unwrap();
        for at in (0..original.len()).step_by(7) {
            let mut flipped = original.to_vec();
            flipped[at] ^= 0x20;
            server.tamper(key, Some(flipped.into()));
            let error = look().await.map(drop).expect_err(&format!("{key}: byte {at} flipped"));
            assert!(matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Refused), "{error:?}");
            server.tamper(key, Some(original.slice(..at)));
            assert!(look().await.is_err(), "{key}: cut at {at}");
        }
        for other in objects.iter().filter(|other| *other != key && counted(other)) {
            server.tamper(key, server.object(other));
            assert!(look().await.is_err(), "{key} is now a copy of {other}");
        }
        server.tamper(key, Some(original));
    }
    assert_eq!(look().await.unwrap(), sound);
    // The one thing a listing cannot tell: the newest version of a record is gone. What it said before holds then.
    server.tamper(&format!("x/{}", record_key(database.id, 1)), None);
    assert_eq!(look().await.unwrap().0.len(), sound.0.len() - 1);
}

#[tokio::test]
async fn every_altered_object_is_noticed_in_the_clear() {
    damage(None).await;
}

#[tokio::test]
async fn every_altered_object_is_noticed_when_encrypted() {
    damage(Some(key())).await;
}

#[tokio::test]
async fn requests_are_as_few_as_said() {
    let recording = Recording::new();
    let inner = memory("requests").store;
    create(&inner, None).await;
    let store = inner.wrap(|backend| recording.wrap(backend));
    let repository = Repository::open(store.clone(), None).await.unwrap();
    assert_eq!((recording.counts().gets, recording.counts().requests()), (1, 1));
    let database = repository.register_database(new_database("app")).await.unwrap().id;
    repository.databases().await.unwrap();
    recording.clear();
    repository.databases().await.unwrap();
    // One for the folders, one for the versions of the only one; the record itself is known.
    assert_eq!((recording.counts().lists, recording.counts().requests()), (2, 2));
    recording.clear();
    let key = segment_key(database, &Hasher::Plain, 1, b"x");
    repository.put_segment(&key, b"x".to_vec()).await.unwrap();
    assert_eq!((recording.counts().puts, recording.counts().requests()), (1, 1));
    assert_eq!(recording.counts().bytes_put, 1);
}

#[tokio::test]
async fn faults_come_by_rule() {
    let faulty = Faulty::new();
    let store = memory("rules").store.wrap(|inner| faulty.wrap(inner));
    store.put_new("a/one", vec![0; 100]).await.unwrap();
    faulty.add(Rule::always(Verb::Get, Fault::Flip).after(1).times(1));
    assert_eq!(store.get("a/one").await.unwrap(), vec![0; 100]);
    assert_ne!(store.get("a/one").await.unwrap(), vec![0; 100]);
    assert_eq!(store.get("a/one").await.unwrap(), vec![0; 100]);
    faulty.add(Rule::always(Verb::Put, Fault::Full));
    assert!(matches!(store.put_new("a/two", vec![0]).await, Err(StoreError::Full { .. })));
    faulty.clear();
    store.put_new("a/two", vec![0]).await.unwrap();
    let slow = store.wrap(|inner| {
        everwhen_engine::store::testing::Slow::wrap(Arc::clone(&inner), Duration::from_millis(30), 1000)
    });
    let begun = Instant::now();
    slow.get("a/one").await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(130));
}

/// Not an assertion but a figure: `cargo test -p everwhen-tests --test store_suite -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "prints the time of puts into a folder; a measurement"]
async fn time_of_a_small_put_into_a_folder() {
    let place = folder();
    for (name, len) in [("4 KiB", 4096), ("1 MiB", 1 << 20)] {
        let content = content(len);
        let mut times = Vec::new();
        for number in 0..400 {
            let key = format!("db/x/log/{len}/{number:016x}");
            let begun = Instant::now();
            place.store.put_new(&key, content.clone()).await.unwrap();
            times.push(begun.elapsed());
        }
        times.sort_unstable();
        println!("{name}: p50 {:?}, p99 {:?}", times[200], times[396]);
    }
}

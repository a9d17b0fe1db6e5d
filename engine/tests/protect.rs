//! The pipeline against stores that are slow, failing or gone, sources that lost commits, and local state that is lost.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]
#![cfg(feature = "test-util")]

mod capture_support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use capture_support::writer::{reported, run_job, start};
use everwhen_engine::history::{GapReason, History};
use everwhen_engine::ids::{HostId, TimelineId};
use everwhen_engine::plan::{RestorePlan, Target};
use everwhen_engine::protect::{BaseRule, Health, ProtectOptions, Protection};
use everwhen_engine::repository::{CreateOptions, Repository};
use everwhen_engine::restore::{self, Cancel, Order};
use everwhen_engine::store::Store;
use everwhen_engine::store::keys::timeline_key;
use everwhen_engine::store::testing::{Fault, Faulty, Rule, Verb};
use everwhen_engine::time::Timestamp;
use rusqlite::Connection;
use rusqlite::config::DbConfig;

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
#[ignore = "runs as an application process of the other tests"]
fn application_process() {
    run_job();
}

struct Bench {
    folder: tempfile::TempDir,
    faulty: Faulty,
    repository: Repository,
}

impl Bench {
    async fn new(name: &str) -> Self {
        let faulty = Faulty::new();
        let store =
            Store::open(&format!("memory://protect-{name}")).unwrap().wrap(|inner| faulty.wrap(inner));
        let options = CreateOptions { encryption: None, location: String::new(), now: Timestamp::now() };
        let repository = Repository::create(store, options).await.unwrap();
        Self { folder: tempfile::tempdir().unwrap(), faulty, repository }
    }

    fn database(&self) -> PathBuf {
        self.folder.path().join("app.db")
    }

    fn connect(&self) -> Connection {
        let connection = Connection::open(self.database()).unwrap();
        connection.pragma_update(None, "journal_mode", "wal").unwrap();
        connection
    }

    fn options(&self, state: &str) -> ProtectOptions {
        let host = HostId::from_bytes([state.len() as u8; 8]);
        ProtectOptions::new(
            self.database(),
            "app".into(),
            self.folder.path().join(state),
            host,
            "here".into(),
        )
    }

    async fn start(&self) -> Protection {
        Protection::start(self.repository.clone(), self.options("state")).await.unwrap()
    }

    async fn history(&self) -> History {
        let database = self.repository.find_database("app").await.unwrap().id;
        restore::history_of(&self.repository, database).await.unwrap()
    }

    async fn restore(&self, target: Target) -> Vec<u8> {
        let to = self.folder.path().join(format!("restored-{}", std::process::id()));
        let _ = std::fs::remove_file(&to);
        let (history, options) = (self.history().await, restore::Options::default());
        let progress = Arc::new(|_| {});
        let now = Timestamp::now();
        let (planned, cancel) = (&|_: &RestorePlan| {}, Cancel::new());
        let order = Order { target, now, to: &to, options: &options, planned, progress, cancel: &cancel };
        restore::restore(&self.repository, &history, &order).await.unwrap();
        image(&to)
    }
}

fn image(path: &Path) -> Vec<u8> {
    Connection::open(path).unwrap().serialize("main").unwrap().to_vec()
}

fn insert(app: &Connection, id: i64) {
    app.execute("INSERT INTO t VALUES (?1, randomblob(200))", [id]).unwrap();
}

fn table(app: &Connection) {
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)").unwrap();
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_made_while_the_store_is_away_arrive_when_it_is_back() {
    let bench = Bench::new("away").await;
    let app = bench.connect();
    table(&app);
    let protection = bench.start().await;
    protection.wait_durable(None, PATIENCE).await.unwrap();
    bench.faulty.add(Rule::always(Verb::Put, Fault::Unreachable));
    for id in 0..50 {
        insert(&app, id);
    }
    until("the trouble is shown", || protection.status().health == Health::Failing).await;
    let waited = protection.wait_durable(None, Duration::from_millis(300)).await.unwrap_err();
    assert!(waited.to_string().contains("not durable"), "{waited}");
    bench.faulty.clear();
    let durable = protection.wait_durable(None, PATIENCE).await.unwrap();
    assert_eq!(durable.tx.get(), 51);
    until("the trouble is over", || protection.status().health == Health::Ok).await;
    assert!(bench.restore(Target::Position(durable)).await == image(&bench.database()));
    protection.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_acknowledgements_make_nothing_twice() {
    let bench = Bench::new("lost-acks").await;
    let app = bench.connect();
    table(&app);
    for part in ["log/", "base/", "chunk/", "timeline/"] {
        bench.faulty.add(Rule::always(Verb::Put, Fault::LostAck).on_keys_with(part).times(2));
    }
    let protection = bench.start().await;
    protection.wait_durable(None, PATIENCE).await.unwrap();
    insert(&app, 1);
    let durable = protection.wait_durable(None, PATIENCE).await.unwrap();
    assert!(bench.restore(Target::Position(durable)).await == image(&bench.database()));
    assert!(bench.history().await.flaws().is_empty());
    protection.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_with_the_store_away_keeps_every_commit_in_the_spool() {
    let bench = Bench::new("spooled").await;
    let app = bench.connect();
    table(&app);
    let protection = bench.start().await;
    protection.wait_durable(None, PATIENCE).await.unwrap();
    protection.stop().await.unwrap();
    let mut options = bench.options("state");
    options.stop_patience = Duration::from_millis(100);
    let protection = Protection::start(bench.repository.clone(), options).await.unwrap();
    protection.flush().await.unwrap();
    bench.faulty.add(Rule::always(Verb::Put, Fault::Unreachable));
    for id in 0..20 {
        insert(&app, id);
        protection.flush().await.unwrap();
    }
    protection.stop().await.unwrap();
    // The log goes: only the spool knows the single commits now.
    app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    bench.faulty.clear();
    let protection = bench.start().await;
    let durable = protection.wait_durable(None, PATIENCE).await.unwrap();
    assert_eq!(durable.tx.get(), 21, "the state found, and twenty commits");
    let history = bench.history().await;
    assert!(history.gaps().is_empty(), "{:?}", history.gaps());
    assert!(bench.restore(Target::Position(durable)).await == image(&bench.database()));
    protection.stop().await.unwrap();
}

/// Everything fails but the local disk.
fn store_away(bench: &Bench) {
    for verb in [Verb::Get, Verb::List, Verb::Put] {
        bench.faulty.add(Rule::always(verb, Fault::Unreachable));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_the_store_away_keeps_the_log_and_loses_no_commit() {
    let bench = Bench::new("away-at-start").await;
    let app = bench.connect();
    table(&app);
    for (start, backfilled_first, commits) in [(0, true, 51), (100, false, 101)] {
        let protection = bench.start().await;
        protection.wait_durable(None, PATIENCE).await.unwrap();
        insert(&app, start);
        protection.wait_durable(None, PATIENCE).await.unwrap();
        protection.stop().await.unwrap();
        if backfilled_first {
            // Everything is in the file: the next commit resets the log.
            app.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
        }
        store_away(&bench);
        let protection = bench.start().await;
        until("the trouble is shown", || {
            protection.status().reasons.iter().any(|reason| reason.contains("the log is kept"))
        })
        .await;
        for id in start + 1..start + 50 {
            insert(&app, id);
            // With all in the file the next commit would reset the log, if nobody held it.
            app.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
        }
        bench.faulty.clear();
        let durable = protection.wait_durable(None, PATIENCE).await.unwrap();
        assert_eq!(durable.tx.get(), commits);
        // Nobody watched, so the times are not sure; but every commit is there.
        let gaps = bench.history().await.gaps();
        assert!(gaps.iter().all(|gap| gap.reason == GapReason::UncertainTimes), "{gaps:?}");
        assert!(bench.restore(Target::Position(durable)).await == image(&bench.database()));
        protection.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_grows_too_long_before_the_store_is_back_is_let_go_of_with_a_gap() {
    let bench = Bench::new("away-too-long").await;
    let app = bench.connect();
    table(&app);
    let protection = bench.start().await;
    protection.wait_durable(None, PATIENCE).await.unwrap();
    protection.stop().await.unwrap();
    store_away(&bench);
    let options = ProtectOptions { source_log_bytes: 1 << 20, ..bench.options("state") };
    let protection = Protection::start(bench.repository.clone(), options).await.unwrap();
    let log = bench.folder.path().join("app.db-wal");
    for id in 0..500 {
        insert(&app, id);
    }
    assert!(log.metadata().unwrap().len() > 1 << 20);
    until("the log is let go of", || {
        let all = |row: &rusqlite::Row<'_>| Ok(row.get::<_, i64>(1)? == row.get::<_, i64>(2)?);
        // Once nobody holds it, all of it can be put into the file, and the next commit resets it.
        app.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], all).unwrap()
    })
    .await;
    insert(&app, -1);
    bench.faulty.clear();
    let durable = protection.wait_durable(None, PATIENCE).await.unwrap();
    assert!(bench.restore(Target::Position(durable)).await == image(&bench.database()));
    assert_eq!(protection.status().gaps_total, 1);
    protection.stop().await.unwrap();
}

/// Closing any descriptor of the database or its index, in whatever corner of the process, drops the locks that hold the
/// log. A count of descriptors does not see one that is opened and closed in between; inotify does.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn nothing_closes_the_database_or_its_index_while_bases_are_made_from_it() {
    use inotify::{Inotify, WatchMask};
    let bench = Bench::new("descriptors").await;
    let app = bench.connect();
    table(&app);
    let rule = BaseRule { versions: 200, age: None };
    let options = ProtectOptions { base: rule, ..bench.options("state") };
    let protection = Protection::start(bench.repository.clone(), options).await.unwrap();
    protection.wait_durable(None, PATIENCE).await.unwrap();
    until("the first base is made", || protection.status().base.pages_total.is_none()).await;
    let mut watches: Vec<(PathBuf, Inotify)> = ["app.db", "app.db-shm"]
        .iter()
        .map(|name| {
            let (path, watch) = (bench.folder.path().join(name), Inotify::init().unwrap());
            watch.watches().add(&path, WatchMask::CLOSE).unwrap();
            (path, watch)
        })
        .collect();
    let mut closed = || {
        let mut found = Vec::new();
        for (path, watch) in &mut watches {
            let mut buffer = [0; 4096];
            if let Ok(events) = watch.read_events(&mut buffer) {
                found.extend(events.map(|event| (path.clone(), event.mask)));
            }
        }
        found
    };
    let before = bench.history().await.bases().count();
    for round in 0..4 {
        for id in 0..200 {
            app.execute("INSERT OR REPLACE INTO t VALUES (?1, randomblob(2000))", [id]).unwrap();
        }
        app.execute_batch("DELETE FROM t WHERE id % 3 = 0; VACUUM").unwrap();
        app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        let durable = protection.wait_durable(None, PATIENCE).await.unwrap();
        until("the base is made", || protection.status().base.pages_total.is_none()).await;
        assert_eq!(closed(), [], "round {round}");
        drop(bench.restore(Target::Position(durable)).await);
        assert_eq!(closed(), [], "after a restore beside it");
    }
    assert!(bench.history().await.bases().count() > before, "no image was taken meanwhile");
    // The watches tell: this is what they would see.
    for name in ["app.db", "app.db-shm"] {
        drop(File::open(bench.folder.path().join(name)).unwrap());
    }
    assert_eq!(closed().len(), 2);
    protection.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bases_come_by_work_share_their_chunks_and_bound_what_a_restore_replays() {
    let bench = Bench::new("by-work").await;
    let app = bench.connect();
    table(&app);
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
                INSERT INTO t SELECT i, randomblob(100) FROM n";
    app.execute(rows, []).unwrap();
    // Fewer than a round makes.
    let rule = BaseRule { versions: 300, age: None };
    let options = ProtectOptions { base: rule, ..bench.options("state") };
    let mut protection = Protection::start(bench.repository.clone(), options.clone()).await.unwrap();
    let mut before = protection.wait_durable(None, PATIENCE).await.unwrap();
    let first_base = chunk_bytes(&bench).await;
    let mut states = Vec::new();
    for round in 0..3 {
        for id in 0..400 {
            // Random bytes in one corner of the file: the log soon weighs a quarter of the base.
            app.execute("UPDATE t SET v = randomblob(3000) WHERE id = ?1", [id % 50]).unwrap();
        }
        let durable = protection.wait_durable(None, PATIENCE).await.unwrap();
        // Each round outgrows the base before; its own may still be under way, and a slow machine's at that.
        let newest = || protection.status().base.newest.map(|point| point.position);
        until("the round has its base", || newest() > Some(before)).await;
        before = durable;
        states.push((durable, image(&bench.database())));
        if round == 1 {
            // The rule goes on where it was, and so does the sharing of chunks.
            protection.stop().await.unwrap();
            protection = Protection::start(bench.repository.clone(), options.clone()).await.unwrap();
        }
    }
    let history = bench.history().await;
    let plan = restore::plan(&bench.repository, &history, Target::Latest, Timestamp::now()).await.unwrap();
    protection.stop().await.unwrap();
    let bases = history.bases().count();
    assert!((4..=12).contains(&bases), "{bases} bases");
    // What a base adds is the corner that has changed, not the file.
    let each = (chunk_bytes(&bench).await - first_base) / (bases as u64 - 1);
    assert!(each < first_base / 2, "{each} bytes for each further base, {first_base} with the first");
    assert!(plan.transactions < 400, "{} transactions to replay", plan.transactions);
    for (position, expected) in states {
        assert!(bench.restore(Target::Position(position)).await == expected, "{position}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_ends_in_a_recorded_gap_and_never_in_a_full_disk() {
    let bench = Bench::new("full").await;
    let app = bench.connect();
    table(&app);
    let mut options = bench.options("state");
    (options.memory_queue_bytes, options.spool_bytes, options.source_log_bytes) =
        (50_000, 200_000, 2_000_000);
    let protection = Protection::start(bench.repository.clone(), options).await.unwrap();
    protection.wait_durable(None, PATIENCE).await.unwrap();
    bench.faulty.add(Rule::always(Verb::Put, Fault::Unreachable));
    let mut id = 0;
    let end = Instant::now() + PATIENCE;
    while !protection.status().reasons.iter().any(|reason| reason.contains("spool is full"))
        && Instant::now() < end
    {
        app.execute("INSERT INTO t VALUES (?1, randomblob(9000))", [id]).unwrap();
        id += 1;
        if id % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert!(
        protection.status().reasons.iter().any(|reason| reason.contains("spool is full")),
        "{:?}",
        protection.status()
    );
    // Nothing holds the application's log any more.
    let busy: i64 = app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).unwrap();
    assert_eq!(busy, 0);
    app.execute("DELETE FROM t WHERE id % 2 = 0", []).unwrap();
    bench.faulty.clear();
    until("the trouble is over", || protection.status().health == Health::Ok).await;
    insert(&app, -1);
    let durable = protection.wait_durable(None, PATIENCE).await.unwrap();
    let history = bench.history().await;
    assert_eq!(history.gaps().len(), 1, "{:?}", history.gaps());
    assert!(history.flaws().is_empty());
    assert!(bench.restore(Target::Position(durable)).await == image(&bench.database()));
    protection.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_full_spool_no_writer_waits_behind_a_checkpoint_that_waits_for_us() {
    let bench = Bench::new("full-waited").await;
    let app = bench.connect();
    table(&app);
    let mut options = bench.options("state");
    (options.memory_queue_bytes, options.spool_bytes) = (50_000, 200_000);
    let protection = Protection::start(bench.repository.clone(), options).await.unwrap();
    protection.wait_durable(None, PATIENCE).await.unwrap();
    bench.faulty.add(Rule::always(Verb::Put, Fault::Unreachable));
    for id in 0..300 {
        app.execute("INSERT INTO t VALUES (?1, randomblob(2000))", [id]).unwrap();
        if id % 20 == 0 {
            // A part each: a single one does not fill the spool, whatever its size.
            let _ = tokio::time::timeout(Duration::from_secs(1), protection.flush()).await;
        }
    }
    let checkpoints = start("empty 1 0", &bench.database());
    assert_eq!(reported(checkpoints, "failed"), 0, "it waited for us in vain");
    insert(&app, 1000);
    bench.faulty.clear();
    until("the trouble is over", || protection.status().health == Health::Ok).await;
    insert(&app, 1001);
    let durable = protection.wait_durable(None, PATIENCE).await.unwrap();
    assert_eq!(bench.history().await.gaps().len(), 1);
    assert!(bench.restore(Target::Position(durable)).await == image(&bench.database()));
    protection.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_full_spool_a_question_lets_go_of_nothing_and_a_stop_ends() {
    let bench = Bench::new("full-asked").await;
    let app = bench.connect();
    table(&app);
    let mut options = bench.options("state");
    (options.memory_queue_bytes, options.spool_bytes) = (50_000, 200_000);
    options.stop_patience = Duration::from_millis(100);
    let protection = Protection::start(bench.repository.clone(), options.clone()).await.unwrap();
    protection.wait_durable(None, PATIENCE).await.unwrap();
    bench.faulty.add(Rule::always(Verb::Put, Fault::Unreachable));
    // Until it is full for the log to be let go of, and then some more.
    for id in 0..400 {
        app.execute("INSERT INTO t VALUES (?1, randomblob(2000))", [id]).unwrap();
        if id % 20 == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let _ = tokio::time::timeout(Duration::from_millis(50), protection.flush()).await;
            app.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
        }
    }
    let stopped = tokio::time::timeout(PATIENCE, protection.stop()).await;
    let status = stopped.expect("a stop with a full spool never ends").unwrap();
    assert!(status.spool_bytes + status.queue_bytes > 200_000, "the spool was not full: {status:?}");
    bench.faulty.clear();
    let protection = Protection::start(bench.repository.clone(), options).await.unwrap();
    let durable = protection.wait_durable(None, PATIENCE).await.unwrap();
    assert_eq!(durable.tx.get(), 401);
    let gaps = bench.history().await.gaps();
    assert!(gaps.iter().all(|gap| gap.reason == GapReason::UncertainTimes), "{gaps:?}");
    assert!(bench.restore(Target::Position(durable)).await == image(&bench.database()));
    protection.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_daemons_on_one_database_make_two_timelines_and_both_tell() {
    let bench = Bench::new("two").await;
    let app = bench.connect();
    table(&app);
    let one = bench.start().await;
    one.wait_durable(None, PATIENCE).await.unwrap();
    let two = Protection::start(bench.repository.clone(), bench.options("other-state")).await.unwrap();
    two.wait_durable(None, PATIENCE).await.unwrap();
    assert!(
        two.status().reasons.iter().any(|reason| reason.contains("timeline 2")),
        "{:?}",
        two.status().reasons
    );
    insert(&app, 1);
    let (first, second) =
        (one.wait_durable(None, PATIENCE).await.unwrap(), two.wait_durable(None, PATIENCE).await.unwrap());
    assert_eq!((first.timeline.get(), second.timeline.get()), (1, 2));
    assert!(
        one.status().reasons.iter().any(|reason| reason.contains("timeline 2")),
        "{:?}",
        one.status().reasons
    );
    for position in [first, second] {
        assert!(bench.restore(Target::Position(position)).await == image(&bench.database()));
    }
    one.stop().await.unwrap();
    two.stop().await.unwrap();
}

/// The first of them, which soon takes the line back, and the second, which has it.
async fn two_daemons(bench: &Bench) -> (Protection, Protection) {
    let mut options = bench.options("state");
    options.rival_silence = Duration::from_millis(500);
    let one = Protection::start(bench.repository.clone(), options).await.unwrap();
    one.wait_durable(None, PATIENCE).await.unwrap();
    let two = Protection::start(bench.repository.clone(), bench.options("other-state")).await.unwrap();
    two.wait_durable(None, PATIENCE).await.unwrap();
    (one, two)
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_other_daemon_is_gone_the_line_is_taken_back() {
    let bench = Bench::new("taken").await;
    let app = bench.connect();
    table(&app);
    let (one, two) = two_daemons(&bench).await;
    two.stop().await.unwrap();
    // Later than the last that the other one knows by more than times are exact to.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let mut id = 0;
    let mut write = || {
        id += 1;
        insert(&app, id);
    };
    write();
    let left = one.wait_durable(None, PATIENCE).await.unwrap();
    assert_eq!(left.timeline.get(), 1);
    let until = Instant::now() + PATIENCE;
    while one.wait_durable(None, PATIENCE).await.is_ok_and(|durable| durable.timeline.get() == 1) {
        assert!(Instant::now() < until, "{:?}", one.status().reasons);
        tokio::time::sleep(Duration::from_millis(100)).await;
        write();
    }
    write();
    let taken = one.wait_durable(None, PATIENCE).await.unwrap();
    assert_eq!(taken.timeline.get(), 3);
    assert!(bench.restore(Target::Latest).await == image(&bench.database()));
    assert!(!bench.restore(Target::Position(left)).await.is_empty(), "what was left stays restorable");
    one.stop().await.unwrap();
}

/// Nothing is committed after the line was taken back: it ends where the new timeline begins.
#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_was_taken_back_is_the_latest_and_the_next_daemon_goes_on_from_it() {
    let bench = Bench::new("latest").await;
    let app = bench.connect();
    table(&app);
    let (one, two) = two_daemons(&bench).await;
    insert(&app, 1);
    two.wait_durable(None, PATIENCE).await.unwrap();
    two.stop().await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    insert(&app, 2);
    let left = one.wait_durable(None, PATIENCE).await.unwrap();
    assert_eq!(left.timeline.get(), 1);
    let until = Instant::now() + PATIENCE;
    while bench.history().await.timelines().len() < 3 {
        assert!(Instant::now() < until, "{:?}", one.status().reasons);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(bench.restore(Target::Latest).await == image(&bench.database()));
    one.stop().await.unwrap();
    let three = Protection::start(bench.repository.clone(), bench.options("third-state")).await.unwrap();
    three.wait_durable(None, PATIENCE).await.unwrap();
    let begun = bench.history().await.timelines().last().unwrap().timeline.clone();
    assert_eq!((begun.id.get(), begun.parent), (4, Some(left)));
    three.stop().await.unwrap();
}

/// A power cut takes the last commits of a source, which are stored, or only in the spool.
async fn source_that_lost_commits(name: &str, spooled: bool) {
    let bench = Bench::new(name).await;
    let app = bench.connect();
    app.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
    table(&app);
    // Nothing is copied into the database file: before that SQLite would have synced the log, and could not lose it.
    let mut options = bench.options("state");
    options.sqlite.idle = Duration::from_secs(3600);
    options.stop_patience = Duration::from_millis(100);
    let protection = Protection::start(bench.repository.clone(), options).await.unwrap();
    for id in 0..10 {
        insert(&app, id);
    }
    let before = protection.wait_durable(None, PATIENCE).await.unwrap();
    let kept = std::fs::read(bench.folder.path().join("app.db-wal")).unwrap();
    let at_before = image(&bench.database());
    if spooled {
        bench.faulty.add(Rule::always(Verb::Put, Fault::Unreachable));
    }
    for id in 10..15 {
        insert(&app, id);
    }
    let lost = protection.flush().await.unwrap().unwrap().position;
    if !spooled {
        protection.wait_durable(Some(lost), PATIENCE).await.unwrap();
    }
    let at_lost = image(&bench.database());
    protection.stop().await.unwrap();
    bench.faulty.clear();
    // The power cut: everybody is gone, the log ends earlier than what was captured.
    app.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
    drop(app);
    std::fs::write(bench.folder.path().join("app.db-wal"), kept).unwrap();
    let app = bench.connect();
    assert_eq!(app.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).unwrap(), 10);
    let protection = bench.start().await;
    // Before anything new: only a state that was seen before can be found again by its checksum.
    protection.wait_durable(None, PATIENCE).await.unwrap();
    insert(&app, 100);
    let after = protection.wait_durable(None, PATIENCE).await.unwrap();
    assert_eq!(after.timeline.get(), 2, "{:?}", protection.status());
    assert_eq!(after.tx.get(), before.tx.get() + 1, "forked exactly where the source is");
    assert!(bench.restore(Target::Position(after)).await == image(&bench.database()));
    assert!(bench.restore(Target::Position(before)).await == at_before);
    assert!(bench.restore(Target::Position(lost)).await == at_lost, "what the source lost is still there");
    protection.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_lost_its_last_commits_goes_on_from_where_it_really_is() {
    source_that_lost_commits("behind", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_spool_has_is_stored_before_its_timeline_is_left() {
    source_that_lost_commits("behind-the-spool", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_is_complete_only_after_the_log_that_leads_to_it() {
    let bench = Bench::new("base-after-log").await;
    let app = bench.connect();
    table(&app);
    let options = ProtectOptions { base: BaseRule { versions: 50, age: None }, ..bench.options("state") };
    let protection = Protection::start(bench.repository.clone(), options).await.unwrap();
    let first = protection.wait_durable(None, PATIENCE).await.unwrap();
    bench.faulty.add(Rule::always(Verb::Put, Fault::Unreachable).on_keys_with("/log/"));
    for id in 0..60 {
        insert(&app, id);
    }
    until("a base is begun", || protection.status().base.pages_done.is_some()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(bench.history().await.bases().count(), 1, "its position may still become another transaction");
    bench.faulty.clear();
    until("it is made", || protection.status().base.newest.is_some_and(|newest| newest.position > first))
        .await;
    assert_eq!(bench.history().await.bases().count(), 2);
    protection.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_never_holds_a_segment_without_those_before_it() {
    let bench = Bench::new("in-order").await;
    let app = bench.connect();
    table(&app);
    let options = ProtectOptions { flush_interval: Duration::from_millis(1), ..bench.options("state") };
    let protection = Protection::start(bench.repository.clone(), options).await.unwrap();
    protection.wait_durable(None, PATIENCE).await.unwrap();
    // The next segment fails for some time, and others come meanwhile.
    bench.faulty.add(Rule::always(Verb::Put, Fault::Unreachable).on_keys_with("/log/").times(3));
    for id in 0..20 {
        insert(&app, id);
        protection.flush().await.unwrap();
        let flaws = bench.history().await.flaws().to_vec();
        assert!(flaws.is_empty(), "{flaws:?}");
    }
    let durable = protection.wait_durable(None, PATIENCE).await.unwrap();
    assert_eq!(durable.tx.get(), 21);
    assert!(bench.restore(Target::Position(durable)).await == image(&bench.database()));
    protection.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_local_state_and_commits_meanwhile_cost_one_small_difference() {
    let bench = Bench::new("lost-state").await;
    let app = bench.connect();
    table(&app);
    app.execute_batch("BEGIN").unwrap();
    for id in 0..3000 {
        insert(&app, id);
    }
    app.execute_batch("COMMIT").unwrap();
    let protection = bench.start().await;
    protection.wait_durable(None, PATIENCE).await.unwrap();
    protection.stop().await.unwrap();
    std::fs::remove_dir_all(bench.folder.path().join("state")).unwrap();
    insert(&app, 5000);
    let protection = bench.start().await;
    let durable = protection.wait_durable(None, PATIENCE).await.unwrap();
    let status = protection.status();
    assert!(status.stored_bytes_total < 20_000, "not the whole database again: {status:?}");
    assert!(bench.restore(Target::Position(durable)).await == image(&bench.database()));
    assert_eq!(durable.timeline.get(), 2);
    protection.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_page_size_is_a_gap_with_a_base_behind_it() {
    let bench = Bench::new("page-size").await;
    let app = bench.connect();
    table(&app);
    insert(&app, 1);
    let protection = bench.start().await;
    let before = protection.wait_durable(None, PATIENCE).await.unwrap();
    let at_before = image(&bench.database());
    protection.stop().await.unwrap();
    app.execute_batch("PRAGMA journal_mode=delete; PRAGMA page_size=1024; VACUUM; PRAGMA journal_mode=wal")
        .unwrap();
    insert(&app, 2);
    let protection = bench.start().await;
    let after = protection.wait_durable(None, PATIENCE).await.unwrap();
    assert!(bench.restore(Target::Position(after)).await == image(&bench.database()));
    assert!(bench.restore(Target::Position(before)).await == at_before);
    assert!(!bench.history().await.gaps().is_empty());
    protection.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_database_asks_nothing_of_the_store() {
    let bench = Bench::new("idle").await;
    let app = bench.connect();
    table(&app);
    let protection = bench.start().await;
    protection.wait_durable(None, PATIENCE).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    for verb in [Verb::Put, Verb::Get, Verb::List, Verb::Size] {
        bench.faulty.add(Rule::always(verb, Fault::Error));
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(
        protection.status().health,
        Health::Ok,
        "a request was made: {:?}",
        protection.status().reasons
    );
    bench.faulty.clear();
    protection.stop().await.unwrap();
}

/// Bytes of all packs in the repository.
async fn chunk_bytes(bench: &Bench) -> u64 {
    let all = bench.repository.store().list_all("", None).await.unwrap();
    all.iter().filter(|entry| entry.key.contains("/chunk/")).map(|entry| entry.size).sum()
}

/// The objects of the repository whose keys contain `part`, in order.
async fn keys(bench: &Bench, part: &str) -> Vec<String> {
    let all = bench.repository.store().list_all("", None).await.unwrap();
    all.into_iter().map(|entry| entry.key).filter(|key| key.contains(part)).collect()
}

/// Makes the newest of these objects unreadable.
async fn damage(bench: &Bench, part: &str) {
    let key = keys(bench, part).await.pop().unwrap();
    bench.repository.store().delete(&key).await.unwrap();
    bench.repository.store().create(&key, b"not what it was".as_slice().into()).await.unwrap();
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// All commits are restore points of their own; of some that nobody watched only the times are not known.
async fn nothing_was_missed(bench: &Bench) {
    let history = bench.history().await;
    assert!(history.flaws().is_empty(), "{:?}", history.flaws());
    let gaps = history.gaps();
    let unseen = |reason| matches!(reason, GapReason::UncertainTimes | GapReason::NotWatched);
    assert!(gaps.iter().all(|gap| unseen(gap.reason)), "{gaps:?}");
}

async fn a_torn_part(name: &str, tear: fn(&Path)) {
    let bench = Bench::new(name).await;
    let app = bench.connect();
    table(&app);
    let mut options = bench.options("state");
    (options.memory_queue_bytes, options.stop_patience) = (0, Duration::from_millis(100));
    let protection = Protection::start(bench.repository.clone(), options.clone()).await.unwrap();
    protection.wait_durable(None, PATIENCE).await.unwrap();
    bench.faulty.add(Rule::always(Verb::Put, Fault::Unreachable));
    for id in 0..6 {
        insert(&app, id);
        protection.flush().await.unwrap();
    }
    // The power cut: what is on the disk then, of which one part is torn.
    options.state = bench.folder.path().join("after");
    copy_folder(&bench.folder.path().join("state"), &options.state);
    protection.stop().await.unwrap();
    let spool = options.state.join("spool/00000001");
    let mut parts: Vec<PathBuf> =
        std::fs::read_dir(spool).unwrap().map(|part| part.unwrap().path()).collect();
    parts.sort();
    assert_eq!(parts.len(), 6);
    tear(&parts[3]);
    bench.faulty.clear();
    let protection = Protection::start(bench.repository.clone(), options.clone()).await.unwrap();
    insert(&app, 10);
    let durable = protection.wait_durable(None, PATIENCE).await.unwrap();
    assert_eq!((durable.timeline.get(), durable.tx.get()), (2, 8), "{:?}", protection.status());
    assert!(bench.restore(Target::Position(durable)).await == image(&bench.database()));
    nothing_was_missed(&bench).await;
    assert_eq!(keys(&bench, "/log/00000001/").await.iter().filter(|key| key.contains("0004-")).count(), 1);
    let folders = std::fs::read_dir(options.state.join("spool")).unwrap();
    let folders: Vec<_> = folders.map(|folder| folder.unwrap().file_name()).collect();
    assert_eq!(folders, ["00000002"], "nothing of a timeline that was left stays");
    protection.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spooled_part_that_a_power_cut_left_empty_is_captured_again() {
    a_torn_part("torn-empty", |part| std::fs::write(part, []).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spooled_part_that_a_power_cut_cut_short_is_captured_again() {
    a_torn_part("torn-short", |part| {
        let file = File::options().write(true).open(part).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spooled_part_with_zeros_behind_its_tables_is_captured_again() {
    a_torn_part("torn-zeros", |part| {
        let mut bytes = std::fs::read(part).unwrap();
        let len = bytes.len();
        bytes[len - 20..].fill(0);
        std::fs::write(part, bytes).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_comes_back_behind_another_one_begins_the_next_timeline() {
    let bench = Bench::new("superseded").await;
    let app = bench.connect();
    table(&app);
    for (number, state) in (1..).zip(["state", "other-state", "state", "other-state"]) {
        let protection = Protection::start(bench.repository.clone(), bench.options(state)).await.unwrap();
        protection.wait_durable(None, PATIENCE).await.unwrap();
        insert(&app, number);
        let durable = protection.wait_durable(None, PATIENCE).await.unwrap();
        assert_eq!(i64::from(durable.timeline.get()), number, "{:?}", protection.status());
        protection.stop().await.unwrap();
        assert!(bench.restore(Target::Latest).await == image(&bench.database()), "start {number}");
        nothing_was_missed(&bench).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_state_behind_a_hole_gets_a_base_of_its_own() {
    let bench = Bench::new("behind-a-hole").await;
    let app = bench.connect();
    table(&app);
    let protection = bench.start().await;
    for id in 0..5 {
        protection.wait_durable(None, PATIENCE).await.unwrap();
        insert(&app, id);
    }
    protection.wait_durable(None, PATIENCE).await.unwrap();
    protection.stop().await.unwrap();
    let segments = keys(&bench, "/log/").await;
    bench.repository.store().delete(&segments[segments.len() - 2]).await.unwrap();
    std::fs::remove_dir_all(bench.folder.path().join("state")).unwrap();
    let protection = bench.start().await;
    let durable = protection.wait_durable(None, PATIENCE).await.unwrap();
    assert!(bench.restore(Target::Position(durable)).await == image(&bench.database()));
    insert(&app, 100);
    let durable = protection.wait_durable(None, PATIENCE).await.unwrap();
    assert!(bench.restore(Target::Position(durable)).await == image(&bench.database()));
    protection.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_base_that_was_broken_off_is_never_made_again_at_its_position() {
    let bench = Bench::new("first-base").await;
    let app = bench.connect();
    table(&app);
    bench.faulty.add(Rule::always(Verb::Put, Fault::Unreachable).on_keys_with("/base/"));
    let options = ProtectOptions { stop_patience: Duration::from_millis(100), ..bench.options("state") };
    let protection = Protection::start(bench.repository.clone(), options).await.unwrap();
    let first = protection.flush().await.unwrap().unwrap().position;
    assert_eq!((first.timeline.get(), first.tx.get()), (1, 1));
    protection.stop().await.unwrap();
    bench.faulty.clear();
    insert(&app, 1);
    let protection = bench.start().await;
    let durable = protection.wait_durable(None, PATIENCE).await.unwrap();
    assert_eq!(durable.timeline.get(), 2, "another state must not get the number of the first");
    assert!(bench.restore(Target::Position(durable)).await == image(&bench.database()));
    assert!(bench.restore(Target::Latest).await == image(&bench.database()));
    protection.stop().await.unwrap();
}

/// One object is damaged while nobody looks; protection goes on.
async fn protected_past_damage(name: &str, part: &str, keeps_state: bool) -> (Bench, Protection) {
    let bench = Bench::new(name).await;
    let app = bench.connect();
    table(&app);
    let protection = bench.start().await;
    protection.wait_durable(None, PATIENCE).await.unwrap();
    insert(&app, 1);
    protection.wait_durable(None, PATIENCE).await.unwrap();
    protection.stop().await.unwrap();
    damage(&bench, part).await;
    if !keeps_state {
        std::fs::remove_dir_all(bench.folder.path().join("state")).unwrap();
    }
    insert(&app, 2);
    // As a new process, which remembers nothing it has read.
    let repository = Repository::open(bench.repository.store().clone(), None).await.unwrap();
    let protection = Protection::start(repository, bench.options("state")).await.unwrap();
    let durable = protection.wait_durable(None, PATIENCE).await;
    assert!(durable.is_ok(), "{durable:?}: {:?}", protection.status());
    (bench, protection)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_base_is_replaced_by_a_new_one() {
    for (name, keeps_state) in [("damaged-base", true), ("damaged-base-lost-state", false)] {
        let (bench, protection) = protected_past_damage(name, "/base/", keeps_state).await;
        assert!(bench.restore(Target::Latest).await == image(&bench.database()), "{name}");
        protection.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_damaged_last_segment_protection_goes_on() {
    let (bench, protection) = protected_past_damage("damaged-segment", "/log/", false).await;
    assert!(bench.restore(Target::Latest).await == image(&bench.database()));
    protection.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_claims_and_records_do_not_end_protection() {
    for (name, part, keeps_state) in [
        ("damaged-claim", "/timeline/", true),
        ("damaged-claim-lost-state", "/timeline/", false),
        ("damaged-record", "/record/", true),
        ("damaged-record-lost-state", "/record/", false),
    ] {
        let (_bench, protection) = protected_past_damage(name, part, keeps_state).await;
        protection.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_looks_like_the_last_claim_there_can_be_ends_nothing() {
    let bench = Bench::new("last-claim").await;
    let app = bench.connect();
    table(&app);
    let protection = bench.start().await;
    let database =
        protection.wait_durable(None, PATIENCE).await.map(|_| protection.status().database).unwrap();
    protection.stop().await.unwrap();
    let last = timeline_key(database.unwrap(), TimelineId::new(u32::MAX).unwrap());
    bench.repository.store().create(&last, b"no claim".as_slice().into()).await.unwrap();
    for (state, timeline) in [("state", 1), ("other-state", 2)] {
        let protection = Protection::start(bench.repository.clone(), bench.options(state)).await.unwrap();
        let durable = protection.wait_durable(None, PATIENCE).await.unwrap();
        assert_eq!(durable.timeline.get(), timeline);
        protection.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_again_and_again_claims_one_timeline() {
    let bench = Bench::new("one-claim").await;
    let app = bench.connect();
    table(&app);
    let protection = bench.start().await;
    protection.wait_durable(None, PATIENCE).await.unwrap();
    protection.stop().await.unwrap();
    let state = bench.folder.path().join("state");
    std::fs::remove_dir_all(&state).unwrap();
    // The journal cannot be written.
    let in_the_way = state.join("table.new");
    std::fs::create_dir_all(&in_the_way).unwrap();
    let protection = bench.start().await;
    until("the trouble is shown", || protection.status().health == Health::Failing).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(keys(&bench, "/timeline/").await.len(), 2);
    std::fs::remove_dir(in_the_way).unwrap();
    let durable = protection.wait_durable(None, PATIENCE).await.unwrap();
    assert_eq!(durable.timeline.get(), 2);
    protection.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_lasting_state_the_log_since_the_last_base_is_counted_all_the_same() {
    let bench = Bench::new("counted").await;
    let app = bench.connect();
    table(&app);
    let state = bench.folder.path().join("state");
    for round in 0..6 {
        let _ = std::fs::remove_dir_all(&state);
        let options = ProtectOptions { base: BaseRule { versions: 60, age: None }, ..bench.options("state") };
        let protection = Protection::start(bench.repository.clone(), options).await.unwrap();
        for id in 0..20 {
            insert(&app, round * 100 + id);
            protection.flush().await.unwrap();
        }
        protection.wait_durable(None, PATIENCE).await.unwrap();
        until("no base is being made", || protection.status().base.pages_total.is_none()).await;
        protection.stop().await.unwrap();
    }
    assert!(bench.history().await.bases().count() > 1, "a restore replays more with every start");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_says_nothing_while_a_writer_is_between_the_two_copies_of_the_index_head() {
    let bench = Bench::new("torn").await;
    let app = bench.connect();
    table(&app);
    let protection = bench.start().await;
    protection.wait_durable(None, PATIENCE).await.unwrap();
    let writer = bench.connect();
    // With the write lock nobody else mends the index.
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    let index = File::options().read(true).write(true).open(bench.folder.path().join("app.db-shm")).unwrap();
    let (place, mut whole) = (48 + 8, [0; 4]);
    index.read_exact_at(&mut whole, place).unwrap();
    index.write_all_at(&whole.map(|byte| !byte), place).unwrap();
    let flushed = tokio::time::timeout(Duration::from_secs(2), protection.flush()).await;
    index.write_all_at(&whole, place).unwrap();
    // Closing it would drop the locks of this process.
    std::mem::forget(index);
    assert!(!matches!(flushed, Ok(Ok(_))), "it cannot know what is committed: {flushed:?}");
    writer.execute_batch("ROLLBACK").unwrap();
    insert(&app, 1);
    assert_eq!(protection.wait_durable(None, PATIENCE).await.unwrap().tx.get(), 2);
    protection.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_after_the_journal_was_written_anew_loses_no_single_commit() {
    let bench = Bench::new("compacted").await;
    let app = bench.connect();
    app.execute_batch(
        "PRAGMA synchronous=off; CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, v BLOB);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
         INSERT INTO t SELECT i, 0, randomblob(3000) FROM n",
    )
    .unwrap();
    let options = ProtectOptions { stop_patience: Duration::from_millis(100), ..bench.options("state") };
    let protection = Protection::start(bench.repository.clone(), options).await.unwrap();
    protection.wait_durable(None, PATIENCE).await.unwrap();
    bench.faulty.add(Rule::always(Verb::Put, Fault::Unreachable).on_keys_with("/log/"));
    let journal = bench.folder.path().join("state/journal");
    let length = || journal.metadata().unwrap().len();
    let mut commits = 0;
    let mut last = length();
    while length() >= last {
        assert!(commits < 60, "the journal is never written anew");
        last = length();
        // Little bytes, many pages: the journal grows, the parts stay in memory.
        app.execute("UPDATE t SET n = n + 1", []).unwrap();
        commits += 1;
        protection.flush().await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // What a kill at this moment leaves.
    copy_folder(&bench.folder.path().join("state"), &bench.folder.path().join("killed"));
    protection.stop().await.unwrap();
    bench.faulty.clear();
    let protection = Protection::start(bench.repository.clone(), bench.options("killed")).await.unwrap();
    let durable = protection.wait_durable(None, PATIENCE).await.unwrap();
    assert_eq!((durable.timeline.get(), durable.tx.get()), (1, 1 + commits), "{:?}", protection.status());
    assert_eq!(protection.status().gaps_total, 0);
    assert!(bench.restore(Target::Position(durable)).await == image(&bench.database()));
    protection.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_is_full_before_the_first_base_begins_it_anew_and_waits_for_nothing() {
    let bench = Bench::new("full-first").await;
    let app = bench.connect();
    table(&app);
    bench.faulty.add(Rule::always(Verb::Put, Fault::Unreachable).on_keys_with("/chunk/"));
    let mut options = bench.options("state");
    (options.memory_queue_bytes, options.spool_bytes, options.source_log_bytes) =
        (50_000, 200_000, 2_000_000);
    let protection = Protection::start(bench.repository.clone(), options).await.unwrap();
    let told = || protection.status().reasons.iter().any(|reason| reason.contains("before the first base"));
    let (mut id, end) = (0, Instant::now() + PATIENCE);
    while !told() && Instant::now() < end {
        app.execute("INSERT INTO t VALUES (?1, randomblob(9000))", [id]).unwrap();
        id += 1;
        if id % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert!(told(), "{:?}", protection.status());
    bench.faulty.clear();
    let durable = protection.wait_durable(None, PATIENCE).await.unwrap();
    assert!(bench.restore(Target::Position(durable)).await == image(&bench.database()));
    until("it is over", || !told()).await;
    protection.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_vanishes_from_the_spool_is_looked_for_and_not_waited_for() {
    let bench = Bench::new("vanished").await;
    let app = bench.connect();
    table(&app);
    let options = ProtectOptions { memory_queue_bytes: 0, ..bench.options("state") };
    let protection = Protection::start(bench.repository.clone(), options).await.unwrap();
    protection.wait_durable(None, PATIENCE).await.unwrap();
    bench.faulty.add(Rule::always(Verb::Put, Fault::Unreachable).on_keys_with("/log/"));
    for id in 0..5 {
        insert(&app, id);
        protection.flush().await.unwrap();
    }
    std::fs::remove_dir_all(bench.folder.path().join("state/spool")).unwrap();
    bench.faulty.clear();
    // The positions that were captured are never durable: what became of them is a state of the next timeline.
    let end = Instant::now() + PATIENCE;
    let durable = loop {
        match protection.wait_durable(None, PATIENCE).await {
            Ok(durable) => break durable,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
    };
    assert!(bench.restore(Target::Position(durable)).await == image(&bench.database()));
    assert!(bench.history().await.flaws().is_empty());
    protection.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_that_vanished_from_the_store_are_stored_again_with_the_next_base() {
    let bench = Bench::new("packs-lost").await;
    let app = bench.connect();
    table(&app);
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
                INSERT INTO t SELECT i, randomblob(200) FROM n";
    app.execute(rows, []).unwrap();
    let options = ProtectOptions { base: BaseRule { versions: 50, age: None }, ..bench.options("state") };
    let protection = Protection::start(bench.repository.clone(), options).await.unwrap();
    let first = protection.wait_durable(None, PATIENCE).await.unwrap();
    let store = bench.repository.store();
    for entry in store.list_all("db/", None).await.unwrap() {
        if entry.key.contains("/chunk/") {
            store.delete(&entry.key).await.unwrap();
        }
    }
    for id in 0..200 {
        app.execute("UPDATE t SET v = randomblob(3000) WHERE id = 5000 - ?1", [id]).unwrap();
    }
    protection.wait_durable(None, PATIENCE).await.unwrap();
    until("the next base", || protection.status().base.newest.is_some_and(|newest| newest.position > first))
        .await;
    insert(&app, 5001);
    let durable = protection.wait_durable(None, PATIENCE).await.unwrap();
    assert!(bench.restore(Target::Position(durable)).await == image(&bench.database()));
    protection.stop().await.unwrap();
}

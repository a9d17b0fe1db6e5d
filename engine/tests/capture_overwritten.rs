//! A database that is overwritten in place: the same file with other content, behind the back of SQLite.

#![allow(clippy::unwrap_used, reason = "what helps tests fails as tests do")]

mod capture_support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use capture_support::Rig;
use everwhen_engine::capture::sqlite::SourceEvent;
use everwhen_engine::history::GapReason;
use everwhen_engine::ids::HostId;
use everwhen_engine::plan::{RestorePlan, Target};
use everwhen_engine::protect::{ProtectOptions, Protection};
use everwhen_engine::repository::{CreateOptions, Repository};
use everwhen_engine::restore::{self, Cancel, Order};
use everwhen_engine::store::Store;
use everwhen_engine::time::Timestamp;
use rusqlite::Connection;

const PATIENCE: Duration = Duration::from_secs(20);

fn open(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(PATIENCE).unwrap();
    connection.pragma_update(None, "journal_mode", "wal").unwrap();
    connection
}

/// A table of so many rows, some to a page.
fn database(path: &Path, rows: u32) -> Connection {
    let app = open(path);
    app.execute_batch("create table t(a integer primary key, b)").unwrap();
    for _ in 0..rows {
        insert(&app);
    }
    app
}

fn insert(app: &Connection) {
    app.execute("insert into t(b) values (hex(randomblob(500)))", []).unwrap();
}

/// In a process of its own: a descriptor of the database closed in this one would take SQLite's locks with it.
fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").args([from, to]).status().unwrap().success());
}

/// By a process of its own, too.
fn set_modified(path: &Path, to: std::time::SystemTime) {
    let seconds = to.duration_since(std::time::UNIX_EPOCH).unwrap();
    let date = format!("@{}.{:09}", seconds.as_secs(), seconds.subsec_nanos());
    assert!(Command::new("touch").args(["-m", "-d", &date]).arg(path).status().unwrap().success());
}

fn image(path: &Path) -> Vec<u8> {
    Connection::open(path).unwrap().serialize("main").unwrap().to_vec()
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

/// All of the log is in the file.
fn backfilled(rig: &mut Rig) {
    rig.run_until(|rig| rig.source.log_status().is_ok_and(|log| log.frames == log.backfilled));
}

#[test]
fn an_overwritten_file_is_noticed_and_its_log_emptied_so_that_it_is_what_was_copied() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("app.db"), folder.path().join("other.db"));
    drop(database(&other, 300));
    drop(database(&path, 20));
    let mut rig = Rig::attach(&path);
    let app = open(&path);
    insert(&app);
    drop(app);
    backfilled(&mut rig);
    rig.run_for(Duration::from_millis(300));
    assert_eq!((&rig.events[..], rig.model.distrusted), (&[][..], 0));
    copy(&other, &path);
    rig.run_until(|rig| !rig.events.is_empty());
    assert_eq!((&rig.events[..], rig.model.distrusted), (&[SourceEvent::Overwritten][..], 1));
    // Larger than the old one: while the old index lasts it would look malformed.
    let answer: String = open(&path).query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(answer, "ok");
    assert!(image(&path) == image(&other));
}

#[test]
fn commits_on_top_of_an_overwritten_file_are_not_captured() {
    let folder = tempfile::tempdir().unwrap();
    let (path, older) = (folder.path().join("app.db"), folder.path().join("older.db"));
    drop(database(&path, 20));
    copy(&path, &older);
    let mut rig = Rig::attach(&path);
    let app = open(&path);
    insert(&app);
    drop(app);
    backfilled(&mut rig);
    copy(&older, &path);
    // Before anybody has looked.
    insert(&open(&path));
    rig.poll();
    assert_eq!((&rig.events[..], rig.model.commits.len()), (&[SourceEvent::Overwritten][..], 1));
}

#[test]
fn an_index_that_is_recovered_is_no_sign_of_an_overwritten_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let app = database(&path, 20);
    let mut rig = Rig::attach(&path);
    insert(&app);
    backfilled(&mut rig);
    rig.run_for(Duration::from_millis(700));
    // By a process of its own, as one that dies while it publishes.
    let tear = "printf '\\377\\377\\377\\377' | dd of=\"$0\" bs=1 seek=16 conv=notrunc";
    assert!(Command::new("sh").args(["-c", tear]).arg(beside(&path, "-shm")).status().unwrap().success());
    rig.run_for(Duration::from_millis(1_500));
    backfilled(&mut rig);
    assert_eq!((&rig.events[..], rig.model.distrusted), (&[][..], 0));
    insert(&app);
    rig.settle_and_compare();
    assert_eq!(rig.model.commits.len(), 2);
}

/// How the file is overwritten.
#[derive(Clone, Copy, PartialEq, Eq)]
enum With {
    /// By a copy of before the last change.
    Older,
    /// By a larger database.
    Other,
    /// By a copy, after log and index were removed.
    OlderWithoutLog,
    /// By a copy, and then given the time of before.
    OlderUnseen,
}

async fn overwrite(name: &str, with: With) {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("app.db"), folder.path().join("other.db"));
    drop(database(&path, 40));
    if with == With::Other {
        drop(database(&other, 200));
    } else {
        copy(&path, &other);
    }
    let store = Store::open(&format!("memory://overwritten-{name}")).unwrap();
    let options = CreateOptions { encryption: None, location: String::new(), now: Timestamp::now() };
    let repository = Repository::create(store, options).await.unwrap();
    let (state, host) = (folder.path().join("state"), HostId::from_bytes([7; 8]));
    let options = ProtectOptions::new(path.clone(), "app".into(), state, host, "here".into());
    let protection = Protection::start(repository.clone(), options).await.unwrap();
    let app = open(&path);
    // In the middle of the table, so that the pages that come to differ are not those of the next insert.
    app.execute("update t set b = upper(hex(randomblob(500))) where a = 3", []).unwrap();
    drop(app);
    protection.wait_durable(None, PATIENCE).await.unwrap();
    // The log has been put into the file by then.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    if with == With::OlderWithoutLog {
        std::fs::remove_file(beside(&path, "-wal")).unwrap();
        std::fs::remove_file(beside(&path, "-shm")).unwrap();
    }
    let modified = path.metadata().unwrap().modified().unwrap();
    copy(&other, &path);
    if with == With::OlderUnseen {
        set_modified(&path, modified);
    }
    if with == With::Other {
        // A larger database can be opened when the old index is gone.
        let end = Instant::now() + PATIENCE;
        while Connection::open(&path).unwrap().query_row("select count(*) from t", [], |_| Ok(())).is_err() {
            assert!(Instant::now() < end, "the database stays malformed");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    insert(&open(&path));
    if with == With::OlderUnseen {
        // Only a change of a page that differs can tell.
        open(&path).execute("update t set b = lower(b) where a = 3", []).unwrap();
    }
    let gap = |gaps: Vec<everwhen_engine::history::Gap>| {
        gaps.iter().any(|gap| gap.reason != GapReason::UncertainTimes)
    };
    let end = Instant::now() + PATIENCE;
    let history = loop {
        let durable = protection.wait_durable(None, PATIENCE).await;
        let database = repository.find_database("app").await.unwrap().id;
        let history = restore::history_of(&repository, database).await.unwrap();
        if durable.is_ok() && gap(history.gaps()) {
            break history;
        }
        assert!(Instant::now() < end, "no gap was recorded");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    insert(&open(&path));
    protection.flush().await.unwrap();
    protection.wait_durable(None, PATIENCE).await.unwrap();
    protection.stop().await.unwrap();
    let history = restore::history_of(&repository, history.database()).await.unwrap();
    let to = folder.path().join("restored.db");
    let (target, options) = (Target::Latest, restore::Options::default());
    let (now, progress) = (Timestamp::now(), Arc::new(|_| {}));
    let (planned, cancel) = (&|_: &RestorePlan| {}, Cancel::new());
    let order = Order { target, now, to: &to, options: &options, planned, progress, cancel: &cancel };
    restore::restore(&repository, &history, &order).await.unwrap();
    assert!(image(&to) == image(&path));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_put_in_place_of_a_protected_database_ends_in_a_gap() {
    overwrite("older", With::Older).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_database_put_in_place_of_a_protected_one_ends_in_a_gap() {
    overwrite("other", With::Other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_put_in_place_without_the_log_ends_in_a_gap() {
    overwrite("without-log", With::OlderWithoutLog).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_not_what_was_captured_ends_in_a_gap_when_the_file_does_not_show_it() {
    overwrite("unseen", With::OlderUnseen).await;
}

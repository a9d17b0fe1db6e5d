//! Files that are moved, replaced or deleted: a log belongs to a file by name only, and must not get into another.

#![allow(clippy::unwrap_used, reason = "what helps tests fails as tests do")]

mod capture_support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use capture_support::writer::{reported, run_job, start};
use capture_support::{Rig, wal_database};
use everwhen_engine::capture::sqlite::{Attach, SourceEvent, SqliteSourceError};
use rusqlite::Connection;

#[test]
#[ignore = "runs as an application process of the other tests"]
fn application_process() {
    run_job();
}

/// In the table at first, and again while it is captured.
const ROWS: u32 = 100;

fn table(folder: &Path) -> (PathBuf, Connection) {
    let (path, app) = wal_database(folder, "PRAGMA page_size=4096");
    app.execute_batch("create table t(a integer primary key, b, c)").unwrap();
    insert(&app, ROWS);
    (path, app)
}

fn insert(app: &Connection, rows: u32) {
    (0..rows).for_each(|_| {
        app.execute("insert into t(b) values (hex(randomblob(300)))", []).unwrap();
    });
}

/// A larger database beside, closed.
fn another(folder: &Path) -> PathBuf {
    let path = folder.join("other.db");
    let app = Connection::open(&path).unwrap();
    app.execute_batch("PRAGMA journal_mode=wal; create table t(a integer primary key, b, c)").unwrap();
    insert(&app, 4 * ROWS);
    path
}

/// In a process of its own: a descriptor of the database closed in this one would take SQLite's locks with it.
fn run(program: &str, arguments: &[&Path]) -> bool {
    Command::new(program).args(arguments).status().unwrap().success()
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

fn move_over(other: &Path, path: &Path) {
    let copy = beside(path, ".new");
    assert!(run("cp", &[other, &copy]));
    std::fs::rename(copy, path).unwrap();
}

/// Attaches again, as the daemon does, and lets everything happen that comes when nothing is going on.
fn go_on(rig: &mut Rig) {
    rig.events.clear();
    assert!(matches!(rig.source.attach(None).unwrap(), Attach::Unknown { .. }));
    let mut image = rig.source.image(&mut rig.model, &std::env::temp_dir()).unwrap();
    rig.model.load(&mut *image);
    drop(image);
    rig.run_for(Duration::from_secs(2));
    assert_eq!(rig.events, []);
}

fn integrity(path: &Path) -> String {
    Connection::open(path).unwrap().query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap()
}

fn count(path: &Path) -> u32 {
    Connection::open(path).unwrap().query_row("select count(*) from t", [], |row| row.get(0)).unwrap()
}

/// The application is stopped cleanly; when all is in the file, or (`at_once`) before that, another file is put in its
/// place.
fn replaced(at_once: bool, put: fn(&mut Rig, &Path, &Path), expected: SourceEvent) {
    let folder = tempfile::tempdir().unwrap();
    let other = another(folder.path());
    let (path, app) = table(folder.path());
    let mut rig = Rig::attach(&path);
    insert(&app, ROWS);
    drop(app);
    rig.poll();
    if !at_once {
        rig.run_for(Duration::from_millis(1_200));
    }
    put(&mut rig, &other, &path);
    rig.run_until(|rig| !rig.events.is_empty());
    assert_eq!(rig.events, [expected]);
    go_on(&mut rig);
    assert!(run("cmp", &[&other, &path]), "something was laid over the new file");
    let app = Connection::open(&path).unwrap();
    insert(&app, 3);
    rig.settle_and_compare();
    drop(rig);
    assert_eq!((integrity(&path).as_str(), count(&path)), ("ok", 4 * ROWS + 3));
}

#[test]
fn a_file_moved_over_the_database_is_what_was_moved_there() {
    replaced(false, |_, other, path| move_over(other, path), SourceEvent::Replaced);
    replaced(true, |_, other, path| move_over(other, path), SourceEvent::Replaced);
}

#[test]
fn a_file_copied_to_where_the_database_was_removed_is_what_was_copied() {
    let put = |rig: &mut Rig, other: &Path, path: &Path| {
        std::fs::remove_file(path).unwrap();
        rig.run_until(|rig| !rig.events.is_empty());
        assert!(run("cp", &[other, path]));
    };
    replaced(false, put, SourceEvent::Vanished);
    replaced(true, put, SourceEvent::Vanished);
}

#[test]
fn an_application_that_is_started_on_the_new_file_before_we_are_is_no_obstacle() {
    let folder = tempfile::tempdir().unwrap();
    let other = another(folder.path());
    let (path, app) = table(folder.path());
    let mut rig = Rig::attach(&path);
    drop(app);
    std::fs::remove_file(&path).unwrap();
    rig.run_until(|rig| !rig.events.is_empty());
    assert!(matches!(rig.source.attach(None), Err(SqliteSourceError::NotThere { .. })));
    assert!(run("cp", &[&other, &path]));
    let child = start("paced 100 1", &path);
    std::thread::sleep(Duration::from_millis(200));
    go_on(&mut rig);
    assert_eq!(reported(child, "busy"), 0);
    assert_eq!((integrity(&path).as_str(), count(&path)), ("ok", 4 * ROWS + 100));
}

#[test]
fn a_source_that_was_closed_leaves_no_log_that_could_get_into_another_file() {
    let folder = tempfile::tempdir().unwrap();
    let other = another(folder.path());
    let (path, app) = table(folder.path());
    let mut rig = Rig::attach(&path);
    insert(&app, ROWS);
    rig.poll();
    rig.source.close();
    assert!(beside(&path, "-wal").metadata().unwrap().len() > 0, "it is the application's");
    rig.source.attach(None).unwrap();
    drop(app);
    rig.poll();
    rig.source.close();
    assert!(!beside(&path, "-wal").exists(), "the last one to close puts it into the file");
    assert_eq!(count(&path), 2 * ROWS);
    move_over(&other, &path);
    assert_eq!((integrity(&path).as_str(), count(&path)), ("ok", 4 * ROWS));
}

/// An application in a process of its own, of which some commits were captured.
fn running(folder: &Path) -> (PathBuf, Rig, Child) {
    let (path, app) = table(folder);
    drop(app);
    let mut rig = Rig::attach(&path);
    let child = start("paced 500 1", &path);
    rig.run_until(|rig| rig.model.commits.len() >= 20);
    (path, rig, child)
}

/// Nothing is opened as long as the application runs.
fn refused(rig: &mut Rig, reason: fn(&SqliteSourceError) -> bool) {
    rig.run_until(|rig| !rig.events.is_empty());
    for _ in 0..20 {
        assert!(rig.source.attach(None).is_err_and(|error| reason(&error)));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn beside_an_application_whose_index_was_deleted_no_second_one_is_begun() {
    let folder = tempfile::tempdir().unwrap();
    let (path, mut rig, child) = running(folder.path());
    std::fs::remove_file(beside(&path, "-shm")).unwrap();
    refused(&mut rig, |error| matches!(error, SqliteSourceError::IndexDeleted { .. }));
    assert_eq!(rig.events, [SourceEvent::LogReplaced]);
    assert_eq!(reported(child, "busy"), 0);
    go_on(&mut rig);
    assert_eq!((integrity(&path).as_str(), count(&path)), ("ok", ROWS + 500));
}

#[test]
fn beside_an_application_whose_log_was_deleted_no_second_one_is_begun() {
    let folder = tempfile::tempdir().unwrap();
    let (path, mut rig, child) = running(folder.path());
    std::fs::remove_file(beside(&path, "-wal")).unwrap();
    refused(&mut rig, |error| matches!(error, SqliteSourceError::LogDeleted { .. }));
    assert_eq!(reported(child, "busy"), 0);
    go_on(&mut rig);
    assert_eq!((integrity(&path).as_str(), count(&path)), ("ok", ROWS + 500));
}

#[test]
fn the_log_of_an_application_under_which_the_file_was_replaced_does_not_get_into_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let other = another(folder.path());
    let (path, mut rig, child) = running(folder.path());
    move_over(&other, &path);
    refused(&mut rig, |error| matches!(error, SqliteSourceError::LogOfReplaced { .. }));
    assert_eq!(rig.events, [SourceEvent::Replaced]);
    assert_eq!(reported(child, "busy"), 0);
    assert!(beside(&path, "-wal").metadata().unwrap().len() > 0, "it knows that its file is gone");
    refused(&mut rig, |error| matches!(error, SqliteSourceError::LogOfReplaced { .. }));
    // As the advice says.
    for suffix in ["-wal", "-shm"] {
        std::fs::remove_file(beside(&path, suffix)).unwrap();
    }
    go_on(&mut rig);
    assert!(run("cmp", &[&other, &path]), "something was laid over the new file");
}

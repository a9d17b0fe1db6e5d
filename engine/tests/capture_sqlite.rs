//! Capture of one database: commits, resets of the log, images, page sizes, and what can happen to the files.

#![allow(clippy::unwrap_used, reason = "what helps tests fails as tests do")]

mod capture_support;

use std::path::Path;
use std::time::Duration;

use capture_support::{Model, Rig, wal_database};
use everwhen_engine::capture::sqlite::{Attach, SourceEvent, SqliteOptions, SqliteSource, SqliteSourceError};
use everwhen_engine::error::Explain;
use rusqlite::Connection;

fn table(folder: &Path) -> (std::path::PathBuf, Connection) {
    let (path, app) = wal_database(folder, "PRAGMA page_size=4096");
    app.execute_batch("create table t(a integer primary key, b)").unwrap();
    (path, app)
}

fn count(connection: &Connection) -> i64 {
    connection.query_row("select count(*) from t", [], |row| row.get(0)).unwrap()
}

fn insert(app: &Connection, rows: u32) {
    for number in 0..rows {
        app.execute("insert into t(b) values (?1)", [format!("row {number}")]).unwrap();
    }
}

#[test]
fn each_commit_is_one_transaction_and_the_image_follows() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    let mut rig = Rig::attach(&path);
    for _ in 0..400 {
        insert(&app, 7);
        rig.poll();
    }
    rig.settle_and_compare();
    assert_eq!(rig.model.commits.len(), 2_800);
    assert_eq!(rig.model.previous_missing, 0);
    assert_eq!(rig.model.previous_given, rig.model.previous_right);
    assert_eq!(rig.model.previous_given, rig.model.previous_certain);
    assert_eq!(count(&rig.model.open_copy(folder.path(), 4096)), 2_800);
    rig.run_until(|rig| rig.poll().idle);
    insert(&app, 5);
    rig.settle_and_compare();
    assert_eq!(rig.source.log_status().unwrap().frames, 5, "the log was not reset");
    assert_eq!(rig.model.commits.len(), 2_805);
}

#[test]
fn a_transaction_that_spills_hands_each_page_over_once_with_its_last_image() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    insert(&app, 50);
    let mut rig = Rig::attach(&path);
    app.execute_batch("PRAGMA cache_size=5; begin;").unwrap();
    for round in 0..5 {
        for key in 0..2_000 {
            app.execute(
                "insert or replace into t values (?1, ?2)",
                (key, format!("{round} {}", "z".repeat(200))),
            )
            .unwrap();
        }
        assert_eq!(rig.poll().transactions, 0, "an uncommitted frame was captured");
    }
    app.execute_batch("commit").unwrap();
    rig.settle_and_compare();
    assert_eq!(rig.model.commits.len(), 1);
    assert_eq!(rig.model.previous_missing, 0);
}

#[test]
fn a_rolled_back_spill_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    let mut rig = Rig::attach(&path);
    for _ in 0..3 {
        app.execute_batch("PRAGMA cache_size=5; begin;").unwrap();
        insert(&app, 20_000);
        assert_eq!(rig.poll().transactions, 0);
        app.execute_batch("rollback").unwrap();
        assert_eq!(rig.poll().transactions, 0);
        insert(&app, 1);
        assert_eq!(rig.poll().transactions, 1);
    }
    rig.settle_and_compare();
    assert_eq!(count(&rig.model.open_copy(folder.path(), 4096)), 3);
}

#[test]
fn a_transaction_larger_than_the_buffers_is_streamed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = wal_database(folder.path(), "PRAGMA page_size=512");
    app.execute_batch("create table t(a integer primary key, b); PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=10; PRAGMA synchronous=off").unwrap();
    let mut rig = Rig::attach(&path);
    // More frames than are listed at once: the pages are handed over from the last frame back.
    app.execute_batch(
        "begin;
         with recursive n(i) as (values (1) union all select i + 1 from n where i < 90000)
         insert into t select i, hex(randomblob(200)) from n;
         update t set b = hex(randomblob(200)) where a % 5 = 0;
         commit;",
    )
    .unwrap();
    rig.settle_and_compare();
    assert_eq!(rig.model.commits.len(), 1);
    assert!(rig.source.log_status().unwrap().frames > 65_536, "{:?}", rig.source.log_status());
    app.execute_batch("delete from t where a > 100; VACUUM;").unwrap();
    rig.settle_and_compare();
    assert_eq!(rig.model.commits.len(), 3);
    assert!(rig.model.image_pages < 200);
}

#[test]
fn all_page_sizes_and_vacuums_are_captured() {
    for page_size in [512, 1024, 2048, 8192, 16_384, 32_768, 65_536] {
        for auto_vacuum in ["none", "full", "incremental"] {
            let folder = tempfile::tempdir().unwrap();
            let setup = format!("PRAGMA page_size={page_size}; PRAGMA auto_vacuum={auto_vacuum}");
            let (path, app) = wal_database(folder.path(), &setup);
            app.execute_batch("create table t(a integer primary key, b); PRAGMA synchronous=off").unwrap();
            let mut rig = Rig::attach(&path);
            app.execute_batch(
                "with recursive n(i) as (values (1) union all select i + 1 from n where i < 900)
                 insert into t select i, hex(randomblob(500)) from n;
                 delete from t where a > 300; PRAGMA incremental_vacuum; VACUUM; insert into t values (1000, 1);",
            )
            .unwrap();
            rig.settle_and_compare();
            assert_eq!(count(&rig.model.open_copy(folder.path(), page_size)), 301);
            let pages = app.query_row("PRAGMA page_count", [], |row| row.get::<_, u32>(0)).unwrap();
            assert_eq!(rig.source.page_count(), pages);
        }
    }
}

#[test]
fn bytes_that_are_reserved_in_each_page_are_captured_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = wal_database(folder.path(), "PRAGMA page_size=4096; PRAGMA user_version=1");
    app.query_row("PRAGMA wal_checkpoint(truncate)", [], |_| Ok(())).unwrap();
    drop(app);
    // 32 bytes at the end of each page are reserved from now on; the one page there is gives them up.
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[20] = 32;
    bytes[105..107].copy_from_slice(&(4096u16 - 32).to_be_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let app = Connection::open(&path).unwrap();
    let mut rig = Rig::attach(&path);
    app.execute_batch("create table t(a integer primary key, b)").unwrap();
    insert(&app, 1_000);
    rig.settle_and_compare();
    assert_eq!(count(&rig.model.open_copy(folder.path(), 4096)), 1_000);
    assert_eq!(rig.model.pages[&1][20], 32);
}

#[test]
fn the_lock_byte_page_is_never_captured_nor_in_an_image() {
    use everwhen_engine::page::PageNo;
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = wal_database(folder.path(), "PRAGMA page_size=65536");
    app.execute_batch(
        "create table t(a integer primary key, b); PRAGMA synchronous=off; PRAGMA wal_checkpoint(truncate);",
    )
    .unwrap();
    drop(app);
    // A database of 1 GiB in a sparse file: its header says that it is so long, and the pages beyond are unused.
    let pages: u32 = 16_384;
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(u64::from(pages) * 65_536).unwrap();
    file.write_all_at(&pages.to_be_bytes(), 28).unwrap();
    drop(file);
    let app = Connection::open(&path).unwrap();
    app.execute_batch("PRAGMA synchronous=off").unwrap();
    let mut source = SqliteSource::open(&path, SqliteOptions::default()).unwrap();
    let mut model = Model::default();
    source.attach(None).unwrap();
    drop(source.image(&mut model, &std::env::temp_dir()).unwrap());
    app.execute("insert into t values (1, zeroblob(200000))", []).unwrap();
    source.poll(&mut model).unwrap();
    assert_eq!(model.commits.len(), 1);
    assert!(model.image_pages > 16_385, "{}", model.image_pages);
    assert!(model.pages.contains_key(&16_386) && !model.pages.contains_key(&16_385));
    let mut image = source.image(&mut model, &std::env::temp_dir()).unwrap();
    let mut buffer = vec![0; 65_536];
    assert!(image.read(PageNo::new(16_385).unwrap(), &mut buffer).unwrap().is_none());
    assert!(image.read(PageNo::new(16_386).unwrap(), &mut buffer).unwrap().is_some());
    assert_eq!(&buffer, &model.pages[&16_386]);
}

#[test]
fn repeated_commit_frames_of_media_without_powersafe_overwrite_are_one_transaction() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = wal_database(folder.path(), "PRAGMA page_size=512");
    app.execute_batch("create table t(a integer primary key, b)").unwrap();
    drop(app);
    let uri = format!("file:{}?psow=0", path.display());
    let app = Connection::open(&uri).unwrap();
    app.execute_batch("PRAGMA synchronous=full").unwrap();
    let mut rig = Rig::attach(&path);
    let before = rig.source.log_status().unwrap().frames;
    insert(&app, 40);
    rig.settle_and_compare();
    assert!(rig.source.log_status().unwrap().frames - before > 100, "no frame was repeated");
    assert_eq!(rig.model.commits.len(), 40);
    app.execute_batch("begin").unwrap();
    insert(&app, 100);
    app.execute_batch("commit").unwrap();
    rig.settle_and_compare();
    assert_eq!(rig.model.commits.len(), 41);
}

#[test]
fn a_refusing_sink_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    let mut rig = Rig::attach(&path);
    insert(&app, 10);
    rig.poll();
    rig.model.refuse = true;
    for _ in 0..5 {
        insert(&app, 300);
        assert!(rig.source.poll(&mut rig.model).is_err());
    }
    rig.model.refuse = false;
    rig.settle_and_compare();
    assert_eq!(rig.model.commits.len(), 1_510);
}

#[test]
fn the_log_is_not_let_go_before_the_sink_has_secured_it() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    let mut rig = Rig::attach(&path);
    insert(&app, 900);
    rig.poll();
    let secured = rig.model.secured;
    rig.run_until(|rig| rig.poll().idle);
    assert!(rig.model.secured > secured);
    let frames = rig.source.log_status().unwrap();
    assert_eq!(frames.frames, frames.backfilled);
}

#[test]
fn a_database_moved_over_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    let mut rig = Rig::attach(&path);
    insert(&app, 3);
    let other = folder.path().join("other.db");
    std::fs::copy(&path, &other).unwrap();
    std::fs::rename(&other, &path).unwrap();
    rig.run_until(|rig| !rig.events.is_empty());
    assert_eq!(rig.events, [SourceEvent::Replaced]);
    assert_eq!(rig.model.commits.len(), 3);
    assert!(rig.source.poll(&mut rig.model).is_err(), "it has let go");
}

#[test]
fn a_database_moved_over_is_noticed_also_when_the_sink_takes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    let mut rig = Rig::attach(&path);
    rig.model.refuse = true;
    insert(&app, 3);
    assert!(rig.source.poll(&mut rig.model).is_err());
    let other = folder.path().join("other.db");
    drop(Connection::open(&other).unwrap());
    std::fs::rename(&other, &path).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let polled = rig.source.poll(&mut rig.model).unwrap();
    assert_eq!(polled.event, Some(SourceEvent::Replaced));
}

#[test]
fn a_deleted_database_is_noticed_and_its_successor_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    let mut rig = Rig::attach(&path);
    let resume = rig.source.resume();
    drop(app);
    for suffix in ["", "-wal", "-shm"] {
        std::fs::remove_file(format!("{}{suffix}", path.display())).unwrap();
    }
    rig.run_until(|rig| !rig.events.is_empty());
    assert_eq!(rig.events, [SourceEvent::Vanished]);
    assert!(matches!(rig.source.attach(Some(&resume)), Err(SqliteSourceError::NotThere { .. })));
    let (_, app) = table(folder.path());
    assert!(matches!(rig.source.attach(Some(&resume)).unwrap(), Attach::Unknown { .. }));
    let mut image = rig.source.image(&mut rig.model, &std::env::temp_dir()).unwrap();
    rig.model.load(&mut *image);
    drop(image);
    insert(&app, 2);
    rig.settle_and_compare();
}

#[test]
fn a_log_deleted_under_us_is_noticed() {
    for suffix in ["-wal", "-shm"] {
        let folder = tempfile::tempdir().unwrap();
        let (path, app) = table(folder.path());
        let mut rig = Rig::attach(&path);
        insert(&app, 3);
        rig.poll();
        std::fs::remove_file(format!("{}{suffix}", path.display())).unwrap();
        rig.run_until(|rig| !rig.events.is_empty());
        assert_eq!(rig.events, [SourceEvent::LogReplaced]);
    }
}

#[test]
fn everything_that_cannot_be_captured_has_a_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.db");
    let open = |path: &Path| SqliteSource::open(path, SqliteOptions::default()).err().unwrap();
    let error = open(&path);
    assert!(matches!(error, SqliteSourceError::NotThere { .. }), "{error}");
    assert!(matches!(open(folder.path()), SqliteSourceError::NotAFile { .. }));
    std::fs::write(&path, b"").unwrap();
    assert!(matches!(open(&path), SqliteSourceError::Empty { .. }));
    std::fs::write(&path, [7; 5000]).unwrap();
    let error = open(&path);
    assert!(matches!(error, SqliteSourceError::NotADatabase { .. }), "{error}");
    assert!(error.advice().unwrap().contains("encrypted"));
    std::fs::remove_file(&path).unwrap();
    let app = Connection::open(&path).unwrap();
    app.execute_batch("create table t(a)").unwrap();
    let error = open(&path);
    assert!(matches!(error, SqliteSourceError::RollbackJournal { .. }), "{error}");
    assert!(error.advice().unwrap().contains("PRAGMA journal_mode=WAL"));
    // Refusing has left no lock behind, and changed nothing.
    app.execute_batch("insert into t values (1)").unwrap();
    let mode: String = app.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
    assert_eq!(mode, "delete");
}

#[test]
fn a_header_that_lies_is_refused_without_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    insert(&app, 100);
    app.query_row("PRAGMA wal_checkpoint(truncate)", [], |_| Ok(())).unwrap();
    drop(app);
    let sound = std::fs::read(&path).unwrap();
    for (at, value) in [(0, 0u8), (16, 3), (18, 9), (21, 1), (23, 99), (100, 0xff)] {
        let mut bytes = sound.clone();
        bytes[at] = value;
        std::fs::write(&path, &bytes).unwrap();
        let _ = SqliteSource::open(&path, SqliteOptions::default()).map(|mut source| source.attach(None));
    }
}

#[test]
fn a_damaged_schema_is_told_and_captured_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    insert(&app, 100);
    app.query_row("PRAGMA wal_checkpoint(truncate)", [], |_| Ok(())).unwrap();
    drop(app);
    assert_eq!(Rig::attach(&path).source.damage(), None);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] = 0xff;
    std::fs::write(&path, bytes).unwrap();
    let mut rig = Rig::attach(&path);
    assert!(rig.source.damage().is_some());
    rig.settle_and_compare();
}

#[test]
fn a_rollback_journal_database_is_converted_only_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.db");
    let app = Connection::open(&path).unwrap();
    app.execute_batch("create table t(a integer primary key, b)").unwrap();
    let mut rig = Rig::attach_with(&path, SqliteOptions { convert_to_wal: true, ..SqliteOptions::default() });
    insert(&app, 5);
    rig.settle_and_compare();
    assert_eq!(rig.model.commits.len(), 5);
}

#[test]
fn an_application_in_exclusive_mode_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    drop(app);
    let app = Connection::open(&path).unwrap();
    app.execute_batch("PRAGMA locking_mode=exclusive; insert into t(b) values (1)").unwrap();
    let options = SqliteOptions { patience: Duration::from_millis(100), ..SqliteOptions::default() };
    let error = SqliteSource::open(&path, options).err().unwrap();
    assert!(matches!(error, SqliteSourceError::ExclusiveLocking { .. }), "{error}");
    assert!(error.advice().unwrap().contains("locking_mode"));
}

#[test]
fn a_symbolic_link_is_resolved() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let mut rig = Rig::attach(&link);
    insert(&app, 5);
    rig.settle_and_compare();
    assert_eq!(rig.source.path(), path.canonicalize().unwrap());
    assert_eq!(rig.model.commits.len(), 5);
}

#[test]
fn without_inotify_the_timer_finds_every_commit() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    let mut rig = Rig::attach_with(&path, SqliteOptions { notify: false, ..SqliteOptions::default() });
    let writer = std::thread::spawn(move || {
        for _ in 0..50 {
            insert(&app, 1);
            std::thread::sleep(Duration::from_millis(3));
        }
    });
    rig.run_until(|rig| rig.model.commits.len() == 50);
    writer.join().unwrap();
    rig.settle_and_compare();
}

/// Closing any descriptor of the database or of its -shm would drop the locks of this process's pins. The database is
/// open as often as SQLite has connections, the -shm once for SQLite and once for us, also after a release.
#[test]
fn no_descriptor_of_the_database_or_its_index_is_opened_and_closed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    let open = |suffix: &str| {
        let wanted = format!("{}{suffix}", path.canonicalize().unwrap().display());
        std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
            .filter(|target| target.as_os_str() == wanted.as_str())
            .count()
    };
    assert_eq!((open(""), open("-shm")), (1, 1));
    let mut rig = Rig::attach(&path);
    // The fifth connection of an image is closed while locks are held: SQLite keeps its descriptor for later use.
    assert_eq!((open(""), open("-shm")), (6, 2));
    for _ in 0..3 {
        insert(&app, 300);
        rig.run_until(|rig| rig.poll().idle);
        drop(rig.source.image(&mut rig.model, &std::env::temp_dir()).unwrap());
        let resume = rig.source.resume();
        rig.source.release();
        assert_eq!(
            open("-shm"),
            2,
            "our descriptor of the -shm was closed under the application's connection"
        );
        assert_eq!(rig.source.attach(Some(&resume)).unwrap(), Attach::Continue);
        assert_eq!(open("-shm"), 2);
    }
    assert_eq!(open(""), 6);
    rig.settle_and_compare();
    assert_eq!(rig.model.commits.len(), 900);
}

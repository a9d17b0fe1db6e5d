//! Going on after a restart: only where every part of the resume point matches, else from the state found. And frames
//! in the log that look like commits and are none.

#![allow(clippy::unwrap_used, reason = "what helps tests fails as tests do")]

mod capture_support;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use capture_support::writer::{command, reported, run_job};
use capture_support::{Model, Rig, wal_database};
use everwhen_engine::capture::sqlite::{Attach, SourceEvent, SqliteOptions, SqliteSource};
use everwhen_engine::page::PageNo;
use everwhen_engine::sqlite::wal::{
    self, FrameHeader, RunningChecksum, Salts, WalHeader, WordOrder, frame_offset, push_frame,
};
use rusqlite::Connection;
use rusqlite::config::DbConfig;

#[test]
#[ignore = "runs as an application process of the other tests"]
fn application_process() {
    run_job();
}

fn table(folder: &Path) -> (PathBuf, Connection) {
    let (path, app) = wal_database(folder, "PRAGMA page_size=4096");
    app.execute_batch("create table t(a integer primary key, b); PRAGMA wal_autocheckpoint=0").unwrap();
    (path, app)
}

fn insert(app: &Connection, rows: u32) {
    for number in 0..rows {
        app.execute("insert into t(b) values (?1)", [format!("row {number}")]).unwrap();
    }
}

fn keep_log(app: &Connection) {
    app.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
}

fn log_of(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}-wal", path.display()))
}

/// Ten commits are captured, and the source has let go: the place behind them.
fn captured_and_let_go(folder: &Path) -> (PathBuf, Connection, Rig, Vec<u8>) {
    let (path, app) = table(folder);
    let mut rig = Rig::attach(&path);
    insert(&app, 10);
    rig.poll();
    let resume = rig.model.commits.last().unwrap().resume.clone();
    rig.source.release();
    (path, app, rig, resume)
}

/// A source that goes on from a place.
fn going_on(path: &Path, resume: &[u8]) -> SqliteSource {
    let mut source = SqliteSource::open(path, SqliteOptions::default()).unwrap();
    assert_eq!(source.attach(Some(resume)).unwrap(), Attach::Continue);
    source
}

/// Why capture does not simply go on from the resume point.
fn unknown(path: &Path, resume: &[u8]) -> String {
    let mut source = SqliteSource::open(path, SqliteOptions::default()).unwrap();
    match source.attach(Some(resume)).unwrap() {
        Attach::Unknown { reason, .. } => reason,
        Attach::Continue => panic!("it went on as if nothing had happened"),
    }
}

#[test]
fn commits_made_while_away_are_captured_singly_when_the_log_still_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app, mut rig, resume) = captured_and_let_go(folder.path());
    insert(&app, 20);
    rig.source = going_on(&path, &resume);
    rig.poll();
    insert(&app, 1);
    rig.settle_and_compare();
    assert_eq!(rig.model.commits.len(), 31);
    assert_eq!(rig.model.unwatched, 20);
    assert_eq!(rig.model.previous_missing, 0);
    assert_eq!(rig.model.previous_given, rig.model.previous_right);
}

#[test]
fn a_resume_point_amid_the_log_is_gone_on_from() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    let mut rig = Rig::attach(&path);
    insert(&app, 30);
    rig.poll();
    for kept in [0, 1, 15, 29] {
        let mut source = SqliteSource::open(&path, SqliteOptions::default()).unwrap();
        assert_eq!(source.attach(Some(&rig.model.commits[kept].resume)).unwrap(), Attach::Continue);
        let mut model = Model::default();
        assert_eq!(source.poll(&mut model).unwrap().transactions, 29 - kept as u64);
    }
}

/// The case in which a well-known peer loses the row for good: a commit at the end of a generation, a checkpoint and a
/// reset of the log, all while it is away.
#[test]
fn a_tail_committed_while_away_and_overwritten_is_in_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    let mut rig = Rig::attach(&path);
    insert(&app, 3);
    rig.poll();
    let resume = rig.source.resume();
    rig.source.release();
    app.execute("insert into t(b) values ('TAIL')", []).unwrap();
    app.query_row("PRAGMA wal_checkpoint(passive)", [], |_| Ok(())).unwrap();
    app.execute("insert into t(b) values ('after')", []).unwrap();
    match rig.source.attach(Some(&resume)).unwrap() {
        Attach::Unknown { reason, .. } => assert!(reason.contains("reset"), "{reason}"),
        Attach::Continue => panic!("the tail is lost"),
    }
    let mut image = rig.source.image(&mut rig.model, &std::env::temp_dir()).unwrap();
    rig.model.load(&mut *image);
    drop(image);
    assert_eq!(rig.model.commits.len(), 3);
    insert(&app, 2);
    rig.settle_and_compare();
    assert_eq!(rig.model.commits.len(), 5);
    let copy = rig.model.open_copy(folder.path(), 4096);
    let tails: i64 = copy.query_row("select count(*) from t where b = 'TAIL'", [], |row| row.get(0)).unwrap();
    assert_eq!(tails, 1);
}

/// A power cut takes the end of the log; new commits make it longer again than it was. Salts and length look right.
#[test]
fn a_log_cut_and_regrown_past_the_captured_frame_is_told_by_its_checksum() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    keep_log(&app);
    let mut rig = Rig::attach(&path);
    let before = rig.source.log_status().unwrap().frames;
    insert(&app, 20);
    rig.poll();
    let resume = rig.source.resume();
    drop((rig, app));
    let log = std::fs::OpenOptions::new().write(true).open(log_of(&path)).unwrap();
    log.set_len(frame_offset(before + 13, everwhen_engine::page::PageSize::new(4096).unwrap())).unwrap();
    std::fs::remove_file(format!("{}-shm", path.display())).unwrap();
    assert!(unknown(&path, &resume).contains("ends at frame"));
    let app = Connection::open(&path).unwrap();
    keep_log(&app);
    for _ in 0..12 {
        app.execute("insert into t(b) values ('another')", []).unwrap();
    }
    let reason = unknown(&path, &resume);
    assert!(reason.contains("written anew"), "{reason}");
}

#[test]
fn a_log_that_is_gone_or_of_another_file_is_not_gone_on_from() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    let mut rig = Rig::attach(&path);
    insert(&app, 3);
    rig.poll();
    let resume = rig.source.resume();
    drop(rig);
    drop(app);
    assert!(!log_of(&path).exists(), "the last one to close deletes the log");
    assert!(unknown(&path, &resume).contains("reset"));
    for bad in [&[][..], &[1, 2, 3], &resume[1..]] {
        assert!(unknown(&path, bad).contains("cannot be read"));
    }
    let copy = folder.path().join("copy.db");
    std::fs::copy(&path, &copy).unwrap();
    std::fs::rename(&copy, &path).unwrap();
    assert!(unknown(&path, &resume).contains("another file"));
}

/// An index set up over an empty log has salts of zero. It looks the same after any number of commits in between.
#[test]
fn an_empty_log_is_never_gone_on_from() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    insert(&app, 3);
    drop(app);
    assert!(!log_of(&path).exists());
    let mut rig = Rig::attach(&path);
    assert!(rig.source.page_count() >= 2, "an empty log does not tell the size of the image");
    let resume = rig.source.resume();
    rig.settle_and_compare();
    drop(rig);
    std::fs::remove_file(log_of(&path)).unwrap();
    let app = Connection::open(&path).unwrap();
    insert(&app, 3);
    drop(app);
    assert!(!log_of(&path).exists());
    let reason = unknown(&path, &resume);
    assert!(reason.contains("empty"), "{reason}");
}

/// A writer that is killed at its fsync leaves a perfect commit frame of a transaction that nobody was told of; the next
/// one overwrites it in place.
#[test]
fn a_commit_frame_that_was_never_published_is_not_captured() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    let mut rig = Rig::attach(&path);
    insert(&app, 3);
    rig.poll();
    let frames = rig.source.log_status().unwrap().frames;
    let bytes = std::fs::read(log_of(&path)).unwrap();
    let header = WalHeader::parse(&bytes).unwrap();
    let last = frame_offset(frames, header.page_size) as usize;
    let last = FrameHeader::parse(&bytes[last..]).unwrap();
    let mut phantom = Vec::new();
    let page = PageNo::new(2).unwrap();
    push_frame(&mut phantom, page, last.commit, &[0xee; 4096], header.salts, last.checksum, header.order);
    let log = std::fs::OpenOptions::new().write(true).open(log_of(&path)).unwrap();
    log.write_all_at(&phantom, frame_offset(frames + 1, header.page_size)).unwrap();
    rig.run_for(Duration::from_millis(100));
    assert_eq!(rig.model.commits.len(), 3);
    insert(&app, 1);
    rig.settle_and_compare();
    assert_eq!(rig.model.commits.len(), 4);
    assert!(rig.model.pages.values().all(|page| page != &[0xee; 4096]));
}

/// A frame that is published but does not fit the chain is never handed over, and ends the capture with the reason.
#[test]
fn a_damaged_published_frame_is_never_captured() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    let mut rig = Rig::attach(&path);
    insert(&app, 3);
    let frames = rig.source.log_status().unwrap().frames;
    let size = everwhen_engine::page::PageSize::new(4096).unwrap();
    let log = std::fs::OpenOptions::new().write(true).open(log_of(&path)).unwrap();
    log.write_all_at(&[0xee], frame_offset(frames, size) + 2_000).unwrap();
    let started = Instant::now();
    rig.run_until(|rig| !rig.events.is_empty());
    assert!(started.elapsed() > Duration::from_secs(4));
    assert_eq!(rig.model.commits.len(), 0);
    assert!(format!("{:?}", rig.events).contains("does not continue the log"), "{:?}", rig.events);
}

/// A writer killed between the two copies of the header leaves an index that nobody can read until the next reader
/// repairs it. On a quiet database that is us.
#[test]
fn an_index_left_half_written_is_repaired_without_any_application() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    let mut rig = Rig::attach(&path);
    insert(&app, 5);
    rig.run_until(|rig| rig.poll().idle);
    let index =
        std::fs::OpenOptions::new().read(true).write(true).open(format!("{}-shm", path.display())).unwrap();
    index.write_all_at(&[0xff; 4], 16).unwrap();
    let copies = || {
        let mut bytes = [0; 96];
        index.read_exact_at(&mut bytes, 0).unwrap();
        bytes[..48] == bytes[48..]
    };
    assert!(!copies());
    rig.run_until(|_| copies());
    insert(&app, 5);
    rig.settle_and_compare();
    assert!(rig.events.is_empty());
    assert_eq!(rig.model.commits.len(), 10);
    // Closing it would drop the locks of this process.
    std::mem::forget(index);
}

/// A log written on a machine of the other byte order: SQLite goes on in the order it finds.
#[test]
fn a_log_with_big_endian_checksums_is_captured() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    keep_log(&app);
    insert(&app, 5);
    drop(app);
    let bytes = std::fs::read(log_of(&path)).unwrap();
    let header = WalHeader::parse(&bytes).unwrap();
    let mut swapped = WalHeader::encode(header.page_size, header.salts, WordOrder::Big).to_vec();
    let mut running = WalHeader::parse(&swapped).unwrap().checksum;
    for frame in bytes[wal::HEADER_LEN..].chunks_exact(wal::FRAME_HEADER_LEN + 4096) {
        let head = FrameHeader::parse(frame).unwrap();
        let image = &frame[wal::FRAME_HEADER_LEN..];
        running =
            push_frame(&mut swapped, head.page, head.commit, image, head.salts, running, WordOrder::Big);
    }
    std::fs::write(log_of(&path), &swapped).unwrap();
    std::fs::remove_file(format!("{}-shm", path.display())).unwrap();
    let app = Connection::open(&path).unwrap();
    let mut rig = Rig::attach(&path);
    insert(&app, 50);
    rig.settle_and_compare();
    assert_eq!(rig.model.commits.len(), 50);
    assert_eq!(
        rig.model
            .open_copy(folder.path(), 4096)
            .query_row("select count(*) from t", [], |row| row.get::<_, i64>(0))
            .unwrap(),
        55
    );
    assert_ne!(running, RunningChecksum::default());
    assert_ne!(header.salts, Salts::default());
}

/// Needs the right to become another user, so it does nothing when it is not root that tests.
#[test]
fn a_user_who_may_only_read_captures_while_the_application_checkpoints() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    app.execute_batch("PRAGMA wal_autocheckpoint=200; PRAGMA synchronous=off").unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let mut child = command("capture 1500 0", &path).uid(65_534).gid(65_534).spawn().unwrap();
    let attached = path.with_extension("attached");
    while !attached.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it did not attach");
        std::thread::sleep(Duration::from_millis(5));
    }
    for _ in 0..1_500 {
        insert(&app, 1);
        std::thread::sleep(Duration::from_millis(2));
    }
    // It checkpoints nothing; the application's own checkpoints get through all the same.
    assert!(reported(child, "frames") < 1_200);
}

#[test]
fn one_reset_of_a_log_that_was_captured_whole_is_gone_over_without_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app, mut rig, resume) = captured_and_let_go(folder.path());
    // All is in the file: the first pin is on slot 0, and the next commit resets the log.
    app.query_row("pragma wal_checkpoint(passive)", [], |_| Ok(())).unwrap();
    let mut source = SqliteSource::open(&path, SqliteOptions::default()).unwrap();
    for _ in 0..20 {
        insert(&app, 1);
        app.query_row("pragma wal_checkpoint(passive)", [], |_| Ok(())).unwrap();
        source.hold().unwrap();
    }
    assert_eq!(source.attach(Some(&resume)).unwrap(), Attach::Continue);
    rig.source = source;
    rig.settle_and_compare();
    assert_eq!(rig.model.commits.len(), 30);
    assert_eq!(rig.model.unwatched, 20);
}

/// All of it is in the file when the first pin begins, which is then on slot 0 and allows a reset at once.
#[test]
fn a_log_that_is_reset_before_what_it_held_was_captured_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app, _rig, resume) = captured_and_let_go(folder.path());
    insert(&app, 5);
    app.query_row("pragma wal_checkpoint(passive)", [], |_| Ok(())).unwrap();
    let mut source = going_on(&path, &resume);
    insert(&app, 1);
    let mut model = Model::default();
    let polled = source.poll(&mut model).unwrap();
    assert!(matches!(polled.event, Some(SourceEvent::LogLost { .. })), "{polled:?}");
    assert_eq!((polled.transactions, model.distrusted), (0, 1));
    assert_eq!(model.began_anew, []);
}

/// The sink notes where the log goes on each time that it is begun anew, before what comes is captured, and that is
/// where another source goes on.
#[test]
fn the_place_where_a_log_is_begun_anew_is_gone_on_from() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    let mut rig = Rig::attach(&path);
    insert(&app, 10);
    for _ in 0..100 {
        rig.poll();
        std::thread::sleep(Duration::from_millis(10));
    }
    // All is captured and in the file by now, and the next commit begins the log anew.
    insert(&app, 1);
    rig.poll();
    let [.., (commits, resume)] = &rig.model.began_anew[..] else { panic!("the log was not begun anew") };
    assert_eq!(*commits, 10);
    let resume = resume.clone();
    rig.source.release();
    rig.source = going_on(&path, &resume);
    rig.model.commits.pop();
    insert(&app, 2);
    rig.poll();
    assert_eq!(rig.model.commits.len(), 13);
}

#[test]
fn an_empty_log_vouches_for_nothing_also_when_it_was_empty_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = table(folder.path());
    insert(&app, 3);
    // The last connection takes the log with it.
    drop(app);
    let mut rig = Rig::attach(&path);
    rig.poll();
    let resume = rig.source.resume();
    rig.source.release();
    drop(rig);
    let app = Connection::open(&path).unwrap();
    insert(&app, 100);
    drop(app);
    let mut source = SqliteSource::open(&path, SqliteOptions::default()).unwrap();
    insert(&Connection::open(&path).unwrap(), 1);
    assert!(matches!(source.attach(Some(&resume)).unwrap(), Attach::Unknown { .. }));
}

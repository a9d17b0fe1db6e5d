//! What a system does to its processes: a writer killed at its sync, a clock that steps back, a disk that is full or
//! read-only for a while. A library loaded before all others plays the system.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use everwhen_engine::time::Timestamp;
use everwhen_tests::{Meddler, Oracle, States, World, image_of};
use rusqlite::Connection;

const PROGRAM: &str = env!("CARGO_BIN_EXE_everwhen-under-test");
/// For the process of an application: the database.
const APPLICATION: &str = "EVERWHEN_TEST_APPLICATION";

#[test]
#[ignore = "runs as an application process of the other tests"]
fn application_process() {
    let Ok(path) = std::env::var(APPLICATION) else { return };
    let connection = Connection::open(path).unwrap();
    connection.execute_batch("PRAGMA synchronous=full; INSERT INTO t VALUES (999, 'phantom')").unwrap();
    panic!("it was to die at its sync");
}

/// An application that writes its commit frame and is killed at the sync of it, before anybody is told of the commit.
fn dies_at_its_sync(database: &Path, meddler: &Meddler) {
    use std::os::unix::process::ExitStatusExt;
    meddler.tell("die-at-sync", "app.db-wal");
    let log = || std::fs::read(format!("{}-wal", database.display())).unwrap();
    let before = log();
    let died = Command::new(std::env::current_exe().unwrap())
        .args(["application_process", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(APPLICATION, database)
        .envs(meddler.environment())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(died.signal(), Some(9), "{died}");
    assert_ne!(log(), before, "nothing was written before the kill");
    meddler.untell("die-at-sync");
}

fn rows(path: &Path) -> Vec<i64> {
    let connection = Connection::open(path).unwrap();
    let mut rows = connection.prepare("SELECT id FROM t ORDER BY id").unwrap();
    let rows = rows.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

fn table(world: &World) -> Connection {
    let app = world.connect();
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)").unwrap();
    app
}

fn insert(app: &mut Connection, id: i64, oracle: &mut Oracle) {
    app.execute("INSERT INTO t VALUES (?1, 'words')", [id]).unwrap();
    oracle.remember(id, app);
}

/// Each remembered image is a point, in order, after the state found; and there is no other.
fn points_are(world: &World, oracle: &Oracle) {
    let states = States::open(&world.repository(), "app");
    let points = states.points();
    let images = states.each(&points, |path| image_of(&mut Connection::open(path).unwrap()));
    assert_eq!(images.len(), oracle.marks().count() + 1);
    for (mark, image) in oracle.marks().zip(&images[1..]) {
        assert!(oracle.image(mark) == Some(image), "commit {mark}");
    }
}

#[test]
fn a_commit_frame_of_a_writer_killed_at_its_sync_is_no_point_when_the_others_go_on() {
    let world = World::new(PROGRAM);
    let meddler = Meddler::new(&world.path("."));
    let (mut app, mut oracle) = (table(&world), Oracle::default());
    let mut daemon = world.daemon();
    daemon.settle();
    insert(&mut app, 1, &mut oracle);
    daemon.settle();
    dies_at_its_sync(&world.database(), &meddler);
    // It has every chance to be taken for a commit: many looks of the daemon, a restart of it, a stop.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(world.points().len(), 2);
    assert!(daemon.terminate().success());
    let mut daemon = world.daemon();
    daemon.settle();
    assert_eq!(world.points().len(), 2);
    assert_eq!(rows(&world.database()), [1], "nobody was told of it");
    for id in 2..5 {
        insert(&mut app, id, &mut oracle);
    }
    daemon.settle();
    assert!(daemon.terminate().success());
    points_are(&world, &oracle);
    let _ = world.everwhen(&["verify", "app.db", "--deep"]).exits(0);
}

#[test]
fn a_commit_frame_of_a_writer_killed_at_its_sync_is_a_point_once_recovery_has_made_it_real() {
    let world = World::new(PROGRAM);
    let meddler = Meddler::new(&world.path("."));
    let (mut app, mut oracle) = (table(&world), Oracle::default());
    let mut daemon = world.daemon();
    daemon.settle();
    insert(&mut app, 1, &mut oracle);
    daemon.settle();
    // While the daemon is there, the application is not the last to close: the log stays.
    drop(app);
    dies_at_its_sync(&world.database(), &meddler);
    daemon.kill();
    // Everybody is gone: whoever opens the database next recovers its log, and finds a whole commit at its end.
    let mut app = world.connect();
    assert_eq!(rows(&world.database()), [1, 999], "recovery did not make it real");
    oracle.remember(2, &mut app);
    let mut daemon = world.daemon();
    daemon.settle();
    insert(&mut app, 3, &mut oracle);
    daemon.settle();
    assert!(daemon.terminate().success());
    points_are(&world, &oracle);
    let _ = world.everwhen(&["verify", "app.db", "--deep"]).exits(0);
}

fn micros(moment: SystemTime) -> i64 {
    moment.duration_since(UNIX_EPOCH).unwrap().as_micros() as i64
}

#[test]
fn around_a_clock_that_steps_back_every_time_gives_its_exact_state_or_is_refused_with_its_neighbours() {
    around_a_clock_that_steps_back(|id| id != LAST_BEFORE_THE_STEP);
}

/// The commits whose times are held lie at the last look before the step: whoever asks for a moment between the last
/// commit before it and that look gets that commit.
#[test]
fn a_moment_between_the_last_commit_and_a_step_back_of_the_clock_never_gives_a_later_commit() {
    around_a_clock_that_steps_back(|id| id == LAST_BEFORE_THE_STEP);
}

const LAST_BEFORE_THE_STEP: i64 = 6;

fn around_a_clock_that_steps_back(looks_at: fn(i64) -> bool) {
    const STEP: i64 = 600;
    let world = World::new(PROGRAM);
    let meddler = Meddler::new(&world.path("."));
    let (mut app, mut oracle) = (table(&world), Oracle::default());
    let mut daemon = world.daemon_with(&[], &meddler.environment());
    daemon.settle();
    // What the clock on the wall said when each commit had returned: as usual, ten minutes less, as usual.
    let mut moments = Vec::new();
    let mut id = 0;
    for behind in [0, STEP, 0] {
        meddler.tell("clock", &format!("-{behind}"));
        for _ in 0..LAST_BEFORE_THE_STEP {
            id += 1;
            insert(&mut app, id, &mut oracle);
            moments.push((id, behind, micros(SystemTime::now()) - behind * 1_000_000));
            std::thread::sleep(Duration::from_millis(60));
        }
        let end = Instant::now() + Duration::from_secs(20);
        while world.status().is_none_or(|status| status["captured"] != status["durable"]) {
            assert!(Instant::now() < end, "{:?}", world.status());
            std::thread::sleep(Duration::from_millis(20));
        }
        if behind > 0 {
            let told = world.status().unwrap().to_string() + &world.daemon_log();
            assert!(told.contains("stepped back"), "{told}");
        }
    }
    daemon.settle();
    assert!(daemon.terminate().success());
    points_are(&world, &oracle);
    let points = world.points();
    let times: Vec<&str> = points.iter().map(|point| point["time"].as_str().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    for (id, behind, moment) in moments.into_iter().filter(|(id, ..)| looks_at(*id)) {
        let at = Timestamp::from_micros(moment).to_string();
        let (answer, target) = world.restore(&["--at", &at], &format!("{id}.db"));
        if behind > 0 {
            // By the clock nothing was protected yet.
            let error = answer.exits(4).error();
            assert_eq!(error["nearest"]["after"]["position"], points[0]["position"], "{at}: {error}");
            assert!(!target.exists());
        } else if answer.code == 4 {
            // The moment after the last of all may not be known to be covered yet.
            let error = answer.error();
            assert_eq!(
                error["nearest"]["before"]["position"], points[id as usize]["position"],
                "{at}: {error}"
            );
            assert_eq!(id as usize + 1, points.len(), "{at}: {error}");
        } else {
            let _ = answer.exits(0);
            assert_eq!(rows(&target), (1..=id).collect::<Vec<_>>(), "at {at}, points {times:?}");
        }
    }
    // A time that several commits were held at gives the last of them.
    for (place, point) in points.iter().enumerate() {
        let (answer, target) = world.restore(&["--at", times[place]], &format!("held-{place}.db"));
        let answer = answer.exits(0).json();
        let last = times.iter().rposition(|time| *time == times[place]).unwrap();
        assert_eq!(answer["position"], points[last]["position"], "{point}");
        assert_eq!(rows(&target).len(), last);
    }
}

#[test]
fn a_store_on_a_disk_that_is_full_or_read_only_for_a_while_is_told_and_nothing_is_lost() {
    for (trouble, word) in [("full", "space"), ("read-only", "ead-only")] {
        let world = World::new(PROGRAM);
        let store = world.path("store");
        let store = store.to_str().unwrap().to_owned();
        let world = world.with_store(&store);
        let meddler = Meddler::new(&world.path("."));
        let (mut app, mut oracle) = (table(&world), Oracle::default());
        let mut daemon = world.daemon_with(&[], &meddler.environment());
        daemon.settle();
        insert(&mut app, 1, &mut oracle);
        daemon.settle();
        meddler.tell(trouble, &store);
        for id in 2..12 {
            insert(&mut app, id, &mut oracle);
        }
        let end = Instant::now() + Duration::from_secs(30);
        let failing = loop {
            let status = world.status().unwrap();
            if status["health"] == "failing" {
                break status;
            }
            assert!(Instant::now() < end, "{trouble}: {status}\n{}", world.daemon_log());
            std::thread::sleep(Duration::from_millis(50));
        };
        assert!(failing["reasons"].to_string().contains(word), "{trouble}: {failing}");
        assert_ne!(failing["captured"], failing["durable"], "{failing}");
        // The application is not kept waiting, and its log can be emptied.
        let busy: i64 = app.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(0)).unwrap();
        assert_eq!(busy, 0);
        insert(&mut app, 12, &mut oracle);
        meddler.untell(trouble);
        daemon.settle();
        assert_eq!(world.status().unwrap()["health"], "ok");
        insert(&mut app, 13, &mut oracle);
        daemon.settle();
        assert!(daemon.terminate().success());
        let states = States::open(Path::new(&store), "app");
        assert!(states.holes().is_empty(), "{trouble}: {:?}", states.holes());
        let points = states.points();
        let images = states.each(&points, |path| image_of(&mut Connection::open(path).unwrap()));
        assert_eq!(images.len(), 14, "{trouble}");
        assert!(
            oracle.marks().zip(&images[1..]).all(|(mark, image)| oracle.image(mark) == Some(image)),
            "{trouble}"
        );
        let _ = world.everwhen(&["verify", "--deep"]).exits(0);
    }
}

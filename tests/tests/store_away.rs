//! The daemon comes up before its store does, or stands still: what was committed meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::process::Command;
use std::time::{Duration, Instant};

use everwhen_engine::time::Timestamp;
use everwhen_tests::cloud::{CloudServer, Dialect};
use everwhen_tests::{Daemon, World, image_of};
use rusqlite::Connection;

const PROGRAM: &str = env!("CARGO_BIN_EXE_everwhen-under-test");

fn world_on(server: &CloudServer) -> World {
    let world = World::new(PROGRAM).with_store(&server.url("backups"));
    server.environment().iter().fold(world, |world, (name, value)| world.with_env(name, value))
}

fn away(server: &CloudServer) {
    server.fault(|faults| faults.unavailable = u32::MAX);
}

fn back(server: &CloudServer) {
    server.fault(|faults| faults.unavailable = 0);
}

fn wait_for_log(world: &World, what: &str) {
    let end = Instant::now() + Duration::from_secs(40);
    while !world.daemon_log().contains(what) {
        assert!(Instant::now() < end, "never '{what}' in {}", world.daemon_log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn latest_is(world: &World, app: &mut Connection) {
    let (answer, target) = world.restore(&["--latest"], "latest.db");
    let _ = answer.exits(0);
    assert!(image_of(&mut Connection::open(target).unwrap()) == image_of(app));
}

/// A history with a commit in it, and its daemon killed.
fn protected_before(world: &World) -> Connection {
    let app = world.connect();
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)").unwrap();
    let mut daemon = world.daemon();
    daemon.settle();
    app.execute("INSERT INTO t VALUES (0, 'before')", []).unwrap();
    daemon.settle();
    daemon.kill();
    app
}

#[test]
fn a_daemon_that_comes_up_before_its_store_loses_no_commit() {
    let server = CloudServer::start(Dialect::S3);
    let world = world_on(&server);
    let mut app = protected_before(&world);
    away(&server);
    let mut daemon = world.daemon();
    wait_for_log(&world, "the logs of the databases are held");
    for id in 1..=30 {
        app.execute("INSERT INTO t VALUES (?1, 'meanwhile')", [id]).unwrap();
        // All that may be is put into the file: without the daemon's hold the next commit would reset the log.
        app.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
    }
    back(&server);
    daemon.settle();
    assert!(daemon.terminate().success());
    let points = world.points();
    assert_eq!(points.len(), 32, "the base, one commit before, thirty meanwhile: {points:?}");
    latest_is(&world, &mut app);
    let rows = |points: &serde_json::Value| {
        let position = points["position"].as_str().unwrap();
        let (answer, target) =
            world.restore(&["--position", position], &format!("{position}.db").replace('/', "-"));
        let _ = answer.exits(0);
        let count = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
        Connection::open(target).unwrap().query_row("SELECT count(*) FROM t", [], count).unwrap()
    };
    assert_eq!(points[1..].iter().map(rows).collect::<Vec<_>>(), (1..=31).collect::<Vec<i64>>());
}

#[test]
fn an_application_that_empties_its_log_meanwhile_is_not_kept_waiting() {
    let server = CloudServer::start(Dialect::S3);
    let world = world_on(&server);
    let mut app = protected_before(&world);
    app.busy_timeout(Duration::from_secs(30)).unwrap();
    away(&server);
    let mut daemon = world.daemon();
    wait_for_log(&world, "the logs of the databases are held");
    app.execute("INSERT INTO t VALUES (1, 'meanwhile')", []).unwrap();
    let busy: i64 = app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).unwrap();
    assert_eq!(busy, 0, "it waited half a minute for us");
    app.execute("INSERT INTO t VALUES (2, 'meanwhile')", []).unwrap();
    back(&server);
    daemon.settle();
    assert!(daemon.terminate().success());
    let history = world.everwhen(&["history", "app", "--json"]).exits(0).json();
    assert_eq!(history["gaps"].as_array().unwrap().len(), 1, "{history}");
    latest_is(&world, &mut app);
}

#[test]
fn a_store_that_lost_its_repository_is_not_begun_anew() {
    let server = CloudServer::start(Dialect::S3);
    let world = world_on(&server);
    drop(protected_before(&world));
    for (key, _) in server.objects() {
        server.tamper(&key, None);
    }
    let mut daemon = world.daemon();
    let status = daemon.wait_for_death(Duration::from_secs(20)).unwrap();
    assert_eq!(status.code(), Some(3), "{}", world.daemon_log());
    assert!(world.daemon_log().contains("mounted"), "{}", world.daemon_log());
    assert!(server.objects().is_empty());
}

fn signal(daemon: &Daemon<'_>, signal: &str) {
    assert!(Command::new("kill").args([signal, &daemon.pid().to_string()]).status().unwrap().success());
}

#[test]
fn times_at_which_the_daemon_stood_still_are_refused_and_no_commit_is_lost() {
    let world = World::new(PROGRAM);
    let mut app = world.connect();
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)").unwrap();
    let mut daemon = world.daemon();
    daemon.settle();
    signal(&daemon, "-STOP");
    app.execute("INSERT INTO t VALUES (1, 'unseen')", []).unwrap();
    std::thread::sleep(Duration::from_millis(700));
    let between = Timestamp::now().to_string();
    std::thread::sleep(Duration::from_millis(700));
    app.execute("INSERT INTO t VALUES (2, 'unseen')", []).unwrap();
    signal(&daemon, "-CONT");
    daemon.settle();
    assert_eq!(world.points().len(), 3);
    let (answer, target) = world.restore(&["--at", &between], "between.db");
    let error = answer.exits(4).error();
    assert!(error["nearest"]["before"].is_object() && error["nearest"]["after"].is_object(), "{error}");
    assert!(!target.exists());
    latest_is(&world, &mut app);
    assert!(daemon.terminate().success());
}

#[test]
fn after_a_kill_no_window_covers_what_was_captured_and_not_yet_stored() {
    let world = World::new(PROGRAM);
    let mut app = world.connect();
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)").unwrap();
    let mut daemon = world.daemon();
    daemon.settle();
    let quiet = Timestamp::now();
    // Quiet, so that the daemon notes how far it watched; then a burst of which only the first commit is stored.
    std::thread::sleep(Duration::from_millis(2_300));
    let mut returned = Vec::new();
    for id in 1..=60 {
        app.execute("INSERT INTO t VALUES (?1, 'burst')", [id]).unwrap();
        returned.push(Timestamp::now());
        std::thread::sleep(Duration::from_millis(10));
    }
    daemon.kill();
    let mut daemon = world.daemon();
    daemon.settle();
    for (before, at) in returned.iter().enumerate().step_by(7) {
        let (answer, target) = world.restore(&["--at", &at.to_string()], &format!("{before}.db"));
        match answer.code {
            0 => {
                let count = |row: &rusqlite::Row<'_>| row.get::<_, u32>(0);
                let rows =
                    Connection::open(target).unwrap().query_row("SELECT count(*) FROM t", [], count).unwrap();
                assert_eq!(rows as usize, before + 1, "a wrong state, in silence, at {at}");
            }
            code => assert_eq!(code, 4, "{answer:?}"),
        }
    }
    let (answer, _) = world.restore(&["--at", &quiet.to_string()], "quiet.db");
    let _ = answer.exits(0);
    latest_is(&world, &mut app);
    assert!(daemon.terminate().success());
}

#[test]
fn a_disk_that_is_unmounted_under_the_daemon_gets_nothing_until_it_is_back() {
    let world = World::new(PROGRAM);
    let store = world.path("mount");
    std::fs::create_dir(&store).unwrap();
    let world = world.with_store(store.to_str().unwrap());
    let mut app = world.connect();
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)").unwrap();
    for round in 0..2 {
        let mut daemon = world.daemon();
        daemon.settle();
        let away = world.path("away");
        std::fs::rename(&store, &away).unwrap();
        std::fs::create_dir(&store).unwrap();
        for id in 0..3 {
            app.execute("INSERT INTO t VALUES (?1, 'meanwhile')", [round * 10 + id]).unwrap();
            std::thread::sleep(Duration::from_millis(400));
        }
        assert_eq!(world.status().unwrap()["health"], "failing");
        assert_eq!(
            std::fs::read_dir(&store).unwrap().count(),
            0,
            "something was put into an empty mount point"
        );
        std::fs::remove_dir(&store).unwrap();
        std::fs::rename(&away, &store).unwrap();
        daemon.settle();
        assert!(daemon.terminate().success());
    }
    let _ = world.everwhen(&["verify", "--deep"]).exits(0);
    latest_is(&world, &mut app);
    assert_eq!(world.points().len(), 7);
}

#[test]
fn a_stop_says_what_it_waits_for_and_a_second_signal_loses_nothing() {
    let server = CloudServer::start(Dialect::S3);
    let world = world_on(&server);
    let mut app = world.connect();
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)").unwrap();
    let mut daemon = world.daemon();
    daemon.settle();
    away(&server);
    app.execute("INSERT INTO t VALUES (1, 'meanwhile')", []).unwrap();
    while world.status().is_none_or(|status| status["captured"] == status["durable"]) {
        std::thread::sleep(Duration::from_millis(20));
    }
    signal(&daemon, "-TERM");
    wait_for_log(&world, "waiting up to 20 s for the store");
    assert!(world.daemon_log().contains("stays in the spool"), "{}", world.daemon_log());
    signal(&daemon, "-TERM");
    let status = daemon.wait_for_death(Duration::from_secs(10)).unwrap();
    assert_eq!(status.code(), Some(143), "{}", world.daemon_log());
    back(&server);
    let mut daemon = world.daemon();
    daemon.settle();
    assert!(daemon.terminate().success());
    assert_eq!(world.points().len(), 2, "{}", world.daemon_log());
    latest_is(&world, &mut app);
}

#[test]
fn a_verification_that_is_stopped_ends_at_once_and_leaves_nothing() {
    let server = CloudServer::start(Dialect::S3);
    let world = world_on(&server);
    drop(protected_before(&world));
    server.fault(|faults| faults.delay = Duration::from_secs(2));
    let scratch = world.path("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let left = || std::fs::read_dir(&scratch).unwrap().count();
    for (name, word) in [("-INT", "SIGINT"), ("-TERM", "SIGTERM")] {
        let verify = Command::new(PROGRAM)
            .args(["verify", "--deep", "--json", "--store", &server.url("backups"), "--state", "state"])
            .current_dir(world.path("."))
            .envs(server.environment())
            .env("TMPDIR", &scratch)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        while left() == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(Command::new("kill").args([name, &verify.id().to_string()]).status().unwrap().success());
        let answer = verify.wait_with_output().unwrap();
        let told = String::from_utf8(answer.stderr).unwrap();
        assert_eq!(answer.status.code(), Some(1), "{told}");
        assert!(told.contains(&format!("{word}: the verification was not finished")), "{told}");
        assert_eq!(left(), 0);
    }
}

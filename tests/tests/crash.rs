//! `kill -9` at every named step of the pipeline and at random: nothing acknowledged is lost, and every commit that the
//! source's own log still holds is a restore point of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use everwhen_engine::failpoint;
use everwhen_tests::cloud::{CloudServer, Dialect};
use everwhen_tests::{Daemon, Oracle, World, image_of};
use rusqlite::Connection;

const PROGRAM: &str = env!("CARGO_BIN_EXE_everwhen-under-test");

fn insert(app: &mut Connection, id: i64, oracle: &mut Oracle) {
    app.execute("INSERT INTO t VALUES (?1, ?2)", rusqlite::params![id, "x".repeat(50)]).unwrap();
    oracle.remember(id, app);
}

/// Every remembered image is found among the restore points, in order, and the newest point is the newest image.
fn every_commit_is_a_point(world: &World, oracle: &Oracle, step: &str) {
    let points = world.points();
    let positions: Vec<&str> = points.iter().map(|point| point["position"].as_str().unwrap()).collect();
    let mut images = Vec::new();
    for (at, position) in positions.iter().enumerate() {
        let (answer, target) = world.restore(&["--position", position], &format!("check-{at}.db"));
        if answer.code == 4 {
            continue; // before the first complete base
        }
        let _ = answer.exits(0);
        images.push(image_of(&mut Connection::open(&target).unwrap()));
        std::fs::remove_file(target).unwrap();
    }
    let mut found = images.iter();
    for mark in oracle.marks() {
        let image = oracle.image(mark).unwrap();
        assert!(
            found.any(|restored| restored == image),
            "{step}: commit {mark} is no restore point\n{}",
            world.daemon_log()
        );
    }
    assert_eq!(
        images.last().map(Vec::as_slice),
        oracle.marks().last().and_then(|mark| oracle.image(mark)),
        "{step}"
    );
}

fn history_of(world: &World) -> serde_json::Value {
    world.everwhen(&["history", world.database().to_str().unwrap(), "--json"]).exits(0).json()
}

/// Steps that are only passed when the store does not take what it is given.
const WITH_THE_STORE_AWAY: [&str; 1] = ["part_spooled"];

fn commits_around_a_crash(point: &str, occurrence: u32) {
    let away = WITH_THE_STORE_AWAY.contains(&point);
    let server = away.then(|| CloudServer::start(Dialect::S3));
    let world = server.as_ref().map_or_else(
        || World::new(PROGRAM),
        |server| {
            let world = World::new(PROGRAM).with_store(&server.url("backups"));
            server.environment().iter().fold(world, |world, (name, value)| world.with_env(name, value))
        },
    );
    let mut app = world.connect();
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)").unwrap();
    let mut oracle = Oracle::default();
    let start_points = [
        "timeline_before_claim",
        "timeline_after_claim",
        "base_before_manifest",
        "base_after_manifest",
        "pack_after_put",
        "table_before_rename",
        "table_after_rename",
    ];
    let at_start = start_points.contains(&point) && occurrence == 1;
    if !at_start {
        let mut daemon = world.daemon();
        daemon.settle();
        assert!(daemon.terminate().success());
    }
    // Now with the trap: commits until it dies, and some after.
    let mut daemon = world.daemon_with(&[], &[("EVERWHEN_FAILPOINT", &format!("{point}:{occurrence}"))]);
    if let Some(server) = &server {
        daemon.settle();
        server.fault(|faults| faults.unavailable = u32::MAX);
    }
    let mut id = 0;
    let mut died = None;
    while died.is_none() && id < 150 {
        died = daemon.wait_for_death(Duration::from_millis(15)).ok();
        // Before there is a base, commits cannot be promised; remember only what comes after a first settled start.
        if at_start {
            app.execute("INSERT INTO t VALUES (?1, 'early')", [1000 + id]).unwrap();
        } else {
            insert(&mut app, id, &mut oracle);
        }
        id += 1;
    }
    // What is done at a quiet moment only, like letting go of the log.
    let died = died.or_else(|| daemon.wait_for_death(Duration::from_secs(20)).ok());
    let died =
        died.unwrap_or_else(|| panic!("{point}:{occurrence} was never passed\n{}", world.daemon_log()));
    assert_eq!(died.signal(), Some(9), "{point}");
    assert!(world.daemon_log().contains(&format!("failpoint {point}: dying")), "{}", world.daemon_log());
    if let Some(server) = &server {
        server.fault(|faults| faults.unavailable = 0);
    }
    daemon.kill();
    let mut daemon: Daemon<'_> = world.daemon();
    daemon.settle();
    for more in 0..3 {
        insert(&mut app, 500 + more, &mut oracle);
        daemon.settle();
    }
    every_commit_is_a_point(&world, &oracle, point);
    let _ = world.everwhen(&["verify", world.database().to_str().unwrap(), "--deep"]).exits(0);
}

#[test]
fn a_kill_at_each_named_step_loses_no_commit() {
    for point in failpoint::ALL {
        commits_around_a_crash(point, 1);
    }
}

#[test]
fn a_kill_at_a_later_passage_of_the_hot_steps_loses_no_commit() {
    for point in ["part_closed", "journal_appended", "segment_before_put", "segment_after_put"] {
        commits_around_a_crash(point, 4);
    }
}

#[test]
fn kills_at_random_moments_lose_no_commit() {
    let world = World::new(PROGRAM);
    let mut app = world.connect();
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)").unwrap();
    let mut oracle = Oracle::default();
    let mut daemon = world.daemon();
    daemon.settle();
    let mut id = 0;
    for round in 0..8u64 {
        for _ in 0..(5 + round * 7 % 11) {
            insert(&mut app, id, &mut oracle);
            id += 1;
            std::thread::sleep(Duration::from_millis(round * 13 % 29));
        }
        daemon.kill();
        // Some commits while nobody looks: the log still has them.
        for _ in 0..round % 3 {
            insert(&mut app, id, &mut oracle);
            id += 1;
        }
        daemon = world.daemon();
    }
    daemon.settle();
    every_commit_is_a_point(&world, &oracle, "random kills");
}

/// What is captured behind the reset is in no part yet: only the note of where the log went on leads there.
#[test]
fn kills_after_the_log_was_begun_anew_lose_no_commit() {
    let world = World::new(PROGRAM);
    let mut app = world.connect();
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)").unwrap();
    let mut oracle = Oracle::default();
    let mut daemon = world.daemon();
    daemon.settle();
    let mut id = 0;
    for mode in ["TRUNCATE", "RESTART", "TRUNCATE"] {
        let mut commits = |count, app: &mut Connection| {
            for _ in 0..count {
                insert(app, id, &mut oracle);
                id += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        commits(3, &mut app);
        let checkpoint = format!("PRAGMA wal_checkpoint({mode})");
        let busy: i64 = app.query_row(&checkpoint, [], |row| row.get(0)).unwrap();
        assert_eq!(busy, 0, "{mode}");
        commits(5, &mut app);
        std::thread::sleep(Duration::from_millis(100));
        daemon.kill();
        commits(2, &mut app);
        daemon = world.daemon();
        daemon.settle();
    }
    every_commit_is_a_point(&world, &oracle, "kills behind a reset");
    let history = history_of(&world);
    let gaps = history["gaps"].as_array().unwrap();
    assert!(gaps.iter().all(|gap| !gap["reason"].as_str().unwrap().contains("one by one")), "{history}");
}

/// What happens to the database while nobody looks, so that its log does not say how its state came about.
type Unseen = fn(&mut Connection);

fn rewritten(app: &mut Connection) {
    for id in 0..20 {
        app.execute("INSERT INTO t VALUES (?1, 'unseen')", [100 + id]).unwrap();
        app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    }
}

fn repaged(app: &mut Connection) {
    app.execute_batch("PRAGMA journal_mode=delete; PRAGMA page_size=1024; VACUUM; PRAGMA journal_mode=wal")
        .unwrap();
    app.execute("INSERT INTO t VALUES (100, 'unseen')", []).unwrap();
}

fn gap_around_a_crash(point: &str, unseen: Unseen) {
    let world = World::new(PROGRAM);
    let mut app = world.connect();
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)").unwrap();
    let mut oracle = Oracle::default();
    let mut daemon = world.daemon();
    daemon.settle();
    insert(&mut app, 1, &mut oracle);
    daemon.settle();
    assert!(daemon.terminate().success());
    unseen(&mut app);
    let mut daemon = world.daemon_with(&[], &[("EVERWHEN_FAILPOINT", point)]);
    let died = (0..800).any(|_| daemon.wait_for_death(Duration::from_millis(25)).is_ok());
    assert!(died, "{point} was never passed");
    let mut daemon = world.daemon();
    daemon.settle();
    insert(&mut app, 2, &mut oracle);
    daemon.settle();
    let history = history_of(&world);
    assert!(!history["gaps"].as_array().unwrap().is_empty(), "{point}: {history}");
    let (answer, target) = world.restore(&["--latest"], "latest.db");
    let _ = answer.exits(0);
    assert!(image_of(&mut Connection::open(target).unwrap()) == oracle.image(2).unwrap(), "{point}");
    let _ = world.everwhen(&["verify", world.database().to_str().unwrap(), "--deep"]).exits(0);
}

#[test]
fn a_kill_while_a_gap_is_recorded_never_loses_the_gap() {
    let points = [
        "table_before_rename",
        "table_after_rename",
        "found_not_recorded",
        "part_closed",
        "journal_appended",
        "segment_before_put",
        "segment_after_put",
    ];
    for point in points {
        gap_around_a_crash(point, rewritten);
    }
}

#[test]
fn a_kill_while_a_new_page_size_is_recorded_never_loses_the_gap() {
    let points = [
        "table_before_rename",
        "table_after_rename",
        "found_not_recorded",
        "part_closed",
        "journal_appended",
        "part_spooled",
        "pack_after_put",
        "base_before_manifest",
        "base_after_manifest",
        "segment_before_put",
        "segment_after_put",
    ];
    for point in points {
        gap_around_a_crash(point, repaged);
    }
}

#[test]
fn what_was_called_durable_survives_a_kill_and_the_loss_of_the_local_state() {
    let world = World::new(PROGRAM);
    let mut app = world.connect();
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)").unwrap();
    let mut oracle = Oracle::default();
    let mut daemon = world.daemon();
    daemon.settle();
    insert(&mut app, 1, &mut oracle);
    daemon.settle();
    let durable = world.status().unwrap()["durable"]["position"].as_str().unwrap().to_owned();
    daemon.kill();
    std::fs::remove_dir_all(world.repository().join("local")).unwrap();
    let (answer, target) = world.restore(&["--position", &durable], "durable.db");
    let _ = answer.exits(0);
    assert!(image_of(&mut Connection::open(target).unwrap()) == oracle.image(1).unwrap());
    // And protection goes on, on a timeline of its own, without a gap: the state is the same.
    insert(&mut app, 2, &mut oracle);
    let mut daemon = world.daemon();
    daemon.settle();
    insert(&mut app, 3, &mut oracle);
    daemon.settle();
    let (answer, target) = world.restore(&["--latest"], "latest.db");
    let _ = answer.exits(0);
    assert!(image_of(&mut Connection::open(target).unwrap()) == oracle.image(3).unwrap());
    let history = history_of(&world);
    assert_eq!(history["timelines"].as_array().unwrap().len(), 2, "{history}");
}

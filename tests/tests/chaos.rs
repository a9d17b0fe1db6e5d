//! Several writers, hostile checkpoints, killed writers and a killed daemon at once: every commit is a point, each point
//! is exactly one commit after the one before, and the last is the source.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use everwhen_tests::{World, logical_dump};
use rusqlite::Connection;

const PROGRAM: &str = env!("CARGO_BIN_EXE_everwhen-under-test");

/// A small generator, so that a run can be told apart by its seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % bound
    }
}

fn writer(world: &World, seed: u64, until: &AtomicBool, commits: &AtomicI64) {
    let mut chance = Chance(seed);
    let open = |chance: &mut Chance| {
        let connection = Connection::open(world.database()).unwrap();
        connection.busy_timeout(Duration::from_secs(20)).unwrap();
        connection.pragma_update(None, "cache_size", 8 + chance.below(2000) as i64).unwrap();
        connection
            .pragma_update(None, "synchronous", ["off", "normal", "full"][chance.below(3) as usize])
            .unwrap();
        connection
            .pragma_update(None, "wal_autocheckpoint", [0, 5, 100, 1000][chance.below(4) as usize])
            .unwrap();
        connection
    };
    let mut connection = open(&mut chance);
    while !until.load(Ordering::Relaxed) {
        match chance.below(40) {
            0 => connection = open(&mut chance),
            1 => {
                let _ = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
            }
            2 => {
                let kind = ["FULL", "RESTART", "TRUNCATE"][chance.below(3) as usize];
                let _ = connection.query_row(&format!("PRAGMA wal_checkpoint({kind})"), [], |_| Ok(()));
            }
            3..=5 => {
                let transaction = connection.unchecked_transaction().unwrap();
                transaction.execute("INSERT INTO t(v) VALUES (randomblob(30000))", []).unwrap();
                drop(transaction);
            }
            _ => {
                let rows = chance.below(6) + 1;
                let transaction = connection.unchecked_transaction().unwrap();
                if transaction.execute("UPDATE n SET commits = commits + 1", []).is_err() {
                    continue;
                }
                for _ in 0..rows {
                    transaction
                        .execute("INSERT INTO t(v) VALUES (randomblob(?1))", [chance.below(900) as i64])
                        .unwrap();
                }
                transaction.execute("DELETE FROM t WHERE id % 17 = ?1", [chance.below(17) as i64]).unwrap();
                if transaction.commit().is_ok() {
                    commits.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        std::thread::sleep(Duration::from_micros(chance.below(3000)));
    }
}

fn chaos(kills_of_the_daemon: u32) {
    let world = World::new(PROGRAM);
    let app = world.connect();
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, v BLOB); CREATE TABLE n(commits INTEGER); INSERT INTO n VALUES (0)")
        .unwrap();
    let mut daemon = world.daemon();
    daemon.settle();
    let (stop, commits) = (AtomicBool::new(false), AtomicI64::new(0));
    std::thread::scope(|scope| {
        for seed in 1..=3 {
            let (world, stop, commits) = (&world, &stop, &commits);
            scope.spawn(move || writer(world, seed, stop, commits));
        }
        let until = Instant::now() + Duration::from_secs(6);
        for round in 0..kills_of_the_daemon {
            std::thread::sleep(Duration::from_millis(900 + u64::from(round) * 137));
            let old = std::mem::replace(&mut daemon, world.daemon());
            old.kill();
        }
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        stop.store(true, Ordering::Relaxed);
    });
    if kills_of_the_daemon > 0 {
        // The daemon started while the old one still held its state may have been refused.
        drop(daemon);
        daemon = world.daemon();
    }
    daemon.settle();
    let points = world.points();
    let acknowledged = commits.load(Ordering::Relaxed);
    let (answer, target) = world.restore(&["--latest"], "latest.db");
    let _ = answer.exits(0);
    assert_eq!(logical_dump(&target), logical_dump(&world.database()));
    if kills_of_the_daemon == 0 {
        assert_eq!(points.len() as i64, acknowledged + 1, "every commit is a point, and the state found");
        for at in (0..points.len()).step_by(points.len() / 25 + 1) {
            let (answer, target) =
                world.restore(&["--position", points[at]["position"].as_str().unwrap()], "sample.db");
            let _ = answer.exits(0);
            let sample = Connection::open(&target).unwrap();
            let count: i64 = sample.query_row("SELECT commits FROM n", [], |row| row.get(0)).unwrap();
            assert_eq!(count, at as i64, "point {at}");
            let check: String = sample.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(check, "ok");
            drop(sample);
            std::fs::remove_file(target).unwrap();
        }
    }
    let _ = world.everwhen(&["verify", world.database().to_str().unwrap(), "--deep"]).exits(0);
}

#[test]
fn three_writers_and_hostile_checkpoints() {
    chaos(0);
}

#[test]
fn three_writers_hostile_checkpoints_and_a_killed_daemon() {
    chaos(4);
}

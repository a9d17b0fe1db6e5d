//! Several applications at once, each a process: spills, rollbacks, hostile checkpoints, any `synchronous`, killed and
//! started again; in one run the daemon is killed as well. Every transaction stores the running number of its writer and
//! a digest of the whole content with it, so a restored file tells by itself whether it is one commit's exact state.
//! Every restore point is restored, its digest computed anew, and each is one commit after the one before.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use everwhen_tests::{States, World, logical_dump};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, TransactionBehavior};

const PROGRAM: &str = env!("CARGO_BIN_EXE_everwhen-under-test");
/// For the process of an application: its seed, its number and the database.
const APPLICATION: &str = "EVERWHEN_TEST_APPLICATION";
const WRITERS: i64 = 3;

/// A small generator, so that a run can be told apart by its seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % bound
    }
}

/// Of everything but the digest itself.
fn digest(connection: &Connection) -> i64 {
    let mut hasher = DefaultHasher::new();
    for query in ["SELECT * FROM writers ORDER BY id", "SELECT * FROM t ORDER BY id"] {
        let mut rows = connection.prepare_cached(query).unwrap();
        let columns = rows.column_count();
        let mut rows = rows.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            for column in 0..columns {
                match row.get_ref(column).unwrap() {
                    ValueRef::Integer(value) => value.hash(&mut hasher),
                    ValueRef::Blob(value) => value.hash(&mut hasher),
                    other => panic!("{other:?}"),
                }
            }
        }
        0xff_u8.hash(&mut hasher);
    }
    hasher.finish() as i64
}

/// How many commits each writer has made, when the digest is right.
fn numbers(path: &Path) -> Result<Vec<i64>, String> {
    let connection = Connection::open(path).unwrap();
    let check: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    let stored: i64 = connection.query_row("SELECT d FROM digest", [], |row| row.get(0)).unwrap();
    let mut writers = connection.prepare("SELECT n FROM writers ORDER BY id").unwrap();
    let numbers: Vec<i64> = writers.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    if check == "ok" && stored == digest(&connection) {
        Ok(numbers)
    } else {
        Err(format!("after {numbers:?}: {check}, or another digest"))
    }
}

fn open(path: &Path, chance: &mut Chance) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(Duration::from_secs(20)).unwrap();
    let settings = format!(
        "PRAGMA cache_size={}; PRAGMA synchronous={}; PRAGMA wal_autocheckpoint={};",
        8 + chance.below(60),
        ["off", "normal", "full"][chance.below(3) as usize],
        [0, 5, 100, 1000][chance.below(4) as usize],
    );
    connection.execute_batch(&settings).unwrap();
    connection
}

/// One numbered transaction; its number when the commit was acknowledged.
fn commit(connection: &mut Connection, writer: i64, chance: &mut Chance) -> rusqlite::Result<Option<i64>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let number =
        transaction.query_row("UPDATE writers SET n = n + 1 WHERE id = ?1 RETURNING n", [writer], |row| {
            row.get::<_, i64>(0)
        })?;
    if chance.below(8) == 0 {
        // More than the cache holds: it spills into the log before it is committed or rolled back.
        transaction.execute("INSERT INTO t(v) VALUES (randomblob(90000))", [])?;
        if chance.below(3) > 0 {
            return Ok(None);
        }
        transaction.execute("UPDATE t SET v = zeroblob(30) WHERE length(v) > 30000", [])?;
    }
    for _ in 0..=chance.below(5) {
        transaction.execute("INSERT INTO t(v) VALUES (randomblob(?1))", [chance.below(900) as i64])?;
    }
    transaction.execute("DELETE FROM t WHERE id % 13 = ?1", [chance.below(13) as i64])?;
    transaction.execute("DELETE FROM t WHERE id < (SELECT max(id) FROM t) - 150", [])?;
    let digest = digest(&transaction);
    transaction.execute("UPDATE digest SET d = ?1", [digest])?;
    transaction.commit()?;
    Ok(Some(number))
}

fn write_until_stopped(path: &Path, writer: i64, mut chance: Chance) {
    let mut connection = open(path, &mut chance);
    let mut acknowledged = std::fs::File::options()
        .create(true)
        .append(true)
        .open(path.with_extension(format!("{writer}.acks")))
        .unwrap();
    while !path.with_extension("stop").exists() {
        match chance.below(60) {
            0 => connection = open(path, &mut chance),
            1..=3 => {
                let kind = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][chance.below(4) as usize];
                let _ = connection.query_row(&format!("PRAGMA wal_checkpoint({kind})"), [], |_| Ok(()));
            }
            _ => {
                if let Ok(Some(number)) = commit(&mut connection, writer, &mut chance) {
                    acknowledged.write_all(format!("{number}\n").as_bytes()).unwrap();
                }
            }
        }
        std::thread::sleep(Duration::from_micros(chance.below(20_000)));
    }
}

#[test]
#[ignore = "runs as an application process of the other tests"]
fn application_process() {
    let Ok(job) = std::env::var(APPLICATION) else { return };
    let words: Vec<_> = job.splitn(3, ' ').collect();
    let (seed, writer) = (words[0].parse().unwrap(), words[1].parse().unwrap());
    write_until_stopped(Path::new(words[2]), writer, Chance(seed));
}

fn start_writer(database: &Path, writer: i64, seed: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["application_process", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(APPLICATION, format!("{seed} {writer} {}", database.display()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// The numbers whose commits this writer was told of.
fn acknowledged(database: &Path, writer: i64) -> Vec<i64> {
    let text = std::fs::read_to_string(database.with_extension(format!("{writer}.acks"))).unwrap();
    // A kill may have cut the last one short.
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')?.parse().ok()).collect()
}

fn chaos(seed: u64, kills_the_daemon: bool) {
    let world = World::new(PROGRAM);
    let database = world.database();
    let app = world.connect();
    app.execute_batch(
        "CREATE TABLE t(id INTEGER PRIMARY KEY AUTOINCREMENT, v BLOB); CREATE TABLE digest(d INTEGER);
         CREATE TABLE writers(id INTEGER PRIMARY KEY, n INTEGER); INSERT INTO digest VALUES (0);",
    )
    .unwrap();
    for writer in 0..WRITERS {
        app.execute("INSERT INTO writers VALUES (?1, 0)", [writer]).unwrap();
    }
    app.execute("UPDATE digest SET d = ?1", [digest(&app)]).unwrap();
    let mut daemon = world.daemon();
    daemon.settle();
    let mut chance = Chance(seed);
    let mut writers: Vec<Child> =
        (0..WRITERS).map(|writer| start_writer(&database, writer, seed * 100 + writer as u64)).collect();
    let until = Instant::now() + Duration::from_secs(6);
    let mut restarts = seed * 1000;
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(200 + chance.below(500)));
        if kills_the_daemon && chance.below(3) == 0 {
            daemon.kill();
            std::thread::sleep(Duration::from_millis(chance.below(200)));
            daemon = world.daemon();
        } else {
            let writer = chance.below(WRITERS as u64) as usize;
            writers[writer].kill().unwrap();
            writers[writer].wait().unwrap();
            restarts += 1;
            writers[writer] = start_writer(&database, writer as i64, restarts);
        }
    }
    std::fs::write(database.with_extension("stop"), "").unwrap();
    for mut writer in writers {
        assert!(writer.wait().unwrap().success());
    }
    daemon.settle();
    assert!(daemon.terminate().success());
    drop(app);

    let states = States::open(&world.repository(), "app");
    let points = states.points();
    let holes = states.holes();
    let restored: Vec<Vec<i64>> = states
        .each(&points, numbers)
        .into_iter()
        .zip(&points)
        .map(|(found, point)| {
            found.unwrap_or_else(|wrong| panic!("seed {seed}, {}: {wrong}", point.position))
        })
        .collect();
    assert_eq!(restored[0], [0; WRITERS as usize], "the state found");
    if !kills_the_daemon {
        assert!(holes.is_empty(), "seed {seed}: {holes:?}\n{}", world.daemon_log());
    }
    for (states, around) in restored.windows(2).zip(points.windows(2)) {
        let (before, after) = (&states[0], &states[1]);
        let steps: Vec<i64> = before.iter().zip(after).map(|(before, after)| after - before).collect();
        let in_a_hole =
            holes.iter().any(|hole| hole.before == around[0].position && hole.after == around[1].position);
        let sound = if in_a_hole {
            steps.iter().all(|step| *step >= 0)
        } else {
            steps.iter().all(|step| *step >= 0) && steps.iter().sum::<i64>() == 1
        };
        assert!(
            sound,
            "seed {seed}: {before:?} at {}, {after:?} at {}, gaps {holes:?}",
            around[0].position, around[1].position
        );
    }
    // What a writer was told of is a point, or lies between the two ends of a recorded gap.
    let mut told = 0;
    for writer in 0..WRITERS {
        let place = writer as usize;
        let captured: std::collections::BTreeSet<i64> =
            restored.iter().map(|numbers| numbers[place]).collect();
        for number in acknowledged(&database, writer) {
            told += 1;
            let of = |position| {
                points.iter().position(|point| point.position == position).map(|at| restored[at][place])
            };
            let in_a_hole =
                holes.iter().any(|hole| of(hole.before) < Some(number) && of(hole.after) >= Some(number));
            assert!(
                captured.contains(&number) || in_a_hole,
                "seed {seed}: commit {number} of {writer} is lost"
            );
        }
    }
    assert!(told > 100 && points.len() > 100, "{told} commits, {} points", points.len());
    println!("seed {seed}: {told} acknowledged, {} points, {} gaps", points.len(), holes.len());
    assert_eq!(numbers(&database).as_ref(), Ok(restored.last().unwrap()), "the newest point is the source");
    let (answer, target) = world.restore(&["--latest"], "latest.db");
    let _ = answer.exits(0);
    assert_eq!(logical_dump(&target), logical_dump(&database));
    let _ = world.everwhen(&["verify", database.to_str().unwrap(), "--deep"]).exits(0);
}

#[test]
fn every_commit_of_three_killed_writers_is_a_point_of_its_own() {
    chaos(1, false);
}

#[test]
fn every_commit_of_three_killed_writers_under_a_killed_daemon_is_a_point_or_in_a_recorded_gap() {
    chaos(2, true);
}

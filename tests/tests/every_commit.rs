//! Every commit is a restore point, and each gives back the database exactly as it was.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::time::{Duration, Instant};

use everwhen_tests::{Oracle, States, World, image_of};
use rusqlite::{Connection, params};

const PROGRAM: &str = env!("CARGO_BIN_EXE_everwhen-under-test");

fn restored_image(path: &std::path::Path) -> Vec<u8> {
    image_of(&mut Connection::open(path).unwrap())
}

#[test]
fn three_hundred_paced_commits_are_three_hundred_points_each_byte_equal() {
    let world = World::new(PROGRAM);
    let mut app = world.connect();
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); CREATE INDEX i ON t(v)").unwrap();
    let mut daemon = world.daemon();
    daemon.settle();
    let mut oracle = Oracle::default();
    let mut next = Instant::now();
    for id in 0..300i64 {
        app.execute("INSERT INTO t VALUES (?1, ?2)", params![id, format!("value {}", id * 7919 % 300)])
            .unwrap();
        oracle.remember(id, &mut app);
        next += Duration::from_millis(50);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    daemon.settle();
    let points = world.points();
    assert_eq!(points.len(), 301, "the state found, and 300 commits");
    // Every one in this process; each tenth by the command as well.
    let states = States::open(&world.repository(), "app");
    let all = states.points();
    let images = states.each(&all[1..], restored_image);
    assert_eq!(images.len(), 300);
    for (id, image) in (0..).zip(&images) {
        assert!(
            image.as_slice() == oracle.image(id).unwrap(),
            "commit {id} at {}",
            all[id as usize + 1].position
        );
    }
    for (id, point) in oracle.marks().zip(&points[1..]).filter(|(id, _)| id % 10 == 9) {
        let position = point["position"].as_str().unwrap();
        let (answer, target) = world.restore(&["--position", position], &format!("restored-{id}.db"));
        let answer = answer.exits(0).json();
        assert_eq!(answer["position"], position);
        assert!(restored_image(&target) == oracle.image(id).unwrap(), "commit {id} at {position}");
        std::fs::remove_file(target).unwrap();
    }
    assert!(daemon.terminate().success());
}

#[test]
fn a_saturated_writers_commits_are_all_points() {
    let world = World::new(PROGRAM);
    let mut app = world.connect();
    app.pragma_update(None, "synchronous", "off").unwrap();
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)").unwrap();
    let mut daemon = world.daemon();
    daemon.settle();
    let busy = std::cell::Cell::new(0);
    let mut oracle = Oracle::default();
    for id in 0..5000i64 {
        while app.execute("INSERT INTO t VALUES (?1, 'some words')", [id]).is_err() {
            busy.set(busy.get() + 1);
        }
        if id % 50 == 7 {
            oracle.remember(id, &mut app);
        }
    }
    daemon.settle();
    let points = world.points();
    assert_eq!(points.len(), 5001);
    let states = States::open(&world.repository(), "app");
    let all = states.points();
    let sample: Vec<_> = oracle.marks().map(|id| all[id as usize + 1]).collect();
    assert_eq!(sample.len(), 100);
    for (id, image) in oracle.marks().zip(states.each(&sample, restored_image)) {
        assert!(image == oracle.image(id).unwrap(), "commit {id}");
    }
    // And no two points are the same commit: each holds one row more.
    let thinned: Vec<_> = all.iter().copied().step_by(11).collect();
    let count = |path: &std::path::Path| {
        let connection = Connection::open(path).unwrap();
        connection.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    for (at, rows) in (0_i64..).step_by(11).zip(states.each(&thinned, count)) {
        assert_eq!(rows, at);
    }
}

#[test]
fn a_time_between_two_commits_gives_the_first_of_them() {
    let world = World::new(PROGRAM);
    let app = world.connect();
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY)").unwrap();
    let mut daemon = world.daemon();
    daemon.settle();
    let mut moments = Vec::new();
    for id in 0..20i64 {
        app.execute("INSERT INTO t VALUES (?1)", [id]).unwrap();
        // The moment the application knows that its commit is done: a restore to it must have the commit.
        moments.push(std::time::SystemTime::now());
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon.settle();
    for (id, moment) in moments.iter().enumerate() {
        let micros = moment.duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as i64;
        let time = everwhen_engine::time::Timestamp::from_micros(micros).to_string();
        let (answer, target) = world.restore(&["--at", &time], &format!("{id}.db"));
        let answer = answer.exits(0).json();
        let count: i64 = Connection::open(target)
            .unwrap()
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap();
        assert_eq!(count, id as i64 + 1, "at {time}: {answer}");
    }
}

#[test]
fn vacuum_growth_and_shrinking_are_restored_exactly() {
    let world = World::new(PROGRAM);
    let mut app = world.connect();
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)").unwrap();
    let mut daemon = world.daemon();
    daemon.settle();
    let mut oracle = Oracle::default();
    let steps = [
        "INSERT INTO t SELECT value, randomblob(3000) FROM generate_series(1, 400)",
        "DELETE FROM t WHERE id % 3 <> 0",
        "VACUUM",
        "UPDATE t SET v = zeroblob(9000) WHERE id % 2 = 0",
        "DROP TABLE t",
        "VACUUM",
        "CREATE TABLE u(x); INSERT INTO u VALUES (1)",
    ];
    let mut mark = 0;
    for step in steps {
        let step = step.replace(
            "generate_series(1, 400)",
            "(WITH RECURSIVE c(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM c WHERE value < 400) SELECT value FROM c)",
        );
        for statement in step.split("; ") {
            app.execute_batch(statement).unwrap();
            mark += 1;
            oracle.remember(mark, &mut app);
        }
    }
    daemon.settle();
    let points = world.points();
    assert_eq!(points.len() as i64, mark + 1);
    for (mark, point) in oracle.marks().zip(&points[1..]) {
        let (answer, target) =
            world.restore(&["--position", point["position"].as_str().unwrap()], &format!("{mark}.db"));
        let _ = answer.exits(0);
        assert!(restored_image(&target) == oracle.image(mark).unwrap(), "after step {mark}");
    }
    let answer =
        world.everwhen(&["verify", world.database().to_str().unwrap(), "--deep", "--json"]).exits(0).json();
    assert!(answer.to_string().contains("problems"), "{answer}");
}

#[test]
fn nothing_of_the_users_database_is_changed_by_protecting_it() {
    let world = World::new(PROGRAM);
    let mut app = world.connect();
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY); INSERT INTO t VALUES (1)").unwrap();
    let before = (
        image_of(&mut app),
        app.query_row("PRAGMA journal_mode", [], |row| row.get::<_, String>(0)).unwrap(),
    );
    let mut daemon = world.daemon();
    daemon.settle();
    assert!(daemon.terminate().success());
    let after = (
        image_of(&mut app),
        app.query_row("PRAGMA journal_mode", [], |row| row.get::<_, String>(0)).unwrap(),
    );
    assert!(before == after);
    let tables: i64 = app.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
    assert_eq!(tables, 1);
}

//! Closing any descriptor of a file drops all POSIX locks that its process holds on it: a daemon that opens and closes
//! the database or its index in whatever corner loses its hold of the log, in silence. So none may ever do.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use everwhen_tests::{World, logical_dump};
use inotify::{EventMask, Inotify, WatchMask};

const PROGRAM: &str = env!("CARGO_BIN_EXE_everwhen-under-test");

/// What was closed since the last look.
fn closed(watch: &mut Inotify) -> Vec<EventMask> {
    let mut buffer = [0; 4096];
    match watch.read_events(&mut buffer) {
        Ok(events) => events.map(|event| event.mask).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Vec::new(),
        Err(error) => panic!("{error}"),
    }
}

fn watch(path: &Path) -> Inotify {
    let watch = Inotify::init().unwrap();
    watch.watches().add(path, WatchMask::CLOSE).unwrap();
    watch
}

/// Images are looked after in the engine's `protect.rs`: here none is taken but at the start. inotify tells of every
/// process: the application keeps its one connection open, and the commands beside the daemon have no reason to open
/// the database either.
#[test]
fn the_daemon_never_closes_the_database_or_its_index() {
    let world = World::new(PROGRAM);
    let app = world.connect();
    app.execute_batch(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB); INSERT INTO t VALUES (-1, zeroblob(9))",
    )
    .unwrap();
    let mut daemon = world.daemon();
    daemon.settle();
    let index = world.path("app.db-shm");
    let mut watches = [watch(&world.database()), watch(&index)];
    let mut none_closed = |after: &str| {
        for (watch, name) in watches.iter_mut().zip(["the database", "its index"]) {
            let closed = closed(watch);
            assert!(closed.is_empty(), "{after}: {name} was opened and closed: {closed:?}");
        }
    };
    let fill = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
                INSERT OR REPLACE INTO t SELECT i, randomblob(900) FROM n";
    for round in 0..3 {
        for id in 0..100 {
            app.execute("INSERT OR REPLACE INTO t VALUES (?1, randomblob(300))", [id]).unwrap();
        }
        none_closed("commits");
        app.execute(fill, []).unwrap();
        app.execute_batch("DELETE FROM t WHERE id % 3 = 0; VACUUM").unwrap();
        daemon.settle();
        none_closed("a bulk load and VACUUM");
        for mode in ["PASSIVE", "FULL", "RESTART", "TRUNCATE"] {
            app.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(())).unwrap();
            app.execute("INSERT OR REPLACE INTO t VALUES (7, randomblob(300))", []).unwrap();
        }
        daemon.settle();
        none_closed("checkpoints");
        // By the name alone, so that the command has the daemon look, and by its path.
        assert_eq!(world.status().unwrap()["health"], "ok");
        let _ = world.everwhen(&["history", "app.db", "--json"]).exits(0);
        none_closed("status and history");
        let (answer, target) = world.restore(&["--latest"], &format!("beside-{round}.db"));
        let _ = answer.exits(0);
        let rows: i64 = app.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(logical_dump(&target).len() as i64, rows + 1);
        none_closed("a restore beside it");
        // Past the next look at a quiet moment: it lets go of the log, and looks at the names.
        std::thread::sleep(std::time::Duration::from_millis(1500));
        none_closed("a quiet moment");
    }
    none_closed("all of it");
    // The watches tell: this is what they would see.
    for (path, watch) in [world.database(), index].iter().zip(&mut watches) {
        drop(std::fs::File::open(path).unwrap());
        assert_eq!(closed(watch).len(), 1);
    }
    assert!(daemon.terminate().success());
}

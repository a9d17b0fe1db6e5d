//! A database over 1 GiB, whose lock-byte page SQLite never stores: through capture, base, restore and deep
//! verification.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use everwhen_tests::World;
use rusqlite::Connection;

const PROGRAM: &str = env!("CARGO_BIN_EXE_everwhen-under-test");
const PAGE: u64 = 65_536;
/// The page that holds the byte at 1 GiB.
const LOCK_BYTE_PAGE: u64 = (1 << 30) / PAGE + 1;

/// The first page in which two files differ.
fn differs(one: &Path, other: &Path) -> Option<u64> {
    let open = |path| std::io::BufReader::with_capacity(1 << 20, std::fs::File::open(path).unwrap());
    let (mut one, mut other) = (open(one), open(other));
    let (mut left, mut right) = (vec![0; PAGE as usize], vec![0; PAGE as usize]);
    let pages = one.get_ref().metadata().unwrap().len() / PAGE;
    if other.get_ref().metadata().unwrap().len() / PAGE != pages {
        return Some(pages + 1);
    }
    (1..=pages).find(|_| {
        one.read_exact(&mut left).unwrap();
        other.read_exact(&mut right).unwrap();
        left != right
    })
}

#[test]
fn a_database_over_one_gibibyte_is_restored_byte_for_byte_and_verified() {
    let world = World::new(PROGRAM);
    let setup = Connection::open(world.database()).unwrap();
    setup
        .execute_batch(
            "PRAGMA page_size=65536; PRAGMA journal_mode=wal; CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB);
             PRAGMA wal_checkpoint(truncate);",
        )
        .unwrap();
    drop(setup);
    // A sparse file whose header says that it is as long: the pages up to the lock-byte page are unused.
    let pages = (LOCK_BYTE_PAGE - 1) as u32;
    let file = std::fs::OpenOptions::new().write(true).open(world.database()).unwrap();
    file.set_len(u64::from(pages) * PAGE).unwrap();
    file.write_all_at(&pages.to_be_bytes(), 28).unwrap();
    drop(file);
    let app = world.connect();
    app.execute_batch("PRAGMA synchronous=off").unwrap();
    let mut daemon = world.daemon();
    daemon.settle();
    // Past the lock-byte page, and on both sides of it.
    app.execute("INSERT INTO t VALUES (1, randomblob(300000))", []).unwrap();
    app.execute("INSERT INTO t VALUES (2, zeroblob(200000))", []).unwrap();
    app.execute("UPDATE t SET v = randomblob(300000) WHERE id = 1", []).unwrap();
    daemon.settle();
    let long: i64 = app.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    let long = long as u64;
    assert!(long > LOCK_BYTE_PAGE + 4, "{long}");
    assert_eq!(world.points().len(), 4);
    assert!(daemon.terminate().success());
    app.query_row("PRAGMA wal_checkpoint(truncate)", [], |_| Ok(())).unwrap();
    let (answer, target) = world.restore(&["--latest"], "restored.db");
    let answer = answer.exits(0).json();
    assert_eq!(answer["bytes"], long * PAGE, "{answer}");
    assert_eq!(differs(&target, &world.database()), None);
    let restored = Connection::open(&target).unwrap();
    let rows = |connection: &Connection| {
        let query = "SELECT group_concat(id || hex(substr(v, 299000)), ',') FROM t";
        connection.query_row(query, [], |row| row.get::<_, String>(0)).unwrap()
    };
    assert_eq!(rows(&restored), rows(&app));
    let verdict = world.everwhen(&["verify", "app.db", "--deep", "--json"]).exits(0).json();
    assert_eq!(verdict["sound"], true, "{verdict}");
}

//! Every kind of bad input gets a clear error, the right exit code, and changes nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::process::Command;

use everwhen_tests::World;

const PROGRAM: &str = env!("CARGO_BIN_EXE_everwhen-under-test");

fn protected() -> World {
    let world = World::new(PROGRAM);
    let app = world.connect();
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY); INSERT INTO t VALUES (1)").unwrap();
    let mut daemon = world.daemon();
    daemon.settle();
    app.execute("INSERT INTO t VALUES (2)", []).unwrap();
    daemon.settle();
    assert!(daemon.terminate().success());
    world
}

#[test]
fn times_without_a_point_are_refused_with_the_nearest_points() {
    let world = protected();
    let (future, _) = world.restore(&["--at", "2099-01-01T00:00:00Z"], "x.db");
    let error = future.exits(4).error();
    assert!(error["nearest"]["before"]["position"].is_string(), "{error}");
    let (past, _) = world.restore(&["--at", "2001-01-01T00:00:00Z"], "x.db");
    let error = past.exits(4).error();
    assert!(error["nearest"]["after"]["position"].is_string(), "{error}");
    let (unknown, _) = world.restore(&["--position", "1/00000000000000ff"], "x.db");
    assert!(unknown.exits(4).error()["nearest"]["before"]["position"].is_string());
    let (timeline, _) = world.restore(&["--position", "9/0000000000000001"], "x.db");
    let _ = timeline.exits(4);
    assert!(!world.path("x.db").exists());
}

#[test]
fn texts_that_are_no_times_and_no_positions_are_usage_errors() {
    let world = protected();
    for point in [["--at", "teatime"], ["--position", "latest"], ["--at", ""]] {
        let (answer, _) = world.restore(&point, "x.db");
        let _ = answer.exits(2);
    }
    let answer = world.everwhen(&["points", "app.db", "--from", "2026-01-02", "--to", "2026-01-01"]);
    let _ = answer.exits(2);
}

#[test]
fn targets_that_exist_or_cannot_be_written_are_refused_untouched() {
    let world = protected();
    std::fs::write(world.path("x.db"), b"precious").unwrap();
    let (exists, target) = world.restore(&["--latest"], "x.db");
    let _ = exists.exits(7);
    assert_eq!(std::fs::read(target).unwrap(), b"precious");
    let (nowhere, _) = world.restore(&["--latest"], "no/such/folder/x.db");
    let _ = nowhere.exits(7);
    std::fs::write(world.path("y.db-wal"), b"an old log").unwrap();
    let (sidecar, target) = world.restore(&["--latest"], "y.db");
    let _ = sidecar.exits(7);
    assert!(!target.exists());
    let (itself, _) = world.restore(&["--latest"], "app.db");
    let _ = itself.exits(7);
    let (planned, _) = world.restore(&["--latest", "--dry-run"], "x.db");
    let _ = planned.exits(7);
    let (planned, target) = world.restore(&["--latest", "--dry-run"], "free.db");
    let _ = planned.exits(0);
    assert!(!target.exists());
}

#[test]
fn sources_that_cannot_be_captured_say_what_to_do() {
    let world = World::new(PROGRAM);
    std::fs::write(world.database(), "this is not a database, ".repeat(100)).unwrap();
    let answer =
        world.everwhen(&["run", world.database().to_str().unwrap(), "--listen", "off", "--metrics", "off"]);
    assert_eq!(answer.code, 7, "{answer:?}");
    std::fs::remove_file(world.database()).unwrap();
    let rollback = rusqlite::Connection::open(world.database()).unwrap();
    rollback.execute_batch("CREATE TABLE t(x)").unwrap();
    let answer =
        world.everwhen(&["run", world.database().to_str().unwrap(), "--listen", "off", "--metrics", "off"]);
    assert_eq!(answer.code, 7, "{answer:?}");
    assert!(answer.err.contains("journal_mode") && answer.err.contains("--convert-to-wal"), "{answer:?}");
    rollback.execute_batch("INSERT INTO t VALUES (1)").unwrap();
}

#[test]
fn a_source_that_is_in_the_way_itself_is_told_with_what_to_look_at() {
    let world = World::new(PROGRAM);
    let quiet = ["--listen", "off", "--metrics", "off"];
    let folder = world.everwhen(&[&["run", "."], &quiet[..]].concat()).exits(7);
    assert!(folder.err.contains("advice: "), "{folder:?}");
    let app = rusqlite::Connection::open(world.database()).unwrap();
    app.execute_batch("CREATE TABLE t(x); BEGIN IMMEDIATE").unwrap();
    let locked = world.everwhen(&[&["run", "app.db", "--convert-to-wal"], &quiet[..]].concat()).exits(7);
    assert!(locked.err.contains("locked") && locked.err.contains("advice: "), "{locked:?}");
    assert!(!world.repository().exists());
}

#[test]
fn a_database_that_does_not_exist_yet_is_protected_when_it_comes() {
    let world = World::new(PROGRAM);
    let mut daemon = world.daemon();
    std::thread::sleep(std::time::Duration::from_millis(600));
    let app = world.connect();
    app.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (7)").unwrap();
    daemon.settle();
    let (answer, target) = world.restore(&["--latest"], "x.db");
    let _ = answer.exits(0);
    let value: i64 = rusqlite::Connection::open(target)
        .unwrap()
        .query_row("SELECT x FROM t", [], |row| row.get(0))
        .unwrap();
    assert_eq!(value, 7);
}

#[test]
fn places_without_a_repository_are_named() {
    let world = World::new(PROGRAM);
    drop(world.connect());
    every_reading_verb_says_6(&world, &["app.db"]);
    let answer = world.everwhen(&["history", "app", "--store", "s3://127.0.0.1-nowhere/x", "--json"]);
    assert_ne!(answer.code, 0);
    let _ = world.everwhen(&["history", "app", "--json"]).exits(2);
}

fn every_reading_verb_says_6(world: &World, place: &[&str]) {
    for verb in ["status", "history", "points", "verify", "restore"] {
        let more: &[&str] = if verb == "restore" { &["--latest", "--to", "x.db"] } else { &[] };
        let answer = world.everwhen(&[&[verb], place, more, &["--json"]].concat()).exits(6);
        let error = answer.error();
        assert_eq!(error["kind"], "store_unreachable", "{verb}: {error}");
        assert!(error["advice"].is_string(), "{verb}: {error}");
    }
    assert!(!world.path("x.db").exists());
}

#[test]
fn a_repository_that_was_moved_away_is_told_by_every_reading_verb() {
    let world = protected();
    std::fs::rename(world.repository(), world.path("elsewhere")).unwrap();
    every_reading_verb_says_6(&world, &["app.db"]);
    every_reading_verb_says_6(&world, &["app.db", "--store", "app.db.everwhen"]);
    std::fs::create_dir(world.repository()).unwrap();
    every_reading_verb_says_6(&world, &["app.db", "--store", "app.db.everwhen"]);
    let _ = world.everwhen(&["history", "app.db", "--store", "elsewhere"]).exits(0);
}

#[test]
fn a_store_that_does_not_answer_is_told_by_every_reading_verb() {
    let world = World::new(PROGRAM)
        .with_env("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        .with_env("AWS_ALLOW_HTTP", "true")
        .with_env("AWS_REGION", "us-east-1")
        .with_env("AWS_ACCESS_KEY_ID", "id")
        .with_env("AWS_SECRET_ACCESS_KEY", "secret");
    every_reading_verb_says_6(&world, &["app", "--store", "s3://bucket/backups"]);
}

#[test]
fn two_daemons_with_one_state_folder_are_refused() {
    let world = World::new(PROGRAM);
    drop(world.connect());
    let mut daemon = world.daemon();
    daemon.settle();
    let answer =
        world.everwhen(&["run", world.database().to_str().unwrap(), "--listen", "off", "--metrics", "off"]);
    assert_eq!(answer.code, 3, "{answer:?}");
    daemon.settle();
}

#[test]
fn a_database_replaced_under_the_daemon_is_noticed_and_captured() {
    let world = World::new(PROGRAM);
    let app = world.connect();
    app.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES (1)").unwrap();
    let mut daemon = world.daemon();
    daemon.settle();
    let other = rusqlite::Connection::open(world.path("other.db")).unwrap();
    other.pragma_update(None, "journal_mode", "wal").unwrap();
    other.execute_batch("CREATE TABLE u(y); INSERT INTO u VALUES (42)").unwrap();
    drop(other);
    drop(app);
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(world.path(&format!("app.db{suffix}")));
    }
    std::fs::rename(world.path("other.db"), world.database()).unwrap();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let _ = std::fs::remove_file(world.path("x.db"));
        let (answer, target) = world.restore(&["--latest"], "x.db");
        let found = (answer.code == 0).then(|| {
            rusqlite::Connection::open(target)
                .unwrap()
                .query_row("SELECT y FROM u", [], |row| row.get::<_, i64>(0))
                .ok()
        });
        if found.flatten() == Some(42) {
            break;
        }
        assert!(std::time::Instant::now() < until, "{}", world.daemon_log());
    }
    daemon.settle();
    let history = world.everwhen(&["history", world.database().to_str().unwrap(), "--json"]).exits(0).json();
    assert!(!history["gaps"].as_array().unwrap().is_empty(), "{history}");
}

fn init_key(world: &World, file: &str, store: &str) {
    let _ = world.everwhen(&["key", "init", file, "--store", store]).exits(0);
}

#[test]
fn a_key_that_is_missing_or_not_needed_is_told_with_the_options_to_give_or_to_leave_out() {
    let world = World::new(PROGRAM);
    init_key(&world, "the.key", "sealed");
    let missing = world.everwhen(&["history", "app", "--store", "sealed", "--json"]).exits(3).error();
    for way in ["--key-file", "EVERWHEN_KEY_FILE", "EVERWHEN_KEY,"] {
        assert!(missing["advice"].as_str().unwrap().contains(way), "{way}: {missing}");
    }
    let clear = protected();
    init_key(&clear, "the.key", "sealed");
    let history = ["history", "app", "--store", "app.db.everwhen", "--key-file", "the.key", "--json"];
    let needless = clear.everwhen(&history).exits(2).error();
    assert!(needless["advice"].as_str().unwrap().contains("--key-file"), "{needless}");
}

#[test]
fn a_key_is_only_drawn_for_a_repository_that_has_one() {
    let world = protected();
    let answer = world.everwhen(&["key", "rotate", "new.key", "--store", "app.db.everwhen", "--json"]);
    let error = answer.exits(2).error();
    assert!(error["message"].as_str().unwrap().contains("not encrypted"), "{error}");
    assert!(!world.path("new.key").exists(), "a key that opens nothing");
}

#[test]
fn the_draft_of_a_killed_restore_goes_with_the_next_one_to_that_name() {
    let world = protected();
    let drafts = || {
        let names = std::fs::read_dir(world.path(".")).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with(".x.db.everwhen-")).count()
    };
    let trapped = Command::new(PROGRAM)
        .args(["restore", "app.db", "--latest", "--to", "x.db"])
        .current_dir(world.path("."))
        .env("EVERWHEN_FAILPOINT", "restore_before_publish")
        .output()
        .unwrap();
    assert_eq!(trapped.status.code(), None, "killed: {trapped:?}");
    assert_eq!((drafts(), world.path("x.db").exists()), (1, false));
    let (planned, _) = world.restore(&["--latest", "--dry-run"], "x.db");
    let _ = planned.exits(0);
    let (other, _) = world.restore(&["--latest"], "y.db");
    let _ = other.exits(0);
    assert_eq!(drafts(), 1, "a dry run and another name change nothing");
    let (answer, _) = world.restore(&["--latest", "--log", "info"], "x.db");
    let answer = answer.exits(0);
    assert!(answer.err.contains("left by a restore that was killed"), "{answer:?}");
    assert_eq!(drafts(), 0);
}

#[test]
fn drawing_a_key_takes_no_option_that_it_would_ignore() {
    let world = World::new(PROGRAM);
    for option in ["--key-file", "--state"] {
        let answer = world.everwhen(&["key", "init", "new.key", "--store", "sealed", option, "x", "--json"]);
        let error = answer.exits(2).error();
        assert!(error["message"].as_str().unwrap().contains(option), "{error}");
        assert!(!world.path("new.key").exists() && !world.path("sealed").exists());
    }
}

#[test]
fn a_socket_that_cannot_be_had_is_told_before_anything_is_made() {
    let world = World::new(PROGRAM);
    drop(world.connect());
    let quiet = ["--listen", "off", "--metrics", "off"];
    let answer =
        world.everwhen(&[&["run", "app.db", "--socket", "no/such/folder.sock"], &quiet[..]].concat());
    assert!(answer.code == 1 && answer.err.contains("advice: "), "{answer:?}");
    assert!(!world.repository().exists());
}

#[test]
fn an_address_of_a_server_that_is_none_is_told_by_its_variable() {
    let world = World::new(PROGRAM).with_env("AWS_ENDPOINT_URL", "nonsense").with_env("AWS_REGION", "here");
    let error = world.everwhen(&["status", "--store", "s3://bucket/x", "--json"]).exits(2).error();
    assert!(error["message"].as_str().unwrap().contains("AWS_ENDPOINT_URL is 'nonsense'"), "{error}");
}

#[test]
fn a_key_in_the_environment_does_not_stand_in_the_way_of_asking_a_daemon() {
    let world = World::new(PROGRAM).with_env("EVERWHEN_KEY_FILE", "the.key");
    let error = world.everwhen(&["status", "--addr", "http://127.0.0.1:9", "--json"]).exits(1).error();
    assert!(error["message"].as_str().unwrap().contains("no daemon answers"), "{error}");
}

#[test]
fn a_database_that_is_waited_for_is_not_called_unknown() {
    let world = World::new(PROGRAM);
    let store = world.path("store");
    let world = world.with_store(store.to_str().unwrap());
    drop(world.connect());
    let mut daemon = world.daemon_with(&["later.db"], &[]);
    daemon.settle();
    let set = ["databases", "set", "later", "--class", "sandbox", "--state", "state", "--json"];
    let error = world.everwhen(&set).exits(4).error();
    assert!(error["message"].as_str().unwrap().contains("nothing of database 'later'"), "{error}");
    assert!(error["advice"].as_str().unwrap().contains("everwhen status later"), "{error}");
}

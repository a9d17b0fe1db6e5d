//! Flipped, cut, deleted and swapped objects: every restore either gives the exact state or fails with a named error,
//! and never leaves a file behind.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};

use everwhen_tests::{Oracle, World, image_of};
use rusqlite::Connection;

const PROGRAM: &str = env!("CARGO_BIN_EXE_everwhen-under-test");

fn objects(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

fn protected(commits: i64) -> (World, Oracle, Vec<String>) {
    let world = World::new(PROGRAM);
    let mut app = world.connect();
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)").unwrap();
    let mut oracle = Oracle::default();
    let mut daemon = world.daemon();
    daemon.settle();
    oracle.remember(-1, &mut app);
    for id in 0..commits {
        app.execute("INSERT INTO t VALUES (?1, ?2)", rusqlite::params![id, "words ".repeat(40)]).unwrap();
        oracle.remember(id, &mut app);
        daemon.settle();
    }
    assert!(daemon.terminate().success());
    let positions =
        world.points().iter().map(|point| point["position"].as_str().unwrap().to_owned()).collect();
    (world, oracle, positions)
}

/// Restores every position; says which failed. A success must be exact.
fn exact_or_refused(world: &World, oracle: &Oracle, positions: &[String], what: &str) -> usize {
    let mut refused = 0;
    for (mark, position) in oracle.marks().zip(positions) {
        let (answer, target) = world.restore(&["--position", position], "target.db");
        if answer.code == 0 {
            let image = image_of(&mut Connection::open(&target).unwrap());
            assert!(
                image == oracle.image(mark).unwrap(),
                "{what}: a wrong state with exit code 0 at {position}"
            );
            std::fs::remove_file(&target).unwrap();
        } else {
            refused += 1;
            assert!([4, 5, 7].contains(&answer.code), "{what}: {answer:?}");
            assert!(answer.error()["message"].is_string(), "{what}");
        }
        let left: Vec<_> =
            std::fs::read_dir(world.path(".")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().contains("target.db")), "{what}: {left:?}");
    }
    refused
}

#[test]
fn no_damage_to_any_object_gives_a_wrong_database() {
    let (world, oracle, positions) = protected(4);
    let whole = exact_or_refused(&world, &oracle, &positions, "untouched");
    assert_eq!(whole, 0);
    let database = world.database();
    let db = database.to_str().unwrap();
    for object in objects(&world.repository().join("db")) {
        let name = object.display().to_string();
        let bytes = std::fs::read(&object).unwrap();
        let mut damaged = vec![("emptied", Vec::new()), ("cut", bytes[..bytes.len() / 2].to_vec())];
        for at in [0, bytes.len() / 3, bytes.len() - 1] {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x04;
            damaged.push(("flipped", flipped));
        }
        for (how, wrong) in damaged {
            std::fs::write(&object, wrong).unwrap();
            let refused = exact_or_refused(&world, &oracle, &positions, &format!("{how} {name}"));
            let verdict = world.everwhen(&["verify", db, "--json"]);
            assert_eq!(verdict.code, 5, "{how} {name}: {refused} refused, verify said {verdict:?}");
        }
        std::fs::remove_file(&object).unwrap();
        exact_or_refused(&world, &oracle, &positions, &format!("deleted {name}"));
        std::fs::write(&object, bytes).unwrap();
    }
    assert_eq!(exact_or_refused(&world, &oracle, &positions, "mended"), 0);
}

/// The files of the log's segments, in order.
fn segments(world: &World) -> Vec<PathBuf> {
    let all = objects(&world.repository().join("db")).into_iter();
    all.filter(|path| path.to_string_lossy().contains("/log/")).collect()
}

#[test]
fn swapped_segments_are_noticed() {
    let (world, oracle, positions) = protected(4);
    let segments = segments(&world);
    for pair in segments.windows(2) {
        let (one, two) = (std::fs::read(&pair[0]).unwrap(), std::fs::read(&pair[1]).unwrap());
        std::fs::write(&pair[0], &two).unwrap();
        std::fs::write(&pair[1], &one).unwrap();
        assert!(exact_or_refused(&world, &oracle, &positions, "swapped") > 0);
        std::fs::write(&pair[0], &one).unwrap();
        std::fs::write(&pair[1], &two).unwrap();
    }
    assert_eq!(exact_or_refused(&world, &oracle, &positions, "mended"), 0);
}

#[test]
fn a_missing_segment_is_named_and_the_points_around_it_are_offered() {
    let (world, oracle, positions) = protected(4);
    let segments = segments(&world);
    std::fs::remove_file(&segments[2]).unwrap();
    let (_, lost) = positions[2].split_once('/').unwrap();
    // The state found has a segment of its own: the third one holds the second commit.
    for asked in &positions[2..] {
        let (answer, _) = world.restore(&["--position", asked], "target.db");
        let error = answer.exits(5).error();
        assert_eq!(error["kind"], "damaged", "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(lost), "the lost one is not named: {error}");
        assert_eq!(error["nearest"]["before"]["position"], positions[1], "asked for {asked}: {error}");
    }
    let verdict = world.everwhen(&["verify", "app.db", "--json"]).exits(5).json();
    assert!(verdict["databases"][0]["problems"].to_string().contains(lost), "{verdict}");
    let status = world.everwhen(&["status", "app.db", "--json"]).exits(0).json();
    let status = &status["databases"][0];
    assert_eq!(
        status["durable"]["position"], positions[1],
        "what cannot be rebuilt is called durable: {status}"
    );
    assert!(status["reasons"].to_string().contains(lost), "{status}");
    assert_eq!(exact_or_refused(&world, &oracle, &positions, "hole"), 3);
}

/// An object with this content under the name that belongs to it, in place of the one at `path`.
fn replace(path: &Path, content: &[u8]) -> PathBuf {
    let digest = everwhen_engine::digest::Hasher::Plain.digest(content);
    let name = path.file_name().unwrap().to_str().unwrap();
    let (stem, _) = name.rsplit_once('-').unwrap();
    std::fs::remove_file(path).unwrap();
    let renamed = path.with_file_name(format!("{stem}-{digest}"));
    std::fs::write(&renamed, content).unwrap();
    renamed
}

#[test]
fn a_segment_of_a_newer_format_is_told_apart_from_damage_with_the_version_to_use() {
    let (world, _, positions) = protected(2);
    let segments = segments(&world);
    let (error, verdict) = with_a_newer_segment(&world, &segments[2], &positions);
    assert!(error["advice"].as_str().unwrap().to_lowercase().contains("use the version"), "{error}");
    assert!(!error["message"].as_str().unwrap().contains("damaged"), "{error}");
    assert!(verdict["databases"][0]["problems"].to_string().contains("newer"), "{verdict}");
}

#[test]
fn a_segment_of_a_newer_format_is_never_read_as_one_of_ours() {
    let (world, _, positions) = protected(2);
    let segments = segments(&world);
    let (error, verdict) = with_a_newer_segment(&world, &segments[2], &positions);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("newer format 2, this program reads up to 1"), "{error}");
    assert_eq!(verdict["sound"], false, "{verdict}");
}

/// What restore and verify say when the last commit is in a segment of the next format: sound, under its own name.
fn with_a_newer_segment(
    world: &World,
    segment: &Path,
    positions: &[String],
) -> (serde_json::Value, serde_json::Value) {
    let sound = std::fs::read(segment).unwrap();
    let mut newer = sound.clone();
    assert_eq!(&newer[..6], b"EVWS\x01\0");
    newer[4] = 2;
    let renamed = replace(segment, &newer);
    let (answer, target) = world.restore(&["--position", positions.last().unwrap()], "target.db");
    let error = answer.exits(5).error();
    assert!(!target.exists());
    let verdict = world.everwhen(&["verify", "app.db", "--json"]).exits(5).json();
    // What does not need it is still given.
    let (answer, _) = world.restore(&["--position", &positions[1]], "before.db");
    let _ = answer.exits(0);
    replace(&renamed, &sound);
    let (answer, _) = world.restore(&["--latest"], "mended.db");
    let _ = answer.exits(0);
    (error, verdict)
}

#[test]
fn a_repository_of_a_newer_format_is_refused_with_the_version_to_use() {
    let (world, ..) = protected(1);
    let marker = world.repository().join("everwhen");
    let mut bytes = std::fs::read(&marker).unwrap();
    assert_eq!(&bytes[..4], b"EWR1");
    bytes[3] = b'2';
    std::fs::write(&marker, bytes).unwrap();
    for command in [&["history", "app.db", "--json"][..], &["verify", "app.db", "--json"]] {
        let error = world.everwhen(command).exits(5).error();
        assert!(error["advice"].as_str().unwrap().contains("Use the version"), "{error}");
        assert!(error["message"].as_str().unwrap().contains("everwhen"), "{error}");
    }
    let (answer, target) = world.restore(&["--latest"], "target.db");
    let _ = answer.exits(5);
    assert!(!target.exists());
    let mut daemon = world.daemon();
    let status = daemon.wait_for_death(std::time::Duration::from_secs(20)).unwrap();
    assert_eq!(status.code(), Some(5), "{}", world.daemon_log());
}

#[test]
fn a_repository_whose_marker_is_damaged_is_refused() {
    let (world, ..) = protected(1);
    let marker = world.repository().join("everwhen");
    let mut bytes = std::fs::read(&marker).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&marker, bytes).unwrap();
    let (answer, _) = world.restore(&["--latest"], "target.db");
    assert_eq!(answer.code, 5, "{answer:?}");
    let error = world.everwhen(&["verify", "app.db", "--json"]).exits(5).error();
    assert!(error["advice"].as_str().unwrap().contains("from a copy"), "verify cannot help: {error}");
}

/// The folder of the only database, and its id.
fn database_folder(world: &World) -> (PathBuf, String) {
    let folder = std::fs::read_dir(world.repository().join("db")).unwrap().next().unwrap().unwrap().path();
    let id = folder.file_name().unwrap().to_str().unwrap().to_owned();
    (folder, id)
}

#[test]
fn a_database_that_lost_its_record_is_damage_that_names_it() {
    let (world, ..) = protected(2);
    let (folder, id) = database_folder(&world);
    let all = ["verify", "--store", "app.db.everwhen", "--json"];
    let names_it = |what: &str| {
        let verdict = world.everwhen(&all).exits(5).json();
        assert_eq!(verdict["sound"], false, "{what}");
        let database = &verdict["databases"][0];
        assert_eq!(database["name"], *id, "{what}: {verdict}");
        assert!(database["problems"][0]["object"].as_str().unwrap().contains(&id), "{what}: {verdict}");
        for verb in ["verify", "history", "status", "points"] {
            let error = world.everwhen(&[verb, "app.db", "--json"]).exits(5).error();
            assert!(error["message"].as_str().unwrap().contains(&id), "{what}: {verb}: {error}");
        }
        let (answer, _) = world.restore(&["--latest"], "target.db");
        let _ = answer.exits(5);
    };
    std::fs::write(folder.join("record/0000000000000001"), b"noise").unwrap();
    let verdict = world.everwhen(&all).exits(5).json();
    assert_eq!(verdict["databases"][0]["name"], *id, "{verdict}");
    std::fs::remove_dir_all(folder.join("record")).unwrap();
    names_it("its objects are left");
    let verdict = world.everwhen(&all).exits(5).json();
    assert!(verdict["databases"][0]["segments"].as_u64().unwrap() > 0, "what is left is verified: {verdict}");
    std::fs::remove_dir_all(world.repository().join("db")).unwrap();
    names_it("a daemon's mark is left");
}

#[test]
fn a_repository_without_any_database_is_said_to_hold_none() {
    let (world, ..) = protected(1);
    for folder in ["db", "daemon"] {
        std::fs::remove_dir_all(world.repository().join(folder)).unwrap();
    }
    let all = world.everwhen(&["verify", "--store", "app.db.everwhen"]).exits(0);
    assert!(all.out.contains("holds no database"), "{all:?}");
    let named = world.everwhen(&["verify", "app.db", "--json"]).exits(4);
    assert!(named.error()["advice"].is_string());
}

#[test]
fn a_problem_is_one_line_that_names_the_object_once() {
    let (world, ..) = protected(2);
    for object in objects(&world.repository().join("db")) {
        let sound = std::fs::read(&object).unwrap();
        for damaged in [None, Some(&sound[..sound.len() / 2])] {
            match damaged {
                None => std::fs::remove_file(&object).unwrap(),
                Some(bytes) => std::fs::write(&object, bytes).unwrap(),
            }
            let text = world.everwhen(&["verify", "--store", "app.db.everwhen", "--deep"]);
            for line in text.out.lines().filter(|line| line.contains('!')) {
                let name = line.trim_start_matches(" !").split(':').next().unwrap();
                assert!(name.is_empty() || line.matches(name).count() == 1, "{line}");
            }
        }
        std::fs::write(&object, sound).unwrap();
    }
}

/// A sealed repository of two databases, app and other, and the folder of app in it.
fn two_sealed_databases() -> (World, PathBuf) {
    let world = World::new(PROGRAM);
    let (store, key) = (world.path("sealed"), world.path("the.key"));
    let (store, key) = (store.to_str().unwrap(), key.to_str().unwrap());
    let _ = world.everwhen(&["key", "init", key, "--store", store]).exits(0);
    let world = world.with_store(store).with_env("EVERWHEN_KEY_FILE", key);
    let other = Connection::open(world.path("other.db")).unwrap();
    other.pragma_update(None, "journal_mode", "wal").unwrap();
    let app = world.connect();
    let mut daemon = world.daemon_with(&["other.db"], &[]);
    for id in 0..2 {
        for connection in [&app, &other] {
            connection.execute_batch(&format!("CREATE TABLE t{id}(x)")).unwrap();
        }
        daemon.settle();
    }
    assert!(daemon.terminate().success());
    let list = world.everwhen(&["databases", "list", "--json"]).exits(0).json();
    let list = list["databases"].as_array().unwrap();
    let id = list.iter().find(|database| database["name"] == "app").unwrap()["id"].as_str().unwrap();
    let folder = world.path("sealed/db").join(id);
    (world, folder)
}

#[test]
fn damage_to_the_claim_or_the_key_of_one_database_does_not_hide_the_others() {
    let (world, folder) = two_sealed_databases();
    for (object, named) in [("timeline/00000001", "app"), ("key", "")] {
        let sound = std::fs::read(folder.join(object)).unwrap();
        let mut flipped = sound.clone();
        flipped[sound.len() / 2] ^= 1;
        for (how, wrong) in [("flipped", Some(flipped)), ("emptied", Some(Vec::new())), ("deleted", None)] {
            match wrong {
                Some(bytes) => std::fs::write(folder.join(object), bytes).unwrap(),
                None => std::fs::remove_file(folder.join(object)).unwrap(),
            }
            for depth in [&["verify", "--json"][..], &["verify", "--deep", "--json"]] {
                let verdict = world.everwhen(depth).exits(5).json();
                let databases = verdict["databases"].as_array().unwrap();
                assert_eq!(databases.len(), 2, "{how} {object}: {verdict}");
                let other = databases.iter().find(|database| database["name"] == "other").unwrap();
                assert_eq!(other["problems"], serde_json::json!([]), "{how} {object}: {verdict}");
                assert!(other["objects"].as_u64().unwrap() >= 4, "{how} {object}: {verdict}");
                let ours = databases.iter().find(|database| database["name"] != "other").unwrap();
                assert!(named.is_empty() || ours["name"] == named, "{how} {object}: {verdict}");
                let problems = ours["problems"].as_array().unwrap();
                assert!((1..=3).contains(&problems.len()), "{how} {object}: not told once: {verdict}");
                if how != "deleted" {
                    assert!(problems[0]["object"].as_str().unwrap().ends_with(object), "{how}: {verdict}");
                }
            }
            let target = world.path("x.db");
            let restore = ["restore", "app", "--latest", "--to", target.to_str().unwrap(), "--json"];
            let _ = world.everwhen(&restore).exits(5);
            assert!(!target.exists(), "{how} {object}");
        }
        std::fs::write(folder.join(object), sound).unwrap();
        let _ = world.everwhen(&["verify"]).exits(0);
    }
}

#[test]
fn after_a_verification_found_damage_the_history_is_of_what_is_there() {
    let (world, ..) = protected(4);
    let windows = || {
        let history = world.everwhen(&["history", "app.db", "--json"]).exits(0).json();
        (history["segments"].as_u64().unwrap(), history["flaws"].as_array().unwrap().len())
    };
    assert_eq!(windows(), (5, 0));
    std::fs::remove_file(&segments(&world)[2]).unwrap();
    let verdict = world.everwhen(&["verify", "app.db", "--json"]).exits(5).json();
    assert!(
        !verdict.to_string().contains("nothing can be rebuilt"),
        "what is before the hole can: {verdict}"
    );
    assert_eq!(windows(), (4, 1));
}

#[test]
fn a_lost_claim_does_not_make_an_older_timeline_the_latest() {
    let world = World::new(PROGRAM);
    let app = world.connect();
    for id in 0..2 {
        let mut daemon = world.daemon();
        daemon.settle();
        app.execute_batch(&format!("CREATE TABLE t{id}(x)")).unwrap();
        daemon.settle();
        assert!(daemon.terminate().success());
        // Without its local state the next daemon begins a timeline.
        std::fs::remove_dir_all(world.repository().join("local")).unwrap();
    }
    let newest = world.points().pop().unwrap();
    let (position, time) = (newest["position"].as_str().unwrap(), newest["time"].as_str().unwrap());
    assert!(position.starts_with("2/"), "{newest}");
    let (folder, _) = database_folder(&world);
    std::fs::remove_file(folder.join("timeline/00000002")).unwrap();
    // With the catalog that knows the timeline, and with one that never did.
    for _ in 0..2 {
        for point in [&["--latest"][..], &["--at", time], &["--position", position]] {
            let (answer, target) = world.restore(point, "target.db");
            let error = answer.exits(5).error();
            assert!(error["message"].as_str().unwrap().contains("timeline 2"), "{point:?}: {error}");
            assert!(!target.exists(), "{point:?}");
        }
        std::fs::remove_dir_all(world.repository().join("local")).unwrap();
    }
    let verdict = world.everwhen(&["verify", "app.db", "--json"]).exits(5).json();
    assert!(verdict.to_string().contains("timeline 2: its claim is missing"), "{verdict}");
}

#[test]
fn the_end_of_a_log_that_vanished_is_missing_although_nothing_else_vouches_for_it() {
    let (world, _, positions) = protected(3);
    std::fs::remove_dir_all(world.repository().join("daemon")).unwrap();
    let segments = segments(&world);
    std::fs::remove_file(segments.last().unwrap()).unwrap();
    for _ in 0..2 {
        let (answer, _) = world.restore(&["--latest"], "target.db");
        assert!(answer.exits(5).error()["message"].as_str().unwrap().contains("at its end"));
    }
    let (answer, _) = world.restore(&["--position", &positions[positions.len() - 2]], "target.db");
    let _ = answer.exits(0);
}

#[test]
fn a_path_that_a_named_store_does_not_know_is_not_taken_for_its_only_database() {
    let (world, ..) = protected(1);
    let target = world.path("target.db");
    let restore = [
        "restore",
        "./billing.db",
        "--store",
        "app.db.everwhen",
        "--latest",
        "--to",
        target.to_str().unwrap(),
    ];
    let _ = world.everwhen(&restore).exits(4);
    assert!(!target.exists());
}

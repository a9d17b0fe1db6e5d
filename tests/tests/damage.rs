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

#[test]
fn swapped_segments_are_noticed() {
    let (world, oracle, positions) = protected(4);
    let segments: Vec<_> = objects(&world.repository().join("db"))
        .into_iter()
        .filter(|path| path.to_string_lossy().contains("/log/"))
        .collect();
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
    let segments: Vec<_> = objects(&world.repository().join("db"))
        .into_iter()
        .filter(|path| path.to_string_lossy().contains("/log/"))
        .collect();
    std::fs::remove_file(&segments[2]).unwrap();
    let (answer, _) = world.restore(&["--position", positions.last().unwrap()], "target.db");
    assert_eq!(answer.code, 5, "{answer:?}");
    assert!(exact_or_refused(&world, &oracle, &positions, "hole") >= 2);
}

#[test]
fn a_repository_of_a_newer_format_is_refused() {
    let (world, ..) = protected(1);
    let marker = world.repository().join("everwhen");
    let mut bytes = std::fs::read(&marker).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&marker, bytes).unwrap();
    let (answer, _) = world.restore(&["--latest"], "target.db");
    assert_eq!(answer.code, 5, "{answer:?}");
}

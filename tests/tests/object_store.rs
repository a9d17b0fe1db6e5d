//! The whole program on an object store: real servers speak HTTP as three clouds do, and misbehave.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use everwhen_tests::cloud::{CloudServer, Dialect};
use everwhen_tests::{Oracle, World, image_of};
use rusqlite::Connection;

const PROGRAM: &str = env!("CARGO_BIN_EXE_everwhen-under-test");

fn world_with(url: &str, environment: &[(String, String)]) -> World {
    let mut world = World::new(PROGRAM).with_store(url);
    for (name, value) in environment {
        world = world.with_env(name, value);
    }
    world
}

fn world_on(server: &CloudServer) -> World {
    world_with(&server.url("backups"), &server.environment())
}

fn commits_come_back(server: &CloudServer, world: &World) {
    let mut app = world.connect();
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)").unwrap();
    let mut oracle = Oracle::default();
    let mut daemon = world.daemon();
    daemon.settle();
    for id in 0..12 {
        app.execute("INSERT INTO t VALUES (?1, 'to the cloud')", [id]).unwrap();
        oracle.remember(id, &mut app);
        if id % 4 == 1 {
            server.fault(|faults| (faults.unavailable, faults.lost_acks) = (5, 2));
        }
        std::thread::sleep(Duration::from_millis(40));
    }
    daemon.settle();
    assert!(daemon.terminate().success());
    server.fault(|faults| {
        (faults.throttled, faults.cut_bodies, faults.reset_bodies) = (3, 2, 2);
        (faults.short_ranges, faults.lying_ranges, faults.page) = (1, 1, 5);
    });
    // From the repository alone: no daemon, no local state.
    let _ = std::fs::remove_dir_all(world.path("state"));
    let points = world.points();
    assert_eq!(points.len(), 13);
    for (id, point) in oracle.marks().zip(&points[1..]) {
        let (answer, target) =
            world.restore(&["--position", point["position"].as_str().unwrap()], &format!("{id}.db"));
        let _ = answer.exits(0);
        assert!(image_of(&mut Connection::open(target).unwrap()) == oracle.image(id).unwrap(), "commit {id}");
    }
    let _ = world.everwhen(&["verify", "--deep"]).exits(0);
    let left = server.faults();
    assert_eq!((left.unavailable, left.lost_acks, left.throttled), (0, 0, 0));
    assert_eq!((left.cut_bodies, left.reset_bodies), (0, 0));
    assert!(!server.objects().is_empty());
}

#[test]
fn every_commit_comes_back_from_s3() {
    let server = CloudServer::start(Dialect::S3);
    commits_come_back(&server, &world_on(&server));
}

#[test]
fn every_commit_comes_back_from_google() {
    let server = CloudServer::start(Dialect::Google);
    commits_come_back(&server, &world_on(&server));
}

#[test]
fn every_commit_comes_back_from_azure() {
    let server = CloudServer::start(Dialect::Azure);
    commits_come_back(&server, &world_on(&server));
}

#[test]
fn every_commit_comes_back_from_an_emulator_of_azure() {
    let server = CloudServer::start(Dialect::Azure);
    commits_come_back(&server, &world_with(&server.url("backups"), &server.emulator_environment()));
}

#[test]
fn every_commit_comes_back_from_a_store_that_ignores_conditions() {
    let server = CloudServer::start(Dialect::S3);
    server.fault(|faults| faults.ignores_conditions = true);
    commits_come_back(&server, &world_on(&server));
}

#[test]
fn an_encrypted_repository_gives_nothing_without_its_key() {
    let server = CloudServer::start(Dialect::S3);
    let world = world_on(&server);
    let key = world.path("key");
    let answer = world.everwhen(&["key", "init", key.to_str().unwrap()]);
    let _ = answer.exits(0);
    let world = world.with_env("EVERWHEN_KEY_FILE", key.to_str().unwrap());
    commits_come_back(&server, &world);
    let text = b"to the cloud";
    for (name, _) in server.objects() {
        let bytes = server.object(&name).unwrap();
        assert!(!bytes.windows(text.len()).any(|window| window == text), "{name} is readable");
    }
    // Another sound key, which locks another repository.
    let other = world.path("other-key");
    let elsewhere = world.path("elsewhere");
    let init = ["key", "init", other.to_str().unwrap(), "--store", elsewhere.to_str().unwrap()];
    let _ = World::new(PROGRAM).everwhen(&init).exits(0);
    let id = |file: &std::path::Path, store: &str| {
        let mut shown = world.command(&["key", "show", "--store", store, "--json"]);
        let out = shown.env("EVERWHEN_KEY_FILE", file).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap()["key"].as_str().unwrap().to_owned()
    };
    let (ours, theirs) = (id(&key, &server.url("backups")), id(&other, elsewhere.to_str().unwrap()));
    assert_ne!(ours, theirs);
    let wrong = world.with_env("EVERWHEN_KEY_FILE", other.to_str().unwrap());
    for command in
        [&["history", "app", "--json"][..], &["points", "app", "--json"], &["verify", "--deep", "--json"]]
    {
        let error = wrong.everwhen(command).exits(3).error();
        assert_eq!(error["kind"], "refused", "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(&ours) && message.contains(&theirs), "{message}");
        assert!(error["advice"].as_str().unwrap().contains("Give the key of that id"), "{error}");
    }
    let (answer, target) = wrong.restore(&["--latest"], "wrong-key.db");
    let _ = answer.exits(3);
    assert!(!target.exists());
    // A text that is no key at all is a wrong use.
    std::fs::write(&other, "everwhen-key-1-no").unwrap();
    let _ = wrong.everwhen(&["history", "app", "--json"]).exits(2);
}

/// As with a role that may put, get and list only, on a bucket that keeps every object: nothing is deleted or replaced.
#[test]
fn credentials_to_put_get_and_list_suffice() {
    for ignores_conditions in [false, true] {
        let server = CloudServer::start(Dialect::S3);
        server.fault(|faults| {
            // Where a condition is ignored, it takes a replacement to notice that.
            (faults.no_delete, faults.no_overwrite) = (true, !ignores_conditions);
            faults.ignores_conditions = ignores_conditions;
        });
        let world = world_on(&server);
        commits_come_back(&server, &world);
        // A second run goes on where the first ended, also without its local state.
        let app = world.connect();
        let mut daemon = world.daemon();
        daemon.settle();
        app.execute("INSERT INTO t VALUES (100, 'once more')", []).unwrap();
        daemon.settle();
        assert!(daemon.terminate().success());
        assert!(world.points().len() >= 14);
        let _ = world.everwhen(&["verify", "--deep"]).exits(0);
        assert_eq!(server.requests().deletes, 0, "something was to be deleted");
    }
}

/// The daemon and the reading commands end with exit code 6, and say where to look.
fn tells(world: &World, advice: &str) {
    drop(world.connect());
    let mut daemon = world.daemon();
    let status = daemon.wait_for_death(Duration::from_secs(40)).unwrap();
    assert_eq!(status.code(), Some(6), "{}", world.daemon_log());
    assert!(world.daemon_log().contains(advice), "{}", world.daemon_log());
    for command in [&["history", "app", "--json"][..], &["verify", "--json"]] {
        let answer = world.everwhen(command).exits(6);
        let error = answer.error();
        assert_eq!(error["kind"], "store_unreachable", "{answer:?}");
        assert!(error["advice"].as_str().unwrap().contains(advice), "{answer:?}");
    }
    let (answer, target) = world.restore(&["--latest"], "restored.db");
    let _ = answer.exits(6);
    assert!(!target.exists());
}

#[test]
fn wrong_credentials_end_with_the_variables_to_set() {
    for (dialect, code, variable) in [
        (Dialect::S3, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        (Dialect::Google, "InvalidToken", "GOOGLE_APPLICATION_CREDENTIALS"),
        (Dialect::Azure, "AuthenticationFailed", "AZURE_STORAGE_ACCOUNT_KEY"),
    ] {
        let server = CloudServer::start(dialect);
        server.fault(|faults| faults.rejects_all_with = Some(code.to_owned()));
        tells(&world_on(&server), variable);
    }
}

#[test]
fn no_credentials_end_with_the_variables_to_set() {
    let nobody = "127.0.0.1:9";
    let asks_nobody = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    for (dialect, metadata, variable) in [
        (
            Dialect::S3,
            vec![asks_nobody("AWS_METADATA_ENDPOINT", &format!("http://{nobody}"))],
            "AWS_ACCESS_KEY_ID",
        ),
        (
            Dialect::Google,
            vec![asks_nobody("GCE_METADATA_HOST", nobody), asks_nobody("GCE_METADATA_IP", nobody)],
            "GOOGLE_APPLICATION_CREDENTIALS",
        ),
        (
            Dialect::Azure,
            vec![asks_nobody("IDENTITY_ENDPOINT", &format!("http://{nobody}/metadata/identity"))],
            "AZURE_STORAGE_ACCOUNT_KEY",
        ),
    ] {
        let server = CloudServer::start(dialect);
        let mut environment = server.environment();
        environment.retain(|(name, _)| !name.contains("KEY") && !name.contains("TOKEN"));
        environment.extend(metadata);
        tells(&world_with(&server.url("backups"), &environment), variable);
    }
    let world = World::new(PROGRAM).with_store("az://container/backups");
    tells(&world, "AZURE_STORAGE_ACCOUNT_NAME");
}

#[test]
fn a_missing_bucket_ends_with_what_to_check() {
    for dialect in Dialect::ALL {
        let server = CloudServer::start(dialect);
        tells(&world_with(&server.url_in("nowhere", "backups"), &server.environment()), "create it");
    }
}

#[test]
fn a_store_that_is_away_ends_with_the_address_to_check() {
    for (dialect, variable) in [
        (Dialect::S3, "AWS_ENDPOINT_URL"),
        (Dialect::Google, "GOOGLE_BASE_URL"),
        (Dialect::Azure, "AZURE_STORAGE_ENDPOINT"),
    ] {
        let server = CloudServer::start(dialect);
        let (url, environment) = (server.url("backups"), server.environment());
        drop(server);
        let world = world_with(&url, &environment);
        tells(&world, variable);
        assert!(world.daemon_log().contains("refused"), "{}", world.daemon_log());
    }
}

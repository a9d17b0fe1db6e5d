//! The whole program on an object store: a real S3 server process speaks HTTP, and misbehaves.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use everwhen_tests::s3::S3Server;
use everwhen_tests::{Oracle, World, image_of};
use rusqlite::Connection;

const PROGRAM: &str = env!("CARGO_BIN_EXE_everwhen-under-test");

fn world_on(server: &S3Server) -> World {
    let mut world = World::new(PROGRAM).with_store(&server.url("backups"));
    for (name, value) in server.environment() {
        world = world.with_env(&name, &value);
    }
    world
}

fn commits_come_back(server: &S3Server, world: &World) {
    let mut app = world.connect();
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)").unwrap();
    let mut oracle = Oracle::default();
    let mut daemon = world.daemon();
    daemon.settle();
    for id in 0..12 {
        app.execute("INSERT INTO t VALUES (?1, 'to the cloud')", [id]).unwrap();
        oracle.remember(id, &mut app);
        std::thread::sleep(std::time::Duration::from_millis(40));
    }
    daemon.settle();
    assert!(daemon.terminate().success());
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
    assert!(!server.objects().is_empty());
}

#[test]
fn every_commit_comes_back_from_s3() {
    let server = S3Server::start();
    commits_come_back(&server, &world_on(&server));
}

#[test]
fn every_commit_comes_back_from_a_store_that_ignores_conditions() {
    let server = S3Server::start();
    server.fault(|faults| faults.ignores_conditions = true);
    commits_come_back(&server, &world_on(&server));
}

#[test]
fn an_encrypted_repository_gives_nothing_without_its_key() {
    let server = S3Server::start();
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
    let other = world.path("other-key");
    std::fs::write(&other, std::fs::read_to_string(&key).unwrap().replace(['a', 'b', 'c'], "d")).unwrap();
    let wrong = world.with_env("EVERWHEN_KEY_FILE", other.to_str().unwrap());
    let answer = wrong.everwhen(&["history", "app", "--json"]);
    assert!([2, 3, 5, 6].contains(&answer.code), "{answer:?}");
}

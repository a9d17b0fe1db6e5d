//! The doors of a running daemon, TCP and a unix socket, from the command line and over gRPC; and restores that are
//! broken off through each of them. Nobody has another way in: the commands run without the database's folder.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use everwhen_proto::v1;
use everwhen_proto::v1::everwhen_client::EverwhenClient;
use everwhen_tests::cloud::{CloudServer, Dialect};
use everwhen_tests::{Oracle, World, image_of};
use rusqlite::Connection;

const PROGRAM: &str = env!("CARGO_BIN_EXE_everwhen-under-test");

fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn everything_is_answered_by_address_over_tcp_and_a_unix_socket() {
    let world = World::new(PROGRAM);
    let mut app = world.connect();
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)").unwrap();
    let (address, socket) = (free_address(), world.path("api.sock"));
    let mut daemon = world.daemon_at(&address, &["--socket", socket.to_str().unwrap()], &[]);
    daemon.settle();
    let mut oracle = Oracle::default();
    for id in 0..5 {
        app.execute("INSERT INTO t VALUES (?1, 'words')", [id]).unwrap();
        oracle.remember(id, &mut app);
    }
    daemon.settle();
    // Commands run elsewhere know the daemon by its address alone.
    let elsewhere = World::new(PROGRAM);
    for (door, at) in [("tcp", format!("http://{address}")), ("unix", format!("unix:{}", socket.display()))] {
        let ask = |words: &[&str]| elsewhere.everwhen(&[words, &["--addr", &at, "--json"]].concat()).exits(0);
        let status = ask(&["status"]).json();
        let database = &status["databases"][0];
        assert_eq!(database["name"], "app", "{status}");
        assert_eq!(database["health"], "ok", "{status}");
        assert_eq!(database["captured"]["position"], database["durable"]["position"], "{status}");
        let points = ask(&["points", "app"]).json_lines();
        assert_eq!(points.len(), 6);
        assert_eq!(points[5]["position"], database["durable"]["position"]);
        let history = ask(&["history", "app"]).json();
        assert_eq!(history["latest"]["position"], points[5]["position"], "{history}");
        for (id, point) in oracle.marks().zip(&points[1..]) {
            let position = point["position"].as_str().unwrap();
            let to = world.path(&format!("{door}-{id}.db"));
            let to = to.to_str().unwrap();
            let planned = ask(&["restore", "app", "--position", position, "--to", to, "--dry-run"]).json();
            assert_eq!(planned["position"], position, "{planned}");
            assert!(!Path::new(to).exists());
            let report = ask(&["restore", "app", "--position", position, "--to", to]).json();
            assert_eq!(report["position"], position, "{report}");
            assert!(image_of(&mut Connection::open(to).unwrap()) == oracle.image(id).unwrap(), "{door} {id}");
        }
        let refused = elsewhere.everwhen(&[
            "restore",
            "app",
            "--at",
            "2001-01-01T00:00:00Z",
            "--to",
            "/nowhere/x.db",
            "--addr",
            &at,
            "--json",
        ]);
        let error = refused.exits(4).error();
        assert_eq!(error["nearest"]["after"]["position"], points[0]["position"], "{error}");
    }
    assert!(daemon.terminate().success());
}

/// A repository on a store that gives its objects slowly from now on, with a daemon beside it.
fn slow_store() -> (CloudServer, World) {
    let server = CloudServer::start(Dialect::S3);
    let world = World::new(PROGRAM).with_store(&server.url("backups"));
    let world = server.environment().iter().fold(world, |world, (name, value)| world.with_env(name, value));
    let app = world.connect();
    app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)").unwrap();
    let mut daemon = world.daemon();
    daemon.settle();
    for id in 0..4 {
        app.execute("INSERT INTO t VALUES (?1, randomblob(3000))", [id]).unwrap();
        daemon.settle();
    }
    assert!(daemon.terminate().success());
    (server, world)
}

fn files_of(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_restore_that_is_interrupted_mid_way_leaves_no_file() {
    let (server, world) = slow_store();
    let targets = world.path("targets");
    std::fs::create_dir(&targets).unwrap();
    let to = targets.join("x.db");
    for (signal, word) in [("-INT", "SIGINT"), ("-TERM", "SIGTERM")] {
        // Quick until there is a draft to be left behind; then as good as never.
        server.fault(|faults| faults.delay = Duration::from_millis(150));
        let child = world
            .command(&[
                "restore",
                "app",
                "--latest",
                "--to",
                to.to_str().unwrap(),
                "--state",
                "none",
                "--json",
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        until("a draft", || !files_of(&targets).is_empty());
        server.fault(|faults| faults.delay = Duration::from_secs(5));
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let answer = child.wait_with_output().unwrap();
        let told = String::from_utf8(answer.stderr).unwrap();
        assert_eq!(answer.status.code(), Some(1), "{told}");
        assert!(told.contains(&format!("{word}: the restore was not finished")), "{told}");
        assert_eq!(files_of(&targets), [""; 0], "{word}");
    }
    server.fault(|faults| faults.delay = Duration::ZERO);
    let answer = world.everwhen(&["restore", "app", "--latest", "--to", to.to_str().unwrap()]);
    let _ = answer.exits(0);
    assert_eq!(files_of(&targets), ["x.db"]);
}

#[test]
fn a_restore_whose_stream_is_dropped_mid_way_leaves_no_file() {
    let (server, world) = slow_store();
    let address = free_address();
    let mut daemon = world.daemon_at(&address, &[], &[]);
    daemon.settle();
    let targets = world.path("targets");
    std::fs::create_dir(&targets).unwrap();
    let request = v1::RestoreRequest {
        database: "app".into(),
        target: Some(v1::Target { target: Some(v1::target::Target::Latest(v1::Latest {})) }),
        to: targets.join("x.db").to_str().unwrap().to_owned(),
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = {
            let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
            EverwhenClient::new(endpoint.connect().await.unwrap())
        };
        server.fault(|faults| faults.delay = Duration::from_millis(150));
        let mut stream = client.restore(request.clone()).await.unwrap().into_inner();
        let first = stream.message().await.unwrap().unwrap();
        assert!(matches!(first.event, Some(v1::restore_response::Event::Plan(_))), "{first:?}");
        until("a draft", || !files_of(&targets).is_empty());
        server.fault(|faults| faults.delay = Duration::from_secs(5));
        // The next part, so that it is known to be amid its work; then nobody listens any more.
        drop(stream);
        until("the draft is gone", || files_of(&targets).is_empty());
        server.fault(|faults| faults.delay = Duration::ZERO);
        let mut stream = client.restore(request).await.unwrap().into_inner();
        let mut last = None;
        while let Some(part) = stream.message().await.unwrap() {
            last = part.event;
        }
        assert!(matches!(last, Some(v1::restore_response::Event::Report(_))), "{last:?}");
    });
    assert_eq!(files_of(&targets), ["x.db"]);
    assert!(daemon.terminate().success());
}

#[test]
fn the_tour_comes_to_its_end() {
    let world = World::new(PROGRAM);
    let answer = world.everwhen(&["demo", "--fast"]).exits(0);
    assert!(answer.out.contains("DELETE FROM orders"), "{answer:?}");
    assert!(answer.out.contains("everwhen restore"), "{answer:?}");
}

/// A signal at any moment: either there is no file, or it is whole and that is what is said.
#[test]
fn a_restore_that_is_interrupted_at_its_end_says_what_is_true() {
    let (_server, world) = slow_store();
    let targets = world.path("targets");
    std::fs::create_dir(&targets).unwrap();
    let to = targets.join("x.db");
    let is_draft = |name: &String| name.starts_with('.');
    for round in 0..12 {
        let arguments = ["restore", "app", "--latest", "--to", to.to_str().unwrap(), "--state", "none"];
        let child = world.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until("a draft or more", || !files_of(&targets).is_empty());
        match round % 3 {
            0 => {}
            1 => until("a name", || !files_of(&targets).iter().any(is_draft)),
            _ => std::thread::sleep(Duration::from_micros(500 * round)),
        }
        assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().is_ok());
        let answer = child.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&answer.stderr).into_owned();
        match answer.status.code() {
            Some(0) => std::fs::remove_file(&to).unwrap(),
            Some(1) => assert!(told.contains("not finished"), "{told}"),
            other => panic!("{other:?}: {told}"),
        }
        assert_eq!(files_of(&targets), [""; 0], "round {round}: {told}");
    }
}

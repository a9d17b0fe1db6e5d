//! A number is given to one transaction only, whatever a kill leaves behind: in the store there is never another one of
//! the same name, not even when a put that the kill broke off arrives late.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use everwhen_tests::{World, image_of};
use rusqlite::Connection;

const PROGRAM: &str = env!("CARGO_BIN_EXE_everwhen-under-test");

/// A database, some commits of which are durable, and the daemon killed.
struct Scene {
    world: World,
    app: Connection,
    late: Option<(PathBuf, PathBuf)>,
}

impl Scene {
    fn new() -> Self {
        let world = World::new(PROGRAM);
        let app = world.connect();
        app.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)").unwrap();
        let mut daemon = world.daemon();
        daemon.settle();
        assert!(daemon.terminate().success());
        Self { world, app, late: None }
    }

    fn insert(&self, id: i64) {
        self.app.execute("INSERT INTO t VALUES (?1, hex(randomblob(50)))", [id]).unwrap();
    }

    /// The segments of the first timeline, in order.
    fn segments(&self) -> Vec<PathBuf> {
        let database = folders(&self.world.repository().join("db")).pop().unwrap();
        let mut segments = folders(&database.join("log/00000001"));
        segments.sort();
        segments
    }

    /// This segment has not arrived yet.
    fn hold_back(&mut self, segment: PathBuf) {
        let aside = self.world.path("late");
        std::fs::rename(&segment, &aside).unwrap();
        self.late = Some((aside, segment));
    }

    /// What the application does while nobody looks: its log no longer tells.
    fn unseen(&self) {
        for id in 500..520 {
            self.insert(id);
            self.app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        }
    }

    /// Protection goes on, the late segment arrives, and everything in the repository is sound.
    fn ends_well(mut self) {
        let world = &self.world;
        let mut daemon = world.daemon();
        daemon.settle();
        for id in 1000..1003 {
            self.insert(id);
            daemon.settle();
        }
        if let Some((aside, segment)) = self.late.take() {
            std::fs::rename(aside, segment).unwrap();
        }
        let database = world.database();
        let _ = world.everwhen(&["verify", database.to_str().unwrap(), "--deep"]).exits(0);
        let (answer, target) = world.restore(&["--latest"], "latest.db");
        let _ = answer.exits(0);
        assert!(image_of(&mut Connection::open(target).unwrap()) == image_of(&mut self.app));
        let history = world.everwhen(&["history", database.to_str().unwrap(), "--json"]).exits(0).json();
        let timelines = history["timelines"].as_array().unwrap().len();
        assert_eq!(timelines, 2, "{history}\n{}", world.daemon_log());
    }
}

fn folders(of: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(of).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// The kill comes between a put and the daemon's knowing of it; the segment arrives after the next start.
fn a_put_arrives_late(unseen: bool) {
    let mut scene = Scene::new();
    let before = scene.segments();
    let mut daemon = scene.world.daemon_with(&[], &[("EVERWHEN_FAILPOINT", "segment_after_put")]);
    let mut id = 0;
    while daemon.wait_for_death(Duration::from_millis(15)).is_err() {
        assert!(id < 400, "it never died");
        scene.insert(id);
        id += 1;
    }
    drop(daemon);
    let arrived = scene.segments().into_iter().find(|segment| !before.contains(segment)).unwrap();
    scene.hold_back(arrived);
    if unseen {
        scene.unseen();
    }
    scene.ends_well();
}

#[test]
fn a_put_that_a_kill_broke_off_may_arrive_after_a_gap() {
    a_put_arrives_late(true);
}

/// The same transactions are captured again, but nobody saw when they were committed.
#[test]
fn a_put_that_a_kill_broke_off_may_arrive_when_the_log_goes_on() {
    a_put_arrives_late(false);
}

/// As earlier versions of the daemon could leave it, which stored several segments at a time.
fn segments_behind_a_hole(unseen: bool) {
    let mut scene = Scene::new();
    let mut daemon = scene.world.daemon();
    for id in 0..5 {
        daemon.settle();
        scene.insert(id);
    }
    daemon.settle();
    daemon.kill();
    let segments = scene.segments();
    scene.hold_back(segments[segments.len() - 3].clone());
    if unseen {
        scene.unseen();
    }
    scene.ends_well();
}

#[test]
fn numbers_behind_a_hole_are_not_given_out_again_when_the_log_goes_on() {
    segments_behind_a_hole(false);
}

#[test]
fn numbers_behind_a_hole_are_not_given_out_again_after_a_gap() {
    segments_behind_a_hole(true);
}

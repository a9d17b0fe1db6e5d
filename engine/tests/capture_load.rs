//! What the application feels of being captured: no busy answers, no checkpoints in vain, a log that stays short. How
//! fast all of it is, the benches measure.

#![allow(clippy::unwrap_used, reason = "what helps tests fails as tests do")]

mod capture_support;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use capture_support::writer::{reported, run_job, start};
use capture_support::{Rig, wal_database};
use everwhen_engine::capture::sqlite::SqliteOptions;
use everwhen_engine::time::Timestamp;

#[test]
#[ignore = "runs as an application process of the other tests"]
fn application_process() {
    run_job();
}

fn database(folder: &tempfile::TempDir) -> PathBuf {
    let (path, app) = wal_database(folder.path(), "PRAGMA page_size=4096");
    app.execute_batch("create table t(a integer primary key, b, c)").unwrap();
    path
}

#[test]
fn an_application_without_patience_at_200_commits_a_second_is_never_told_busy() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(&folder);
    let mut rig = Rig::attach(&path);
    let child = start("paced 1600 0", &path);
    let reader = std::thread::spawn(move || {
        let output = child.wait_with_output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    });
    rig.run_until(|_| reader.is_finished());
    rig.settle_and_compare();
    let text = reader.join().unwrap();
    let returned: Vec<i64> =
        text.lines().filter_map(|line| line.strip_prefix("returned ")?.trim().parse().ok()).collect();
    assert_eq!(rig.model.commits.len(), 1_600);
    assert!(text.contains("busy=0 "), "{}", text.lines().last().unwrap());
    let early = rig
        .model
        .commits
        .iter()
        .zip(&returned)
        .filter(|(commit, returned)| commit.time.as_micros() > **returned)
        .count();
    assert_eq!(early, 0, "commit times later than the writer's return");
    assert!(rig.source.log_status().unwrap().frames < 1_600, "the log was never reset");
}

#[test]
fn an_applications_full_restart_and_truncate_checkpoints_always_come_through() {
    std::thread::scope(|scope| {
        for mode in 0..3 {
            scope.spawn(move || {
                let folder = tempfile::tempdir().unwrap();
                let path = database(&folder);
                let mut rig = Rig::attach(&path);
                let mut child = start(&format!("checkpoint 20 {mode}"), &path);
                rig.run_until(|_| child.try_wait().unwrap().is_some());
                rig.settle_and_compare();
                assert_eq!((rig.model.commits.len(), reported(child, "failed")), (20, 0), "mode {mode}");
                assert!(rig.events.is_empty(), "{:?}", rig.events);
            });
        }
    });
}

/// SQLite's checkpoint waits for the slot of a reader that was behind. A pin that takes that slot at the wrong instant
/// is waited for for ever, with all writers behind it, however often it moves on.
#[test]
fn a_checkpoint_that_waits_for_a_slot_our_pin_has_taken_comes_through() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(&folder);
    let app = rusqlite::Connection::open(&path).unwrap();
    app.execute_batch(
        "with recursive n(i) as (select 1 union all select i + 1 from n where i < 4000)
         insert into t(b) select randomblob(1500) from n",
    )
    .unwrap();
    let mut rig = Rig::attach(&path);
    let mut child = start("rewrite 40 0", &path);
    // Looking without pause is what makes the instant likely.
    while child.try_wait().unwrap().is_none() {
        rig.poll();
    }
    assert_eq!(reported(child, "stalled"), 0);
    rig.settle_and_compare();
    assert_eq!((rig.model.commits.len(), &rig.events[..]), (120, &[][..]));
}

/// While a pin is on slot 0 no checkpoint can move anything into the file, and each commit past 1000 frames tries one
/// again: they become a hundred times dearer.
#[test]
fn twenty_thousand_commits_on_a_log_that_was_empty_at_the_start_are_checkpointed_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(&folder);
    rusqlite::Connection::open(&path)
        .unwrap()
        .query_row("PRAGMA wal_checkpoint(truncate)", [], |_| Ok(()))
        .unwrap();
    let mut rig = Rig::attach(&path);
    let mut child = start("saturated 20000 0", &path);
    rig.run_until(|_| child.try_wait().unwrap().is_some());
    let log = rig.source.log_status().unwrap();
    rig.settle_and_compare();
    assert_eq!(rig.model.commits.len(), 20_000);
    assert!(log.frames < 20_000 || log.backfilled > 0, "nothing was moved into the file: {log:?}");
}

#[test]
fn the_log_stays_near_its_hard_limit_under_saturation_and_grows_without_one() {
    for hard_frames in [Some(1_000), None] {
        let folder = tempfile::tempdir().unwrap();
        let path = database(&folder);
        let mut rig = Rig::attach_with(&path, SqliteOptions { hard_frames, ..SqliteOptions::default() });
        let mut child = start("saturated 20000 0", &path);
        let mut longest = 0;
        rig.run_until(|rig| {
            longest = longest.max(rig.source.log_status().unwrap().frames);
            child.try_wait().unwrap().is_some()
        });
        rig.settle_and_compare();
        assert_eq!(rig.model.commits.len(), 20_000);
        println!("hard limit {hard_frames:?}: {longest} frames at most");
        if hard_frames.is_some() {
            assert!(longest < 30_000, "{longest}");
        }
    }
}

#[test]
fn an_idle_database_is_hardly_looked_at_and_its_next_commit_is_not_missed() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(&folder);
    let mut rig = Rig::attach(&path);
    let app = rusqlite::Connection::open(&path).unwrap();
    app.execute("insert into t(b) values (1)", []).unwrap();
    rig.run_until(|rig| rig.poll().idle);
    rig.run_for(Duration::from_millis(1_200));
    // Nothing happens, so a wait lasts until its end or the next look at the names. A slow machine only makes it longer.
    let started = Instant::now();
    for _ in 0..4 {
        assert!(rig.poll().idle);
        rig.source.wait(&rig.waker, Duration::from_millis(500));
    }
    assert!(started.elapsed() > Duration::from_secs(1), "woken for nothing");
    assert!(rig.poll().idle);
    let writer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        app.execute("insert into t(b) values (2)", []).unwrap();
    });
    rig.run_until(|rig| rig.model.commits.len() == 2);
    writer.join().unwrap();
    assert_eq!(rig.model.unwatched, 0, "a commit after a long silence was watched all the same");
}

#[test]
fn commits_made_while_the_daemon_stood_still_have_no_certain_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(&folder);
    let mut rig = Rig::attach(&path);
    let app = rusqlite::Connection::open(&path).unwrap();
    let insert = || app.execute("insert into t(b) values (1)", []).unwrap();
    insert();
    rig.run_until(|rig| rig.model.commits.len() == 1);
    insert();
    std::thread::sleep(Duration::from_millis(1_200));
    insert();
    rig.run_until(|rig| rig.model.commits.len() == 3);
    assert_eq!(rig.model.unwatched, 2);
    std::thread::sleep(Duration::from_millis(1_200));
    insert();
    rig.run_until(|rig| rig.model.commits.len() == 4);
    assert_eq!(rig.model.unwatched, 2, "the time of a single commit is that of the log's last change");
    insert();
    insert();
    std::thread::sleep(Duration::from_millis(1_200));
    rig.model.refuse = true;
    assert!(rig.source.poll(&mut rig.model).is_err());
    assert_eq!(rig.model.unwatched_since, None, "what comes after an error has times of its own");
    rig.model.refuse = false;
    rig.run_until(|rig| rig.model.commits.len() == 6);
    assert_eq!(rig.model.unwatched, 4);
}

#[test]
fn commits_that_write_the_same_once_more_are_commits_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(&folder);
    let app = rusqlite::Connection::open(&path).unwrap();
    let replace = || app.execute("replace into t(a, b) values (1, 'the same')", []).unwrap();
    replace();
    let mut rig = Rig::attach(&path);
    let returned = [0; 5].map(|_| {
        replace();
        Timestamp::now()
    });
    rig.settle_and_compare();
    assert_eq!(rig.model.commits.len(), 5);
    let times = rig.model.commits.iter().map(|commit| commit.time);
    assert!(times.zip(returned).all(|(time, returned)| time <= returned));
    std::thread::sleep(Duration::from_millis(1_200));
    replace();
    std::thread::sleep(Duration::from_millis(1_200));
    replace();
    rig.settle_and_compare();
    assert_eq!(
        (rig.model.commits.len(), rig.model.unwatched),
        (7, 2),
        "nobody saw when the first of them was"
    );
}

#[test]
fn commits_that_come_while_a_huge_one_is_captured_have_times_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(&folder);
    let mut rig = Rig::attach(&path);
    let app = rusqlite::Connection::open(&path).unwrap();
    app.execute("insert into t(b) values (randomblob(40000000))", []).unwrap();
    rig.model.stall = Some(Duration::from_millis(1_800));
    let writer = std::thread::spawn(move || {
        let commit = |_| {
            std::thread::sleep(Duration::from_millis(100));
            app.execute("insert into t(b) values (1)", []).unwrap();
            Timestamp::now()
        };
        (0..15).map(commit).collect::<Vec<_>>()
    });
    rig.run_until(|rig| rig.model.commits.len() == 16);
    let returned = writer.join().unwrap();
    assert_eq!(rig.model.unwatched, 0);
    let times: Vec<Timestamp> = rig.model.commits.iter().skip(1).map(|commit| commit.time).collect();
    assert!(times.iter().zip(&returned).all(|(time, returned)| time <= returned), "{times:?} {returned:?}");
    let distinct: BTreeSet<&Timestamp> = times.iter().collect();
    assert!(distinct.len() > 3, "{times:?}");
}

#[test]
fn a_waker_ends_the_wait() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(&folder);
    let mut rig = Rig::attach(&path);
    rig.run_for(Duration::from_millis(700));
    let waker = rig.waker.clone();
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        waker.wake();
    });
    // Without the waker it would wait for an hour.
    rig.source.wait(&rig.waker, Duration::from_secs(3_600));
    other.join().unwrap();
}

#[test]
fn an_image_taken_under_load_is_the_last_captured_commit() {
    use everwhen_engine::page::StateChecksum;
    let folder = tempfile::tempdir().unwrap();
    let path = database(&folder);
    let mut rig = Rig::attach(&path);
    let mut child = start("paced 600 0", &path);
    let mut hostile = start("checkpoints 3000 9", &path);
    let mut images: Vec<(StateChecksum, Box<dyn everwhen_engine::capture::sink::Image + Send>, u32)> =
        Vec::new();
    rig.run_until(|rig| {
        if images.len() < 4 {
            let image = rig.source.image(&mut rig.model, &std::env::temp_dir()).unwrap();
            images.push((rig.model.state(), image, rig.model.image_pages));
        } else {
            // They stay what they were, however long they are held.
            for (state, mut image, pages) in images.drain(..) {
                let mut held = capture_support::Model::default();
                held.load(&mut *image);
                assert_eq!((held.state(), held.image_pages), (state, pages));
            }
        }
        child.try_wait().unwrap().is_some()
    });
    drop(images);
    hostile.wait().unwrap();
    rig.settle_and_compare();
    assert_eq!(rig.model.commits.len(), 600);
}

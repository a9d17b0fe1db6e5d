//! What the application feels of being captured: no busy answers, no slow checkpoints, no slow commits.

#![allow(clippy::unwrap_used, reason = "what helps tests fails as tests do")]

mod capture_support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use capture_support::writer::{reported, run_job, start};
use capture_support::{Rig, wal_database};
use everwhen_engine::capture::sqlite::SqliteOptions;

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

/// User and system time of this thread in microseconds.
fn thread_cpu() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec * 1_000_000 + time.tv_nsec / 1_000
}

#[test]
fn an_application_without_patience_at_200_commits_a_second_is_never_told_busy() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(&folder);
    let mut rig = Rig::attach(&path);
    let (cpu, started) = (thread_cpu(), Instant::now());
    let child = start("paced 1600 0", &path);
    let reader = std::thread::spawn(move || {
        let output = child.wait_with_output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    });
    rig.run_until(|_| reader.is_finished());
    let cpu_percent = (thread_cpu() - cpu) as f64 / started.elapsed().as_micros() as f64 * 100.0;
    rig.settle_and_compare();
    let text = reader.join().unwrap();
    let returned: Vec<i64> =
        text.lines().filter_map(|line| line.strip_prefix("returned ")?.trim().parse().ok()).collect();
    assert_eq!(rig.model.commits.len(), 1_600);
    assert!(text.contains("busy=0 "), "{}", text.lines().last().unwrap());
    let mut latencies: Vec<_> =
        rig.model.seen_at.iter().zip(&returned).map(|(seen, returned)| seen.as_micros() - returned).collect();
    latencies.sort_unstable();
    let early = rig
        .model
        .commits
        .iter()
        .zip(&returned)
        .filter(|(commit, returned)| commit.time.as_micros() > **returned)
        .count();
    assert_eq!(early, 0, "commit times later than the writer's return");
    let (p50, p99) = (latencies[800], latencies[1_584]);
    println!(
        "captured after p50 {p50} µs, p99 {p99} µs, max {} µs; {cpu_percent:.1} % of a core",
        latencies[1_599]
    );
    assert!(p50 < 20_000, "{p50}");
    assert!(rig.source.log_status().unwrap().frames < 1_600, "the log was never reset");
}

#[test]
fn an_applications_truncate_checkpoint_returns_quickly() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(&folder);
    let mut rig = Rig::attach(&path);
    let child = start("truncate 20 0", &path);
    let reader = std::thread::spawn(move || reported_pair(child));
    rig.run_until(|_| reader.is_finished());
    let (worst, failed) = reader.join().unwrap();
    rig.settle_and_compare();
    assert_eq!(rig.model.commits.len(), 20);
    assert_eq!(failed, 0);
    println!("worst {worst} ms");
    assert!(worst < 200, "{worst} ms");
}

/// SQLite's checkpoint waits for the slot of a reader that was behind. A pin that takes that slot at the wrong instant is
/// waited for for ever, with all writers behind it, however often it moves on.
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

fn reported_pair(child: std::process::Child) -> (u64, u64) {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let number = |word: &str| {
        text.split_whitespace().find_map(|part| part.strip_prefix(word)).unwrap().parse().unwrap()
    };
    (number("worst="), number("failed="))
}

/// A pin that stays on slot 0 makes each commit past 1000 frames a hundred times dearer.
#[test]
fn twenty_thousand_commits_on_a_log_that_was_empty_at_the_start_are_not_slowed_down() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(&folder);
    rusqlite::Connection::open(&path)
        .unwrap()
        .query_row("PRAGMA wal_checkpoint(truncate)", [], |_| Ok(()))
        .unwrap();
    let mut rig = Rig::attach(&path);
    let mut child = start("saturated 20000 0", &path);
    rig.run_until(|_| child.try_wait().unwrap().is_some());
    let millis = reported(child, "millis");
    rig.settle_and_compare();
    assert_eq!(rig.model.commits.len(), 20_000);
    println!("{millis} ms, log of {} frames", rig.source.log_status().unwrap().frames);
    // On slot 0 all the while it takes 12 s on the machine this was written on, else about half a second.
    assert!(millis < 6_000, "{millis} ms");
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
fn an_idle_database_costs_next_to_nothing_and_wakes_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(&folder);
    let mut rig = Rig::attach(&path);
    let app = rusqlite::Connection::open(&path).unwrap();
    app.execute("insert into t(b) values (1)", []).unwrap();
    rig.run_for(Duration::from_millis(1_200));
    let (cpu, started) = (thread_cpu(), Instant::now());
    while started.elapsed() < Duration::from_secs(2) {
        rig.poll();
        rig.source.wait(&rig.waker, Duration::from_secs(1));
    }
    let percent = (thread_cpu() - cpu) as f64 / started.elapsed().as_micros() as f64 * 100.0;
    println!("idle: {percent:.3} % of a core");
    assert!(percent < 0.5, "{percent}");
    assert!(rig.poll().idle);
    let writer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        app.execute("insert into t(b) values (2)", []).unwrap();
        Instant::now()
    });
    rig.run_until(|rig| rig.model.commits.len() == 2);
    assert!(writer.join().unwrap().elapsed() < Duration::from_millis(100));
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
fn a_waker_ends_the_wait() {
    let folder = tempfile::tempdir().unwrap();
    let path = database(&folder);
    let mut rig = Rig::attach(&path);
    rig.run_for(Duration::from_millis(700));
    let waker = rig.waker.clone();
    let started = Instant::now();
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        waker.wake();
    });
    rig.source.wait(&rig.waker, Duration::from_secs(10));
    other.join().unwrap();
    assert!(started.elapsed() < Duration::from_secs(5));
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

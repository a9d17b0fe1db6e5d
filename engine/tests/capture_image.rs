//! Images: each stays the state of its commit, page by page, whatever happens to the database before it is read; and
//! nobody waits for one.

#![allow(clippy::unwrap_used, reason = "what helps tests fails as tests do")]

mod capture_support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use capture_support::writer::{reported, run_job, start};
use capture_support::{Model, Rig, wal_database};
use everwhen_engine::capture::sink::Image;
use everwhen_engine::capture::sqlite::SqliteOptions;
use everwhen_engine::page::PageNo;
use proptest::prelude::*;
use rusqlite::Connection;

const PAGE: usize = 512;

#[test]
#[ignore = "runs as an application process of the other tests"]
fn application_process() {
    run_job();
}

/// A database of some hundred small pages.
fn database(folder: &Path) -> (PathBuf, Connection) {
    let (path, app) = wal_database(folder, &format!("PRAGMA page_size={PAGE}"));
    app.execute_batch("create table t(a integer primary key, b, c); PRAGMA synchronous=off").unwrap();
    insert(&app, 300);
    (path, app)
}

fn insert(app: &Connection, rows: u32) {
    app.execute(
        "with recursive n(i) as (select 1 union all select i + 1 from n where i < ?1)
         insert into t(b) select randomblob(400) from n",
        [rows],
    )
    .unwrap();
}

/// An image that is read step by step, and what it must give.
struct Held {
    image: Box<dyn Image>,
    expected: BTreeMap<u32, Vec<u8>>,
    next: u32,
}

impl Held {
    fn take(rig: &mut Rig) -> Self {
        let image = rig.source.image(&mut rig.model, &std::env::temp_dir()).unwrap();
        assert_eq!(image.page_count(), rig.model.image_pages);
        Self { image, expected: rig.model.pages.clone(), next: 1 }
    }

    fn read(&mut self, pages: u32) {
        let mut buffer = vec![0; PAGE];
        let last = self.image.page_count().min(self.next.saturating_add(pages) - 1);
        for page in (self.next..=last).filter_map(PageNo::new) {
            assert!(self.image.read(page, &mut buffer).unwrap().is_some());
            assert!(self.expected[&page.get()] == buffer, "page {page} is not what it was");
            self.image.pass(page);
        }
        self.next = last + 1;
    }

    fn read_to_end(mut self) {
        self.read(u32::MAX - self.next);
        assert_eq!(self.next, self.image.page_count() + 1);
    }
}

#[test]
fn an_applications_truncate_goes_through_while_an_image_is_held() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = database(folder.path());
    let mut rig = Rig::attach(&path);
    insert(&app, 50);
    let mut held = Held::take(&mut rig);
    // This thread is the one its checkpoint waits for.
    app.busy_timeout(Duration::ZERO).unwrap();
    let mut application = start("rewrite 10 0", &path);
    rig.run_until(|rig| {
        let _ = app.execute("update t set b = randomblob(400) where a % 9 = 1", []);
        held.read(3);
        rig.poll();
        application.try_wait().unwrap().is_some()
    });
    assert_eq!(reported(application, "stalled"), 0);
    held.read_to_end();
    rig.settle_and_compare();
}

#[test]
fn the_log_is_led_to_its_reset_while_an_image_is_held() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = database(folder.path());
    let mut rig = Rig::attach(&path);
    let held = Held::take(&mut rig);
    for _ in 0..3 {
        app.execute("update t set b = randomblob(400)", []).unwrap();
        rig.run_until(|rig| rig.poll().idle);
        app.execute("update t set b = 1 where a = 1", []).unwrap();
        rig.poll();
        assert!(rig.source.log_status().unwrap().frames < 10, "the log was not reset");
    }
    held.read_to_end();
}

#[test]
fn an_image_survives_a_vacuum_that_cuts_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = database(folder.path());
    let mut rig = Rig::attach(&path);
    let mut held = Held::take(&mut rig);
    let pages = rig.model.image_pages;
    held.read(10);
    app.execute_batch("delete from t where a > 20; vacuum").unwrap();
    rig.run_until(|rig| rig.poll().idle);
    assert!(rig.model.image_pages < pages / 4);
    assert!(std::fs::metadata(&path).unwrap().len() < u64::from(pages) * PAGE as u64, "the file was not cut");
    insert(&app, 500);
    rig.run_until(|rig| rig.poll().idle);
    held.read_to_end();
}

#[test]
fn an_image_that_cannot_be_kept_is_given_up_and_the_capture_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = database(folder.path());
    let mut rig = Rig::attach(&path);
    let mut image = rig.source.image(&mut rig.model, &folder.path().join("absent")).unwrap();
    let mut buffer = vec![0; PAGE];
    assert!(image.read(PageNo::new(1).unwrap(), &mut buffer).is_ok());
    insert(&app, 50);
    rig.run_until(|rig| rig.poll().idle);
    let error = image.read(PageNo::new(1).unwrap(), &mut buffer).unwrap_err().to_string();
    assert!(error.contains("given up") && error.contains("could not be kept"), "{error}");
    rig.settle_and_compare();
}

#[test]
fn an_image_cannot_be_read_after_its_source_let_go() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _app) = database(folder.path());
    let mut rig = Rig::attach(&path);
    let mut image = rig.source.image(&mut rig.model, folder.path()).unwrap();
    rig.source.release();
    assert!(image.read(PageNo::new(1).unwrap(), &mut vec![0; PAGE]).is_err());
}

/// Something that happens while images are held.
#[derive(Clone, Copy, Debug)]
enum Step {
    Insert(u32),
    Update(u32),
    Delete(u32),
    Vacuum,
    Checkpoint(&'static str),
    Look,
    /// Looks until all is backfilled: the next commit resets the log.
    Rest,
    Take,
    Read(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1u32..200).prop_map(Step::Insert),
        4 => (1u32..400).prop_map(Step::Update),
        2 => (1u32..400).prop_map(Step::Delete),
        1 => Just(Step::Vacuum),
        2 => prop::sample::select(vec!["passive", "full", "restart", "truncate"]).prop_map(Step::Checkpoint),
        6 => Just(Step::Look),
        2 => Just(Step::Rest),
        2 => Just(Step::Take),
        5 => (1u32..150).prop_map(Step::Read),
    ];
    prop::collection::vec(step, 1..60)
}

fn rest(rig: &mut Rig) {
    let started = Instant::now();
    while !rig.poll().idle {
        assert!(started.elapsed() < Duration::from_secs(20), "it never rests");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn run(steps: &[Step]) {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = database(folder.path());
    let options = SqliteOptions { idle: Duration::from_millis(1), ..SqliteOptions::default() };
    let mut rig = Rig::attach_with(&path, options);
    app.busy_timeout(Duration::ZERO).unwrap();
    let mut held = vec![Held::take(&mut rig)];
    for step in steps {
        match *step {
            Step::Insert(rows) => insert(&app, rows),
            Step::Update(from) => {
                app.execute("update t set b = randomblob(400) where a % 400 > ?1", [from]).map(drop).unwrap();
            }
            Step::Delete(from) => app.execute("delete from t where a % 400 > ?1", [from]).map(drop).unwrap(),
            Step::Vacuum => app.execute_batch("vacuum").unwrap(),
            // Without patience, told busy or not: it goes as far as our pin lets it.
            Step::Checkpoint(mode) => {
                app.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(())).unwrap();
            }
            Step::Look => drop(rig.poll()),
            Step::Rest => rest(&mut rig),
            Step::Take => held.push(Held::take(&mut rig)),
            Step::Read(pages) => held.iter_mut().for_each(|held| held.read(pages)),
        }
    }
    held.into_iter().for_each(Held::read_to_end);
    rig.settle_and_compare();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn an_image_is_the_state_of_its_commit_whatever_happens(steps in steps()) {
        run(&steps);
    }
}

#[test]
fn a_model_is_not_all_zeros() {
    // The comparisons above would be worth nothing.
    let folder = tempfile::tempdir().unwrap();
    let (path, _app) = database(folder.path());
    let rig = Rig::attach(&path);
    let Model { pages, .. } = rig.model;
    assert!(
        pages.len() > 250 && pages.values().filter(|page| page.iter().any(|&byte| byte != 0)).count() > 250
    );
}

//! A sink that is a model: it replays what is captured and checks every commit against what it knows.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what helps tests fails as tests do")]

pub mod writer;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use everwhen_engine::capture::sink::{Commit, Image, Previous, PreviousPage, Sink};
use everwhen_engine::capture::sqlite::{Attach, Polled, SourceEvent, SqliteOptions, SqliteSource};
use everwhen_engine::capture::watch::Waker;
use everwhen_engine::page::{PageHash, PageNo, StateChecksum};
use everwhen_engine::time::Timestamp;

/// The database as captured so far.
#[derive(Default)]
pub struct Model {
    pub pages: BTreeMap<u32, Vec<u8>>,
    pending: BTreeMap<u32, Vec<u8>>,
    pub commits: Vec<Commit>,
    pub image_pages: u32,
    /// Previous versions the source gave, and how many of them were the right ones.
    pub previous_given: u64,
    pub previous_certain: u64,
    pub previous_right: u64,
    pub previous_missing: u64,
    pub secured: u64,
    pub distrusted: u64,
    /// Commits whose times nobody saw.
    pub unwatched: u64,
    pub unwatched_since: Option<Timestamp>,
    /// Where to go on in logs begun anew, each with how many commits were captured before.
    pub began_anew: Vec<(usize, Vec<u8>)>,
    /// Refuse pages while set.
    pub refuse: bool,
    /// Take that long for the next page.
    pub stall: Option<Duration>,
    pub keep_states: bool,
    pub states: Vec<StateChecksum>,
}

#[derive(Debug, thiserror::Error)]
#[error("the model refuses")]
pub struct Refused;

impl Sink for Model {
    type Error = Refused;

    fn page(&mut self, page: PageNo, image: &[u8], previous: PreviousPage<'_>) -> Result<(), Refused> {
        if self.refuse {
            return Err(Refused);
        }
        if let Some(stall) = self.stall.take() {
            std::thread::sleep(stall);
        }
        if let Some(known) = self.pages.get(&page.get()) {
            let mut buffer = Vec::new();
            let previous = previous(&mut buffer);
            if previous != Previous::Unknown {
                assert!(
                    previous == Previous::Perhaps || &buffer == known,
                    "a wrong version of page {page} as certain"
                );
                self.previous_given += 1;
                self.previous_certain += u64::from(previous == Previous::Certain);
                self.previous_right += u64::from(&buffer == known);
            } else {
                self.previous_missing += 1;
            }
        }
        assert!(self.pending.insert(page.get(), image.to_vec()).is_none(), "page {page} came twice");
        Ok(())
    }

    fn commit(&mut self, commit: Commit) -> Result<(), Refused> {
        let now = Timestamp::now();
        assert!(commit.time <= now, "a commit time in the future");
        if let Some(since) = self.unwatched_since {
            assert!(since <= commit.time);
            self.unwatched += 1;
        }
        assert!(commit.image_pages > 0);
        self.pages.append(&mut self.pending);
        self.pages.split_off(&(commit.image_pages + 1));
        self.image_pages = commit.image_pages;
        if self.keep_states {
            self.states.push(self.state());
        }
        self.commits.push(commit);
        Ok(())
    }

    fn began_anew(&mut self, resume: Vec<u8>) -> Result<(), Refused> {
        self.began_anew.push((self.commits.len(), resume));
        Ok(())
    }

    fn unwatched(&mut self, since: Timestamp) -> Result<(), Refused> {
        self.unwatched_since = Some(since);
        Ok(())
    }

    fn watched(&mut self) -> Result<(), Refused> {
        self.unwatched_since = None;
        Ok(())
    }

    fn rollback(&mut self) {
        self.pending.clear();
    }

    fn distrust(&mut self) {
        assert!(self.pending.is_empty());
        self.distrusted += 1;
    }

    fn secure(&mut self) -> Result<(), Refused> {
        assert!(self.pending.is_empty());
        self.secured += 1;
        Ok(())
    }
}

impl Model {
    /// Takes a full image as the state.
    pub fn load(&mut self, image: &mut dyn Image) {
        self.pages = pages_of(image);
        self.image_pages = image.page_count();
    }

    pub fn state(&self) -> StateChecksum {
        self.pages.iter().fold(StateChecksum::EMPTY, |sum, (page, image)| {
            sum.with(PageHash::of(PageNo::new(*page).unwrap(), image))
        })
    }

    /// The image equals this one, page by page.
    pub fn assert_equals(&self, image: &mut dyn Image) {
        assert_eq!(self.image_pages, image.page_count(), "pages in the image");
        let theirs = pages_of(image);
        let different: Vec<_> =
            (1..=self.image_pages).filter(|page| self.pages.get(page) != theirs.get(page)).collect();
        assert!(different.is_empty(), "pages that differ: {different:?}");
    }

    /// Writes the model as a file and asks SQLite whether it is a sound database; gives a connection to it.
    pub fn open_copy(&self, folder: &Path, page_size: usize) -> rusqlite::Connection {
        use std::os::unix::fs::FileExt;
        let path = folder.join("copy.db");
        let _ = std::fs::remove_file(&path);
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(u64::from(self.image_pages) * page_size as u64).unwrap();
        for (page, image) in &self.pages {
            file.write_all_at(image, u64::from(page - 1) * page_size as u64).unwrap();
        }
        drop(file);
        let connection = rusqlite::Connection::open(&path).unwrap();
        let answer: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(answer, "ok");
        connection
    }
}

pub fn pages_of(image: &mut dyn Image) -> BTreeMap<u32, Vec<u8>> {
    let mut pages = BTreeMap::new();
    let mut buffer = vec![0; image.page_size().bytes()];
    for number in 1..=image.page_count() {
        if image.read(PageNo::new(number).unwrap(), &mut buffer).unwrap().is_some() {
            pages.insert(number, buffer.clone());
        }
    }
    pages
}

/// A source and its model, attached at the state found.
pub struct Rig {
    pub source: SqliteSource,
    pub model: Model,
    pub waker: Waker,
    pub events: Vec<SourceEvent>,
}

impl Rig {
    pub fn attach(path: &Path) -> Self {
        Self::attach_with(path, SqliteOptions::default())
    }

    pub fn attach_with(path: &Path, options: SqliteOptions) -> Self {
        let mut source = SqliteSource::open(path, options).unwrap();
        let mut model = Model::default();
        assert!(matches!(source.attach(None).unwrap(), Attach::Unknown { .. }));
        let mut image = source.image(&mut model, &std::env::temp_dir()).unwrap();
        model.load(&mut *image);
        assert!(model.commits.is_empty());
        Self { source, model, waker: Waker::new().unwrap(), events: Vec::new() }
    }

    pub fn poll(&mut self) -> Polled {
        let polled = self.source.poll(&mut self.model).unwrap();
        self.events.extend(polled.event.clone());
        polled
    }

    /// Looks, and waits as the daemon does.
    pub fn turn(&mut self) -> Polled {
        let polled = self.poll();
        self.source.wait(&self.waker, Duration::from_millis(50));
        polled
    }

    pub fn run_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        self.run_until(|_| Instant::now() >= until);
    }

    pub fn run_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let started = Instant::now();
        while !done(self) {
            self.turn();
            assert!(started.elapsed() < Duration::from_secs(60), "it takes too long");
        }
    }

    /// Everything published is captured, and equals what SQLite would read.
    pub fn settle_and_compare(&mut self) {
        self.poll();
        let mut image = self.source.image(&mut self.model, &std::env::temp_dir()).unwrap();
        self.model.assert_equals(&mut *image);
    }
}

pub fn wal_database(folder: &Path, setup: &str) -> (std::path::PathBuf, rusqlite::Connection) {
    let path = folder.join("app.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute_batch(&format!("{setup}; PRAGMA journal_mode=WAL;")).unwrap();
    (path, connection)
}

//! Every restore point of a repository in a folder, restored by the engine in this process: as the program does it, but
//! many in a second.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use everwhen_engine::history::{Gap, GapReason, History};
use everwhen_engine::plan::Target;
use everwhen_engine::repository::Repository;
use everwhen_engine::restore::{self, Cancel, Order, RestorePoint};
use everwhen_engine::sqlite::lock_byte_page;
use everwhen_engine::store::Store;
use everwhen_engine::time::Timestamp;
use tokio::runtime::Runtime;

/// The history of one database, opened.
pub struct States {
    runtime: Runtime,
    repository: Repository,
    history: History,
}

impl States {
    /// Of the database `name` in the repository in this folder, which is in the clear.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn open(folder: &Path, name: &str) -> Self {
        let runtime = Runtime::new().expect("runtime");
        let (repository, history) = runtime.block_on(async {
            let store = Store::open(folder.to_str().expect("path")).expect("store");
            let repository = Repository::open(store, None).await.expect("repository");
            let database = repository.find_database(name).await.expect("database").id;
            let history = restore::history_of(&repository, database).await.expect("history");
            (repository, history)
        });
        Self { runtime, repository, history }
    }

    /// All restore points, in order.
    ///
    /// # Panics
    /// When they cannot be read.
    #[must_use]
    pub fn points(&self) -> Vec<RestorePoint> {
        let mut points = Vec::new();
        let (from, to) = (Timestamp::from_micros(0), Timestamp::MAX);
        let read = restore::points(&self.repository, &self.history, from, to, |point| {
            points.push(point);
            true
        });
        self.runtime.block_on(read).expect("points");
        points
    }

    /// The intervals in which commits are missing; not those in which only their times are not known.
    #[must_use]
    pub fn holes(&self) -> Vec<Gap> {
        let mut gaps = self.history.gaps();
        gaps.retain(|gap| gap.reason != GapReason::UncertainTimes);
        gaps
    }

    /// Restores each of these points, proven, and gives what `look` makes of the file, in their order.
    ///
    /// # Panics
    /// When one cannot be restored.
    pub fn each<T: Send>(&self, points: &[RestorePoint], look: impl Fn(&Path) -> T + Sync) -> Vec<T> {
        // In memory, where there is such a place: the files are looked at once.
        let shm = Path::new("/dev/shm");
        let folder = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
        let folder = folder.expect("folder");
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(point) = points.get(at) else { return done };
                let to = folder.path().join(format!("{at}.db"));
                self.restore(*point, &to);
                done.push((at, look(&to)));
                std::fs::remove_file(&to).expect("remove");
            }
        };
        let mut all = std::thread::scope(|scope| {
            let other = scope.spawn(work);
            let mut all = work();
            all.extend(other.join().expect("the other half"));
            all
        });
        all.sort_by_key(|(at, _)| *at);
        all.into_iter().map(|(_, made)| made).collect()
    }

    fn restore(&self, point: RestorePoint, to: &Path) {
        let options = restore::Options {
            reserve_bytes: Some(0),
            left_out: |size| Some(lock_byte_page(size)),
            ..restore::Options::default()
        };
        let order = Order {
            target: Target::Position(point.position),
            now: Timestamp::now(),
            to,
            options: &options,
            planned: &|_| {},
            progress: Arc::new(|_| {}),
            cancel: &Cancel::new(),
        };
        let restored = restore::restore(&self.repository, &self.history, &order);
        let report =
            self.runtime.block_on(restored).unwrap_or_else(|error| panic!("{}: {error}", point.position));
        assert_eq!(report.position, point.position);
        assert_eq!(report.time, point.time);
        assert!(report.avoided.is_empty(), "{}: {:?}", point.position, report.avoided);
    }
}

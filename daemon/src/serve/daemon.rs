//! The running daemon: its databases, from the start to the stop.

mod answers;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use everwhen_engine::capture::sqlite::SqliteSource;
use everwhen_engine::error::ErrorKind;
use everwhen_engine::protect::{Hold, SOURCE_LOG_BYTES};
use everwhen_engine::time::Timestamp;
use everwhen_proto::v1;
use tokio::sync::Mutex;
use tokio::sync::mpsc;

use super::guard::Guard;
use super::home::{self, Home};
use crate::config::DatabaseEntry;
use crate::failure::Failure;
use crate::naming::spelt;
use crate::place::{Place, Told};
use crate::reader;
use crate::wire::{seen_in, time_out};

/// How often a database that could not be protected is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How often a mark says how far the time is covered.
const MARK_EVERY: Duration = Duration::from_secs(600);
const MARK_PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
pub(crate) struct Daemon {
    told: Told,
    started: Timestamp,
    guards: RwLock<Vec<Arc<Guard>>>,
    /// Every home there is. Held while one is opened.
    homes: Mutex<Vec<Arc<Home>>>,
    new_homes: mpsc::UnboundedSender<Arc<Home>>,
    /// What was asked for at the start.
    asked: Vec<DatabaseEntry>,
    /// Databases whose logs were held while a store was away.
    held: std::sync::Mutex<HashMap<PathBuf, SqliteSource>>,
    /// Whether the start is over.
    is_up: AtomicBool,
    /// Held while a database is added or removed: the list of them is read, changed and written.
    adding: Mutex<()>,
    histories: std::sync::Mutex<HashMap<String, Remembered>>,
}

/// What a status says of a history, and when it was read.
struct Remembered {
    window: Option<v1::Window>,
    gaps: u64,
    read: Instant,
}

/// Tells of each new home, so that its socket is opened.
pub(crate) type NewHomes = mpsc::UnboundedReceiver<Arc<Home>>;

impl Daemon {
    /// Begins to protect. Databases that cannot be protected now are tried again; if that is so for all, it is a failure.
    pub(crate) async fn start(
        told: Told,
        asked: Vec<DatabaseEntry>,
    ) -> Result<(Arc<Self>, NewHomes), Failure> {
        let (new_homes, tells_of_homes) = mpsc::unbounded_channel();
        let asked = fit_or_refused(asked).await?;
        let daemon = Arc::new(Self {
            told,
            started: Timestamp::now(),
            guards: RwLock::default(),
            homes: Mutex::default(),
            new_homes,
            asked: asked.clone(),
            held: std::sync::Mutex::default(),
            is_up: AtomicBool::new(false),
            adding: Mutex::default(),
            histories: std::sync::Mutex::default(),
        });
        daemon.open_shared_home().await?;
        let mut failures = Vec::new();
        for entry in asked {
            daemon.take_in(entry, false, &mut failures).await?;
        }
        let homes = daemon.homes.lock().await.clone();
        for home in homes {
            for entry in home.place.state.added()? {
                daemon.take_in(entry, true, &mut failures).await?;
            }
        }
        daemon.held().clear();
        daemon.is_up.store(true, Ordering::Relaxed);
        let waiting = daemon.guards().iter().filter(|guard| guard.is_waiting()).count();
        let mut failures = failures.into_iter();
        match failures.next() {
            Some(first) if waiting == daemon.guards().len() => Err(first),
            first => {
                first
                    .into_iter()
                    .chain(failures)
                    .for_each(|failure| tracing::error!("{}", failure.message()));
                Ok((daemon, tells_of_homes))
            }
        }
    }

    /// With a store named there is one home for all, also when nothing is protected yet.
    async fn open_shared_home(&self) -> Result<(), Failure> {
        if let Some(store) = &self.told.store {
            self.open_home(self.told.place_of_store(store)).await?;
        }
        Ok(())
    }

    async fn take_in(
        &self,
        entry: DatabaseEntry,
        added: bool,
        failures: &mut Vec<Failure>,
    ) -> Result<(), Failure> {
        let path = spelt(&entry.path);
        if self.guards().iter().any(|guard| Path::new(&path) == guard.entry().path) {
            return Ok(());
        }
        let path = PathBuf::from(path);
        let guard = self.prepare(DatabaseEntry { path: path.clone(), ..entry }, added).await?;
        let held = self.held().remove(&path);
        failures.extend(guard.start(held).await.err());
        self.keep(guard);
        Ok(())
    }

    async fn prepare(&self, entry: DatabaseEntry, added: bool) -> Result<Arc<Guard>, Failure> {
        let home = self.home_for(&entry.path).await?;
        let entry = known_as(&home, entry).await?;
        let class = self.told.config.classes.get(&entry.class).copied();
        Ok(Arc::new(Guard::new(entry, class, added, home, &self.told.config.flush)))
    }

    async fn home_for(&self, database: &Path) -> Result<Arc<Home>, Failure> {
        self.open_home(self.told.place_to_protect(database)).await
    }

    async fn open_home(&self, place: Place) -> Result<Arc<Home>, Failure> {
        let mut homes = self.homes.lock().await;
        if let Some(home) = homes.iter().find(|home| home.place == place) {
            return Ok(Arc::clone(home));
        }
        let opened = match Home::open(place.clone(), &self.told.config).await {
            Err(failure) if self.may_wait_for(&place, &failure) => self.wait_for(&place, failure).await?,
            opened => opened?,
        };
        let home = Arc::new(opened);
        homes.push(Arc::clone(&home));
        let _ = self.new_homes.send(Arc::clone(&home));
        Ok(home)
    }

    /// At the start a store that is away is waited for, if databases were protected into it before. Later somebody asks,
    /// and is told.
    fn may_wait_for(&self, place: &Place, failure: &Failure) -> bool {
        let used = || reader::url_of_store(&place.store).and_then(|url| place.state.has_used(&url));
        failure.kind == ErrorKind::StoreUnreachable
            && !self.is_up.load(Ordering::Relaxed)
            && used().unwrap_or(false)
    }

    /// The store is away, and nothing of its databases must be lost meanwhile: their logs are held until it is back.
    async fn wait_for(&self, place: &Place, mut failure: Failure) -> Result<Home, Failure> {
        let captured = |entry: &&DatabaseEntry| {
            self.told.config.classes.get(&entry.class).is_none_or(|class| class.captured)
        };
        let here = |entry: &&DatabaseEntry| self.told.place_to_protect(&entry.path) == *place;
        let added = place.state.added()?;
        let databases = self.asked.iter().chain(&added).filter(captured).filter(here);
        let databases = databases.map(|entry| (spelt(&entry.path).into(), entry.sqlite.clone())).collect();
        let hold = Hold::begin(databases, SOURCE_LOG_BYTES)
            .map_err(|error| Failure::io("cannot hold the logs", &error))?;
        loop {
            let advice = failure.advice.as_deref().map(|advice| format!("; {advice}")).unwrap_or_default();
            tracing::warn!(
                "the store is away, the logs of the databases are held until it is back: {}{advice}",
                failure.message()
            );
            tokio::time::sleep(RETRY).await;
            match Home::open(place.clone(), &self.told.config).await {
                Err(next) if next.kind == ErrorKind::StoreUnreachable => failure = next,
                opened => {
                    let held = tokio::task::spawn_blocking(|| hold.end()).await.unwrap_or_default();
                    self.held().extend(held);
                    return opened;
                }
            }
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, SqliteSource>> {
        self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// All homes.
    pub(crate) async fn homes(&self) -> Vec<Arc<Home>> {
        self.homes.lock().await.clone()
    }

    /// All databases under care.
    pub(crate) fn guards(&self) -> Vec<Arc<Guard>> {
        self.guards.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn keep(&self, guard: Arc<Guard>) {
        let mut guards = self.guards.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        guards.push(guard);
        guards.sort_by_key(|guard| guard.entry().name());
    }

    fn let_go(&self, guard: &Arc<Guard>) {
        let mut guards = self.guards.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        guards.retain(|kept| !Arc::ptr_eq(kept, guard));
    }

    /// Tries again and again what could not be protected, and keeps the records true. Runs until dropped.
    pub(crate) async fn retry(&self) {
        loop {
            tokio::time::sleep(RETRY).await;
            for guard in self.guards().iter().filter(|guard| guard.is_waiting()) {
                if guard.start(None).await.is_ok() {
                    tracing::info!("{}: protected now", guard.entry().name());
                }
            }
            for guard in self.guards().iter().filter(|guard| !guard.settled.load(Ordering::Relaxed)) {
                let id = guard.status().database.map(|database| database.id).unwrap_or_default();
                if !id.is_empty() && settle_path(guard, &id).await {
                    guard.settled.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    /// Puts covered-through marks from time to time. Runs until dropped.
    pub(crate) async fn mark_at_times(&self) {
        loop {
            tokio::time::sleep(MARK_EVERY).await;
            self.mark().await;
        }
    }

    /// One mark in each repository, for all of its databases. A mark that cannot be put is missed, not needed.
    async fn mark(&self) {
        for home in self.homes().await {
            let guards = self.guards();
            let ours = guards.iter().filter(|guard| Arc::ptr_eq(&guard.home, &home));
            let seen = ours.filter_map(|guard| {
                let status = guard.status();
                Some((status.database.as_ref()?.id.parse().ok()?, seen_in(&status)?))
            });
            match tokio::time::timeout(MARK_PATIENCE, home.mark(seen.collect())).await {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => tracing::warn!("{}", failure.message()),
                Err(_) => {
                    tracing::warn!("cannot put a covered-through mark: the store does not answer in time");
                }
            }
        }
    }

    /// Flushes and ends everything, and leaves word how far it was watched.
    pub(crate) async fn stop(&self) {
        let guards = self.guards();
        futures::future::join_all(guards.iter().map(|guard| guard.stop())).await;
        self.mark().await;
    }

    /// The status, as far as memory knows it: for metrics.
    pub(crate) fn status_now(&self) -> v1::GetStatusResponse {
        let databases = self.guards().iter().map(|guard| guard.status()).collect();
        let info = v1::DaemonInfo {
            host: String::new(),
            host_name: home::host_name(),
            version: env!("CARGO_PKG_VERSION").into(),
            started: Some(time_out(self.started)),
            pid: std::process::id(),
        };
        v1::GetStatusResponse { databases, daemon: Some(info) }
    }
}

/// A database that the repository knows by its path goes on under the name it has there, unless there is local state
/// under the name asked for: one file has one history.
async fn known_as(home: &Home, entry: DatabaseEntry) -> Result<DatabaseEntry, Failure> {
    if home.state_of(&entry.name()).exists() {
        return Ok(entry);
    }
    let known = home.records.find(&entry.path.to_string_lossy()).await?.map(|record| record.name);
    if let (Some(known), Some(asked)) = (&known, &entry.name)
        && known != asked
    {
        tracing::warn!(
            "{} is called '{known}' in the repository, not '{asked}': `everwhen databases set {known} --name {asked}` renames it",
            entry.path.display()
        );
    }
    let name = known.or(entry.name);
    Ok(DatabaseEntry { name, ..entry })
}

/// A database that was moved together with its state is found under its new path from now on. Whether that is settled.
async fn settle_path(guard: &Guard, id: &str) -> bool {
    let records = &guard.home.records;
    let path = guard.entry().path.to_string_lossy().into_owned();
    match records.with_id(id).await {
        Ok(Some(record)) if record.source == path => true,
        Ok(Some(record)) => {
            let moved = records.moved(record, path.clone()).await;
            match &moved {
                Ok(record) => tracing::info!("{}: its path is now {path}", record.name),
                Err(failure) => tracing::warn!("{}", failure.message()),
            }
            moved.is_ok()
        }
        Ok(None) | Err(_) => false,
    }
}

/// Looks whether at least one can be captured, before anything is made for any. If none can, that is a failure.
async fn fit_or_refused(asked: Vec<DatabaseEntry>) -> Result<Vec<DatabaseEntry>, Failure> {
    let mut first = None;
    for entry in &asked {
        match Guard::check(entry).await {
            Ok(()) => return Ok(asked),
            Err(failure) => first = first.or(Some(failure)),
        }
    }
    first.map_or(Ok(asked), Err)
}

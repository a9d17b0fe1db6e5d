//! The running daemon: its databases, and the answers to those who ask it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use everwhen_engine::capture::sqlite::SqliteSource;
use everwhen_engine::error::ErrorKind;
use everwhen_engine::history::Seen;
use everwhen_engine::protect::{Hold, SOURCE_LOG_BYTES};
use everwhen_engine::time::Timestamp;
use everwhen_proto::v1;
use futures::{FutureExt, StreamExt, TryStreamExt};
use tokio::sync::Mutex;
use tokio::sync::mpsc;

use super::guard::Guard;
use super::home::{self, Home};
use crate::answers::{Answer, Answers, Parts};
use crate::config::{DatabaseEntry, class_named};
use crate::failure::Failure;
use crate::naming::{is_called, spelt};
use crate::place::{Place, Told};
use crate::reader::{self, DatabaseReader};
use crate::wire::{seen_in, time_in, time_out};

/// How often a database that could not be protected is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How often a mark says how far the time is covered.
const MARK_EVERY: Duration = Duration::from_secs(600);
const MARK_PATIENCE: Duration = Duration::from_secs(5);
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(3);
const WAIT_USUAL: Duration = Duration::from_secs(30);
const WAIT_MAX: Duration = Duration::from_secs(3_600);
/// A status does not wait longer than this for the repository to say where the window begins.
const HISTORY_PATIENCE: Duration = Duration::from_secs(2);

/// See the module.
pub(crate) struct Daemon {
    told: Told,
    started: Timestamp,
    guards: RwLock<Vec<Arc<Guard>>>,
    /// Held while databases come and go. Keeps every home there is.
    homes: Mutex<Vec<Arc<Home>>>,
    new_homes: mpsc::UnboundedSender<Arc<Home>>,
    /// What was asked for at the start.
    asked: Vec<DatabaseEntry>,
    /// Databases whose logs were held while a store was away.
    held: std::sync::Mutex<HashMap<PathBuf, SqliteSource>>,
    /// Whether the start is over.
    is_up: AtomicBool,
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
        let used = || reader::url_of_store(&place.store).is_ok_and(|url| place.state.has_used(&url));
        failure.kind == ErrorKind::StoreUnreachable && !self.is_up.load(Ordering::Relaxed) && used()
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
        let mut settled = Vec::new();
        loop {
            tokio::time::sleep(RETRY).await;
            for guard in self.guards().iter().filter(|guard| guard.is_waiting()) {
                if guard.start(None).await.is_ok() {
                    tracing::info!("{}: protected now", guard.entry().name());
                }
            }
            for guard in self.guards() {
                let id = guard.status().database.map(|database| database.id).unwrap_or_default();
                if !id.is_empty() && !settled.contains(&id) && settle_path(&guard, &id).await {
                    settled.push(id);
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

    /// Before a state is looked for: waits until what was committed up to then is in the repository, so that "now" and
    /// "latest" mean what they say. Gives up soon; then the answer says how far the repository goes.
    async fn catch_up(&self, called: &str, target: Option<&v1::Target>) {
        use v1::target::Target::{Latest, Position, Time};
        let Some(guard) = self.guard(called) else { return };
        let Ok(protection) = guard.protection() else { return };
        let covered = |asked| move |seen: Option<Seen>| seen.is_some_and(|seen| seen.time >= asked);
        let now = Timestamp::now();
        let asked = match target.and_then(|target| target.target.as_ref()) {
            Some(Time(time)) => time_in(time),
            Some(Latest(_) | Position(_)) if protection.status().lag_ms > 0 => Timestamp::MIN,
            _ => return,
        };
        if asked > now || (asked > Timestamp::MIN && covered(asked)(seen_in(&guard.status()))) {
            return;
        }
        let waited = async {
            let _ = protection.wait_durable(None, CATCH_UP_PATIENCE).await;
            while !covered(asked)(seen_in(&guard.status())) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = tokio::time::timeout(CATCH_UP_PATIENCE, waited).await;
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

    fn guard(&self, called: &str) -> Option<Arc<Guard>> {
        self.guards().into_iter().find(|guard| {
            let status = guard.status();
            status.database.is_some_and(|database| is_called(&database, called))
        })
    }

    fn must_guard(&self, called: &str) -> Result<Arc<Guard>, Failure> {
        self.guard(called).ok_or_else(|| reader::no_such_database(called))
    }

    /// The database of this name in any of the repositories.
    async fn subject(&self, called: &str) -> Result<DatabaseReader, Failure> {
        if let Some(guard) = self.guard(called) {
            let records = &guard.home.records;
            let status = guard.status();
            let id = status.database.as_ref().map(|database| database.id.clone()).unwrap_or_default();
            match records.find(&id).await? {
                Some(record) => return Ok(DatabaseReader::new(records, record, seen_in(&status))),
                // It was there when protection began.
                None if !id.is_empty() => return Err(records.none_called(called).await),
                None => {}
            }
        }
        for home in self.homes().await {
            if let Some(record) = home.records.find(called).await? {
                return Ok(DatabaseReader::new(&home.records, record, None));
            }
        }
        match self.guard(called) {
            Some(_) => Err(nothing_of_it_yet(called)),
            None => Err(reader::no_such_database(called)),
        }
    }
}

/// It is under care, but was never captured: its file is not there yet, say.
fn nothing_of_it_yet(called: &str) -> Failure {
    Failure::new(ErrorKind::NoSuchPoint, format!("nothing of database '{called}' is in the repository yet"))
        .advise(format!("`everwhen status {called}` says what its protection waits for"))
}

/// A database that the repository knows by its path goes on under the name it has there, unless there is local state
/// under the name asked for: one file has one history.
async fn known_as(home: &Home, entry: DatabaseEntry) -> Result<DatabaseEntry, Failure> {
    if home.state_of(&entry.name()).exists() {
        return Ok(entry);
    }
    let known = home.records.find(&entry.path.to_string_lossy()).await?;
    let name = known.map(|record| record.name).or(entry.name);
    Ok(DatabaseEntry { name, ..entry })
}

/// A database that was moved together with its state is found under its new path from now on. Whether that is settled.
async fn settle_path(guard: &Guard, id: &str) -> bool {
    let records = &guard.home.records;
    let path = guard.entry().path.to_string_lossy().into_owned();
    match records.find(id).await {
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

/// Looks at all databases before anything is made for any. If none can be captured, that is a failure.
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

impl Answers for Arc<Daemon> {
    fn databases(&self) -> Answer<'_, v1::ListDatabasesResponse> {
        async {
            let guarded: Vec<_> = self.guards().iter().filter_map(|guard| guard.status().database).collect();
            let mut databases = Vec::new();
            for home in self.homes().await {
                let recorded = match home.records.all().await {
                    Ok(recorded) => recorded,
                    // Those under care are known without the store.
                    Err(failure) if failure.kind == ErrorKind::StoreUnreachable && !guarded.is_empty() => {
                        tracing::warn!("cannot list the databases of {}: {}", home.url(), failure.message());
                        continue;
                    }
                    Err(failure) => return Err(failure),
                };
                for mut database in recorded {
                    database.protected = guarded.iter().any(|one| one.id == database.id && one.protected);
                    databases.push(database);
                }
            }
            // What has no record yet is listed too: it waits, or its class is not captured.
            let known =
                |one: &v1::Database| databases.iter().any(|db| db.id == one.id || db.path == one.path);
            let waiting: Vec<_> = guarded.into_iter().filter(|one| !known(one)).collect();
            databases.extend(waiting);
            databases.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
            Ok(v1::ListDatabasesResponse { databases })
        }
        .boxed()
    }

    fn add_database(&self, request: v1::AddDatabaseRequest) -> Answer<'_, v1::Database> {
        async move {
            let entry = entry_of(request, &self.told)?;
            if let Some(guard) = self.guard(&entry.path.to_string_lossy()) {
                return Ok(guard.status().database.unwrap_or_default());
            }
            if self.guards().iter().any(|guard| guard.entry().name() == entry.name()) {
                return Err(Failure::new(
                    ErrorKind::Refused,
                    format!("another database is called '{}'", entry.name()),
                )
                .advise("give this one a name of its own"));
            }
            Guard::check(&entry).await?;
            let guard = self.prepare(entry.clone(), true).await?;
            guard.start(None).await?;
            self.keep(Arc::clone(&guard));
            let mut added = guard.home.place.state.added()?;
            added.push(entry);
            guard.home.place.state.set_added(&added)?;
            tracing::info!("{}: added", guard.entry().name());
            Ok(guard.status().database.unwrap_or_default())
        }
        .boxed()
    }

    fn remove_database(&self, request: v1::RemoveDatabaseRequest) -> Answer<'_, v1::Database> {
        async move {
            let guard = self.must_guard(&request.database)?;
            let entry = guard.entry();
            if !guard.added {
                return Err(Failure::new(
                    ErrorKind::Refused,
                    format!(
                        "'{}' stands in the configuration or on the command line of the daemon",
                        entry.name()
                    ),
                )
                .advise("take it out there and start the daemon again"));
            }
            let state = &guard.home.place.state;
            let mut added = state.added()?;
            added.retain(|other| other.path != entry.path);
            state.set_added(&added)?;
            self.let_go(&guard);
            guard.stop().await;
            tracing::info!("{}: removed; its history stays", entry.name());
            let database = guard.status().database.unwrap_or_default();
            Ok(v1::Database { protected: false, ..database })
        }
        .boxed()
    }

    fn set_database(&self, request: v1::SetDatabaseRequest) -> Answer<'_, v1::Database> {
        async move {
            let subject = self.subject(&request.database).await?;
            let guard = self.guard(&request.database);
            check_class(&request.class, &self.told)?;
            let mut database = subject.set(&request).await?;
            if let Some(guard) = guard {
                guard.rename(|entry| {
                    entry.name = Some(database.name.clone());
                    entry.class.clone_from(&database.class);
                });
                database.protected = guard.protection().is_ok();
            }
            Ok(database)
        }
        .boxed()
    }

    fn status(&self, request: v1::GetStatusRequest) -> Answer<'_, v1::GetStatusResponse> {
        async move {
            let mut status = self.status_now();
            if let Some(home) = self.homes().await.first()
                && let Some(daemon) = &mut status.daemon
            {
                daemon.host = home.host().to_string();
            }
            if !request.database.is_empty() {
                let called = |db: &v1::DatabaseStatus| {
                    db.database.as_ref().is_some_and(|db| is_called(db, &request.database))
                };
                status.databases.retain(called);
                if status.databases.is_empty() {
                    // Not under care here: what the repository says of it.
                    let subject = self.subject(&request.database).await?;
                    status.databases.push(subject.status().await?);
                    return Ok(status);
                }
            }
            for db in &mut status.databases {
                let Some(id) = db.database.as_ref().map(|database| database.id.clone()) else { continue };
                let window = tokio::time::timeout(HISTORY_PATIENCE, self.window_of(&id)).await;
                if let Ok(Ok((window, gaps))) = window {
                    (db.window, db.gaps) = (window, gaps);
                }
            }
            Ok(status)
        }
        .boxed()
    }

    fn points(&self, request: v1::ListPointsRequest) -> Parts<v1::ListPointsResponse> {
        let daemon = Arc::clone(self);
        async move { Ok(daemon.subject(&request.database).await?.points(request.from, request.to)) }
            .into_stream()
            .try_flatten()
            .boxed()
    }

    fn history(&self, request: v1::GetHistoryRequest) -> Answer<'_, v1::GetHistoryResponse> {
        async move {
            let guarded = self.guard(&request.database).is_some_and(|guard| guard.protection().is_ok());
            let mut history = self.subject(&request.database).await?.history().await?;
            if let Some(database) = &mut history.database {
                database.protected = guarded;
            }
            Ok(history)
        }
        .boxed()
    }

    fn resolve(&self, request: v1::ResolvePointRequest) -> Answer<'_, v1::ResolvePointResponse> {
        async move {
            self.catch_up(&request.database, request.target.as_ref()).await;
            self.subject(&request.database).await?.resolve(request.target).await
        }
        .boxed()
    }

    fn plan(&self, request: v1::PlanRestoreRequest) -> Answer<'_, v1::RestorePlan> {
        async move {
            self.catch_up(&request.database, request.target.as_ref()).await;
            self.subject(&request.database).await?.plan(request.target).await
        }
        .boxed()
    }

    fn restore(&self, request: v1::RestoreRequest) -> Parts<v1::RestoreResponse> {
        let daemon = Arc::clone(self);
        async move {
            daemon.catch_up(&request.database, request.target.as_ref()).await;
            Ok(daemon.subject(&request.database).await?.restore(request.target, request.to.into()))
        }
        .into_stream()
        .try_flatten()
        .boxed()
    }

    fn wait_durable(&self, request: v1::WaitDurableRequest) -> Answer<'_, v1::WaitDurableResponse> {
        async move {
            let position = match request.position.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|error| Failure::usage(format!("{error}")))?),
            };
            let timeout = match request.timeout_ms {
                0 => WAIT_USUAL,
                ms => Duration::from_millis(ms).min(WAIT_MAX),
            };
            let protection = self.must_guard(&request.database)?.protection()?;
            let reached =
                protection.wait_durable(position, timeout).await.map_err(|error| Failure::of(&error))?;
            Ok(v1::WaitDurableResponse { position: reached.to_string() })
        }
        .boxed()
    }
}

impl Daemon {
    async fn window_of(self: &Arc<Self>, id: &str) -> Result<(Option<v1::Window>, u64), Failure> {
        let history = self.subject(id).await?.history().await?;
        Ok((history.windows.last().cloned(), history.gaps.len() as u64))
    }
}

fn entry_of(request: v1::AddDatabaseRequest, told: &Told) -> Result<DatabaseEntry, Failure> {
    if !request.path.starts_with('/') {
        return Err(Failure::usage(format!("'{}' is not an absolute path", request.path)));
    }
    check_class(&request.class, told)?;
    let mut entry = DatabaseEntry::of(spelt(Path::new(&request.path)));
    entry.name = Some(request.name).filter(|name| !name.is_empty());
    if !request.class.is_empty() {
        entry.class = request.class;
    }
    Ok(entry)
}

fn check_class(class: &str, told: &Told) -> Result<(), Failure> {
    if class.is_empty() {
        return Ok(());
    }
    class_named(class, &told.config.classes).map(drop).map_err(Failure::usage)
}

//! What the daemon answers to those who ask it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use everwhen_engine::error::ErrorKind;
use everwhen_engine::history::Seen;
use everwhen_engine::protect::ProtectError;
use everwhen_engine::restore::Cancel;
use everwhen_engine::time::Timestamp;
use everwhen_proto::v1;
use futures::{FutureExt, StreamExt, TryStreamExt};

use super::{Daemon, Remembered};
use crate::answers::{Answer, Answers, Parts};
use crate::config::{DatabaseEntry, class_named};
use crate::failure::Failure;
use crate::naming::{is_called, spelt};
use crate::place::Told;
use crate::reader::{self, DatabaseReader};
use crate::serve::guard::Guard;
use crate::wire::{seen_in, time_in};

const CATCH_UP_PATIENCE: Duration = Duration::from_secs(3);
const WAIT_USUAL: Duration = Duration::from_secs(30);
const WAIT_MAX: Duration = Duration::from_secs(3_600);
/// A status does not wait longer than this for the repository to say where the window begins.
const HISTORY_PATIENCE: Duration = Duration::from_secs(2);
/// Histories read at a time for a status.
const HISTORIES_AT_A_TIME: usize = 8;
/// How long what it said holds for the next status.
const HISTORY_FRESH: Duration = Duration::from_secs(3);

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
            let _alone = self.adding.lock().await;
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
            self.must_remember(&entry.path)?;
            let guard = self.prepare(entry.clone(), true).await?;
            guard.start(None).await?;
            if let Err(failure) = write_down(&guard, entry) {
                guard.stop().await;
                return Err(failure);
            }
            self.keep(Arc::clone(&guard));
            tracing::info!("{}: added", guard.entry().name());
            Ok(guard.status().database.unwrap_or_default())
        }
        .boxed()
    }

    fn remove_database(&self, request: v1::RemoveDatabaseRequest) -> Answer<'_, v1::Database> {
        async move {
            let _alone = self.adding.lock().await;
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
            let database = guard.status().database.unwrap_or_default();
            guard.remove().await;
            tracing::info!("{}: removed; its history stays", entry.name());
            Ok(v1::Database { protected: false, ..database })
        }
        .boxed()
    }

    fn set_database(&self, request: v1::SetDatabaseRequest) -> Answer<'_, v1::Database> {
        async move {
            let subject = self.subject(&request.database).await?;
            let guard = self.guard(&request.database);
            check_class(&request.class, &self.told)?;
            if !request.path.is_empty()
                && let Some(guard) = &guard
                && guard.entry().path != Path::new(&request.path)
            {
                let path = guard.entry().path;
                let held = format!("this daemon protects it at {}", path.display());
                return Err(Failure::new(ErrorKind::Refused, held).advise(
                    "end that first (`everwhen databases remove`, or a start without it), then set its new path",
                ));
            }
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
            self.add_windows(&mut status.databases).await;
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

    fn restore(&self, request: v1::RestoreRequest, cancel: Cancel) -> Parts<v1::RestoreResponse> {
        let daemon = Arc::clone(self);
        async move {
            daemon.catch_up(&request.database, request.target.as_ref()).await;
            let subject = daemon.subject(&request.database).await?;
            Ok(subject.restore(request.target, request.to.into(), cancel))
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
                protection.wait_durable(position, timeout).await.map_err(|error| not_durable(&error))?;
            Ok(v1::WaitDurableResponse { position: reached.to_string() })
        }
        .boxed()
    }
}

impl Daemon {
    fn guard(&self, called: &str) -> Option<Arc<Guard>> {
        self.guards().into_iter().find(|guard| {
            let status = guard.status();
            status.database.is_some_and(|database| is_called(&database, called))
        })
    }

    /// The list of what was added lies in the state folder. One that belongs to the database alone is not looked into at
    /// the next start: nobody would know of it.
    fn must_remember(&self, path: &Path) -> Result<(), Failure> {
        let place = self.told.place_to_protect(path);
        let asked = || self.asked.iter().any(|entry| self.told.place_to_protect(&entry.path) == place);
        if self.told.store.is_some() || asked() {
            return Ok(());
        }
        let lost = format!("this daemon would not know of {} at its next start", path.display());
        Err(Failure::new(ErrorKind::Refused, lost).advise(
            "name it to `everwhen run` with the others, or start the daemon with a --store for all of them",
        ))
    }

    fn must_guard(&self, called: &str) -> Result<Arc<Guard>, Failure> {
        self.guard(called).ok_or_else(|| reader::no_such_database(called))
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

    /// The database of this name in any of the repositories.
    async fn subject(&self, called: &str) -> Result<DatabaseReader, Failure> {
        if let Some(guard) = self.guard(called) {
            let records = &guard.home.records;
            let status = guard.status();
            let id = status.database.as_ref().map(|database| database.id.clone()).unwrap_or_default();
            match records.with_id(&id).await? {
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

    /// The last window and the number of gaps. Programs ask for the status often, and to tell this a history is listed: it
    /// is asked for every few seconds at most.
    /// Adds what the repository says of each, as far as it says so soon.
    async fn add_windows(self: &Arc<Self>, databases: &mut [v1::DatabaseStatus]) {
        let until = tokio::time::Instant::now() + HISTORY_PATIENCE;
        let window = |db: &v1::DatabaseStatus| {
            let daemon = Arc::clone(self);
            let id = db.database.as_ref().map(|database| database.id.clone()).unwrap_or_default();
            async move {
                let known = !id.is_empty();
                let read = tokio::time::timeout_at(until, daemon.window_of(&id));
                if known { read.await.ok()?.ok() } else { None }
            }
        };
        let reads: Vec<_> = databases.iter().map(window).collect();
        let windows: Vec<_> = futures::stream::iter(reads).buffered(HISTORIES_AT_A_TIME).collect().await;
        for (db, window) in databases.iter_mut().zip(windows) {
            if let Some((window, gaps)) = window {
                (db.window, db.gaps) = (window, gaps);
            }
        }
    }

    async fn window_of(self: &Arc<Self>, id: &str) -> Result<(Option<v1::Window>, u64), Failure> {
        let histories = || self.histories.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(known) = histories().get(id).filter(|known| known.read.elapsed() < HISTORY_FRESH) {
            return Ok((known.window, known.gaps));
        }
        let read = Instant::now();
        let history = self.subject(id).await?.history().await?;
        let (window, gaps) = (history.windows.last().cloned(), history.gaps.len() as u64);
        histories().insert(id.to_owned(), Remembered { window, gaps, read });
        Ok((window, gaps))
    }
}

/// A wait that ended too early says so: whoever waited may wait again.
fn not_durable(error: &ProtectError) -> Failure {
    let time_is_up = matches!(error, ProtectError::NotDurable { .. } | ProtectError::Interrupted { .. });
    Failure { time_is_up, ..Failure::of(error) }
}

/// It is under care, but was never captured: its file is not there yet, say.
fn nothing_of_it_yet(called: &str) -> Failure {
    Failure::new(ErrorKind::NoSuchPoint, format!("nothing of database '{called}' is in the repository yet"))
        .advise(format!("`everwhen status {called}` says what its protection waits for"))
}

/// So that the next start protects it too.
fn write_down(guard: &Guard, entry: DatabaseEntry) -> Result<(), Failure> {
    let state = &guard.home.place.state;
    let mut added = state.added()?;
    added.push(entry);
    state.set_added(&added)
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

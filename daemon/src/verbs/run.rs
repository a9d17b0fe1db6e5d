//! `everwhen run`: the daemon.

use std::sync::{Arc, OnceLock};

use everwhen_engine::capture::sqlite::SqliteOptions;
use everwhen_engine::protect::Health;
use everwhen_proto::v1;

use crate::cli;
use crate::config::{DatabaseEntry, class_named};
use crate::failure::Failure;
use crate::memory;
use crate::place::Told;
use crate::serve::daemon::{Daemon, NewHomes};
use crate::serve::http;
use crate::serve::listen::{self, Socket};
use crate::serve::server::Serving;
use crate::signals::Signals;

pub(crate) async fn run(verb: cli::Run) -> Result<(), Failure> {
    memory::keep_little();
    let mut told = Told::by(&verb.place)?;
    let entries = entries(&verb, &told)?;
    settle_listening(&verb, &mut told);
    // From here on a signal is an orderly end, whatever is under way.
    let mut signals = Signals::listen()?;
    let mut running = tokio::select! {
        started = Running::start(told, entries) => started?,
        (name, _) = signals.next() => {
            tracing::info!("{name} while starting: stopped");
            return Ok(());
        }
    };
    announce(&running.daemon);
    let name = tokio::select! {
        (name, _) = signals.next() => name,
        () = running.go_on() => "the end",
    };
    tracing::info!("{name}: flushing; once more stops at once");
    signals.end_at_once_on_next();
    running.stop().await;
    Ok(())
}

/// A daemon with its doors open.
pub(crate) struct Running {
    /// Who answers.
    pub(crate) daemon: Arc<Daemon>,
    api: Serving,
    sockets: Vec<Socket>,
    new_homes: NewHomes,
}

impl Running {
    /// Opens the doors that must be had, begins to protect, and serves.
    pub(crate) async fn start(told: Told, entries: Vec<DatabaseEntry>) -> Result<Self, Failure> {
        let listen = told.config.listen.clone();
        let beyond = listen.beyond_loopback;
        // Before any work: a port that must be had and cannot is told at once.
        let api = listen::tcp("the API", listen.api, listen::API, beyond).await?;
        let metrics = listen::tcp("metrics", listen.metrics, listen::METRICS, beyond).await?;
        let socket = match &listen.socket {
            Some(path) => Some(listen::socket(path).await?),
            None => None,
        };
        let begun = Arc::new(OnceLock::<Arc<Daemon>>::new());
        if let Some(listener) = metrics {
            tell_door("metrics", &listener);
            // A start may wait for its store for long, and whoever probes the process must not take it for dead.
            let begun = Arc::clone(&begun);
            tokio::spawn(http::serve(listener, move || {
                begun.get().map_or_else(v1::GetStatusResponse::default, |daemon| daemon.status_now())
            }));
        }
        let (daemon, new_homes) = Daemon::start(told, entries).await?;
        let _ = begun.set(Arc::clone(&daemon));
        let serving = Serving::new(Arc::new(Arc::clone(&daemon))).await?;
        let mut running = Self { daemon, api: serving, sockets: Vec::new(), new_homes };
        if let Some(listener) = api {
            tell_door("API", &listener);
            running.api.tcp(listener);
        }
        if let Some(socket) = socket {
            running.serve_on(socket);
        }
        while let Ok(home) = running.new_homes.try_recv() {
            running.serve_on(listen::socket(&home.place.state.socket()).await?);
        }
        Ok(running)
    }

    fn serve_on(&mut self, mut socket: Socket) {
        if let Some(listener) = socket.listener.take() {
            self.api.unix(listener);
        }
        self.sockets.push(socket);
    }

    /// What a daemon does besides protecting and answering: tries again what could not be protected, opens a socket in
    /// the state folder of every home that comes. Runs until dropped.
    async fn go_on(&mut self) {
        let daemon = Arc::clone(&self.daemon);
        let (retry, mark) = (daemon.retry(), daemon.mark_at_times());
        tokio::pin!(retry, mark);
        loop {
            let home = tokio::select! {
                Some(home) = self.new_homes.recv() => home,
                () = &mut retry => return,
                () = &mut mark => return,
            };
            match listen::socket(&home.place.state.socket()).await {
                Ok(socket) => self.serve_on(socket),
                Err(failure) => tracing::error!("{}", failure.message()),
            }
        }
    }

    /// Flushes and ends.
    pub(crate) async fn stop(self) {
        self.api.leaving().await;
        self.daemon.stop().await;
        self.api.stop().await;
    }
}

/// What the command line and the configuration ask to protect.
fn entries(verb: &cli::Run, told: &Told) -> Result<Vec<DatabaseEntry>, Failure> {
    let class = class_named(&verb.class, &told.config.classes).map_err(Failure::usage)?;
    let named = verb.databases.iter().map(|path| DatabaseEntry {
        class: class.clone(),
        sqlite: SqliteOptions { convert_to_wal: verb.convert_to_wal, ..SqliteOptions::default() },
        ..DatabaseEntry::of(path)
    });
    let entries: Vec<DatabaseEntry> = named.chain(told.config.databases.iter().cloned()).collect();
    if entries.is_empty() && told.store.is_none() {
        return Err(Failure::usage("nothing to protect").advise(
            "name a database (`everwhen run app.db`), or a configuration with [[database]] tables (--config FILE)",
        ));
    }
    same_names(&entries, told)?;
    Ok(entries)
}

/// In one repository names are unique. `a/app.db` and `b/app.db` would both be "app".
fn same_names(entries: &[DatabaseEntry], told: &Told) -> Result<(), Failure> {
    for (at, entry) in entries.iter().enumerate() {
        let twin = entries
            .iter()
            .take(at)
            .find(|other| other.name() == entry.name() && (told.store.is_some() || other.path == entry.path));
        if let Some(twin) = twin {
            return Err(Failure::usage(format!(
                "{} and {} would both be called '{}'",
                twin.path.display(),
                entry.path.display(),
                entry.name()
            ))
            .advise("give them names in a configuration: [[database]] path = … name = …"));
        }
    }
    Ok(())
}

fn settle_listening(verb: &cli::Run, told: &mut Told) {
    let listen = &mut told.config.listen;
    listen.api = verb.listen.unwrap_or(listen.api);
    listen.metrics = verb.metrics.unwrap_or(listen.metrics);
    listen.socket = verb.socket.clone().or(listen.socket.take());
    listen.beyond_loopback |= verb.beyond_loopback;
    told.config.flush.interval = verb.flush_interval.or(told.config.flush.interval);
}

fn tell_door(what: &str, listener: &tokio::net::TcpListener) {
    if let Ok(address) = listener.local_addr() {
        tracing::info!("{what} on {address}");
    }
}

fn announce(daemon: &Arc<Daemon>) {
    for guard in daemon.guards() {
        let entry = guard.entry();
        let store = guard.home.url();
        match guard.protection() {
            Ok(protection) => {
                let (path, name) = (entry.path.display(), entry.name());
                match protection.status().reasons.first() {
                    // The first base is always on its way at this moment.
                    Some(why) if protection.status().health == Health::Failing => {
                        tracing::warn!("not protecting {path} ('{name}') yet: {why}");
                    }
                    _ => tracing::info!("protecting {path} ('{name}') into {store}"),
                }
            }
            Err(why) => tracing::warn!("not protecting {}: {}", entry.path.display(), why.message()),
        }
    }
    if daemon.guards().is_empty() {
        tracing::info!("nothing to protect yet: add databases with `everwhen databases add`");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Door};
    use clap::Parser;

    fn verb(line: &str) -> cli::Run {
        match cli::Cli::try_parse_from(line.split(' ')).unwrap().verb {
            cli::Verb::Run(run) => run,
            other => panic!("{other:?}"),
        }
    }

    fn told(store: Option<&str>) -> Told {
        Told { store: store.map(Into::into), state: None, config: Config::default() }
    }

    #[test]
    fn nothing_to_protect_is_a_mistake_unless_a_store_is_named() {
        assert_eq!(entries(&verb("everwhen run"), &told(None)).unwrap_err().exit_code(), 2);
        assert!(entries(&verb("everwhen run"), &told(Some("/b"))).unwrap().is_empty());
    }

    #[test]
    fn names_are_unique_in_a_repository() {
        let line = "everwhen run a/app.db b/app.db";
        assert!(entries(&verb(line), &told(Some("/b"))).is_err());
        assert_eq!(entries(&verb(line), &told(None)).unwrap().len(), 2);
    }

    #[test]
    fn the_command_line_wins_over_the_configuration() {
        let mut told = told(None);
        settle_listening(&verb("everwhen run x --listen off --flush-interval 250ms"), &mut told);
        assert_eq!(told.config.listen.api, Door::Off);
        assert_eq!(told.config.flush.interval, Some(std::time::Duration::from_millis(250)));
    }

    #[test]
    fn a_class_must_be_known() {
        let failure = entries(&verb("everwhen run x --class prodction"), &told(None)).unwrap_err();
        assert!(failure.message().contains("did you mean 'production'"), "{}", failure.message());
    }
}

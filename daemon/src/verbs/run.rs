//! `everwhen run`: the daemon.

use std::path::Path;
use std::sync::Arc;

use crate::cli;
use crate::config::{DatabaseEntry, class_named};
use crate::failure::Failure;
use crate::place::Told;
use crate::serve::daemon::{Daemon, NewHomes};
use crate::serve::http;
use crate::serve::listen::{self, Socket};
use crate::serve::server::Serving;
use crate::serve::signals::Signals;

pub(crate) async fn run(verb: cli::Run) -> Result<(), Failure> {
    let mut told = Told::by(&verb.place)?;
    let entries = entries(&verb, &told)?;
    settle_listening(&verb, &mut told);
    // From here on a signal is an orderly end, whatever is under way.
    let mut signals = Signals::listen()?;
    let doors = Doors::open(&told).await?;
    let (daemon, new_homes) = tokio::select! {
        started = Daemon::start(told.clone(), entries) => started?,
        (name, _) = signals.next() => {
            tracing::info!("{name} while starting: nothing was begun");
            return Ok(());
        }
    };
    let mut serving = doors.serve(&daemon, &told).await?;
    announce(&daemon);
    let name = tokio::select! {
        (name, _) = signals.next() => name,
        () = daemon.retry() => "the end of retries",
        () = serving.socket_in_each(new_homes) => "the end of homes",
    };
    tracing::info!("{name}: flushing; once more stops at once");
    signals.end_at_once_on_next();
    serving.api.leaving().await;
    daemon.stop().await;
    serving.api.stop().await;
    Ok(())
}

/// What the command line and the configuration ask to protect.
fn entries(verb: &cli::Run, told: &Told) -> Result<Vec<DatabaseEntry>, Failure> {
    let class = class_named(&verb.class, &told.config.classes).map_err(Failure::usage)?;
    let named = verb.databases.iter().map(|path| DatabaseEntry {
        class: class.clone(),
        convert_to_wal: verb.convert_to_wal,
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

/// The TCP doors, opened before any work begins: a port that must be had and cannot is told at once.
struct Doors {
    api: Option<tokio::net::TcpListener>,
    metrics: Option<tokio::net::TcpListener>,
}

impl Doors {
    async fn open(told: &Told) -> Result<Self, Failure> {
        let listen = &told.config.listen;
        let beyond = listen.beyond_loopback;
        Ok(Self {
            api: listen::tcp("the API", listen.api, listen::API, beyond).await?,
            metrics: listen::tcp("metrics", listen.metrics, listen::METRICS, beyond).await?,
        })
    }

    async fn serve(self, daemon: &Arc<Daemon>, told: &Told) -> Result<Open, Failure> {
        let mut open = Open { api: Serving::new(Arc::new(Arc::clone(daemon))).await?, sockets: Vec::new() };
        if let Some(listener) = self.api {
            tell_door("API", &listener);
            open.api.tcp(listener);
        }
        if let Some(listener) = self.metrics {
            tell_door("metrics", &listener);
            let status = Arc::clone(daemon);
            tokio::spawn(http::serve(listener, move || status.status_now()));
        }
        if let Some(path) = &told.config.listen.socket {
            open.socket(path).await?;
        }
        Ok(open)
    }
}

/// The API being served, and the files of its sockets.
struct Open {
    api: Serving,
    sockets: Vec<Socket>,
}

impl Open {
    async fn socket(&mut self, path: &Path) -> Result<(), Failure> {
        let mut socket = listen::socket(path).await?;
        if let Some(listener) = socket.listener.take() {
            self.api.unix(listener);
        }
        self.sockets.push(socket);
        Ok(())
    }

    /// Opens a socket in the state folder of every home, as they come. Never ends.
    async fn socket_in_each(&mut self, mut homes: NewHomes) {
        while let Some(home) = homes.recv().await {
            if let Err(failure) = self.socket(&home.place.state.socket()).await {
                tracing::error!("{}", failure.message());
            }
        }
    }
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
            Ok(_) => tracing::info!("protecting {} ('{}') into {store}", entry.path.display(), entry.name()),
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

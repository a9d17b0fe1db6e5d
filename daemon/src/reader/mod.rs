//! Answers from a repository, read here: what the command line does without a daemon, and the daemon for its callers.

mod database;
pub(crate) mod later;
mod records;
mod verify;

use std::path::Path;

use everwhen_engine::history::Seen;
use everwhen_engine::restore::{Cancel, RestoreError};
use everwhen_proto::v1;
use futures::{FutureExt, StreamExt, TryStreamExt};

pub(crate) use database::{DatabaseReader, fits};
pub(crate) use records::{Records, key_source, no_such_database, open, open_or_create, store, url_of_store};

use crate::answers::{Answer, Answers, Parts};
use crate::client::Client;
use crate::config::{Config, class_named};
use crate::failure::Failure;
use crate::naming::spelt;
use crate::place::{Place, own_folder};
use crate::wire::seen_in;

/// A repository, and the daemon beside it if one runs.
pub(crate) struct Reader {
    place: Place,
    config: Config,
    records: Records,
    daemon: Option<Client>,
}

impl Reader {
    /// Opens the repository of a place. `daemon` is asked how far it covers the time.
    pub(crate) async fn open(
        place: &Place,
        config: &Config,
        daemon: Option<Client>,
    ) -> Result<Self, Failure> {
        let records = Records::new(open(&place.store, config).await?, &place.state)?;
        Ok(Self { place: place.clone(), config: config.clone(), records, daemon })
    }

    /// How the repository calls a database that was named on the command line. A folder `app.db.everwhen` may have
    /// moved with its database, or be named itself: if it holds one database only, that is the one.
    pub(crate) async fn name_of(&self, named: Option<&str>) -> Result<Option<String>, Failure> {
        let Some(named) = named else { return Ok(None) };
        if self.is_own_of(named)
            && self.records.find(named).await?.is_none()
            && let Some(only) = self.records.only().await?
        {
            return Ok(Some(only.id.to_string()));
        }
        Ok(Some(named.to_owned()))
    }

    /// Whether the repository is the own folder of the database that was named, or was named itself. Of any other one, the
    /// only database may be quite another.
    fn is_own_of(&self, named: &str) -> bool {
        let (store, named) = (spelt(Path::new(&self.place.store)), Path::new(named));
        let store = Path::new(&store);
        store == own_folder(named) || store == named
    }

    async fn database(&self, called: &str, target: Option<&v1::Target>) -> Result<DatabaseReader, Failure> {
        let Some(record) = self.records.find(called).await? else {
            return Err(self.records.none_called(called).await);
        };
        let heard = self.heard(&record.id.to_string(), target).await;
        Ok(DatabaseReader::new(&self.records, record, heard))
    }

    /// The word of the daemon beside the repository. Without one, or if it does not know, there is none.
    async fn heard(&self, id: &str, target: Option<&v1::Target>) -> Option<Seen> {
        let daemon = self.daemon.as_ref()?;
        if target.is_some() {
            // Whatever it answers: to find the point it makes the repository reach up to the moment asked for.
            let request = v1::ResolvePointRequest { database: id.to_owned(), target: target.cloned() };
            let _ = daemon.resolve(request).await;
        }
        let status = daemon.status(v1::GetStatusRequest { database: id.to_owned() }).await.ok()?;
        status.databases.iter().find_map(seen_in)
    }

    async fn statuses(&self, called: &str) -> Result<v1::GetStatusResponse, Failure> {
        let mut databases = Vec::new();
        if called.is_empty() {
            for database in self.records.all().await? {
                databases.push(self.database(&database.id, None).await?.status().await?);
            }
        } else {
            databases.push(self.database(called, None).await?.status().await?);
        }
        Ok(v1::GetStatusResponse { databases, daemon: None })
    }
}

impl Answers for Reader {
    fn databases(&self) -> Answer<'_, v1::ListDatabasesResponse> {
        async { Ok(v1::ListDatabasesResponse { databases: self.records.all().await? }) }.boxed()
    }

    fn add_database(&self, request: v1::AddDatabaseRequest) -> Answer<'_, v1::Database> {
        async move { later::add(&self.place, &self.config, &request) }.boxed()
    }

    fn remove_database(&self, request: v1::RemoveDatabaseRequest) -> Answer<'_, v1::Database> {
        async move { later::remove(&self.place, &request.database) }.boxed()
    }

    fn set_database(&self, request: v1::SetDatabaseRequest) -> Answer<'_, v1::Database> {
        async move {
            if !request.class.is_empty() {
                class_named(&request.class, &self.config.classes).map_err(Failure::usage)?;
            }
            self.database(&request.database, None).await?.set(&request).await
        }
        .boxed()
    }

    fn status(&self, request: v1::GetStatusRequest) -> Answer<'_, v1::GetStatusResponse> {
        async move { self.statuses(&request.database).await }.boxed()
    }

    fn points(&self, request: v1::ListPointsRequest) -> Parts<v1::ListPointsResponse> {
        let (records, daemon) = (self.records.clone(), self.daemon.clone());
        let reader = Self { place: self.place.clone(), config: self.config.clone(), records, daemon };
        async move { Ok(reader.database(&request.database, None).await?.points(request.from, request.to)) }
            .into_stream()
            .try_flatten()
            .boxed()
    }

    fn history(&self, request: v1::GetHistoryRequest) -> Answer<'_, v1::GetHistoryResponse> {
        async move { self.database(&request.database, None).await?.history().await }.boxed()
    }

    fn resolve(&self, request: v1::ResolvePointRequest) -> Answer<'_, v1::ResolvePointResponse> {
        async move {
            let database = self.database(&request.database, request.target.as_ref()).await?;
            database.resolve(request.target).await
        }
        .boxed()
    }

    fn plan(&self, request: v1::PlanRestoreRequest) -> Answer<'_, v1::RestorePlan> {
        async move {
            let database = self.database(&request.database, request.target.as_ref()).await?;
            database.plan(request.target).await
        }
        .boxed()
    }

    fn restore(&self, request: v1::RestoreRequest, cancel: Cancel) -> Parts<v1::RestoreResponse> {
        let (records, daemon) = (self.records.clone(), self.daemon.clone());
        let reader = Self { place: self.place.clone(), config: self.config.clone(), records, daemon };
        async move {
            // A store that does not answer must not be waited for.
            let database = tokio::select! {
                found = reader.database(&request.database, request.target.as_ref()) => found?,
                () = cancel.cancelled() => return Err(Failure::of(&RestoreError::Cancelled)),
            };
            Ok(database.restore(request.target, request.to.into(), cancel))
        }
        .into_stream()
        .try_flatten()
        .boxed()
    }

    fn wait_durable(&self, _: v1::WaitDurableRequest) -> Answer<'_, v1::WaitDurableResponse> {
        async { Err(Failure::usage("only a daemon can be waited for")) }.boxed()
    }
}

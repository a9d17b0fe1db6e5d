//! Serves the API, with health and reflection, on all doors at once.

use std::sync::Arc;
use std::time::Duration;

use everwhen_engine::error::ErrorKind;
use everwhen_proto::v1;
use everwhen_proto::v1::everwhen_server::EverwhenServer;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic_health::server::HealthReporter;

use super::api;
use crate::answers::Answers;
use crate::failure::Failure;

/// How long calls under way may take to end.
const GRACE: Duration = Duration::from_secs(2);

/// The API, being served.
pub(crate) struct Serving {
    routes: Routes,
    health: HealthReporter,
    stop: watch::Sender<bool>,
    doors: JoinSet<()>,
}

impl Serving {
    /// Prepares the services. Open doors with [`Serving::tcp`] and [`Serving::unix`].
    pub(crate) async fn new(answers: Arc<dyn Answers>) -> Result<Self, Failure> {
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<EverwhenServer<api::Api>>().await;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let broken = |error| Failure::new(ErrorKind::Failed, "cannot serve reflection").caused_by(&error);
        let routes = Routes::new(api::service(answers))
            .add_service(health_service)
            .add_service(reflection().build_v1().map_err(broken)?)
            .add_service(reflection().build_v1alpha().map_err(broken)?);
        Ok(Self { routes, health, stop: watch::channel(false).0, doors: JoinSet::new() })
    }

    /// Serves on TCP.
    pub(crate) fn tcp(&mut self, listener: TcpListener) {
        let accept = stream::unfold(listener, |listener| async {
            let accepted = slowly(listener.accept().await).await;
            let accepted = accepted.inspect(|(connection, _)| drop(connection.set_nodelay(true)));
            Some((accepted.map(|(connection, _)| connection), listener))
        });
        self.open(accept.boxed());
    }

    /// Serves on a unix socket.
    pub(crate) fn unix(&mut self, listener: UnixListener) {
        let accept = stream::unfold(listener, |listener| async {
            let accepted = slowly(listener.accept().await).await;
            Some((accepted.map(|(connection, _)| connection), listener))
        });
        self.open(accept.boxed());
    }

    fn open<C>(&mut self, accept: BoxStream<'static, std::io::Result<C>>)
    where
        C: Connected + AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut stop = self.stop.subscribe();
        let stopped = async move {
            let _ = stop.wait_for(|stop| *stop).await;
        };
        let router = Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .add_routes(self.routes.clone());
        self.doors.spawn(async move {
            if let Err(error) = router.serve_with_incoming_shutdown(accept, stopped).await {
                tracing::error!("the API ended: {error}");
            }
        });
    }

    /// Tells health checks that the end is near.
    pub(crate) async fn leaving(&self) {
        self.health.set_not_serving::<EverwhenServer<api::Api>>().await;
    }

    /// Shuts the doors; calls under way have a moment to end.
    pub(crate) async fn stop(mut self) {
        let _ = self.stop.send(true);
        let _ = tokio::time::timeout(GRACE, async { while self.doors.join_next().await.is_some() {} }).await;
        self.doors.shutdown().await;
    }
}

/// A failed accept (no file descriptors left, most likely) is not repeated in a hot loop.
async fn slowly<T>(accepted: std::io::Result<T>) -> std::io::Result<T> {
    if accepted.is_err() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    accepted
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures::FutureExt;

    use super::*;
    use crate::answers::{Answer, Parts};
    use crate::client::Client;
    use crate::serve::listen;
    use everwhen_engine::restore::Cancel;

    /// Knows one point, and restores for ever.
    #[derive(Default)]
    struct Oracle {
        restore_was_dropped: Arc<AtomicBool>,
    }

    struct Tells(Arc<AtomicBool>);
    impl Drop for Tells {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    fn refused<T: Send + 'static>() -> Answer<'static, T> {
        async { Err(Failure::new(ErrorKind::Refused, "not here").advise("go there")) }.boxed()
    }

    impl Answers for Oracle {
        fn databases(&self) -> Answer<'_, v1::ListDatabasesResponse> {
            async { Ok(v1::ListDatabasesResponse { databases: vec![v1::Database::default()] }) }.boxed()
        }
        fn add_database(&self, _: v1::AddDatabaseRequest) -> Answer<'_, v1::Database> {
            refused()
        }
        fn remove_database(&self, _: v1::RemoveDatabaseRequest) -> Answer<'_, v1::Database> {
            refused()
        }
        fn set_database(&self, _: v1::SetDatabaseRequest) -> Answer<'_, v1::Database> {
            refused()
        }
        fn status(&self, _: v1::GetStatusRequest) -> Answer<'_, v1::GetStatusResponse> {
            refused()
        }
        fn points(&self, _: v1::ListPointsRequest) -> Parts<v1::ListPointsResponse> {
            let part = v1::ListPointsResponse { points: vec![v1::RestorePoint::default()] };
            stream::iter([Ok(part.clone()), Ok(part), Err(Failure::new(ErrorKind::Damaged, "torn"))]).boxed()
        }
        fn history(&self, _: v1::GetHistoryRequest) -> Answer<'_, v1::GetHistoryResponse> {
            refused()
        }
        fn resolve(&self, _: v1::ResolvePointRequest) -> Answer<'_, v1::ResolvePointResponse> {
            refused()
        }
        fn plan(&self, _: v1::PlanRestoreRequest) -> Answer<'_, v1::RestorePlan> {
            refused()
        }
        fn restore(&self, _: v1::RestoreRequest, _: Cancel) -> Parts<v1::RestoreResponse> {
            let tells = Tells(Arc::clone(&self.restore_was_dropped));
            stream::unfold(tells, |tells| async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                Some((Ok(v1::RestoreResponse::default()), tells))
            })
            .boxed()
        }
        fn wait_durable(&self, _: v1::WaitDurableRequest) -> Answer<'_, v1::WaitDurableResponse> {
            async { Err(Failure::new(ErrorKind::Failed, "time is up")) }.boxed()
        }
    }

    struct Scene {
        _dir: tempfile::TempDir,
        _socket: listen::Socket,
        serving: Serving,
        client: Client,
        restore_was_dropped: Arc<AtomicBool>,
    }

    async fn scene() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a-long-name".repeat(12));
        std::fs::create_dir(&folder).unwrap();
        let state = crate::state::StateFolder::at(&folder);
        let mut socket = listen::socket(&state.socket()).await.unwrap();
        let oracle = Oracle::default();
        let restore_was_dropped = Arc::clone(&oracle.restore_was_dropped);
        let mut serving = Serving::new(Arc::new(oracle)).await.unwrap();
        serving.unix(socket.listener.take().unwrap());
        let client = crate::client::local(&state).await.expect("the daemon is found by its state folder");
        Scene { _dir: dir, _socket: socket, serving, client, restore_was_dropped }
    }

    #[tokio::test]
    async fn answers_and_failures_come_through_as_they_are() {
        let scene = scene().await;
        assert_eq!(scene.client.databases().await.unwrap().databases.len(), 1);
        let refused = scene.client.plan(v1::PlanRestoreRequest::default()).await.unwrap_err();
        assert_eq!(refused, Failure::new(ErrorKind::Refused, "not here").advise("go there"));
        let late = scene.client.wait_durable(v1::WaitDurableRequest::default()).await.unwrap_err();
        assert_eq!(late.message(), "time is up");
        scene.serving.stop().await;
    }

    #[tokio::test]
    async fn a_stream_may_fail_in_its_middle() {
        let scene = scene().await;
        let parts: Vec<_> = scene.client.points(v1::ListPointsRequest::default()).collect().await;
        assert_eq!(parts.len(), 3);
        assert_eq!(parts[2].as_ref().unwrap_err().kind, ErrorKind::Damaged);
    }

    #[tokio::test]
    async fn a_restore_stops_when_its_caller_goes_away() {
        let scene = scene().await;
        let request = |to: &str| v1::RestoreRequest { to: to.into(), ..Default::default() };
        let mut parts = scene.client.restore(request("/x"), Cancel::new());
        parts.next().await.unwrap().unwrap();
        assert!(!scene.restore_was_dropped.load(Ordering::SeqCst));
        drop(parts);
        let dropped = async {
            while !scene.restore_was_dropped.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), dropped).await.unwrap();
        let relative = scene.client.restore(request("x"), Cancel::new()).next().await.unwrap().unwrap_err();
        assert_eq!(relative.kind, ErrorKind::Usage);
    }

    #[tokio::test]
    async fn stopping_does_not_wait_for_ever() {
        let scene = scene().await;
        let mut parts =
            scene.client.restore(v1::RestoreRequest { to: "/x".into(), ..Default::default() }, Cancel::new());
        parts.next().await.unwrap().unwrap();
        tokio::time::timeout(GRACE + Duration::from_secs(3), scene.serving.stop()).await.unwrap();
    }
}

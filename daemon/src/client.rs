//! A daemon to ask.

use std::error::Error;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use everwhen_engine::error::ErrorKind;
use everwhen_engine::restore::Cancel;
use everwhen_proto::v1;
use everwhen_proto::v1::everwhen_client::EverwhenClient;
use futures::{FutureExt, StreamExt, TryStreamExt};
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status, Streaming};

use crate::answers::{Answer, Answers, Parts};
use crate::failure::Failure;
use crate::rpc::failure_of;
use crate::state::StateFolder;

/// A connection to a daemon.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    inner: EverwhenClient<Channel>,
}

const PATIENCE: Duration = Duration::from_secs(5);
/// The longest path of a unix socket that every system takes.
const MAX_SOCKET_PATH: usize = 100;

/// Connects to `http://HOST:PORT` or `unix:PATH`.
pub(crate) async fn connect(address: &str) -> Result<Client, Failure> {
    if let Some(path) = address.strip_prefix("unix:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        return connect_socket(Path::new(path)).await;
    }
    if !address.starts_with("http://") {
        return Err(Failure::usage(format!("'{address}' is not the address of a daemon"))
            .advise("write http://127.0.0.1:7437 or unix:/path/to/api.sock"));
    }
    let endpoint = Endpoint::from_shared(address.to_owned())
        .map_err(|error| Failure::usage(format!("'{address}' is not an address")).caused_by(&error))?;
    reach(endpoint, address).await
}

async fn connect_socket(path: &Path) -> Result<Client, Failure> {
    let near =
        ShortPath::of(path).map_err(|error| unreachable(&path.display().to_string()).caused_by(&error))?;
    let endpoint = Endpoint::from_shared(format!("unix:{}", near.path))
        .map_err(|error| Failure::usage(format!("'{}' is not a socket", path.display())).caused_by(&error))?;
    reach(endpoint, &path.display().to_string()).await
}

async fn reach(endpoint: Endpoint, address: &str) -> Result<Client, Failure> {
    // A peer that takes connections and says nothing is found out too, however long an answer may take.
    let endpoint = endpoint
        .connect_timeout(PATIENCE)
        .http2_keep_alive_interval(PATIENCE)
        .keep_alive_timeout(PATIENCE)
        .keep_alive_while_idle(true);
    let channel = endpoint.connect().await.map_err(|error| match error.source() {
        // The outermost says "transport error", which says nothing.
        Some(cause) => unreachable(address).caused_by(cause),
        None => unreachable(address).caused_by(&error),
    })?;
    Ok(Client { inner: EverwhenClient::new(channel) })
}

fn unreachable(address: &str) -> Failure {
    Failure::new(ErrorKind::Failed, format!("no daemon answers at {address}"))
        .advise("`everwhen run` starts one; without --addr the repository itself is read")
}

/// The daemon on a state folder, if one answers.
pub(crate) async fn local(state: &StateFolder) -> Option<Client> {
    let socket = state.socket();
    if !socket.exists() {
        return None;
    }
    connect_socket(&socket).await.ok()
}

/// Asks one question.
macro_rules! ask {
    ($client:expr, $method:ident, $request:expr $(, $field:ident)?) => {{
        let mut client = $client.inner.clone();
        async move {
            let answer = client.$method($request).await.map_err(|status| failure_of(&status))?.into_inner();
            Ok(answer $(.$field.unwrap_or_default())?)
        }
        .boxed()
    }};
}

/// A stream that begins when it is first polled.
fn parts<T: Send + 'static>(
    asked: impl Future<Output = Result<Response<Streaming<T>>, Status>> + Send + 'static,
) -> Parts<T> {
    let opened = async move { asked.await.map(Response::into_inner) };
    opened.into_stream().try_flatten().map_err(|status| failure_of(&status)).boxed()
}

impl Answers for Client {
    fn databases(&self) -> Answer<'_, v1::ListDatabasesResponse> {
        ask!(self, list_databases, v1::ListDatabasesRequest {})
    }

    fn add_database(&self, request: v1::AddDatabaseRequest) -> Answer<'_, v1::Database> {
        ask!(self, add_database, request, database)
    }

    fn remove_database(&self, request: v1::RemoveDatabaseRequest) -> Answer<'_, v1::Database> {
        ask!(self, remove_database, request, database)
    }

    fn set_database(&self, request: v1::SetDatabaseRequest) -> Answer<'_, v1::Database> {
        ask!(self, set_database, request, database)
    }

    fn status(&self, request: v1::GetStatusRequest) -> Answer<'_, v1::GetStatusResponse> {
        ask!(self, get_status, request)
    }

    fn points(&self, request: v1::ListPointsRequest) -> Parts<v1::ListPointsResponse> {
        let mut client = self.inner.clone();
        parts(async move { client.list_points(request).await })
    }

    fn history(&self, request: v1::GetHistoryRequest) -> Answer<'_, v1::GetHistoryResponse> {
        ask!(self, get_history, request)
    }

    fn resolve(&self, request: v1::ResolvePointRequest) -> Answer<'_, v1::ResolvePointResponse> {
        ask!(self, resolve_point, request)
    }

    fn plan(&self, request: v1::PlanRestoreRequest) -> Answer<'_, v1::RestorePlan> {
        ask!(self, plan_restore, request, plan)
    }

    fn restore(&self, request: v1::RestoreRequest, cancel: Cancel) -> Parts<v1::RestoreResponse> {
        let mut client = self.inner.clone();
        let told = async move { cancel.cancelled().await };
        parts(async move { client.restore(request).await }).take_until(told.boxed()).boxed()
    }

    fn wait_durable(&self, request: v1::WaitDurableRequest) -> Answer<'_, v1::WaitDurableResponse> {
        ask!(self, wait_durable, request)
    }
}

/// A path short enough for a unix socket: system calls take about a hundred bytes. A longer one goes by its folder's
/// file descriptor, which must stay open meanwhile.
pub(crate) struct ShortPath {
    /// The path to use.
    pub(crate) path: String,
    _folder: Option<std::fs::File>,
}

impl ShortPath {
    /// Shortens if need be.
    pub(crate) fn of(path: &Path) -> std::io::Result<Self> {
        let text = path.to_str().ok_or_else(|| std::io::Error::other("the path is not UTF-8"))?;
        if text.len() <= MAX_SOCKET_PATH {
            return Ok(Self { path: text.to_owned(), _folder: None });
        }
        let (folder, name) = text.rsplit_once('/').unwrap_or((".", text));
        let folder = std::fs::File::open(folder)?;
        Ok(Self { path: format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()), _folder: Some(folder) })
    }
}

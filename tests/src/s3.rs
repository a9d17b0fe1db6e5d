//! A small S3 server for tests, over real HTTP on the loop-back: what `object_store` asks for and nothing else, with
//! switches for everything that stores and networks do wrong. It keeps objects in memory, counts requests, and checks
//! no signatures. It runs on a thread of its own, so that child processes and blocking tests can use it as well.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// The one bucket there is.
pub const BUCKET: &str = "bucket";

/// What goes wrong. All off at the start.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// So many requests are answered 503, undone.
    pub unavailable: u32,
    /// Every answer waits for this long.
    pub delay: Duration,
    /// So many puts are done but their connection is closed without an answer.
    pub lost_acks: u32,
    /// `If-None-Match` is ignored in silence, as by some S3-compatible stores.
    pub ignores_conditions: bool,
    /// `If-None-Match` is answered 501, as by others.
    pub refuses_conditions: bool,
    /// Every put is answered 403.
    pub read_only: bool,
    /// Every delete is answered 403.
    pub no_delete: bool,
    /// Every request is answered 403 with this code, like `InvalidAccessKeyId`.
    pub rejects_all_with: Option<String>,
    /// Entries in a page of a listing; 0 means 1000.
    pub page: usize,
}

/// Requests served so far, also those that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// PUT, parts included.
    pub puts: u64,
    /// GET of objects.
    pub gets: u64,
    /// HEAD.
    pub heads: u64,
    /// Listings, one a page.
    pub lists: u64,
    /// DELETE, and bulk deletes.
    pub deletes: u64,
    /// POST for multipart uploads.
    pub posts: u64,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Bytes>,
    uploads: BTreeMap<u64, BTreeMap<u32, Bytes>>,
    next_upload: u64,
    faults: Faults,
    requests: Requests,
}

/// A running server; it stops when dropped.
pub struct S3Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl S3Server {
    /// Starts one on a free port.
    pub fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let (stop, stopped) = oneshot::channel();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = serve(listener, shared) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address, state, stop: Some(stop), thread: Some(thread) }
    }

    /// The address of a store in its bucket.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// The environment by which a process finds it.
    pub fn environment(&self) -> Vec<(String, String)> {
        [
            ("AWS_ENDPOINT_URL", format!("http://{}", self.address)),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "test".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }

    /// Changes what goes wrong from now on.
    pub fn fault(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut lock(&self.state).faults);
    }

    /// The requests so far.
    pub fn requests(&self) -> Requests {
        lock(&self.state).requests
    }

    /// The objects that are there, with their sizes.
    pub fn objects(&self) -> Vec<(String, usize)> {
        lock(&self.state).objects.iter().map(|(key, bytes)| (key.clone(), bytes.len())).collect()
    }

    /// The bytes of an object.
    pub fn object(&self, key: &str) -> Option<Bytes> {
        lock(&self.state).objects.get(key).cloned()
    }

    /// Replaces an object, or removes it: damage from behind the back of everybody.
    pub fn tamper(&self, key: &str, bytes: Option<Bytes>) {
        match bytes {
            Some(bytes) => lock(&self.state).objects.insert(key.to_owned(), bytes),
            None => lock(&self.state).objects.remove(key),
        };
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(connection(stream, Arc::clone(&state)));
    }
}

async fn connection(stream: TcpStream, state: Arc<Mutex<State>>) {
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { answer(request, &state).await }
    });
    // A lost acknowledgement ends the connection with an error; that is the point.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// The connection is to be closed without an answer.
#[derive(Debug)]
struct Lost;

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the answer is lost on purpose")
    }
}

impl std::error::Error for Lost {}

impl From<Infallible> for Lost {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

type Answer = Response<Full<Bytes>>;

/// A request, taken apart.
struct Asked {
    method: Method,
    key: String,
    query: BTreeMap<String, String>,
    if_none_match: bool,
    range: Option<String>,
    body: Bytes,
}

async fn answer(request: Request<Incoming>, state: &Mutex<State>) -> Result<Answer, Lost> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Lost)?.to_bytes();
    let path = head.uri.path().trim_start_matches('/').to_owned();
    let (bucket, key) = path.split_once('/').unwrap_or((path.as_str(), ""));
    let query = url::form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes());
    let asked = Asked {
        method: head.method,
        key: key.to_owned(),
        query: query.into_owned().collect(),
        if_none_match: head.headers.contains_key("if-none-match"),
        range: head.headers.get("range").and_then(|range| range.to_str().ok()).map(str::to_owned),
        body,
    };
    let delay = lock(state).faults.delay;
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let mut state = lock(state);
    state.count(&asked);
    if bucket != BUCKET {
        return Ok(error(StatusCode::NOT_FOUND, "NoSuchBucket"));
    }
    if let Some(refused) = state.refuse(&asked) {
        return Ok(refused);
    }
    let is_put = asked.method == Method::PUT;
    let answer = state.handle(&asked);
    if is_put && state.faults.lost_acks > 0 {
        state.faults.lost_acks -= 1;
        return Err(Lost);
    }
    Ok(answer)
}

impl State {
    fn count(&mut self, asked: &Asked) {
        let requests = &mut self.requests;
        match (&asked.method, asked.query.contains_key("list-type")) {
            (&Method::GET, true) => requests.lists += 1,
            (&Method::GET, false) => requests.gets += 1,
            (&Method::HEAD, _) => requests.heads += 1,
            (&Method::PUT, _) => requests.puts += 1,
            (&Method::DELETE, _) => requests.deletes += 1,
            (&Method::POST, _) if asked.query.contains_key("delete") => requests.deletes += 1,
            _ => requests.posts += 1,
        }
    }

    fn refuse(&mut self, asked: &Asked) -> Option<Answer> {
        let faults = &mut self.faults;
        if faults.unavailable > 0 {
            faults.unavailable -= 1;
            return Some(error(StatusCode::SERVICE_UNAVAILABLE, "SlowDown"));
        }
        if let Some(code) = &faults.rejects_all_with {
            return Some(error(StatusCode::FORBIDDEN, code));
        }
        let deletes = asked.method == Method::DELETE || asked.query.contains_key("delete");
        if deletes && faults.no_delete {
            return Some(error(StatusCode::FORBIDDEN, "AccessDenied"));
        }
        let writes = asked.method == Method::PUT || asked.method == Method::POST && !deletes;
        (writes && faults.read_only).then(|| error(StatusCode::FORBIDDEN, "AccessDenied"))
    }

    fn handle(&mut self, asked: &Asked) -> Answer {
        let upload = asked.query.get("uploadId").and_then(|id| id.parse::<u64>().ok());
        match (&asked.method, upload) {
            (&Method::PUT, Some(id)) => self.put_part(asked, id),
            (&Method::PUT, None) => self.put(asked),
            (&Method::POST, Some(id)) => self.complete(asked, id),
            (&Method::POST, None) if asked.query.contains_key("uploads") => self.begin(),
            (&Method::POST, None) if asked.query.contains_key("delete") => self.delete_many(asked),
            (&Method::GET, _) if asked.query.contains_key("list-type") => self.list(asked),
            (&Method::GET | &Method::HEAD, _) => self.get(asked),
            (&Method::DELETE, id) => {
                match id {
                    Some(id) => drop(self.uploads.remove(&id)),
                    None => drop(self.objects.remove(&asked.key)),
                }
                plain(StatusCode::NO_CONTENT, Bytes::new())
            }
            _ => error(StatusCode::NOT_IMPLEMENTED, "NotImplemented"),
        }
    }

    fn put(&mut self, asked: &Asked) -> Answer {
        if asked.if_none_match && self.faults.refuses_conditions {
            return error(StatusCode::NOT_IMPLEMENTED, "NotImplemented");
        }
        if asked.if_none_match && !self.faults.ignores_conditions && self.objects.contains_key(&asked.key) {
            return error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
        }
        self.objects.insert(asked.key.clone(), asked.body.clone());
        plain(StatusCode::OK, Bytes::new())
    }

    fn begin(&mut self) -> Answer {
        self.next_upload += 1;
        self.uploads.insert(self.next_upload, BTreeMap::new());
        let id = self.next_upload;
        xml(format!(
            "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
        ))
    }

    fn put_part(&mut self, asked: &Asked, id: u64) -> Answer {
        let number = asked.query.get("partNumber").and_then(|number| number.parse().ok());
        match (self.uploads.get_mut(&id), number) {
            (Some(upload), Some(number)) => {
                upload.insert(number, asked.body.clone());
                plain(StatusCode::OK, Bytes::new())
            }
            _ => error(StatusCode::NOT_FOUND, "NoSuchUpload"),
        }
    }

    fn complete(&mut self, asked: &Asked, id: u64) -> Answer {
        let Some(parts) = self.uploads.remove(&id) else {
            return error(StatusCode::NOT_FOUND, "NoSuchUpload");
        };
        let whole: Vec<u8> = parts.values().flat_map(|part| part.iter().copied()).collect();
        self.objects.insert(asked.key.clone(), whole.into());
        xml("<CompleteMultipartUploadResult><ETag>\"1\"</ETag></CompleteMultipartUploadResult>")
    }

    fn delete_many(&mut self, asked: &Asked) -> Answer {
        let text = String::from_utf8_lossy(&asked.body).into_owned();
        let mut answer = String::from("<DeleteResult>");
        for part in text.split("<Key>").skip(1) {
            let key = part.split("</Key>").next().unwrap_or_default();
            self.objects.remove(key);
            let _ = write!(answer, "<Deleted><Key>{key}</Key></Deleted>");
        }
        answer.push_str("</DeleteResult>");
        xml(answer)
    }

    fn get(&self, asked: &Asked) -> Answer {
        let Some(object) = self.objects.get(&asked.key) else {
            return error(StatusCode::NOT_FOUND, "NoSuchKey");
        };
        let len = object.len();
        let response = Response::builder()
            .header("etag", "\"1\"")
            .header("last-modified", "Sat, 21 Nov 2026 00:00:00 GMT");
        if asked.method == Method::HEAD {
            return response.header("content-length", len).body(Full::default()).unwrap();
        }
        let Some(range) = &asked.range else { return response.body(Full::new(object.clone())).unwrap() };
        let bounds = range.strip_prefix("bytes=").and_then(|range| range.split_once('-'));
        let (first, last) = bounds
            .map(|(first, last)| (first.parse().unwrap_or(0), last.parse().unwrap_or(usize::MAX)))
            .unwrap_or((0, usize::MAX));
        if first >= len {
            return error(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange");
        }
        let end = last.saturating_add(1).min(len);
        response
            .status(StatusCode::PARTIAL_CONTENT)
            .header("content-range", format!("bytes {first}-{}/{len}", end - 1))
            .body(Full::new(object.slice(first..end)))
            .unwrap()
    }

    fn list(&self, asked: &Asked) -> Answer {
        let text = |name: &str| asked.query.get(name).map(String::as_str).unwrap_or_default();
        let (prefix, delimiter) = (text("prefix"), text("delimiter"));
        let after = text("continuation-token").max(text("start-after"));
        let page = if self.faults.page == 0 { 1000 } else { self.faults.page };
        let (mut contents, mut folders, mut count, mut next) = (String::new(), String::new(), 0, None);
        let mut last_folder = String::new();
        for (key, bytes) in self.objects.iter().filter(|(key, _)| key.starts_with(prefix)) {
            // A continuation after a folder goes on behind everything in it.
            if key.as_str() <= after
                || (after.ends_with('/') && key.starts_with(after) && !delimiter.is_empty())
            {
                continue;
            }
            let folder = key[prefix.len()..].find('/').filter(|_| !delimiter.is_empty());
            let folder = folder.map(|at| key[..=prefix.len() + at].to_owned());
            if folder.as_ref() == Some(&last_folder) {
                continue;
            }
            if count == page {
                break;
            }
            count += 1;
            match folder {
                Some(folder) => {
                    let _ = write!(folders, "<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>");
                    next = Some(folder.clone());
                    last_folder = folder;
                }
                None => {
                    let _ = write!(
                        contents,
                        "<Contents><Key>{key}</Key><Size>{}</Size><ETag>\"1\"</ETag>\
                         <LastModified>2026-11-21T00:00:00.000Z</LastModified></Contents>",
                        bytes.len()
                    );
                    next = Some(key.clone());
                }
            }
        }
        let token = next
            .filter(|_| count == page)
            .map(|next| format!("<NextContinuationToken>{next}</NextContinuationToken>"))
            .unwrap_or_default();
        xml(format!(
            "<ListBucketResult><IsTruncated>{}</IsTruncated>{token}{contents}{folders}</ListBucketResult>",
            !token.is_empty()
        ))
    }
}

fn plain(status: StatusCode, body: Bytes) -> Answer {
    Response::builder().status(status).header("etag", "\"1\"").body(Full::new(body)).unwrap()
}

fn xml(text: impl std::fmt::Display) -> Answer {
    let text = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>{text}");
    Response::builder().header("content-type", "application/xml").body(Full::new(text.into())).unwrap()
}

fn error(status: StatusCode, code: &str) -> Answer {
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{code}</Message></Error>");
    Response::builder().status(status).body(Full::new(text.into())).unwrap()
}

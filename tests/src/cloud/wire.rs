//! HTTP, and what goes wrong on it.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper::header::HeaderMap;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use super::shelf::{Told, Trouble, Wish};
use super::{BUCKET, Dialect, State, azure, google, lock, s3};

/// A request, taken apart.
pub(super) struct Asked {
    pub(super) method: Method,
    /// The bucket is left out; decoded.
    pub(super) key: String,
    pub(super) query: BTreeMap<String, String>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Asked {
    /// A header, or nothing.
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// A parameter of the query.
    pub(super) fn parameter(&self, name: &str) -> Option<String> {
        self.query.get(name).cloned()
    }

    /// The first and the last byte asked for.
    pub(super) fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self.header("range").strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().unwrap_or(usize::MAX - 1)))
    }

    /// The body as text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// What is between all pairs of these tags.
pub(super) fn between<'t>(text: &'t str, tag: &str) -> Vec<&'t str> {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    text.split(&open).skip(1).filter_map(|rest| rest.split(&close).next()).collect()
}

/// An answer with a body that may break off.
pub(super) type Answer = Response<Pieces>;

/// An answer that is whole.
pub(super) fn whole(status: StatusCode, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
    let body = body.into();
    let mut response = Response::builder().status(status).header("content-length", body.len());
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(Pieces::all(body)).unwrap()
}

/// The answer with an object, in all dialects.
pub(super) fn object(told: Told, headers: &[(&str, &str)]) -> Answer {
    let Told::Object { bytes, range, size, tag } = told else { unreachable!("no object: {told:?}") };
    let mut response = Response::builder()
        .header("etag", tag)
        .header("last-modified", "Sat, 21 Nov 2026 00:00:00 GMT")
        .header("content-length", bytes.len());
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    if let Some((first, last)) = range {
        response = response
            .status(StatusCode::PARTIAL_CONTENT)
            .header("content-range", format!("bytes {first}-{last}/{size}"));
    }
    response.body(Pieces::all(bytes)).unwrap()
}

/// XML with its heading.
pub(super) fn xml(status: StatusCode, headers: &[(&str, &str)], text: &str) -> Answer {
    let text = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>{text}");
    let headers = [headers, &[("content-type", "application/xml")]].concat();
    whole(status, &headers, text)
}

/// A body that says how long it is and may be shorter.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    left: VecDeque<Bytes>,
    breaks_off: bool,
    /// Waits once, so that what is left before the break is sent.
    waited: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Pieces {
    fn all(bytes: Bytes) -> Self {
        let mut left = VecDeque::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            left.push_back(rest.split_to(rest.len().min(64 * 1024)));
        }
        Self { left, ..Self::default() }
    }

    /// Only the first half of it.
    fn broken(self) -> Self {
        let mut bytes = BytesMut::new();
        self.left.iter().for_each(|piece| bytes.extend_from_slice(piece));
        let half = bytes.freeze().split_to(self.left.iter().map(Bytes::len).sum::<usize>() / 2);
        Self { breaks_off: true, ..Self::all(half) }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Lost;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Lost>>> {
        if let Some(piece) = self.left.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if !self.breaks_off {
            return Poll::Ready(None);
        }
        let waited =
            self.waited.get_or_insert_with(|| Box::pin(tokio::time::sleep(Duration::from_millis(20))));
        waited.as_mut().poll(context).map(|()| Some(Err(Lost)))
    }
}

/// The connection is to be closed without (more of) an answer.
#[derive(Debug)]
pub(super) struct Lost;

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the answer is lost on purpose")
    }
}

impl std::error::Error for Lost {}

/// Serves until dropped.
pub(super) async fn serve(listener: std::net::TcpListener, dialect: Dialect, state: Arc<Mutex<State>>) {
    let listener = TcpListener::from_std(listener).unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(connection(stream, dialect, Arc::clone(&state)));
    }
}

async fn connection(stream: TcpStream, dialect: Dialect, state: Arc<Mutex<State>>) {
    let _ = stream.set_nodelay(true);
    let resets = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&resets);
    let service = service_fn(move |request| {
        let (state, noted) = (Arc::clone(&state), Arc::clone(&noted));
        Box::pin(async move { answer(request, dialect, &state, &noted).await })
    });
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // A lost answer ends the connection with an error; that is the point.
    let _ = std::future::poll_fn(|context| connection.poll_without_shutdown(context)).await;
    let stream = connection.into_parts().io.into_inner();
    if resets.load(Ordering::Relaxed) {
        let _ = stream.set_zero_linger();
    }
}

async fn answer(
    request: Request<Incoming>,
    dialect: Dialect,
    state: &Mutex<State>,
    resets: &AtomicBool,
) -> Result<Answer, Lost> {
    let (head, body) = request.into_parts();
    let rate = lock(state).faults.reads_at;
    let body = read(body, rate).await?;
    lock(state).requests.bytes_in += body.len() as u64;
    let path = decoded(head.uri.path().trim_start_matches('/'));
    let path = match dialect {
        Dialect::Azure => azure::without_account(&path),
        Dialect::S3 | Dialect::Google => &path,
    };
    let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
    let query = url::form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes());
    let asked = Asked {
        method: head.method,
        key: key.to_owned(),
        query: query.into_owned().collect(),
        headers: head.headers,
        body,
    };
    let delay = lock(state).faults.delay;
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let wish = match dialect {
        Dialect::S3 => s3::wish(&asked),
        Dialect::Google => google::wish(&asked),
        Dialect::Azure => azure::wish(&asked),
    };
    let signed = match dialect {
        Dialect::S3 => s3::is_signed(&asked),
        Dialect::Google => google::is_signed(&asked),
        Dialect::Azure => azure::is_signed(&asked),
    };
    let head_only = matches!(wish, Wish::Head { .. });
    let told = lock(state).serve(wish, bucket, signed)?;
    let told = lock(state).spoil(told, head_only);
    let breaks = matches!(told, Told::Object { .. }) && !head_only && lock(state).breaks(resets);
    let answer = match dialect {
        Dialect::S3 => s3::answer(told),
        Dialect::Google => google::answer(told),
        Dialect::Azure => azure::answer(told, &asked),
    };
    let answer = match (head_only, breaks) {
        (true, _) => answer.map(|_| Pieces::default()),
        (false, true) => answer.map(Pieces::broken),
        (false, false) => answer,
    };
    lock(state).requests.bytes_out += answer.body().left.iter().map(Bytes::len).sum::<usize>() as u64;
    Ok(answer)
}

/// The body of a request, as slowly as wished.
async fn read(mut body: Incoming, rate: u64) -> Result<Bytes, Lost> {
    if rate == 0 {
        return Ok(body.collect().await.map_err(|_| Lost)?.to_bytes());
    }
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.map_err(|_| Lost)?.into_data() else { continue };
        bytes.extend_from_slice(&piece);
        tokio::time::sleep(Duration::from_micros(piece.len() as u64 * 1_000_000 / rate)).await;
    }
    Ok(bytes.freeze())
}

fn decoded(text: &str) -> String {
    // What a query has as '+' for a space does not occur in our keys.
    let escaped = text.replace('+', "%2B").replace('&', "%26").replace('=', "%3D");
    let pair = url::form_urlencoded::parse(escaped.as_bytes()).next();
    pair.map(|(name, _)| name.into_owned()).unwrap_or_default()
}

impl State {
    /// Does what is wanted, or not.
    fn serve(&mut self, wish: Wish, bucket: &str, signed: bool) -> Result<Told, Lost> {
        self.count(&wish);
        if bucket != BUCKET {
            return Ok(Told::Trouble(Trouble::NoBucket));
        }
        if let Some(trouble) = self.refuse(&wish, signed) {
            return Ok(Told::Trouble(trouble));
        }
        let is_put = matches!(wish, Wish::Put { .. } | Wish::Part { .. } | Wish::Complete { .. });
        let told = self.shelf.handle(wish, &self.faults);
        if is_put && take_one(&mut self.faults.lost_acks) {
            return Err(Lost);
        }
        Ok(told)
    }

    fn count(&mut self, wish: &Wish) {
        let requests = &mut self.requests;
        match wish {
            Wish::List(_) => requests.lists += 1,
            Wish::Get { .. } => requests.gets += 1,
            Wish::Head { .. } => requests.heads += 1,
            Wish::Put { .. } | Wish::Part { .. } => requests.puts += 1,
            Wish::Delete { .. } | Wish::Abort { .. } => requests.deletes += 1,
            Wish::Begin | Wish::Complete { .. } => requests.uploads += 1,
            Wish::Unknown => {}
        }
    }

    fn refuse(&mut self, wish: &Wish, signed: bool) -> Option<Trouble> {
        let faults = &mut self.faults;
        if take_one(&mut faults.unavailable) {
            return Some(Trouble::Unavailable);
        }
        if take_one(&mut faults.throttled) {
            return Some(Trouble::Throttled);
        }
        if !signed {
            return Some(Trouble::Unsigned);
        }
        if let Some(code) = &faults.rejects_all_with {
            return Some(Trouble::Rejected(code.clone()));
        }
        let denied = match wish {
            Wish::Delete { .. } | Wish::Abort { .. } => faults.no_delete,
            Wish::Put { .. } | Wish::Part { .. } | Wish::Begin | Wish::Complete { .. } => faults.read_only,
            Wish::List(_) => faults.no_list,
            Wish::Get { .. } | Wish::Head { .. } | Wish::Unknown => false,
        };
        denied.then_some(Trouble::Denied)
    }

    /// Makes less of a range than was asked for, or more.
    fn spoil(&mut self, told: Told, head_only: bool) -> Told {
        let Told::Object { bytes, range: Some((first, last)), size, tag } = told else { return told };
        if head_only || bytes.len() < 2 {
            return Told::Object { bytes, range: Some((first, last)), size, tag };
        }
        let half = bytes.len() / 2;
        if take_one(&mut self.faults.short_ranges) {
            let range = Some((first, first + half - 1));
            return Told::Object { bytes: bytes.slice(..half), range, size, tag };
        }
        if take_one(&mut self.faults.lying_ranges) {
            return Told::Object { bytes: bytes.slice(..half), range: Some((first, last)), size, tag };
        }
        if self.faults.ignores_ranges {
            return Told::Object { bytes: Bytes::from(vec![0; size]), range: None, size, tag };
        }
        Told::Object { bytes, range: Some((first, last)), size, tag }
    }

    /// Whether the body of this object breaks off, and how.
    fn breaks(&mut self, resets: &AtomicBool) -> bool {
        if take_one(&mut self.faults.reset_bodies) {
            resets.store(true, Ordering::Relaxed);
            return true;
        }
        take_one(&mut self.faults.cut_bodies)
    }
}

fn take_one(count: &mut u32) -> bool {
    let some = *count > 0;
    *count = count.saturating_sub(1);
    some
}

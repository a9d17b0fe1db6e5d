//! The smallest HTTP server that Prometheus and load balancers can talk to: GET, one answer, connection closed.
//!
//! `/metrics` Prometheus text · `/healthz` 200 while the daemon runs · `/readyz` 200 unless it is starting or a
//! database is failing, with the reasons. Requests are bounded in size, time and number; bodies are not read.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use everwhen_proto::v1;

use super::metrics;

const MAX_REQUEST_BYTES: usize = 8 << 10;
const MAX_CONNECTIONS: usize = 32;
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers on `listener` until dropped. `status` gives the present state.
pub(crate) async fn serve(
    listener: TcpListener,
    status: impl Fn() -> v1::GetStatusResponse + Send + Sync + 'static,
) {
    let (status, slots) = (Arc::new(status), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: wait for some to come back.
                tracing::warn!("metrics: cannot accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let status = Arc::clone(&status);
        tokio::spawn(async move {
            let _ = tokio::time::timeout(PATIENCE, answer(stream, &*status)).await;
            drop(slot);
        });
    }
}

async fn answer(mut stream: TcpStream, status: &impl Fn() -> v1::GetStatusResponse) -> std::io::Result<()> {
    let request = read_head(&mut stream).await?;
    let (code, body) = respond(&request, status);
    let head = format!(
        "HTTP/1.1 {code}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    if !request.starts_with(b"HEAD ") {
        stream.write_all(body.as_bytes()).await?;
    }
    stream.shutdown().await
}

async fn read_head(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(512);
    while head.len() < MAX_REQUEST_BYTES && !head.windows(4).any(|four| four == b"\r\n\r\n") {
        let room = (MAX_REQUEST_BYTES - head.len()) as u64;
        if (&mut *stream).take(room).read_buf(&mut head).await? == 0 {
            break;
        }
    }
    Ok(head)
}

pub(crate) fn respond(request: &[u8], status: &impl Fn() -> v1::GetStatusResponse) -> (&'static str, String) {
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if !matches!(method, "GET" | "HEAD") {
        return ("405 Method Not Allowed", "only GET and HEAD\n".into());
    }
    match target.split('?').next().unwrap_or_default() {
        "/metrics" => ("200 OK", metrics::render(&status())),
        "/healthz" => ("200 OK", "ok\n".into()),
        "/readyz" => readiness(&status()),
        "/" => ("200 OK", "everwhen: /metrics /healthz /readyz\n".into()),
        _ => ("404 Not Found", "there are /metrics, /healthz and /readyz\n".into()),
    }
}

fn readiness(status: &v1::GetStatusResponse) -> (&'static str, String) {
    if status.daemon.is_none() {
        return ("503 Service Unavailable", "starting\n".into());
    }
    let mut body = String::new();
    for db in &status.databases {
        let name = db.database.as_ref().map_or("", |database| database.name.as_str());
        let health = crate::view::health_name(db.health());
        body.push_str(&format!("{name}: {health}"));
        for reason in &db.reasons {
            body.push_str(&format!("\n  {reason}"));
        }
        body.push('\n');
    }
    let failing = status.databases.iter().any(|db| db.health() == v1::Health::Failing);
    (if failing { "503 Service Unavailable" } else { "200 OK" }, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing() -> v1::GetStatusResponse {
        let database = Some(v1::Database { name: "app".into(), ..Default::default() });
        let health = v1::Health::Failing.into();
        let db = v1::DatabaseStatus { database, health, reasons: vec!["gone".into()], ..Default::default() };
        v1::GetStatusResponse { databases: vec![db], daemon: Some(v1::DaemonInfo::default()) }
    }

    #[test]
    fn a_daemon_that_waits_for_its_store_lives_and_is_not_ready() {
        let starting = v1::GetStatusResponse::default;
        assert_eq!(respond(b"GET /healthz HTTP/1.1\r\n\r\n", &starting).0, "200 OK");
        let ready = respond(b"GET /readyz HTTP/1.1\r\n\r\n", &starting);
        assert_eq!(ready, ("503 Service Unavailable", "starting\n".to_owned()));
    }

    #[test]
    fn every_target_has_an_answer() {
        for (request, code) in [
            ("GET /metrics HTTP/1.1\r\n\r\n", "200 OK"),
            ("GET /healthz?x HTTP/1.0\r\n\r\n", "200 OK"),
            ("GET /readyz HTTP/1.1\r\n\r\n", "503 Service Unavailable"),
            ("GET /etc/passwd HTTP/1.1\r\n\r\n", "404 Not Found"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
            ("", "405 Method Not Allowed"),
        ] {
            assert_eq!(respond(request.as_bytes(), &failing).0, code, "{request}");
        }
        assert_eq!(readiness(&failing()).1, "app: failing\n  gone\n");
    }

    #[tokio::test]
    async fn over_a_real_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, failing));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("everwhen_databases 1\n"), "{text}");
        server.abort();
    }
}

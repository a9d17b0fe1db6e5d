//! Laws of what the daemon reads from outside: its configuration, HTTP requests, messages of its API. See
//! [`everwhen_engine::laws`].
#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "a law that does not hold panics: that is what it is for"
)]

use std::path::Path;

use everwhen_engine::laws::{Law, SLACK, memory};
use everwhen_proto::v1;
use prost::Message;

use crate::config::{Config, DatabaseEntry, EXAMPLE, door, units};
use crate::serve::http;
use crate::{rpc, wire};

/// The laws of the daemon's decoders.
pub const ALL: [Law; 2] = [
    Law { name: "configuration", check: configuration, seeds: configurations },
    Law { name: "requests", check: requests, seeds: some_requests },
];

/// Any bytes, as a text, are a configuration or a list of problems, each with a line that is there; and a list of
/// databases is written and read again as the same.
pub fn configuration(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let folder = Path::new("/etc");
    let lines = text.split('\n').count();
    let limit = 1024 * text.len() + SLACK;
    if let Err(problems) = memory::within(limit, || Config::parse(&text, folder)) {
        assert!(!problems.is_empty());
        assert!(problems.iter().all(|problem| (1..=lines).contains(&problem.line)));
    }
    if let Ok(entries) = memory::within(limit, || Config::parse_list(&text, folder)) {
        let again: String = entries.iter().map(DatabaseEntry::to_toml).collect();
        assert_eq!(Config::parse_list(&again, folder), Ok(entries));
    }
    let _ = (units::duration(&text), units::size(&text), door(&text));
}

/// Any bytes are a request that gets an answer, and messages whose words the engine has or refuses.
pub fn requests(input: &[u8]) {
    // An answer has the same size for any request.
    let (code, _) = memory::within(4 * SLACK, || http::respond(input, &v1::GetStatusResponse::default));
    assert!(["200", "404", "405", "503"].contains(&&code[..3]));
    // Shown with local times, for which the zone is read once: that is not the input's.
    let shown = memory::within(64 * input.len() + SLACK, || {
        if let Ok(target) = v1::Target::decode(input) {
            let _ = wire::target_in(Some(target));
        }
        if let Ok(time) = prost_types::Timestamp::decode(input) {
            let time = wire::time_in(&time);
            assert_eq!(wire::time_in(&wire::time_out(time)), time);
        }
        if let Ok(status) = v1::DatabaseStatus::decode(input) {
            let _ = wire::seen_in(&status);
        }
        let failure = rpc::failure_in("it failed", v1::ErrorDetail::decode(input).ok()?);
        assert_eq!(rpc::failure_in("it failed", rpc::failure_out(&failure)), failure);
        Some(failure)
    });
    if let Some(failure) = shown {
        let _ = (failure.exit_code(), failure.render(true), failure.render(false));
    }
}

fn configurations() -> Vec<Vec<u8>> {
    let list = "[[database]]\npath = 'a.db'\n[[database]]\npath = '/b'\nname = \"\\u00e9\"\nclass = 'mine'\n";
    ["1h30m", "64MiB", "127.0.0.1:7437", "[flush]\ninterval = 1\nspool = 5\n[[class.x]]\n", list, EXAMPLE]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
}

fn some_requests() -> Vec<Vec<u8>> {
    use v1::target::Target;
    let time = prost_types::Timestamp { seconds: 1_795_219_200, nanos: -1 };
    let target = |target| v1::Target { target: Some(target) }.encode_to_vec();
    let point = v1::Point { position: "3/00000000000001a7".into(), time: Some(time) };
    let detail = v1::ErrorDetail {
        kind: v1::ErrorKind::NoSuchPoint.into(),
        advice: "ask for another".into(),
        nearest_before: Some(point.clone()),
        nearest_after: None,
        chain: vec!["no point".into(), "a gap".into()],
    };
    let status = v1::DatabaseStatus {
        durable: Some(point.clone()),
        covered_through: Some(time),
        ..v1::DatabaseStatus::default()
    };
    vec![
        b"GET /readyz?x HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        time.encode_to_vec(),
        target(Target::Time(time)),
        target(Target::Position(point.position)),
        target(Target::Latest(v1::Latest {})),
        detail.encode_to_vec(),
        status.encode_to_vec(),
    ]
}

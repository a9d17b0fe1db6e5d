//! The JSON contract, held by golden texts: scripts rely on these names and forms. Add to them, never change them.

use everwhen_proto::v1;
use serde::Serialize;
use serde_json::{Value, json};

use super::*;
use crate::wire::{point_out, time_out};

const TIME: &str = "2026-11-21T14:03:00.000001Z";

fn time() -> Timestamp {
    TIME.parse().unwrap()
}

fn point() -> v1::Point {
    point_out("1/00000000000001a7", Some(time()))
}

fn point_json() -> Value {
    json!({"position": "1/00000000000001a7", "time": TIME})
}

fn database() -> v1::Database {
    v1::Database {
        id: "00112233445566ff".into(),
        name: "app".into(),
        path: "/srv/app.db".into(),
        class: "production".into(),
        protected: true,
        store: "file:///b".into(),
        created: Some(time_out(time())),
    }
}

fn window() -> v1::Window {
    v1::Window { from: Some(time_out(time())), to: Some(time_out(time())) }
}

fn json_of(view: impl Serialize) -> Value {
    serde_json::to_value(view).unwrap()
}

#[test]
fn status() {
    let status = v1::GetStatusResponse {
        databases: vec![v1::DatabaseStatus {
            database: Some(database()),
            health: v1::Health::Attention.into(),
            reasons: vec!["the store is slow".into()],
            captured: Some(point()),
            durable: Some(point()),
            lag_ms: 12,
            window: Some(window()),
            gaps: 1,
            spool_bytes: 2,
            queue_bytes: 3,
            transactions_total: 4,
            segments_total: 5,
            stored_bytes_total: 6,
            covered_through: None,
            base: Some(v1::BaseProgress { done_pages: 7, total_pages: 8 }),
        }],
        daemon: Some(v1::DaemonInfo {
            host: "ff".into(),
            host_name: "box".into(),
            version: "0.1.0".into(),
            started: None,
            pid: 9,
        }),
    };
    assert_eq!(
        json_of(StatusView::from(status)),
        json!({
            "databases": [{
                "id": "00112233445566ff", "name": "app", "path": "/srv/app.db", "class": "production",
                "protected": true, "health": "attention", "reasons": ["the store is slow"],
                "captured": point_json(), "durable": point_json(), "lag_ms": 12,
                "window": {"from": TIME, "to": TIME}, "gaps": 1, "spool_bytes": 2, "queue_bytes": 3,
                "transactions_total": 4, "segments_total": 5, "stored_bytes_total": 6,
                "base": {"done_pages": 7, "total_pages": 8}, "covered_through": null,
            }],
            "daemon": {"host": "ff", "host_name": "box", "version": "0.1.0", "started": null, "pid": 9},
        })
    );
}

#[test]
fn without_a_daemon_the_lag_is_unknown() {
    let status = v1::GetStatusResponse {
        databases: vec![v1::DatabaseStatus { database: Some(database()), ..Default::default() }],
        daemon: None,
    };
    let json = json_of(StatusView::from(status));
    assert_eq!((&json["databases"][0]["lag_ms"], &json["daemon"]), (&Value::Null, &Value::Null));
}

#[test]
fn points() {
    let point =
        v1::RestorePoint { position: "1/00000000000001a7".into(), time: Some(time_out(time())), pages: 3 };
    assert_eq!(
        json_of(RestorePointView::from(point)),
        json!({"position": "1/00000000000001a7", "time": TIME, "pages": 3})
    );
}

#[test]
fn history() {
    let history = v1::GetHistoryResponse {
        database: Some(database()),
        windows: vec![window()],
        gaps: vec![v1::Gap { reason: "away".into(), ..Default::default() }],
        timelines: vec![v1::Timeline { id: 1, why: "first".into(), ..Default::default() }],
        bases: vec![v1::Base { position: "1/01".into(), manifest_bytes: 5 }],
        segments: 6,
        log_bytes: 7,
        latest: Some(point()),
        flaws: vec!["a hole".into()],
    };
    assert_eq!(
        json_of(HistoryView::from(history)),
        json!({
            "database": {
                "id": "00112233445566ff", "name": "app", "path": "/srv/app.db", "class": "production",
                "protected": true, "store": "file:///b", "created": TIME,
            },
            "windows": [{"from": TIME, "to": TIME}],
            "gaps": [{"from": null, "to": null, "before": "", "after": "", "reason": "away"}],
            "timelines": [{"id": 1, "parent": null, "why": "first", "host": "", "host_name": "", "claimed": null}],
            "labels": [],
            "bases": [{"position": "1/01", "manifest_bytes": 5}],
            "segments": 6, "log_bytes": 7, "latest": point_json(), "flaws": ["a hole"],
        })
    );
}

#[test]
fn plan_and_report() {
    let plan = v1::RestorePlan {
        point: Some(point()),
        asked: "latest".into(),
        state: "ab".into(),
        ..Default::default()
    };
    assert_eq!(
        json_of(PlanView::from(plan)),
        json!({
            "position": "1/00000000000001a7", "time": TIME, "asked": "latest", "distance_ms": 0, "base": "",
            "segments": 0, "transactions": 0, "bytes": 0, "requests": 0, "image_bytes": 0, "space_needed_bytes": 0, "state": "ab",
        })
    );
    let report = v1::RestoreReport {
        point: Some(point()),
        asked: "latest".into(),
        distance_ms: 1,
        path: "/x".into(),
        bytes: 2,
        proof: Some(v1::Proof { state: "ab".into(), how: "so".into() }),
        transactions: 3,
        avoided: vec!["x".into()],
        elapsed_ms: 4,
    };
    assert_eq!(
        json_of(RestoreView::from(report)),
        json!({
            "position": "1/00000000000001a7", "time": TIME, "asked": "latest", "distance_ms": 1, "path": "/x",
            "bytes": 2, "proof": {"state": "ab", "how": "so"}, "transactions": 3, "avoided": ["x"], "elapsed_ms": 4,
        })
    );
}

//! What does an object store charge for a database and a month? Arithmetic on what was measured: nothing is measured
//! here.

use serde_json::{Value, json};

use crate::Outcome;
use crate::prices::{Everwhen, GIGABYTE_MONTH, Load, MILLION_READS, MILLION_WRITES};
use crate::report::{Answer, Table};
use crate::world::World;

const DAYS: f64 = 30.0;
const PACES: [f64; 3] = [0.1, 10.0, 100.0];
const FLUSHES_S: [f64; 3] = [1.0, 10.0, 60.0];

/// Reckons with the answers to `stored` and `s3`, of this run or kept from an earlier one.
pub(crate) fn ask(world: &World) -> Outcome<Answer> {
    let mut answer = Answer::new("cost", "What an object store charges");
    by_workload(world, &mut answer)?;
    beside_the_peer(world, &mut answer)?;
    answer.note(format!(
        "List prices of S3 Standard in us-east-1 as published in 2025: {MILLION_WRITES} dollars for a million PUT, POST or LIST, \
         {MILLION_READS} for a million GET or HEAD, {GIGABYTE_MONTH} for a gigabyte and month; deletes and traffic to the store \
         are free. An even pace all month, up to the one that was measured, {DAYS} days of every transaction, two full copies."
    ));
    Ok(answer)
}

fn by_workload(world: &World, answer: &mut Answer) -> Outcome<()> {
    let head = ["workload", "bytes/tx", "transactions/s", "flush every 1 s", "10 s", "60 s", "of it storage"];
    let mut table = Table::new("Dollars for one database and month, by pace and flush interval", &head);
    let (measured, revision) = rows(world, "stored")?;
    for of in measured.iter().filter(|of| of["daemon"] == "everwhen") {
        let (bytes_per_tx, base_bytes) = (number(of, "bytes_per_tx")?, number(of, "first_copy_bytes")?);
        let fastest = number(of, "per_second")?;
        for per_second in PACES.into_iter().filter(|pace| *pace <= fastest) {
            let one = |flush_s| {
                Everwhen { per_second, flush_s, bytes_per_tx, base_bytes, days: DAYS, databases: 1.0 }.load()
            };
            let storage = Load { writes_h: 0.0, reads_h: 0.0, ..one(1.0) }.a_month();
            let months = FLUSHES_S.map(|flush_s| one(flush_s).a_month());
            let workload = of["workload"].as_str().unwrap_or_default().to_owned();
            answer.raw(json!({
                "workload": workload, "per_second": per_second, "flush_s": FLUSHES_S, "dollars": months,
                "storage_dollars": storage,
            }));
            let mut row = vec![workload, format!("{bytes_per_tx:.0}"), per_second.to_string()];
            row.extend(months.into_iter().chain([storage]).map(|dollars| format!("{dollars:.2}")));
            table.row(row);
        }
    }
    let idle = Everwhen {
        per_second: 0.0,
        flush_s: 1.0,
        bytes_per_tx: 0.0,
        base_bytes: 0.0,
        days: DAYS,
        databases: 1.0,
    };
    let fleet = idle.load().a_month();
    answer.raw(json!({ "idle_daemon_dollars": fleet }));
    table.row(
        ["idle, 1 or 1,000 databases on a daemon, without storage", "-", "0"]
            .map(str::to_owned)
            .into_iter()
            .chain(std::iter::repeat_n(format!("{fleet:.2}"), 3).chain(["0".to_owned()])),
    );
    answer.table(table);
    answer.note(format!("Stored bytes were measured (`stored`) of build {revision}."));
    Ok(())
}

/// Requests as they were counted at a server.
fn beside_the_peer(world: &World, answer: &mut Answer) -> Outcome<()> {
    let mut table = Table::new(
        "Dollars for the requests of a month, as counted at an S3 server (flush and sync every second)",
        &["writer", "daemon", "one database", "1,000 databases"],
    );
    let (measured, revision) = rows(world, "s3")?;
    for of in measured {
        let per_hour = |names: &[&str]| -> Outcome<f64> {
            let counts = names.iter().map(|name| number(&of, name)).collect::<Outcome<Vec<f64>>>()?;
            Ok(counts.iter().sum::<f64>() * 3600.0 / number(&of, "seconds")?)
        };
        let writes_h = per_hour(&["puts", "lists", "uploads"])?;
        let load = Load { writes_h, reads_h: per_hour(&["gets", "heads"])?, kept: 0.0 };
        // The marks, which are rarer than a count is long, are all that databases share.
        let marks = if of["daemon"] == "everwhen" { Everwhen::MARKS_H } else { 0.0 };
        let of_many = |databases: f64| {
            Load { writes_h: load.writes_h * databases + marks, reads_h: load.reads_h * databases, kept: 0.0 }
                .a_month()
        };
        let (one, thousand) = (of_many(1.0), of_many(1000.0));
        let text = |name: &str| of[name].as_str().unwrap_or_default().to_owned();
        table.row([text("writer"), text("daemon"), format!("{one:.2}"), format!("{thousand:.2}")]);
        answer.raw(json!({
            "writer": text("writer"), "daemon": text("daemon"), "request_dollars": one,
            "request_dollars_of_1000": thousand,
        }));
    }
    answer.table(table);
    answer.note(format!("Requests were counted (`s3`) of build {revision}."));
    Ok(())
}

/// What a question measured, and of which build.
fn rows(world: &World, question: &str) -> Outcome<(Vec<Value>, String)> {
    let (measured, revision) = world.measured(question)?;
    Ok((measured.as_array().cloned().unwrap_or_default(), revision))
}

fn number(of: &Value, name: &str) -> Outcome<f64> {
    of[name].as_f64().ok_or_else(|| {
        format!("the answer it reckons with has no '{name}': ask 'stored' and 's3' again").into()
    })
}

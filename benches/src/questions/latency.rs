//! How long after a commit returns is it captured, and how long until it is durable?
//!
//! A watcher thread reads the protection's status all the time, so its own rhythm (20 µs and what the scheduler adds)
//! is part of the figures.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use everwhen_engine::protect::Protection;
use everwhen_engine::store::Store;
use everwhen_engine::store::testing::Slow;
use serde_json::json;

use crate::Outcome;
use crate::database::prepared;
use crate::measure::Sample;
use crate::plot::{Axis, Line, Plot};
use crate::protected::Protected;
use crate::report::{Answer, Table, millis};
use crate::workload::{Steps, Workload, Writer};
use crate::world::World;

const PATIENCE: Duration = Duration::from_secs(60);

/// When each transaction was first seen as captured, and as durable.
type Seen = (HashMap<u64, Instant>, HashMap<u64, Instant>);

/// Measures with local files at several paces, then with slower and slower stores.
pub(crate) fn ask(world: &World) -> Outcome<Answer> {
    let mut answer = Answer::new("latency", "From commit to captured and to durable");
    let head = ["store and pace", "commits", "captured p50", "p99", "max", "durable p50", "p99", "max"];
    let mut table = Table::new("Time from the return of a commit (point updates, synchronous NORMAL)", &head);
    let folder = world.fresh("latency")?;
    let rows = world.scale.pick(500, 20_000, 150_000);
    let (mut connection, mut writer) = prepared(&folder.join("app.db"), Workload::PointUpdate, rows)?;
    let mut case = |name: &str, store: Store, state: &str, pace: f64, commits: u64| -> Outcome<f64> {
        let state = folder.join(state);
        let protected = world.runtime.block_on(Protected::start(&folder.join("app.db"), store, &state))?;
        let (captured, durable) = measure(world, &protected, &mut connection, &mut writer, pace, commits)?;
        world.runtime.block_on(protected.protection.stop())?;
        let cells = [&captured, &durable]
            .into_iter()
            .flat_map(|sample| [0.5, 0.99, 1.0].map(|share| millis(sample.quantile(share))));
        table.row([name.to_owned(), commits.to_string()].into_iter().chain(cells));
        answer.raw(json!({
            "case": name, "per_second": pace, "captured_ms": captured.values(), "durable_ms": durable.values(),
        }));
        Ok(durable.median())
    };
    let files = || Store::open(&folder.join("store").display().to_string());
    let seconds = world.scale.pick(1, 5, 16);
    case("local files, one commit every 1.3 s", files()?, "state", 1.0 / 1.3, world.scale.pick(2, 8, 24))?;
    for pace in [10_u64, 200, 1000] {
        case(&format!("local files, {pace}/s"), files()?, "state", pace as f64, pace * seconds / 2)?;
    }
    let mut points = Vec::new();
    for latency in [1_u64, 10, 50, 200].into_iter().take(world.scale.pick(1, 4, 4)) {
        let store = Store::open(&format!("memory://latency-{latency}"))?
            .wrap(|inner| Slow::wrap(inner, Duration::from_millis(latency), 50_000_000));
        let name = format!("store that takes {latency} ms, after a quiet moment");
        let median = case(&name, store, &format!("state-{latency}"), 1.0 / 1.3, world.scale.pick(1, 3, 4))?;
        points.push((latency as f64, median));
    }
    answer.table(table);
    if points.len() > 1 {
        let lines = vec![Line::new("everwhen, p50").through(points)];
        let (across, up) = (Axis::log("latency of the store, ms"), Axis::log("commit to durable, ms"));
        let title = "After a quiet moment: commit to durable, by the store's latency";
        answer.plot("durable_by_store_latency", Plot { title, across, up, lines }.svg());
    }
    answer.note("Under load a segment goes out once a flush interval (1 s), so the time to durable is up to that by choice; a wait for durability cuts it short.");
    world.discard("latency")?;
    Ok(answer)
}

fn measure(
    world: &World,
    protected: &Protected,
    connection: &mut rusqlite::Connection,
    writer: &mut Writer,
    pace: f64,
    commits: u64,
) -> Outcome<(Sample, Sample)> {
    let protection = &protected.protection;
    world.runtime.block_on(protection.wait_durable(None, PATIENCE))?;
    let first = protection.status().captured.map_or(0, |point| point.position.tx.get()) + 1;
    std::thread::sleep(Duration::from_millis(world.scale.pick(50, 1200, 1200)));
    let stop = Arc::new(AtomicBool::new(false));
    let (seen, returned) = std::thread::scope(|scope| -> Outcome<(Seen, Vec<Instant>)> {
        let watcher = scope.spawn(|| watch(protection, first, &stop));
        let mut returned = Vec::new();
        let began = Instant::now();
        let written = (0..commits).try_for_each(|number| {
            let due = began + Duration::from_secs_f64(number as f64 / pace);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            writer.step(connection)?;
            returned.push(Instant::now());
            Ok::<(), rusqlite::Error>(())
        });
        std::thread::sleep(Duration::from_millis(20));
        let durable = world.runtime.block_on(async {
            // Not `wait_durable`: it would cut the flush interval short.
            let last = first + commits - 1;
            let reached = async {
                while protection.status().durable.is_none_or(|point| point.position.tx.get() < last) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(PATIENCE, reached).await
        });
        stop.store(true, Ordering::Relaxed);
        let seen = watcher.join().map_err(|_| "the watcher died")?;
        written?;
        durable?;
        Ok((seen, returned))
    })?;
    let ages = |seen: &HashMap<u64, Instant>| {
        let commits = returned.iter().zip(first..);
        commits
            .filter_map(|(at, tx)| Some(seen.get(&tx)?.saturating_duration_since(*at).as_secs_f64() * 1e3))
            .collect::<Sample>()
    };
    Ok((ages(&seen.0), ages(&seen.1)))
}

fn watch(protection: &Protection, first: u64, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let (mut captured, mut durable) = (first, first);
    loop {
        let ending = stop.load(Ordering::Relaxed);
        let status = protection.status();
        let now = Instant::now();
        let next = |point: Option<everwhen_engine::protect::Point>| {
            point.map_or(first, |point| point.position.tx.get() + 1)
        };
        seen.0.extend((captured..next(status.captured)).map(|tx| (tx, now)));
        captured = captured.max(next(status.captured));
        seen.1.extend((durable..next(status.durable)).map(|tx| (tx, now)));
        durable = durable.max(next(status.durable));
        if ending {
            return seen;
        }
        std::thread::sleep(Duration::from_micros(20));
    }
}

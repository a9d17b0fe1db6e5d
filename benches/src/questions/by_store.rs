//! What does a slow store cost: the writer's throughput, the first base, the time to durable?

use std::path::Path;
use std::time::Duration;

use everwhen_engine::store::Store;
use everwhen_engine::store::testing::Slow;
use rusqlite::Connection;
use serde_json::json;

use crate::Outcome;
use crate::database::{connect, prepared};
use crate::lag::lag;
use crate::measure::{Sample, timed};
use crate::plot::{Axis, Line, Plot};
use crate::protected::Protected;
use crate::report::{Answer, Table, millis};
use crate::workload::{Workload, Writer};
use crate::world::World;

const LATENCIES_MS: [u64; 5] = [0, 1, 10, 50, 200];
const MEGABYTES: [u64; 3] = [1, 10, 100];
/// Blobs of 64 KB on average: 0.65 MB/s, most of what the slowest line takes.
const BLOBS_PER_SECOND: f64 = 10.0;

/// A database that every case starts from.
struct Start<'a> {
    path: &'a Path,
    workload: Workload,
    rows: u64,
}

/// Injects latency, then bandwidth.
pub(crate) fn ask(world: &World) -> Outcome<Answer> {
    let mut answer = Answer::new("by_store", "Cost against the latency and the bandwidth of the store");
    let folder = world.fresh("by_store")?;
    let (updates, blobs) = (folder.join("updates.db"), folder.join("blobs.db"));
    let rows = world.scale.pick(500, 20_000, 150_000);
    drop(prepared(&updates, Workload::PointUpdate, rows)?);
    let rows_of_blobs = world.scale.pick(20, 250, 1000);
    drop(prepared(&blobs, Workload::Blobs, rows_of_blobs)?);
    by_latency(world, &Start { path: &updates, workload: Workload::PointUpdate, rows }, &mut answer)?;
    let blobs = Start { path: &blobs, workload: Workload::Blobs, rows: rows_of_blobs };
    by_bandwidth(world, &blobs, &mut answer)?;
    world.discard("by_store")?;
    world.discard("by_store_run")?;
    answer.note(
        "The store is memory behind an injected line, in this process, so that nothing but the line is slow.",
    );
    Ok(answer)
}

fn by_latency(world: &World, start: &Start<'_>, answer: &mut Answer) -> Outcome<()> {
    let head = ["latency", "writer, tx/s", "kept of its throughput", "all durable after the last commit"];
    let mut table = Table::new(
        "A saturated writer of point updates, 100 MB/s, interleaved rounds, median (range)",
        &head,
    );
    let mut rates = LATENCIES_MS.map(|_| Sample::default());
    let mut drains = LATENCIES_MS.map(|_| Sample::default());
    for round in 0..world.scale.pick(1, 1, 3) {
        for (index, latency) in LATENCIES_MS.into_iter().enumerate() {
            let (mut case, _) = Case::begin(world, start, latency, 100, round)?;
            let seconds = world.scale.pick(0.3, 2.0, 4.0);
            let enough = |_, elapsed: Duration| elapsed.as_secs_f64() >= seconds;
            let lag =
                lag(world, &case.protected, &mut case.connection, &mut case.writer, f64::INFINITY, enough)?;
            case.end(world)?;
            rates[index].push(lag.commits as f64 / lag.seconds);
            drains[index].push(lag.drained_s * 1e3);
        }
    }
    for (index, latency) in LATENCIES_MS.into_iter().enumerate() {
        table.row([
            format!("{latency} ms"),
            rates[index].with_spread(|rate| format!("{rate:.0}")),
            rates[index].ratio_to(&rates[0]),
            drains[index].with_spread(millis),
        ]);
        answer.raw(json!({
            "latency_ms": latency, "per_second": rates[index].values(), "drained_ms": drains[index].values(),
        }));
    }
    answer.table(table);
    let points = LATENCIES_MS.iter().zip(&rates).map(|(latency, rates)| (*latency as f64, rates.median()));
    let lines = vec![Line::new("everwhen").through(points.collect())];
    let (across, up) = (Axis::even("latency of the store, ms"), Axis::even("transactions a second"));
    answer.plot(
        "writer_by_latency",
        Plot { title: "A saturated writer, by the store's latency", across, up, lines }.svg(),
    );
    Ok(())
}

fn by_bandwidth(world: &World, start: &Start<'_>, answer: &mut Answer) -> Outcome<()> {
    let mib = std::fs::metadata(start.path)?.len() >> 20;
    let head =
        ["bandwidth", "first base", "of the line", "durable p50", "p99", "all durable after the last commit"];
    let title = format!(
        "Incompressible blobs: a database of {mib} MiB, then {BLOBS_PER_SECOND} commits a second (0.65 MB/s), 1 ms"
    );
    let mut table = Table::new(&title, &head);
    let mut lines = [Line::new("everwhen, first base"), Line::new("everwhen, durable p50").dashed()];
    for bandwidth in MEGABYTES {
        let (mut case, base_s) = Case::begin(world, start, 1, bandwidth, 0)?;
        let stored = case.protected.recording.counts().bytes_put as f64;
        let seconds = world.scale.pick(0.5, 4.0, 15.0);
        let enough = |_, elapsed: Duration| elapsed.as_secs_f64() >= seconds;
        let lag =
            lag(world, &case.protected, &mut case.connection, &mut case.writer, BLOBS_PER_SECOND, enough)?;
        case.end(world)?;
        table.row([
            format!("{bandwidth} MB/s"),
            format!("{base_s:.2} s"),
            format!("{:.0} %", stored / base_s / (bandwidth as f64 * 1e4)),
            millis(lag.durable.median()),
            millis(lag.durable.quantile(0.99)),
            millis(lag.drained_s * 1e3),
        ]);
        answer.raw(json!({
            "megabytes_s": bandwidth, "first_base_s": base_s, "stored_bytes": stored,
            "durable_ms": lag.durable.values(), "drained_s": lag.drained_s,
        }));
        lines[0].points.push((bandwidth as f64, base_s));
        lines[1].points.push((bandwidth as f64, lag.durable.median() / 1e3));
    }
    answer.table(table);
    let (across, up) = (Axis::log("MB/s to the store"), Axis::log("seconds"));
    let title = "First base and lag under load, by bandwidth";
    answer.plot("by_bandwidth", Plot { title, across, up, lines: lines.into() }.svg());
    Ok(())
}

/// A protection behind a slow line, and a writer.
struct Case {
    protected: Protected,
    connection: Connection,
    writer: Writer,
}

impl Case {
    /// Begins with a first base; how many seconds that took.
    fn begin(
        world: &World,
        start: &Start<'_>,
        latency_ms: u64,
        megabytes: u64,
        round: u64,
    ) -> Outcome<(Self, f64)> {
        let folder = world.fresh("by_store_run")?;
        let path = folder.join("app.db");
        std::fs::copy(start.path, &path)?;
        let connection = connect(&path)?;
        let writer = Writer::new(start.workload, start.rows, 14 + round);
        let name = format!("memory://by-store-{latency_ms}-{megabytes}-{round}");
        let latency = Duration::from_millis(latency_ms);
        let store = Store::open(&name)?.wrap(|inner| Slow::wrap(inner, latency, megabytes * 1_000_000));
        let state = folder.join("state");
        let (base_s, protected) = timed(|| world.runtime.block_on(Protected::start(&path, store, &state)))?;
        Ok((Self { protected, connection, writer }, base_s))
    }

    fn end(self, world: &World) -> Outcome<()> {
        world.runtime.block_on(self.protected.protection.stop())?;
        Ok(())
    }
}

//! What does a slow store cost: the writer's throughput, the first base, the time to durable?

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use everwhen_engine::store::Store;
use everwhen_engine::store::testing::Slow;
use rusqlite::Connection;
use serde_json::json;

use crate::Outcome;
use crate::database::{connect, prepared};
use crate::lag::{Lag, lag};
use crate::measure::{Sample, timed, turns};
use crate::plot::{Axis, Line, Plot};
use crate::protected::Protected;
use crate::report::{Answer, Table, millis_of};
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
    let rows_of_blobs = world.scale.pick(20, 250, 250);
    drop(prepared(&blobs, Workload::Blobs, rows_of_blobs)?);
    by_latency(world, &Start { path: &updates, workload: Workload::PointUpdate, rows }, &mut answer)?;
    let blobs = Start { path: &blobs, workload: Workload::Blobs, rows: rows_of_blobs };
    by_bandwidth(world, &blobs, &mut answer)?;
    world.discard("by_store")?;
    world.discard("by_store_run")?;
    answer.note(
        "The store is memory behind an injected line, in this process, so that nothing but the line is slow. When the last commit comes within the flush interval (1 s) is chance, and that is most of \"all durable after the last commit\".",
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
    // One that does not count: the first writer of all finds nothing warm.
    saturate(world, start, 0, 0)?;
    for round in 0..world.scale.pick(1, 3, 3) {
        for index in turns(LATENCIES_MS.len(), round) {
            let lag = saturate(world, start, LATENCIES_MS[index], round)?;
            rates[index].push(lag.commits as f64 / lag.seconds);
            drains[index].push(lag.drained_s * 1e3);
        }
    }
    for (index, latency) in LATENCIES_MS.into_iter().enumerate() {
        table.row([
            format!("{latency} ms"),
            rates[index].with_spread(|rate| format!("{rate:.0}")),
            rates[index].ratio_to(&rates[0]),
            millis_of(&drains[index]),
        ]);
        answer.raw(json!({
            "latency_ms": latency, "per_second": rates[index].values(), "drained_ms": drains[index].values(),
        }));
    }
    answer.table(table);
    let mut line = Line::new("everwhen");
    for (latency, rates) in LATENCIES_MS.into_iter().zip(&rates) {
        line.push(latency as f64, rates, 1.0);
    }
    let lines = vec![line];
    let (across, up) = (Axis::log("latency of the store, ms"), Axis::even("transactions a second"));
    answer.plot(
        "writer_by_latency",
        Plot { title: "A saturated writer, by the store's latency", across, up, lines }.svg(),
    );
    Ok(())
}

/// A writer that does not wait, until all of it is durable.
fn saturate(world: &World, start: &Start<'_>, latency_ms: u64, round: u64) -> Outcome<Lag> {
    let (mut case, _) = Case::begin(world, start, latency_ms, 100, round)?;
    let seconds = world.scale.pick(0.3, 2.0, 4.0);
    let lag = case.lag(world, f64::INFINITY, seconds)?;
    case.end(world)?;
    Ok(lag)
}

/// What one bandwidth gave, a value a round.
#[derive(Default)]
struct Narrow {
    base_s: Sample,
    /// Stored bytes of the first base, of the seconds it took, as a share of the line.
    of_the_line: Sample,
    durable_p50_ms: Sample,
    durable_p99_ms: Sample,
    drained_ms: Sample,
    stored: f64,
}

fn by_bandwidth(world: &World, start: &Start<'_>, answer: &mut Answer) -> Outcome<()> {
    let mib = std::fs::metadata(start.path)?.len() >> 20;
    let head =
        ["bandwidth", "first base", "of the line", "durable p50", "p99", "all durable after the last commit"];
    let title = format!(
        "Incompressible blobs: a database of {mib} MiB, then {BLOBS_PER_SECOND} commits a second (0.65 MB/s), 1 ms, interleaved rounds, median (range)"
    );
    let mut table = Table::new(&title, &head);
    let mut all: [Narrow; 3] = std::array::from_fn(|_| Narrow::default());
    for round in 0..world.long_rounds() {
        for index in turns(MEGABYTES.len(), round) {
            all[index].take(world, start, MEGABYTES[index], round)?;
        }
    }
    let mut lines = [Line::new("everwhen"), Line::new("the line alone").dashed()];
    for (megabytes, narrow) in MEGABYTES.into_iter().zip(&all) {
        table.row([
            format!("{megabytes} MB/s"),
            narrow.base_s.with_spread(|seconds| format!("{seconds:.2}")) + " s",
            narrow.of_the_line.with_spread(|share| format!("{:.0}", share * 100.0)) + " %",
            millis_of(&narrow.durable_p50_ms),
            millis_of(&narrow.durable_p99_ms),
            millis_of(&narrow.drained_ms),
        ]);
        answer.raw(json!({
            "megabytes_s": megabytes, "first_base_s": narrow.base_s.values(), "stored_bytes": narrow.stored,
            "durable_p50_ms": narrow.durable_p50_ms.values(), "durable_p99_ms": narrow.durable_p99_ms.values(),
            "drained_ms": narrow.drained_ms.values(),
        }));
        lines[0].push(megabytes as f64, &narrow.base_s, 1.0);
        lines[1].points.push((megabytes as f64, narrow.stored / (megabytes as f64 * 1e6)));
    }
    answer.table(table);
    let (across, up) = (Axis::log("MB/s to the store"), Axis::log("seconds"));
    let title = "First base, by bandwidth";
    answer.plot("by_bandwidth", Plot { title, across, up, lines: lines.into() }.svg());
    Ok(())
}

impl Narrow {
    fn take(&mut self, world: &World, start: &Start<'_>, megabytes: u64, round: u64) -> Outcome<()> {
        let (mut case, base_s) = Case::begin(world, start, 1, megabytes, round)?;
        self.stored = case.protected.recording.counts().bytes_put as f64;
        let lag = case.lag(world, BLOBS_PER_SECOND, world.scale.pick(0.5, 4.0, 8.0))?;
        case.end(world)?;
        self.base_s.push(base_s);
        self.of_the_line.push(self.stored / base_s / (megabytes as f64 * 1e6));
        self.durable_p50_ms.push(lag.durable.median());
        self.durable_p99_ms.push(lag.durable.quantile(0.99));
        self.drained_ms.push(lag.drained_s * 1e3);
        Ok(())
    }
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
        static STORES: AtomicU64 = AtomicU64::new(0);
        let name = format!("memory://by-store-{}", STORES.fetch_add(1, Ordering::Relaxed));
        let latency = Duration::from_millis(latency_ms);
        let store = Store::open(&name)?.wrap(|inner| Slow::wrap(inner, latency, megabytes * 1_000_000));
        let state = folder.join("state");
        let (base_s, protected) = timed(|| world.runtime.block_on(Protected::start(&path, store, &state)))?;
        Ok((Self { protected, connection, writer }, base_s))
    }

    fn lag(&mut self, world: &World, pace: f64, seconds: f64) -> Outcome<Lag> {
        let enough = |_, elapsed: Duration| elapsed.as_secs_f64() >= seconds;
        lag(world, &self.protected, &mut self.connection, &mut self.writer, pace, enough)
    }

    fn end(self, world: &World) -> Outcome<()> {
        world.runtime.block_on(self.protected.protection.stop())?;
        Ok(())
    }
}

//! How long after a commit returns is it captured, and how long until it is durable?

use std::time::Duration;

use everwhen_engine::store::Store;
use everwhen_engine::store::testing::Slow;
use serde_json::json;

use crate::Outcome;
use crate::daemon::{Daemon, System};
use crate::database::prepared;
use crate::lag::{lag, of_daemon};
use crate::plot::{Axis, Line, Plot};
use crate::protected::Protected;
use crate::report::{Answer, Table, millis};
use crate::workload::Workload;
use crate::world::World;

/// Rare enough that each commit comes after a quiet moment.
const RARELY: f64 = 1.0 / 1.3;

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
        let lag = lag(world, &protected, &mut connection, &mut writer, pace, |done, _| done >= commits)?;
        world.runtime.block_on(protected.protection.stop())?;
        let cells = [&lag.captured, &lag.durable]
            .into_iter()
            .flat_map(|sample| [0.5, 0.99, 1.0].map(|share| millis(sample.quantile(share))));
        table.row([name.to_owned(), commits.to_string()].into_iter().chain(cells));
        answer.raw(json!({
            "case": name, "per_second": pace, "captured_ms": lag.captured.values(), "durable_ms": lag.durable.values(),
        }));
        Ok(lag.durable.median())
    };
    let files = || Store::open(&folder.join("store").display().to_string());
    let seconds = world.scale.pick(1, 5, 16);
    case("local files, one commit every 1.3 s", files()?, "state", RARELY, world.scale.pick(2, 8, 24))?;
    for pace in [10_u64, 200, 1000] {
        case(&format!("local files, {pace}/s"), files()?, "state", pace as f64, pace * seconds / 2)?;
    }
    let mut points = Vec::new();
    for latency in [1_u64, 10, 50, 200].into_iter().take(world.scale.pick(1, 4, 4)) {
        let store = Store::open(&format!("memory://latency-{latency}"))?
            .wrap(|inner| Slow::wrap(inner, Duration::from_millis(latency), 50_000_000));
        let name = format!("store that takes {latency} ms, after a quiet moment");
        let median = case(&name, store, &format!("state-{latency}"), RARELY, world.scale.pick(1, 3, 12))?;
        points.push((latency as f64, median));
    }
    table.row(at_the_daemon(world, &mut answer)?);
    answer.table(table);
    let lines = vec![Line::new("everwhen, p50").through(points)];
    let (across, up) = (Axis::log("latency of the store, ms"), Axis::log("commit to durable, ms"));
    let title = "After a quiet moment: commit to durable, by the store's latency";
    answer.plot("durable_by_store_latency", Plot { title, across, up, lines }.svg());
    answer.note("The engine is in this process but in the last row, with a watcher that looks every 20 us and so keeps a core awake: a capture thread in a daemon may wake a few tens of microseconds later. The last row is of the program: from the return of a commit until its segment stands in the store.");
    answer.note("Under load a segment goes out once a flush interval (1 s), so the time to durable is up to that by choice; a wait for durability cuts it short.");
    world.discard("latency")?;
    world.discard("latency_daemon")?;
    Ok(answer)
}

/// Commits after a quiet moment beside the daemon's own process, which tells only what it stores.
fn at_the_daemon(world: &World, answer: &mut Answer) -> Outcome<Vec<String>> {
    let path = world.fresh("latency_daemon")?.join("app.db");
    let rows = world.scale.pick(500, 20_000, 150_000);
    let (mut connection, mut writer) = prepared(&path, Workload::PointUpdate, rows)?;
    let daemon = Daemon::start_and_settle(world, System::Everwhen, &path)?;
    let (commits, pause) = (world.scale.pick(2, 8, 24), Duration::from_secs_f64(1.0 / RARELY));
    let durable = of_daemon(&daemon, &mut connection, &mut writer, commits, pause)?;
    daemon.stop()?;
    let name = "the daemon's process, local files, one commit every 1.3 s";
    answer.raw(json!({ "case": name, "per_second": RARELY, "durable_ms": durable.values() }));
    let mut row = vec![name.to_owned(), commits.to_string()];
    row.extend(["-"; 3].map(str::to_owned));
    row.extend([0.5, 0.99, 1.0].map(|share| millis(durable.quantile(share))));
    Ok(row)
}

//! What does a transaction cost, and how far behind are we, from ten transactions a second to all that the machine
//! takes?

use std::path::Path;
use std::time::Duration;

use everwhen_engine::store::Store;
use serde_json::json;

use crate::Outcome;
use crate::daemon::{Daemon, System};
use crate::database::{connect, prepared, write};
use crate::lag::{Lag, lag};
use crate::plot::{Axis, Line, Plot};
use crate::protected::Protected;
use crate::report::{Answer, Table, millis};
use crate::workload::{Workload, Writer};
use crate::world::World;

/// Transactions a second; the last is as many as there can be.
const PACES: [f64; 5] = [10.0, 100.0, 1_000.0, 10_000.0, f64::INFINITY];

/// Processor time of a daemon for each transaction, at the rate that was reached.
struct Cost {
    rate: f64,
    micros: f64,
}

/// Measures processor time at real daemons, and the time to captured and durable in this process.
pub(crate) fn ask(world: &World) -> Outcome<Answer> {
    let mut answer = Answer::new("by_rate", "Cost against transactions per second");
    let head = [
        "transactions/s",
        "everwhen's processor",
        "litestream's",
        "captured p50",
        "p99",
        "durable p50",
        "p99",
    ];
    let mut table = Table::new("Point updates, synchronous NORMAL, local files", &head);
    let folder = world.fresh("by_rate")?;
    let rows = world.scale.pick(500, 20_000, 150_000);
    drop(prepared(&folder.join("start.db"), Workload::PointUpdate, rows)?);
    let mut lines: Vec<Line> =
        System::daemons(world).into_iter().map(|system| Line::new(system.name())).collect();
    let mut behind = [Line::new("everwhen, captured p99"), Line::new("everwhen, durable p50").dashed()];
    for pace in PACES {
        let costs = costs(world, rows, pace)?;
        let lag = behind_at(world, rows, pace)?;
        let rate = costs.first().map_or(f64::NAN, |(_, cost)| cost.rate);
        for (line, (_, cost)) in lines.iter_mut().zip(&costs) {
            line.points.push((cost.rate, cost.micros));
        }
        behind[0].points.push((lag.commits as f64 / lag.seconds, lag.captured.quantile(0.99)));
        behind[1].points.push((lag.commits as f64 / lag.seconds, lag.durable.median()));
        table.row(row(pace, &costs, &lag));
        answer.raw(json!({
            "pace": if pace.is_finite() { json!(pace) } else { json!("saturated") }, "rate": rate,
            "cpu_us_per_tx": costs.iter().map(|(system, cost)| (system.name().to_owned(), json!(cost.micros)))
                .collect::<serde_json::Map<_, _>>(),
            "captured_p50_ms": lag.captured.median(), "captured_p99_ms": lag.captured.quantile(0.99),
            "durable_p50_ms": lag.durable.median(), "durable_p99_ms": lag.durable.quantile(0.99),
        }));
    }
    world.discard("by_rate")?;
    world.discard("by_rate_run")?;
    answer.table(table);
    let across = Axis::log("transactions a second");
    let title = "Processor time of the daemon for a transaction";
    answer.plot("cpu_by_rate", Plot { title, across, up: Axis::log("microseconds"), lines }.svg());
    let title = "How far behind the writer, by its rate";
    answer.plot("lag_by_rate", Plot { title, across, up: Axis::log("ms"), lines: behind.into() }.svg());
    answer.note("Processor time is of the whole process, by its own clock, over one window of 32 s in a full run, both daemons at once up to 1000/s: one of litestream's compactions, which come every 30 s, is in it (a quick run mostly misses them). Captured and durable are measured with the engine in this process and a watcher that takes a part of a core, so a saturated writer is slower there.");
    Ok(answer)
}

fn row(pace: f64, costs: &[(System, Cost)], lag: &Lag) -> Vec<String> {
    let of = |system| costs.iter().find(|(one, _)| *one == system).map(|(_, cost)| cost);
    let micros = |system| of(system).map_or("-".into(), |cost: &Cost| format!("{:.0} us/tx", cost.micros));
    let rate = of(System::Everwhen).map_or(f64::NAN, |cost| cost.rate);
    vec![
        if pace.is_finite() { format!("{rate:.0}") } else { format!("saturated ({rate:.0})") },
        micros(System::Everwhen),
        micros(System::Litestream),
        millis(lag.captured.median()),
        millis(lag.captured.quantile(0.99)),
        millis(lag.durable.median()),
        millis(lag.durable.quantile(0.99)),
    ]
}

/// Each daemon with a writer of its own: at once while the cores are far from full, else one after another.
fn costs(world: &World, rows: u64, pace: f64) -> Outcome<Vec<(System, Cost)>> {
    let folder = world.fresh("by_rate_run")?;
    let one = |system: System| -> Outcome<(System, Cost)> {
        Ok((system, cost(world, system, &folder.join(format!("{}.db", system.name())), rows, pace)?))
    };
    if pace > 1000.0 {
        return System::daemons(world).into_iter().map(one).collect();
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            System::daemons(world).into_iter().map(|system| scope.spawn(move || one(system))).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| "a writer died")?).collect()
    })
}

fn cost(world: &World, system: System, path: &Path, rows: u64, pace: f64) -> Outcome<Cost> {
    std::fs::copy(world.folder.join("by_rate/start.db"), path)?;
    let mut connection = connect(path)?;
    let mut writer = Writer::new(Workload::PointUpdate, rows, 11);
    let daemon = Daemon::start_and_settle(world, system, path)?;
    let pace = pace.is_finite().then_some(pace);
    let seconds = |seconds: f64| move |_, elapsed: Duration| elapsed.as_secs_f64() >= seconds;
    write(&mut connection, &mut writer, pace, seconds(world.scale.pick(0.1, 1.0, 2.0)))?;
    let before = daemon.look()?.seconds;
    let written = write(&mut connection, &mut writer, pace, seconds(world.scale.pick(0.3, 4.0, 32.0)))?;
    let used = daemon.look()?.seconds - before;
    daemon.stop()?;
    let transactions = written.transactions as f64;
    Ok(Cost { rate: transactions / written.seconds, micros: used * 1e6 / transactions })
}

fn behind_at(world: &World, rows: u64, pace: f64) -> Outcome<Lag> {
    let folder = world.fresh("by_rate_run")?;
    let path = folder.join("app.db");
    std::fs::copy(world.folder.join("by_rate/start.db"), &path)?;
    let mut connection = connect(&path)?;
    let mut writer = Writer::new(Workload::PointUpdate, rows, 12);
    let store = Store::open(&folder.join("store").display().to_string())?;
    let protected = world.runtime.block_on(Protected::start(&path, store, &folder.join("state")))?;
    let seconds = world.scale.pick(0.3, 3.0, 8.0);
    let enough = |_, elapsed: Duration| elapsed.as_secs_f64() >= seconds;
    let lag = lag(world, &protected, &mut connection, &mut writer, pace, enough)?;
    world.runtime.block_on(protected.protection.stop())?;
    Ok(lag)
}

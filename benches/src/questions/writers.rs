//! What does the application feel: throughput and tail latency of a writer beside each daemon and beside none?

use std::time::Duration;

use serde_json::json;

use crate::Outcome;
use crate::daemon::{Daemon, System};
use crate::database::{connect, rows_of, write};
use crate::measure::{Sample, timed};
use crate::report::{Answer, Table, millis};
use crate::workload::{Workload, Writer};
use crate::world::World;

/// One way to write.
struct Case {
    name: &'static str,
    synchronous: &'static str,
    pace: Option<f64>,
    /// Beside the large database, not the small one.
    large: bool,
}

const fn case(name: &'static str, synchronous: &'static str, pace: Option<f64>, large: bool) -> Case {
    Case { name, synchronous, pace, large }
}

const CASES: [Case; 6] = [
    case("1000/s, synchronous NORMAL", "normal", Some(1000.0), false),
    case("1000/s, NORMAL, large", "normal", Some(1000.0), true),
    case("1000/s, FULL", "full", Some(1000.0), false),
    case("saturated, NORMAL", "normal", None, false),
    case("saturated, NORMAL, large", "normal", None, true),
    case("saturated, FULL", "full", None, false),
];

/// What one system did in one case over the rounds.
#[derive(Default)]
struct Felt {
    rate: Sample,
    median: Sample,
    tail: Sample,
    far_tail: Sample,
    worst: Sample,
    busy: u64,
    truncate: Sample,
}

/// Runs the cases with each system in turn, several rounds.
pub(crate) fn ask(world: &World) -> Outcome<Answer> {
    let mut answer = Answer::new("writers", "What the application feels");
    let head = [
        "writer",
        "daemon",
        "tx/s",
        "ratio",
        "p50",
        "p99",
        "p99.9",
        "max",
        "busy",
        "its own TRUNCATE checkpoint",
    ];
    let title = format!(
        "Point updates on {} MiB, on {} where it says large; busy_timeout 0, rounds interleaved, medians of the rounds (ratio to no daemon with range)",
        small_mib(world),
        world.large_mib()
    );
    let mut table = Table::new(&title, &head);
    let systems = System::available(world);
    for case in &CASES {
        let mut felt: Vec<Felt> = systems.iter().map(|_| Felt::default()).collect();
        for round in 0..world.scale.pick(1, 2, 3) {
            for (system, felt) in systems.iter().zip(&mut felt) {
                run(world, *system, case, round + 5, felt)?;
            }
        }
        let Some(alone) = felt.first().map(|felt| felt.rate.clone()) else { continue };
        for (system, felt) in systems.iter().zip(&felt) {
            table.row([
                case.name.to_owned(),
                system.name().to_owned(),
                format!("{:.0}", felt.rate.median()),
                felt.rate.ratio_to(&alone),
                millis(felt.median.median()),
                millis(felt.tail.median()),
                millis(felt.far_tail.median()),
                millis(felt.worst.median()),
                felt.busy.to_string(),
                millis(felt.truncate.median()),
            ]);
            answer.raw(json!({
                "case": case.name, "daemon": system.name(), "per_second": felt.rate.values(),
                "p50_ms": felt.median.values(), "p99_ms": felt.tail.values(), "p999_ms": felt.far_tail.values(),
                "max_ms": felt.worst.values(), "busy": felt.busy, "truncate_ms": felt.truncate.values(),
            }));
        }
    }
    answer.table(table);
    answer.note("A checkpoint that cannot complete gives up after 2 s. A saturated writer and a daemon share the cores of the machine: on two cores the daemon's work is partly the writer's loss. With no daemon SQLite checkpoints by itself every 1,000 pages within a commit, which is what its p99.9 and its throughput show; a daemon takes that work over. A paced commit that was due while another ran counts from when it was due.");
    world.discard("writers")?;
    Ok(answer)
}

fn small_mib(world: &World) -> u64 {
    world.scale.pick(1, 8, 64)
}

fn run(world: &World, system: System, case: &Case, seed: u64, felt: &mut Felt) -> Outcome<()> {
    let path = world.fresh("writers")?.join("app.db");
    let mib = if case.large { world.large_mib() } else { small_mib(world) };
    world.accounts(mib, &path)?;
    let mut writer = Writer::new(Workload::PointUpdate, rows_of(mib), seed);
    let mut connection = connect(&path)?;
    connection.pragma_update(None, "synchronous", case.synchronous)?;
    write(&mut connection, &mut writer, None, |done, _| done >= 20)?;
    let daemon = Daemon::start_and_settle(world, system, &path)?;
    connection.busy_timeout(Duration::ZERO)?;
    let seconds = world.scale.pick(0.3, 2.0, 4.0);
    let end = |_, elapsed: Duration| elapsed.as_secs_f64() >= seconds;
    let written = write(&mut connection, &mut writer, case.pace, end)?;
    felt.rate.push(written.transactions as f64 / written.seconds);
    felt.median.push(written.latency.median());
    felt.tail.push(written.latency.quantile(0.99));
    felt.far_tail.push(written.latency.quantile(0.999));
    felt.worst.push(written.latency.quantile(1.0));
    felt.busy += written.busy;
    connection.busy_timeout(Duration::from_secs(2))?;
    write(&mut connection, &mut writer, Some(100.0), |done, _| done >= 20)?;
    let truncate = "PRAGMA wal_checkpoint(TRUNCATE)";
    felt.truncate.push(timed(|| connection.query_row(truncate, [], |_| Ok(())))?.0 * 1e3);
    daemon.stop()
}

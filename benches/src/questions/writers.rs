//! What does the application feel: throughput and tail latency of a writer beside each daemon and beside none?

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::Outcome;
use crate::daemon::{Daemon, System};
use crate::database::{Checkpoints, Written, checkpoint, connect, copy_synced, prepared, rows_of, write};
use crate::measure::{Sample, turns};
use crate::report::{Answer, Table, millis_of};
use crate::workload::{Workload, Writer};
use crate::world::World;

/// One way to write.
struct Case {
    name: &'static str,
    synchronous: &'static str,
    /// Transactions a second; `None` is back to back.
    pace: Option<f64>,
    start: Start,
}

/// What is written to.
#[derive(Clone, Copy)]
enum Start {
    /// Point updates on the small database.
    Small,
    /// Point updates on the large one.
    Large,
    /// A workload on its own starting database.
    Of(Workload),
}

const fn case(name: &'static str, synchronous: &'static str, pace: Option<f64>, start: Start) -> Case {
    Case { name, synchronous, pace, start }
}

const CASES: [Case; 8] = [
    case("1000/s, synchronous NORMAL", "normal", Some(1000.0), Start::Small),
    case("1000/s, NORMAL, large", "normal", Some(1000.0), Start::Large),
    case("1000/s, FULL", "full", Some(1000.0), Start::Small),
    case("W3 order entry, 200/s, FULL", "full", Some(200.0), Start::Of(Workload::Orders)),
    case("W4 job queue, 200/s, FULL", "full", Some(200.0), Start::Of(Workload::Queue)),
    case("saturated, NORMAL", "normal", None, Start::Small),
    case("saturated, NORMAL, large", "normal", None, Start::Large),
    case("saturated, FULL", "full", None, Start::Small),
];

/// What one system did in one case, a value a round.
#[derive(Default)]
struct Felt {
    per_second: Sample,
    /// Milliseconds of a commit: the 50th, 99th and 99.9th percentile and the longest, as [`SHARES`].
    latency: [Sample; 4],
    busy: u64,
    truncates: Checkpoints,
}

const SHARES: [f64; 4] = [0.5, 0.99, 0.999, 1.0];

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
        "completed",
    ];
    let title = format!(
        "Point updates on {} MiB, on {} where it says large; busy_timeout 0, rounds interleaved, median (range) of {} rounds",
        small_mib(world),
        world.large_mib(),
        rounds(world),
    );
    let mut table = Table::new(&title, &head);
    let systems = System::available(world);
    for case in &CASES {
        let felt = rounds_of(world, &systems, case)?;
        let Some(alone) = felt.first().map(|felt| felt.per_second.clone()) else { continue };
        for (system, felt) in systems.iter().zip(&felt) {
            table.row(felt.row(case, *system, &alone));
            answer.raw(json!({
                "case": case.name, "daemon": system.name(), "per_second": felt.per_second.values(),
                "p50_ms": felt.latency[0].values(), "p99_ms": felt.latency[1].values(),
                "p999_ms": felt.latency[2].values(), "max_ms": felt.latency[3].values(), "busy": felt.busy,
                "truncate_ms": felt.truncates.ms.values(), "truncates_completed": felt.truncates.completed,
            }));
        }
    }
    answer.table(table);
    answer.note("The ratio is to no daemon, of pairs of one round. A checkpoint that cannot complete gives up after 2 s. A saturated writer and a daemon share the cores of the machine: on two cores the daemon's work is partly the writer's loss. With no daemon SQLite checkpoints by itself every 1,000 pages within a commit, which is what its p99.9 and its throughput show; a daemon takes that work over. A paced commit that was due while another ran counts from when it was due. \"busy\" is how many commits of all rounds were told so, and tried again.");
    world.discard("writers")?;
    world.discard("writers_start")?;
    Ok(answer)
}

fn small_mib(world: &World) -> u64 {
    world.scale.pick(1, 8, 64)
}

/// Three: a round of all cases is four minutes long.
fn rounds(world: &World) -> u64 {
    world.scale.pick(1, 3, 3)
}

fn rounds_of(world: &World, systems: &[System], case: &Case) -> Outcome<Vec<Felt>> {
    let start = start_of(world, case.start)?;
    let mut felt: Vec<Felt> = systems.iter().map(|_| Felt::default()).collect();
    for round in 0..rounds(world) {
        for index in turns(systems.len(), round) {
            let path = world.fresh("writers")?.join("app.db");
            match &start {
                Some(made) => copy_synced(made, &path)?,
                None => world.accounts(mib_of(world, case.start), &path)?,
            }
            felt[index].take(world, systems[index], case, &path, round + 5)?;
        }
    }
    Ok(felt)
}

/// The starting database of a workload that has one of its own.
fn start_of(world: &World, start: Start) -> Outcome<Option<PathBuf>> {
    let Start::Of(workload) = start else { return Ok(None) };
    let path = world.fresh("writers_start")?.join("start.db");
    drop(prepared(&path, workload, rows(world, start))?);
    Ok(Some(path))
}

fn mib_of(world: &World, start: Start) -> u64 {
    if matches!(start, Start::Large) { world.large_mib() } else { small_mib(world) }
}

fn rows(world: &World, start: Start) -> u64 {
    match start {
        Start::Of(workload) => workload.rows() / world.scale.pick(100, 4, 1),
        _ => rows_of(mib_of(world, start)),
    }
}

impl Felt {
    /// One round: a paced or saturated writer beside a daemon, then a checkpoint of its own while it writes on.
    fn take(&mut self, world: &World, system: System, case: &Case, path: &Path, seed: u64) -> Outcome<()> {
        let workload = if let Start::Of(workload) = case.start { workload } else { Workload::PointUpdate };
        let mut writer = Writer::new(workload, rows(world, case.start), seed);
        let mut connection = connect(path)?;
        connection.pragma_update(None, "synchronous", case.synchronous)?;
        write(&mut connection, &mut writer, None, |done, _| done >= 20)?;
        let daemon = Daemon::start_and_settle(world, system, path)?;
        connection.busy_timeout(Duration::ZERO)?;
        let seconds = world.scale.pick(0.3, 2.0, 4.0);
        let end = |_, elapsed: Duration| elapsed.as_secs_f64() >= seconds;
        self.add(&write(&mut connection, &mut writer, case.pace, end)?);
        connection.busy_timeout(Duration::from_secs(2))?;
        write(&mut connection, &mut writer, Some(100.0), |done, _| done >= 20)?;
        self.truncates.push(checkpoint(&connection, "TRUNCATE")?);
        daemon.stop()
    }

    fn add(&mut self, written: &Written) {
        self.per_second.push(written.transactions as f64 / written.seconds);
        for (rounds, share) in self.latency.iter_mut().zip(SHARES) {
            rounds.push(written.latency.quantile(share));
        }
        self.busy += written.busy;
    }

    fn row(&self, case: &Case, system: System, alone: &Sample) -> Vec<String> {
        let mut row = vec![
            case.name.to_owned(),
            system.name().to_owned(),
            self.per_second.with_spread(|rate| format!("{rate:.0}")),
            self.per_second.ratio_to(alone),
        ];
        row.extend(self.latency.iter().map(millis_of));
        row.extend([self.busy.to_string(), millis_of(&self.truncates.ms), self.truncates.share()]);
        row
    }
}

//! What grows with the size of the database: the first full copy, a restart, memory?

use std::time::Instant;

use serde_json::json;

use super::restart::kill_and_restart;
use crate::Outcome;
use crate::daemon::{Daemon, System};
use crate::database::{connect, rows_of, write};
use crate::measure::Sample;
use crate::plot::{Axis, Line, Plot};
use crate::report::{Answer, Table};
use crate::workload::{Workload, Writer};
use crate::world::World;

/// What is measured of a daemon beside one size of database, over the rounds.
#[derive(Default)]
struct Grown {
    base_s: Sample,
    restart_s: Sample,
    /// Bytes resident at most until the first copy was done.
    highest: Sample,
    /// Bytes of its own while it does nothing.
    idle_own: Sample,
}

/// What is plotted and tabled of it, with how a value is shown.
type Column = (&'static str, fn(&Grown) -> &Sample, fn(f64) -> String);

const COLUMNS: [Column; 4] = [
    ("first full copy, s", |grown| &grown.base_s, |seconds| format!("{seconds:.2}")),
    ("restart after kill -9, s", |grown| &grown.restart_s, |seconds| format!("{seconds:.2}")),
    ("resident, highest, MiB", |grown| &grown.highest, |bytes| format!("{:.0}", bytes / 1_048_576.0)),
    ("its own when idle, MiB", |grown| &grown.idle_own, |bytes| format!("{:.1}", bytes / 1_048_576.0)),
];

/// Rounds of a whole life of each daemon: first copy, rest, kill -9, restart.
pub(crate) fn ask(world: &World) -> Outcome<Answer> {
    let mut answer = Answer::new("by_size", "Cost against the size of the database");
    let mut sizes = world.scale.pick(vec![2, 4], vec![16, 64, 256], vec![64, 256, 1024]);
    sizes.extend(world.large.then_some(world.scale.pick(8, 4096, 4096)));
    let head: Vec<&str> = ["database", "daemon"].into_iter().chain(COLUMNS.map(|column| column.0)).collect();
    let mut table =
        Table::new("Point-update databases, local files, median (range) of interleaved rounds", &head);
    let systems = System::daemons(world);
    let mut curves: Vec<(u64, Vec<Grown>)> = Vec::new();
    for mib in sizes {
        let mut all: Vec<Grown> = systems.iter().map(|_| Grown::default()).collect();
        for _ in 0..if mib > 1024 { 1 } else { world.scale.pick(1, 1, 3) } {
            for (system, grown) in systems.iter().zip(&mut all) {
                live(world, *system, mib, grown)?;
            }
        }
        for (system, grown) in systems.iter().zip(&all) {
            let cells = COLUMNS.map(|(_, of, text)| of(grown).with_spread(text));
            table.row([format!("{mib} MiB"), system.name().to_owned()].into_iter().chain(cells));
            answer.raw(json!({
                "database_mib": mib, "daemon": system.name(), "first_copy_s": grown.base_s.values(),
                "restart_s": grown.restart_s.values(), "resident_max": grown.highest.values(),
                "idle_own": grown.idle_own.values(),
            }));
        }
        curves.push((mib, all));
    }
    world.discard("by_size")?;
    answer.table(table);
    let seconds = Axis::log("seconds");
    for (file, title, up, kind, unit) in [
        ("first_base_by_size", "First full copy, by size of the database", seconds, 0, 1.0),
        ("restart_by_size", "Restart after kill -9, by size of the database", seconds, 1, 1.0),
        (
            "memory_by_size",
            "Highest memory, by size of the database",
            Axis::even("MiB resident"),
            2,
            1_048_576.0,
        ),
    ] {
        let lines = systems.iter().enumerate().map(|(index, system)| {
            let at = |(mib, all): &(u64, Vec<Grown>)| {
                Some((*mib as f64, COLUMNS[kind].1(all.get(index)?).median() / unit))
            };
            Line::new(system.name()).through(curves.iter().filter_map(at).collect())
        });
        let lines = lines.collect();
        answer.plot(file, Plot { title, across: Axis::log("MiB of database"), up, lines }.svg());
    }
    answer.note("\"Its own\" is without the pages of files (RssAnon), a moment after the first copy. Seconds of a restart count until three rows, written while no daemon ran, are stored.");
    Ok(answer)
}

fn live(world: &World, system: System, mib: u64, grown: &mut Grown) -> Outcome<()> {
    let path = world.fresh("by_size")?.join("app.db");
    world.accounts(mib, &path)?;
    let mut connection = connect(&path)?;
    let mut writer = Writer::new(Workload::PointUpdate, rows_of(mib), 13);
    let began = Instant::now();
    let daemon = Daemon::start(world, system, &path)?;
    daemon.wait_for_first_copy()?;
    grown.base_s.push(began.elapsed().as_secs_f64());
    let process = daemon.look()?;
    grown.highest.push(process.resident_max as f64);
    write(&mut connection, &mut writer, Some(100.0), |done, _| done >= 100)?;
    daemon.settle(world)?;
    let process = daemon.look()?;
    grown.idle_own.push(process.anonymous as f64);
    let again = kill_and_restart(world, system, &path, daemon, &mut connection, &mut writer)?;
    grown.restart_s.push(again.seconds);
    again.daemon.stop()
}

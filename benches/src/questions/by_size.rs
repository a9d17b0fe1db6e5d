//! What grows with the size of the database: the first full copy, a restart, memory?

use std::time::Instant;

use serde_json::json;

use super::restart::kill_and_restart;
use crate::Outcome;
use crate::daemon::{Daemon, System};
use crate::database::{connect, rows_of, write};
use crate::measure::{Sample, turns};
use crate::plot::{Axis, Line, Plot};
use crate::report::{Answer, MIB, Table, mib};
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

/// A curve: its file, title, axis, which values, and what they are divided by for the axis.
struct Curve {
    file: &'static str,
    title: &'static str,
    up: fn() -> Axis,
    of: fn(&Grown) -> &Sample,
    unit: f64,
}

const CURVES: [Curve; 3] = [
    Curve {
        file: "first_base_by_size",
        title: "First full copy, by size of the database",
        up: || Axis::log("seconds"),
        of: |grown| &grown.base_s,
        unit: 1.0,
    },
    Curve {
        file: "restart_by_size",
        title: "Restart after kill -9, by size of the database",
        up: || Axis::log("seconds"),
        of: |grown| &grown.restart_s,
        unit: 1.0,
    },
    Curve {
        file: "memory_by_size",
        title: "Highest memory, by size of the database",
        up: || Axis::even("MiB resident"),
        of: |grown| &grown.highest,
        unit: MIB,
    },
];

/// All daemons beside databases of one size.
struct Size {
    mib: u64,
    daemons: Vec<(System, Grown)>,
}

/// Rounds of a whole life of each daemon: first copy, rest, kill -9, restart.
pub(crate) fn ask(world: &World) -> Outcome<Answer> {
    let mut answer = Answer::new("by_size", "Cost against the size of the database");
    let mut sizes = world.scale.pick(vec![2, 4], vec![16, 64, 256], vec![64, 256, 1024]);
    sizes.extend(world.large.then_some(world.scale.pick(8, 4096, 4096)));
    let sizes = sizes.into_iter().map(|mib| of_size(world, mib)).collect::<Outcome<Vec<Size>>>()?;
    world.discard("by_size")?;
    answer.table(table(&sizes));
    for curve in CURVES {
        answer.plot(curve.file, curve.plot(&sizes).svg());
    }
    for size in &sizes {
        for (system, grown) in &size.daemons {
            answer.raw(json!({
                "database_mib": size.mib, "daemon": system.name(), "first_copy_s": grown.base_s.values(),
                "restart_s": grown.restart_s.values(), "resident_max": grown.highest.values(),
                "idle_own": grown.idle_own.values(),
            }));
        }
    }
    answer.note("\"Its own\" is without the pages of files (RssAnon), a moment after the first copy. Seconds of a restart count until three rows, written while no daemon ran, are stored; litestream's first copy is not compacted yet then (`restart` waits for that).");
    Ok(answer)
}

fn of_size(world: &World, mib: u64) -> Outcome<Size> {
    let mut daemons: Vec<_> =
        System::daemons(world).into_iter().map(|system| (system, Grown::default())).collect();
    for round in 0..if mib > 1024 { 1 } else { world.long_rounds() } {
        for index in turns(daemons.len(), round) {
            let (system, grown) = &mut daemons[index];
            live(world, *system, mib, grown)?;
        }
    }
    Ok(Size { mib, daemons })
}

fn table(sizes: &[Size]) -> Table {
    let head = [
        "database",
        "daemon",
        "first full copy, s",
        "restart after kill -9, s",
        "resident, highest, MiB",
        "its own when idle, MiB",
    ];
    let title = "Point-update databases, local files, median (range) of interleaved rounds";
    let mut table = Table::new(title, &head);
    let seconds = |value: f64| format!("{value:.2}");
    for size in sizes {
        for (system, grown) in &size.daemons {
            table.row([
                format!("{} MiB", size.mib),
                system.name().to_owned(),
                grown.base_s.with_spread(seconds),
                grown.restart_s.with_spread(seconds),
                grown.highest.with_spread(mib),
                grown.idle_own.with_spread(mib),
            ]);
        }
    }
    table
}

impl Curve {
    fn plot(&self, sizes: &[Size]) -> Plot {
        let mut lines: Vec<Line> = Vec::new();
        for size in sizes {
            for (index, (system, grown)) in size.daemons.iter().enumerate() {
                if lines.len() <= index {
                    lines.push(Line::new(system.name()));
                }
                lines[index].push(size.mib as f64, (self.of)(grown), self.unit);
            }
        }
        Plot { title: self.title, across: Axis::log("MiB of database"), up: (self.up)(), lines }
    }
}

fn live(world: &World, system: System, mib: u64, grown: &mut Grown) -> Outcome<()> {
    let path = world.fresh("by_size")?.join("app.db");
    world.accounts(mib, &path)?;
    world.rest();
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

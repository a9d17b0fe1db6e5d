//! Does a daemon stay as it is: memory, files and folders beside a large database over an hour?

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::Outcome;
use crate::daemon::{Daemon, System, stored_in};
use crate::database::{Checkpoints, Written, checkpoint, connect, rows_of, write};
use crate::measure::{Sample, slope};
use crate::plot::{Axis, Line, Plot};
use crate::report::{Answer, MIB, Table, bytes, millis};
use crate::workload::Mixed;
use crate::world::World;

const PER_SECOND: f64 = 200.0;
/// A burst ends here, so that a daemon beside which more can be written is not given more to do.
const BURST_MOST: u64 = 10_000;

/// Lengths of what repeats: the whole, and in it the looks and the rounds of the writer.
#[derive(Clone, Copy)]
struct Rhythm {
    whole: Duration,
    look: Duration,
    round: Duration,
    burst: Duration,
}

/// One look at a daemon.
struct Look {
    minutes: f64,
    resident: f64,
    own: f64,
    files: u64,
    threads: u64,
    state_bytes: u64,
    stored_bytes: u64,
    objects: u64,
    database_bytes: u64,
    cpu_s: f64,
}

/// What came of one daemon.
struct Soaked {
    system: System,
    looks: Vec<Look>,
    writer: Rounds,
    highest: u64,
}

/// What the application saw over all rounds.
#[derive(Default)]
struct Rounds {
    written: Written,
    passive: Checkpoints,
    truncate: Checkpoints,
}

/// Soaks the daemons beside each other, each with a database and a writer of its own.
pub(crate) fn ask(world: &World) -> Outcome<Answer> {
    let rhythm = Rhythm {
        whole: Duration::from_secs_f64(world.scale.pick(3.0, world.minutes * 60.0, world.minutes * 60.0)),
        look: Duration::from_secs_f64(world.scale.pick(0.5, 30.0, 30.0)),
        round: Duration::from_secs_f64(world.scale.pick(1.0, 60.0, 60.0)),
        burst: Duration::from_secs_f64(world.scale.pick(0.2, 2.0, 2.0)),
    };
    let folder = world.fresh("soak")?;
    let results = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for system in System::daemons(world) {
            let path = folder.join(format!("{}.db", system.name()));
            world.accounts(world.large_mib(), &path)?;
            let mut connection = connect(&path)?;
            let writer = Mixed::prepare(&mut connection, rows_of(world.large_mib()), 9)?;
            let daemon = Daemon::start_and_settle(world, system, &path)?;
            threads.push(scope.spawn(move || soak(system, daemon, &path, connection, writer, rhythm)));
        }
        let joined = threads.into_iter().map(|thread| thread.join().map_err(|_| "a soak died")?);
        joined.collect::<Outcome<Vec<Soaked>>>()
    })?;
    world.discard("soak")?;
    Ok(report(world, rhythm, &results))
}

/// Writes, and looks at the daemon from another thread, until the time is over.
fn soak(
    system: System,
    daemon: Daemon,
    path: &Path,
    mut connection: Connection,
    mut writer: Mixed,
    rhythm: Rhythm,
) -> Outcome<Soaked> {
    let (done, began) = (AtomicBool::new(false), Instant::now());
    let (looks, result) = std::thread::scope(|scope| {
        let looking = scope.spawn(|| look_at_times(&daemon, path, began, rhythm, &done));
        let result = write_rounds(&mut connection, &mut writer, began, rhythm, &done);
        done.store(true, Ordering::Relaxed);
        (looking.join(), result)
    });
    let (looks, writer) = (looks.map_err(|_| "the watcher died")??, result?);
    let highest = daemon.look()?.resident_max;
    daemon.stop()?;
    Ok(Soaked { system, looks, writer, highest })
}

/// Rounds of a minute: paced, then a burst as fast as it goes, then a checkpoint by the application, by turns one that
/// takes what it gets and one that wants the log empty.
fn write_rounds(
    connection: &mut Connection,
    writer: &mut Mixed,
    began: Instant,
    rhythm: Rhythm,
    done: &AtomicBool,
) -> Outcome<Rounds> {
    let (mut all, mut round) = (Rounds::default(), 0_u32);
    connection.busy_timeout(Duration::from_secs(1))?;
    while began.elapsed() < rhythm.whole && !done.load(Ordering::Relaxed) {
        let stop = |most: u64, length: Duration| {
            move |count, elapsed| count >= most || elapsed >= length || done.load(Ordering::Relaxed)
        };
        let paced = stop(u64::MAX, rhythm.round.saturating_sub(rhythm.burst));
        all.written.add(&write(connection, writer, Some(PER_SECOND), paced)?);
        all.written.add(&write(connection, writer, None, stop(BURST_MOST, rhythm.burst))?);
        match round % 2 {
            0 => all.passive.push(checkpoint(connection, "PASSIVE")?),
            _ => all.truncate.push(checkpoint(connection, "TRUNCATE")?),
        }
        round += 1;
    }
    Ok(all)
}

fn look_at_times(
    daemon: &Daemon,
    path: &Path,
    began: Instant,
    rhythm: Rhythm,
    done: &AtomicBool,
) -> Outcome<Vec<Look>> {
    let mut looks = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let looked = look(daemon, path, began);
        // The writer stops as well, at its next transaction.
        done.fetch_or(looked.is_err(), Ordering::Relaxed);
        looks.push(looked?);
        let due = began + rhythm.look * u32::try_from(looks.len())?;
        while Instant::now() < due && !done.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(looks)
}

fn look(daemon: &Daemon, path: &Path, began: Instant) -> Outcome<Look> {
    let process = daemon.look()?;
    let stored = stored_in(&daemon.store);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let state = [path.with_extension("state"), path.with_file_name(format!(".{name}-litestream"))];
    Ok(Look {
        minutes: began.elapsed().as_secs_f64() / 60.0,
        resident: process.resident as f64,
        own: process.anonymous as f64,
        files: process.files,
        threads: process.threads,
        state_bytes: state.iter().map(|folder| stored_in(folder).bytes).sum(),
        stored_bytes: stored.bytes,
        objects: stored.objects(),
        database_bytes: std::fs::metadata(path)?.len(),
        cpu_s: process.seconds,
    })
}

fn report(world: &World, rhythm: Rhythm, results: &[Soaked]) -> Answer {
    let mut answer = Answer::new("soak", "Memory over time");
    let title = format!(
        "{:.0} minutes beside a database of {} MiB: a mix of writers at {PER_SECOND}/s, each minute a burst without a pace of \
         {BURST_MOST} commits (in {:.0} s at most) and a checkpoint by the application",
        rhythm.whole.as_secs_f64() / 60.0,
        world.large_mib(),
        rhythm.burst.as_secs_f64(),
    );
    let mut table = Table::new(&title, &["", "everwhen", "litestream"][..=results.len()]);
    for (name, of) in ROWS {
        table.row(std::iter::once(name.to_owned()).chain(results.iter().map(of)));
    }
    answer.table(table);
    let mut lines = Vec::new();
    for soaked in results {
        let name = soaked.system.name();
        let points =
            |of: fn(&Look) -> f64| soaked.looks.iter().map(|look| (look.minutes, of(look) / MIB)).collect();
        lines.push(Line::new(format!("{name}, resident")).through(points(|look| look.resident)));
        lines.push(Line::new(format!("{name}, of it its own")).through(points(|look| look.own)).dashed());
        answer.raw(raw(soaked));
    }
    let (across, up) = (Axis::even("minutes"), Axis::even("MiB"));
    answer.plot("soak", Plot { title: "Memory of the daemon over time", across, up, lines }.svg());
    answer.note("Quarters are medians of looks every 30 s. The slope is the median of the slopes between all pairs of looks. \"Its own\" is without the pages of files (RssAnon). Both daemons run at once, each beside a database of its own. Paced commits that were due while a burst or a checkpoint ran are not counted as late. PASSIVE and TRUNCATE take turns; one that cannot complete gives up after 1 s.");
    answer
}

type Cell = fn(&Soaked) -> String;

const ROWS: [(&str, Cell); 16] = [
    ("resident, first quarter", |soaked| mib(soaked.quarter(0, |look| look.resident))),
    ("resident, last quarter", |soaked| mib(soaked.quarter(3, |look| look.resident))),
    ("its own, first quarter", |soaked| mib(soaked.quarter(0, |look| look.own))),
    ("its own, last quarter", |soaked| mib(soaked.quarter(3, |look| look.own))),
    ("its own, from minute 10 on: first and last", |soaked| {
        soaked.own_after_warm_up().map_or_else(String::new, |ends| ends.map(mib).join(", "))
    }),
    ("slope of its own", |soaked| format!("{:.0} KiB/h", soaked.slope(|look| look.own) / 1024.0)),
    ("resident, highest", |soaked| mib(soaked.highest as f64)),
    ("open files, first and last", |soaked| soaked.ends(|look| look.files.to_string())),
    ("threads, first and last", |soaked| soaked.ends(|look| look.threads.to_string())),
    ("local state, first and last", |soaked| soaked.ends(|look| bytes(look.state_bytes))),
    ("in the store, first and last", |soaked| {
        soaked.ends(|look| format!("{} in {}", bytes(look.stored_bytes), look.objects))
    }),
    ("processor", |soaked| {
        let seconds = soaked.cpu_s();
        let share = seconds * 100.0 / soaked.writer.written.seconds;
        format!(
            "{share:.2} % of a core, {:.0} us/tx",
            seconds * 1e6 / soaked.writer.written.transactions as f64
        )
    }),
    ("commits", |soaked| soaked.writer.written.transactions.to_string()),
    ("commit p99, longest", |soaked| {
        [0.99, 1.0].map(|share| millis(soaked.writer.written.latency.quantile(share))).join(", ")
    }),
    ("PASSIVE checkpoints completed; p50, longest", |soaked| checkpoints(&soaked.writer.passive)),
    ("TRUNCATE checkpoints completed; p50, longest", |soaked| checkpoints(&soaked.writer.truncate)),
];

fn checkpoints(all: &Checkpoints) -> String {
    format!("{}; {}, {}", all.share(), millis(all.ms.median()), millis(all.ms.quantile(1.0)))
}

impl Soaked {
    fn quarter(&self, number: usize, of: fn(&Look) -> f64) -> f64 {
        let (count, all) = (self.looks.len(), self.looks.iter().map(of));
        all.skip(count * number / 4).take((count / 4).max(1)).collect::<Sample>().median()
    }

    /// A slope per hour.
    fn slope(&self, of: fn(&Look) -> f64) -> f64 {
        slope(&self.looks.iter().map(|look| (look.minutes / 60.0, of(look))).collect::<Vec<_>>())
    }

    fn ends(&self, of: impl Fn(&Look) -> String) -> String {
        let ends = [self.looks.first(), self.looks.last()];
        ends.map(|look| look.map(&of).unwrap_or_default()).join(", ")
    }

    /// Processor seconds from the first look to the last.
    fn cpu_s(&self) -> f64 {
        let at = |look: Option<&Look>| look.map_or(f64::NAN, |look| look.cpu_s);
        at(self.looks.last()) - at(self.looks.first())
    }

    /// Bytes of its own at the first look after ten minutes (in a shorter soak after a sixth of it), and at the last.
    fn own_after_warm_up(&self) -> Option<[f64; 2]> {
        let last = self.looks.last()?;
        let warm = self.looks.iter().find(|look| look.minutes >= (last.minutes / 6.0).min(10.0))?;
        Some([warm.own, last.own])
    }
}

fn mib(bytes: f64) -> String {
    format!("{:.1} MiB", bytes / MIB)
}

fn raw(soaked: &Soaked) -> Value {
    let Rounds { written, passive, truncate } = &soaked.writer;
    let looks = soaked.looks.iter().map(|look| {
        json!({
            "minutes": look.minutes, "resident": look.resident, "own": look.own, "files": look.files,
            "threads": look.threads, "state_bytes": look.state_bytes, "stored_bytes": look.stored_bytes,
            "objects": look.objects, "database_bytes": look.database_bytes, "cpu_s": look.cpu_s,
        })
    });
    json!({
        "daemon": soaked.system.name(), "transactions": written.transactions, "resident_max": soaked.highest,
        "commit_p50_ms": written.latency.median(), "commit_p99_ms": written.latency.quantile(0.99),
        "commit_max_ms": written.latency.quantile(1.0), "busy": written.busy,
        "passive_ms": passive.ms.values(), "passive_completed": passive.completed,
        "truncate_ms": truncate.ms.values(), "truncate_completed": truncate.completed, "slope_own_bytes_h": soaked.slope(|look| look.own),
        "slope_resident_bytes_h": soaked.slope(|look| look.resident), "looks": looks.collect::<Vec<_>>(),
    })
}

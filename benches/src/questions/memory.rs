//! How much memory and processor does a daemon take beside a large database?

use std::time::Duration;

use rusqlite::Connection;
use serde_json::json;

use crate::Outcome;
use crate::daemon::{COMPACTED, Daemon, Stored, System, stored_in};
use crate::database::{connect, rows_of, write};
use crate::measure::Sample;
use crate::report::{Answer, Table, mib};
use crate::workload::{Workload, Writer};
use crate::world::World;

/// Writers by their pace (`None`: back to back); the first does nothing.
const PHASES: [(&str, Option<f64>); 3] = [("idle", Some(0.0)), ("200/s", Some(200.0)), ("saturated", None)];

/// What a daemon took in one phase.
struct Taken {
    cpu_s: f64,
    seconds: f64,
    transactions: u64,
}

/// Watches each daemon idle, at 200 transactions a second, and with a writer that does not wait.
pub(crate) fn ask(world: &World) -> Outcome<Answer> {
    let mut answer = Answer::new("memory", "Memory and processor of the daemon");
    let title = format!(
        "The process beside a database of {} MiB, in MiB resident (of it not pages of files)",
        world.large_mib()
    );
    let head = ["daemon", "writer", "resident", "resident, highest since the start", "processor"];
    let mut table = Table::new(&title, &head);
    for system in System::daemons(world) {
        let path = world.fresh("memory")?.join("app.db");
        world.accounts(world.large_mib(), &path)?;
        let mut connection = connect(&path)?;
        let mut writer = Writer::new(Workload::PointUpdate, rows_of(world.large_mib()), 4);
        let daemon = Daemon::start_and_compact(world, system, &path, &mut connection, &mut writer)?;
        for (name, pace) in PHASES {
            let taken = phase(world, &daemon, &mut connection, &mut writer, pace)?;
            let process = daemon.look()?;
            let mib = |bytes: u64| mib(bytes as f64);
            table.row([
                system.name().to_owned(),
                name.to_owned(),
                format!("{} ({})", mib(process.resident), mib(process.anonymous)),
                mib(process.resident_max),
                taken.text(),
            ]);
            answer.raw(json!({
                "daemon": system.name(), "writer": name, "seconds": taken.seconds, "resident": process.resident,
                "anonymous": process.anonymous, "resident_max": process.resident_max, "cpu_s": taken.cpu_s,
                "transactions": taken.transactions,
            }));
        }
        daemon.stop()?;
    }
    answer.table(table);
    let many = beside_many(world, &mut answer)?;
    answer.table(many);
    answer.note("Processor time is by the process' clock, in nanoseconds. Idle begins when nothing was stored for 35 s, so that litestream's first compaction is over, and is the middle one of three times, so that a later one does not count; its compaction every 30 s is a part of the rows with a writer.");
    world.discard("memory")?;
    Ok(answer)
}

/// One daemon beside many small databases that nobody writes to.
fn beside_many(world: &World, answer: &mut Answer) -> Outcome<Table> {
    let count = world.scale.pick(5, 30, 100);
    let title = format!(
        "One daemon beside {count} idle databases of 1 MiB, in MiB resident (of it not pages of files)"
    );
    let head =
        ["daemon", "resident", "resident, highest", "open files", "threads", "processor", "objects stored"];
    let mut table = Table::new(&title, &head);
    for system in System::daemons(world) {
        let folder = world.fresh("memory")?;
        let databases = (0..count).map(|number| folder.join(format!("{number}.db"))).collect::<Vec<_>>();
        for path in &databases {
            world.accounts(1, path)?;
            drop(connect(path)?);
        }
        let daemon = Daemon::start_beside_many(world, system, &databases, &folder)?;
        let copies = |stored: &Stored| stored.names.iter().filter(|name| system.is_full_copy(name)).count();
        daemon.wait_for(|stored| copies(stored) >= count)?;
        let before = daemon.wait_until_quiet(world.scale.pick(Duration::ZERO, COMPACTED, COMPACTED))?;
        let taken = idle(&daemon, world.scale.pick(0.6, 15.0, 60.0))?;
        let (process, after) = (daemon.look()?, stored_in(&daemon.store));
        daemon.stop()?;
        let stored = after.names.difference(&before.names).count();
        table.row([
            system.name().to_owned(),
            format!("{} ({})", mib(process.resident as f64), mib(process.anonymous as f64)),
            mib(process.resident_max as f64),
            process.files.to_string(),
            process.threads.to_string(),
            taken.text(),
            stored.to_string(),
        ]);
        answer.raw(json!({
            "daemon": system.name(), "databases": count, "resident": process.resident,
            "anonymous": process.anonymous, "resident_max": process.resident_max, "files": process.files,
            "threads": process.threads, "cpu_s": taken.cpu_s, "seconds": taken.seconds, "objects_stored": stored,
        }));
    }
    Ok(table)
}

fn phase(
    world: &World,
    daemon: &Daemon,
    connection: &mut Connection,
    writer: &mut Writer,
    pace: Option<f64>,
) -> Outcome<Taken> {
    let seconds = world.scale.pick(0.6, 6.0, 36.0);
    if pace == Some(0.0) {
        return idle(daemon, seconds);
    }
    let before = daemon.look()?.seconds;
    let written = write(connection, writer, pace, |_, elapsed| elapsed.as_secs_f64() >= seconds)?;
    let cpu_s = daemon.look()?.seconds - before;
    Ok(Taken { cpu_s, seconds: written.seconds, transactions: written.transactions })
}

fn idle(daemon: &Daemon, seconds: f64) -> Outcome<Taken> {
    let mut thirds = Sample::default();
    for _ in 0..3 {
        let before = daemon.look()?.seconds;
        std::thread::sleep(Duration::from_secs_f64(seconds / 3.0));
        thirds.push(daemon.look()?.seconds - before);
    }
    Ok(Taken { cpu_s: thirds.median(), seconds: seconds / 3.0, transactions: 0 })
}

impl Taken {
    fn text(&self) -> String {
        let share = format!("{:.2} % of a core", self.cpu_s * 100.0 / self.seconds);
        match self.transactions {
            0 => share,
            transactions => format!("{share}, {:.0} us/tx", self.cpu_s * 1e6 / transactions as f64),
        }
    }
}

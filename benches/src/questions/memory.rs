//! How much memory and processor does a daemon take beside a large database?

use std::time::Duration;

use serde_json::json;

use crate::Outcome;
use crate::daemon::{Daemon, System};
use crate::database::{connect, rows_of, write};
use crate::report::{Answer, Table};
use crate::workload::{Workload, Writer};
use crate::world::World;

/// After the first copy, before anything is measured: litestream compacts that copy half a minute later.
const REST: Duration = Duration::from_secs(60);

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
        let folder = world.fresh("memory")?;
        let path = folder.join("app.db");
        world.accounts(world.large_mib(), &path)?;
        let mut connection = connect(&path)?;
        let mut writer = Writer::new(Workload::PointUpdate, rows_of(world.large_mib()), 4);
        let daemon = Daemon::start_and_settle(world, system, &path)?;
        std::thread::sleep(REST.mul_f64(world.scale.pick(0.0, 0.5, 1.0)));
        let seconds = world.scale.pick(0.5, 4.0, 35.0);
        for (name, pace) in [("idle", Some(0.0)), ("200/s", Some(200.0)), ("saturated", None)] {
            let before = daemon.look()?;
            let mut per_tx = f64::NAN;
            if pace == Some(0.0) {
                std::thread::sleep(Duration::from_secs_f64(seconds));
            } else {
                let end = |_, elapsed: Duration| elapsed.as_secs_f64() >= seconds;
                per_tx = write(&mut connection, &mut writer, pace, end)?.transactions as f64;
            }
            let after = daemon.look()?;
            let mib = |bytes: u64| format!("{:.0}", bytes as f64 / f64::from(1 << 20));
            let cpu = after.seconds - before.seconds;
            let each =
                if per_tx.is_nan() { String::new() } else { format!(", {:.0} us/tx", cpu * 1e6 / per_tx) };
            table.row([
                system.name().to_owned(),
                name.to_owned(),
                format!("{} ({})", mib(after.resident), mib(after.anonymous)),
                mib(after.resident_max),
                format!("{:.2} % of a core{each}", cpu * 100.0 / seconds),
            ]);
            answer.raw(json!({
                "daemon": system.name(), "writer": name, "seconds": seconds, "resident": after.resident,
                "anonymous": after.anonymous, "resident_max": after.resident_max, "cpu_s": cpu, "transactions": per_tx,
            }));
        }
        daemon.stop()?;
    }
    answer.table(table);
    answer.note("Idle begins a minute after the first copy, so that litestream's compaction of it is over; its compaction every 30 s is a part of the rows with a writer.");
    world.discard("memory")?;
    Ok(answer)
}

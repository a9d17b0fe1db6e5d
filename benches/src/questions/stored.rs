//! What does a transaction cost in the store, in bytes and in objects, with real daemons and a paced writer?

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use serde_json::json;

use crate::Outcome;
use crate::daemon::{Daemon, Stored, System, stored_where};
use crate::database::{prepared, write};
use crate::prototype::prototype;
use crate::report::{Answer, Table};
use crate::workload::{Workload, Writer};
use crate::world::World;

/// Kinds that run at once, the small ones before the large. Sizes do not depend on the speed of others.
const GROUPS: [&[Workload]; 2] = [&Workload::SMALL, &[Workload::Bulk, Workload::FullText, Workload::Blobs]];

/// A database with its writer and its daemon.
struct Case {
    workload: Workload,
    system: System,
    connection: Connection,
    writer: Writer,
    daemon: Daemon,
    before: Stored,
}

/// What one of them came to.
struct Measured {
    workload: Workload,
    system: System,
    transactions: u64,
    bytes: f64,
    objects: f64,
    first_copy: u64,
}

/// Runs each workload under each daemon.
pub(crate) fn ask(world: &World) -> Outcome<Answer> {
    let mut answer = Answer::new("stored", "Bytes and objects in the store");
    let head = [
        "workload",
        "daemon",
        "transactions",
        "bytes/tx",
        "objects/tx",
        "first copy",
        "times everwhen's bytes",
        "prototype, bytes/tx",
        "times it",
    ];
    let seconds = world.scale.pick(1.0, 6.0, 20.0);
    let title = format!("A paced writer for {seconds} s, the first full copy apart, local files");
    let mut table = Table::new(&title, &head);
    for workloads in GROUPS {
        let measured = run(world, workloads, seconds)?;
        for of in &measured {
            let ours =
                measured.iter().find(|one| one.workload == of.workload && one.system == System::Everwhen);
            table.row(of.row(ours.map_or(f64::NAN, |ours| ours.bytes)));
            answer.raw(json!({
                "workload": of.workload.name(), "daemon": of.system.name(), "transactions": of.transactions,
                "per_second": pace(of.workload), "bytes_per_tx": of.bytes, "objects_per_tx": of.objects,
                "first_copy_bytes": of.first_copy,
            }));
        }
    }
    answer.table(table);
    answer.note("W1 to W5 at 100 transactions a second, W6 at 0.5, W7 at 30, W8 at 10. Everwhen keeps every transaction; litestream keeps the last state of each sync (1 s). Of litestream only its level 0 is counted, each byte of which it copies into its levels 1 to 3 later. The prototype's figures are of other rows of the same kind.");
    world.discard("stored")?;
    Ok(answer)
}

fn pace(workload: Workload) -> f64 {
    match workload {
        Workload::Bulk => 0.5,
        Workload::FullText => 30.0,
        Workload::Blobs => 10.0,
        _ => 100.0,
    }
}

fn run(world: &World, workloads: &[Workload], seconds: f64) -> Outcome<Vec<Measured>> {
    let folder = world.fresh("stored")?;
    let mut cases = Vec::new();
    for workload in workloads {
        for system in System::daemons(world) {
            cases.push(begin(world, *workload, system, &folder)?);
        }
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            cases.into_iter().map(|case| scope.spawn(move || case.measure(seconds))).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| "a writer died")?).collect()
    })
}

fn begin(world: &World, workload: Workload, system: System, folder: &Path) -> Outcome<Case> {
    let path = folder.join(format!("{workload:?}-{}.db", system.name()));
    let rows = (workload.rows() / world.scale.pick(200, 10, 1)).max(50);
    let (connection, writer) = prepared(&path, workload, rows)?;
    let daemon = Daemon::start_and_settle(world, system, &path)?;
    let before = counted(system, &daemon.store);
    Ok(Case { workload, system, connection, writer, daemon, before })
}

impl Case {
    fn measure(mut self, seconds: f64) -> Outcome<Measured> {
        let end = |_, elapsed: Duration| elapsed.as_secs_f64() >= seconds;
        let written = write(&mut self.connection, &mut self.writer, Some(pace(self.workload)), end)?;
        let store = self.daemon.store.clone();
        self.daemon.stop()?;
        let after = counted(self.system, &store);
        let per_tx =
            |after: u64, before: u64| after.saturating_sub(before) as f64 / written.transactions as f64;
        Ok(Measured {
            workload: self.workload,
            system: self.system,
            transactions: written.transactions,
            bytes: per_tx(after.bytes, self.before.bytes),
            objects: per_tx(after.objects(), self.before.objects()),
            first_copy: self.before.bytes,
        })
    }
}

impl Measured {
    fn row(&self, ours: f64) -> Vec<String> {
        let prototype = prototype(self.workload).bytes_per_tx;
        let beside = [format!("{prototype:.0}"), format!("{:.2}", self.bytes / prototype)];
        let mut row = vec![
            self.workload.name().to_owned(),
            self.system.name().to_owned(),
            self.transactions.to_string(),
            format!("{:.0}", self.bytes),
            format!("{:.4}", self.objects),
            crate::report::bytes(self.first_copy),
            format!("{:.1}", self.bytes / ours),
        ];
        row.extend(if self.system == System::Everwhen { beside } else { ["-", "-"].map(str::to_owned) });
        row
    }
}

/// What counts: of the peer only what it writes first, in its favour.
fn counted(system: System, store: &Path) -> Stored {
    stored_where(store, |name| system != System::Litestream || name.contains("/ltx/0/"))
}

//! What does a transaction cost in the store, in bytes and in objects, with real daemons and a paced writer?

use std::path::Path;

use serde_json::json;

use crate::Outcome;
use crate::daemon::{Daemon, Stored, System, stored_where};
use crate::database::{prepared, write};
use crate::report::{Answer, Table};
use crate::workload::Workload;
use crate::world::World;

const PER_SECOND: f64 = 100.0;

/// Runs the small workloads at once, each under each daemon: sizes do not depend on time.
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
    ];
    let seconds = world.scale.pick(1.0, 6.0, 20.0);
    let title =
        format!("{PER_SECOND} transactions a second for {seconds} s, the first full copy apart, local files");
    let mut table = Table::new(&title, &head);
    let systems = || System::daemons(world).into_iter();
    let cases: Vec<_> = Workload::SMALL.into_iter().flat_map(|w| systems().map(move |s| (w, s))).collect();
    let scale = world.scale.pick(200, 10, 1);
    let folder = world.fresh("stored")?;
    let mut ready = Vec::new();
    for (index, (workload, system)) in cases.iter().enumerate() {
        let path = folder.join(format!("app{index}.db"));
        let (connection, writer) = prepared(&path, *workload, (workload.rows() / scale).max(50))?;
        let daemon = Daemon::start_and_settle(world, *system, &path)?;
        let before = counted(*system, &daemon.store);
        ready.push((*system, connection, writer, daemon, before));
    }
    let measured: Vec<(u64, Stored, Stored)> = std::thread::scope(|scope| {
        let threads: Vec<_> = ready
            .into_iter()
            .map(|(system, mut connection, mut writer, daemon, before)| {
                scope.spawn(move || -> Outcome<_> {
                    let end = |_, elapsed: std::time::Duration| elapsed.as_secs_f64() >= seconds;
                    let written = write(&mut connection, &mut writer, Some(PER_SECOND), end)?;
                    let store = daemon.store.clone();
                    daemon.stop()?;
                    Ok((written.transactions, before, counted(system, &store)))
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| "a writer died")?).collect::<Outcome<_>>()
    })?;
    let mut ours = f64::NAN;
    for ((workload, system), (transactions, before, after)) in cases.iter().zip(measured) {
        let per_tx = |value: u64| value as f64 / transactions as f64;
        let bytes = per_tx(after.bytes.saturating_sub(before.bytes));
        let objects = per_tx(after.objects().saturating_sub(before.objects()));
        if *system == System::Everwhen {
            ours = bytes;
        }
        table.row([
            workload.name().to_owned(),
            system.name().to_owned(),
            transactions.to_string(),
            format!("{bytes:.0}"),
            format!("{objects:.4}"),
            crate::report::bytes(before.bytes),
            format!("{:.1}", bytes / ours),
        ]);
        answer.raw(json!({
            "workload": workload.name(), "daemon": system.name(), "transactions": transactions,
            "bytes_per_tx": bytes, "objects_per_tx": objects, "first_copy_bytes": before.bytes,
        }));
    }
    answer.table(table);
    answer.note("Everwhen keeps every transaction; litestream keeps the last state of each sync (1 s). Of litestream only its level 0 is counted, each byte of which it copies into its levels 1 to 3 later.");
    world.discard("stored")?;
    Ok(answer)
}

/// What counts: of the peer only what it writes first, in its favour.
fn counted(system: System, store: &Path) -> Stored {
    stored_where(store, |name| system != System::Litestream || name.contains("/ltx/0/"))
}

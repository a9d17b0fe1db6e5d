//! How fast is a log captured that is there already: MB and transactions a second, and what processor time for it?

use std::path::Path;
use std::time::Duration;

use everwhen_engine::store::Store;
use serde_json::json;

use crate::Outcome;
use crate::database::{connect, copy_synced, prepared, write};
use crate::measure::{Sample, timed};
use crate::process::process_use;
use crate::protected::Protected;
use crate::report::{Answer, Table};
use crate::workload::{Workload, Writer};
use crate::world::World;

/// What the rounds of one workload gave.
#[derive(Default)]
struct Caught {
    transactions: u64,
    log_mb: f64,
    seconds: Sample,
    /// Processor seconds of all threads, those of the store's writes as well.
    cpu_s: Sample,
}

/// Each workload writes while nothing protects it; then the engine catches up, and everything is stored.
pub(crate) fn ask(world: &World) -> Outcome<Answer> {
    let mut answer = Answer::new("capture", "Capture of a log that is there");
    let head =
        ["workload", "log", "transactions", "seconds", "MB/s of log", "transactions/s", "processor, s a GB"];
    let title = "The engine in this process, from its start until all that was written meanwhile is stored on local files, median (range)";
    let mut table = Table::new(title, &head);
    for workload in Workload::ALL {
        let caught = rounds(world, workload)?;
        let (log_mb, transactions) = (caught.log_mb, caught.transactions as f64);
        let rate = |of: f64| caught.seconds.values().iter().map(|seconds| of / seconds).collect::<Sample>();
        let a_gb: Sample = caught.cpu_s.values().iter().map(|seconds| seconds * 1e3 / log_mb).collect();
        table.row([
            workload.name().to_owned(),
            format!("{log_mb:.0} MB"),
            caught.transactions.to_string(),
            caught.seconds.with_spread(|seconds| format!("{seconds:.2}")),
            rate(log_mb).with_spread(|rate| format!("{rate:.0}")),
            rate(transactions).with_spread(|rate| format!("{rate:.0}")),
            a_gb.with_spread(|seconds| format!("{seconds:.2}")),
        ]);
        answer.raw(json!({
            "workload": workload.name(), "log_mb": log_mb, "transactions": caught.transactions,
            "seconds": caught.seconds.values(), "cpu_s": caught.cpu_s.values(),
        }));
    }
    answer.table(table);
    answer.note("Nothing else runs, and the log is in the page cache. What it takes to begin (the repository, the journal, the table of page hashes) is in it, and each page's previous version is read from the database.");
    world.discard("capture")?;
    world.discard("capture_run")?;
    Ok(answer)
}

fn rounds(world: &World, workload: Workload) -> Outcome<Caught> {
    let start = world.fresh("capture")?.join("start.db");
    let shrink = world.scale.pick(100, 4, 1);
    let rows = (workload.rows() / shrink).max(50);
    drop(prepared(&start, workload, rows)?);
    // Twice that is 200 MB of log in a full run.
    let transactions = (2 * workload.transactions() / shrink).max(2);
    let mut caught = Caught { transactions, ..Caught::default() };
    for round in 0..world.long_rounds() {
        let path = world.fresh("capture_run")?.join("app.db");
        copy_synced(&start, &path)?;
        caught.take(world, &path, Writer::new(workload, rows, 16 + round))?;
    }
    Ok(caught)
}

impl Caught {
    fn take(&mut self, world: &World, path: &Path, mut writer: Writer) -> Outcome<()> {
        let mut connection = connect(path)?;
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        world.runtime.block_on(async { Outcome::Ok(protect(path).await?.protection.stop().await?) })?;
        write(&mut connection, &mut writer, None, |done, _| done >= self.transactions)?;
        self.log_mb = std::fs::metadata(path.with_extension("db-wal"))?.len() as f64 / 1e6;
        world.calm_disk();
        let cpu = || process_use(std::process::id()).map_or(f64::NAN, |process| process.seconds);
        let before = cpu();
        let (seconds, protected) = timed(|| world.runtime.block_on(protect(path)))?;
        self.seconds.push(seconds);
        self.cpu_s.push(cpu() - before);
        let captured = protected.protection.status().transactions_total;
        world.runtime.block_on(protected.protection.stop())?;
        match captured == self.transactions {
            true => Ok(()),
            false => Err(format!("{captured} transactions were captured, not {}", self.transactions).into()),
        }
    }
}

/// Protects, and waits until everything committed before is stored.
async fn protect(path: &Path) -> Outcome<Protected> {
    let store = Store::open(&path.with_extension("store").display().to_string())?;
    let protected = Protected::start(path, store, &path.with_extension("state")).await?;
    protected.protection.wait_durable(None, Duration::from_secs(600)).await?;
    Ok(protected)
}

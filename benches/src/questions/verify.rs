//! How fast is a repository verified?

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use everwhen_engine::ids::DatabaseId;
use everwhen_engine::repository::Repository;
use everwhen_engine::restore::{Cancel, Inventory, Options, history_of};
use everwhen_engine::store::Store;
use everwhen_engine::verify::{VerifyOptions, VerifyReport, verify};
use serde_json::json;

use crate::Outcome;
use crate::database::{connect, rows_of, write};
use crate::measure::{Sample, timed};
use crate::protected::Protected;
use crate::report::{Answer, Table, bytes};
use crate::workload::{Workload, Writer};
use crate::world::World;

/// How thoroughly; deep or not.
const WAYS: [(&str, bool); 2] =
    [("fast: every object against its name and its chain", false), ("deep: every state rebuilt", true)];

/// Verifies a large base and a log of point updates, fast and deep.
pub(crate) fn ask(world: &World) -> Outcome<Answer> {
    let mut answer = Answer::new("verify", "Verification");
    let (mib, transactions) = (world.large_mib(), world.scale.pick(50, 20_000, 200_000));
    let folder = world.fresh("verify")?;
    let protected = protected(world, &folder, mib, transactions)?;
    let title = format!(
        "A base of {mib} MiB and a log of {transactions} point updates, local files, in one process, median (range)"
    );
    let head = ["how", "objects", "bytes read", "seconds", "rate", "states proven a second"];
    let mut table = Table::new(&title, &head);
    for (name, deep) in WAYS {
        let (seconds, report) = rounds(world, &protected, deep.then_some(folder.as_path()))?;
        let rate = |count: f64| seconds.values().iter().map(|seconds| count / seconds).collect::<Sample>();
        let (read, proven) = (rate(report.bytes as f64 / 1e6), rate(report.proven_transactions as f64));
        table.row([
            name.to_owned(),
            report.objects.to_string(),
            bytes(report.bytes),
            seconds.with_spread(|value| format!("{value:.3}")),
            read.with_spread(|rate| format!("{rate:.0}")) + " MB/s",
            if deep { proven.with_spread(|rate| format!("{rate:.0}")) } else { "-".into() },
        ]);
        answer.raw(json!({
            "how": name, "objects": report.objects, "bytes": report.bytes, "seconds": seconds.values(),
            "proven_transactions": report.proven_transactions,
        }));
    }
    world.runtime.block_on(protected.protection.stop())?;
    answer.table(table);
    answer.note("The objects were written just before: they are read from the page cache.");
    world.discard("verify")?;
    Ok(answer)
}

/// A database whose base and log are stored.
fn protected(world: &World, folder: &Path, mib: u64, transactions: u64) -> Outcome<Protected> {
    let path = folder.join("app.db");
    world.accounts(mib, &path)?;
    let mut connection = connect(&path)?;
    let mut writer = Writer::new(Workload::PointUpdate, rows_of(mib), 15);
    let store = Store::open(&folder.join("store").display().to_string())?;
    let protected = world.runtime.block_on(Protected::start(&path, store, &folder.join("state")))?;
    write(&mut connection, &mut writer, None, |done, _| done >= transactions)?;
    world.runtime.block_on(protected.protection.wait_durable(None, Duration::from_secs(120)))?;
    Ok(protected)
}

/// Seconds of each round, and what the last one read.
fn rounds(world: &World, protected: &Protected, deep_in: Option<&Path>) -> Outcome<(Sample, VerifyReport)> {
    let (mut seconds, mut last) = (Sample::default(), None);
    for _ in 0..world.rounds() {
        world.rest();
        let (took, report) = timed(|| check(world, &protected.repository, protected.database()?, deep_in))?;
        seconds.push(took);
        last = Some(report);
    }
    Ok((seconds, last.ok_or("nothing was verified")?))
}

/// Verifies, deep when there is a folder for it; what is not sound is an error.
fn check(
    world: &World,
    repository: &Repository,
    database: DatabaseId,
    deep_in: Option<&Path>,
) -> Outcome<VerifyReport> {
    let report = world.runtime.block_on(async {
        let history = history_of(repository, database).await?;
        let packs = Inventory::packs(repository, database).await?;
        let options = VerifyOptions {
            deep_in,
            restore: &Options { reserve_bytes: Some(0), ..Options::default() },
            progress: Arc::new(|_| {}),
            cancel: &Cancel::new(),
        };
        Outcome::Ok(verify(repository, &history, &packs, &options).await?)
    })?;
    match report.is_sound() {
        true => Ok(report),
        false => Err(format!("the repository is not sound: {:?}", report.problems).into()),
    }
}

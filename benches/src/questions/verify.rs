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
use crate::database::{mib_of, prepared, write};
use crate::measure::Sample;
use crate::protected::Protected;
use crate::report::{Answer, Table, bytes};
use crate::workload::Workload;
use crate::world::World;

/// Verifies a base and a log of point updates, fast and deep.
pub(crate) fn ask(world: &World) -> Outcome<Answer> {
    let mut answer = Answer::new("verify", "Verification");
    let head = ["how", "objects", "bytes read", "seconds", "rate", "states proven a second"];
    let (rows, transactions) = (world.scale.pick(500, 20_000, 150_000), world.scale.pick(50, 5_000, 50_000));
    let title = format!(
        "A base of {} MiB and a log of {transactions} point updates, local files, in one process",
        mib_of(rows)
    );
    let mut table = Table::new(&title, &head);
    let folder = world.fresh("verify")?;
    let path = folder.join("app.db");
    let (mut connection, mut writer) = prepared(&path, Workload::PointUpdate, rows)?;
    let store = Store::open(&folder.join("store").display().to_string())?;
    let protected = world.runtime.block_on(Protected::start(&path, store, &folder.join("state")))?;
    write(&mut connection, &mut writer, None, |done, _| done >= transactions)?;
    world.runtime.block_on(protected.protection.wait_durable(None, Duration::from_secs(120)))?;
    let (repository, database) = (&protected.repository, protected.database()?);
    for (name, deep) in
        [("fast: every object against its name and its chain", false), ("deep: every state rebuilt", true)]
    {
        let mut sample = Sample::default();
        let mut report = None;
        for _ in 0..world.scale.pick(1, 3, 5) {
            let checked = check(world, repository, database, deep.then_some(folder.as_path()))?;
            sample.push(checked.elapsed_ms as f64 / 1e3);
            report = Some(checked);
        }
        let report = report.ok_or("nothing was verified")?;
        let seconds = sample.median().max(0.001);
        let proven = report.proven_transactions as f64 / seconds;
        table.row([
            name.to_owned(),
            report.objects.to_string(),
            bytes(report.bytes),
            sample.with_spread(|value| format!("{value:.2}")),
            format!("{:.0} MB/s", report.bytes as f64 / 1e6 / seconds),
            if deep { format!("{proven:.0}") } else { "-".into() },
        ]);
        answer.raw(json!({
            "how": name, "objects": report.objects, "bytes": report.bytes, "seconds": sample.values(),
            "proven_transactions": report.proven_transactions,
        }));
    }
    world.runtime.block_on(protected.protection.stop())?;
    answer.table(table);
    world.discard("verify")?;
    Ok(answer)
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
            restore: &Options { reserve_bytes: 0, ..Options::default() },
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

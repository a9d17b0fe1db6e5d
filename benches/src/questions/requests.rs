//! How many requests does a store get, idle and busy?

use std::time::Duration;

use everwhen_engine::store::Store;
use serde_json::json;

use crate::Outcome;
use crate::database::{prepared, write};
use crate::prices::Load;
use crate::process::process_use;
use crate::protected::Protected;
use crate::report::{Answer, Table};
use crate::workload::Workload;
use crate::world::World;

/// Counts at the store seam, in this process.
pub(crate) fn ask(world: &World) -> Outcome<Answer> {
    let mut answer = Answer::new("requests", "Requests to the store");
    let head = [
        "writer",
        "put/h",
        "get/h",
        "list/h",
        "other/h",
        "bytes put/h",
        "put/h at $5 a million, $ a month",
        "processor",
    ];
    let mut table = Table::new("One database, counted where the engine meets the store", &head);
    let folder = world.fresh("requests")?;
    let rows = world.scale.pick(500, 20_000, 150_000);
    let (mut connection, mut writer) = prepared(&folder.join("app.db"), Workload::PointUpdate, rows)?;
    let store = Store::open(&folder.join("store").display().to_string())?;
    let protected =
        world.runtime.block_on(Protected::start(&folder.join("app.db"), store, &folder.join("state")))?;
    std::thread::sleep(Duration::from_millis(world.scale.pick(100, 2000, 3000)));
    for (name, per_second, seconds) in [
        ("idle", None, world.scale.pick(1.0, 5.0, 20.0)),
        ("1/s", Some(1.0), world.scale.pick(1.0, 5.0, 10.0)),
        ("100/s", Some(100.0), world.scale.pick(1.0, 5.0, 10.0)),
    ] {
        let before = protected.recording.counts();
        let used = process_use(std::process::id()).unwrap_or_default();
        match per_second {
            None => std::thread::sleep(Duration::from_secs_f64(seconds)),
            Some(pace) => {
                let end = |_, elapsed: Duration| elapsed.as_secs_f64() >= seconds;
                write(&mut connection, &mut writer, Some(pace), end)?;
            }
        }
        let (after, used_after) =
            (protected.recording.counts(), process_use(std::process::id()).unwrap_or_default());
        let per_hour = |count: u64| count as f64 * 3600.0 / seconds;
        let puts = per_hour(after.puts - before.puts);
        let other = after.sizes + after.deletes - before.sizes - before.deletes;
        let share = (used_after.seconds - used.seconds) / seconds * 100.0;
        table.row([
            name.to_owned(),
            format!("{puts:.0}"),
            format!("{:.0}", per_hour(after.gets - before.gets)),
            format!("{:.0}", per_hour(after.lists - before.lists)),
            format!("{:.0}", per_hour(other)),
            crate::report::bytes(per_hour(after.bytes_put - before.bytes_put) as u64),
            format!("{:.2}", Load { writes_h: puts, ..Load::default() }.a_month()),
            format!("{share:.2} % of a core{}", if per_second.is_some() { ", writer included" } else { "" }),
        ]);
        answer.raw(json!({
            "writer": name, "seconds": seconds, "puts": after.puts - before.puts, "gets": after.gets - before.gets,
            "lists": after.lists - before.lists, "others": other, "bytes_put": after.bytes_put - before.bytes_put,
            "process_percent": share,
        }));
    }
    world.runtime.block_on(protected.protection.stop())?;
    answer.table(table);
    answer.note(
        "The daemon adds one covered-through mark for all its databases together; it is not in this count.",
    );
    world.discard("requests")?;
    Ok(answer)
}

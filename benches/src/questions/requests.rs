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
    let (idle, busy) = (world.scale.pick(1.0, 5.0, 20.0), world.scale.pick(1.0, 5.0, 10.0));
    for (name, per_second, seconds) in
        [("idle", None, idle), ("1/s", Some(1.0), busy), ("100/s", Some(100.0), busy)]
    {
        let asked = while_writing(&protected, seconds, || match per_second {
            None => {
                std::thread::sleep(Duration::from_secs_f64(seconds));
                Ok(())
            }
            Some(pace) => {
                let end = |_, elapsed: Duration| elapsed.as_secs_f64() >= seconds;
                write(&mut connection, &mut writer, Some(pace), end).map(drop)
            }
        })?;
        table.row(asked.row(name, per_second.is_some()));
        let Asked { puts, gets, lists, others, bytes_put, cpu_s, .. } = asked;
        answer.raw(json!({
            "writer": name, "seconds": seconds, "puts": puts, "gets": gets, "lists": lists, "others": others,
            "bytes_put": bytes_put, "process_percent": cpu_s / seconds * 100.0,
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

/// What was asked of the store in some seconds, and the processor time of this process meanwhile.
struct Asked {
    seconds: f64,
    puts: u64,
    gets: u64,
    lists: u64,
    /// Sizes asked for, and deletes.
    others: u64,
    bytes_put: u64,
    cpu_s: f64,
}

fn while_writing(protected: &Protected, seconds: f64, write: impl FnOnce() -> Outcome<()>) -> Outcome<Asked> {
    let cpu = || process_use(std::process::id()).map_or(f64::NAN, |process| process.seconds);
    let (before, cpu_before) = (protected.recording.counts(), cpu());
    write()?;
    let after = protected.recording.counts();
    Ok(Asked {
        seconds,
        puts: after.puts - before.puts,
        gets: after.gets - before.gets,
        lists: after.lists - before.lists,
        others: after.sizes + after.deletes - before.sizes - before.deletes,
        bytes_put: after.bytes_put - before.bytes_put,
        cpu_s: cpu() - cpu_before,
    })
}

impl Asked {
    fn row(&self, name: &str, with_writer: bool) -> Vec<String> {
        let per_hour = |count: u64| count as f64 * 3600.0 / self.seconds;
        let writes = Load { writes_h: per_hour(self.puts), ..Load::default() };
        let mut row = vec![name.to_owned()];
        row.extend(
            [self.puts, self.gets, self.lists, self.others].map(|count| format!("{:.0}", per_hour(count))),
        );
        row.push(crate::report::bytes(per_hour(self.bytes_put) as u64));
        row.push(format!("{:.2}", writes.a_month()));
        let whose = if with_writer { ", writer included" } else { "" };
        row.push(format!("{:.2} % of a core{whose}", self.cpu_s / self.seconds * 100.0));
        row
    }
}

//! How many requests does a real S3 server get over HTTP, idle and busy, from whole daemons?

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::Outcome;
use crate::cloud::{CloudServer, Dialect, Requests};
use crate::daemon::{COMPACTED, Daemon, System};
use crate::database::{prepared, write};
use crate::prices::Load;
use crate::report::{Answer, Table, bytes};
use crate::workload::Workload;
use crate::world::World;

/// Writers by their pace; the first does nothing.
const PHASES: [(&str, f64); 3] = [("idle", 0.0), ("1/s", 1.0), ("100/s", 100.0)];

/// What came in, in one phase.
struct Counted {
    system: System,
    phase: &'static str,
    seconds: f64,
    requests: Requests,
}

/// Runs each daemon at once, with a server and a database of its own.
pub(crate) fn ask(world: &World) -> Outcome<Answer> {
    let folder = world.fresh("s3")?;
    let counted = std::thread::scope(|scope| {
        let threads: Vec<_> = System::daemons(world)
            .into_iter()
            .map(|system| {
                let path = folder.join(format!("{}.db", system.name()));
                scope.spawn(move || count(world, system, &path))
            })
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join().map_err(|_| "a writer died")?);
        joined.collect::<Outcome<Vec<_>>>()
    })?;
    world.discard("s3")?;
    let mut answer = Answer::new("s3", "Requests at an S3 server");
    let head = [
        "writer",
        "daemon",
        "PUT/h",
        "GET/h",
        "HEAD/h",
        "LIST/h",
        "multipart/h",
        "DELETE/h",
        "bytes in/h",
        "out/h",
        "$ a month",
    ];
    let mut table =
        Table::new("Point updates, counted at a server over HTTP, one database, by the hour", &head);
    for phase in PHASES.map(|(phase, _)| phase) {
        for counted in counted.iter().flatten().filter(|counted| counted.phase == phase) {
            table.row(counted.row());
            let requests = counted.requests;
            answer.raw(json!({
                "daemon": counted.system.name(), "writer": phase, "seconds": counted.seconds,
                "puts": requests.puts, "gets": requests.gets, "heads": requests.heads, "lists": requests.lists,
                "uploads": requests.uploads, "deletes": requests.deletes, "bytes_in": requests.bytes_in,
                "bytes_out": requests.bytes_out,
            }));
        }
    }
    answer.table(table);
    answer.note("The server is that of our tests, in this process, over HTTP on loopback. The first full copy is over, and compacted, when counting begins, and each count of a full run is three of litestream's compactions long (90 s). Everwhen's covered-through mark, one in ten minutes for all databases of a daemon, may fall outside: add 6 PUT an hour. Dollars are for requests alone, at the prices below.");
    Ok(answer)
}

fn count(world: &World, system: System, path: &Path) -> Outcome<Vec<Counted>> {
    let (mut connection, mut writer) =
        prepared(path, Workload::PointUpdate, world.scale.pick(500, 20_000, 150_000))?;
    let server = CloudServer::start(Dialect::S3);
    let environment = server.environment();
    let daemon = Daemon::start_at(world, system, path, &url(system, &server), &environment)?;
    wait_for_first_copy(&daemon, system, &server)?;
    let seconds = |smoke, quick, full| Duration::from_secs_f64(world.scale.pick(smoke, quick, full));
    // The peer compacts its first copy within half a minute of the first transaction after it.
    let before = seconds(0.5, 35.0, 70.0);
    write(&mut connection, &mut writer, Some(1.0), |_, elapsed| elapsed >= before)?;
    std::thread::sleep(world.scale.pick(Duration::ZERO, COMPACTED, COMPACTED));
    let length = seconds(1.0, 30.0, 90.0);
    let mut all = Vec::new();
    for (phase, pace) in PHASES {
        let (before, began) = (server.requests(), Instant::now());
        if pace > 0.0 {
            write(&mut connection, &mut writer, Some(pace), |_, elapsed| elapsed >= length)?;
        }
        std::thread::sleep((began + length).saturating_duration_since(Instant::now()));
        let requests = difference(server.requests(), before);
        all.push(Counted { system, phase, seconds: began.elapsed().as_secs_f64(), requests });
    }
    daemon.stop()?;
    Ok(all)
}

fn url(system: System, server: &CloudServer) -> String {
    let url = server.url("bench");
    if system != System::Litestream {
        return url;
    }
    let endpoint = server.environment().into_iter().find(|(name, _)| name == "AWS_ENDPOINT_URL");
    let endpoint = endpoint.map(|(_, value)| value).unwrap_or_default();
    format!("{url}?endpoint={endpoint}&region=us-east-1&forcePathStyle=true")
}

fn wait_for_first_copy(daemon: &Daemon, system: System, server: &CloudServer) -> Outcome<()> {
    let began = Instant::now();
    while !server.objects().iter().any(|(key, _)| system.is_full_copy(key)) {
        if began.elapsed() > Duration::from_secs(120) {
            return Err("no first copy came to the S3 server in two minutes".into());
        }
        daemon.look()?;
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn difference(after: Requests, before: Requests) -> Requests {
    Requests {
        puts: after.puts - before.puts,
        gets: after.gets - before.gets,
        heads: after.heads - before.heads,
        lists: after.lists - before.lists,
        deletes: after.deletes - before.deletes,
        uploads: after.uploads - before.uploads,
        bytes_in: after.bytes_in - before.bytes_in,
        bytes_out: after.bytes_out - before.bytes_out,
    }
}

impl Counted {
    fn row(&self) -> Vec<String> {
        let (requests, hours) = (self.requests, self.seconds / 3600.0);
        let per_hour = |count: u64| count as f64 / hours;
        let load = Load {
            writes_h: per_hour(requests.puts + requests.lists + requests.uploads),
            reads_h: per_hour(requests.gets + requests.heads),
            kept: 0.0,
        };
        let counts = [
            requests.puts,
            requests.gets,
            requests.heads,
            requests.lists,
            requests.uploads,
            requests.deletes,
        ];
        let mut row = vec![self.phase.to_owned(), self.system.name().to_owned()];
        row.extend(counts.map(|count| format!("{:.0}", per_hour(count))));
        row.extend([requests.bytes_in, requests.bytes_out].map(|count| bytes(per_hour(count) as u64)));
        row.push(format!("{:.2}", load.a_month()));
        row
    }
}

//! `everwhen demo`: a guided tour. Nothing in it is staged: a real database, the real daemon (in this process), and the
//! commands it shows are parsed and performed as they are printed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use everwhen_engine::error::ErrorKind;
use everwhen_engine::time::Timestamp;
use everwhen_proto::v1;
use futures::TryStreamExt;
use rusqlite::Connection;

use super::run::Running;
use crate::answers::Answers;
use crate::cli::{self, Cli};
use crate::config::{Config, DatabaseEntry, Door};
use crate::failure::Failure;
use crate::output::print;
use crate::place::{Told, own_folder};
use crate::view::text::size;
use crate::wire::time_in;

pub(crate) async fn demo(verb: cli::Demo) -> Result<(), Failure> {
    let folder = tempfile::Builder::new().prefix("everwhen-demo-").tempdir();
    let folder = folder.map_err(|error| Failure::io("cannot make a temporary folder", &error))?;
    let tour = Tour { shop: folder.path().join("shop.db"), fast: verb.fast, began: Instant::now() };
    let went = tokio::select! {
        went = tour.walk() => went,
        _ = tokio::signal::ctrl_c() => Err(Failure::new(ErrorKind::Failed, "the tour was interrupted")),
    };
    if verb.keep || (went.is_err() && !verb.fast) {
        let kept = folder.keep();
        print(&format!("\nThe folder is kept: {}\n", kept.display()))?;
    }
    went
}

struct Tour {
    shop: PathBuf,
    fast: bool,
    began: Instant,
}

/// What the shop's books say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Books {
    orders: i64,
    cents: i64,
}

impl Tour {
    async fn walk(&self) -> Result<(), Failure> {
        say("Everwhen in two minutes: a database, a mistake, and the moment before it.")?;
        say(&format!("Everything happens in {}, with real files.", self.folder().display()))?;
        let shop = Shop::open(&self.shop)?;

        self.step("1. A shop has a database, in SQLite").await?;
        shop.take_orders(120)?;
        say(&format!("shop.db holds {}.", shop.books()?))?;

        self.step("2. It is protected: one command, no change to the application").await?;
        say("$ everwhen run shop.db          (for the tour, in this process)")?;
        let running = self.protect().await?;

        self.step("3. Business goes on; every commit is captured").await?;
        self.trade(&shop, 60).await?;
        self.make_durable(&running).await?;
        self.everwhen("status", &[]).await?;

        self.step("4. Someone forgets a WHERE").await?;
        let before = shop.books()?;
        let just_before = self.just_before().await;
        shop.forget_where()?;
        say(&format!("sql> DELETE FROM orders;        -- meant one order, took all {}", before.orders))?;
        say("Nobody notices: new orders keep coming in, on top of the loss.")?;
        self.trade(&shop, 15).await?;
        let after = shop.books()?;
        say(&format!("shop.db now holds {after}."))?;
        self.make_durable(&running).await?;

        self.step("5. Every commit is a restore point: here are those around the mistake").await?;
        let (from, to) = around(&running, just_before).await?;
        self.everwhen("points", &["--from", &from.to_string(), "--to", &to.to_string()]).await?;
        say("The one that changed several pages at once is the DELETE.")?;

        self.step("6. Back to just before it: into a new file, while the shop stays open").await?;
        let restored = self.folder().join("shop-before.db");
        let (at, to) = (just_before.to_string(), restored.to_string_lossy().into_owned());
        self.everwhen("restore", &["--at", &at, "--to", &to]).await?;
        self.compare(&restored, before, &shop, after)?;

        self.step("7. What it took").await?;
        self.accounts(&shop)?;
        running.stop().await;
        self.farewell()
    }

    fn folder(&self) -> &Path {
        self.shop.parent().unwrap_or(Path::new("/"))
    }

    async fn step(&self, title: &str) -> Result<(), Failure> {
        self.pause(2_500).await;
        say(&format!("\n{title}"))
    }

    async fn pause(&self, ms: u64) {
        if !self.fast {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
    }

    /// The daemon, as `everwhen run shop.db` would be, but with no door other than its socket.
    async fn protect(&self) -> Result<Running, Failure> {
        let mut told = Told { store: None, state: None, config: Config::default() };
        told.config.listen.api = Door::Off;
        told.config.listen.metrics = Door::Off;
        let running = Running::start(told, vec![DatabaseEntry::of(&self.shop)]).await?;
        self.make_durable(&running).await?;
        say(&format!("Its history grows in {}.", own_folder(&self.shop).display()))?;
        Ok(running)
    }

    async fn make_durable(&self, running: &Running) -> Result<(), Failure> {
        let request =
            v1::WaitDurableRequest { database: "shop".into(), timeout_ms: 30_000, ..Default::default() };
        running.daemon.wait_durable(request).await.map(drop)
    }

    /// Orders come in, about twenty a second.
    async fn trade(&self, shop: &Shop, orders: u32) -> Result<(), Failure> {
        for _ in 0..orders {
            shop.take_orders(1)?;
            tokio::time::sleep(Duration::from_millis(if self.fast { 5 } else { 50 })).await;
        }
        say(&format!("{orders} more orders, each a transaction of its own."))
    }

    /// A moment that lies after the last order and before the mistake.
    async fn just_before(&self) -> Timestamp {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let moment = Timestamp::now();
        tokio::time::sleep(Duration::from_millis(20)).await;
        moment
    }

    /// Shows a command and performs it.
    async fn everwhen(&self, verb: &str, options: &[&str]) -> Result<(), Failure> {
        let quoted: Vec<String> = options.iter().map(|option| self.as_typed(option)).collect();
        say(format!("$ everwhen {verb} shop.db {}", quoted.join(" ")).trim_end())?;
        let shop = self.shop.to_string_lossy().into_owned();
        let words = ["everwhen", verb, &shop].into_iter().chain(options.iter().copied());
        let cli = Cli::try_parse_from(words).map_err(|error| {
            Failure::new(ErrorKind::Failed, "the tour misspelt a command").caused_by(&error)
        })?;
        Box::pin(super::perform(cli.verb)).await
    }

    /// Paths in the folder are typed as in a shell that stands in it.
    fn as_typed(&self, option: &str) -> String {
        match Path::new(option).strip_prefix(self.folder()) {
            Ok(inside) => inside.display().to_string(),
            Err(_) => option.to_owned(),
        }
    }

    fn compare(&self, restored: &Path, before: Books, shop: &Shop, after: Books) -> Result<(), Failure> {
        let copy = Shop::read(restored)?;
        let (found, sound) = (copy.books()?, copy.is_sound()?);
        say(&format!("shop-before.db holds {found}. SQLite's integrity_check: {sound}."))?;
        say(&format!("shop.db is untouched and holds {}.", shop.books()?))?;
        if found != before || sound != "ok" || shop.books()? != after {
            return Err(Failure::new(ErrorKind::Failed, format!("expected {before}, found {found}"))
                .advise("this is a defect of Everwhen; please report it with the folder of the demo"));
        }
        say("That is to the cent what the books said just before the DELETE.")
    }

    fn accounts(&self, shop: &Shop) -> Result<(), Failure> {
        let database = shop.size()?;
        let history = size_of(&own_folder(&self.shop).join("db"));
        say(&format!(
            "shop.db: {}. Its whole history, every commit of it: {}.",
            size(database),
            size(history)
        ))?;
        say(&format!("The tour took {:.1} s.", self.began.elapsed().as_secs_f64()))
    }

    fn farewell(&self) -> Result<(), Failure> {
        say("\nNow with a database of your own:")?;
        say("  everwhen run app.db                                    keep running beside your application")?;
        say("  everwhen status app.db                                 is every commit safe?")?;
        say("  everwhen restore app.db --at '10 minutes ago' --to x.db")
    }
}

/// From the third-last restore point before a moment to the third after it.
async fn around(running: &Running, moment: Timestamp) -> Result<(Timestamp, Timestamp), Failure> {
    let request = v1::ListPointsRequest { database: "shop".into(), from: None, to: None };
    let parts: Vec<v1::ListPointsResponse> = running.daemon.points(request).try_collect().await?;
    let times =
        parts.iter().flat_map(|part| &part.points).filter_map(|point| point.time.as_ref().map(time_in));
    let (before, after): (Vec<_>, Vec<_>) = times.partition(|time| *time <= moment);
    let from = before.iter().rev().nth(2).or(before.first()).copied();
    let to = after.get(2).or(after.last()).copied();
    Ok((from.unwrap_or(moment), to.unwrap_or(moment)))
}

fn say(text: &str) -> Result<(), Failure> {
    print(&format!("{text}\n"))
}

/// Bytes of all files below a folder.
fn size_of(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size_of(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

/// The application: a shop that takes orders.
struct Shop {
    connection: Connection,
}

impl Shop {
    fn open(path: &Path) -> Result<Self, Failure> {
        let connection = Connection::open(path).map_err(wrong)?;
        connection.pragma_update(None, "journal_mode", "wal").map_err(wrong)?;
        let schema = "CREATE TABLE orders(id INTEGER PRIMARY KEY, customer TEXT, item TEXT, cents INTEGER)";
        connection.execute_batch(schema).map_err(wrong)?;
        Ok(Self { connection })
    }

    fn read(path: &Path) -> Result<Self, Failure> {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        Ok(Self { connection: Connection::open_with_flags(path, flags).map_err(wrong)? })
    }

    /// Each a transaction of its own.
    fn take_orders(&self, number: u32) -> Result<(), Failure> {
        let sql = "INSERT INTO orders(customer, item, cents) VALUES (\
                   'customer ' || (abs(random()) % 500), 'item ' || (abs(random()) % 90), abs(random()) % 9900 + 100)";
        for _ in 0..number {
            self.connection.execute(sql, []).map_err(wrong)?;
        }
        Ok(())
    }

    fn forget_where(&self) -> Result<(), Failure> {
        self.connection.execute("DELETE FROM orders", []).map(drop).map_err(wrong)
    }

    fn books(&self) -> Result<Books, Failure> {
        let sql = "SELECT count(*), coalesce(sum(cents), 0) FROM orders";
        self.connection
            .query_row(sql, [], |row| Ok(Books { orders: row.get(0)?, cents: row.get(1)? }))
            .map_err(wrong)
    }

    /// With what still lies in its log.
    fn size(&self) -> Result<u64, Failure> {
        let sql = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
        let bytes: i64 = self.connection.query_row(sql, [], |row| row.get(0)).map_err(wrong)?;
        Ok(u64::try_from(bytes).unwrap_or(0))
    }

    fn is_sound(&self) -> Result<String, Failure> {
        self.connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).map_err(wrong)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the form of map_err")]
fn wrong(error: rusqlite::Error) -> Failure {
    Failure::new(ErrorKind::Failed, "the demo's shop has a problem").caused_by(&error)
}

impl std::fmt::Display for Books {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} orders worth {}.{:02} euros", self.orders, self.cents / 100, self.cents % 100)
    }
}

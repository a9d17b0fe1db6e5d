//! What applications do: eight kinds of writers, deterministic by seed.
//!
//! They are made after those of the study that the format was chosen by (W1 to W8), so its figures can be compared.
//! `rows` says how large the starting database is; each kind takes about as many bytes a row as noted at it.

use rusqlite::{Connection, Transaction, params};

use crate::Outcome;
use crate::random::Random;

/// Kinds of writers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Events appended to a table with two indexes, one by time and one by user.
    Append,
    /// One row of a large table updated by key.
    PointUpdate,
    /// A mix after TPC-C: new orders, payments and deliveries over six tables.
    Orders,
    /// Jobs enqueued, claimed, and deleted.
    Queue,
    /// One field set in a JSON document of a few hundred bytes to 2 KiB.
    Json,
    /// Twenty thousand rows in one transaction.
    Bulk,
    /// Documents added to and deleted from an FTS5 index.
    FullText,
    /// Incompressible values of 8 to 120 KiB.
    Blobs,
}

impl Workload {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Append,
        Self::PointUpdate,
        Self::Orders,
        Self::Queue,
        Self::Json,
        Self::Bulk,
        Self::FullText,
        Self::Blobs,
    ];

    /// The ones with small transactions, as most applications have.
    pub const SMALL: [Self; 5] = [Self::Append, Self::PointUpdate, Self::Orders, Self::Queue, Self::Json];

    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Append => "W1 append",
            Self::PointUpdate => "W2 point update",
            Self::Orders => "W3 order entry",
            Self::Queue => "W4 job queue",
            Self::Json => "W5 JSON edits",
            Self::Bulk => "W6 bulk load",
            Self::FullText => "W7 FTS5",
            Self::Blobs => "W8 blobs",
        }
    }

    /// Rows for a starting database of 8 to 75 MB, as in the study.
    #[must_use]
    pub fn rows(self) -> u64 {
        match self {
            Self::Append => 80_000,
            Self::PointUpdate => 150_000,
            Self::Orders => 60_000,
            Self::Queue => 30_000,
            Self::Json => 50_000,
            Self::Bulk => 100,
            Self::FullText => 12_000,
            Self::Blobs => 250,
        }
    }

    /// Transactions that make some 100 MB of log.
    #[must_use]
    pub fn transactions(self) -> u64 {
        match self {
            Self::Append => 12_000,
            Self::PointUpdate => 20_000,
            Self::Orders => 3_000,
            Self::Queue => 10_000,
            Self::Json => 20_000,
            Self::Bulk => 6,
            Self::FullText => 2_500,
            Self::Blobs => 1_200,
        }
    }

    fn schema(self) -> &'static str {
        match self {
            Self::Append => {
                "CREATE TABLE event(id INTEGER PRIMARY KEY, at INTEGER, user TEXT, kind TEXT, payload TEXT);
                 CREATE INDEX event_at ON event(at); CREATE INDEX event_user ON event(user);"
            }
            Self::PointUpdate => {
                "CREATE TABLE account(id INTEGER PRIMARY KEY, owner TEXT, balance INTEGER, changed INTEGER, note TEXT);"
            }
            Self::Orders => ORDERS,
            Self::Queue => {
                "CREATE TABLE job(id INTEGER PRIMARY KEY, state INTEGER, due INTEGER, payload TEXT);
                 CREATE INDEX job_due ON job(state, due);"
            }
            Self::Json => "CREATE TABLE document(id INTEGER PRIMARY KEY, body TEXT);",
            Self::Bulk => {
                "CREATE TABLE reading(id INTEGER PRIMARY KEY, sensor TEXT, at INTEGER, value REAL, note TEXT);
                 CREATE INDEX reading_sensor ON reading(sensor, at);"
            }
            Self::FullText => "CREATE VIRTUAL TABLE article USING fts5(title, body);",
            Self::Blobs => "CREATE TABLE file(id INTEGER PRIMARY KEY, name TEXT, bytes BLOB);",
        }
    }
}

const ORDERS: &str = "
    CREATE TABLE district(id INTEGER PRIMARY KEY, next_order INTEGER, income INTEGER);
    CREATE TABLE customer(id INTEGER PRIMARY KEY, name TEXT, balance INTEGER, payments INTEGER, data TEXT);
    CREATE TABLE stock(id INTEGER PRIMARY KEY, quantity INTEGER, sold INTEGER, data TEXT);
    CREATE TABLE orders(id INTEGER PRIMARY KEY, district INTEGER, customer INTEGER, carrier INTEGER, lines INTEGER);
    CREATE INDEX orders_customer ON orders(customer, id);
    CREATE TABLE line(orders INTEGER, number INTEGER, item INTEGER, quantity INTEGER, amount INTEGER, info TEXT,
        PRIMARY KEY(orders, number)) WITHOUT ROWID;
    CREATE TABLE history(id INTEGER PRIMARY KEY, customer INTEGER, at INTEGER, amount INTEGER, data TEXT);";

/// A writer of one kind: its place in the sequence.
#[derive(Clone, Debug)]
pub struct Writer {
    workload: Workload,
    rows: u64,
    random: Random,
    clock: i64,
}

impl Writer {
    /// A writer whose starting database has so many rows.
    #[must_use]
    pub fn new(workload: Workload, rows: u64, seed: u64) -> Self {
        let random = Random::new(seed.wrapping_mul(31) + workload as u64);
        Self { workload, rows, random, clock: 1_795_219_200_000 }
    }

    /// Makes the starting database: tables and rows, in transactions of ten thousand.
    ///
    /// # Errors
    /// SQLite's.
    pub fn prepare(&mut self, connection: &mut Connection) -> Outcome<()> {
        connection.execute_batch(self.workload.schema())?;
        for first in (1..=self.rows).step_by(10_000) {
            let transaction = connection.transaction()?;
            for row in first..=self.rows.min(first + 9_999) {
                self.starting_row(&transaction, i64::try_from(row)?)?;
            }
            transaction.commit()?;
        }
        Ok(())
    }

    fn tick(&mut self) -> i64 {
        self.clock += i64::from(self.random.next() as u8) + 1;
        self.clock
    }

    fn starting_row(&mut self, tx: &Transaction<'_>, row: i64) -> rusqlite::Result<()> {
        match self.workload {
            Workload::Append => self.append(tx),
            Workload::PointUpdate => insert(
                tx,
                "INSERT INTO account VALUES (?1, ?2, ?3, ?4, ?5)",
                params![row, self.random.id(), self.random.row(1_000_000), self.clock, self.random.text(380)],
            ),
            Workload::Orders => self.orders_row(tx, row),
            Workload::Queue => self.enqueue(tx),
            Workload::Json => {
                insert(tx, "INSERT INTO document VALUES (?1, ?2)", params![row, self.document(row)])
            }
            Workload::Bulk => self.reading(tx),
            Workload::FullText => self.article(tx),
            Workload::Blobs => self.blob(tx),
        }
    }

    fn change(&mut self, tx: &Transaction<'_>) -> rusqlite::Result<()> {
        match self.workload {
            Workload::Append => self.append(tx),
            Workload::PointUpdate => {
                let (amount, at, row) = (self.random.row(1000), self.tick(), self.random.row(self.rows));
                let sql = "UPDATE account SET balance = balance + ?1, changed = ?2 WHERE id = ?3";
                insert(tx, sql, params![amount, at, row])
            }
            Workload::Orders => self.order_entry(tx),
            Workload::Queue => self.job(tx),
            Workload::Json => {
                let row = self.random.row(self.rows);
                let value = self.random.text(12);
                let path = format!("$.fields[{}].value", self.random.below(4));
                let sql = "UPDATE document SET body = json_set(body, ?1, ?2, '$.version', ?3) WHERE id = ?4";
                insert(tx, sql, params![path, value, self.tick(), row])
            }
            Workload::Bulk => (0..20_000).try_for_each(|_| self.reading(tx)),
            Workload::FullText => {
                self.article(tx)?;
                if self.random.below(4) == 0 {
                    let row = self.random.row(self.rows);
                    insert(tx, "DELETE FROM article WHERE rowid = ?1", params![row])?;
                }
                Ok(())
            }
            Workload::Blobs => self.blob(tx),
        }
    }

    fn append(&mut self, tx: &Transaction<'_>) -> rusqlite::Result<()> {
        let (user, kind) = (format!("user{:06}", self.random.below(20_000)), self.random.below(12));
        let bytes = 60 + self.random.below(80) as usize;
        let values = params![self.tick(), user, format!("kind{kind}"), self.random.text(bytes)];
        insert(tx, "INSERT INTO event(at, user, kind, payload) VALUES (?1, ?2, ?3, ?4)", values)
    }

    fn enqueue(&mut self, tx: &Transaction<'_>) -> rusqlite::Result<()> {
        let values = params![self.tick(), self.random.text(120)];
        insert(tx, "INSERT INTO job(state, due, payload) VALUES (0, ?1, ?2)", values)
    }

    /// Enqueues, claims or finishes a job, in equal parts: the queue keeps its length. Always changes something.
    fn job(&mut self, tx: &Transaction<'_>) -> rusqlite::Result<()> {
        let sql = match self.random.below(3) {
            0 => return self.enqueue(tx),
            1 => {
                "UPDATE job SET state = 1 WHERE id = (SELECT id FROM job WHERE state = 0 ORDER BY due LIMIT 1)"
            }
            _ => "DELETE FROM job WHERE id = (SELECT id FROM job WHERE state = 1 ORDER BY due LIMIT 1)",
        };
        if tx.prepare_cached(sql)?.execute([])? == 0 { self.enqueue(tx) } else { Ok(()) }
    }

    fn document(&mut self, row: i64) -> String {
        let mut fields = Vec::new();
        for number in 0..4 + self.random.below(12) {
            let value = self.random.text(30 + self.random.clone().below(60) as usize);
            fields.push(format!(r#"{{"name":"field{number}","value":"{value}"}}"#));
        }
        let (id, fields) = (self.random.id(), fields.join(","));
        format!(r#"{{"id":"{id}","number":{row},"version":{},"fields":[{fields}]}}"#, self.clock)
    }

    fn reading(&mut self, tx: &Transaction<'_>) -> rusqlite::Result<()> {
        let sensor = format!("sensor-{:05}", self.random.below(4_000));
        let value = self.random.below(1_000_000) as f64 / 997.0;
        let values = params![sensor, self.tick(), value, self.random.text(420)];
        insert(tx, "INSERT INTO reading(sensor, at, value, note) VALUES (?1, ?2, ?3, ?4)", values)
    }

    fn article(&mut self, tx: &Transaction<'_>) -> rusqlite::Result<()> {
        let body: Vec<String> =
            (0..60).map(|_| format!("{}{}", self.random.text(6).trim(), self.random.below(3_000))).collect();
        let values = params![self.random.text(40), body.join(" ")];
        insert(tx, "INSERT INTO article(title, body) VALUES (?1, ?2)", values)
    }

    fn blob(&mut self, tx: &Transaction<'_>) -> rusqlite::Result<()> {
        let bytes = 8_192 + self.random.below(112 * 1024) as usize;
        let values = params![self.random.id(), self.random.noise(bytes)];
        insert(tx, "INSERT INTO file(name, bytes) VALUES (?1, ?2)", values)
    }

    fn orders_row(&mut self, tx: &Transaction<'_>, row: i64) -> rusqlite::Result<()> {
        if row <= 10 {
            insert(tx, "INSERT INTO district VALUES (?1, 1, 0)", params![row])?;
        }
        let (name, data) = (self.random.text(20), self.random.text(420));
        insert(tx, "INSERT INTO customer VALUES (?1, ?2, 0, 0, ?3)", params![row, name, data])?;
        let (quantity, data) = (self.random.row(100), self.random.text(280));
        insert(tx, "INSERT INTO stock VALUES (?1, ?2, 0, ?3)", params![row, quantity, data])
    }

    /// 10 new orders to 10 payments and 1 delivery of ten orders.
    fn order_entry(&mut self, tx: &Transaction<'_>) -> rusqlite::Result<()> {
        let (district, customer) = (self.random.row(10), self.random.row(self.rows));
        match self.random.below(21) {
            0..=9 => self.new_order(tx, district, customer),
            10..=19 => {
                let amount = self.random.row(5000);
                insert(
                    tx,
                    "UPDATE district SET income = income + ?1 WHERE id = ?2",
                    params![amount, district],
                )?;
                let sql = "UPDATE customer SET balance = balance - ?1, payments = payments + 1 WHERE id = ?2";
                insert(tx, sql, params![amount, customer])?;
                let values = params![customer, self.tick(), amount, self.random.text(24)];
                insert(tx, "INSERT INTO history(customer, at, amount, data) VALUES (?1, ?2, ?3, ?4)", values)
            }
            _ => {
                let sql = "UPDATE orders SET carrier = ?1 WHERE id IN
                    (SELECT id FROM orders WHERE carrier IS NULL ORDER BY id LIMIT 10)";
                insert(tx, sql, params![self.random.row(10)])?;
                insert(tx, "UPDATE district SET income = income + 1 WHERE id = ?1", params![district])
            }
        }
    }

    fn new_order(&mut self, tx: &Transaction<'_>, district: i64, customer: i64) -> rusqlite::Result<()> {
        insert(tx, "UPDATE district SET next_order = next_order + 1 WHERE id = ?1", params![district])?;
        let lines = 5 + self.random.row(11) - 1;
        let sql = "INSERT INTO orders(district, customer, carrier, lines) VALUES (?1, ?2, NULL, ?3)";
        insert(tx, sql, params![district, customer, lines])?;
        let order = tx.last_insert_rowid();
        for number in 0..lines {
            let (item, quantity) = (self.random.row(self.rows), self.random.row(10));
            let sql =
                "UPDATE stock SET quantity = (quantity + 91 - ?1) % 100, sold = sold + ?1 WHERE id = ?2";
            insert(tx, sql, params![quantity, item])?;
            let values = params![order, number, item, quantity, quantity * 317, self.random.text(24)];
            insert(tx, "INSERT INTO line VALUES (?1, ?2, ?3, ?4, ?5, ?6)", values)?;
        }
        Ok(())
    }
}

/// Writes one transaction after another.
pub trait Steps {
    /// Writes and commits the next transaction.
    ///
    /// # Errors
    /// SQLite's, also when the database is busy; nothing was written then.
    fn step(&mut self, connection: &mut Connection) -> rusqlite::Result<()>;
}

impl Steps for Writer {
    fn step(&mut self, connection: &mut Connection) -> rusqlite::Result<()> {
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        self.change(&transaction)?;
        transaction.commit()
    }
}

/// What a busy application does: mostly small transactions of five kinds, now and then a text or a blob, all in one
/// database beside a large table of accounts.
#[derive(Clone, Debug)]
pub struct Mixed {
    random: Random,
    writers: Vec<(u64, Writer)>,
}

impl Mixed {
    /// Kinds with their shares of a thousand; the rest are point updates.
    const SHARES: [(Workload, u64); 6] = [
        (Workload::Append, 200),
        (Workload::Orders, 100),
        (Workload::Queue, 200),
        (Workload::Json, 150),
        (Workload::FullText, 8),
        (Workload::Blobs, 2),
    ];

    /// A writer beside `accounts` rows of point updates, which are there; the other tables it makes here, small.
    ///
    /// # Errors
    /// SQLite's.
    pub fn prepare(connection: &mut Connection, accounts: u64, seed: u64) -> Outcome<Self> {
        let mut writers = Vec::new();
        for (workload, share) in Self::SHARES {
            let mut writer = Writer::new(workload, workload.rows() / 20, seed);
            writer.prepare(connection)?;
            writers.push((share, writer));
        }
        writers.push((u64::MAX, Writer::new(Workload::PointUpdate, accounts, seed)));
        Ok(Self { random: Random::new(seed), writers })
    }
}

impl Steps for Mixed {
    fn step(&mut self, connection: &mut Connection) -> rusqlite::Result<()> {
        let mut draw = self.random.below(1000);
        for (share, writer) in &mut self.writers {
            if draw < *share {
                return writer.step(connection);
            }
            draw -= *share;
        }
        Ok(())
    }
}

fn insert(tx: &Transaction<'_>, sql: &str, values: impl rusqlite::Params) -> rusqlite::Result<()> {
    tx.prepare_cached(sql)?.execute(values).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(workload: Workload, seed: u64) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.db");
        let mut connection = Connection::open(&path).unwrap();
        let mut writer = Writer::new(workload, 50, seed);
        writer.prepare(&mut connection).unwrap();
        for _ in 0..if workload == Workload::Bulk { 1 } else { 30 } {
            writer.step(&mut connection).unwrap();
        }
        std::fs::read(path).unwrap()
    }

    #[test]
    fn the_same_seed_makes_the_same_database() {
        for workload in Workload::ALL {
            assert!(contents(workload, 1) == contents(workload, 1), "{workload:?}");
            assert!(contents(workload, 1) != contents(workload, 2), "{workload:?}");
        }
    }
}

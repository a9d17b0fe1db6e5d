//! Applications in processes of their own: the test binary runs itself again with one of these jobs.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;

const JOB: &str = "EVERWHEN_TEST_JOB";

/// A small generator, so that a run can be repeated from its seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

/// Starts this test binary as an application with a job: words separated by spaces, the path last.
pub fn start(job: &str, path: &Path) -> Child {
    command(job, path).spawn().unwrap()
}

/// The same, not started yet.
pub fn command(job: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["application_process", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(JOB, format!("{job} {}", path.display()))
        .stdout(Stdio::piped());
    command
}

/// The number that a finished application reports as `word=number`.
pub fn reported(child: Child, word: &str) -> u64 {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "the application failed");
    let text = String::from_utf8(output.stdout).unwrap();
    let found = text.split_whitespace().find_map(|part| part.strip_prefix(word)?.strip_prefix('='));
    found.unwrap_or_else(|| panic!("no {word} in {text}")).parse().unwrap()
}

/// What the test binary does when it was started as an application.
pub fn run_job() {
    let Ok(job) = std::env::var(JOB) else { return };
    let words: Vec<_> = job.splitn(4, ' ').collect();
    let (kind, amount, seed) = (words[0], words[1].parse::<u64>().unwrap(), words[2].parse::<u64>().unwrap());
    let path = Path::new(words[3]);
    match kind {
        "chaos" => chaos(path, Duration::from_millis(amount), seed),
        "checkpoints" => hostile_checkpoints(path, Duration::from_millis(amount), seed),
        "paced" => paced(path, amount, seed),
        "saturated" => saturated(path, amount),
        "checkpoint" => checkpoint(path, amount, ["full", "restart", "truncate"][seed as usize]),
        "empty" => empty(path, amount),
        "rewrite" => rewrite(path, amount),
        "capture" => capture(path, amount),
        _ => panic!("no such job: {kind}"),
    }
}

fn open(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(Duration::from_secs(20)).unwrap();
    connection
}

/// All sorts of transactions; reports how many commits were acknowledged.
fn chaos(path: &Path, time: Duration, seed: u64) {
    let mut dice = Dice::new(seed);
    let until = Instant::now() + time;
    let mut commits = 0;
    let mut connection = open(path);
    configure(&connection, &mut dice);
    while Instant::now() < until {
        if dice.below(40) == 0 {
            drop(connection);
            connection = open(path);
            configure(&connection, &mut dice);
        }
        let transaction =
            connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
        let before = transaction.query_row("select total_changes()", [], |row| row.get::<_, i64>(0)).unwrap();
        for _ in 0..=dice.below(40) {
            let text = "x".repeat(dice.below(1_500) as usize);
            transaction
                .execute("insert into t(b, c) values (?1, ?2)", (dice.below(1 << 40) as i64, text))
                .unwrap();
        }
        if dice.below(4) == 0 {
            transaction.execute("delete from t where a % 97 = ?1", [dice.below(97) as i64]).unwrap();
        }
        let after = transaction.query_row("select total_changes()", [], |row| row.get::<_, i64>(0)).unwrap();
        if dice.below(6) == 0 {
            transaction.rollback().unwrap();
        } else {
            transaction.commit().unwrap();
            commits += u64::from(after > before);
        }
        if dice.below(8) == 0 {
            std::thread::sleep(Duration::from_millis(dice.below(30)));
        }
    }
    println!("\ncommits={commits}");
}

fn configure(connection: &Connection, dice: &mut Dice) {
    let synchronous = ["off", "normal", "full"][dice.below(3) as usize];
    let autocheckpoint = [0, 5, 100, 1_000][dice.below(4) as usize];
    connection
        .execute_batch(&format!(
            "PRAGMA cache_size=8; PRAGMA synchronous={synchronous}; PRAGMA wal_autocheckpoint={autocheckpoint};"
        ))
        .unwrap();
}

fn hostile_checkpoints(path: &Path, time: Duration, seed: u64) {
    let mut dice = Dice::new(seed);
    let until = Instant::now() + time;
    let connection = open(path);
    connection.busy_timeout(Duration::from_millis(300)).unwrap();
    while Instant::now() < until {
        let mode = ["passive", "full", "restart", "truncate"][dice.below(4) as usize];
        let _ = connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()));
        std::thread::sleep(Duration::from_millis(dice.below(20)));
    }
    println!("\ndone=1");
}

/// 200 commits a second without any patience; reports how often SQLite said busy.
fn paced(path: &Path, commits: u64, _: u64) {
    let connection = open(path);
    connection.busy_timeout(Duration::ZERO).unwrap();
    connection.execute_batch("PRAGMA synchronous=NORMAL").unwrap();
    let started = Instant::now();
    let mut busy = 0;
    for number in 0..commits {
        let due = Duration::from_millis(5) * number as u32;
        std::thread::sleep(due.saturating_sub(started.elapsed()));
        while connection.execute("insert into t(b, c) values (1, ?1)", ["y".repeat(100)]).is_err() {
            busy += 1;
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        println!("\nreturned {} ", now.as_micros());
    }
    println!("\nbusy={busy} ");
}

/// Captures as a user who may only read, until so many commits have come; reports the length of the log at the end.
fn capture(path: &Path, commits: u64) {
    let options = super::SqliteOptions { hard_frames: Some(500), ..Default::default() };
    let mut rig = super::Rig::attach_with(path, options);
    std::fs::write(path.with_extension("attached"), b"").unwrap();
    rig.run_until(|rig| rig.model.commits.len() as u64 >= commits);
    assert!(rig.source.log_status().unwrap().read_only);
    let longest = rig.source.log_status().unwrap().frames;
    rig.settle_and_compare();
    println!("\ncommits={} frames={longest}", rig.model.commits.len());
}

/// As fast as it goes.
fn saturated(path: &Path, commits: u64) {
    let connection = open(path);
    connection.execute_batch("PRAGMA synchronous=NORMAL").unwrap();
    for _ in 0..commits {
        connection.execute("insert into t(b, c) values (1, 'some text')", []).unwrap();
    }
}

/// Rewrites the database and empties the log at once; reports how often that waited in vain. (While another checkpoint
/// runs, ours say, SQLite says busy without waiting.)
fn rewrite(path: &Path, rounds: u64) {
    let connection = open(path);
    connection.busy_timeout(Duration::from_secs(15)).unwrap();
    let mut stalled = 0;
    for round in 0..rounds as i64 {
        connection.execute("update t set c = ?1 where a % 50 = 1", [round]).unwrap();
        connection.execute_batch("vacuum; insert into t(b) values (randomblob(9000))").unwrap();
        let began = Instant::now();
        let busy: i64 =
            connection.query_row("PRAGMA wal_checkpoint(truncate)", [], |row| row.get(0)).unwrap();
        stalled += u32::from(busy != 0 && began.elapsed() > Duration::from_secs(10));
    }
    println!("\nstalled={stalled}");
}

/// Empties the log; reports how often it could not.
fn empty(path: &Path, rounds: u64) {
    let connection = open(path);
    let truncate = || connection.query_row("PRAGMA wal_checkpoint(truncate)", [], |row| row.get::<_, i64>(0));
    let failed: i64 = (0..rounds).map(|_| truncate().unwrap()).sum();
    println!("\nfailed={failed}");
}

/// A checkpoint after each commit that waits up to 20 s for readers; reports how often that did not suffice, or left
/// something in the log that is not in the file.
fn checkpoint(path: &Path, rounds: u64, mode: &str) {
    let connection = open(path);
    let mut failed = 0;
    for _ in 0..rounds {
        connection.execute("insert into t(b, c) values (1, 'some text')", []).unwrap();
        std::thread::sleep(Duration::from_millis(60));
        let (busy, log, moved) = connection
            .query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
            })
            .unwrap();
        failed += i64::from(busy != 0 || log != moved);
    }
    println!("\nfailed={failed}");
}

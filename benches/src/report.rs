//! What a question answers: tables for people, and everything measured as JSON.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Outcome;
use crate::measure::Sample;
use crate::world::World;

/// One table.
#[derive(Clone, Debug)]
pub struct Table {
    title: String,
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    #[must_use]
    pub fn new(title: &str, head: &[&str]) -> Self {
        let head = head.iter().map(|name| (*name).to_owned()).collect();
        Self { title: title.to_owned(), head, rows: Vec::new() }
    }

    /// Appends a row.
    pub fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule: Vec<String> = self.head.iter().map(|_| "---".to_owned()).collect();
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!("{}\n\n{}{}{rows}", self.title, line(&self.head), line(&rule))
    }
}

/// The answer to one question.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The question's name on the command line.
    pub name: &'static str,
    title: &'static str,
    tables: Vec<Table>,
    notes: Vec<String>,
    plots: Vec<(String, String)>,
    raw: Value,
    stamp: String,
    revision: String,
}

impl Answer {
    /// An answer without anything in it yet.
    #[must_use]
    pub fn new(name: &'static str, title: &'static str) -> Self {
        Self {
            name,
            title,
            tables: Vec::new(),
            notes: Vec::new(),
            plots: Vec::new(),
            raw: json!([]),
            stamp: String::new(),
            revision: String::new(),
        }
    }

    /// Appends a table.
    pub fn table(&mut self, table: Table) {
        self.tables.push(table);
    }

    /// Appends a sentence on how to read it.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Adds a plot, by its file name without extension.
    pub fn plot(&mut self, name: &str, svg: String) {
        self.plots.push((name.to_owned(), svg));
    }

    /// Keeps what was measured.
    pub fn raw(&mut self, value: Value) {
        if let Value::Array(all) = &mut self.raw {
            all.push(value);
        }
    }

    /// What was measured.
    #[must_use]
    pub fn measured(&self) -> &Value {
        &self.raw
    }

    /// Says when, how thoroughly, of which build, and beside what load of others it was measured.
    pub fn stamp(&mut self, world: &World, took: Duration, load: f64) {
        let now = everwhen_engine::time::Timestamp::now().to_string();
        let minute = now.get(..16).unwrap_or(&now).replace('T', " ");
        self.stamp = format!(
            "A {} run of {} that ended at {minute} UTC and took {:.0} s; load average before it {load:.1}.",
            world.scale.name(),
            world.revision,
            took.as_secs_f64()
        );
        self.revision.clone_from(&world.revision);
    }

    /// As text for the README and the terminal.
    #[must_use]
    pub fn markdown(&self, plots_in: &str) -> String {
        let mut text = format!("### {}\n\n", self.title);
        for table in &self.tables {
            let _ = writeln!(text, "{}", table.markdown());
        }
        for (name, _) in &self.plots {
            let _ = writeln!(text, "![{name}]({plots_in}/{name}.svg)\n");
        }
        for note in &self.notes {
            let _ = writeln!(text, "{note}\n");
        }
        if !self.stamp.is_empty() {
            let _ = writeln!(text, "_{}_\n", self.stamp);
        }
        text
    }

    /// Writes what was measured to `NAME.json`, and its plots.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path, machine: &str) -> Outcome<()> {
        std::fs::create_dir_all(folder)?;
        let all = json!({
            "question": self.name, "machine": machine, "revision": self.revision, "run": self.stamp,
            "measured": self.raw,
        });
        let text = serde_json::to_string_pretty(&all)? + "\n";
        std::fs::write(folder.join(format!("{}.json", self.name)), text)?;
        for (name, svg) in &self.plots {
            std::fs::write(folder.join(format!("{name}.svg")), svg)?;
        }
        Ok(())
    }
}

/// Looks for the markers of a question in the README: better now than after an hour.
///
/// # Errors
/// When the file cannot be read, or has no such markers.
pub fn has_place_in_readme(readme: &Path, name: &str) -> Outcome<()> {
    let text = read(readme)?;
    replace_between(&text, name, "").map(drop).ok_or_else(|| no_markers(readme, name).into())
}

fn read(readme: &Path) -> Outcome<String> {
    std::fs::read_to_string(readme).map_err(|error| format!("{}: {error}", readme.display()).into())
}

fn no_markers(readme: &Path, name: &str) -> String {
    format!("{} has no markers for '{name}'", readme.display())
}

/// Replaces what stands between the markers of a question in the README.
///
/// # Errors
/// When the file cannot be read or written, or has no such markers.
pub fn put_into_readme(readme: &Path, name: &str, text: &str) -> Outcome<()> {
    let before = read(readme)?;
    let after = replace_between(&before, name, text).ok_or_else(|| no_markers(readme, name))?;
    Ok(std::fs::write(readme, after)?)
}

fn replace_between(before: &str, name: &str, text: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- begin {name} -->"), format!("<!-- end {name} -->"));
    let from = before.find(&begin)? + begin.len();
    let to = from + before.get(from..)?.find(&end)?;
    Some(format!("{}\n\n{}\n\n{}", before.get(..from)?, text.trim(), before.get(to..)?))
}

/// The machine in a line (processor, cores, memory, system, file system of the folder), and what is measured on it.
#[must_use]
pub fn machine(world: &World) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let cpu = field(&read("/proc/cpuinfo"), "model name");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field(&read("/proc/meminfo"), "MemTotal").replace(" kB", "").parse::<u64>().unwrap_or(0);
    let gib = memory as f64 / f64::from(1 << 20);
    let system = read("/proc/sys/kernel/osrelease");
    let files = file_system(&world.folder);
    let peer = world.litestream.as_deref().map_or("no litestream".into(), |path| {
        format!("litestream {}", version(path, "version").trim_start_matches('v'))
    });
    format!(
        "{cpu}, {cores} cores, {gib:.0} GiB, Linux {}, {files}; {}; {peer}; SQLite {} in the writers.{}",
        system.trim(),
        version(&world.everwhen, "--version"),
        rusqlite::version(),
        if cfg!(debug_assertions) { " A debug build: its figures mean nothing." } else { "" }
    )
}

/// What the scheduler has had to do in the last minute, of us and others: the load average.
#[must_use]
pub fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}

fn version(program: &Path, argument: &str) -> String {
    let output = Command::new(program).arg(argument).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("of unknown version").trim().to_owned()
}

/// The commit that what we measure is built from; with `-dirty` when the sources differ from it. What a run writes
/// itself, the README and the results, makes nothing dirty.
#[must_use]
pub fn revision() -> String {
    let commit = git(&["rev-parse", "--short", "HEAD"]);
    let sources = [":/", ":(top,exclude)benches/README.md", ":(top,exclude)benches/results"];
    let changed = git(&[&["status", "--porcelain", "--untracked-files=no", "--"], &sources[..]].concat());
    match (commit.is_empty(), changed.is_empty()) {
        (true, _) => "unknown revision".to_owned(),
        (_, true) => commit,
        (_, false) => format!("{commit}-dirty"),
    }
}

fn git(arguments: &[&str]) -> String {
    let output = Command::new("git").current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

fn file_system(folder: &Path) -> String {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let mut best = (0, "?".to_owned());
    for mount in mounts.lines() {
        let mut fields = mount.split(' ').skip(1);
        if let (Some(at), Some(kind)) = (fields.next(), fields.next())
            && folder.starts_with(at)
            && at.len() >= best.0
        {
            best = (at.len(), kind.to_owned());
        }
    }
    best.1
}

/// Bytes as people read them.
#[must_use]
pub fn bytes(count: u64) -> String {
    match count {
        0..10_000 => format!("{count} B"),
        10_000..10_000_000 => format!("{:.0} KB", count as f64 / 1e3),
        _ => format!("{:.0} MB", count as f64 / 1e6),
    }
}

/// Milliseconds as people read them.
#[must_use]
pub fn millis(value: f64) -> String {
    match value {
        value if value.is_nan() => "-".into(),
        value if value < 1.0 => format!("{value:.3} ms"),
        value if value < 10.0 => format!("{value:.2} ms"),
        _ => format!("{value:.0} ms"),
    }
}

/// A median in milliseconds with the range of its rounds, the unit once.
#[must_use]
pub fn millis_of(rounds: &Sample) -> String {
    let number = |value| millis(value).trim_end_matches(" ms").to_owned();
    rounds.with_spread(number) + if rounds.is_empty() { "" } else { " ms" }
}

/// Bytes as MiB, without the unit.
#[must_use]
pub fn mib(bytes: f64) -> String {
    let mib = bytes / MIB;
    if mib < 10.0 { format!("{mib:.1}") } else { format!("{mib:.0}") }
}

/// Bytes of a MiB.
pub const MIB: f64 = 1_048_576.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_takes_the_place_of_the_one_before() {
        let before = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n<!-- begin y --><!-- end y -->\n";
        let after = replace_between(before, "x", "new\n").unwrap();
        assert_eq!(
            after,
            "a\n<!-- begin x -->\n\nnew\n\n<!-- end x -->\nb\n<!-- begin y --><!-- end y -->\n"
        );
        assert_eq!(replace_between(&after, "x", "new\n").unwrap(), after);
        assert!(replace_between(before, "z", "").is_none());
    }
}

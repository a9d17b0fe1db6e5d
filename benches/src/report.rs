//! What a question answers: tables for people, and everything measured as JSON.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::Outcome;

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
}

impl Answer {
    /// An answer without anything in it yet.
    #[must_use]
    pub fn new(name: &'static str, title: &'static str) -> Self {
        Self { name, title, tables: Vec::new(), notes: Vec::new(), plots: Vec::new(), raw: json!([]) }
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
        text
    }

    /// Writes what was measured to `NAME.json`, and its plots.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path, machine: &str) -> Outcome<()> {
        std::fs::create_dir_all(folder)?;
        let all = json!({ "question": self.name, "machine": machine, "measured": self.raw });
        let text = serde_json::to_string_pretty(&all)? + "\n";
        std::fs::write(folder.join(format!("{}.json", self.name)), text)?;
        for (name, svg) in &self.plots {
            std::fs::write(folder.join(format!("{name}.svg")), svg)?;
        }
        Ok(())
    }
}

/// Replaces what stands between the markers of a question in the README.
///
/// # Errors
/// When the file cannot be read or written, or has no such markers.
pub fn put_into_readme(readme: &Path, name: &str, text: &str) -> Outcome<()> {
    let before = std::fs::read_to_string(readme)?;
    let after = replace_between(&before, name, text)
        .ok_or_else(|| format!("{} has no markers for '{name}'", readme.display()))?;
    Ok(std::fs::write(readme, after)?)
}

fn replace_between(before: &str, name: &str, text: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- begin {name} -->"), format!("<!-- end {name} -->"));
    let from = before.find(&begin)? + begin.len();
    let to = from + before.get(from..)?.find(&end)?;
    Some(format!("{}\n\n{}\n\n{}", before.get(..from)?, text.trim(), before.get(to..)?))
}

/// The machine in a line: processor, cores, memory, system, file system of `folder`.
#[must_use]
pub fn machine(folder: &Path) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let cpu = field(&read("/proc/cpuinfo"), "model name");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field(&read("/proc/meminfo"), "MemTotal").replace(" kB", "").parse::<u64>().unwrap_or(0);
    let system = read("/proc/sys/kernel/osrelease");
    let gib = memory as f64 / f64::from(1 << 20);
    format!(
        "{cpu}, {cores} cores, {gib:.0} GiB, Linux {}, {} on {}",
        system.trim(),
        file_system(folder),
        folder.display()
    )
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

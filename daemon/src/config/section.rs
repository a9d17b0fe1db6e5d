//! Reads the tables of a TOML document key by key, so that a mistake is told with its line, what was expected, what
//! was found, and for an unknown key the one that was probably meant.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One thing wrong in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Counted from 1.
    pub(crate) line: usize,
    /// What is wrong, with what was expected.
    pub(crate) message: String,
}

/// A document being read, and what was found wrong in it so far.
pub(crate) struct Document<'t> {
    text: &'t str,
    /// Relative paths in the document begin here.
    folder: PathBuf,
    problems: RefCell<Vec<Problem>>,
}

impl<'t> Document<'t> {
    pub(crate) fn new(text: &'t str, folder: &Path) -> Self {
        Self { text, folder: folder.to_owned(), problems: RefCell::default() }
    }

    /// Notes a problem at a byte offset of the text.
    pub(crate) fn problem(&self, offset: usize, message: String) {
        let before = self.text.as_bytes().iter().take(offset);
        let line = before.filter(|byte| **byte == b'\n').count() + 1;
        self.problems.borrow_mut().push(Problem { line, message });
    }

    /// All problems, in the order of their lines.
    pub(crate) fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.line);
        problems
    }
}

/// One table of the document. Take the known keys, then [`Section::finish`].
pub(crate) struct Section<'t> {
    document: &'t Document<'t>,
    /// For messages: `[flush]`; empty for the top.
    name: String,
    /// Where it begins, for what is missing in it.
    at: usize,
    table: &'t DeTable<'t>,
    taken: Vec<&'static str>,
}

impl<'t> Section<'t> {
    /// The top of a document.
    pub(crate) fn top(document: &'t Document<'t>, table: &'t DeTable<'t>) -> Self {
        Self::new(document, String::new(), 0, table)
    }

    fn new(document: &'t Document<'t>, name: String, at: usize, table: &'t DeTable<'t>) -> Self {
        Self { document, name, at, table, taken: Vec::new() }
    }

    fn take(&mut self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.taken.push(key);
        self.table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    fn expected(&self, key: &str, expected: &str, value: &Spanned<DeValue<'_>>) {
        let found = value.get_ref().type_str();
        self.document
            .problem(value.span().start, format!("{}: expected {expected}, found {found}", self.place(key)));
    }

    fn place(&self, key: &str) -> String {
        if self.name.is_empty() { format!("'{key}'") } else { format!("'{key}' in {}", self.name) }
    }

    /// A text, read by `read`.
    pub(crate) fn parsed<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.take(key)?;
        let Some(text) = value.get_ref().as_str() else {
            self.expected(key, expected, value);
            return None;
        };
        read(text)
            .map_err(|why| self.document.problem(value.span().start, format!("{}: {why}", self.place(key))))
            .ok()
    }

    /// A text that is not empty.
    pub(crate) fn text(&mut self, key: &'static str) -> Option<String> {
        self.parsed(key, "a text in quotes", |text| {
            if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) }
        })
    }

    /// A path; a relative one begins at the configuration file's folder.
    pub(crate) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        let folder = self.document.folder.clone();
        self.text(key).map(|text| folder.join(text))
    }

    /// `true` or `false`.
    pub(crate) fn switch(&mut self, key: &'static str) -> Option<bool> {
        let value = self.take(key)?;
        let switch = value.get_ref().as_bool();
        if switch.is_none() {
            self.expected(key, "true or false", value);
        }
        switch
    }

    /// A size: a text like "64MiB" or a whole number of bytes.
    pub(crate) fn size(&mut self, key: &'static str) -> Option<u64> {
        let value = self.take(key)?;
        let read = match value.get_ref() {
            DeValue::String(text) => super::units::size(text),
            DeValue::Integer(number) => super::units::size(number.as_str()),
            _ => {
                self.expected(key, "a size like \"64MiB\"", value);
                return None;
            }
        };
        read.map_err(|why| self.document.problem(value.span().start, format!("{}: {why}", self.place(key))))
            .ok()
    }

    /// A whole number from 1 on, or "off", which is `Some(None)`.
    pub(crate) fn count_or_off(&mut self, key: &'static str) -> Option<Option<u32>> {
        let value = self.take(key)?;
        let count = match value.get_ref() {
            DeValue::String(text) if text == "off" => Some(None),
            DeValue::Integer(number) => number.as_str().parse().ok().filter(|count| *count > 0).map(Some),
            _ => None,
        };
        if count.is_none() {
            self.expected(key, "a whole number from 1 on, or \"off\"", value);
        }
        count
    }

    /// The sub-table of this name.
    pub(crate) fn table(&mut self, key: &'static str) -> Option<Section<'t>> {
        let value = self.take(key)?;
        match value.get_ref() {
            DeValue::Table(table) => {
                Some(Section::new(self.document, format!("[{key}]"), value.span().start, table))
            }
            _ => {
                self.expected(key, &format!("a table [{key}]"), value);
                None
            }
        }
    }

    /// The sub-tables of `[key.NAME]`, with their names.
    pub(crate) fn named_tables(&mut self, key: &'static str) -> Vec<(String, Section<'t>)> {
        let Some(section) = self.table(key) else { return Vec::new() };
        let mut tables = Vec::new();
        for (name, value) in section.table {
            let name = name.get_ref().to_string();
            match value.get_ref() {
                DeValue::Table(table) => {
                    let place = format!("[{key}.{name}]");
                    tables.push((name, Section::new(self.document, place, value.span().start, table)));
                }
                _ => section.expected(&name, &format!("a table [{key}.{name}]"), value),
            }
        }
        tables
    }

    /// The sub-tables of `[[key]]`.
    pub(crate) fn table_list(&mut self, key: &'static str) -> Vec<Section<'t>> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let DeValue::Array(list) = value.get_ref() else {
            self.expected(key, &format!("tables [[{key}]]"), value);
            return Vec::new();
        };
        let mut tables = Vec::new();
        for item in list.iter() {
            match item.get_ref() {
                DeValue::Table(table) => {
                    tables.push(Section::new(self.document, format!("[[{key}]]"), item.span().start, table));
                }
                _ => self.expected(key, &format!("tables [[{key}]]"), item),
            }
        }
        tables
    }

    /// Notes a problem with a key of this table, at its value; at the table when it is missing.
    pub(crate) fn complain(&self, key: &str, why: &str) {
        let at = self
            .table
            .iter()
            .find(|(name, _)| name.get_ref() == key)
            .map_or(self.at, |(_, value)| value.span().start);
        self.document.problem(at, format!("{}: {why}", self.place(key)));
    }

    /// Every key that was not taken is unknown.
    pub(crate) fn finish(self) {
        for (name, _) in self.table {
            let key: &str = name.get_ref();
            if self.taken.contains(&key) {
                continue;
            }
            let within =
                if self.name.is_empty() { "at the top".to_owned() } else { format!("in {}", self.name) };
            let hint = match super::suggest::nearest(key, &self.taken) {
                Some(meant) => format!("did you mean '{meant}'?"),
                None => format!("known are {}", self.taken.join(", ")),
            };
            self.document.problem(name.span().start, format!("unknown key '{key}' {within}: {hint}"));
        }
    }
}

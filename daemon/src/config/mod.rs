//! The configuration file: one TOML document, checked whole when it is loaded.
//!
//! Every problem is told at once, with its line. Unknown keys are refused: a misspelt key must not silently leave a
//! database unprotected. The shape, with all keys and their defaults, is in [`EXAMPLE`], which a test loads.

mod section;
pub(crate) mod suggest;
pub(crate) mod units;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use everwhen_engine::capture::sqlite::SqliteOptions;
use everwhen_engine::error::{ErrorKind, Explain};
use toml::de::DeTable;

use section::{Document, Problem, Section};

/// Every key there is, with its default. Printed by `everwhen run --help`.
pub(crate) const EXAMPLE: &str = r#"store = "file:///var/backups/everwhen"   # or s3://bucket/prefix, gs://, az://
state = "/var/lib/everwhen"              # default: ~/.local/state/everwhen

[listen]
api = "127.0.0.1:7437"                   # gRPC; "off" for none
socket = "/run/everwhen/api.sock"        # besides api.sock in the state folder
metrics = "127.0.0.1:7438"               # Prometheus, health; "off" for none
beyond_loopback = false                  # true: others may reach the two above

[flush]
interval = "1s"                          # under load, one segment per interval
segment = "1MiB"                         # a segment this large is put at once
queue = "16MiB"                          # memory for what waits for the store
spool = "1GiB"                           # disk for it, when the store is away

[key]                                    # for an encrypted repository: one of
file = "/etc/everwhen/repository.key"    # or environment = "…", command = "…"

[class.production]
retention = "28d"                        # for now: a base each half (no expiry)

[[database]]
path = "/srv/app/app.db"
name = "app"                             # default: the file's, less extension
class = "production"
convert_to_wal = false                   # true: switch it to WAL mode for you
hard_frames = 8000                       # the longest log, or "off" for any
allow_network_file_system = false        # true: all users are on this machine
"#;

/// A whole configuration. Everything is optional in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// The file it was read from.
    pub(crate) path: Option<PathBuf>,
    /// The repository's URL or path.
    pub(crate) store: Option<String>,
    /// The state folder.
    pub(crate) state: Option<PathBuf>,
    /// Where to listen.
    pub(crate) listen: Listen,
    /// How captured commits travel.
    pub(crate) flush: Flush,
    /// Where the repository's key comes from.
    pub(crate) key: Option<KeyEntry>,
    /// Classes by name; always has the built-in ones.
    pub(crate) classes: BTreeMap<String, Class>,
    /// What to protect.
    pub(crate) databases: Vec<DatabaseEntry>,
}

/// `[listen]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listen {
    /// The gRPC server.
    pub(crate) api: Door,
    /// A unix socket besides the one in the state folder.
    pub(crate) socket: Option<PathBuf>,
    /// The metrics server.
    pub(crate) metrics: Door,
    /// Whether addresses beyond loopback are allowed.
    pub(crate) beyond_loopback: bool,
}

/// A TCP address to listen on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Door {
    /// Nobody said: the default port, and no harm if it is taken.
    #[default]
    Implicit,
    /// Asked for: must be had.
    At(SocketAddr),
    /// Asked to stay shut.
    Off,
}

/// Reads "127.0.0.1:7437" or "off".
pub(crate) fn door(text: &str) -> Result<Door, String> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(Door::Off);
    }
    text.parse()
        .map(Door::At)
        .map_err(|_| format!("'{text}' is not ADDRESS:PORT (like 127.0.0.1:7437) or \"off\""))
}

/// `[flush]`. What is absent is the engine's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flush {
    /// Under load, one segment per interval.
    pub(crate) interval: Option<Duration>,
    /// A segment of this many bytes is put at once.
    pub(crate) segment_bytes: Option<u64>,
    /// Memory for waiting segments.
    pub(crate) queue_bytes: Option<u64>,
    /// Disk for waiting segments.
    pub(crate) spool_bytes: Option<u64>,
}

/// `[key]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeyEntry {
    /// A file that holds it.
    File(PathBuf),
    /// An environment variable that holds it.
    Environment(String),
    /// A command that prints it.
    Command(String),
}

/// `[class.NAME]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Class {
    /// How far back every commit stays restorable.
    pub(crate) retention: Duration,
    /// Whether databases of this class are captured at all.
    pub(crate) captured: bool,
}

/// `[[database]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DatabaseEntry {
    /// The database's file.
    pub(crate) path: PathBuf,
    /// Its name; from the path if not given.
    pub(crate) name: Option<String>,
    /// Its class.
    pub(crate) class: String,
    /// How it is captured.
    pub(crate) sqlite: SqliteOptions,
}

impl DatabaseEntry {
    /// The class of a database when nobody says.
    pub(crate) const DEFAULT_CLASS: &str = "production";

    /// A database of the default class, named after its file.
    pub(crate) fn of(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            name: None,
            class: Self::DEFAULT_CLASS.into(),
            sqlite: SqliteOptions::default(),
        }
    }

    /// The entry as it stands in a file.
    pub(crate) fn to_toml(&self) -> String {
        let mut text = String::from("\n[[database]]\n");
        let mut line = |key: &str, value: toml::Value| text.push_str(&format!("{key} = {value}\n"));
        line("path", toml::Value::String(self.path.to_string_lossy().into_owned()));
        if let Some(name) = &self.name {
            line("name", toml::Value::String(name.clone()));
        }
        line("class", toml::Value::String(self.class.clone()));
        let SqliteOptions { convert_to_wal, hard_frames, allow_network_file_system, .. } = self.sqlite;
        line("convert_to_wal", toml::Value::Boolean(convert_to_wal));
        line("hard_frames", hard_frames.map_or_else(|| "off".into(), |frames| i64::from(frames).into()));
        line("allow_network_file_system", toml::Value::Boolean(allow_network_file_system));
        text
    }

    /// Its name: as given, or the file's name without extension.
    pub(crate) fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| {
            self.path
                .file_stem()
                .map_or_else(|| "database".into(), |stem| stem.to_string_lossy().into_owned())
        })
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It does not say anything usable.
    #[error("the configuration cannot be used:\n{}", problems.iter().map(|p| in_lines(path, p)).collect::<Vec<_>>().join("\n"))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, in the order of lines.
        problems: Vec<Problem>,
    },
}

fn in_lines(path: &Path, problem: &Problem) -> String {
    format!("  {}:{}: {}", path.display(), problem.line, problem.message)
}

impl Explain for ConfigError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Usage
    }
    fn advice(&self) -> Option<String> {
        Some(match self {
            Self::Invalid { .. } => "`everwhen run --help` shows every key with its default".to_owned(),
            Self::Read { .. } => "check the path given with --config or EVERWHEN_CONFIG".to_owned(),
        })
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            path: None,
            store: None,
            state: None,
            listen: Listen::default(),
            flush: Flush::default(),
            key: None,
            classes: built_in_classes(),
            databases: Vec::new(),
        }
    }
}

fn built_in_classes() -> BTreeMap<String, Class> {
    let days = |days: u64| Duration::from_secs(days * 86_400);
    [("production", days(28), true), ("sandbox", days(7), true), ("trial", Duration::ZERO, false)]
        .map(|(name, retention, captured)| (name.to_owned(), Class { retention, captured }))
        .into()
}

impl Config {
    /// Loads and checks a file.
    pub(crate) fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let folder = absolute.parent().unwrap_or(Path::new("/"));
        Self::parse(&text, folder)
            .map(|config| Self { path: Some(absolute.clone()), ..config })
            .map_err(|problems| ConfigError::Invalid { path: path.to_owned(), problems })
    }

    /// Loads a file with nothing but `[[database]]` tables. Their classes may be any: the configuration that knows
    /// them may be another one next time.
    pub(crate) fn load_list(path: &Path) -> Result<Vec<DatabaseEntry>, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse_list(&text, path.parent().unwrap_or(Path::new("/")))
            .map_err(|problems| ConfigError::Invalid { path: path.to_owned(), problems })
    }

    /// Reads such a list; relative paths begin at `folder`.
    pub(crate) fn parse_list(text: &str, folder: &Path) -> Result<Vec<DatabaseEntry>, Vec<Problem>> {
        let document = Document::new(text, folder);
        let (table, errors) = DeTable::parse_recoverable(text);
        note_syntax(&document, &errors);
        let mut entries: Vec<DatabaseEntry> = Vec::new();
        let mut top = Section::top(&document, table.get_ref());
        for section in top.table_list("database") {
            let entry = read_database(section, &entries, None);
            entries.extend(entry);
        }
        top.finish();
        match document.into_problems() {
            problems if problems.is_empty() => Ok(entries),
            problems => Err(problems),
        }
    }

    /// Reads a document whose relative paths begin at `folder`.
    pub(crate) fn parse(text: &str, folder: &Path) -> Result<Self, Vec<Problem>> {
        let document = Document::new(text, folder);
        let (table, errors) = DeTable::parse_recoverable(text);
        note_syntax(&document, &errors);
        let config = read(Section::top(&document, table.get_ref()), folder);
        match document.into_problems() {
            problems if problems.is_empty() => Ok(config),
            problems => Err(problems),
        }
    }
}

fn note_syntax(document: &Document<'_>, errors: &[toml::de::Error]) {
    for error in errors {
        document.problem(error.span().map_or(0, |span| span.start), error.message().to_owned());
    }
}

fn read(mut top: Section<'_>, folder: &Path) -> Config {
    let mut config = Config {
        store: top.text("store").map(|store| store_from(folder, store)),
        state: top.path("state"),
        ..Config::default()
    };
    if let Some(section) = top.table("listen") {
        config.listen = read_listen(section);
    }
    if let Some(section) = top.table("flush") {
        config.flush = read_flush(section);
    }
    if let Some(section) = top.table("key") {
        config.key = read_key(section);
    }
    for (name, section) in top.named_tables("class") {
        let class = read_class(section, config.classes.get(&name).copied());
        config.classes.extend(class.map(|class| (name, class)));
    }
    for section in top.table_list("database") {
        let entry = read_database(section, &config.databases, Some(&config.classes));
        config.databases.extend(entry);
    }
    top.finish();
    config
}

/// A store without a scheme is a path, and a relative path begins at the configuration's folder.
fn store_from(folder: &Path, store: String) -> String {
    if store.contains("://") { store } else { folder.join(store).to_string_lossy().into_owned() }
}

fn read_listen(mut section: Section<'_>) -> Listen {
    let expected = "an address like \"127.0.0.1:7437\" or \"off\"";
    let listen = Listen {
        api: section.parsed("api", expected, door).unwrap_or_default(),
        socket: section.path("socket"),
        metrics: section.parsed("metrics", expected, door).unwrap_or_default(),
        beyond_loopback: section.switch("beyond_loopback").unwrap_or(false),
    };
    section.finish();
    listen
}

fn read_flush(mut section: Section<'_>) -> Flush {
    let flush = Flush {
        interval: section.parsed("interval", "a duration like \"1s\"", |text| {
            let interval = units::duration(text)?;
            let sane = (Duration::from_millis(10)..=Duration::from_secs(3600)).contains(&interval);
            if sane { Ok(interval) } else { Err(format!("'{text}' is not between 10ms and 1h")) }
        }),
        segment_bytes: section.size("segment"),
        queue_bytes: section.size("queue"),
        spool_bytes: section.size("spool"),
    };
    for (key, size) in
        [("segment", flush.segment_bytes), ("queue", flush.queue_bytes), ("spool", flush.spool_bytes)]
    {
        if size.is_some_and(|size| size < 64 << 10) {
            section.complain(key, "expected at least 64KiB");
        }
    }
    section.finish();
    flush
}

fn read_key(mut section: Section<'_>) -> Option<KeyEntry> {
    let file = section.path("file").map(KeyEntry::File);
    let environment = section.text("environment").map(KeyEntry::Environment);
    let command = section.text("command").map(KeyEntry::Command);
    let mut given = [file, environment, command].into_iter().flatten();
    let (key, more) = (given.next(), given.next());
    if key.is_none() || more.is_some() {
        section.complain("file", "expected exactly one of file, environment, command");
    }
    section.finish();
    key
}

fn read_class(mut section: Section<'_>, built_in: Option<Class>) -> Option<Class> {
    let retention = section.parsed("retention", "a duration like \"28d\"", |text| {
        let retention = units::duration(text)?;
        if retention.is_zero() { Err("expected more than 0".to_owned()) } else { Ok(retention) }
    });
    if built_in.is_some_and(|class| !class.captured) {
        section.complain("retention", "class 'trial' is not captured and has no retention");
    } else if retention.is_none() && built_in.is_none() {
        section.complain("retention", "a class of your own needs one, like \"28d\"");
    }
    section.finish();
    Some(Class { captured: true, retention: retention.or(built_in.map(|class| class.retention))? })
}

/// Checks a class by name; gives the name.
pub(crate) fn class_named(name: &str, classes: &BTreeMap<String, Class>) -> Result<String, String> {
    if classes.contains_key(name) {
        return Ok(name.to_owned());
    }
    let known: Vec<&str> = classes.keys().map(String::as_str).collect();
    Err(match suggest::nearest(name, &known) {
        Some(meant) => format!("no class '{name}': did you mean '{meant}'?"),
        None => format!("no class '{name}': known are {}", known.join(", ")),
    })
}

fn read_database(
    mut section: Section<'_>,
    earlier: &[DatabaseEntry],
    classes: Option<&BTreeMap<String, Class>>,
) -> Option<DatabaseEntry> {
    let path = section.path("path");
    if path.is_none() {
        section.complain("path", "each [[database]] needs the path of its file");
    }
    let class = section.parsed("class", "the name of a class", |name| match classes {
        Some(classes) => class_named(name, classes),
        None => Ok(name.to_owned()),
    });
    let entry = path.map(|path| DatabaseEntry {
        name: section.text("name"),
        class: class.unwrap_or_else(|| DatabaseEntry::DEFAULT_CLASS.into()),
        sqlite: read_sqlite(&mut section),
        path,
    });
    if let Some(entry) = &entry
        && earlier.iter().any(|other| other.path == entry.path || other.name() == entry.name())
    {
        section
            .complain("path", &format!("'{}' has the path or the name of an earlier database", entry.name()));
    }
    section.finish();
    entry
}

/// How a database is captured: the keys of its table that are about SQLite.
fn read_sqlite(section: &mut Section<'_>) -> SqliteOptions {
    let default = SqliteOptions::default();
    SqliteOptions {
        convert_to_wal: section.switch("convert_to_wal").unwrap_or(default.convert_to_wal),
        hard_frames: section.count_or_off("hard_frames").unwrap_or(default.hard_frames),
        allow_network_file_system: section
            .switch("allow_network_file_system")
            .unwrap_or(default.allow_network_file_system),
        ..default
    }
}

#[cfg(test)]
mod tests {
    use everwhen_engine::ids::HostId;
    use everwhen_engine::protect::ProtectOptions;

    use super::*;

    fn problems(text: &str) -> Vec<String> {
        let problems = Config::parse(text, Path::new("/etc")).unwrap_err();
        problems.iter().map(|problem| format!("{}: {}", problem.line, problem.message)).collect()
    }

    #[test]
    fn the_example_is_a_configuration() {
        let config = Config::parse(EXAMPLE, Path::new("/etc")).unwrap();
        assert_eq!(config.store.as_deref(), Some("file:///var/backups/everwhen"));
        assert_eq!(config.listen.api, Door::At("127.0.0.1:7437".parse().unwrap()));
        assert_eq!(
            config.databases,
            [DatabaseEntry { name: Some("app".into()), ..DatabaseEntry::of("/srv/app/app.db") }]
        );
    }

    #[test]
    fn the_example_says_what_holds_when_nothing_is_said() {
        let config = Config::parse(EXAMPLE, Path::new("/etc")).unwrap();
        let (name, host) = ("app".to_owned(), HostId::from_bytes([1; 8]));
        let default = ProtectOptions::new("app.db".into(), name, "state".into(), host, String::new());
        let flush = Flush {
            interval: Some(default.flush_interval),
            segment_bytes: Some(default.segment_bytes),
            queue_bytes: Some(default.memory_queue_bytes),
            spool_bytes: Some(default.spool_bytes),
        };
        assert_eq!(config.flush, flush);
        assert_eq!(config.databases[0].sqlite, default.sqlite);
        assert_eq!(config.classes, built_in_classes());
    }

    #[test]
    fn the_write_lock_is_switched_off_by_a_word_and_nothing_else() {
        let sqlite = |text: &str| {
            let text = format!("[[database]]\npath = 'a.db'\n{text}");
            Config::parse(&text, Path::new("/")).map(|config| config.databases[0].sqlite.clone())
        };
        assert_eq!(sqlite("hard_frames = 'off'").unwrap().hard_frames, None);
        assert_eq!(sqlite("hard_frames = 2_000").unwrap().hard_frames, Some(2_000));
        assert!(sqlite("allow_network_file_system = true").unwrap().allow_network_file_system);
        for wrong in ["hard_frames = 0", "hard_frames = -1", "hard_frames = 'no'", "hard_frames = 1e9"] {
            assert!(sqlite(wrong).unwrap_err()[0].message.contains("\"off\""), "{wrong}");
        }
    }

    #[test]
    fn nothing_is_a_configuration_too() {
        assert_eq!(Config::parse("", Path::new("/")).unwrap(), Config::default());
        assert_eq!(Config::default().classes["sandbox"].retention, Duration::from_secs(7 * 86_400));
    }

    #[test]
    fn relative_paths_begin_at_the_file() {
        let config =
            Config::parse("store = 'backups'\n[[database]]\npath = 'app.db'", Path::new("/etc/e")).unwrap();
        assert_eq!(config.store.as_deref(), Some("/etc/e/backups"));
        assert_eq!(config.databases[0].path, Path::new("/etc/e/app.db"));
        assert_eq!(config.databases[0].name(), "app");
    }

    #[test]
    fn an_unknown_key_is_refused_with_what_was_meant() {
        assert_eq!(
            problems("stor = 'x'\n\n[flush]\nintervall = '1s'\n"),
            [
                "1: unknown key 'stor' at the top: did you mean 'store'?",
                "4: unknown key 'intervall' in [flush]: did you mean 'interval'?"
            ]
        );
        assert_eq!(
            problems("[key]\nfile = 'k'\ncolour = 1"),
            ["3: unknown key 'colour' in [key]: known are file, environment, command"]
        );
    }

    #[test]
    fn every_mistake_has_its_line_and_what_was_expected() {
        let text = "store = 5\n[listen]\napi = 'here'\n[flush]\ninterval = 'soon'\nsegment = '1KiB'\n\
                    [class.mine]\n[[database]]\nclass = 'productoin'\n";
        let found = problems(text);
        assert_eq!(found[0], "1: 'store': expected a text in quotes, found integer");
        assert!(found[1].starts_with("3: 'api' in [listen]: 'here' is not ADDRESS:PORT"), "{found:?}");
        assert!(found[2].starts_with("5: 'interval' in [flush]: 'soon' is not a duration"), "{found:?}");
        assert_eq!(found[3], "6: 'segment' in [flush]: expected at least 64KiB");
        assert!(found.iter().any(|p| p.contains("did you mean 'production'?")), "{found:?}");
        assert!(found.iter().any(|p| p.contains("needs the path of its file")), "{found:?}");
    }

    #[test]
    fn a_syntax_error_has_its_line() {
        assert!(problems("store = 'x'\nstate = \n")[0].starts_with("2: "));
    }

    #[test]
    fn a_database_is_protected_once() {
        let found = problems("[[database]]\npath = 'a/x.db'\n[[database]]\npath = 'b/x.db'\n");
        assert!(found[0].contains("earlier database"), "{found:?}");
    }

    #[test]
    fn no_prefix_of_a_configuration_is_a_crash() {
        for end in (0..EXAMPLE.len()).filter(|end| EXAMPLE.is_char_boundary(*end)) {
            let _ = Config::parse(&EXAMPLE[..end], Path::new("/"));
        }
    }
}

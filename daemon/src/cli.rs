//! The command line: its shape and its help. What the commands do is in `verbs`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{Door, door, units};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "everwhen",
    version,
    about = "Continuous point-in-time backup: every commit of a database is a restore point",
    after_long_help = "A first try, in a folder of its own, in two minutes:\n  everwhen demo\n\n\
        Protect a database, and get it back as it was ten minutes ago:\n  \
        everwhen run app.db &\n  \
        everwhen restore app.db --at '10 minutes ago' --to restored.db\n\n\
        Exit codes:\n  \
        0 done             4 no such point, or no such database\n  \
        1 failed           5 repository damaged\n  \
        2 usage            6 store unreachable\n  \
        3 refused          7 target or source unfit",
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
    #[command(flatten)]
    pub(crate) logging: Logging,
}

/// How the program talks about itself.
#[derive(Debug, Args)]
pub(crate) struct Logging {
    /// Form of the log on standard error
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Human, value_name = "FORMAT", help_heading = "Logging")]
    pub(crate) log_format: LogFormat,
    /// What to log: error, warn, info, debug, trace, or per module (everwhen_engine=debug) [default: info for run, else
    /// warn]
    #[arg(
        long,
        global = true,
        env = "EVERWHEN_LOG",
        value_name = "FILTER",
        help_heading = "Logging",
        hide_env_values = true
    )]
    pub(crate) log: Option<String>,
}

/// Forms of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people
    Human,
    /// One JSON object a line
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Run(Run),
    Status(Status),
    History(History),
    Points(Points),
    Restore(Restore),
    Verify(Verify),
    Demo(Demo),
    Databases(Databases),
    Key(Key),
}

impl Address {
    /// The same, of a command that could use more.
    pub(crate) fn place(self) -> Place {
        Place { store: self.store, config: self.config, state: None, key_file: None }
    }
}

impl Verb {
    /// Whether results and errors are wanted as JSON.
    pub(crate) fn json(&self) -> bool {
        match self {
            Self::Run(_) | Self::Demo(_) => false,
            Self::Status(verb) => verb.json.json,
            Self::History(verb) => verb.json.json,
            Self::Points(verb) => verb.json.json,
            Self::Restore(verb) => verb.json.json,
            Self::Verify(verb) => verb.json.json,
            Self::Databases(verb) => verb.json(),
            Self::Key(verb) => verb.json(),
        }
    }
}

/// `--json`, on every command that reports.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct Json {
    /// Report as JSON on standard output; errors, and progress once a second, as JSON on standard error
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which repository, for what needs neither its key nor local state.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Address {
    /// The repository: a path, file://, s3://bucket/prefix, gs:// or az:// [default: the configuration's]
    ///
    /// Object stores take credentials from the environment; `everwhen run --help` has the variables.
    #[arg(long, env = "EVERWHEN_STORE", value_name = "URL", hide_env_values = true)]
    pub(crate) store: Option<String>,
    /// The configuration file (TOML)
    #[arg(long, env = "EVERWHEN_CONFIG", value_name = "FILE", hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,
}

/// Where the repository and the local state are.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Place {
    /// The repository: a path, file://, s3://bucket/prefix, gs:// or az:// [default: the folder DB.everwhen of a DB given
    /// by its path]
    ///
    /// Object stores take credentials from the environment; `everwhen run --help` has the variables.
    #[arg(long, env = "EVERWHEN_STORE", value_name = "URL", hide_env_values = true)]
    pub(crate) store: Option<String>,
    /// The configuration file (TOML)
    #[arg(long, env = "EVERWHEN_CONFIG", value_name = "FILE", hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,
    /// The folder for local state [default: DB.everwhen/local; with another store ~/.local/state/everwhen, for root
    /// /var/lib/everwhen]
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// The file with the key of an encrypted repository. EVERWHEN_KEY may hold the key itself instead
    #[arg(long, env = "EVERWHEN_KEY_FILE", value_name = "FILE", hide_env_values = true)]
    pub(crate) key_file: Option<PathBuf>,
}

/// Where to read: a repository or a daemon.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Reach {
    #[command(flatten)]
    pub(crate) place: Place,
    /// Ask this daemon instead of reading the repository: http://HOST:PORT or unix:PATH. Where the repository and its key
    /// are is then not looked at
    #[arg(long, env = "EVERWHEN_ADDR", value_name = "ADDR", hide_env_values = true)]
    pub(crate) addr: Option<String>,
}

/// Protect databases: the daemon
///
/// Captures every commit of the databases, live, beside the applications that write to them, until it is told to stop
/// (Ctrl-C or SIGTERM: it flushes and exits 0; a second one stops it at once).
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Databases to protect: paths of SQLite files. They need not exist yet
    #[arg(value_name = "DB")]
    pub(crate) databases: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) place: Place,
    /// Class of the databases named here: production, sandbox, or one of the configuration's
    #[arg(long, value_name = "CLASS", default_value = "production")]
    pub(crate) class: String,
    /// Switch a rollback-journal database to WAL mode, which Everwhen needs
    #[arg(long)]
    pub(crate) convert_to_wal: bool,
    /// Under load, one segment per interval [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub(crate) flush_interval: Option<Duration>,
    /// Address of the gRPC API, or "off" [default: 127.0.0.1:7437]
    #[arg(long, value_name = "ADDRESS", value_parser = door)]
    pub(crate) listen: Option<Door>,
    /// One more unix socket for the API, besides api.sock in the state folder
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Address of metrics and health (HTTP), or "off" [default: 127.0.0.1:7438]
    #[arg(long, value_name = "ADDRESS", value_parser = door)]
    pub(crate) metrics: Option<Door>,
    /// Allow addresses that other machines can reach. There is no authentication: whoever reaches them may restore
    #[arg(long)]
    pub(crate) beyond_loopback: bool,
}

const RUN_EXAMPLES: &str = concat!(
    "Examples:\n",
    "  everwhen run app.db                                into app.db.everwhen/\n",
    "  everwhen run app.db --store s3://bucket/backups    into an object store\n",
    "  everwhen run --config /etc/everwhen.toml           as a service\n\n",
    "Object stores take credentials and endpoints from the environment:\n",
    "  s3://  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN,\n",
    "         AWS_REGION, AWS_ENDPOINT_URL\n",
    "  gs://  GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT (files),\n",
    "         GOOGLE_BASE_URL\n",
    "  az://  AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY or\n",
    "         AZURE_STORAGE_SAS_TOKEN, AZURE_STORAGE_ENDPOINT,\n",
    "         AZURE_STORAGE_USE_EMULATOR\n",
    "Without credentials: the role, service account or managed identity of the\n",
    "machine. For each there are also …_ALLOW_HTTP=true, …_PROXY_URL and …_TIMEOUT\n",
    "(AWS_ALLOW_HTTP and so on).\n\n",
    "A configuration with every key (all are optional):\n\n",
);

/// Puts the examples and the configuration into the help of `run`.
pub(crate) fn with_configuration(run: clap::Command) -> clap::Command {
    run.after_long_help(format!("{RUN_EXAMPLES}{}", crate::config::EXAMPLE))
}

/// How protection stands: lag, durable position, window, gaps, health with reasons
///
/// Asks the running daemon if there is one; else tells what the repository holds.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  everwhen status app.db\n  everwhen status --store s3://bucket/backups --json\n  \
    everwhen status --addr http://127.0.0.1:7437\n  everwhen status app.db --check || echo 'not ok'"
)]
pub(crate) struct Status {
    /// The database: path, name or id [default: all]
    #[arg(value_name = "DB")]
    pub(crate) database: Option<String>,
    /// End with exit code 1 unless the health of all is ok
    #[arg(long)]
    pub(crate) check: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// What can be given back: windows, gaps, timelines, bases
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  everwhen history app.db\n  everwhen history app --store s3://bucket/backups --json"
)]
pub(crate) struct History {
    /// The database: path, name or id
    #[arg(value_name = "DB")]
    pub(crate) database: String,
    #[command(flatten)]
    pub(crate) reach: Reach,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// List restore points: every commit is one
///
/// One line for each: its position, its commit time, the pages it changed. TIME is RFC 3339 (2026-11-21T14:03:00Z), a
/// local time ('2026-11-21 14:03:00') or a span back ('10 minutes ago').
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  everwhen points app.db --from '10 minutes ago'\n  \
    everwhen points app.db --from '2026-11-21 14:00' --to '2026-11-21 14:05'")]
pub(crate) struct Points {
    /// The database: path, name or id
    #[arg(value_name = "DB")]
    pub(crate) database: String,
    /// The first moment wanted
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub(crate) from: Option<String>,
    /// The last moment wanted
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub(crate) to: Option<String>,
    #[command(flatten)]
    pub(crate) reach: Reach,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// Give a database back as it was after one commit, into a new file, proven
///
/// TIME is RFC 3339 (2026-11-21T14:03:00Z), a local time ('2026-11-21 14:03:00') or a span back ('10 minutes ago').
/// The state at a time is the last commit at or before it. With --addr it is the daemon that makes the file, on its
/// machine.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  everwhen restore app.db --at '10 minutes ago' --to restored.db\n  \
    everwhen restore app.db --position 1/00000000000001a7 --to restored.db\n  \
    everwhen restore app --store s3://bucket/backups --latest --to app.db\n  \
    everwhen restore app.db --latest --to x.db --dry-run    what it would do",
    group = clap::ArgGroup::new("point").required(true).args(["at", "position", "latest"])
)]
pub(crate) struct Restore {
    /// The database: path, name or id
    #[arg(value_name = "DB")]
    pub(crate) database: String,
    /// The state at this time
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub(crate) at: Option<String>,
    /// The state at this position, as `everwhen points` prints it
    #[arg(long, value_name = "POSITION")]
    pub(crate) position: Option<String>,
    /// The newest state
    #[arg(long)]
    pub(crate) latest: bool,
    /// The file to make; refused when it exists
    #[arg(long, value_name = "PATH")]
    pub(crate) to: PathBuf,
    /// Say what would be read and written, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) reach: Reach,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// Check a repository: every object against its name and its chain
///
/// With --deep it also rebuilds the database in a temporary folder (TMPDIR) and proves the state after every commit.
/// Reads the repository itself, whether a daemon runs or not, and changes nothing.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  everwhen verify app.db\n  everwhen verify --store s3://bucket/backups --deep --json"
)]
pub(crate) struct Verify {
    /// The database: path, name or id [default: all in the repository]
    #[arg(value_name = "DB")]
    pub(crate) database: Option<String>,
    /// Rebuild and prove every state
    #[arg(long)]
    pub(crate) deep: bool,
    #[command(flatten)]
    pub(crate) place: Place,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// A guided tour in a temporary folder: live writes, a mistake, a restore to just before it
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Without pauses for reading
    #[arg(long)]
    pub(crate) fast: bool,
    /// Keep the folder afterwards, to look around in it
    #[arg(long)]
    pub(crate) keep: bool,
}

/// List, add, remove and change protected databases
#[derive(Debug, Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Databases {
    #[command(subcommand)]
    pub(crate) what: DatabasesVerb,
}

impl Databases {
    fn json(&self) -> bool {
        match &self.what {
            DatabasesVerb::List { json, .. }
            | DatabasesVerb::Add { json, .. }
            | DatabasesVerb::Remove { json, .. }
            | DatabasesVerb::Set { json, .. } => json.json,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum DatabasesVerb {
    /// List the databases of a repository or of a daemon
    #[command(after_long_help = "Examples:\n  everwhen databases list --store s3://bucket/backups\n  \
        everwhen databases list --addr http://127.0.0.1:7437")]
    List {
        #[command(flatten)]
        reach: Reach,
        #[command(flatten)]
        json: Json,
    },
    /// Protect one more database: at once if the daemon runs, else when it starts
    #[command(
        after_long_help = "Example:\n  everwhen databases add /srv/shop.db --store s3://bucket/backups"
    )]
    Add {
        /// Its file. Need not exist yet
        #[arg(value_name = "PATH")]
        path: PathBuf,
        /// Its name [default: the file's name without extension]
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Its class: production, sandbox, or one of the configuration's
        #[arg(long, value_name = "CLASS", default_value = "production")]
        class: String,
        #[command(flatten)]
        reach: Reach,
        #[command(flatten)]
        json: Json,
    },
    /// End the protection of a database that was added. Its history stays
    ///
    /// What was named to `everwhen run` or in the configuration is ended there.
    Remove {
        /// The database: path, name or id
        #[arg(value_name = "DB")]
        database: String,
        #[command(flatten)]
        reach: Reach,
        #[command(flatten)]
        json: Json,
    },
    /// Change the name, the class or the path of a database. Deletes no history
    #[command(
        after_long_help = "Examples:\n  everwhen databases set app --class sandbox --store s3://bucket/backups\n  \
            everwhen databases set app --path /srv/new/app.db --store s3://bucket/b",
        group = clap::ArgGroup::new("change").required(true).multiple(true).args(["name", "class", "path"])
    )]
    Set {
        /// The database: path, name or id
        #[arg(value_name = "DB")]
        database: String,
        /// The new name
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// The new class
        #[arg(long, value_name = "CLASS")]
        class: Option<String>,
        /// The new path: it was moved, or restored there. Its history goes on with `everwhen run` of that path
        #[arg(long, value_name = "PATH")]
        path: Option<PathBuf>,
        #[command(flatten)]
        reach: Reach,
        #[command(flatten)]
        json: Json,
    },
}

/// The key of an encrypted repository
#[derive(Debug, Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Key {
    #[command(subcommand)]
    pub(crate) what: KeyVerb,
}

impl Key {
    fn json(&self) -> bool {
        match &self.what {
            KeyVerb::Init { json, .. } | KeyVerb::Rotate { json, .. } | KeyVerb::Show { json, .. } => {
                json.json
            }
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyVerb {
    /// Draw a new key into a file, and make a new repository encrypted with it
    #[command(
        after_long_help = "Example:\n  everwhen key init repository.key --store s3://bucket/backups\n  \
        everwhen run app.db --store s3://bucket/backups --key-file repository.key\n\n\
        Keep a copy of the key elsewhere: without it the repository is noise."
    )]
    Init {
        /// The file to make
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        address: Address,
        #[command(flatten)]
        json: Json,
    },
    /// Draw a new key into a file, and let it replace the old one. No data is written anew
    #[command(
        after_long_help = "Example:\n  everwhen key rotate new.key --store s3://bucket/backups --key-file old.key"
    )]
    Rotate {
        /// The file to make for the new key; --key-file names the present one
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        json: Json,
    },
    /// Say whether the repository is encrypted, and whether the key given opens it. Never prints a key
    Show {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        json: Json,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_restore_needs_exactly_one_point() {
        let parse = |args: &str| Cli::try_parse_from(args.split(' '));
        assert!(parse("everwhen restore app.db --to x").is_err());
        assert!(parse("everwhen restore app.db --latest --position 1/1 --to x").is_err());
        assert!(parse("everwhen restore app.db --latest --to x").is_ok());
    }

    #[test]
    fn a_span_back_may_begin_with_a_minus() {
        let cli = Cli::try_parse_from(["everwhen", "restore", "a", "--to", "x", "--at", "-2 days"]).unwrap();
        let Verb::Restore(restore) = cli.verb else { panic!("{:?}", cli.verb) };
        assert_eq!(restore.at.as_deref(), Some("-2 days"));
    }

    /// What is printed to be copied must not be broken into lines by a narrow terminal.
    #[test]
    fn examples_fit_a_terminal() {
        fn check(command: &clap::Command) {
            let examples = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
            for line in examples.lines() {
                assert!(line.chars().count() <= 80, "{}: {line}", command.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command().mut_subcommand("run", with_configuration));
    }

    #[test]
    fn a_change_of_a_database_changes_something() {
        let parse = |args: &str| Cli::try_parse_from(args.split(' '));
        assert!(parse("everwhen databases set app --name x --class sandbox").is_ok());
        let nothing = parse("everwhen databases set app").unwrap_err().to_string();
        assert!(nothing.contains("--name") && nothing.contains("--class"), "{nothing}");
    }

    #[test]
    fn every_help_text_has_a_first_line() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}

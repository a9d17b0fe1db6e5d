//! The log: standard error, quiet by default.

use everwhen_engine::error::ErrorKind;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::FormatTime;

use crate::cli::{LogFormat, Logging};
use crate::failure::Failure;

/// Times in the log are those of everything else: UTC, microseconds.
struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, writer: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        write!(writer, "{}", everwhen_engine::time::Timestamp::now())
    }
}

/// Starts the log. `usual` is what is logged when nobody says.
pub(crate) fn start(logging: &Logging, usual: &str) -> Result<(), Failure> {
    let wanted = logging.log.as_deref().unwrap_or(usual);
    let filter = EnvFilter::try_new(wanted).map_err(|error| {
        Failure::usage(format!("--log '{wanted}' is not a filter"))
            .caused_by(&error)
            .advise("write --log debug")
    })?;
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_timer(Clock)
        .with_ansi(ansi);
    let started = match logging.log_format {
        LogFormat::Human => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Failure::new(ErrorKind::Failed, format!("cannot start the log: {error}")))
}

//! The log: standard error, quiet by default.

use everwhen_engine::error::ErrorKind;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
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

/// What is logged: as asked for, else `usual`, and of the client of object stores only what it cannot mend by itself.
fn filter(asked: Option<&str>, usual: &str) -> Result<EnvFilter, Failure> {
    let Some(asked) = asked else {
        return EnvFilter::try_new(format!("{usual},object_store=warn"))
            .map_err(|error| Failure::usage("no filter").caused_by(&error));
    };
    let wrong = || {
        Failure::usage(format!("--log '{asked}' is not a filter")).advise(
            "write error, warn, info, debug or trace, or everwhen_engine=debug; several with commas between",
        )
    };
    // The filter takes any other word for the name of a module, and then nothing is logged at all.
    let is_word = |part: &str| !part.contains(['=', '[']) && part.parse::<LevelFilter>().is_err();
    if asked.split(',').any(|part| !part.trim().is_empty() && is_word(part.trim())) {
        return Err(wrong());
    }
    EnvFilter::try_new(asked).map_err(|error| wrong().caused_by(&error))
}

/// Starts the log. `usual` is what is logged when nobody says.
pub(crate) fn start(logging: &Logging, usual: &str) -> Result<(), Failure> {
    let filter = filter(logging.log.as_deref(), usual)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_of_levels_and_modules() {
        for sound in ["debug", "WARN", "everwhen_engine=debug,warn", "off", "info,object_store=trace", ""] {
            assert!(filter(Some(sound), "info").is_ok(), "{sound}");
        }
        for wrong in ["nonsense", "verbose,info", "everwhen=loud", "bogus=["] {
            assert_eq!(filter(Some(wrong), "info").unwrap_err().exit_code(), 2, "{wrong}");
        }
        assert!(filter(None, "warn").unwrap().to_string().contains("object_store=warn"));
    }
}

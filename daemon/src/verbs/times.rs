//! Times and targets as they come from the command line.

use everwhen_engine::ids::Position;
use everwhen_engine::time::Timestamp;
use everwhen_proto::v1;

use crate::failure::Failure;
use crate::wire::{time_in, time_out};

/// Reads a TIME with this machine's clock and zone.
pub(crate) fn time(text: &str) -> Result<Timestamp, Failure> {
    Timestamp::parse_human(text, Timestamp::now(), &jiff::tz::TimeZone::system())
        .map_err(|error| Failure::usage(error.to_string()))
}

/// Reads an optional TIME into the API's form.
pub(crate) fn optional(text: Option<&str>) -> Result<Option<prost_types::Timestamp>, Failure> {
    text.map(|text| time(text).map(time_out)).transpose()
}

/// A span that ends before it begins holds nothing, which nobody means to ask for.
pub(crate) fn in_order(
    from: Option<&prost_types::Timestamp>,
    to: Option<&prost_types::Timestamp>,
) -> Result<(), Failure> {
    match (from.map(time_in), to.map(time_in)) {
        (Some(from), Some(to)) if from > to => {
            Err(Failure::usage(format!("--from {from} is later than --to {to}")))
        }
        _ => Ok(()),
    }
}

/// The target that `--at`, `--position` or `--latest` names.
pub(crate) fn target(at: Option<&str>, position: Option<&str>) -> Result<v1::Target, Failure> {
    use v1::target::Target;
    let target = match (at, position) {
        (Some(at), _) => Target::Time(time_out(time(at)?)),
        (None, Some(position)) => {
            let position: Position = position.parse().map_err(|error| {
                Failure::usage(format!("{error}")).advise("`everwhen points DB` lists positions")
            })?;
            Target::Position(position.to_string())
        }
        (None, None) => Target::Latest(v1::Latest {}),
    };
    Ok(v1::Target { target: Some(target) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read() {
        assert!(target(Some("10 minutes ago"), None).is_ok());
        assert!(target(None, None).is_ok());
        for (at, position) in [(Some("soon"), None), (None, Some("1/1"))] {
            assert_eq!(target(at, position).unwrap_err().exit_code(), 2);
        }
    }
}

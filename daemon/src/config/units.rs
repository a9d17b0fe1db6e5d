//! Durations and sizes as people write them: `1s`, `250ms`, `1h30m`, `28d`; `64MiB`, `10GB`, `4096`.

use std::time::Duration;

const DURATION_UNITS: [(&str, u64); 6] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000), ("w", 604_800_000)];

const SIZE_UNITS: [(&str, u64); 10] = [
    ("b", 1),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("", 1),
];

/// Reads a duration: whole numbers with units `ms s m h d w`, largest first if several (`1h30m`).
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let refused = || format!("'{text}' is not a duration: write 250ms, 1s, 5m, 1h30m or 28d");
    let mut rest = text.trim();
    let mut total_ms: u64 = 0;
    while !rest.is_empty() {
        let (number, unit, after) = number_and_unit(rest).ok_or_else(refused)?;
        let factor = lookup(&DURATION_UNITS, unit).ok_or_else(refused)?;
        total_ms = number.checked_mul(factor).and_then(|ms| total_ms.checked_add(ms)).ok_or_else(refused)?;
        rest = after.trim_start();
    }
    if text.trim().is_empty() { Err(refused()) } else { Ok(Duration::from_millis(total_ms)) }
}

/// Reads a size in bytes: a whole number with an optional unit, binary (`KiB MiB GiB TiB`) or decimal (`kB MB GB TB`).
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let refused = || format!("'{text}' is not a size: write 64MiB, 10GB or a number of bytes");
    let (number, unit, rest) = number_and_unit(text.trim()).ok_or_else(refused)?;
    let factor = lookup(&SIZE_UNITS, unit).filter(|_| rest.is_empty()).ok_or_else(refused)?;
    number.checked_mul(factor).ok_or_else(refused)
}

/// `"12 ms rest"` → (12, "ms", " rest").
fn number_and_unit(text: &str) -> Option<(u64, &str, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(digits);
    let rest = rest.trim_start();
    let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(letters);
    Some((number.parse().ok()?, unit, rest))
}

fn lookup(units: &[(&str, u64)], unit: &str) -> Option<u64> {
    units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, factor)| *factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, ms) in [
            ("1s", 1_000),
            ("250ms", 250),
            ("1h30m", 5_400_000),
            ("28d", 28 * 86_400_000),
            ("1 m 5 s", 65_000),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "5", "s", "-1s", "1.5s", "1x", "99999999999999999999s", "18446744073709551615w"] {
            assert!(duration(text).unwrap_err().contains("28d"), "{text}");
        }
    }

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [("64MiB", 64 << 20), ("10GB", 10_000_000_000), ("4096", 4096), ("1 kb", 1_000)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "1QB", "1MiB2", "99999999TiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}

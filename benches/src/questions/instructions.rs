//! How many instructions does each pure operation take? Steadier than time: two builds can be compared on a busy
//! machine.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::Outcome;
use crate::micro::{ALL, Size};
use crate::report::{Answer, Table};
use crate::world::{Scale, World};

/// Runs each operation of [`crate::micro`] once under callgrind, in a process of its own.
pub(crate) fn ask(world: &World) -> Outcome<Answer> {
    let mut answer = Answer::new("instructions", "Instructions of single operations");
    if Command::new("valgrind").arg("--version").output().is_err() {
        if world.scale == Scale::Smoke {
            answer.note("Nothing was counted: there is no valgrind on the PATH.");
            return Ok(answer);
        }
        return Err("instructions are counted by valgrind, which is not on the PATH: install it".into());
    }
    let head = ["operation", "instructions", "on", "instructions for each"];
    let mut table =
        Table::new("Counted by callgrind, once each: two runs of one build differ by less than 1 %", &head);
    // Those at the end take long to prepare under valgrind.
    for (name, prepare) in ALL.iter().take(world.scale.pick(2, ALL.len(), ALL.len())) {
        let size = prepare()?.size;
        let count = count(world, name)?;
        let (items, unit) = match size {
            Size::Bytes(bytes) => (bytes, "B"),
            Size::Items(items) => (items, ""),
        };
        let each = count as f64 / items as f64;
        table.row([
            (*name).to_owned(),
            grouped(count),
            format!("{} {unit}", grouped(items)).trim().to_owned(),
            format!("{each:.2}{}", if unit.is_empty() { "" } else { " a byte" }),
        ]);
        answer.raw(
            json!({ "operation": name, "instructions": count, "of": items, "unit": unit, "each": each }),
        );
    }
    answer.table(table);
    answer.note("What is prepared before is not counted. Valgrind offers no AVX-512, so hashes and checksums run on their AVX2 paths here.");
    Ok(answer)
}

fn count(world: &World, name: &str) -> Outcome<u64> {
    let out = world.folder.join("callgrind.out");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*counted_operation*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .args(["--operation", name])
        .output()?;
    let total = total_of(&out).filter(|_| output.status.success());
    let _ = std::fs::remove_file(&out);
    // Valgrind names itself in five lines before it says what happened.
    let said = || String::from_utf8_lossy(&output.stderr).lines().skip(5).collect::<Vec<_>>().join("\n");
    total.ok_or_else(|| format!("{name} could not be counted:\n{}", said()).into())
}

/// The line `totals: N` of callgrind's file.
fn total_of(out: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(out).ok()?;
    let line = text.lines().rev().find_map(|line| line.strip_prefix("totals:"))?;
    line.trim().parse().ok().filter(|total| *total > 0)
}

/// 1234567 as 1,234,567.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn digits_stand_in_groups_of_three() {
        assert_eq!([7, 999, 1000, 1_234_567].map(super::grouped), ["7", "999", "1,000", "1,234,567"]);
    }
}

//! The questions, one file each.

mod encode;
mod first_base;
mod latency;
mod memory;
mod requests;
mod restart;
mod restore;
mod stored;
mod verify;
mod writers;

use crate::Outcome;
use crate::report::Answer;
use crate::world::World;

/// A question: its name on the command line, and how it is answered.
pub type Question = (&'static str, fn(&World) -> Outcome<Answer>);

/// All of them, the quick ones first.
pub const ALL: [Question; 10] = [
    ("encode", encode::ask),
    ("latency", latency::ask),
    ("stored", stored::ask),
    ("requests", requests::ask),
    ("first_base", first_base::ask),
    ("restore", restore::ask),
    ("restart", restart::ask),
    ("memory", memory::ask),
    ("verify", verify::ask),
    ("writers", writers::ask),
];

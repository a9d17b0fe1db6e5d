//! The questions, one file each.

mod by_rate;
mod by_size;
mod by_store;
mod capture;
mod cost;
mod encode;
mod first_base;
mod instructions;
mod latency;
mod memory;
mod requests;
mod restart;
mod restore;
mod s3;
mod soak;
mod stored;
mod verify;
mod writers;

use crate::Outcome;
use crate::report::Answer;
use crate::world::{Scale, World};

/// A question.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// Its name on the command line.
    pub name: &'static str,
    /// How it is answered.
    pub ask: fn(&World) -> Outcome<Answer>,
    /// Whether it must be asked by name: it takes long, or needs what is not everywhere. A smoke run asks it all the same.
    pub only_by_name: bool,
}

impl Question {
    const fn new(name: &'static str, ask: fn(&World) -> Outcome<Answer>) -> Self {
        Self { name, ask, only_by_name: false }
    }

    /// The questions of a run: those that are named, or all that do not take too long.
    ///
    /// # Errors
    /// When there is no question of a name.
    pub fn chosen(names: &[String], scale: Scale) -> Outcome<Vec<Self>> {
        if names.is_empty() {
            let smoke = scale == Scale::Smoke;
            return Ok(ALL.into_iter().filter(|question| smoke || !question.only_by_name).collect());
        }
        let named = |name: &String| {
            let known = || ALL.map(|question| question.name).join(", ");
            let found = ALL.into_iter().find(|question| question.name == name);
            found.ok_or_else(|| format!("there is no question '{name}'; there are {}", known()).into())
        };
        names.iter().map(named).collect()
    }
}

/// All of them, in the order of a run: `cost` reads the answers to `stored` and `s3`.
pub const ALL: [Question; 18] = [
    Question::new("encode", encode::ask),
    Question::new("capture", capture::ask),
    Question::new("latency", latency::ask),
    Question::new("stored", stored::ask),
    Question::new("requests", requests::ask),
    Question::new("s3", s3::ask),
    Question::new("cost", cost::ask),
    Question::new("first_base", first_base::ask),
    Question::new("restore", restore::ask),
    Question::new("restart", restart::ask),
    Question::new("memory", memory::ask),
    Question::new("verify", verify::ask),
    Question::new("writers", writers::ask),
    Question::new("by_rate", by_rate::ask),
    Question::new("by_size", by_size::ask),
    Question::new("by_store", by_store::ask),
    Question { name: "instructions", ask: instructions::ask, only_by_name: true },
    Question { name: "soak", ask: soak::ask, only_by_name: true },
];

//! Why a target has no plan. Every refusal names the restore points around it.

use crate::error::{ErrorKind, Explain};
use crate::history::{Flaw, Gap, Nearest, Point};
use crate::ids::{DatabaseId, Position};
use crate::plan::Target;
use crate::store::keys::SegmentKey;
use crate::time::Timestamp;

/// There is no restore point as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoSuchPoint {
    /// The time has not come yet.
    #[error("{asked} lies in the future: it is {now} now")]
    Future {
        /// The time asked for.
        asked: Timestamp,
        /// The clock at that moment.
        now: Timestamp,
        /// The points around it.
        nearest: Nearest,
    },
    /// The time lies before everything that is kept.
    #[error("{asked} lies before the window{}", begins(nearest))]
    BeforeWindow {
        /// The time asked for.
        asked: Timestamp,
        /// The points around it.
        nearest: Nearest,
    },
    /// The time lies in a gap.
    #[error("{asked} lies in a gap ({} to {}): {}", gap.from, gap.to, gap.reason)]
    InGap {
        /// The time asked for.
        asked: Timestamp,
        /// The gap.
        gap: Box<Gap>,
        /// The points around it.
        nearest: Nearest,
    },
    /// No transaction of that name was ever captured, or it is not kept any more.
    #[error("there is no restore point {asked}")]
    UnknownPosition {
        /// The position asked for.
        asked: Position,
        /// The points around it.
        nearest: Nearest,
    },
    /// The repository does not know yet what happened up to that time.
    #[error("{asked} is not known yet: the repository covers the time through {covered_through}")]
    NotKnownYet {
        /// The time asked for.
        asked: Timestamp,
        /// The last known moment.
        covered_through: Timestamp,
        /// The points around it.
        nearest: Nearest,
    },
    /// The commit is there, but no base from which it could be rebuilt. A log is never stored before its base, and nothing
    /// expires yet: so a base is missing.
    #[error("{asked} cannot be rebuilt: there is no base for it in the repository")]
    NoBase {
        /// The target.
        asked: Target,
        /// The points around it.
        nearest: Nearest,
    },
    /// Two writers have gone on: on the line that was claimed last, and later than there on one that it had left.
    #[error(
        "no state is the latest for certain: the newest timeline ends at {} ({}), and the one it had left went on to {} ({})",
        main.position, main.time, other.position, other.time
    )]
    TwoLatest {
        /// The newest commit of the main line.
        main: Point,
        /// The newest commit of all.
        other: Point,
    },
    /// The database has no commit in the repository.
    #[error("database {database} has no restore point in the repository yet")]
    NoHistory {
        /// The database.
        database: DatabaseId,
    },
}

fn begins(nearest: &Nearest) -> String {
    nearest.after.map_or_else(String::new, |point| format!(", which begins at {}", point.time))
}

impl NoSuchPoint {
    /// The stable name of the variant, for machines.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Future { .. } => "future",
            Self::BeforeWindow { .. } => "before_window",
            Self::InGap { .. } => "in_gap",
            Self::UnknownPosition { .. } => "unknown_position",
            Self::NotKnownYet { .. } => "not_known_yet",
            Self::NoBase { .. } => "no_base",
            Self::TwoLatest { .. } => "two_latest",
            Self::NoHistory { .. } => "no_history",
        }
    }

    /// The restore points around what was asked.
    #[must_use]
    pub fn nearest(&self) -> Nearest {
        match self {
            Self::Future { nearest, .. }
            | Self::BeforeWindow { nearest, .. }
            | Self::InGap { nearest, .. }
            | Self::UnknownPosition { nearest, .. }
            | Self::NotKnownYet { nearest, .. }
            | Self::NoBase { nearest, .. } => *nearest,
            Self::TwoLatest { main, .. } => Nearest { before: Some(*main), after: None },
            Self::NoHistory { .. } => Nearest::default(),
        }
    }
}

/// A target that cannot be planned for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// There is no such restore point.
    #[error(transparent)]
    NoSuchPoint(#[from] NoSuchPoint),
    /// Something that was written and is needed is missing.
    #[error("{asked} cannot be restored: {missing}")]
    Missing {
        /// The target.
        asked: Target,
        /// What is missing.
        missing: Box<Flaw>,
        /// The points around it.
        nearest: Nearest,
    },
    /// A segment does not hold what its name says.
    #[error("segment {segment}: {what}")]
    Contradiction {
        /// The segment.
        segment: Box<SegmentKey>,
        /// What it says, and what was expected.
        what: String,
    },
}

impl PlanError {
    /// The restore points around what was asked.
    #[must_use]
    pub fn nearest(&self) -> Nearest {
        match self {
            Self::NoSuchPoint(error) => error.nearest(),
            Self::Missing { nearest, .. } => *nearest,
            Self::Contradiction { .. } => Nearest::default(),
        }
    }
}

impl Explain for NoSuchPoint {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoBase { .. } => ErrorKind::Damaged,
            _ => ErrorKind::NoSuchPoint,
        }
    }

    fn advice(&self) -> Option<String> {
        Some(match self {
            Self::NoHistory { .. } => {
                "start `everwhen run` for it, or look with `everwhen status` whether the name and the store are right"
                    .to_owned()
            }
            Self::TwoLatest { main, other } => format!(
                "two daemons have run on one database: stop all but one and start that one again, and its commits are the \
                 latest; or restore one of the two with --position {} or --position {}",
                other.position, main.position
            ),
            Self::NotKnownYet { nearest, .. } => format!(
                "{}; with --latest the newest commit is restored, and a running daemon (--addr) may know more",
                choices(*nearest)
            ),
            Self::NoBase { nearest, .. } => {
                format!("{}; `everwhen verify` tells what is missing", choices(*nearest))
            }
            other => choices(other.nearest()),
        })
    }
}

impl Explain for PlanError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSuchPoint(error) => error.kind(),
            Self::Missing { .. } | Self::Contradiction { .. } => ErrorKind::Damaged,
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::NoSuchPoint(error) => error.advice(),
            Self::Missing { nearest, .. } => {
                Some(format!("{}; `everwhen verify` lists all damage", choices(*nearest)))
            }
            Self::Contradiction { .. } => Some("`everwhen verify` lists all damage".to_owned()),
        }
    }
}

/// What can be restored instead, as commands.
fn choices(nearest: Nearest) -> String {
    let choice = |side: &str, point: Option<Point>| {
        point.map(|point| {
            format!("the nearest point {side} is `--position {}` ({})", point.position, point.time)
        })
    };
    let both: Vec<String> =
        [choice("before", nearest.before), choice("after", nearest.after)].into_iter().flatten().collect();
    if both.is_empty() {
        "see `everwhen history` for what can be restored".to_owned()
    } else {
        both.join(", ")
    }
}

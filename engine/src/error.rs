//! What a caller can do about an error: its kind decides retry, exit code and gRPC status; its advice is the next step.
//!
//! Every module border has an error enum of its own; all of them implement [`Explain`]. Messages are lower case, name
//! the thing, and give what was expected and what was found. A source is left to speak for itself in the chain.

/// What an error means to the one who called. The daemon maps it to exit codes and gRPC statuses in one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// It failed for a reason below; trying the same again may help. Exit code 1.
    Failed,
    /// The request or the configuration is not well formed. Exit code 2.
    Usage,
    /// A policy or a guard forbids it. Exit code 3.
    Refused,
    /// There is no such restore point (or database). Exit code 4.
    NoSuchPoint,
    /// Something in the repository is missing, altered or of an unknown format. Exit code 5.
    Damaged,
    /// The store does not answer, or does not let us in. Exit code 6.
    StoreUnreachable,
    /// The target of a restore, or the source of a backup, is not fit for it. Exit code 7.
    TargetUnfit,
}

impl ErrorKind {
    /// The stable name in JSON errors.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::Refused => "refused",
            Self::NoSuchPoint => "no_such_point",
            Self::Damaged => "damaged",
            Self::StoreUnreachable => "store_unreachable",
            Self::TargetUnfit => "target_unfit",
        }
    }

    /// The process exit code.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::NoSuchPoint => 4,
            Self::Damaged => 5,
            Self::StoreUnreachable => 6,
            Self::TargetUnfit => 7,
        }
    }
}

/// An error someone can act on.
pub trait Explain: std::error::Error {
    /// What it means to the caller.
    fn kind(&self) -> ErrorKind;

    /// What to do next, as a sentence for an operator; `None` when the message says it all.
    fn advice(&self) -> Option<String> {
        None
    }
}

/// An error, its causes and what to do about it, on one line.
pub(crate) fn explained(error: &dyn Explain) -> String {
    let advice = error.advice().map(|advice| format!("; {advice}")).unwrap_or_default();
    format!("{}{advice}", chain(error))
}

/// An error and its causes on one line. A cause that its effect has already told is left out.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let told = cause.to_string();
        if !text.contains(&told) {
            text = format!("{text}: {told}");
        }
        next = cause.source();
    }
    text
}

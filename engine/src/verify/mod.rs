//! Finds damage before a restore does.
//!
//! *Fast* reads every object of a database once: each against its name and size; segments against their keys, their
//! frames' checksums and the chain from one to the next; manifests against the packs they name. What the names alone
//! tell (holes, overlaps, missing ends) is in it, too.
//!
//! *Deep* does that, and then rebuilds the history in a scratch file: from the oldest base through every transaction,
//! the state checksum compared after each one, and each later base compared page by page with the replayed state.
//!
//! Damage is reported, never an error: a verification only fails when the store does.

mod deep;
mod fast;
mod twice;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use crate::error::{ErrorKind, Explain};
use crate::history::{Findings, History};
use crate::ids::{DatabaseId, Digest, Position};
use crate::restore::{Cancel, Inventory, Objects, Options, ReadError, RestoreError};

/// What is wrong, and with what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The object's key, or the place in the history.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

impl Problem {
    /// Says what is wrong with an object.
    pub fn new(object: &impl ToString, what: &impl ToString) -> Self {
        Self { object: object.to_string(), what: what.to_string() }
    }

    /// What a read found, unless it is the store that failed.
    fn of(error: &ReadError) -> Option<Self> {
        error.finding().map(|(object, what)| Self::new(&object, &what))
    }
}

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Whose history.
    pub database: DatabaseId,
    /// Whether states were rebuilt.
    pub deep: bool,
    /// Segments that were read.
    pub segments: u64,
    /// Bases that were read.
    pub bases: u64,
    /// Packs that were read.
    pub packs: u64,
    /// Packs that no base names: left by an interrupted upload, harmless.
    pub unused_packs: u64,
    /// Objects that were read.
    pub objects: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Transactions whose state was rebuilt and has the recorded checksum. Deep only.
    pub proven_transactions: u64,
    /// The newest of them.
    pub proven_through: Option<Position>,
    /// Everything that is wrong; empty when all is well.
    pub problems: Vec<Problem>,
    /// How long it took.
    pub elapsed_ms: u64,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }
}

/// How far a verification is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifyProgress {
    /// Objects that were read.
    pub objects: u64,
    /// Of so many.
    pub total_objects: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Of so many, for the fast part.
    pub total_bytes: u64,
    /// Transactions whose state was proven.
    pub transactions: u64,
    /// Of so many; 0 unless it is deep.
    pub total_transactions: u64,
}

/// Who is told of progress. Must not block.
pub type VerifyProgressFn = Arc<dyn Fn(VerifyProgress) + Send + Sync>;

/// What to verify with.
pub struct VerifyOptions<'a> {
    /// Also rebuild every state, in a scratch file of the database's size in this folder.
    pub deep_in: Option<&'a Path>,
    /// What a restore must know of the database engine, and the free space to leave.
    pub restore: &'a Options,
    /// Is told of progress.
    pub progress: VerifyProgressFn,
    /// Stops it.
    pub cancel: &'a Cancel,
}

/// A verification that could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The store did not answer, or the scratch file could not be written, or it was cancelled.
    #[error("the verification could not be finished")]
    Stopped(#[from] RestoreError),
}

impl Explain for VerifyError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Stopped(error) => error.kind(),
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Stopped(error) => error.advice(),
        }
    }
}

/// Verifies all that a repository holds of a database: what exists of it is read anew, and a claim that is damaged is a
/// problem like any other.
///
/// # Errors
/// [`VerifyError`] when the store or the disk fails. What is wrong with the repository is in the report.
pub async fn verify_database<O: Inventory>(
    objects: &O,
    database: DatabaseId,
    options: &VerifyOptions<'_>,
) -> Result<VerifyReport, VerifyError> {
    let failed = |error: ReadError| VerifyError::from(RestoreError::from(error));
    let mut findings = Findings {
        seen: objects.seen(database).await.map_err(failed)?,
        bases: objects.bases(database).await.map_err(failed)?,
        segments: objects.all_segments(database).await.map_err(failed)?,
        timelines: Vec::new(),
    };
    let mut problems = Vec::new();
    for claim in objects.claims(database).await.map_err(failed)? {
        match claim {
            Ok(timeline) => findings.timelines.push(timeline),
            Err(error) => problems.push(Problem::of(&error).ok_or_else(|| failed(error))?),
        }
    }
    let packs = objects.packs(database).await.map_err(failed)?;
    let mut report = verify(objects, &History::build(database, findings), &packs, options).await?;
    report.problems.splice(0..0, problems);
    tell_once(&mut report.problems);
    Ok(report)
}

/// Verifies a history. `packs` are all packs that are there, with their sizes.
///
/// # Errors
/// [`VerifyError`] when the store or the disk fails. What is wrong with the repository is in the report.
pub async fn verify<O: Objects>(
    objects: &O,
    history: &History,
    packs: &[(Digest, u64)],
    options: &VerifyOptions<'_>,
) -> Result<VerifyReport, VerifyError> {
    let began = Instant::now();
    let mut report = VerifyReport {
        database: history.database(),
        deep: options.deep_in.is_some(),
        segments: 0,
        bases: 0,
        packs: 0,
        unused_packs: 0,
        objects: 0,
        bytes: 0,
        proven_transactions: 0,
        proven_through: None,
        problems: history.flaws().iter().map(|flaw| Problem::new(&"history", flaw)).collect(),
        elapsed_ms: 0,
    };
    fast::verify_objects(objects, history, packs, options, &mut report).await?;
    if history.segments().next().is_some() && history.bases().next().is_none() {
        let what = "nothing can be rebuilt: there is no base that the log could be replayed on";
        report.problems.push(Problem::new(&"history", &what));
    }
    if let Some(folder) = options.deep_in {
        deep::verify_states(objects, history, folder, options, &mut report).await?;
    }
    tell_once(&mut report.problems);
    report.elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(report)
}

/// The deep part meets what the fast part found, and one lost key is in the way of many objects.
fn tell_once(problems: &mut Vec<Problem>) {
    let mut told = BTreeSet::new();
    problems.retain(|problem| told.insert(problem.clone()));
}

/// Damage becomes a problem of the report; anything else ends the verification.
pub(crate) fn problem_of(error: RestoreError) -> Result<Problem, RestoreError> {
    match &error {
        RestoreError::Read(read) => Problem::of(read).ok_or(error),
        RestoreError::NotProven { position, expected, found } => {
            let what = format!("its state has checksum {found}, expected {expected}");
            Ok(Problem::new(position, &what))
        }
        RestoreError::OtherSize { position, expected, found } => {
            Ok(Problem::new(position, &format!("its state has {found} pages, expected {expected}")))
        }
        RestoreError::ChainBroken { before, segment } => {
            Ok(Problem::new(segment, &format!("it does not follow segment {before}: the chain is broken")))
        }
        RestoreError::NotJoined { segment, source } => {
            Ok(Problem::new(segment, &format!("it does not go on from what is before it: {source}")))
        }
        RestoreError::Plan(plan) => Ok(Problem::new(&"history", plan)),
        _ => Err(error),
    }
}

impl std::fmt::Debug for VerifyOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VerifyOptions").field("deep_in", &self.deep_in).finish_non_exhaustive()
    }
}

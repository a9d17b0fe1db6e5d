//! `everwhen verify`.

use std::path::Path;
use std::sync::Arc;

use everwhen_engine::error::ErrorKind;
use everwhen_engine::restore::Cancel;
use everwhen_engine::verify::{VerifyProgress, VerifyReport};
use everwhen_proto::v1;
use serde::Serialize;

use crate::cli;
use crate::failure::Failure;
use crate::naming::named;
use crate::output::{self, Progress};
use crate::place::Told;
use crate::reader::Reader;
use crate::signals::Signals;
use crate::view::text::{counted, size, span};

/// `verify --json`.
#[derive(Debug, Serialize)]
struct VerifyView {
    sound: bool,
    databases: Vec<DatabaseVerified>,
}

/// One database of `verify --json`.
#[derive(Debug, Serialize)]
struct DatabaseVerified {
    name: String,
    #[serde(flatten)]
    report: VerifyReport,
}

pub(crate) async fn verify(verb: cli::Verify) -> Result<(), Failure> {
    let told = Told::by(&verb.place)?;
    let wanted = verb.database.as_deref().map(named);
    let place = told.place_to_read(wanted.as_deref())?;
    let reader = Reader::open(&place, &told.config, None).await?;
    let wanted = reader.name_of(wanted.as_deref()).await?;
    // Before there are scratch files that a signal would leave behind.
    let signals = Signals::listen()?;
    // The scratch files of a deep verification hold whole databases: they go where the user's temporary files go.
    let scratch = if verb.deep { Some(scratch_folder()?) } else { None };
    let folder = scratch.as_ref().map(tempfile::TempDir::path);
    let progress = Arc::new(Progress::new(verb.json.json));
    let verified = verify_all(&reader, wanted.as_deref(), folder, &progress, signals).await;
    progress.done();
    let databases = verified?;
    let view = VerifyView { sound: databases.iter().all(|one| one.report.is_sound()), databases };
    output::report(verb.json.json, &view, || text(&view, reader.url()))?;
    if view.sound { Ok(()) } else { Err(damaged(&view)) }
}

/// One database after another. A signal ends it at once, whatever it waits for; scratch files go with their folder.
async fn verify_all(
    reader: &Reader,
    wanted: Option<&str>,
    scratch: Option<&Path>,
    progress: &Arc<Progress>,
    mut signals: Signals,
) -> Result<Vec<DatabaseVerified>, Failure> {
    let cancel = Cancel::new();
    let verifying = async {
        let mut databases = Vec::new();
        for suspect in reader.suspects(wanted).await? {
            let shown = Arc::clone(progress);
            let tell = Arc::new(move |now| shown.show(&progress_of(now)));
            let report = reader.verify(&suspect, scratch, tell, &cancel).await?;
            databases.push(DatabaseVerified { name: suspect.name, report });
        }
        Ok(databases)
    };
    tokio::select! {
        verified = verifying => verified,
        (name, _) = signals.next() => {
            // What runs on other threads.
            cancel.cancel();
            Err(Failure::new(ErrorKind::Failed, format!("{name}: the verification was not finished"))
                .advise("nothing was changed and nothing is left behind; the same command starts anew"))
        }
    }
}

fn scratch_folder() -> Result<tempfile::TempDir, Failure> {
    let folder = tempfile::Builder::new().prefix("everwhen-verify-").tempdir();
    folder.map_err(|error| {
        Failure::io("cannot make a folder for the rebuilt databases", &error)
            .advise("set TMPDIR to a folder with room for the largest database")
    })
}

fn progress_of(now: VerifyProgress) -> v1::RestoreProgress {
    let (phase, done_bytes, total_bytes) =
        if now.transactions > 0 { ("replay", now.bytes, 0) } else { ("read", now.bytes, now.total_bytes) };
    v1::RestoreProgress { phase: phase.into(), done_bytes, total_bytes, ..v1::RestoreProgress::default() }
}

fn text(view: &VerifyView, url: &str) -> String {
    let mut text = String::new();
    for DatabaseVerified { name, report } in &view.databases {
        let verdict = if report.is_sound() { "sound" } else { "DAMAGED" };
        let took = span(std::time::Duration::from_millis(report.elapsed_ms));
        text.push_str(&format!(
            "{name}  {verdict}: {} read ({}, {}, {}), {}, in {took}\n",
            counted(report.objects, "object", "objects"),
            counted(report.segments, "segment", "segments"),
            counted(report.bases, "base", "bases"),
            counted(report.packs, "pack", "packs"),
            size(report.bytes),
        ));
        if report.deep {
            let through = report.proven_through.map(|at| format!(", through {at}")).unwrap_or_default();
            let proven = counted(report.proven_transactions, "state", "states");
            text.push_str(&format!("  {proven} rebuilt and proven{through}\n"));
        }
        for problem in &report.problems {
            text.push_str(&format!("  ! {}: {}\n", problem.object, problem.what));
        }
    }
    if view.databases.is_empty() {
        text.push_str(&format!("the repository {url} holds no database\n"));
    }
    text
}

fn damaged(view: &VerifyView) -> Failure {
    let problems: usize = view.databases.iter().map(|one| one.report.problems.len()).sum();
    Failure::new(
        ErrorKind::Damaged,
        format!("the repository is damaged: {}", counted(problems as u64, "problem", "problems")),
    )
    .advise("what needs none of these objects can still be restored: a restore goes around damage where it can, and says so")
}

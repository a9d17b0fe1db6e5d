//! `everwhen restore`.

use std::path::Path;

use everwhen_engine::error::ErrorKind;
use everwhen_engine::restore::Cancel;
use everwhen_proto::v1;
use everwhen_proto::v1::restore_response::Event;
use futures::TryStreamExt;

use super::reach::{Prefer, reach};
use super::times;
use crate::cli;
use crate::failure::Failure;
use crate::output::{self, Progress};
use crate::reader;
use crate::signals::Signals;
use crate::view::{PlanView, RestoreView, text};

pub(crate) async fn restore(verb: cli::Restore) -> Result<(), Failure> {
    let target = times::target(verb.at.as_deref(), verb.position.as_deref())?;
    let to = absolute(&verb.to)?;
    let found = reach(&verb.reach, Some(&verb.database), Prefer::Repository).await?;
    let database = found.database.unwrap_or_default();
    if verb.dry_run {
        let request = v1::PlanRestoreRequest { database, target: Some(target) };
        let view = PlanView::from(found.answers.plan(request).await?);
        output::report(verb.json.json, &view, || text::plan(&view, &to))?;
        // A daemon elsewhere has a disk of its own.
        return if found.by_daemon { Ok(()) } else { reader::fits(&to, view.space_needed_bytes) };
    }
    let request = v1::RestoreRequest { database, target: Some(target), to };
    let progress = Progress::new(verb.json.json);
    let cancel = Cancel::new();
    let parts = found.answers.restore(request, cancel.clone());
    let report = follow(parts, &cancel, &progress).await.map_err(|stop| match stop {
        Stop::Failed(failure) => failure,
        Stop::Asked(name) => stopped(name, found.by_daemon),
    });
    progress.done();
    let view = RestoreView::from(report?);
    output::report(verb.json.json, &view, || text::restored(&view))
}

/// Why there is no report.
enum Stop {
    Failed(Failure),
    /// By this signal.
    Asked(&'static str),
}

/// Shows progress until the report comes. A signal stops the restore, which then leaves nothing behind; unless it comes
/// while the file gets its name: then that is reported.
async fn follow(
    mut parts: crate::answers::Parts<v1::RestoreResponse>,
    cancel: &Cancel,
    progress: &Progress,
) -> Result<v1::RestoreReport, Stop> {
    let mut signals = Signals::listen().map_err(Stop::Failed)?;
    let (mut asked, mut stopped_by) = (false, None);
    loop {
        let part = tokio::select! {
            part = parts.try_next() => part,
            (name, code) = signals.next() => {
                if std::mem::replace(&mut asked, true) {
                    std::process::exit(code);
                }
                if cancel.cancel() {
                    stopped_by = Some(name);
                }
                continue;
            }
        };
        let event = match (part, stopped_by) {
            (Err(_) | Ok(None), Some(name)) => return Err(Stop::Asked(name)),
            (part, _) => part.map_err(Stop::Failed)?.map(|part| part.event),
        };
        match event {
            Some(Some(Event::Progress(now))) => progress.show(&now),
            Some(Some(Event::Report(report))) => return Ok(report),
            Some(Some(Event::Plan(_)) | None) => {}
            None => {
                let failure = Failure::new(ErrorKind::Failed, "the restore ended without a report");
                return Err(Stop::Failed(failure));
            }
        }
    }
}

fn stopped(by: &str, by_daemon: bool) -> Failure {
    let advice = match by_daemon {
        false => "nothing was left behind; the same command starts anew",
        true => {
            "the daemon was told; if there is a file all the same, it was finished just then, and is proven"
        }
    };
    Failure::new(ErrorKind::Failed, format!("{by}: the restore was not finished")).advise(advice)
}

/// A restore by a daemon happens in its own working directory: it gets the path from the root.
fn absolute(path: &Path) -> Result<String, Failure> {
    let absolute = std::path::absolute(path)
        .map_err(|error| Failure::io(format!("cannot make sense of the path {}", path.display()), &error))?;
    absolute
        .into_os_string()
        .into_string()
        .map_err(|path| Failure::usage(format!("the path {} is not UTF-8", Path::new(&path).display())))
}

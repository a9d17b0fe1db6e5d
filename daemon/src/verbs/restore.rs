//! `everwhen restore`.

use std::path::Path;

use everwhen_engine::error::ErrorKind;
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
        return if verb.reach.addr.is_some() { Ok(()) } else { reader::fits(&to, view.space_needed_bytes) };
    }
    let request = v1::RestoreRequest { database, target: Some(target), to };
    let progress = Progress::new(verb.json.json);
    let report = follow(found.answers.restore(request), &progress).await;
    progress.done();
    let view = RestoreView::from(report?);
    output::report(verb.json.json, &view, || text::restored(&view))
}

/// Shows progress until the report comes. A signal drops the restore, which then leaves nothing behind.
async fn follow(
    mut parts: crate::answers::Parts<v1::RestoreResponse>,
    progress: &Progress,
) -> Result<v1::RestoreReport, Failure> {
    let mut signals = Signals::listen()?;
    loop {
        let part = tokio::select! {
            part = parts.try_next() => part?,
            (name, _) = signals.next() => {
                drop(parts);
                return Err(Failure::new(ErrorKind::Failed, format!("{name}: the restore was not finished"))
                    .advise("nothing was left behind; the same command starts anew"));
            }
        };
        match part.map(|part| part.event) {
            Some(Some(Event::Progress(now))) => progress.show(&now),
            Some(Some(Event::Report(report))) => return Ok(report),
            Some(Some(Event::Plan(_)) | None) => {}
            None => return Err(Failure::new(ErrorKind::Failed, "the restore ended without a report")),
        }
    }
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

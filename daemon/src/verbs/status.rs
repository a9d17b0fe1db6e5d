//! `everwhen status`.

use everwhen_engine::error::ErrorKind;
use everwhen_engine::time::Timestamp;
use everwhen_proto::v1;

use super::reach::{Prefer, reach};
use crate::cli;
use crate::failure::Failure;
use crate::output;
use crate::view::{StatusView, text};

pub(crate) async fn status(verb: cli::Status) -> Result<(), Failure> {
    let found = reach(&verb.reach, verb.database.as_deref(), Prefer::Daemon).await?;
    let request = v1::GetStatusRequest { database: found.database.unwrap_or_default() };
    let view = StatusView::from(found.answers.status(request).await?);
    output::report(verb.json.json, &view, || text::status(&view, Timestamp::now()))?;
    if verb.check { all_well(&view) } else { Ok(()) }
}

/// An error unless there are databases, and nothing is to be said of them.
fn all_well(view: &StatusView) -> Result<(), Failure> {
    if view.databases.is_empty() {
        return Err(Failure::new(ErrorKind::Failed, "nothing is protected"));
    }
    let unwell: Vec<&str> =
        view.databases.iter().filter(|db| db.health != "ok").map(|db| db.name.as_str()).collect();
    if unwell.is_empty() {
        return Ok(());
    }
    Err(Failure::new(ErrorKind::Failed, format!("not ok: {}", unwell.join(", ")))
        .advise("the reasons stand in the status"))
}

//! `everwhen status`.

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
    output::report(verb.json.json, &view, || text::status(&view, Timestamp::now()))
}

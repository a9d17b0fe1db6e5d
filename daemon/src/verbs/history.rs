//! `everwhen history`.

use everwhen_proto::v1;

use super::reach::{Prefer, reach};
use crate::cli;
use crate::failure::Failure;
use crate::output;
use crate::view::{HistoryView, text};

pub(crate) async fn history(verb: cli::History) -> Result<(), Failure> {
    let found = reach(&verb.reach, Some(&verb.database), Prefer::Daemon).await?;
    let request = v1::GetHistoryRequest { database: found.database.unwrap_or_default() };
    let view = HistoryView::from(found.answers.history(request).await?);
    output::report(verb.json.json, &view, || text::history(&view))
}

//! `everwhen points`.

use everwhen_proto::v1;
use futures::TryStreamExt;

use super::reach::{Prefer, reach};
use super::times;
use crate::cli;
use crate::failure::Failure;
use crate::output;
use crate::view::{RestorePointView, text};

pub(crate) async fn points(verb: cli::Points) -> Result<(), Failure> {
    let (from, to) = (times::optional(verb.from.as_deref())?, times::optional(verb.to.as_deref())?);
    times::in_order(from.as_ref(), to.as_ref())?;
    let found = reach(&verb.reach, Some(&verb.database), Prefer::Repository).await?;
    let request = v1::ListPointsRequest { database: found.database.unwrap_or_default(), from, to };
    let mut parts = found.answers.points(request);
    while let Some(part) = parts.try_next().await? {
        let mut lines = String::new();
        for point in part.points {
            let view = RestorePointView::from(point);
            if verb.json.json {
                lines.push_str(&output::json_line(&view)?);
            } else {
                lines.push_str(&text::point(&view));
            }
        }
        output::print(&lines)?;
    }
    Ok(())
}

//! `everwhen key`.

use crate::cli;
use crate::failure::Failure;

pub(crate) async fn key(_verb: cli::Key) -> Result<(), Failure> {
    Err(Failure::usage("interim"))
}

//! `everwhen verify`.

use crate::cli;
use crate::failure::Failure;

pub(crate) async fn verify(_verb: cli::Verify) -> Result<(), Failure> {
    Err(Failure::usage("interim"))
}

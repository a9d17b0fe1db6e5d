//! Claims of timelines: which there are, and taking the next.
//!
//! A damaged claim stops nobody: its number is taken, and whatever leads over it is not gone on with.

use std::collections::{BTreeMap, BTreeSet};

use crate::failpoint;
use crate::ids::{DatabaseId, Position, TimelineId};
use crate::protect::driver::Driver;
use crate::protect::error::ProtectError;
use crate::repository::{Claim, ForkReason, NewTimeline, Repository, Timeline};
use crate::time::Timestamp;

/// The claims of a database.
pub(super) struct Claims {
    readable: Vec<Timeline>,
    unreadable: BTreeSet<TimelineId>,
}

impl Claims {
    pub(super) async fn of(repository: &Repository, database: DatabaseId) -> Result<Self, ProtectError> {
        let (mut readable, mut unreadable) = (Vec::new(), BTreeSet::new());
        for (key, claim) in repository.timelines_or_errors(database).await? {
            match claim {
                Ok(claim) => readable.push(claim),
                Err(error) => {
                    tracing::warn!(%error, "a claim cannot be read: its timeline is left as it is");
                    unreadable.extend(timeline_of_key(&key));
                }
            }
        }
        Ok(Self { readable, unreadable })
    }

    /// The highest number of those that can be read: nobody reads what is written under another.
    pub(super) fn newest(&self) -> Option<TimelineId> {
        self.readable.iter().map(|claim| claim.id).max()
    }

    /// Whether nobody has ever claimed one.
    pub(super) fn are_none(&self) -> bool {
        self.readable.is_empty() && self.unreadable.is_empty()
    }

    /// Where each timeline left its parent.
    pub(super) fn parents(&self) -> BTreeMap<TimelineId, Option<Position>> {
        self.readable.iter().map(|claim| (claim.id, claim.parent)).collect()
    }

    /// Whether somebody else has this timeline, or nobody. An unreadable claim may be ours.
    pub(super) fn are_of_others(&self, timeline: TimelineId, nonce: [u8; 8]) -> bool {
        let ours = |claim: &Timeline| claim.id == timeline && claim.nonce == nonce;
        !self.readable.iter().any(ours) && !self.unreadable.contains(&timeline)
    }
}

/// On a store that ignores create-if-absent a nonce follows the number.
fn timeline_of_key(key: &str) -> Option<TimelineId> {
    let name = key.rsplit('/').next()?;
    TimelineId::from_key_text(name.split('-').next()?).ok()
}

/// A timeline that we have claimed and not written on yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OurClaim {
    pub(super) database: DatabaseId,
    pub(super) parent: Option<Position>,
    pub(super) timeline: TimelineId,
    pub(super) nonce: [u8; 8],
}

/// Claims the next free timeline after all that can be read. A claim that a start has made and then failed before it
/// could use it is used by the next: a full disk would make thousands over a night.
pub(super) async fn claim(
    driver: &Driver,
    database: DatabaseId,
    parent: Option<Position>,
    reason: ForkReason,
) -> Result<OurClaim, ProtectError> {
    let newest = Claims::of(&driver.repository, database).await?.newest();
    let unused = *driver.unused_claim.borrow();
    let fits = |unused: &OurClaim| {
        (unused.database, unused.parent, Some(unused.timeline)) == (database, parent, newest)
    };
    if let Some(unused) = unused.filter(fits) {
        return Ok(unused);
    }
    failpoint::hit("timeline_before_claim");
    let mut wanted = newest.map_or(Ok(TimelineId::FIRST), |newest| after(database, newest))?;
    loop {
        let new = NewTimeline {
            id: wanted,
            parent,
            reason,
            host: driver.options.host,
            host_name: driver.options.host_name.clone(),
            now: Timestamp::now(),
        };
        if let Claim::Won(won) = driver.repository.claim_timeline(database, new).await? {
            failpoint::hit("timeline_after_claim");
            let ours = OurClaim { database, parent, timeline: won.id, nonce: won.nonce };
            *driver.unused_claim.borrow_mut() = Some(ours);
            return Ok(ours);
        }
        wanted = after(database, wanted)?;
    }
}

fn after(database: DatabaseId, timeline: TimelineId) -> Result<TimelineId, ProtectError> {
    Some(timeline.next()).filter(|next| *next > timeline).ok_or(ProtectError::NoTimelineLeft { database })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_claim_is_in_its_name_whatever_is_in_it() {
        for (key, number) in [("db/x/timeline/0000000a", 10), ("db/x/timeline/00000002-00000000000000cc", 2)]
        {
            assert_eq!(timeline_of_key(key).map(TimelineId::get), Some(number));
        }
        assert_eq!(timeline_of_key("db/x/timeline/notes"), None);
    }

    #[test]
    fn behind_the_last_number_there_is_no_timeline() {
        let (database, last) = (DatabaseId::from_bytes([1; 8]), TimelineId::new(u32::MAX).unwrap());
        assert_eq!(after(database, TimelineId::FIRST).unwrap().get(), 2);
        assert!(matches!(after(database, last), Err(ProtectError::NoTimelineLeft { .. })));
    }
}

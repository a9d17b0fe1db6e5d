//! Timelines: who writes which line of history. A claim is created once and never released.

use std::sync::PoisonError;

use everwhen_proto::store as proto;
use serde::Serialize;

use crate::ids::{DatabaseId, HostId, Position, TimelineId, TxId};
use crate::random;
use crate::store::keys;
use crate::time::Timestamp;

use super::databases::seal_record;
use super::{Repository, RepositoryError, frame, once};

/// Why a timeline was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ForkReason {
    /// Protection of the database began.
    Began,
    /// The source was found behind the repository: it lost its last transactions, or an older copy took its place.
    SourceBehind,
    /// The daemon could not prove that it goes on where the timeline ended (another host, lost local state).
    NotProven,
    /// Another writer was found on the timeline.
    OtherWriter,
    /// The database was restored in place.
    Restored,
    /// A reason of a newer Everwhen.
    Unknown,
}

/// One line of history and the claim to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Timeline {
    /// Its number.
    pub id: TimelineId,
    /// The state at which it left another timeline; `None` for the first, and for one that starts anew from a base.
    pub parent: Option<Position>,
    /// Why it was begun.
    pub reason: ForkReason,
    /// The daemon that writes it.
    pub host: HostId,
    /// That daemon's machine.
    pub host_name: String,
    /// When it was claimed.
    pub claimed: Timestamp,
    /// By which the writer knows its own claim again.
    #[serde(skip)]
    pub nonce: [u8; 8],
}

/// A timeline to be claimed.
#[derive(Clone, Debug)]
pub struct NewTimeline {
    /// Its number: one more than the highest seen.
    pub id: TimelineId,
    /// The state at which it leaves another timeline.
    pub parent: Option<Position>,
    /// Why.
    pub reason: ForkReason,
    /// The daemon that will write it.
    pub host: HostId,
    /// That daemon's machine.
    pub host_name: String,
    /// The present time.
    pub now: Timestamp,
}

/// What became of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The timeline is ours.
    Won(Timeline),
    /// Somebody else has that number; look at all timelines again before the next claim.
    Taken,
}

impl Repository {
    /// The timelines of a database, in order. One listing, and one read for each claim not met before.
    ///
    /// # Errors
    /// The first claim that cannot be read.
    pub async fn timelines(&self, database: DatabaseId) -> Result<Vec<Timeline>, RepositoryError> {
        self.timelines_or_errors(database).await?.into_iter().map(|(_, timeline)| timeline).collect()
    }

    /// Like [`Repository::timelines`], by the keys of the claims, with the error in place of each that cannot be read.
    ///
    /// # Errors
    /// When the claims cannot be listed, or the store fails meanwhile.
    pub async fn timelines_or_errors(
        &self,
        database: DatabaseId,
    ) -> Result<Vec<(String, Result<Timeline, RepositoryError>)>, RepositoryError> {
        let prefix = keys::timeline_prefix(database);
        let entries = self.store().list_all(&prefix, None).await?;
        let names = entries.iter().map(|entry| entry.key.as_str());
        let mut timelines = Vec::new();
        for winner in once::winners(&prefix, 8, names) {
            match self.timeline(database, &winner).await {
                Err(RepositoryError::Store(error)) if !error.is_missing() => return Err(error.into()),
                timeline => timelines.push((winner.key, timeline)),
            }
        }
        Ok(timelines)
    }

    /// Claims a timeline. One request where the store keeps create-if-absent (which is probed first, once); a listing, a
    /// put, two seconds and a listing elsewhere.
    ///
    /// # Errors
    /// Key and store errors. After one, the claim may stand all the same: look at the timelines, and claim the next.
    pub async fn claim_timeline(
        &self,
        database: DatabaseId,
        new: NewTimeline,
    ) -> Result<Claim, RepositoryError> {
        self.probe_create_if_absent(new.host).await?;
        let nonce = random::nonce()?;
        let timeline = Timeline {
            id: new.id,
            parent: new.parent,
            reason: new.reason,
            host: new.host,
            host_name: new.host_name,
            claimed: new.now,
            nonce,
        };
        let message = to_proto(database, &timeline);
        let keys = self.data_keys(database).await?;
        let (prefix, name) = (keys::timeline_prefix(database), timeline.id.key_text());
        let created =
            self.create_once(&prefix, &name, nonce, |key| seal_record(keys.as_deref(), key, &message));
        if created.await? {
            return Ok(Claim::Won(timeline));
        }
        Ok(Claim::Taken)
    }

    /// The first claim of a later timeline than `ours`, if there is one. One request, which finds nothing as a rule (a
    /// listing where the store ignores create-if-absent).
    ///
    /// # Errors
    /// What the store says; a claim that cannot be read.
    pub async fn newer_claim(
        &self,
        database: DatabaseId,
        ours: TimelineId,
    ) -> Result<Option<Timeline>, RepositoryError> {
        // Where conditions do not hold, claims have longer names that only a listing finds.
        let named_plainly = self.conditions_hold(&keys::probe_key(HostId::from_bytes([0; 8]))).await?;
        let next = keys::timeline_key(database, ours.next());
        if named_plainly && self.store().size(&next).await?.is_none() {
            return Ok(None);
        }
        let claims = self.timelines(database).await?.into_iter();
        Ok(claims.filter(|claim| claim.id > ours).max_by_key(|claim| claim.id))
    }

    async fn timeline(
        &self,
        database: DatabaseId,
        winner: &once::Numbered,
    ) -> Result<Timeline, RepositoryError> {
        let claims = || self.inner.claims.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = claims().get(&winner.key) {
            return Ok(known.clone());
        }
        let message: proto::TimelineClaim = self.read_record(database, &winner.key).await?;
        let timeline = from_proto(database, winner.number, message)
            .ok_or_else(|| RepositoryError::damaged(&winner.key, "its fields do not fit its name"))?;
        claims().insert(winner.key.clone(), timeline.clone());
        Ok(timeline)
    }
}

pub(super) fn to_proto(database: DatabaseId, timeline: &Timeline) -> proto::TimelineClaim {
    let reason = match timeline.reason {
        ForkReason::Began => proto::ForkReason::Began,
        ForkReason::SourceBehind => proto::ForkReason::SourceBehind,
        ForkReason::NotProven => proto::ForkReason::NotProven,
        ForkReason::OtherWriter => proto::ForkReason::OtherWriter,
        ForkReason::Restored => proto::ForkReason::Restored,
        ForkReason::Unknown => proto::ForkReason::Unspecified,
    };
    proto::TimelineClaim {
        format: frame::FORMAT,
        database_id: database.as_bytes().to_vec(),
        timeline: timeline.id.get(),
        parent_timeline: timeline.parent.map_or(0, |parent| parent.timeline.get()),
        parent_tx: timeline.parent.map_or(0, |parent| parent.tx.get()),
        reason: reason.into(),
        host_id: timeline.host.as_bytes().to_vec(),
        host_name: timeline.host_name.clone(),
        claimed_micros: timeline.claimed.as_micros(),
        nonce: timeline.nonce.to_vec(),
    }
}

pub(super) fn from_proto(
    database: DatabaseId,
    number: u64,
    message: proto::TimelineClaim,
) -> Option<Timeline> {
    let id = TimelineId::new(message.timeline)?;
    if message.database_id != database.as_bytes() || u64::from(id.get()) != number {
        return None;
    }
    let parent = match (message.parent_timeline, message.parent_tx) {
        (0, 0) => None,
        (timeline, tx) => Some(Position::new(TimelineId::new(timeline)?, TxId::new(tx)?)),
    };
    // A line can only leave one that was there before it: else following parents might never end.
    if parent.is_some_and(|parent| parent.timeline >= id) {
        return None;
    }
    let reason = match message.reason() {
        proto::ForkReason::Began => ForkReason::Began,
        proto::ForkReason::SourceBehind => ForkReason::SourceBehind,
        proto::ForkReason::NotProven => ForkReason::NotProven,
        proto::ForkReason::OtherWriter => ForkReason::OtherWriter,
        proto::ForkReason::Restored => ForkReason::Restored,
        proto::ForkReason::Unspecified => ForkReason::Unknown,
    };
    Some(Timeline {
        id,
        parent,
        reason,
        host: HostId::from_bytes(message.host_id.as_slice().try_into().ok()?),
        host_name: message.host_name,
        claimed: Timestamp::from_micros(message.claimed_micros),
        nonce: message.nonce.as_slice().try_into().ok()?,
    })
}

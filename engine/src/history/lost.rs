//! Timelines that something was written on and whose claim is not there, or builds on one that is not: nothing of them
//! can be restored, and from their first sign of life on no older timeline is the main line any more.

use std::collections::BTreeMap;

use crate::history::invariants::lost_line;
use crate::history::{Findings, Flaw, History, Timeline};
use crate::ids::{DatabaseId, TimelineId};
use crate::time::Timestamp;

/// The timelines with signs of life that are not among the sound ones, each with the first of these signs.
pub(crate) fn lost_timelines(
    database: DatabaseId,
    findings: &Findings,
    sound: &BTreeMap<TimelineId, Timeline>,
) -> BTreeMap<TimelineId, Timestamp> {
    let mut since: BTreeMap<TimelineId, Timestamp> = BTreeMap::new();
    let segments = findings.segments.iter().map(|entry| &entry.key).filter(|key| key.database == database);
    let segments = segments.map(|key| (key.timeline, key.begins()));
    let marks = findings.seen.iter().map(|mark| (mark.position.timeline, mark.time));
    for (timeline, time) in segments.chain(marks).filter(|(timeline, _)| !sound.contains_key(timeline)) {
        since.entry(timeline).and_modify(|first| *first = time.min(*first)).or_insert(time);
    }
    // A base's name has no time: it was made after the timeline below was begun.
    let bases = findings.bases.iter().map(|entry| &entry.key).filter(|key| key.database == database);
    let bases = bases.map(|key| key.position.timeline).filter(|timeline| !sound.contains_key(timeline));
    for timeline in bases {
        let below = sound.range(..timeline).next_back().map(|(_, below)| below.claimed_at);
        since.entry(timeline).or_insert(below.unwrap_or(Timestamp::MIN));
    }
    since
}

impl History {
    /// What is wrong with the timeline that was the main line at a moment, if it is a lost one.
    pub(crate) fn lost_at(&self, time: Timestamp) -> Option<&Flaw> {
        let active = self.active().into_iter().rev().find(|active| active.from <= time)?;
        lost_line(&self.flaws, active.timeline)
    }
}

//! Ways around damage: other segments that hold the same transactions, older bases. All lead to the very same state.

use std::collections::BTreeSet;

use crate::base::PackRef;
use crate::history::History;
use crate::ids::Position;
use crate::plan::{Located, RestorePlan, Target, locate};
use crate::restore::planning::{Goal, goal, open_manifest, plan_to};
use crate::restore::{Objects, RestoreError};
use crate::store::keys::{BaseKey, SegmentKey, pack_key};
use crate::time::Timestamp;

/// A history, and what of it turned out to be of no use.
pub(crate) struct Around<'a, O> {
    objects: &'a O,
    whole: &'a History,
    /// The whole history without what is avoided.
    rest: History,
    lost: BTreeSet<String>,
    /// Segments after which the chain is broken, while it is not known which side is wrong.
    suspected: Vec<SegmentKey>,
    first_error: Option<RestoreError>,
}

impl<'a, O: Objects> Around<'a, O> {
    pub(crate) fn new(objects: &'a O, whole: &'a History) -> Self {
        let (lost, suspected) = (BTreeSet::new(), Vec::new());
        Self { objects, whole, rest: whole.clone(), lost, suspected, first_error: None }
    }

    /// The objects that were gone around.
    pub(crate) fn avoided(self) -> Vec<String> {
        let suspected = self.suspected.iter().map(ToString::to_string);
        self.lost.into_iter().chain(suspected).collect()
    }

    /// Finds the state that a target means, on the whole history. When the segment that says which of its transactions is
    /// meant turns out to be damaged, only segments that hold all the same transactions may say so in its place.
    pub(crate) async fn goal(&mut self, target: Target, now: Timestamp) -> Result<Goal, RestoreError> {
        let error = match goal(self.objects, self.whole, target, now).await {
            Ok(goal) => return Ok(goal),
            Err(error) => error,
        };
        let Located::Within(key, _) = locate(self.whole, target, now)? else { return Err(error) };
        self.avoid(error, None).await?;
        while is_tiled(&self.rest, &key) {
            match goal(self.objects, &self.rest, target, now).await {
                Ok(goal) if is_one_of(&key, goal.position) => return Ok(goal),
                Ok(_) => break,
                Err(error) => self.avoid(error, None).await?,
            }
        }
        Err(self.first_error.take().unwrap_or(RestoreError::Stopped))
    }

    /// Plans the way to a state, around whatever reading for the plan finds damaged.
    pub(crate) async fn plan(&mut self, goal: &Goal) -> Result<RestorePlan, RestoreError> {
        loop {
            match plan_to(self.objects, &self.rest, goal).await {
                Ok(plan) => return Ok(plan),
                Err(error) => self.avoid(error, None).await?,
            }
        }
    }

    /// Plans the way to a state, with damage as the error that it is: for those who look for it.
    pub(crate) async fn plan_straight(&self, goal: &Goal) -> Result<RestorePlan, RestoreError> {
        plan_to(self.objects, &self.rest, goal).await
    }

    /// Takes what an error blames out of the history.
    ///
    /// # Errors
    /// The first error there was, when nothing can be blamed that is not avoided already.
    pub(crate) async fn avoid(
        &mut self,
        error: RestoreError,
        base: Option<&BaseKey>,
    ) -> Result<(), RestoreError> {
        if !self.blame(&error, base) {
            return Err(self.first_error.take().unwrap_or(error));
        }
        // Told in the report if there is a way, and in the error if there is none.
        tracing::info!("looking for a way around damage: {error}");
        self.rest = self.without_lost().await;
        self.first_error.get_or_insert(error);
        Ok(())
    }

    /// Notes what is to blame; whether that is news.
    fn blame(&mut self, error: &RestoreError, base: Option<&BaseKey>) -> bool {
        match error {
            // A put that was broken off may have left a twin of the segment before, to which the rest is chained.
            RestoreError::ChainBroken { before, .. } if self.has_twin(before) => {
                self.suspected.push(**before);
                true
            }
            RestoreError::ChainBroken { before, segment, .. } => {
                // None of the twins fits: it is not they who are wrong.
                self.suspected.retain(|twin| twin.range.last() != before.range.last());
                self.lost.insert(segment.to_string())
            }
            // A wrong result of sound objects: what is not under a checksum of its own is the base as a whole.
            RestoreError::NotProven { .. }
            | RestoreError::OtherSize { .. }
            | RestoreError::NotJoined { .. } => base.is_some_and(|base| self.lost.insert(base.to_string())),
            error => error.lost_object().is_some_and(|object| self.lost.insert(object.to_owned())),
        }
    }

    /// Whether others of the segments that are left hold the same transactions.
    fn has_twin(&self, key: &SegmentKey) -> bool {
        let only = BTreeSet::from([key.to_string()]);
        is_tiled(&self.rest.without(&only, &BTreeSet::new()), key)
    }

    /// The history without lost objects, and without the bases that need a lost pack.
    async fn without_lost(&self) -> History {
        let mut bases = self.lost.clone();
        if self.lost.iter().any(|object| object.contains("/chunk/")) {
            for entry in self.whole.bases() {
                let Ok(manifest) = open_manifest(self.objects, entry.key).await else { continue };
                let key = |pack: &PackRef| pack_key(manifest.database, pack.digest);
                if manifest.packs.iter().any(|pack| self.lost.contains(&key(pack))) {
                    bases.insert(entry.key.to_string());
                }
            }
        }
        let suspected = self.suspected.iter().map(ToString::to_string);
        let segments = self.lost.iter().cloned().chain(suspected).collect();
        self.whole.without(&segments, &bases)
    }
}

/// Whether a state is one of a segment's, or the one before its first.
fn is_one_of(key: &SegmentKey, position: Position) -> bool {
    let before = key.range.first().previous() == Some(position.tx);
    before || position.timeline == key.timeline && key.range.contains(position.tx)
}

/// Whether a history has every transaction of a segment's name.
fn is_tiled(history: &History, key: &SegmentKey) -> bool {
    let Some(line) = history.line(key.timeline) else { return false };
    let mut next = key.range.first();
    while let Some(piece) = line.piece_of(next) {
        if piece.key.range.last() >= key.range.last() {
            return true;
        }
        next = piece.key.range.last().next();
    }
    false
}

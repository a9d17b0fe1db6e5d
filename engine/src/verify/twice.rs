//! Transactions that two segments hold: both must say the same of them.
//!
//! Overlap is ordinary: a daemon that goes on after a kill cuts the same log into other parts, and repacking makes wide
//! segments beside narrow ones. But two different transactions of one number would make a restore depend on which of the
//! two a reader prefers.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::SegmentEntry;
use crate::ids::{Position, TimelineId, TxId};
use crate::page::StateChecksum;
use crate::store::keys::SegmentKey;
use crate::transaction::Transaction;
use crate::verify::Problem;

/// The segments that share transactions with others, in the history's order.
pub(super) fn overlapping(segments: &[SegmentEntry]) -> BTreeSet<usize> {
    let mut shared = BTreeSet::new();
    // The segment that reaches furthest so far.
    let mut furthest: Option<(usize, TimelineId, TxId)> = None;
    for (at, SegmentEntry { key, .. }) in segments.iter().enumerate() {
        match furthest {
            Some((other, timeline, last)) if timeline == key.timeline && key.range.first() <= last => {
                shared.extend([other, at]);
                if key.range.last() <= last {
                    continue;
                }
            }
            _ => {}
        }
        furthest = Some((at, key.timeline, key.range.last()));
    }
    shared
}

/// The states after transactions that several segments hold.
#[derive(Default)]
pub(super) struct Twice {
    states: BTreeMap<Position, StateChecksum>,
}

impl Twice {
    /// Adds a segment's transactions; tells the first that another segment has with another state.
    pub(super) fn add(&mut self, key: &SegmentKey, transactions: &[Transaction]) -> Option<Problem> {
        let mut problem = None;
        for transaction in transactions {
            let position = Position::new(key.timeline, transaction.tx);
            let known = *self.states.entry(position).or_insert(transaction.state);
            if known != transaction.state && problem.is_none() {
                let what = format!("another segment has another transaction {position}");
                problem = Some(Problem::new(key, &what));
            }
        }
        problem
    }
}

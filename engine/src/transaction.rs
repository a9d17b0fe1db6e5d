//! One commit as history knows it.

use crate::ids::TxId;
use crate::page::StateChecksum;
use crate::time::Timestamp;

/// What is particular about a transaction. A transaction with any of these is the first of its segment, so that a
/// listing of keys alone shows every gap (see [`crate::store::keys::SegmentKey`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TxFlags {
    /// It ends a gap: the commits between the transaction before and this one were not captured singly. Its pages are
    /// the difference between the two states.
    pub ends_gap: bool,
    /// Its state is given by the base at this very transaction; the log cannot be replayed across it. So is the first
    /// transaction of a history, and one after a change of page size.
    pub needs_base: bool,
    /// It was captured singly, but its commit time is only known to lie after `not_before` and up to `time` (the daemon
    /// was away when it happened).
    pub uncertain_time: bool,
    /// The clock had stepped back; `time` is held at the time of the transaction before.
    pub held_clock: bool,
}

impl TxFlags {
    /// Nothing particular.
    pub const NONE: Self =
        Self { ends_gap: false, needs_base: false, uncertain_time: false, held_clock: false };

    /// Whether any flag is set.
    #[must_use]
    pub fn any(self) -> bool {
        self != Self::NONE
    }

    /// Whether the moments between `not_before` and `time` have no known restore point.
    #[must_use]
    pub fn opens_window(self) -> bool {
        self.ends_gap || self.uncertain_time
    }

    /// The four flags as the low four bits: gap 1, base 2, time 4, clock 8.
    #[must_use]
    pub fn bits(self) -> u8 {
        u8::from(self.ends_gap)
            | u8::from(self.needs_base) << 1
            | u8::from(self.uncertain_time) << 2
            | u8::from(self.held_clock) << 3
    }

    /// Reads [`TxFlags::bits`]; `None` when an unknown bit is set.
    #[must_use]
    pub fn from_bits(bits: u8) -> Option<Self> {
        (bits < 16).then_some(Self {
            ends_gap: bits & 1 != 0,
            needs_base: bits & 2 != 0,
            uncertain_time: bits & 4 != 0,
            held_clock: bits & 8 != 0,
        })
    }
}

/// One commit: what a segment records of it beside its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Its number.
    pub tx: TxId,
    /// When it was committed, as observed. Never decreases along a history.
    pub time: Timestamp,
    /// The latest moment at which it is known not to have been committed yet; equal to `time` unless a flag says otherwise.
    pub not_before: Timestamp,
    /// What is particular about it.
    pub flags: TxFlags,
    /// Page images of it in its segment. 0 is legal: a state given by a base, or a commit that changed nothing.
    pub pages: u32,
    /// The size of the image after it, in pages.
    pub image_pages: u32,
    /// The checksum of the whole image after it.
    pub state: StateChecksum,
}

//! The chain of checksums along published frames, and the blank ones in it.
//!
//! Where SQLite overwrites a spilled frame of the transaction under way, it leaves salts and checksum of that frame and of
//! all after it blank, and fills them in at the commit. After a rollback to a savepoint, releases before the mend (3.40 is
//! one) begin to fill in too late: the first frames stay blank, and the first that is filled in continues from zeros, which
//! is what the frame before it says of itself. Where none is left to be filled in, the whole transaction is blank, and the
//! next one continues from what an overwritten frame had said. Applications read such frames like any others, since the
//! index has published them; only a recovery of the index would end the log before them.
//!
//! So a published frame may be blank. That it is still the one that was published is then told by the log's header: a
//! reset puts a new one there before it writes any frame.

use crate::sqlite::wal::{self, FrameHeader, RunningChecksum, Salts, WordOrder};

/// The checks of consecutive published frames.
pub(super) struct Chain {
    salts: Salts,
    order: WordOrder,
    running: RunningChecksum,
    /// The last frame was blank and a commit: what the next one continues stands nowhere.
    open: bool,
    blanks: bool,
}

/// A frame that follows.
pub(super) struct Followed {
    pub(super) header: FrameHeader,
    /// The checksum it continues.
    pub(super) from: RunningChecksum,
}

impl Chain {
    /// Of a generation, from the checksum before the first frame on.
    pub(super) fn new(salts: Salts, order: WordOrder, before: RunningChecksum) -> Self {
        Self { salts, order, running: before, open: false, blanks: false }
    }

    /// Checks the next frame. `None` when it is not of this log, or not after the ones before.
    pub(super) fn follow(&mut self, frame: &[u8]) -> Option<Followed> {
        let header = FrameHeader::parse(frame)?;
        let mut from = self.running;
        if header.is_blank() {
            self.blanks = true;
        } else {
            if self.open {
                from = wal::continued_by(frame, self.order)?;
            }
            wal::check_frame(frame, self.salts, from, self.order)?;
        }
        self.open = header.is_blank() && header.commit.is_some();
        self.running = header.checksum;
        Some(Followed { header, from })
    }

    /// What the last frame says of itself.
    pub(super) fn running(&self) -> RunningChecksum {
        self.running
    }

    /// Whether the last frame is one after which any checksum may be published.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// Whether a frame was blank: then the log's header is to be looked at, too.
    pub(super) fn has_blanks(&self) -> bool {
        self.blanks
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::page::PageNo;

    pub(in crate::capture::sqlite) const SALTS: Salts = Salts(5, 6);
    pub(in crate::capture::sqlite) const ORDER: WordOrder = WordOrder::Little;

    /// Appends a blank frame.
    pub(in crate::capture::sqlite) fn push_blank(
        wal: &mut Vec<u8>,
        page: u32,
        commit: Option<u32>,
        image: &[u8],
    ) {
        wal.extend([page, commit.unwrap_or(0), 0, 0, 0, 0].iter().flat_map(|word| word.to_be_bytes()));
        wal.extend_from_slice(image);
    }

    fn frame(page: u32, commit: Option<u32>, before: RunningChecksum) -> (Vec<u8>, RunningChecksum) {
        let (mut bytes, page) = (Vec::new(), PageNo::new(page).unwrap());
        let after =
            wal::push_frame(&mut bytes, page, commit.and_then(PageNo::new), &[7; 512], SALTS, before, ORDER);
        (bytes, after)
    }

    fn blank(commit: Option<u32>) -> Vec<u8> {
        let mut bytes = Vec::new();
        push_blank(&mut bytes, 3, commit, &[8; 512]);
        bytes
    }

    #[test]
    fn after_blank_frames_the_chain_goes_on_from_zeros() {
        let mut chain = Chain::new(SALTS, ORDER, RunningChecksum(1, 2));
        assert!(chain.follow(&blank(None)).is_some());
        assert!(chain.follow(&blank(None)).is_some());
        let (other, _) = frame(4, Some(4), RunningChecksum(1, 2));
        assert!(chain.follow(&other).is_none());
        let (next, after) = frame(4, Some(4), RunningChecksum(0, 0));
        assert_eq!(chain.follow(&next).map(|followed| followed.from), Some(RunningChecksum(0, 0)));
        assert_eq!((chain.running(), chain.is_open(), chain.has_blanks()), (after, false, true));
    }

    #[test]
    fn after_a_blank_commit_the_next_frame_tells_what_it_continues_and_must_be_of_this_log() {
        let open = || {
            let mut chain = Chain::new(SALTS, ORDER, RunningChecksum(1, 2));
            assert!(chain.follow(&blank(Some(9))).is_some() && chain.is_open());
            chain
        };
        let from = RunningChecksum(77, 88);
        let (mut next, after) = frame(4, None, from);
        let mut chain = open();
        assert_eq!(chain.follow(&next).map(|followed| followed.from), Some(from));
        assert_eq!((chain.running(), chain.is_open()), (after, false));
        assert!(chain.follow(&frame(5, Some(5), from).0).is_none(), "only the next one");
        next[11] ^= 1;
        assert!(open().follow(&next).is_none(), "salts of another generation");
    }

    #[test]
    fn no_frame_at_all_is_not_a_blank_one() {
        let mut chain = Chain::new(SALTS, ORDER, RunningChecksum(1, 2));
        assert!(chain.follow(&[0; 24 + 512]).is_none());
        assert!(!chain.has_blanks());
    }
}

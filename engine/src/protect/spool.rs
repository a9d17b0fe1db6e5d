//! The spool: closed parts of the log on the local disk, as long as the store does not have them.
//!
//! A part goes here when the source is about to let go of its own log, when memory is short, and at a stop. File name:
//! first and last transaction, so that a listing tells what is there; a file is written under another name and renamed,
//! so after a kill a part is whole or not there. It is not synced, so after a power cut it may be anything: the start
//! reads every part through before it counts (see `spooled`).

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::failpoint;
use crate::ids::{TimelineId, TxId, TxRange};

/// The spool folder of one timeline.
#[derive(Clone, Debug)]
pub(crate) struct Spool {
    folder: PathBuf,
}

/// One part in the spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SpooledPart {
    pub(crate) range: TxRange,
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
}

impl Spool {
    pub(crate) fn open(state: &Path, timeline: TimelineId) -> io::Result<Self> {
        let folder = state.join("spool").join(timeline.key_text());
        std::fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where a part of these transactions lies.
    pub(crate) fn path(&self, range: TxRange) -> PathBuf {
        self.folder.join(format!("{}-{}.part", range.first(), range.last()))
    }

    /// Removes the folders of other timelines that have nothing in them any more.
    pub(crate) fn sweep_others(&self, state: &Path) -> io::Result<()> {
        for entry in std::fs::read_dir(state.join("spool"))? {
            let path = entry?.path();
            if path != self.folder {
                // One with something in it stays.
                let _ = std::fs::remove_dir(path);
            }
        }
        Ok(())
    }

    /// A file to write a large part into before it is known whole. Swept at the next start.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.partial"))
    }

    /// Keeps a part.
    pub(crate) fn keep(&self, range: TxRange, part: &Bytes) -> io::Result<PathBuf> {
        let (partial, path) = (self.scratch(&range.first().to_string()), self.path(range));
        std::fs::write(&partial, part)?;
        std::fs::rename(&partial, &path)?;
        failpoint::hit("part_spooled");
        Ok(path)
    }

    /// Forgets a part that is durable.
    pub(crate) fn remove(&self, range: TxRange) {
        // If it cannot be, the next start finds that the store has it.
        let _ = std::fs::remove_file(self.path(range));
    }

    /// The parts there, in order of their transactions; leftovers of an unfinished write are swept.
    pub(crate) fn parts(&self) -> io::Result<Vec<SpooledPart>> {
        let mut parts = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            match name.to_str().and_then(parse_name) {
                Some(range) => {
                    parts.push(SpooledPart { range, path: entry.path(), bytes: entry.metadata()?.len() });
                }
                None => std::fs::remove_file(entry.path())?,
            }
        }
        parts.sort_by_key(|part| part.range);
        Ok(parts)
    }
}

pub(super) fn parse_name(name: &str) -> Option<TxRange> {
    let (first, last) = name.strip_suffix(".part")?.split_once('-')?;
    let (first, last): (TxId, TxId) = (first.parse().ok()?, last.parse().ok()?);
    TxRange::new(first, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_in_order_and_leftovers_are_swept() {
        let state = tempfile::tempdir().unwrap();
        let spool = Spool::open(state.path(), TimelineId::FIRST).unwrap();
        let range = |a, b| TxRange::new(TxId::new(a).unwrap(), TxId::new(b).unwrap()).unwrap();
        spool.keep(range(300, 301), &Bytes::from_static(b"later")).unwrap();
        spool.keep(range(2, 299), &Bytes::from_static(b"first")).unwrap();
        std::fs::write(spool.scratch("x"), b"half").unwrap();
        let parts = spool.parts().unwrap();
        assert_eq!(parts.iter().map(|part| part.range).collect::<Vec<_>>(), [range(2, 299), range(300, 301)]);
        assert!(!spool.scratch("x").exists());
    }
}

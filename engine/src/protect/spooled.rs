//! Reads the spool back: of its parts counts what goes on from the repository without a hole, is known to the journal,
//! and is whole. Nothing in it was ever synced, so after a power cut a part may be short, empty, or zeros behind its
//! header.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};

use crate::digest::Hasher;
use crate::ids::{DatabaseId, Digest, TimelineId, TxId};
use crate::protect::frames::PartBody;
use crate::protect::journal::Recovered;
use crate::protect::known::goes_on;
use crate::protect::outbox::Part;
use crate::protect::spool::{Spool, SpooledPart};
use crate::segment::{HEADER_BYTES, Prologue, SegmentHeader};

/// Bytes of a part read at a time.
const STEP: usize = 256 * 1024;

/// What the journal says that the parts must be.
pub(super) struct Expected {
    database: DatabaseId,
    timeline: TimelineId,
    /// Up to here the journal's records are gone, since the table is behind them.
    oldest: Option<TxId>,
    /// After the last transaction of each part.
    chains: BTreeMap<TxId, Digest>,
}

impl Expected {
    pub(super) fn by(journal: &Recovered) -> Self {
        let oldest = journal.oldest();
        let chains = journal.marks().filter_map(|mark| Some((mark.tx?, mark.chain))).collect();
        Self { database: oldest.database, timeline: oldest.timeline, oldest: oldest.tx, chains }
    }

    /// A part that the journal does not know was cut off right after it was spooled: the source has it still.
    fn knows(&self, last: TxId) -> bool {
        Some(last) <= self.oldest || self.chains.contains_key(&last)
    }

    fn is(&self, header: &SegmentHeader) -> bool {
        let chain = self.chains.get(&header.range.last());
        header.database == self.database
            && header.timeline == self.timeline
            && chain.is_none_or(|chain| *chain == header.chain_after)
    }
}

/// The parts that go on from `tip`. All others are of no use and are deleted: what is durable already, what the journal
/// does not know, and everything from the first part on that is missing or not whole. Reads them through.
pub(super) fn continuing_parts(
    spool: &Spool,
    expected: &Expected,
    tip: Option<TxId>,
) -> io::Result<Vec<Part>> {
    let mut end = tip;
    let mut before: Option<SegmentHeader> = None;
    let mut continuing = Vec::new();
    for spooled in spool.parts()? {
        let read = if goes_on(end, spooled.range) && expected.knows(spooled.range.last()) {
            read_whole(&spooled).and_then(|header| joined(before.as_ref(), header, expected))
        } else {
            Ok(None)
        };
        match read {
            Ok(Some(header)) => {
                end = Some(header.range.last());
                continuing.push(part(spooled, &header));
                before = Some(header);
            }
            Ok(None) => remove(&spooled),
            Err(error) => {
                let path = spooled.path.display();
                tracing::warn!(%path, %error, "a part of the spool is not whole: it is left out, with those behind it");
                remove(&spooled);
            }
        }
    }
    Ok(continuing)
}

/// `Some` if the part is the one that the journal and the part before it tell of.
fn joined(
    before: Option<&SegmentHeader>,
    header: SegmentHeader,
    expected: &Expected,
) -> io::Result<Option<SegmentHeader>> {
    let touching = before.filter(|before| before.range.last().next() == header.range.first());
    touching.map_or(Ok(()), |before| before.joins(&header)).map_err(io::Error::other)?;
    Ok(expected.is(&header).then_some(header))
}

/// Reads a part through; its header, if every byte is the one that was encoded.
fn read_whole(spooled: &SpooledPart) -> io::Result<SegmentHeader> {
    let mut file = File::open(&spooled.path)?;
    let mut start = Vec::new();
    file.by_ref().take(HEADER_BYTES as u64).read_to_end(&mut start)?;
    let needed = Prologue::needed(&start).map_err(io::Error::other)?;
    file.by_ref().take(needed.saturating_sub(start.len()) as u64).read_to_end(&mut start)?;
    let prologue = Prologue::parse(&start).map_err(io::Error::other)?;
    let header = &prologue.header;
    if (header.part_len(), header.range) != (spooled.bytes, spooled.range) {
        let (len, range) = (header.part_len(), header.range);
        return Err(io::Error::other(format!("its header tells of {range:?} in {len} bytes")));
    }
    let (mut frames, mut piece) = (Hasher::Plain.start(), vec![0; STEP]);
    loop {
        match file.read(&mut piece)? {
            0 => break,
            read => frames.update(piece.get(..read).unwrap_or_default()),
        }
    }
    prologue.check_chain(frames.finish()).map_err(io::Error::other)?;
    Ok(prologue.header)
}

fn part(spooled: SpooledPart, header: &SegmentHeader) -> Part {
    Part {
        range: header.range,
        from: header.from,
        to: header.to,
        flags: header.flags,
        body: PartBody::File { path: spooled.path, len: spooled.bytes },
    }
}

fn remove(part: &SpooledPart) {
    if let Err(error) = std::fs::remove_file(&part.path) {
        tracing::debug!(path = %part.path.display(), %error, "a part of no use stays in the spool");
    }
}

/// Deletes parts that are of no use.
pub(super) fn discard(parts: &[Part]) {
    for part in parts {
        if let PartBody::File { path, .. } = &part.body {
            let _ = std::fs::remove_file(path);
        }
    }
}

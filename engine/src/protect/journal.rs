//! The local journal: where to go on after a restart, and the page table there.
//!
//! Three files in the database's state folder. `table` is the page table at some part of the log, replaced by rename.
//! `journal` has one record for every part closed since: its transactions, the resume token of the source at its end,
//! and the page hashes it changed. A record is appended before its part can go to the store, so every part that may be
//! in the store has a record, unless the machine lost power; then the journal ends early, which the start notices
//! because the repository is ahead of it. In the spool a part may be without a record: one that outgrew memory becomes
//! a file there while it is closed, before its record. The start leaves it out, and captures its transactions again.
//! `anew` says where the source's log goes on that was begun anew behind a recorded place, before anything in it was
//! recorded. It names that place whole, so it need not agree with the other two in time. (A crash of all processes may bring
//! the log before back; then the states are compared.)
//!
//! Nothing here is needed to restore. It is never synced: after a kill the page cache has it, after a power cut a CRC
//! tells how much of it is left.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::failpoint;
use crate::ids::{DatabaseId, Digest, TimelineId, TxId};
use crate::page::{PageNo, PageSize};
use crate::protect::table::PageTable;
use crate::time::Timestamp;

const MAGIC: &[u8; 8] = b"EWJRNL01";
/// No record and no table is larger than this: 2^32 pages would need 32 GiB, far past what a table in memory can be.
const LENGTH_MAX: u64 = 8 << 30;

/// The state of the log after a part: everything the recorder needs to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) database: DatabaseId,
    pub(crate) timeline: TimelineId,
    /// The nonce of our claim of the timeline.
    pub(crate) claim: [u8; 8],
    /// The last transaction of the part; `None` before the first of a history.
    pub(crate) tx: Option<TxId>,
    pub(crate) time: Timestamp,
    pub(crate) chain: Digest,
    pub(crate) page_size: PageSize,
    pub(crate) image_pages: u32,
    /// A transaction that is known to be in the repository with all before it. The mark itself may be further.
    pub(crate) stored: Option<TxId>,
    /// The last transaction whose state only a base gives.
    pub(crate) needs_base: Option<TxId>,
    /// Page versions and stored bytes of the log since the last base.
    pub(crate) log_versions: u64,
    pub(crate) log_bytes: u64,
    /// The source's own token.
    pub(crate) resume: Vec<u8>,
}

/// The journal of one database, open for appending.
pub(crate) struct Journal {
    folder: PathBuf,
    file: File,
    bytes: u64,
}

/// What the two files held: the marks in order, and the table as it was at each of them.
pub(crate) struct Recovered {
    base: (Mark, Vec<u64>),
    records: Vec<(Mark, Vec<(u32, u64)>)>,
}

impl Recovered {
    /// Reads the two files; `None` when there is no usable table. What follows a record that cannot be is left out.
    pub(super) fn read<R: Read>(
        mut table: Records<R>,
        journal: Option<Records<R>>,
    ) -> io::Result<Option<Self>> {
        let Some(payload) = table.next()? else { return Ok(None) };
        let Some(base) = decode_table(&payload) else { return Ok(None) };
        let mut records = Vec::new();
        let Some(mut journal) = journal else { return Ok(Some(Self { base, records })) };
        let (mut last, mut pages) = (base.0.tx, base.0.image_pages);
        while let Some(payload) = journal.next()? {
            let Some((mark, changes)) = decode_changes(&payload) else { break };
            // Records up to the table's own part stay in the file when a kill came between rename and truncation.
            if mark.tx <= last || mark.page_size != base.0.page_size || mark.timeline != base.0.timeline {
                continue;
            }
            // Every page that an image gains has a hash in the record: no larger table than the records warrant.
            let within = changes.iter().all(|&(index, _)| index < mark.image_pages);
            if !within || u64::from(mark.image_pages.saturating_sub(pages)) > changes.len() as u64 {
                break;
            }
            (last, pages) = (mark.tx, mark.image_pages);
            records.push((mark, changes));
        }
        Ok(Some(Self { base, records }))
    }

    /// The mark of the table.
    pub(crate) fn oldest(&self) -> &Mark {
        &self.base.0
    }

    /// All marks, oldest first.
    pub(crate) fn marks(&self) -> impl Iterator<Item = &Mark> {
        std::iter::once(&self.base.0).chain(self.records.iter().map(|(mark, _)| mark))
    }

    /// The mark at the end of transaction `tx` with the table there; `None` when no part ended there.
    pub(crate) fn at(
        self,
        tx: TxId,
        never_stored: impl Fn(PageSize) -> Option<PageNo>,
    ) -> Option<(Mark, PageTable)> {
        let (mut mark, mut hashes) = self.base;
        let mut records = self.records.into_iter();
        while mark.tx != Some(tx) {
            let (next, changes) = records.next()?;
            hashes.resize(next.image_pages as usize, 0);
            for (index, hash) in changes {
                *hashes.get_mut(index as usize)? = hash;
            }
            mark = next;
        }
        let table = PageTable::from_hashes(mark.page_size, never_stored(mark.page_size), hashes);
        Some((mark, table))
    }
}

impl Journal {
    /// Reads what is there; `None` when there is nothing usable.
    pub(crate) fn recover(folder: &Path) -> io::Result<Option<Recovered>> {
        let Some(table) = Records::of_file(&folder.join("table"))? else { return Ok(None) };
        Recovered::read(table, Records::of_file(&folder.join("journal"))?)
    }

    /// Starts anew from this mark and table.
    pub(crate) fn start(folder: &Path, mark: &Mark, table: &PageTable) -> io::Result<Self> {
        let file =
            OpenOptions::new().create(true).truncate(false).append(true).open(folder.join("journal"))?;
        let mut journal = Self { folder: folder.to_owned(), file, bytes: 0 };
        journal.compact(mark, table)?;
        Ok(journal)
    }

    /// Appends the record of a part.
    pub(crate) fn append(&mut self, mark: &Mark, changes: &[(u32, u64)]) -> io::Result<()> {
        let record = frame_record(&encode_changes(mark, changes));
        self.file.write_all(&record)?;
        self.bytes += record.len() as u64;
        failpoint::hit("journal_appended");
        Ok(())
    }

    /// Notes that the source's log goes on at `to`, begun anew right behind `from`.
    pub(crate) fn note_log_begun_anew(&self, from: &[u8], to: &[u8]) -> io::Result<()> {
        let mut payload = Vec::with_capacity(8 + from.len() + to.len());
        put_u64(&mut payload, from.len() as u64);
        payload.extend_from_slice(from);
        payload.extend_from_slice(to);
        std::fs::write(self.folder.join("anew"), frame_record(&payload))
    }

    /// Where the source's log goes on behind this place, if it was noted to be begun anew there. A note that is torn is
    /// none.
    pub(crate) fn log_begun_anew(folder: &Path, from: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let Some(mut note) = Records::of_file(&folder.join("anew"))? else { return Ok(None) };
        Ok(note.next()?.and_then(|payload| decode_begun_anew(&payload, from)))
    }

    /// Whether the records have grown past so many times the table they change.
    pub(crate) fn wants_compaction(&self, table: &PageTable, times: u64) -> bool {
        self.bytes > (4 << 20).max(u64::from(table.pages()) * 8) * times
    }

    /// Writes the whole table and drops the records before it.
    pub(crate) fn compact(&mut self, mark: &Mark, table: &PageTable) -> io::Result<()> {
        let (fresh, target) = (self.folder.join("table.new"), self.folder.join("table"));
        std::fs::write(&fresh, frame_record(&encode_table(mark, table.hashes())))?;
        failpoint::hit("table_before_rename");
        std::fs::rename(&fresh, &target)?;
        failpoint::hit("table_after_rename");
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.bytes = 0;
        Ok(())
    }
}

pub(super) fn frame_record(payload: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(payload.len() + 20);
    record.extend_from_slice(MAGIC);
    put_u64(&mut record, payload.len() as u64);
    let mut crc = crc32fast::Hasher::new();
    crc.update(&(payload.len() as u64).to_le_bytes());
    crc.update(payload);
    record.extend_from_slice(&crc.finalize().to_le_bytes());
    record.extend_from_slice(payload);
    record
}

/// The records of a file, one after another.
pub(super) struct Records<R> {
    source: R,
    /// Bytes of the source not read yet.
    left: u64,
}

#[cfg(feature = "test-util")]
impl<'a> Records<&'a [u8]> {
    pub(super) fn of_bytes(source: &'a [u8]) -> Self {
        Self { source, left: source.len() as u64 }
    }
}

impl Records<File> {
    fn of_file(path: &Path) -> io::Result<Option<Self>> {
        match File::open(path) {
            Ok(source) => Ok(Some(Self { left: source.metadata()?.len(), source })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl<R: Read> Records<R> {
    /// The next record; `None` at the end and at anything torn.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut head = [0; 20];
        let Some(left) = self.left.checked_sub(head.len() as u64) else { return Ok(None) };
        self.source.read_exact(&mut head)?;
        let (magic, rest) = head.split_at(8);
        let (length_bytes, crc_bytes) = rest.split_at(8);
        let length = u64::from_le_bytes(length_bytes.try_into().unwrap_or_default());
        let Some(left) = left.checked_sub(length).filter(|_| magic == MAGIC && length <= LENGTH_MAX) else {
            return Ok(None);
        };
        self.left = left;
        let mut payload = vec![0; usize::try_from(length).unwrap_or(0)];
        self.source.read_exact(&mut payload)?;
        let mut crc = crc32fast::Hasher::new();
        crc.update(length_bytes);
        crc.update(&payload);
        Ok((crc.finalize().to_le_bytes() == crc_bytes).then_some(payload))
    }
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// An empty place is that of a source that is not trusted: nothing goes on from there.
pub(super) fn decode_begun_anew(payload: &[u8], from: &[u8]) -> Option<Vec<u8>> {
    let (len, rest) = payload.split_first_chunk::<8>()?;
    let (noted, to) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
    (noted == from && !from.is_empty()).then(|| to.to_vec())
}

fn encode_mark(mark: &Mark, out: &mut Vec<u8>) {
    out.extend_from_slice(mark.database.as_bytes());
    out.extend_from_slice(&mark.timeline.get().to_le_bytes());
    out.extend_from_slice(&mark.claim);
    put_u64(out, mark.tx.map_or(0, TxId::get));
    out.extend_from_slice(&mark.time.as_micros().to_le_bytes());
    out.extend_from_slice(mark.chain.as_bytes());
    out.extend_from_slice(&mark.page_size.get().to_le_bytes());
    out.extend_from_slice(&mark.image_pages.to_le_bytes());
    put_u64(out, mark.stored.map_or(0, TxId::get));
    put_u64(out, mark.needs_base.map_or(0, TxId::get));
    put_u64(out, mark.log_versions);
    put_u64(out, mark.log_bytes);
    put_u64(out, mark.resume.len() as u64);
    out.extend_from_slice(&mark.resume);
}

pub(super) fn encode_table(mark: &Mark, hashes: &[u64]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(256 + hashes.len() * 8);
    encode_mark(mark, &mut payload);
    put_u64(&mut payload, hashes.len() as u64);
    for hash in hashes {
        payload.extend_from_slice(&hash.to_le_bytes());
    }
    payload
}

pub(super) fn encode_changes(mark: &Mark, changes: &[(u32, u64)]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(256 + changes.len() * 12);
    encode_mark(mark, &mut payload);
    put_u64(&mut payload, changes.len() as u64);
    for &(index, hash) in changes {
        payload.extend_from_slice(&index.to_le_bytes());
        payload.extend_from_slice(&hash.to_le_bytes());
    }
    payload
}

/// Reads fields off the front of a payload; every read is checked.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn mark(&mut self) -> Option<Mark> {
        Some(Mark {
            database: DatabaseId::from_bytes(self.array()?),
            timeline: TimelineId::new(self.u32()?)?,
            claim: self.array()?,
            tx: TxId::new(self.u64()?),
            time: {
                let micros = self.array().map(i64::from_le_bytes)?;
                Some(Timestamp::from_micros(micros)).filter(|time| time.as_micros() == micros)?
            },
            chain: Digest::from_bytes(self.array()?),
            page_size: PageSize::new(self.u32()?)?,
            image_pages: self.u32()?,
            stored: TxId::new(self.u64()?),
            needs_base: TxId::new(self.u64()?),
            log_versions: self.u64()?,
            log_bytes: self.u64()?,
            resume: {
                let length = usize::try_from(self.u64()?).ok()?;
                self.take(length)?.to_vec()
            },
        })
    }
}

pub(super) fn decode_table(payload: &[u8]) -> Option<(Mark, Vec<u64>)> {
    let mut fields = Fields(payload);
    let mark = fields.mark()?;
    let count = usize::try_from(fields.u64()?).ok()?;
    let bytes = fields.take(count.checked_mul(8)?)?;
    let hashes: Vec<u64> =
        bytes.chunks_exact(8).map(|hash| u64::from_le_bytes(hash.try_into().unwrap_or_default())).collect();
    (fields.0.is_empty() && hashes.len() == mark.image_pages as usize).then_some((mark, hashes))
}

pub(super) fn decode_changes(payload: &[u8]) -> Option<(Mark, Vec<(u32, u64)>)> {
    let mut fields = Fields(payload);
    let mark = fields.mark()?;
    let count = usize::try_from(fields.u64()?).ok()?;
    let bytes = fields.take(count.checked_mul(12)?)?;
    let mut changes = Vec::with_capacity(count);
    for change in bytes.chunks_exact(12) {
        let mut change = Fields(change);
        changes.push((change.u32()?, change.u64()?));
    }
    fields.0.is_empty().then_some((mark, changes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::PageHash;

    fn mark(tx: u64, pages: u32) -> Mark {
        Mark {
            database: DatabaseId::from_bytes([1; 8]),
            timeline: TimelineId::FIRST,
            claim: [7; 8],
            tx: TxId::new(tx),
            time: Timestamp::from_micros(tx as i64),
            chain: Digest::from_bytes([3; 32]),
            page_size: PageSize::new(512).unwrap(),
            image_pages: pages,
            stored: None,
            needs_base: TxId::new(1),
            log_versions: 5,
            log_bytes: 6,
            resume: vec![9, 9],
        }
    }

    fn written(folder: &Path) -> PageTable {
        let mut table = PageTable::new(PageSize::new(512).unwrap(), None);
        table.resize(3);
        table.commit();
        let mut journal = Journal::start(folder, &mark(1, 3), &table).unwrap();
        table.set(PageNo::new(2).unwrap(), PageHash::from_raw(42));
        journal.append(&mark(4, 3), &table.commit()).unwrap();
        table.set(PageNo::new(4).unwrap(), PageHash::from_raw(43));
        journal.append(&mark(9, 4), &table.commit()).unwrap();
        table
    }

    #[test]
    fn a_note_of_a_log_begun_anew_holds_for_its_place_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut table = PageTable::new(PageSize::new(512).unwrap(), None);
        table.commit();
        let journal = Journal::start(folder.path(), &mark(1, 0), &table).unwrap();
        let noted = |from: &[u8]| Journal::log_begun_anew(folder.path(), from).unwrap();
        assert_eq!(noted(&[9, 9]), None);
        journal.note_log_begun_anew(&[9, 9], &[7]).unwrap();
        assert_eq!(noted(&[9, 9]), Some(vec![7]));
        assert_eq!((noted(&[9]), noted(&[9, 9, 7]), noted(&[])), (None, None, None));
        journal.note_log_begun_anew(&[], &[7]).unwrap();
        assert_eq!(noted(&[]), None, "of a source that is not trusted");
        journal.note_log_begun_anew(&[9, 9], &[8]).unwrap();
        let path = folder.path().join("anew");
        for cut in 0..std::fs::read(&path).unwrap().len() {
            let whole = std::fs::read(&path).unwrap();
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(noted(&[9, 9]), None, "{cut}");
            std::fs::write(&path, whole).unwrap();
        }
    }

    #[test]
    fn every_part_end_can_be_gone_back_to() {
        let folder = tempfile::tempdir().unwrap();
        let table = written(folder.path());
        for tx in [1, 4, 9] {
            let recovered = Journal::recover(folder.path()).unwrap().unwrap();
            let (found, at) = recovered.at(TxId::new(tx).unwrap(), |_| None).unwrap();
            assert_eq!(found.tx, TxId::new(tx));
            assert_eq!(at.state() == table.state(), tx == 9);
        }
        assert!(
            Journal::recover(folder.path()).unwrap().unwrap().at(TxId::new(5).unwrap(), |_| None).is_none()
        );
    }

    #[test]
    fn a_torn_or_altered_journal_ends_early_and_never_lies() {
        let folder = tempfile::tempdir().unwrap();
        written(folder.path());
        let path = folder.path().join("journal");
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let marks = Journal::recover(folder.path()).unwrap().unwrap().marks().count();
            assert!((1..=2).contains(&marks), "cut at {cut}: {marks}");
            let mut flipped = whole.clone();
            flipped[cut] ^= 0x10;
            std::fs::write(&path, &flipped).unwrap();
            let recovered = Journal::recover(folder.path()).unwrap().unwrap();
            assert!(recovered.marks().all(|found| [1, 4, 9].contains(&found.tx.unwrap().get())));
            assert!(recovered.marks().count() < 3);
        }
    }
}

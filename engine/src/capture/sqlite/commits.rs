//! From published frames to transactions: check the range, tell its times, hand over one transaction after the other.

use std::sync::Weak;
use std::time::Instant;

use super::files;
use super::links::Links;
use super::log::{self, HandOver, LastFrames, LogFile, Range, Span, without_repeats};
use super::resume::ResumePoint;
use super::sightings::{Lookout, Sightings};
use super::{Place, SqliteSource, SqliteSourceError, Trouble};
use crate::capture::sink::{Commit, Previous, Sink};
use crate::capture::sqlite_ffi;
use crate::page::PageNo;
use crate::sqlite::index::{IndexError, IndexHead};
use crate::sqlite::wal::Salts;
use crate::time::Timestamp;

/// Commits found later than this after the look before were not watched: the machine slept, or we stood still.
const WATCHED_MICROS: i64 = 1_000_000;

/// A capture of more of the log than this may take so long that somebody else must look meanwhile.
const LONG_CAPTURE_BYTES: u64 = 32 << 20;

/// When the commits found by one look were made.
struct Times {
    each: Vec<Timestamp>,
    /// Only upper bounds are known.
    unwatched: bool,
}

impl SqliteSource {
    /// Reads the published head and captures up to it; gives the number of transactions.
    pub(super) fn capture_published<S: Sink>(&mut self, sink: &mut S) -> Result<u64, Trouble<S::Error>> {
        let looked = Timestamp::now();
        let Some(links) = &self.links else { return Ok(0) };
        let raw = files::read_head(&links.index).map_err(|source| self.index_unreadable(source))?;
        let head = match IndexHead::parse(&raw) {
            Ok(head) => head,
            Err(source @ IndexError::Version { .. }) => {
                return Err(SqliteSourceError::Index { path: self.path.clone(), source }.into());
            }
            // A writer died while publishing, perhaps: whoever begins to read next repairs it. `maintain` will.
            Err(_) => {
                self.seen = raw;
                return Ok(0);
            }
        };
        let transactions = self.capture(sink, head, looked)?;
        self.seen = raw;
        Ok(transactions)
    }

    /// Hands over everything up to the published head.
    pub(super) fn capture<S: Sink>(
        &mut self,
        sink: &mut S,
        head: IndexHead,
        looked: Timestamp,
    ) -> Result<u64, Trouble<S::Error>> {
        let frames = head.frames.saturating_sub(self.place.frame);
        let is_long = u64::from(frames) * u64::from(self.page_size.get()) > LONG_CAPTURE_BYTES;
        let lookout = self.links.as_ref().filter(|_| is_long).and_then(|links| Lookout::send(&links.index));
        let captured = self.capture_up_to(sink, head, looked);
        if captured.is_ok() {
            self.sightings = Sightings::default();
        }
        if let Some(lookout) = lookout {
            self.sightings.append(lookout.call_back());
        }
        captured
    }

    fn capture_up_to<S: Sink>(
        &mut self,
        sink: &mut S,
        head: IndexHead,
        looked: Timestamp,
    ) -> Result<u64, Trouble<S::Error>> {
        if head.salts != self.place.salts {
            self.begin_generation(head)?;
            self.anew_untold = !self.unpinned;
        }
        if self.anew_untold {
            sink.began_anew(self.resume()).map_err(Trouble::Sink)?;
            self.anew_untold = false;
        }
        if head.frames < self.place.frame {
            return Err(Trouble::Lost(format!(
                "the log ends at frame {}, {} had been captured",
                head.frames, self.place.frame
            )));
        }
        if head.frames == self.place.frame {
            self.looked = looked;
            if head.frames > 0 && head.checksum != self.place.checksum {
                let frame = head.frames;
                return Err(Trouble::Lost(format!("frame {frame} was written anew after its capture")));
            }
            self.prove_reset(head, 0)?;
            self.change = Some(head.change);
            return Ok(0);
        }
        let spans = self.survey(head)?;
        self.prove_reset(head, spans.len())?;
        let times = self.commit_times(head, looked, &spans);
        if times.unwatched {
            sink.unwatched(self.looked).map_err(Trouble::Sink)?;
        }
        let mut timed = spans.iter().zip(&times.each);
        let handed_over = timed.try_for_each(|(span, time)| self.hand_over(sink, *span, *time));
        // Also after an error: else the commits that come next would share these times.
        if times.unwatched {
            sink.watched().map_err(Trouble::Sink)?;
        }
        handed_over?;
        self.looked = looked;
        self.change = Some(head.change);
        self.pace.committed(Instant::now());
        self.settle();
        Ok(spans.len() as u64)
    }

    /// The log was reset: legal only under a pin on slot 0, when all of the old one had been captured. While nothing is
    /// pinned it must be proven that it was.
    pub(super) fn begin_generation<E>(&mut self, head: IndexHead) -> Result<(), Trouble<E>> {
        if self.unpinned {
            self.unproven.get_or_insert(self.change.unwrap_or_default());
        } else if !self.slot.may_be_zero() {
            return Err(Trouble::Lost("the log was reset while that was not expected".to_owned()));
        }
        if !self.unpinned && self.found.salts == self.place.salts && self.place.frame < self.found.frame {
            // All of it was backfilled when the first pin began, and there was no other before that.
            return Err(Trouble::Lost("the log was reset before what it held was captured".to_owned()));
        }
        if self.before_reset.replace(self.place.salts) == Some(head.salts) {
            // A process died while it emptied the log, and the index was recovered from what was still in it.
            return Err(Trouble::Lost("the log is again the one before its reset".to_owned()));
        }
        tracing::trace!(path = %self.path.display(), before = ?self.place.salts, after = ?head.salts, "the log was reset");
        self.held_images().for_each(|image| image.log_was_reset());
        self.carry_stamp_over(head.salts);
        self.place = Place { salts: head.salts, ..Place::default() };
        self.last_frames.clear();
        self.frames.forget();
        Ok(())
    }

    /// After a reset with nothing pinned: the index counts every commit, so if it counted no more than those found in
    /// the new log, none was lost with the old one. (A recovery of the index begins the count anew, and proves
    /// nothing.)
    fn prove_reset<E>(&mut self, head: IndexHead, found: usize) -> Result<(), Trouble<E>> {
        let Some(before) = self.unproven.take() else { return Ok(()) };
        let made = head.change.wrapping_sub(before);
        if u32::try_from(found) == Ok(made) {
            return Ok(());
        }
        Err(Trouble::Lost(format!("the log was reset unseen: {made} commits were made, {found} were found")))
    }

    /// Checks the frames after the captured place up to the head; gives their transactions.
    ///
    /// The index counts commits, which tells a commit frame that repeats the one before it from a commit that does so.
    fn survey<E>(&mut self, head: IndexHead) -> Result<Vec<Span>, Trouble<E>> {
        let Some(links) = &self.links else { return Ok(Vec::new()) };
        let before = if self.place.frame == 0 {
            let header = log::read_header(&links.wal).map_err(Trouble::Passing)?;
            if header.salts != head.salts || header.page_size != self.page_size || header.order != head.order
            {
                return Err(Trouble::Passing(format!(
                    "the header of the log ({header:?}) is not that of its index"
                )));
            }
            header.checksum
        } else {
            self.place.checksum
        };
        let range = Range {
            file: &links.wal,
            page_size: self.page_size,
            salts: head.salts,
            order: head.order,
            first: self.place.frame + 1,
            last: head.frames,
            before,
            published: head.checksum,
        };
        let spans = self.frames.survey(&range).map_err(|mismatch| Trouble::Passing(mismatch.0))?;
        Ok(if self.are_counted(head, spans.len()) { spans } else { without_repeats(spans) })
    }

    /// Whether the index has counted so many commits since the captured place.
    fn are_counted(&self, head: IndexHead, commits: usize) -> bool {
        let made = self.change.map(|before| head.change.wrapping_sub(before));
        made.is_some_and(|made| u32::try_from(commits) == Ok(made))
    }

    /// The times of the commits found by one look.
    ///
    /// All of them lie after the look before and not after this one, or between two sightings. The last one's is the
    /// log's modification time, if nobody has written or is writing since. For the others only the lower bound is never
    /// later than the moment their writer was told; while we watch it is some 50 µs off, a second at worst. What was
    /// committed while we did not watch gets the upper bound, and is told to be uncertain.
    fn commit_times(&self, head: IndexHead, looked: Timestamp, spans: &[Span]) -> Times {
        let modified = self
            .links
            .as_ref()
            .and_then(|links| links.wal.metadata().ok())
            .and_then(|metadata| metadata.modified().ok())
            .and_then(|time| jiff::Timestamp::try_from(time).ok())
            .map_or(looked, Timestamp::from);
        // A write changes the time first and the bytes then; whoever is at it holds the lock until it is published.
        let written = self.links.as_ref().is_some_and(|links| files::others_write(&links.index))
            || self.written_beyond(head.frames, head.salts);
        // A frame taken for a repeat may have been a commit of an earlier time.
        let one = matches!(spans, [span] if span.first == span.last || self.are_counted(head, 1));
        let exact = one && !written;
        let (mut each, mut longest) = (Vec::with_capacity(spans.len()), 0);
        for span in spans {
            let (since, until) = self.sightings.bounds(head.salts, span.last, (self.looked, looked));
            longest = longest.max(until.micros_since(since));
            each.push(since.plus_micros(1).min(looked));
        }
        let unwatched = self.away || !exact && longest > WATCHED_MICROS;
        if let Some(last) = each.last_mut() {
            let upper = modified.max(*last).min(looked);
            if unwatched {
                each.fill(upper);
            } else if !written {
                *last = upper;
            }
        }
        Times { each, unwatched }
    }

    /// Hands one transaction over and makes it the captured place.
    fn hand_over<S: Sink>(
        &mut self,
        sink: &mut S,
        span: Span,
        time: Timestamp,
    ) -> Result<(), Trouble<S::Error>> {
        let Some(links) = &self.links else { return Ok(()) };
        let log = LogFile { file: &links.wal, page_size: self.page_size };
        let images: Vec<_> = self.images.iter().filter_map(Weak::upgrade).collect();
        let kept = if self.is_kept_out_of_file(span) { Previous::Certain } else { Previous::Perhaps };
        let (last_frames, known_pages) = (&mut self.last_frames, self.image_pages);
        if span.image_pages < known_pages {
            images.iter().for_each(|held| held.keep_beyond(span.image_pages, known_pages, links.pinned()));
        }
        let outcome = self.frames.hand_over(log, span, |page, frame, image| {
            images.iter().for_each(|held| held.keep(page, links.pinned()));
            let mut previous = |buffer: &mut Vec<u8>| {
                let read = page.get() <= known_pages && read_previous(links, log, last_frames, page, buffer);
                if read { kept } else { Previous::Unknown }
            };
            sink.page(page, image, &mut previous)?;
            last_frames.insert(page, frame);
            Ok(())
        });
        let outcome = outcome.and_then(|()| {
            let place = Place { salts: self.place.salts, frame: span.last, checksum: span.continued };
            let resume = ResumePoint {
                inode: links.inode(),
                page_size: self.page_size,
                salts: place.salts,
                frame: place.frame,
                checksum: place.checksum,
                image_pages: span.image_pages,
                looked: time,
            };
            let commit = Commit { image_pages: span.image_pages, time, resume: resume.encode() };
            sink.commit(commit).map_err(HandOver::Sink)?;
            (self.place, self.image_pages) = (place, span.image_pages);
            Ok(())
        });
        outcome.map_err(|error| {
            sink.rollback();
            // The pages handed over so far are in the map with frames of the transaction that was given up.
            if self.remember_frames().is_err() {
                self.last_frames.spoil();
            }
            match error {
                HandOver::Log(error) => Trouble::Passing(format!("the log cannot be read: {error}")),
                HandOver::Sink(error) => Trouble::Sink(error),
            }
        })
    }

    /// Whether no page of the transaction can be in the file yet: it was committed under a pin of ours, which lets only
    /// what was captured before into it.
    fn is_kept_out_of_file(&self, span: Span) -> bool {
        let found = self.found;
        !self.unpinned && (found.salts != self.place.salts || span.first > found.frame)
    }

    /// Whether a further transaction is on its way into the log, behind a frame or into a new generation. (What is left
    /// of one that was rolled back looks the same.)
    pub(super) fn written_beyond(&self, frame: u32, salts: Salts) -> bool {
        let Some(links) = &self.links else { return false };
        let log = LogFile { file: &links.wal, page_size: self.page_size };
        let next = log::read_frame_header(log, frame.saturating_add(1)).ok().flatten();
        next.is_some_and(|header| header.salts == salts)
            || log::read_header(&links.wal).map_or(true, |header| header.salts != salts)
    }
}

/// The version of a page before the transaction under way: its last captured frame, or the database file, into which
/// the pin lets nothing newer.
fn read_previous(
    links: &Links,
    log: LogFile<'_>,
    last_frames: &LastFrames,
    page: PageNo,
    buffer: &mut Vec<u8>,
) -> bool {
    buffer.resize(log.page_size.bytes(), 0);
    match last_frames.get(page) {
        Ok(Some(frame)) => log::read_frame(log, frame, page, buffer).is_ok(),
        Ok(None) => sqlite_ffi::read_database(links.pinned(), page.offset(log.page_size), buffer)
            .is_ok_and(|complete| complete),
        Err(()) => false,
    }
}

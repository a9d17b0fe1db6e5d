//! One run of the capture thread: from a beginning to a stop, or to whatever breaks the thread.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tracing::Instrument;

use crate::base::Manifest;
use crate::capture::sink::{Commit, Image, Previous, Sink};
use crate::capture::sqlite::{CaptureError, Polled, SourceEvent, SqliteSource};
use crate::disk;
use crate::error::{chain, explained};
use crate::failpoint;
use crate::history::Point;
use crate::page::{PageHash, PageNo};
use crate::protect::ProtectOptions;
use crate::protect::base::{BaseFacts, BaseJob};
use crate::protect::begin::Beginning;
use crate::protect::commands::Command;
use crate::protect::driver::{Driver, Ended};
use crate::protect::error::ProtectError;
use crate::protect::found::{self, Found, Record};
use crate::protect::held::{CHECK_EVERY, Held, WaitedFor};
use crate::protect::outbox::OutboxQueue;
use crate::protect::recorder::{LogSize, Recorder};
use crate::protect::scan::Scan;
use crate::protect::wiring;
use crate::time::Timestamp;
use crate::transaction::TxFlags;

/// How often the state folder is told that nothing went unseen.
const ALIVE_EVERY: Duration = Duration::from_secs(2);
/// The longest sleep of an idle capture thread.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// Between two looks whether the spool has room again.
const AWAY_PAUSE: Duration = Duration::from_millis(200);
/// How long a run that was broken off lets its shipments arrive.
const SHIP_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a difference recorded between two questions whether somebody waits for us: some 10 ms.
const DIFFERENCE_STEP: usize = 1 << 20;
/// How long somebody who asks waits for an index that is torn, and between two looks at it.
const TORN_PATIENCE: Duration = Duration::from_millis(100);
const TORN_PAUSE: Duration = Duration::from_micros(200);
/// Between two attempts at a base.
const BASE_PAUSE: Duration = Duration::from_secs(10);

/// One run.
pub(super) struct Run {
    source: SqliteSource,
    recorder: Recorder,
    queue: OutboxQueue,
    shipping: tokio::task::JoinHandle<()>,
    base_job: Option<UnderWay>,
    base_wanted: bool,
    /// After a base that could not be made.
    no_base_before: Option<Instant>,
    base: Option<BaseFacts>,
    /// The moment before the last look that captured all there was.
    looked: Timestamp,
    /// The source has changed under its name: what was captured of late may not be what it holds.
    changed: bool,
    alive_noted: Option<Instant>,
    alive_before: Timestamp,
    /// With a full spool.
    waited_for: WaitedFor,
}

/// Where a run goes on.
struct Place {
    recorder: Recorder,
    queue: OutboxQueue,
    shipping: tokio::task::JoinHandle<()>,
    /// What was found and is not recorded.
    record: Record,
    has_history: bool,
    base: Option<BaseFacts>,
    /// Up to here nothing went unseen before this run.
    alive_before: Timestamp,
}

/// A base that is being made. Given up when dropped.
struct UnderWay {
    done: oneshot::Receiver<Result<Arc<Manifest>, ProtectError>>,
    /// The log it makes superfluous.
    covered: LogSize,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Nobody may ship or delete what the next run has taken over.
        self.queue.close();
        self.shipping.abort();
    }
}

impl Run {
    /// Finds the source as it is and records what its log does not tell. `None` when it should begin again.
    ///
    /// After an error the log is held, before this lets go of it: an interruption is no reason for a gap.
    pub(super) fn begin(
        driver: &mut Driver,
        held: &mut Held,
        beginning: Beginning,
    ) -> Result<Option<Self>, ProtectError> {
        let mut source = held.take()?;
        let Place { recorder, queue, shipping, record, has_history, base, alive_before } =
            match Self::find(driver, &mut source, beginning) {
                Ok(Some(place)) => place,
                Ok(None) => return Ok(None),
                Err(error) => {
                    let _ = held.hold();
                    return Err(error);
                }
            };
        let mut run = Self {
            source,
            recorder,
            queue,
            shipping,
            base_job: None,
            base_wanted: base.is_none(),
            no_base_before: None,
            base,
            looked: alive_before,
            changed: false,
            alive_noted: None,
            alive_before,
            waited_for: WaitedFor::default(),
        };
        if let Err(error) = run.record_found(driver, record, has_history) {
            let _ = held.hold();
            return Err(error);
        }
        Ok(Some(run))
    }

    /// Finds where the source's log goes on, or what its state is, and sets up what lies between it and the store.
    fn find(
        driver: &mut Driver,
        source: &mut SqliteSource,
        mut beginning: Beginning,
    ) -> Result<Option<Place>, ProtectError> {
        let options = &driver.options;
        let alive_before = read_alive(options).max(beginning.mark.time);
        if let Some(note) = &beginning.note {
            driver.board.note(note.clone());
        }
        driver.board.update(|status| status.base.newest = beginning.base.map(|base| base.point));
        if beginning.base.is_some() {
            driver.board.base_ready();
        } else {
            driver.board.base_missing();
        }
        let has_history = beginning.state.is_some();
        if driver.wants_image {
            // Of a state that nobody knows no difference can be told.
            (beginning.table, beginning.state) = (None, None);
        }
        let attach = source.attach(beginning.table.as_ref().map(|_| beginning.mark.resume.as_slice()))?;
        driver.board.concern("source damage", source.damage().as_deref().map(damaged_source));
        driver.board.update(|status| status.database = Some(beginning.mark.database));
        if found::leaves_spool(&beginning, &attach) {
            // There is a gap already, and nobody should wait for the store.
            source.release();
            return wiring::ship_spool(driver, beginning).map(|()| None);
        }
        let base = beginning.base;
        let Found { mark, table, record, journal, spooled, stored } =
            found::find(driver, source, beginning, &attach)?;
        let (recorder, queue, shipping) =
            wiring::set_up(driver, (mark, table), journal.as_ref(), spooled, stored, alive_before)?;
        if !matches!(record, Record::Nothing) {
            failpoint::hit("found_not_recorded");
        }
        Ok(Some(Place { recorder, queue, shipping, record, has_history, base, alive_before }))
    }

    /// Makes safe what is captured, ships what can be, and lets go of the source.
    /// Whoever holds the source from here on is looked after meanwhile.
    pub(super) fn end(
        mut self,
        driver: &Driver,
        stopping: bool,
        held: &mut Held,
    ) -> Result<(), ProtectError> {
        let secured = self.recorder.secure();
        if stopping && secured.is_ok() {
            let _ = self.recorder.ship(Instant::now());
            let _ = self.recorder.compact_journal();
            if !self.changed {
                // In the store or in the spool.
                self.note_alive(driver, self.looked);
            }
            self.source.close();
        } else {
            self.source.release();
        }
        self.queue.close();
        let patience = match stopping {
            true => driver.options.stop_patience,
            // What waits for a first base that is given up now does not arrive.
            false if !driver.board.has_base() => Duration::ZERO,
            false => SHIP_PATIENCE,
        };
        let until = Instant::now() + patience;
        while !self.shipping.is_finished() && Instant::now() < until {
            let slice = async { tokio::time::timeout(CHECK_EVERY, &mut self.shipping).await };
            let _ = driver.runtime.block_on(slice);
            held.check();
        }
        if !self.shipping.is_finished() {
            tracing::warn!("the store takes too long: the rest waits in the spool for the next start");
        }
        secured
    }

    /// Captures what is committed now, if the source can tell (see [`Polled::complete`]).
    fn look(&mut self) -> Result<Polled, CaptureError<ProtectError>> {
        let looked = Timestamp::now();
        let polled = self.source.poll(&mut self.recorder)?;
        if polled.complete {
            self.looked = looked;
            self.recorder.looked(looked);
        }
        self.changed |= polled.event.is_some();
        Ok(polled)
    }

    /// Captures everything that is committed now, or gives up soon: the index is torn for microseconds only, unless its
    /// writer has died.
    fn look_complete(&mut self) -> Result<Polled, CaptureError<ProtectError>> {
        let until = Instant::now() + TORN_PATIENCE;
        loop {
            let polled = self.look()?;
            if polled.complete || polled.event.is_some() || Instant::now() >= until {
                return Ok(polled);
            }
            std::thread::sleep(TORN_PAUSE);
        }
    }

    /// Records the state the source was found in, when its log did not lead there.
    fn record_found(
        &mut self,
        driver: &mut Driver,
        record: Record,
        has_history: bool,
    ) -> Result<(), ProtectError> {
        let scan = match record {
            Record::Nothing => return Ok(()),
            Record::Place(scan) => {
                self.recorder.resume_from(self.source.resume())?;
                scan
            }
            Record::Difference(scan) => self.record_difference(driver, scan)?,
            Record::Image(scan) => {
                driver.board.base_missing();
                let (table, commit) = (scan.table().clone(), self.found_commit(&scan));
                self.recorder.record_image(table, commit, has_history, self.alive_before)?;
                driver.wants_image = false;
                driver.board.update(|status| status.gaps_total += u64::from(has_history));
                self.base_wanted = true;
                scan
            }
        };
        if self.base_wanted {
            // Its transaction must not be lost while its base is made, or the base would belong to nothing.
            self.recorder.secure()?;
        }
        self.recorder.ship(Instant::now())?;
        if self.base_wanted {
            self.make_base(driver, scan.into_image())?;
        }
        Ok(())
    }

    /// The transaction that leads to the state that was found.
    fn found_commit(&self, scan: &Scan) -> Commit {
        Commit { image_pages: scan.table().pages(), time: scan.at(), resume: self.source.resume() }
    }

    /// Ships what differs between the recorded state and the one found, as the transaction that ends a gap.
    ///
    /// If the source has to be followed meanwhile, pages that were taken already change again and are taken once more.
    fn record_difference(&mut self, driver: &Driver, mut scan: Scan) -> Result<Scan, ProtectError> {
        self.recorder.expect(TxFlags { ends_gap: true, ..TxFlags::NONE }, self.alive_before)?;
        let mut buffer = vec![0; scan.table().page_size().bytes()];
        let mut unlooked = 0;
        loop {
            let mut moved = false;
            for page in (1..).map_while(PageNo::new) {
                if page.get() > scan.table().pages() {
                    break;
                }
                let found = scan.table().get(page);
                if self.recorder.table().get(page) == found {
                    continue;
                }
                let read = scan.read(page, &mut buffer).map_err(ProtectError::ReadImage)?;
                if read.map(|()| PageHash::of(page, &buffer)) != found {
                    return Err(ProtectError::ImageDiffers { position: self.recorder.next_position() });
                }
                self.recorder.page(page, &buffer, &mut |_| Previous::Unknown)?;
                unlooked += buffer.len();
                if unlooked >= DIFFERENCE_STEP {
                    unlooked = 0;
                    driver.go_on()?;
                    moved |= scan.look(&mut self.source)?;
                }
            }
            if !moved {
                break;
            }
        }
        self.recorder.commit(self.found_commit(&scan))?;
        self.recorder.expect_nothing()?;
        driver.board.update(|status| status.gaps_total += 1);
        Ok(scan)
    }

    fn make_base(&mut self, driver: &mut Driver, image: Box<dyn Image>) -> Result<(), ProtectError> {
        let Some(point) = self.recorder.point() else { return Ok(()) };
        self.base_wanted = false;
        let covered = self.recorder.base_begun()?;
        let job = BaseJob {
            repository: driver.repository.clone(),
            database: self.recorder.database(),
            point,
            state: self.recorder.table().state(),
            image,
            previous: driver.manifest.clone(),
            after_log: driver.board.has_base(),
            board: driver.board.clone(),
            epoch: driver.board.base_epoch(),
            scratch: driver.options.state.clone(),
            parked_max: driver.options.spool_bytes,
        };
        let (send, done) = oneshot::channel();
        let waker = driver.waker.clone();
        let making = async move {
            let _ = send.send(job.run().await);
            waker.wake();
        };
        let task = driver.runtime.spawn(making.in_current_span());
        self.base_job = Some(UnderWay { done, task, covered });
        Ok(())
    }

    /// Takes note of a base that was made, or could not be.
    fn take_base(&mut self, driver: &mut Driver) -> Result<(), ProtectError> {
        let Some(job) = &mut self.base_job else { return Ok(()) };
        let made = match job.done.try_recv() {
            Ok(made) => made,
            Err(oneshot::error::TryRecvError::Empty) => return Ok(()),
            Err(oneshot::error::TryRecvError::Closed) => {
                Err(ProtectError::TaskDied { what: "making a base".into() })
            }
        };
        let covered = job.covered;
        self.base_job = None;
        match made {
            Ok(manifest) => {
                self.recorder.base_made(covered);
                self.base = Some(BaseFacts::of(&manifest));
                driver.board.concern("base", None);
                driver.board.concern("first base", None);
                driver.manifest = Some(manifest);
            }
            Err(error @ ProtectError::ImageDiffers { .. }) => {
                // The captured state and the source do not agree: compare all pages as after a gap.
                tracing::error!(error = %chain(&error), "a base could not be made");
                self.recorder.forget_resume();
                return Err(error);
            }
            Err(error) => {
                driver
                    .board
                    .concern("base", Some(format!("a base could not be made: {}", explained(&error))));
                (self.base_wanted, self.no_base_before) = (true, Some(Instant::now() + BASE_PAUSE));
            }
        }
        Ok(())
    }

    /// Captures until told to stop, or until something breaks the thread.
    pub(super) fn capture(&mut self, driver: &mut Driver) -> Result<Ended, ProtectError> {
        loop {
            if let Some(ended) = self.obey(driver)? {
                return Ok(ended);
            }
            self.take_base(driver)?;
            self.must_ship(driver)?;
            if driver.rival.take_back() {
                tracing::warn!("the other daemon on this database is silent: this one takes the line back");
                return Ok(Ended::Again);
            }
            let polled = match self.look() {
                Ok(polled) => polled,
                Err(CaptureError::Sink(ProtectError::SpoolFull { .. })) => {
                    if let Some(ended) = self.let_go_if_it_must(driver)? {
                        return Ok(ended);
                    }
                    self.flush(driver)?;
                    self.source.wait(&driver.waker, CHECK_EVERY);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            if let Some(event) = polled.event {
                return self.obey_event(driver, &event);
            }
            if polled.complete {
                driver.board.looked(self.looked);
            }
            self.flush(driver)?;
            self.upkeep(driver, polled.transactions == 0)?;
            let wait = self.recorder.ship_in(driver.options.flush_interval, Instant::now());
            self.source.wait(&driver.waker, wait.map_or(WAIT_MAX, |wait| wait.min(WAIT_MAX)));
        }
    }

    /// An error when nobody ships any more: what is captured would wait for ever.
    fn must_ship(&mut self, driver: &Driver) -> Result<(), ProtectError> {
        if !self.shipping.is_finished() {
            return Ok(());
        }
        Err(match driver.runtime.block_on(&mut self.shipping) {
            Ok(()) => ProtectError::PartLost,
            Err(died) => ProtectError::TaskDied { what: format!("shipping: {died}") },
        })
    }

    /// Ships when the interval has passed or enough has gathered.
    fn flush(&mut self, driver: &Driver) -> Result<(), ProtectError> {
        let now = Instant::now();
        let due =
            self.recorder.ship_in(driver.options.flush_interval, now).is_some_and(|wait| wait.is_zero());
        if due || self.recorder.waiting_bytes() >= driver.options.segment_bytes {
            self.recorder.ship(now)?;
        }
        Ok(())
    }

    /// Bases by work, the journal, and the mark that nothing went unseen.
    fn upkeep(&mut self, driver: &mut Driver, quiet: bool) -> Result<(), ProtectError> {
        let LogSize { versions, bytes } = self.recorder.log_since_base();
        let (now, rule) = (Timestamp::now(), driver.options.base);
        let outgrown = |base: BaseFacts| base.is_outgrown(versions, bytes, now, rule);
        let due = self.base_wanted || self.base.is_some_and(outgrown);
        let may = self.base_job.is_none() && self.no_base_before.is_none_or(|until| Instant::now() >= until);
        if due && may && self.recorder.point().is_some() {
            let image = self.source.image(&mut self.recorder, &driver.options.state)?;
            self.make_base(driver, image)?;
        }
        if self.recorder.wants_compaction(quiet) {
            self.recorder.compact_journal()?;
        }
        // What is captured and not durable yet may be lost with this process and found again as unwatched: so the mark
        // must not be later than that.
        if self.alive_noted.is_none_or(|noted| noted.elapsed() >= ALIVE_EVERY)
            && let Some(covered) = driver.board.covered_through()
        {
            self.note_alive(driver, covered);
        }
        Ok(())
    }

    /// Notes for the next start up to when all is recorded where it finds it.
    fn note_alive(&mut self, driver: &Driver, until: Timestamp) {
        self.alive_noted = Some(Instant::now());
        let text = until.as_micros().to_string();
        if let Err(error) = std::fs::write(driver.options.state.join("alive"), text) {
            tracing::debug!(%error, "cannot note that the daemon is alive");
        }
    }

    fn obey(&mut self, driver: &mut Driver) -> Result<Option<Ended>, ProtectError> {
        loop {
            match driver.commands.next() {
                Some(Command::Stop) => {
                    let why = match self.look_complete() {
                        Ok(polled) if polled.complete => None,
                        Ok(polled) => {
                            Some(polled.event.map_or("its index is torn".to_owned(), |e| format!("{e:?}")))
                        }
                        Err(error) => Some(chain(&error)),
                    };
                    if let Some(why) = why {
                        tracing::warn!("the last commits may not be captured: {why}");
                    }
                    return Ok(Some(Ended::Stopped));
                }
                Some(Command::Flush(reply)) => {
                    if let Some(ended) = self.flush_for(driver, reply)? {
                        return Ok(Some(ended));
                    }
                }
                None => return Ok(None),
            }
        }
    }

    /// Captures and ships what is committed now, and says so only if that is all there is. Else who asked is told by the
    /// reply that never comes.
    fn flush_for(
        &mut self,
        driver: &Driver,
        reply: oneshot::Sender<Option<Point>>,
    ) -> Result<Option<Ended>, ProtectError> {
        let polled = match self.look_complete() {
            Ok(polled) => polled,
            // The log is held on to.
            Err(CaptureError::Sink(ProtectError::SpoolFull { .. })) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if let Some(event) = polled.event {
            return self.obey_event(driver, &event).map(Some);
        }
        self.recorder.ship(Instant::now())?;
        if polled.complete {
            let _ = reply.send(self.recorder.point());
        }
        Ok(None)
    }

    fn obey_event(&self, driver: &Driver, event: &SourceEvent) -> Result<Ended, ProtectError> {
        tracing::warn!(?event, "the source has changed under its name");
        driver.board.source_trouble(Some(format!("the source has changed: {event:?}")));
        Ok(Ended::Again)
    }

    /// With a full spool: holds the source's log until it reaches its ceiling, its disk is nearly full, or the application
    /// waits to empty it; then lets go and waits for room. What was committed meanwhile becomes a gap.
    fn let_go_if_it_must(&mut self, driver: &mut Driver) -> Result<Option<Ended>, ProtectError> {
        let folder = self.source.path().parent().unwrap_or(Path::new("."));
        let may_grow =
            self.source.log_bytes()? < driver.options.source_log_bytes && disk::has_room(folder, 0);
        if may_grow && !self.waited_for.look(&self.source) {
            return Ok(None);
        }
        self.source.release();
        if !driver.board.has_base() {
            // The log waits for the first base, and its image has gone with the source: there will be no room. Nothing of
            // it was promised.
            driver.board.concern("first base", Some(too_small_for_first_base(driver.options.spool_bytes)));
            return Ok(Some(Ended::Again));
        }
        driver.board.source_trouble(Some(
            "the store takes too little and the spool is full: commits are not captured singly until there is room".into(),
        ));
        while !self.recorder.outbox().has_room() {
            if let Some(Command::Stop) = driver.commands.next_within(AWAY_PAUSE) {
                return Ok(Some(Ended::Stopped));
            }
            self.must_ship(driver)?;
        }
        Ok(Some(Ended::Again))
    }
}

fn damaged_source(what: &str) -> String {
    format!(
        "the database is damaged ({what}) and is kept as it is: see `PRAGMA integrity_check`; an earlier state may be sound"
    )
}

fn too_small_for_first_base(spool_bytes: u64) -> String {
    format!(
        "the spool ({spool_bytes} bytes) was full before the first base was stored, which is begun anew: give it more room, \
         or the store more bandwidth"
    )
}

fn read_alive(options: &ProtectOptions) -> Timestamp {
    let text = std::fs::read_to_string(options.state.join("alive")).unwrap_or_default();
    let noted = Timestamp::from_micros(text.trim().parse().unwrap_or(0));
    noted.min(Timestamp::now())
}

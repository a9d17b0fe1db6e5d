//! Reads an image through and packs it: one thread reads in order, as many as there are cores compress.
//!
//! What changes while an image is read must be kept for it, so it should be over soon; and the application should not
//! feel it. So all cores are used, by threads of low priority: what the application leaves.

use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::Scope;

use crate::base::{BaseBuilder, BaseError, CHUNK_BYTES, ChunkPreparer, Pack, PreparedChunk};
use crate::capture::sink::Image;
use crate::cores::cores;
use crate::page::{PageHash, PageNo, StateChecksum};
use crate::protect::error::ProtectError;

/// Threads that compress, at most: more only make sense on disks that read faster than 1 GB/s.
const THREADS_MAX: usize = 4;
/// Chunks given to a thread before its results are taken.
const CHUNKS_AHEAD: usize = 2;
/// How much nicer these threads are: a third of the processor when the application wants all of it.
const NICER_BY: i32 = 5;

/// Takes what becomes ready while an image is packed.
pub(super) trait Packed {
    /// A full pack.
    fn pack(&mut self, pack: Pack) -> Result<(), ProtectError>;

    /// Pages read so far.
    fn read(&mut self, pages: u32);
}

/// Reads the whole image into the builder; gives the state it has. Blocking; the thread it runs on stays nice.
pub(super) fn pack_image(
    image: &mut dyn Image,
    builder: &mut BaseBuilder,
    to: &mut dyn Packed,
) -> Result<StateChecksum, ProtectError> {
    be_nice();
    std::thread::scope(|scope| {
        let mut team = Team::new(scope, builder, cores(1).min(THREADS_MAX));
        let mut state = StateChecksum::EMPTY;
        let count = image.page_count();
        let mut done = 0;
        while done < count {
            let mut chunk = team.spare.pop().unwrap_or_default();
            done = read_chunk(image, done, &mut chunk, &mut state)?;
            if team.is_full() {
                team.take_one(builder, to)?;
            }
            team.give(chunk);
            to.read(done);
        }
        while team.taken < team.given {
            team.take_one(builder, to)?;
        }
        Ok(state)
    })
}

/// Reads the chunk after `done` pages and adds its pages to the state; gives the pages done then.
fn read_chunk(
    image: &mut dyn Image,
    done: u32,
    chunk: &mut Vec<u8>,
    state: &mut StateChecksum,
) -> Result<u32, ProtectError> {
    let page_bytes = image.page_size().bytes();
    let pages = ((CHUNK_BYTES / page_bytes) as u32).min(image.page_count() - done);
    chunk.resize(pages as usize * page_bytes, 0);
    let numbers = (done + 1..=done + pages).filter_map(PageNo::new);
    for (page, slot) in numbers.zip(chunk.chunks_exact_mut(page_bytes)) {
        match image.read(page, slot).map_err(ProtectError::ReadImage)? {
            Some(()) => *state = state.with(PageHash::of(page, slot)),
            None => slot.fill(0),
        }
    }
    if let Some(last) = PageNo::new(done + pages) {
        image.pass(last);
    }
    Ok(done + pages)
}

/// The threads that compress. Chunks go round, so results come back in order by going round as well.
struct Team {
    members: Vec<Member>,
    given: usize,
    taken: usize,
    spare: Vec<Vec<u8>>,
}

struct Member {
    chunks: SyncSender<Vec<u8>>,
    results: Receiver<(Result<PreparedChunk, BaseError>, Vec<u8>)>,
}

impl Team {
    fn new<'scope>(scope: &'scope Scope<'scope, '_>, builder: &BaseBuilder, size: usize) -> Self {
        let members = (0..size).map(|_| Member::new(scope, builder.preparer())).collect();
        Self { members, given: 0, taken: 0, spare: Vec::new() }
    }

    fn is_full(&self) -> bool {
        self.given - self.taken >= self.members.len() * CHUNKS_AHEAD
    }

    fn give(&mut self, chunk: Vec<u8>) {
        if let Some(member) = self.members.get(self.given % self.members.len()) {
            // A member that died is found when its result is taken.
            let _ = member.chunks.send(chunk);
        }
        self.given += 1;
    }

    /// Waits for the oldest chunk and gives it its place.
    fn take_one(&mut self, builder: &mut BaseBuilder, to: &mut dyn Packed) -> Result<(), ProtectError> {
        let died = || ProtectError::TaskDied { what: "compressing a base".into() };
        let member = self.members.get(self.taken % self.members.len()).ok_or_else(died)?;
        let (prepared, spare) = member.results.recv().map_err(|_| died())?;
        self.taken += 1;
        self.spare.push(spare);
        if let Some(pack) = builder.prepared(&prepared?)? {
            to.pack(pack)?;
        }
        Ok(())
    }
}

impl Member {
    fn new<'scope>(scope: &'scope Scope<'scope, '_>, mut preparer: ChunkPreparer) -> Self {
        let (chunks, work) = sync_channel::<Vec<u8>>(CHUNKS_AHEAD);
        let (done, results) = channel();
        scope.spawn(move || {
            while let Ok(chunk) = work.recv() {
                let prepared = preparer.prepare(&chunk);
                if done.send((prepared, chunk)).is_err() {
                    return;
                }
            }
        });
        Self { chunks, results }
    }
}

/// Lowers the priority of this thread, and of those it starts. Where that cannot be, nothing is lost.
fn be_nice() {
    #[cfg(target_os = "linux")]
    {
        let now = rustix::process::getpriority_process(None).unwrap_or(0);
        let _ = rustix::process::setpriority_process(None, now + NICER_BY);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = NICER_BY;
}

//! Opening a database, and deciding where capture begins: right after a resume point, or at the present state.

use std::path::Path;
use std::time::Instant;

use super::cycle::Pace;
use super::files::{self, beside};
use super::links::{self, Links};
use super::log::{self, Frames, LastFrames, LogFile};
use super::resume::ResumePoint;
use super::sightings::Sightings;
use super::{Attach, NAMES, Place, Result, Slot, SqliteOptions, SqliteSource, SqliteSourceError};
use crate::capture::sqlite_ffi;
use crate::capture::watch::Watcher;
use crate::page::PageSize;
use crate::sqlite::index::{HEAD_LEN, IndexHead};
use crate::sqlite::wal::Salts;
use crate::time::Timestamp;

/// The first SQLite without the WAL-reset bug.
const SQLITE_VERSION_MIN: i32 = 3_051_003;

/// Why the log does not go on from a resume point.
struct Break {
    reason: String,
    behind: bool,
}

impl Break {
    fn other(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), behind: false }
    }
}

impl SqliteSource {
    /// Opens a database. Symbolic links are resolved: the log lies beside the file itself.
    ///
    /// # Errors
    /// When there is nothing there, or nothing that can be captured; each case has its own error and advice.
    pub fn open(path: &Path, options: SqliteOptions) -> Result<Self> {
        require_sqlite_version()?;
        let path = match path.canonicalize() {
            Ok(path) => path,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(SqliteSourceError::NotThere { path: path.to_owned() });
            }
            Err(source) => {
                return Err(SqliteSourceError::Io {
                    path: path.to_owned(),
                    doing: "resolve the path",
                    source,
                });
            }
        };
        links::identify(&path)?;
        let network = files::network_file_system(&path);
        if let Some(kind) = network.filter(|_| !options.allow_network_file_system) {
            return Err(SqliteSourceError::NetworkFileSystem { path, kind });
        }
        let now = Instant::now();
        let mut source = Self {
            path,
            options,
            links: None,
            place: Place::default(),
            page_size: PageSize::MIN,
            image_pages: 0,
            last_frames: LastFrames::default(),
            frames: Frames::default(),
            slot: Slot::Either,
            opening: None,
            found: Place::default(),
            change: None,
            stamp: None,
            tells_times: network.is_none(),
            unpinned: false,
            unproven: None,
            anew_untold: false,
            before_reset: None,
            unplaced: true,
            away: true,
            secured: None,
            seen: [0; HEAD_LEN + 4],
            looked: Timestamp::MIN,
            sightings: Sightings::default(),
            pace: Pace::new(now),
            watcher: Watcher::polling(),
            hot_since: None,
            stirred: now,
            crowded: false,
            names_due: now,
            mismatch_since: None,
            images: Vec::new(),
        };
        source.connect()?;
        Ok(source)
    }

    /// Opens everything and takes the first pin.
    pub(super) fn connect(&mut self) -> Result<()> {
        let (links, header) = Links::open(&self.path, &self.options)?;
        self.watcher = if self.options.notify {
            Watcher::new(&self.path, &beside(&self.path, "-wal"))
        } else {
            Watcher::polling()
        };
        self.page_size = header.page_size;
        self.links = Some(links);
        self.slot = Slot::Either;
        self.mismatch_since = None;
        (self.unpinned, self.unproven, self.before_reset) = (false, None, None);
        self.anew_untold = false;
        self.secured = None;
        self.frames.forget();
        self.seen = [0; HEAD_LEN + 4];
        self.pace = Pace::new(Instant::now());
        self.hot_since = None;
        self.stamp = None;
        self.is_overwritten()?;
        self.opening = self.look()?.map(|look| Place::of(look.head));
        Ok(())
    }

    /// Decides where capture begins: right after `resume` if inode, page size, salts, frame and running checksum all
    /// match what is found under the pin, or were the end of the log when the first pin began; else at the present state.
    ///
    /// # Errors
    /// When the database cannot be opened or read.
    pub fn attach(&mut self, resume: Option<&[u8]>) -> Result<Attach> {
        if self.links.is_none() {
            self.connect()?;
        }
        self.names_due = Instant::now() + NAMES;
        let looked = Timestamp::now();
        let look = self.look_patiently()?;
        if let Some(page_size) = look.head.page_size.filter(|_| look.head.frames > 0) {
            self.page_size = page_size;
        }
        self.found = Place::of(look.head);
        let opening = self.opening.take();
        let decision = match resume.map(ResumePoint::decode) {
            None => Err(Break::other("there is no resume point")),
            Some(None) => Err(Break::other("the resume point cannot be read")),
            Some(Some(point)) => self.continues(&point, look.head, opening).map(|()| point),
        };
        match decision {
            Ok(point) => {
                self.anew_untold = point.salts != look.head.salts;
                self.place = if point.salts == look.head.salts {
                    point.place()
                } else {
                    Place { salts: look.head.salts, ..Place::default() }
                };
                self.image_pages = point.image_pages;
                self.looked = point.looked;
                self.change = (self.place == Place::of(look.head)).then_some(look.head.change);
                (self.unplaced, self.away) = (false, true);
                self.remember_frames()?;
                Ok(Attach::Continue)
            }
            Err(Break { reason, behind }) => {
                self.place_at(look.head, looked)?;
                (self.unplaced, self.away) = (true, false);
                Ok(Attach::Unknown { reason, behind })
            }
        }
    }

    /// Whether the log goes on from the resume point; if not, why.
    fn continues(
        &self,
        point: &ResumePoint,
        head: IndexHead,
        opening: Option<Place>,
    ) -> std::result::Result<(), Break> {
        let links = self.links.as_ref().ok_or_else(|| Break::other("the source is not attached"))?;
        if point.inode != links.inode() {
            let inode = links.inode();
            return Err(Break::other(format!(
                "the database is another file (inode {inode}, was {})",
                point.inode
            )));
        }
        if point.page_size != self.page_size {
            return Err(Break::other(format!(
                "the page size is {}, was {}",
                self.page_size, point.page_size
            )));
        }
        if point.frame == 0 && point.salts == Salts::default() {
            // An index set up over an empty log: it looks the same after any number of commits in between.
            return Err(Break::other("the log was empty, which says nothing of what came since"));
        }
        if point.salts != head.salts {
            // All of the log before had been captured when our first pin began, and that pin allows only one reset.
            if opening == Some(point.place()) {
                return Ok(());
            }
            return Err(Break::other("the log was reset since"));
        }
        if point.frame > head.frames {
            let reason = format!("the log ends at frame {}, {} had been captured", head.frames, point.frame);
            return Err(Break { reason, behind: true });
        }
        let found = if point.frame == head.frames && point.frame > 0 {
            Some(head.checksum)
        } else if point.frame > 0 {
            let log = LogFile { file: &links.wal, page_size: self.page_size };
            log::read_continued(log, point.frame, point.salts, head.order).ok().flatten()
        } else {
            return Ok(());
        };
        if found == Some(point.checksum) {
            Ok(())
        } else {
            let reason = format!("the log was written anew: frame {} is not the captured one", point.frame);
            Err(Break { reason, behind: true })
        }
    }

    /// Makes the state that was published at a moment the captured one, without handing anything over.
    pub(super) fn place_at(&mut self, head: IndexHead, looked: Timestamp) -> Result<()> {
        self.place = Place::of(head);
        self.change = Some(head.change);
        self.image_pages = self.image_pages_at(head)?;
        self.looked = looked;
        self.frames.forget();
        self.remember_frames()
    }

    /// The size of the image. An index that was set up over an empty log does not say; then the file is all there is.
    fn image_pages_at(&self, head: IndexHead) -> Result<u32> {
        let Some(links) = self.links.as_ref().filter(|_| head.image_pages == 0) else {
            return Ok(head.image_pages);
        };
        let size = sqlite_ffi::database_size(links.pinned()).map_err(|source| SqliteSourceError::Io {
            path: self.path.clone(),
            doing: "tell its size",
            source,
        })?;
        Ok(u32::try_from(size / u64::from(self.page_size.get())).unwrap_or(u32::MAX))
    }

    pub(super) fn remember_frames(&mut self) -> Result<()> {
        self.last_frames.clear();
        let Some(links) = &self.links else { return Ok(()) };
        let log = LogFile { file: &links.wal, page_size: self.page_size };
        self.last_frames.scan(log, 1, self.place.frame, log::remembered_pages()).map_err(|source| {
            SqliteSourceError::Io { path: self.path.clone(), doing: "read its log (-wal)", source }
        })
    }

    /// Where to go on after the last captured commit; empty when the source is not attached.
    #[must_use]
    pub fn resume(&self) -> Vec<u8> {
        let Some(links) = &self.links else { return Vec::new() };
        ResumePoint {
            inode: links.inode(),
            page_size: self.page_size,
            salts: self.place.salts,
            frame: self.place.frame,
            checksum: self.place.checksum,
            image_pages: self.image_pages,
            looked: self.looked,
        }
        .encode()
    }

    /// Lets go of the pin and closes all connections; the log stays where it is. From now on commits may be missed,
    /// until the next attach finds out.
    pub fn release(&mut self) {
        self.give_up_images("the source was let go");
        self.links = None;
        self.watcher = Watcher::polling();
        self.last_frames.clear();
        self.frames.forget();
    }
}

fn require_sqlite_version() -> Result<()> {
    if rusqlite::version_number() >= SQLITE_VERSION_MIN {
        Ok(())
    } else {
        Err(SqliteSourceError::OldSqlite { found: rusqlite::version() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_sqlite_has_no_wal_reset_bug() {
        require_sqlite_version().unwrap();
    }
}

//! Waiting for a change of a file: inotify where there is one, a timer elsewhere, and a bell for other threads.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A bell that ends a wait: any thread may ring it, any number of times; one wait hears it once.
#[derive(Clone, Debug)]
pub struct Waker {
    ends: Arc<(UnixStream, UnixStream)>,
}

impl Waker {
    /// A new bell.
    ///
    /// # Errors
    /// When the system has no more file descriptors.
    pub fn new() -> io::Result<Self> {
        let (ring, hear) = UnixStream::pair()?;
        ring.set_nonblocking(true)?;
        hear.set_nonblocking(true)?;
        Ok(Self { ends: Arc::new((ring, hear)) })
    }

    /// Ends the wait under way, or the next one.
    pub fn wake(&self) {
        // A full pipe means that it has been rung already.
        let _ = (&self.ends.0).write(&[1]);
    }

    /// Takes the rings so far; whether there were any.
    #[must_use]
    pub fn take(&self) -> bool {
        let mut rung = false;
        let mut buffer = [0; 64];
        while matches!((&self.ends.1).read(&mut buffer), Ok(1..)) {
            rung = true;
        }
        rung
    }

    /// Blocks until it rings or `max` has passed.
    pub fn wait(&self, max: Duration) {
        wait_for(&[self.as_fd()], max);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ends.1.as_fd()
    }
}

/// Blocks until one of the descriptors can be read or `max` has passed; whether one can be read.
pub(super) fn wait_for(descriptors: &[BorrowedFd<'_>], max: Duration) -> bool {
    let mut polled: Vec<_> =
        descriptors.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let timeout = Timespec::try_from(max).ok();
    matches!(poll(&mut polled, timeout.as_ref()), Ok(1..))
}

/// What a watcher saw since it was asked last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The log was written to, or something happened that cannot be told apart from it.
    pub log: bool,
    /// A file whose name begins as the database's was created, deleted or renamed.
    pub folder: bool,
}

/// Watches a log file and the folder it lies in. Where the system offers nothing, it never sees anything, and says so.
#[derive(Debug)]
pub struct Watcher {
    #[cfg(target_os = "linux")]
    inotify: Option<linux::Watch>,
}

impl Watcher {
    /// Begins to watch the log of a database. Never fails: a watcher that cannot watch leaves everything to the timer.
    #[must_use]
    pub fn new(database: &Path, log: &Path) -> Self {
        #[cfg(target_os = "linux")]
        return Self {
            inotify: linux::Watch::new(database, log)
                .inspect_err(|error| tracing::warn!(path = %log.display(), %error, "inotify is not available, polling"))
                .ok(),
        };
        #[cfg(not(target_os = "linux"))]
        {
            let _ = (database, log);
            Self {}
        }
    }

    /// A watcher that leaves everything to the timer.
    #[must_use]
    pub fn polling() -> Self {
        Self {
            #[cfg(target_os = "linux")]
            inotify: None,
        }
    }

    /// What can be polled for reading; `None` when there is only the timer.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        #[cfg(target_os = "linux")]
        return self.inotify.as_ref().map(linux::Watch::descriptor);
        #[cfg(not(target_os = "linux"))]
        None
    }

    /// Takes what was seen so far.
    pub fn drain(&mut self) -> Seen {
        #[cfg(target_os = "linux")]
        return self.inotify.as_mut().map_or(Seen::default(), linux::Watch::drain);
        #[cfg(not(target_os = "linux"))]
        Seen::default()
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::ffi::OsString;
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};

    use super::Seen;

    #[derive(Debug)]
    pub(super) struct Watch {
        inotify: Inotify,
        log: WatchDescriptor,
        /// The database's name in the folder.
        name: OsString,
    }

    impl Watch {
        pub(super) fn new(database: &Path, log: &Path) -> io::Result<Self> {
            let inotify = Inotify::init()?;
            let mut watches = inotify.watches();
            let descriptor = watches.add(
                log,
                WatchMask::MODIFY | WatchMask::ATTRIB | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF,
            )?;
            let folder =
                log.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            watches.add(
                folder,
                WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVED_FROM | WatchMask::MOVED_TO,
            )?;
            let name = database.file_name().unwrap_or_default().to_owned();
            Ok(Self { inotify, log: descriptor, name })
        }

        pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
            self.inotify.as_fd()
        }

        pub(super) fn drain(&mut self) -> Seen {
            let mut seen = Seen::default();
            let mut buffer = [0; 4096];
            while let Ok(events) = self.inotify.read_events(&mut buffer) {
                for event in events {
                    if event.mask.contains(EventMask::Q_OVERFLOW) {
                        seen = Seen { log: true, folder: true };
                    } else if event.wd == self.log {
                        seen.log = true;
                        seen.folder |= event.mask != EventMask::MODIFY;
                    } else {
                        let begins =
                            |name: &std::ffi::OsStr| name.as_bytes().starts_with(self.name.as_bytes());
                        seen.folder |= event.name.is_none_or(begins);
                    }
                }
            }
            seen
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_ends_one_wait() {
        let waker = Waker::new().unwrap();
        waker.clone().wake();
        waker.wake();
        assert!(waker.take());
        assert!(!waker.take());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_write_to_the_log_and_a_rename_beside_it_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("a.db-wal");
        std::fs::write(&log, b"x").unwrap();
        let mut watcher = Watcher::new(&folder.path().join("a.db"), &log);
        assert_eq!(watcher.drain(), Seen::default());
        let mut file = std::fs::OpenOptions::new().append(true).open(&log).unwrap();
        file.write_all(b"y").unwrap();
        assert!(wait_for(&[watcher.descriptor().unwrap()], Duration::from_secs(5)));
        assert_eq!(watcher.drain(), Seen { log: true, folder: false });
        std::fs::write(folder.path().join("b.db"), b"of no interest").unwrap();
        assert!(wait_for(&[watcher.descriptor().unwrap()], Duration::from_secs(5)));
        assert_eq!(watcher.drain(), Seen::default());
        std::fs::rename(&log, folder.path().join("b")).unwrap();
        assert!(watcher.drain().folder);
    }
}

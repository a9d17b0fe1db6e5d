//! Where a restore goes: whether the place is fit, a file beside it that only we know, and its atomic publication.
//!
//! A draft is locked (`flock`) from its beginning until it is published or its process ends, however it ends. So a
//! draft that can be locked by another is an orphan of a kill, and the next restore to the same name removes it. Where
//! the file system knows no locks nothing can be locked, and orphans stay.
//!
//! It is closed just before it gets its name, and the lock goes with that. A daemon in this process may open the file
//! the moment it has its name, and closing a descriptor then would drop the locks that SQLite took on it. A restore to
//! the same name that begins between closing and renaming takes the draft for an orphan: one of two restores to one
//! name fails, as one of them must.

use std::collections::hash_map::RandomState;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::disk;
use crate::restore::{Options, RestoreError, TargetUnfit};

/// A file under construction beside its target. Gone when dropped, unless it was published.
#[derive(Debug)]
pub(crate) struct Draft {
    target: PathBuf,
    folder: PathBuf,
    name: Name,
    file: Arc<File>,
}

/// The name of a draft: it goes when this is dropped, unless it became the target's.
#[derive(Debug)]
struct Name {
    path: PathBuf,
    published: bool,
}

/// Looks whether `target` can be restored to, without changing anything.
///
/// # Errors
/// [`TargetUnfit`], or an IO error when the place cannot be looked at.
pub fn check_target(target: &Path, options: &Options, needed_bytes: u64) -> Result<(), RestoreError> {
    let (folder, _) = parts(target)?;
    nothing_there(target, options)?;
    if !folder.is_dir() {
        return Err(TargetUnfit::NoFolder { folder }.into());
    }
    check_space(target, options, needed_bytes)
}

/// Looks whether the file system of `file` has room for it.
pub(crate) fn check_space(file: &Path, options: &Options, needed_bytes: u64) -> Result<(), RestoreError> {
    let (folder, _) = parts(file)?;
    let free_bytes = disk::free_bytes(&folder).map_err(|error| io_error("look at", &folder, error))?;
    let reserve_bytes = options.reserve_bytes.map_or_else(|| disk::reserve_bytes(&folder), Ok);
    let reserve_bytes = reserve_bytes.map_err(|error| io_error("look at", &folder, error))?;
    if free_bytes < needed_bytes.saturating_add(reserve_bytes) {
        return Err(TargetUnfit::NoSpace { folder, free_bytes, needed_bytes, reserve_bytes }.into());
    }
    Ok(())
}

/// Neither the target nor anything that would be taken for a part of it.
fn nothing_there(target: &Path, options: &Options) -> Result<(), RestoreError> {
    if exists(target)? {
        return Err(TargetUnfit::Exists { path: target.to_owned() }.into());
    }
    for suffix in options.sidecar_suffixes {
        let mut beside = OsString::from(target);
        beside.push(suffix);
        let beside = PathBuf::from(beside);
        if exists(&beside)? {
            return Err(TargetUnfit::InUse { path: target.to_owned(), beside }.into());
        }
    }
    Ok(())
}

/// A dangling link counts: publishing must not follow it.
fn exists(path: &Path) -> Result<bool, RestoreError> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(false)
        }
        Err(error) => Err(io_error("look at", path, error)),
    }
}

fn parts(target: &Path) -> Result<(PathBuf, OsString), TargetUnfit> {
    let no_name = || TargetUnfit::NoName { path: target.to_owned() };
    if [&b"/"[..], b"/."].iter().any(|end| target.as_os_str().as_bytes().ends_with(end)) {
        // Renaming to it would fail, after all the work.
        return Err(no_name());
    }
    let name = target.file_name().ok_or_else(no_name)?.to_owned();
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
    Ok((folder.unwrap_or(Path::new(".")).to_owned(), name))
}

/// What the names of all drafts for a target begin with; 16 hex digits follow. A name too long for that is cut, and its
/// hash stands for the rest.
fn draft_prefix(name: &OsStr) -> OsString {
    /// File systems allow 255 bytes, of which a prefix and the digits take 27.
    const NAME_BYTES_MAX: usize = 228;
    /// Leaves room for '-' and 16 hex digits, whatever a cut character turns into.
    const CUT_BYTES: usize = 200;
    let mut prefix = OsString::from(".");
    match name.as_bytes().get(..CUT_BYTES) {
        Some(cut) if name.len() > NAME_BYTES_MAX => {
            prefix.push(OsStr::from_bytes(cut));
            let hash = blake3::hash(name.as_bytes()).to_hex();
            prefix.push(format!("-{}", hash.get(..16).unwrap_or_default()));
        }
        _ => prefix.push(name),
    }
    prefix.push(".everwhen-");
    prefix
}

/// Locks a new draft. Between its making and this somebody may have taken it for an orphan, and removed it.
fn is_ours(file: &File) -> io::Result<bool> {
    match lock(file) {
        Err(Errno::WOULDBLOCK) => Ok(false),
        // A file system without locks: nobody else gets one, either.
        Err(_) => Ok(true),
        Ok(()) => Ok(file.metadata()?.nlink() > 0),
    }
}

fn lock(file: &File) -> rustix::io::Result<()> {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive)
}

/// Removes the drafts for a target whose restores were killed. One that cannot be removed is left. Where the target
/// exists the restore will be refused, and changes nothing.
pub(crate) fn remove_orphans(target: &Path) {
    let Ok((folder, name)) = parts(target) else { return };
    if !exists(target).is_ok_and(|exists| !exists) {
        return;
    }
    let prefix = draft_prefix(&name);
    for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let random = name.as_bytes().strip_prefix(prefix.as_bytes());
        let is_draft = random.is_some_and(|hex| hex.len() == 16 && hex.iter().all(u8::is_ascii_hexdigit));
        if is_draft && remove_orphan(&entry.path()).is_ok_and(|removed| removed) {
            tracing::info!("removed {}, left by a restore that was killed", entry.path().display());
        }
    }
}

/// Removes a draft unless somebody works on it. The lock is held until it is gone, so nobody begins to.
///
/// One with a second name was as good as published. It takes no room, and may be a database by now: opening and closing
/// it would drop the locks that a process (a daemon is one) has on it.
fn remove_orphan(path: &Path) -> io::Result<bool> {
    let found = path.symlink_metadata()?;
    if !found.is_file() || found.nlink() != 1 {
        return Ok(false);
    }
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if lock(&file).is_err() {
        return Ok(false);
    }
    std::fs::remove_file(path)?;
    Ok(true)
}

impl Draft {
    /// Creates it empty.
    pub(crate) fn create(target: &Path) -> Result<Self, RestoreError> {
        let (folder, name) = parts(target)?;
        loop {
            let mut draft_name = draft_prefix(&name);
            draft_name.push(format!("{:016x}", RandomState::new().build_hasher().finish()));
            let path = folder.join(draft_name);
            // For its owner only: nobody knows here who may read the source.
            let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
            let file = file.map_err(|error| io_error("create", &path, error))?;
            if is_ours(&file).map_err(|error| io_error("lock", &path, error))? {
                let name = Name { path, published: false };
                return Ok(Self { target: target.to_owned(), folder, name, file: Arc::new(file) });
            }
        }
    }

    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.name.path
    }

    /// Closes the file and gives it the target's name, unless something has that name by now. Blocks.
    pub(crate) fn publish(self, options: &Options) -> Result<(), RestoreError> {
        let Self { target, folder, mut name, file } = self;
        nothing_there(&target, options)?;
        // Opened before anything is changed: what cannot be opened cannot be brought to disk.
        let opened = File::open(&folder).map_err(|error| io_error("open", &folder, error))?;
        drop(file);
        match rename_without_replacing(&name.path, &target) {
            Ok(()) => name.published = true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(TargetUnfit::Exists { path: target }.into());
            }
            Err(error) => return Err(io_error("publish", &target, error)),
        }
        match opened.sync_all() {
            Err(source) if !has_no_folder_sync(&source) => {
                Err(RestoreError::NameNotOnDisk { path: target, source })
            }
            _ => Ok(()),
        }
    }
}

/// Some file systems (network and FUSE mounts) have no such thing as bringing a folder to disk.
fn has_no_folder_sync(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INVAL | Errno::NOTSUP))
}

impl Drop for Name {
    fn drop(&mut self) {
        if !self.published {
            // There is nobody to tell; a leftover says by its name what it is, and goes with the next restore.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn rename_without_replacing(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => link_and_remove(from, to),
        other => Ok(other?),
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn rename_without_replacing(from: &Path, to: &Path) -> io::Result<()> {
    link_and_remove(from, to)
}

/// For file systems that cannot rename without replacing: a link never replaces.
fn link_and_remove(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::hard_link(from, to)?;
    std::fs::remove_file(from)
}

/// Sorts an error of the target's file system.
pub(crate) fn io_error(action: &'static str, path: &Path, source: io::Error) -> RestoreError {
    let folder = || path.parent().unwrap_or(path).to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            TargetUnfit::BecameFull { folder: folder() }.into()
        }
        io::ErrorKind::FileTooLarge => TargetUnfit::TooLarge { folder: folder() }.into(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            TargetUnfit::NoPermission { folder: folder(), source }.into()
        }
        _ => RestoreError::Io { action, path: path.to_owned(), source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_without_an_owner_go_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("x.db");
        let orphan = folder.path().join(".x.db.everwhen-0123456789abcdef");
        let others = [
            ".x.db.everwhen-0123456789abcde",
            ".x.db.everwhen-0123456789abcdeg",
            ".y.db.everwhen-0123456789abcdef",
            ".x.db.everwhen-0123456789abcdef-wal",
            "x.db.everwhen-0123456789abcdef",
        ];
        for other in others {
            std::fs::write(folder.path().join(other), "not a draft of x.db").unwrap();
        }
        let link = folder.path().join(".x.db.everwhen-00000000000000aa");
        std::os::unix::fs::symlink(folder.path().join(others[0]), &link).unwrap();
        let running = Draft::create(&target).unwrap();
        std::fs::write(&orphan, "half a database").unwrap();
        remove_orphans(&target);
        assert!(!orphan.exists());
        assert!(running.path().exists(), "the draft of a running restore");
        assert!(others.iter().all(|other| folder.path().join(other).exists()));
        assert!(link.symlink_metadata().is_ok());
        drop(running);
        remove_orphans(Path::new("/"));
    }

    #[test]
    fn restores_that_begin_together_never_lose_their_drafts() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("x.db");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        remove_orphans(&target);
                        let draft = Draft::create(&target).unwrap();
                        let there = draft.path().metadata().expect("it is there");
                        assert_eq!(there.ino(), draft.file().metadata().unwrap().ino());
                    }
                });
            }
        });
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_name_of_any_length_has_drafts_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["x".repeat(228), "x".repeat(229), "x".repeat(254) + "y", "x".repeat(254) + "z"];
        let prefixes: Vec<OsString> = names.iter().map(|name| draft_prefix(OsStr::new(name))).collect();
        for (name, prefix) in names.iter().zip(&prefixes) {
            let draft = Draft::create(&folder.path().join(name)).unwrap();
            assert!(draft.path().file_name().unwrap().as_bytes().starts_with(prefix.as_bytes()));
            draft.publish(&Options::default()).unwrap();
            assert_eq!(prefixes.iter().filter(|other| *other == prefix).count(), 1);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), names.len());
    }

    #[test]
    fn a_path_that_ends_like_a_folder_names_no_file() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["new/", "new/.", "/", ".."] {
            let unfit = check_target(&folder.path().join(name), &Options::default(), 0).unwrap_err();
            assert!(matches!(unfit, RestoreError::Target(TargetUnfit::NoName { .. })), "{name}: {unfit}");
        }
    }

    #[test]
    fn a_file_that_may_not_be_so_large_is_the_targets_fault() {
        let error = io_error("extend", Path::new("/x/y"), Errno::FBIG.into());
        assert!(matches!(error, RestoreError::Target(TargetUnfit::TooLarge { .. })), "{error}");
    }
}

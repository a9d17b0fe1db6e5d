//! Where a restore goes: whether the place is fit, a file beside it that only we know, and its atomic publication.

use std::collections::hash_map::RandomState;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::restore::{Options, RestoreError, TargetUnfit};

/// A file under construction beside its target. Gone when dropped, unless it was published.
#[derive(Debug)]
pub(crate) struct Draft {
    target: PathBuf,
    folder: PathBuf,
    path: PathBuf,
    file: Arc<File>,
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
    let stat = rustix::fs::statvfs(&folder).map_err(|error| io_error("look at", &folder, error.into()))?;
    let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
    let reserve_bytes = options.reserve_bytes;
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
    let name = target.file_name().ok_or_else(no_name)?.to_owned();
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
    Ok((folder.unwrap_or(Path::new(".")).to_owned(), name))
}

impl Draft {
    /// Creates it empty.
    pub(crate) fn create(target: &Path) -> Result<Self, RestoreError> {
        let (folder, name) = parts(target)?;
        let mut draft_name = OsString::from(".");
        draft_name.push(&name);
        draft_name.push(format!(".everwhen-{:016x}", RandomState::new().build_hasher().finish()));
        let path = folder.join(draft_name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(|error| io_error("create", &path, error))?;
        Ok(Self { target: target.to_owned(), folder, path, file: Arc::new(file), published: false })
    }

    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file the target's name, unless something has that name by now. Blocks.
    pub(crate) fn publish(mut self, options: &Options) -> Result<(), RestoreError> {
        nothing_there(&self.target, options)?;
        match rename_without_replacing(&self.path, &self.target) {
            Ok(()) => self.published = true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(TargetUnfit::Exists { path: self.target.clone() }.into());
            }
            Err(error) => return Err(io_error("publish", &self.target, error)),
        }
        let folder = File::open(&self.folder).and_then(|folder| folder.sync_all());
        folder.map_err(|error| io_error("bring to disk", &self.folder, error))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            // There is nobody to tell; a leftover is harmless and says by its name what it is.
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
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            TargetUnfit::NoPermission { folder: folder(), source }.into()
        }
        _ => RestoreError::Io { action, path: path.to_owned(), source },
    }
}

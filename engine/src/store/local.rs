//! A folder as a store. Nothing counts as put before the file and the way to it are on the disk.
//!
//! Why not `object_store`'s local store: its create-if-absent costs the same two fsyncs as ours, but (1) "already
//! there" is answered without an fsync, so what a killed process linked but had not synced would be acknowledged;
//! (2) two writers that make the same folders at once can each leave the other's unsynced; (3) it stages beside the
//! target, so what a killed process leaves behind stays for good; (4) large files are published by a rename that
//! replaces what is there; (5) its listings have no order.
//!
//! A put writes and syncs `.staging/<random>`, hard-links it to its name (which fails when the name is taken), syncs
//! the folder, and removes the staged name. Folders made on the way are synced with their parents, once a process.
//! Names beginning with a dot are ours and never listed. Staged files older than a day are swept when a process first
//! writes.

use std::collections::{HashSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};

use super::keys::MARKER;
use super::{Backend, Body, ObjectEntry, PutOutcome, StoreError};

const STAGING: &str = ".staging";
const STALE: Duration = Duration::from_secs(24 * 3600);
/// Entries a listing takes at a time from the blocking pool.
const LIST_BATCH: usize = 1024;

/// A folder as a store.
#[derive(Clone, Debug)]
pub(crate) struct LocalStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    url: String,
    /// Folders known to be on the disk, with all their parents.
    durable: Mutex<HashSet<PathBuf>>,
    swept: Once,
    /// A repository's marker was read or written here. From then on it must be there: a disk that is unmounted under us
    /// leaves an empty folder, and what is put into that is lost when it is mounted again.
    marked: AtomicBool,
}

impl LocalStore {
    pub(crate) fn new(root: PathBuf, url: String) -> Self {
        Self(Arc::new(Inner {
            root,
            url,
            durable: Mutex::default(),
            swept: Once::new(),
            marked: AtomicBool::new(false),
        }))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(&self.0);
        let url = inner.url.clone();
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(result) => result,
            Err(error) => Err(StoreError::Unreachable { store: url, source: super::Cause::of(&error) }),
        }
    }
}

impl Backend for LocalStore {
    fn url(&self) -> &str {
        &self.0.url
    }

    fn put(&self, key: &str, body: Body) -> BoxFuture<'_, Result<PutOutcome, StoreError>> {
        let key = key.to_owned();
        Box::pin(self.blocking(move |inner| inner.put(&key, body)))
    }

    fn get(&self, key: &str, range: Option<Range<u64>>) -> BoxFuture<'_, Result<Bytes, StoreError>> {
        let key = key.to_owned();
        Box::pin(self.blocking(move |inner| inner.get(&key, range)))
    }

    fn size(&self, key: &str) -> BoxFuture<'_, Result<Option<u64>, StoreError>> {
        let key = key.to_owned();
        Box::pin(self.blocking(move |inner| match fs::metadata(inner.path(&key)) {
            Ok(found) if found.is_file() => Ok(Some(found.len())),
            Ok(_) => Ok(None),
            Err(error) => match inner.error("read", &key, &error) {
                StoreError::Missing { .. } => Ok(None),
                other => Err(other),
            },
        }))
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> BoxStream<'_, Result<ObjectEntry, StoreError>> {
        let walk = Walk::new(Arc::clone(&self.0), prefix, after);
        let batches = stream::try_unfold(walk, move |mut walk| async move {
            let (batch, walk) = self
                .blocking(move |_| {
                    let mut batch = Vec::new();
                    while batch.len() < LIST_BATCH
                        && let Some(entry) = walk.next()?
                    {
                        batch.push(entry);
                    }
                    Ok((batch, walk))
                })
                .await?;
            Ok((!batch.is_empty()).then_some((batch, walk)))
        });
        batches
            .flat_map(|batch| match batch {
                Ok(entries) => stream::iter(entries.into_iter().map(Ok).collect::<Vec<_>>()),
                Err(error) => stream::iter(vec![Err(error)]),
            })
            .boxed()
    }

    fn list_folders(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        let prefix = prefix.to_owned();
        Box::pin(self.blocking(move |inner| {
            let mut names: Vec<String> = inner
                .children(&prefix)?
                .into_iter()
                .filter_map(|child| child.strip_suffix('/').map(str::to_owned))
                .collect();
            names.sort();
            Ok(names)
        }))
    }

    fn delete(&self, key: &str) -> BoxFuture<'_, Result<(), StoreError>> {
        let key = key.to_owned();
        Box::pin(self.blocking(move |inner| inner.delete(&key)))
    }

    fn keeps_conditions(&self) -> Option<bool> {
        Some(true)
    }
}

impl Inner {
    /// Where an object lies. Keys are made of lower-case letters, digits, '-' and '/' (checked by [`super::Store`]).
    fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    fn error(&self, action: &'static str, key: &str, error: &io::Error) -> StoreError {
        StoreError::from_io(&self.url, action, key, error)
    }

    /// Whether the repository that was found here is still here.
    fn still_there(&self) -> Result<(), StoreError> {
        if !self.marked.load(Ordering::Relaxed) || self.root.join(MARKER).exists() {
            return Ok(());
        }
        let gone = io::Error::other("the repository that was there is gone; is its disk mounted?");
        Err(StoreError::Unreachable { store: self.url.clone(), source: super::Cause::of(&gone) })
    }

    fn put(&self, key: &str, body: Body) -> Result<PutOutcome, StoreError> {
        if key != MARKER {
            self.still_there()?;
        }
        let outcome = self.put_file(key, body)?;
        self.marked.fetch_or(key == MARKER, Ordering::Relaxed);
        Ok(outcome)
    }

    fn put_file(&self, key: &str, body: Body) -> Result<PutOutcome, StoreError> {
        let write = |error: io::Error| self.error("write", key, &error);
        self.sweep_once();
        let staging = self.root.join(STAGING);
        self.make_durable(&staging).map_err(write)?;
        let staged = Staged::create(&staging).map_err(write)?;
        let mut file = &staged.file;
        for piece in body.into_pieces() {
            let piece = piece.map_err(|error| StoreError::Body {
                key: key.to_owned(),
                source: super::Cause::of(&error),
            })?;
            file.write_all(&piece).map_err(write)?;
        }
        // The data, and with it the size; the times do not matter.
        file.sync_data().map_err(write)?;
        self.publish(&staged.path, &self.path(key)).map_err(write)
    }

    /// Gives the staged file its name, unless that is taken.
    fn publish(&self, staged: &Path, target: &Path) -> io::Result<PutOutcome> {
        let folder = target.parent().unwrap_or(&self.root);
        self.make_durable(folder)?;
        let mut linked = fs::hard_link(staged, target);
        if matches!(&linked, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            // Somebody removed the folder behind our back.
            self.known().clear();
            self.make_durable(folder)?;
            linked = fs::hard_link(staged, target);
        }
        let outcome = match linked {
            Ok(()) => PutOutcome::Created,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => PutOutcome::AlreadyThere,
            Err(error) if has_no_hard_links(&error) => rename_if_absent(staged, target)?,
            Err(error) => return Err(error),
        };
        // Also when it was there: whoever linked it may have been killed before this point.
        sync_folder(folder)?;
        Ok(outcome)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the folder and sees to it that it is on the disk, with its parents up to the first that was there before
    /// the root of the store.
    ///
    /// A folder found existing is synced into its parent as well, once: whoever made it may not have come so far.
    fn make_durable(&self, folder: &Path) -> io::Result<()> {
        if self.known().contains(folder) {
            return Ok(());
        }
        if folder != self.root
            && let Some(parent) = folder.parent()
        {
            self.make_durable(parent)?;
            make_folder(folder)?;
            sync_folder(parent)?;
        } else {
            make_root(folder)?;
        }
        self.known().insert(folder.to_owned());
        Ok(())
    }

    fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        let read = |error: io::Error| self.error("read", key, &error);
        let mut file = match File::open(self.path(key)) {
            Ok(file) => file,
            Err(error) => {
                self.still_there()?;
                return Err(read(error));
            }
        };
        let found = file.metadata().map_err(read)?;
        if !found.is_file() {
            return Err(StoreError::Missing { store: self.url.clone(), key: key.to_owned() });
        }
        let size = found.len();
        let range = range.unwrap_or(0..size);
        if range.start > range.end || range.end > size {
            return Err(StoreError::Range { store: self.url.clone(), key: key.to_owned(), range });
        }
        let len = range.end - range.start;
        if range.start > 0 {
            file.seek(SeekFrom::Start(range.start)).map_err(read)?;
        }
        // The range lies in the file, so this allocates no more than is there.
        let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or_default());
        file.take(len).read_to_end(&mut bytes).map_err(read)?;
        if bytes.len() as u64 != len {
            return Err(StoreError::Range { store: self.url.clone(), key: key.to_owned(), range });
        }
        self.marked.fetch_or(key == MARKER, Ordering::Relaxed);
        Ok(bytes.into())
    }

    fn delete(&self, key: &str) -> Result<(), StoreError> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.error("delete", key, &error)),
        }
        path.parent().map_or(Ok(()), sync_folder).map_err(|error| self.error("delete", key, &error))
    }

    /// The full keys right below a prefix (which is empty or ends in '/'), folders with a '/' at the end. A folder that
    /// is not there is empty.
    fn children(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.still_there()?;
        let list = |error: io::Error| match self.error("list", prefix, &error) {
            StoreError::Missing { .. } => None,
            other => Some(other),
        };
        let entries = match fs::read_dir(self.root.join(prefix)) {
            Ok(entries) => entries,
            Err(error) => return list(error).map_or(Ok(Vec::new()), Err),
        };
        let mut children = Vec::new();
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => return list(error).map_or(Ok(children), Err),
            };
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
            let key = format!("{prefix}{name}");
            let is_folder = match entry.file_type() {
                Ok(kind) if !kind.is_symlink() => kind.is_dir(),
                _ => self.look_at(&entry.path(), &key)?.is_some_and(|found| found.is_dir()),
            };
            children.push(if is_folder { key + "/" } else { key });
        }
        Ok(children)
    }

    /// What a listing found; `None` if it is not there any more. Any other failure is the listing's: an object that was left
    /// out would make an earlier state the latest.
    fn look_at(&self, path: &Path, key: &str) -> Result<Option<fs::Metadata>, StoreError> {
        match fs::metadata(path) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.error("list", key, &error)),
        }
    }

    /// Removes what killed processes left in the staging folder, once a process. Failing at it harms nothing.
    fn sweep_once(&self) {
        self.swept.call_once(|| {
            let Ok(entries) = fs::read_dir(self.root.join(STAGING)) else { return };
            for entry in entries.flatten() {
                let age = entry.metadata().ok().and_then(|found| found.modified().ok()?.elapsed().ok());
                if age.is_some_and(|age| age > STALE) {
                    let _ = fs::remove_file(entry.path());
                }
            }
        });
    }
}

/// A staged file; its name goes with it.
struct Staged {
    path: PathBuf,
    file: File,
}

impl Staged {
    fn create(folder: &Path) -> io::Result<Self> {
        let name = crate::random::nonce().map_err(io::Error::other)?;
        let path = folder.join(crate::random::hex(&name));
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        Ok(Self { path, file })
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn make_folder(folder: &Path) -> io::Result<()> {
    // For its owner only: what is stored may be read by whoever may read the databases. A folder that is there keeps its mode.
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        other => other,
    }
}

/// Makes the root of the store with its parents. They are synced from the first that was there down.
fn make_root(root: &Path) -> io::Result<()> {
    if root.is_dir() {
        return Ok(());
    }
    match root.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => {
            make_root(parent)?;
            make_folder(root)?;
            sync_folder(parent)
        }
        _ => make_folder(root),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Some file systems (FAT, some network and FUSE mounts) have no hard links.
fn has_no_hard_links(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK))
}

#[cfg(target_os = "linux")]
fn rename_if_absent(staged: &Path, target: &Path) -> io::Result<PutOutcome> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, staged, CWD, target, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(PutOutcome::Created),
        Err(rustix::io::Errno::EXIST) => Ok(PutOutcome::AlreadyThere),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn rename_if_absent(_staged: &Path, _target: &Path) -> io::Result<PutOutcome> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "the file system has no hard links"))
}

/// A listing under way, in the order of keys: the order of whole texts, where a folder counts with its '/'.
struct Walk {
    inner: Arc<Inner>,
    after: String,
    /// What is still to be visited, the next first.
    ahead: VecDeque<String>,
    prefix: Option<String>,
}

impl Walk {
    fn new(inner: Arc<Inner>, prefix: &str, after: Option<&str>) -> Self {
        Self {
            inner,
            after: after.unwrap_or_default().to_owned(),
            ahead: VecDeque::new(),
            prefix: Some(prefix.to_owned()),
        }
    }

    fn next(&mut self) -> Result<Option<ObjectEntry>, StoreError> {
        if let Some(prefix) = self.prefix.take() {
            self.enter(&prefix)?;
        }
        while let Some(key) = self.ahead.pop_front() {
            if key.ends_with('/') {
                self.enter(&key)?;
            } else if let Some(found) = self.inner.look_at(&self.inner.path(&key), &key)?
                && found.is_file()
            {
                return Ok(Some(ObjectEntry { key, size: found.len() }));
            }
        }
        Ok(None)
    }

    fn enter(&mut self, folder: &str) -> Result<(), StoreError> {
        let mut children = self.inner.children(folder)?;
        // A folder may hold keys behind `after` even when its own name lies before it.
        children.retain(|child| {
            *child > self.after || self.after.starts_with(child.as_str()) && child.ends_with('/')
        });
        children.sort_unstable_by(|a, b| b.cmp(a));
        for child in children {
            self.ahead.push_front(child);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;

    #[tokio::test]
    async fn an_object_that_cannot_be_looked_at_fails_the_listing_and_one_that_is_gone_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::new(folder.path().to_owned(), "here".to_owned());
        fs::create_dir_all(folder.path().join("db/log")).unwrap();
        fs::write(folder.path().join("db/log/1"), "one").unwrap();
        let listed = async || store.list("db/", None).try_collect::<Vec<_>>().await;
        std::os::unix::fs::symlink("nowhere", folder.path().join("db/log/2")).unwrap();
        assert_eq!(listed().await.unwrap().len(), 1);
        std::os::unix::fs::symlink("3", folder.path().join("db/log/3")).unwrap();
        assert!(listed().await.is_err(), "a link to itself can be anything");
        assert!(store.list_folders("db/log/").await.is_err());
    }
}

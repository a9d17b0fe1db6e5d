//! Small cloud stores for tests, over real HTTP on the loop-back: one store of objects in memory behind three dialects,
//! each with what `object_store` asks for and nothing else, and switches for everything that stores and networks do
//! wrong. Requests are counted; that something signs them is checked, signatures are not. A server runs on a thread of
//! its own, so that child processes and blocking tests can use it as well.
//!
//! `shelf` holds the objects, `wire` speaks HTTP and misbehaves; `s3`, `google` and `azure` are the dialects: what a
//! request means, and how an answer is put.

mod azure;
mod google;
mod s3;
mod shelf;
mod wire;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use everwhen_engine::store::Store;
use tokio::sync::oneshot;

use shelf::Shelf;

/// The one bucket or container there is.
pub const BUCKET: &str = "bucket";

/// How a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// As Amazon S3.
    S3,
    /// As Google Cloud Storage's XML interface.
    Google,
    /// As Azure Blob Storage.
    Azure,
}

impl Dialect {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::S3, Self::Google, Self::Azure];
}

/// What goes wrong. All off at the start.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// So many requests are answered 503, undone.
    pub unavailable: u32,
    /// So many requests are answered 429, undone.
    pub throttled: u32,
    /// Every answer waits for this long.
    pub delay: Duration,
    /// Bodies of requests are read at so many bytes a second; 0 means at once.
    pub reads_at: u64,
    /// So many puts are done but their connection is closed without an answer.
    pub lost_acks: u32,
    /// Conditions of puts are ignored in silence, as by some S3-compatible stores.
    pub ignores_conditions: bool,
    /// Conditions of puts are answered 501, as by others.
    pub refuses_conditions: bool,
    /// Where a listing is to begin is ignored, as by Azure with older clients.
    pub ignores_offsets: bool,
    /// Listings are in no order, as those of S3's directory buckets.
    pub lists_backwards: bool,
    /// Every put is answered 403.
    pub read_only: bool,
    /// A put to a name that is taken is answered 403, whatever its condition: an object lock, a role without it.
    pub no_overwrite: bool,
    /// Every delete is answered 403.
    pub no_delete: bool,
    /// Every listing is answered 403.
    pub no_list: bool,
    /// Every request is answered 403 with this code, like `InvalidAccessKeyId`.
    pub rejects_all_with: Option<String>,
    /// Entries in a page of a listing; 0 means 1000.
    pub page: usize,
    /// So many bodies of objects end half-way, in an orderly close.
    pub cut_bodies: u32,
    /// So many bodies of objects end half-way, in a reset of the connection.
    pub reset_bodies: u32,
    /// So many ranges are answered with their first half, said to be that.
    pub short_ranges: u32,
    /// So many ranges are answered with their first half, said to be all of them.
    pub lying_ranges: u32,
    /// Every range is answered with the whole object.
    pub ignores_ranges: bool,
}

/// Requests served so far, also those that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Objects, and parts of them, put.
    pub puts: u64,
    /// Objects read.
    pub gets: u64,
    /// Objects looked at.
    pub heads: u64,
    /// Pages of listings.
    pub lists: u64,
    /// Deletes; one of many objects counts once.
    pub deletes: u64,
    /// Uploads in parts begun and completed.
    pub uploads: u64,
    /// Bytes in the bodies of requests.
    pub bytes_in: u64,
    /// Bytes in the bodies of answers.
    pub bytes_out: u64,
}

#[derive(Default)]
struct State {
    shelf: Shelf,
    faults: Faults,
    requests: Requests,
}

/// A running server; it stops when dropped.
pub struct CloudServer {
    dialect: Dialect,
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl CloudServer {
    /// Starts one on a free port.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn start(dialect: Dialect) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let (stop, stopped) = oneshot::channel();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    () = wire::serve(listener, dialect, shared) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { dialect, address, state, stop: Some(stop), thread: Some(thread) }
    }

    /// The address of a store in its bucket.
    #[must_use]
    pub fn url(&self, prefix: &str) -> String {
        self.url_in(BUCKET, prefix)
    }

    /// The address of a store in another bucket, which is not there.
    #[must_use]
    pub fn url_in(&self, bucket: &str, prefix: &str) -> String {
        let scheme = match self.dialect {
            Dialect::S3 => "s3",
            Dialect::Google => "gs",
            Dialect::Azure => "az",
        };
        format!("{scheme}://{bucket}/{prefix}")
    }

    /// The environment by which a process finds it.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let endpoint = format!("http://{}", self.address);
        let said = match self.dialect {
            Dialect::S3 => s3::environment(endpoint),
            Dialect::Google => google::environment(endpoint),
            Dialect::Azure => azure::environment(endpoint),
        };
        said.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// The environment by which a process finds it with an emulator's switch, where there is one.
    #[must_use]
    pub fn emulator_environment(&self) -> Vec<(String, String)> {
        if self.dialect != Dialect::Azure {
            return self.environment();
        }
        let said = azure::emulator_environment(format!("http://{}", self.address));
        said.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// A store in its bucket, opened.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn open(&self, prefix: &str) -> Store {
        Store::open_with(&self.url(prefix), &self.environment()).unwrap()
    }

    /// Changes what goes wrong from now on.
    pub fn fault(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut lock(&self.state).faults);
    }

    /// What goes wrong now: counts tell what has happened.
    #[must_use]
    pub fn faults(&self) -> Faults {
        lock(&self.state).faults.clone()
    }

    /// The requests so far.
    #[must_use]
    pub fn requests(&self) -> Requests {
        lock(&self.state).requests
    }

    /// The objects that are there, with their sizes.
    #[must_use]
    pub fn objects(&self) -> Vec<(String, usize)> {
        lock(&self.state).shelf.objects.iter().map(|(key, bytes)| (key.clone(), bytes.len())).collect()
    }

    /// The bytes of an object.
    #[must_use]
    pub fn object(&self, key: &str) -> Option<Bytes> {
        lock(&self.state).shelf.objects.get(key).cloned()
    }

    /// Replaces an object, or removes it: damage from behind the back of everybody.
    pub fn tamper(&self, key: &str, bytes: Option<Bytes>) {
        let objects = &mut lock(&self.state).shelf.objects;
        match bytes {
            Some(bytes) => objects.insert(key.to_owned(), bytes),
            None => objects.remove(key),
        };
    }
}

impl Drop for CloudServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

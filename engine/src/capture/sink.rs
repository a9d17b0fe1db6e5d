//! The seam between a source and the pipeline: what any captured database engine hands over, in no engine's words.

use crate::page::{PageNo, PageSize};
use crate::time::Timestamp;

/// Reads the version of a page as it was before the transaction under way into the buffer (made page-sized).
pub type PreviousPage<'a> = &'a mut dyn FnMut(&mut Vec<u8>) -> Previous;

/// What a source knows of the version of a page before the transaction under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Previous {
    /// Nothing: the page is stored whole.
    Unknown,
    /// It may be the one in the buffer.
    Perhaps,
    /// It is the one in the buffer, of a page that was ever written. If that is not what was captured, the source
    /// is not what was captured.
    Certain,
}

/// The end of one captured transaction.
#[derive(Clone, Debug)]
pub struct Commit {
    /// The size of the image after it, in pages.
    pub image_pages: u32,
    /// The best estimate of when it was committed: never later than the moment the writer was told, unless it was
    /// committed [unwatched](Sink::unwatched); then it is an upper bound.
    pub time: Timestamp,
    /// Where to go on after it, in the source's own encoding (opaque to the pipeline, kept in the local state).
    pub resume: Vec<u8>,
}

/// Takes captured transactions, in commit order.
pub trait Sink {
    /// The pipeline's error.
    type Error: std::error::Error + Send + Sync + 'static;

    /// One page image of the transaction under way. A page comes at most once a transaction, its last image.
    ///
    /// # Errors
    /// Ends the capture; the transaction under way is given up and comes again after [`Sink::rollback`].
    fn page(&mut self, page: PageNo, image: &[u8], previous: PreviousPage<'_>) -> Result<(), Self::Error>;

    /// The transaction under way is complete.
    ///
    /// # Errors
    /// As for [`Sink::page`].
    fn commit(&mut self, commit: Commit) -> Result<(), Self::Error>;

    /// The transactions until [`Sink::watched`] were committed after `since`, and nobody saw when: the source was not
    /// looked at for too long.
    ///
    /// # Errors
    /// As for [`Sink::page`].
    fn unwatched(&mut self, since: Timestamp) -> Result<(), Self::Error>;

    /// From here on the source is watched again.
    ///
    /// # Errors
    /// As for [`Sink::page`].
    fn watched(&mut self) -> Result<(), Self::Error>;

    /// The source has begun its log anew, right after the last commit; what was captured from the log before is gone
    /// there. [Secure](Sink::secure) it, and note that until the next commit this is where to go on.
    ///
    /// # Errors
    /// As for [`Sink::secure`].
    fn began_anew(&mut self, resume: Vec<u8>) -> Result<(), Self::Error>;

    /// Forget the pages of the transaction under way: the source will hand it over anew.
    fn rollback(&mut self);

    /// The source may have another state than the one captured. Whoever goes on after the last commit must compare them;
    /// what that commit says of where to go on counts no more.
    fn distrust(&mut self);

    /// Called before the source lets go of its log: when this returns, a kill -9 of this process loses none of the
    /// transactions committed so far (they are durable in the store, or in the local spool).
    ///
    /// # Errors
    /// Then the source does not let go.
    fn secure(&mut self) -> Result<(), Self::Error>;
}

/// A full image of the source at the last captured commit, page by page, independent of later commits.
pub trait Image: Send {
    /// Bytes in a page.
    fn page_size(&self) -> PageSize;

    /// Pages in the image.
    fn page_count(&self) -> u32;

    /// Reads one page. `None` for a page the source never stores (SQLite's lock-byte page): it counts as zeros on a
    /// restore and is in no checksum.
    ///
    /// # Errors
    /// When the source cannot be read.
    fn read(&mut self, page: PageNo, buffer: &mut [u8]) -> std::io::Result<Option<()>>;

    /// Pages up to this one will not be read again: the source need not keep what they were.
    fn pass(&mut self, page: PageNo);
}

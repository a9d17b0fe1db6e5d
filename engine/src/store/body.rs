//! What is put: bytes at hand, or pieces that are read while they are sent. Its length is known beforehand.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use bytes::Bytes;

/// Bytes read from a file at a time.
const PIECE: usize = 256 * 1024;

type Pieces = Box<dyn Iterator<Item = io::Result<Bytes>> + Send>;

/// The content of an object to be put.
///
/// A body is used up by one put. Reading it may block: stores read it where blocking is allowed.
pub struct Body {
    len: u64,
    pieces: Pieces,
}

impl Body {
    /// Pieces that together have `len` bytes. A store refuses to finish an object of another length.
    pub fn new(len: u64, pieces: impl Iterator<Item = io::Result<Bytes>> + Send + 'static) -> Self {
        Self { len, pieces: Box::new(pieces) }
    }

    /// A whole file as it is now.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn file(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Self::new(len, FilePieces { file, left: len }))
    }

    /// `len` bytes of an open file from `offset`.
    ///
    /// # Errors
    /// When it cannot be positioned.
    pub fn part_of_file(mut file: File, offset: u64, len: u64) -> io::Result<Self> {
        file.seek(SeekFrom::Start(offset))?;
        Ok(Self::new(len, FilePieces { file, left: len }))
    }

    /// This body, then `next`.
    #[must_use]
    pub fn then(self, next: Self) -> Self {
        Self { len: self.len.saturating_add(next.len), pieces: Box::new(self.pieces.chain(next.pieces)) }
    }

    /// In bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces, whose lengths add up to [`Body::len`]; an error otherwise. Reading may block.
    pub fn into_pieces(self) -> impl Iterator<Item = io::Result<Bytes>> + Send {
        let mut left = Some(self.len);
        let mut pieces = self.pieces;
        std::iter::from_fn(move || {
            let expected = left?;
            match pieces.next() {
                Some(Ok(piece)) => {
                    left = expected.checked_sub(piece.len() as u64);
                    if left.is_none() {
                        return Some(Err(io::Error::other("the body is longer than it was said to be")));
                    }
                    Some(Ok(piece))
                }
                Some(Err(error)) => {
                    left = None;
                    Some(Err(error))
                }
                None => {
                    left = None;
                    (expected > 0).then(|| {
                        let text = format!("the body ends {expected} bytes early");
                        Err(io::Error::new(io::ErrorKind::UnexpectedEof, text))
                    })
                }
            }
        })
    }

    /// All of it in one piece, without copying when it is one already. Reading may block.
    ///
    /// # Errors
    /// When a piece cannot be read, or the length is not as said.
    pub fn into_bytes(self) -> io::Result<Bytes> {
        let mut pieces = self.into_pieces();
        let first = pieces.next().transpose()?.unwrap_or_default();
        let Some(second) = pieces.next().transpose()? else { return Ok(first) };
        let mut all = Vec::with_capacity(first.len() + second.len());
        all.extend_from_slice(&first);
        all.extend_from_slice(&second);
        for piece in pieces {
            all.extend_from_slice(&piece?);
        }
        Ok(all.into())
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::new(bytes.len() as u64, std::iter::once(Ok(bytes)))
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.len)
    }
}

struct FilePieces {
    file: File,
    left: u64,
}

impl Iterator for FilePieces {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let want = self.left.min(PIECE as u64);
        let mut piece = Vec::with_capacity(PIECE);
        match (&mut self.file).take(want).read_to_end(&mut piece) {
            Ok(0) => None,
            Ok(read) => {
                self.left -= read as u64;
                Some(Ok(piece.into()))
            }
            Err(error) => {
                self.left = 0;
                Some(Err(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_of_parts_is_their_joint() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7; PIECE + 5]).unwrap();
        let body = Body::from(vec![1, 2]).then(Body::file(file.path()).unwrap());
        assert_eq!(body.len(), PIECE as u64 + 7);
        let bytes = body.into_bytes().unwrap();
        assert_eq!(bytes.len(), PIECE + 7);
        assert_eq!(bytes.get(..3), Some(&[1, 2, 7][..]));
    }

    #[test]
    fn a_body_of_another_length_than_said_is_an_error() {
        let short = Body::new(3, std::iter::once(Ok(Bytes::from_static(b"ab"))));
        assert!(short.into_bytes().is_err());
        let long = Body::new(1, std::iter::once(Ok(Bytes::from_static(b"ab"))));
        assert!(long.into_bytes().is_err());
        assert!(Body::from(Vec::new()).into_bytes().unwrap().is_empty());
    }
}

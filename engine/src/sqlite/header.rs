//! The first 100 bytes of a database file.

use super::{be32, page_size_from_u16};
use crate::page::PageSize;

/// Bytes of the header.
pub const LEN: usize = 100;

const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// How a database keeps its transactions safe, as its file header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JournalKind {
    /// A rollback journal (delete, truncate, persist, memory or off): pages are overwritten in place.
    Rollback,
    /// A write-ahead log.
    Wal,
}

/// What the header says of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatabaseHeader {
    /// Bytes in a page.
    pub page_size: PageSize,
    /// Rollback journal or WAL.
    pub journal: JournalKind,
    /// Bytes at the end of each page that SQLite leaves to extensions.
    pub reserved: u8,
    /// Pages in the file when it was last written; not valid in WAL mode or when written by very old versions.
    pub pages: u32,
}

/// Why 100 bytes are not the header of a database we can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseHeaderError {
    /// Nothing was ever written.
    #[error("it is empty")]
    Empty,
    /// Fewer bytes than a header has.
    #[error("it has {found} bytes, a header has 100")]
    Short {
        /// Bytes found.
        found: usize,
    },
    /// Another kind of file, or an encrypted database.
    #[error("it does not begin with \"SQLite format 3\"")]
    Magic,
    /// A size that SQLite does not have.
    #[error("its page size field is {found}, which is no page size")]
    PageSize {
        /// The field's value.
        found: u16,
    },
    /// A format version of the future.
    #[error("its format versions are {write} (write) and {read} (read), only 1 and 2 are known")]
    Version {
        /// Byte 18.
        write: u8,
        /// Byte 19.
        read: u8,
    },
}

impl DatabaseHeader {
    /// Reads the header from the beginning of the file.
    ///
    /// # Errors
    /// [`DatabaseHeaderError`] says what is not right.
    pub fn parse(bytes: &[u8]) -> Result<Self, DatabaseHeaderError> {
        if bytes.is_empty() {
            return Err(DatabaseHeaderError::Empty);
        }
        let Some(header) = bytes.first_chunk::<LEN>() else {
            return Err(DatabaseHeaderError::Short { found: bytes.len() });
        };
        if !header.starts_with(MAGIC) {
            return Err(DatabaseHeaderError::Magic);
        }
        let stored = u16::from_be_bytes([header[16], header[17]]);
        let page_size = page_size_from_u16(stored).ok_or(DatabaseHeaderError::PageSize { found: stored })?;
        let journal = match (header[18], header[19]) {
            (1, 1) => JournalKind::Rollback,
            (2, 2) => JournalKind::Wal,
            (write, read) => return Err(DatabaseHeaderError::Version { write, read }),
        };
        Ok(Self { page_size, journal, reserved: header[20], pages: be32(header, 28) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..16].copy_from_slice(MAGIC);
        bytes[16..18].copy_from_slice(&4096u16.to_be_bytes());
        (bytes[18], bytes[19]) = (2, 2);
        bytes
    }

    #[test]
    fn the_page_size_one_means_65536() {
        let mut bytes = sample();
        bytes[16..18].copy_from_slice(&[0, 1]);
        assert_eq!(DatabaseHeader::parse(&bytes).unwrap().page_size, PageSize::MAX);
    }

    #[test]
    fn each_kind_of_wrong_header_has_its_own_error() {
        assert_eq!(DatabaseHeader::parse(&[]), Err(DatabaseHeaderError::Empty));
        assert_eq!(DatabaseHeader::parse(&sample()[..99]), Err(DatabaseHeaderError::Short { found: 99 }));
        assert_eq!(DatabaseHeader::parse(&[7; 100]), Err(DatabaseHeaderError::Magic));
        let mut bytes = sample();
        bytes[16] = 0x11;
        assert_eq!(DatabaseHeader::parse(&bytes), Err(DatabaseHeaderError::PageSize { found: 0x1100 }));
        let mut bytes = sample();
        bytes[19] = 3;
        assert_eq!(DatabaseHeader::parse(&bytes), Err(DatabaseHeaderError::Version { write: 2, read: 3 }));
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_value_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200), valid: bool) {
            let mut bytes = bytes;
            if valid && bytes.len() >= 16 {
                bytes[..16].copy_from_slice(MAGIC);
            }
            let _ = DatabaseHeader::parse(&bytes);
        }
    }
}

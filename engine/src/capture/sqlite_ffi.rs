//! Reads a database file through the file handle that SQLite itself holds.
//!
//! The one module with unsafe code. It exists because POSIX locks belong to a process and a file: were we to open the
//! database ourselves and close it again, every lock of SQLite's connections in this process would be gone, and with
//! them the pin. So we ask SQLite for its handle (`SQLITE_FCNTL_FILE_POINTER`) and call its own read method.

use std::ffi::c_void;
use std::io;

use rusqlite::{Connection, ffi};

/// Reads from `offset` (bytes) of the main database file of `connection`; past its end there are zeros, as SQLite
/// itself reads them. Gives whether the file reached to the end of the buffer.
///
/// # Errors
/// When the file cannot be read, or the connection has none.
pub(super) fn read_database(connection: &Connection, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
    let length = i32::try_from(buffer.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let offset = i64::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    match raw_read(connection, offset, buffer.as_mut_ptr().cast(), length)? {
        ffi::SQLITE_OK => Ok(true),
        ffi::SQLITE_IOERR_SHORT_READ => Ok(false),
        code => Err(io::Error::other(format!("sqlite could not read the database file (code {code})"))),
    }
}

/// Bytes in the main database file of `connection`.
///
/// # Errors
/// When the connection has no file, or its size cannot be told.
#[expect(unsafe_code, reason = "calls SQLite's own xFileSize method on its own handle")]
pub(super) fn database_size(connection: &Connection) -> io::Result<u64> {
    let file = handle(connection)?;
    let mut size = 0;
    // SAFETY: `file` is the open handle of this connection (see `handle`), its method table is set while it is open,
    // and `size` outlives the call.
    let code = unsafe {
        match (*file).pMethods.as_ref().and_then(|methods| methods.xFileSize) {
            Some(file_size) => file_size(file, &raw mut size),
            None => ffi::SQLITE_IOERR,
        }
    };
    match code {
        ffi::SQLITE_OK => u64::try_from(size).map_err(io::Error::other),
        code => Err(io::Error::other(format!(
            "sqlite could not tell the size of the database file (code {code})"
        ))),
    }
}

#[expect(unsafe_code, reason = "calls SQLite's own xRead method on its own handle")]
fn raw_read(connection: &Connection, offset: i64, buffer: *mut c_void, length: i32) -> io::Result<i32> {
    let file = handle(connection)?;
    // SAFETY: `file` is the open handle of this connection (see `handle`) and its method table is set while it is open.
    // `buffer` points to `length` writable bytes: the only caller passes a slice's own pointer and length.
    Ok(unsafe {
        match (*file).pMethods.as_ref().and_then(|methods| methods.xRead) {
            Some(read) => read(file, buffer, length, offset),
            None => ffi::SQLITE_IOERR,
        }
    })
}

#[expect(unsafe_code, reason = "asks SQLite for the file handle, which rusqlite does not offer")]
fn handle(connection: &Connection) -> io::Result<*mut ffi::sqlite3_file> {
    let mut file: *mut ffi::sqlite3_file = std::ptr::null_mut();
    // SAFETY: the connection is open for as long as it is borrowed, and no other thread uses it meanwhile, because
    // `Connection` is not `Sync`. FILE_POINTER writes one pointer to the address given and has no other effect. The
    // handle stays valid until the connection is closed, which the borrow rules out.
    let code = unsafe {
        ffi::sqlite3_file_control(
            connection.handle(),
            c"main".as_ptr(),
            ffi::SQLITE_FCNTL_FILE_POINTER,
            (&raw mut file).cast(),
        )
    };
    if code == ffi::SQLITE_OK && !file.is_null() {
        Ok(file)
    } else {
        Err(io::Error::other(format!("sqlite gave no handle of the database file (code {code})")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_past_the_end_is_zero() {
        let folder = tempfile::tempdir().unwrap();
        let connection = Connection::open(folder.path().join("a.db")).unwrap();
        connection.execute_batch("create table t(a)").unwrap();
        let size = database_size(&connection).unwrap();
        let mut buffer = [7; 64];
        assert!(read_database(&connection, 0, &mut buffer).unwrap());
        assert!(buffer.starts_with(b"SQLite format 3\0"));
        assert!(!read_database(&connection, size, &mut buffer).unwrap());
        assert_eq!(buffer, [0; 64]);
    }

    #[test]
    fn a_database_without_a_file_is_an_error() {
        let connection = Connection::open_in_memory().unwrap();
        assert!(read_database(&connection, 0, &mut [0; 16]).is_err());
    }
}

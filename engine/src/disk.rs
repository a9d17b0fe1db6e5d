//! How much of a disk is free, and how much of it we leave: it is the application's, whose database is often on it.

use std::io;
use std::path::Path;

/// The part of a disk that stays free: a twentieth, as file systems keep back for their administrator.
const FREE_PART: u64 = 20;
/// More is not kept free of a large disk.
const FREE_MAX: u64 = 1 << 30;

/// Bytes that the disk of a folder has for us.
pub(crate) fn free_bytes(folder: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(folder)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Bytes of the disk of a folder that stay free: the application's, in every use we make of it.
pub(crate) fn reserve_bytes(folder: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(folder)?;
    Ok(reserve_of(disk.f_blocks.saturating_mul(disk.f_frsize)))
}

/// Whether the disk of a folder would still have its reserve after so many bytes more. Not where that cannot be told.
pub(crate) fn has_room(folder: &Path, bytes: u64) -> bool {
    rustix::fs::statvfs(folder).is_ok_and(|disk| {
        let [free, all] = [disk.f_bavail, disk.f_blocks].map(|blocks| blocks.saturating_mul(disk.f_frsize));
        leaves_enough(free, all, bytes)
    })
}

fn leaves_enough(free: u64, disk: u64, bytes: u64) -> bool {
    free.saturating_sub(bytes) >= reserve_of(disk)
}

fn reserve_of(disk: u64) -> u64 {
    FREE_MAX.min(disk / FREE_PART)
}

/// Whether a write failed because there is no room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_application_keeps_a_part_of_its_disk() {
        let (mib, gib) = (1 << 20, 1 << 30);
        assert!(leaves_enough(2 * gib, 100 * gib, gib));
        assert!(!leaves_enough(2 * gib, 100 * gib, gib + 1));
        assert!(leaves_enough(10 * mib, 64 * mib, 6 * mib));
        assert!(!leaves_enough(10 * mib, 64 * mib, 7 * mib));
        assert!(!leaves_enough(10 * mib, 64 * mib, gib));
    }
}

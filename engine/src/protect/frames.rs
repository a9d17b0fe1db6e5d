//! Where the frames of an open part collect: in memory while they are few, in a spool file when a transaction is huge.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
#[cfg(any(target_os = "linux", target_os = "android"))]
use rustix::fs::FallocateFlags;

use crate::segment::FrameSink;

/// Frames past this many bytes go to a file. 8 MiB.
const MEMORY_MAX: usize = 8 << 20;
/// Bytes that are on the disk twice while a part is made of its frames. 16 MiB.
const MOVED_AT_ONCE: u64 = 16 << 20;

/// Collects the frames of one part.
pub(crate) struct FrameBuffer {
    memory: Vec<u8>,
    file: Option<File>,
    file_bytes: u64,
    scratch: PathBuf,
}

/// A closed part: all its bytes.
#[derive(Clone, Debug)]
pub(crate) enum PartBody {
    Memory(Bytes),
    /// In a file of the spool.
    File {
        path: PathBuf,
        len: u64,
    },
}

impl PartBody {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }
}

impl FrameBuffer {
    /// `scratch` is the file to use when memory does not do.
    pub(crate) fn new(scratch: PathBuf) -> Self {
        Self { memory: Vec::new(), file: None, file_bytes: 0, scratch }
    }

    /// Puts the prologue before the frames, of which there must be `frames_len` bytes. A part that outgrew memory becomes
    /// the file that `spooled` names.
    pub(crate) fn into_part(
        self,
        prologue: &[u8],
        frames_len: u64,
        spooled: impl FnOnce() -> PathBuf,
    ) -> io::Result<PartBody> {
        let collected = self.file_bytes + self.memory.len() as u64;
        if collected != frames_len {
            return Err(not_whole(collected, frames_len));
        }
        let Some(file) = &self.file else {
            let mut bytes = Vec::with_capacity(prologue.len() + self.memory.len());
            bytes.extend_from_slice(prologue);
            bytes.extend_from_slice(&self.memory);
            return Ok(PartBody::Memory(bytes.into()));
        };
        file.write_all_at(&self.memory, self.file_bytes)?;
        // What a failed write left behind.
        file.set_len(frames_len)?;
        let whole = self.scratch.with_extension("whole.partial");
        let mut target = File::create(&whole)?;
        target.write_all(prologue)?;
        let copied = move_bytes(file, &mut target)?;
        if copied != frames_len {
            return Err(not_whole(copied, frames_len));
        }
        let path = spooled();
        std::fs::rename(&whole, &path)?;
        std::fs::remove_file(&self.scratch)?;
        Ok(PartBody::File { path, len: prologue.len() as u64 + frames_len })
    }
}

/// Copies a file and gives the room of what is copied back as it goes: a huge part is not on the disk twice.
fn move_bytes(mut from: &File, to: &mut File) -> io::Result<u64> {
    from.seek(SeekFrom::Start(0))?;
    let mut moved = 0;
    loop {
        let count = io::copy(&mut from.take(MOVED_AT_ONCE), to)?;
        if count == 0 {
            return Ok(moved);
        }
        // Where the file system cannot, it is on the disk twice for a while.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let _ =
            rustix::fs::fallocate(from, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, moved, count);
        moved += count;
    }
}

fn create(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(true).open(path)
}

fn not_whole(found: u64, expected: u64) -> io::Error {
    io::Error::other(format!("{found} bytes of frames were collected, {expected} were written"))
}

/// What is in the file counts as far as `file_bytes`, and is written from there on: a write that fails half way (a full
/// disk) leaves nothing that counts.
impl FrameSink for FrameBuffer {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.memory.extend_from_slice(bytes);
        if self.memory.len() > MEMORY_MAX {
            let file = match &mut self.file {
                Some(file) => file,
                none => none.insert(create(&self.scratch)?),
            };
            file.write_all_at(&self.memory, self.file_bytes)?;
            self.file_bytes += self.memory.len() as u64;
            self.memory.clear();
        }
        Ok(())
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        let in_memory = len.saturating_sub(self.file_bytes);
        self.memory.truncate(usize::try_from(in_memory).unwrap_or(usize::MAX));
        self.file_bytes = self.file_bytes.min(len);
        match &self.file {
            Some(file) => file.set_len(self.file_bytes),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_prologue_and_frames_in_memory_and_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        for frames in [100, MEMORY_MAX + 5, 2 * MEMORY_MAX + 100] {
            let bytes: Vec<u8> = (0..frames).map(|at| (at % 251) as u8).collect();
            let mut buffer = FrameBuffer::new(folder.path().join("scratch"));
            bytes.chunks(70_000).for_each(|chunk| buffer.append(chunk).unwrap());
            buffer.append(b"taken back").unwrap();
            buffer.truncate(frames as u64).unwrap();
            let part = buffer.into_part(b"prologue", frames as u64, || folder.path().join("whole")).unwrap();
            let read = match &part {
                PartBody::Memory(bytes) => bytes.to_vec(),
                PartBody::File { path, .. } => std::fs::read(path).unwrap(),
            };
            assert_eq!(read.len() as u64, part.len());
            assert_eq!(read, [b"prologue", bytes.as_slice()].concat());
            assert!(!folder.path().join("scratch").exists());
        }
    }

    #[test]
    fn what_a_write_cut_short_has_left_in_the_file_is_not_in_the_part() {
        let folder = tempfile::tempdir().unwrap();
        let mut buffer = FrameBuffer::new(folder.path().join("scratch"));
        let first = vec![1; MEMORY_MAX + 1];
        buffer.append(&first).unwrap();
        // A full disk takes some of the next frame and then refuses; the file is longer, and its cursor moved.
        buffer.memory.extend_from_slice(&[2; 100]);
        buffer.file.as_mut().unwrap().seek(SeekFrom::End(0)).unwrap();
        buffer.file.as_mut().unwrap().write_all(&[9; 5000]).unwrap();
        buffer.truncate(first.len() as u64).unwrap();
        buffer.append(&[3; 10]).unwrap();
        let part = buffer.into_part(b"prologue", first.len() as u64 + 10, || folder.path().join("whole"));
        let PartBody::File { path, len } = part.unwrap() else { panic!("it is in memory") };
        let read = std::fs::read(path).unwrap();
        assert_eq!(read.len() as u64, len);
        assert!(read == [b"prologue", first.as_slice(), &[3; 10]].concat());
    }

    #[test]
    fn a_part_of_another_length_than_its_header_says_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut buffer = FrameBuffer::new(folder.path().join("scratch"));
        buffer.append(&[1; 10]).unwrap();
        assert!(buffer.into_part(b"prologue", 9, || folder.path().join("whole")).is_err());
    }
}

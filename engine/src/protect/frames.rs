//! Where the frames of an open part collect: in memory while they are few, in a spool file when a transaction is huge.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::PathBuf;

use bytes::Bytes;

use crate::segment::FrameSink;

/// Frames past this many bytes go to a file. 8 MiB.
const MEMORY_MAX: usize = 8 << 20;

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

    /// Puts the prologue before the frames. A part that outgrew memory becomes the file that `spooled` names.
    pub(crate) fn into_part(
        mut self,
        prologue: &[u8],
        spooled: impl FnOnce() -> PathBuf,
    ) -> io::Result<PartBody> {
        let Some(mut file) = self.file.take() else {
            let mut bytes = Vec::with_capacity(prologue.len() + self.memory.len());
            bytes.extend_from_slice(prologue);
            bytes.extend_from_slice(&self.memory);
            return Ok(PartBody::Memory(bytes.into()));
        };
        file.write_all(&self.memory)?;
        file.seek(SeekFrom::Start(0))?;
        let whole = self.scratch.with_extension("whole.partial");
        let mut target = File::create(&whole)?;
        target.write_all(prologue)?;
        let len = prologue.len() as u64 + io::copy(&mut file, &mut target)?;
        let path = spooled();
        std::fs::rename(&whole, &path)?;
        std::fs::remove_file(&self.scratch)?;
        Ok(PartBody::File { path, len })
    }
}

impl FrameSink for FrameBuffer {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.memory.extend_from_slice(bytes);
        if self.memory.len() > MEMORY_MAX {
            if self.file.is_none() {
                let file =
                    File::options().read(true).write(true).create(true).truncate(true).open(&self.scratch)?;
                self.file = Some(file);
            }
            if let Some(file) = &mut self.file {
                file.write_all(&self.memory)?;
                self.file_bytes += self.memory.len() as u64;
                self.memory.clear();
            }
        }
        Ok(())
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        let in_memory = len.saturating_sub(self.file_bytes);
        self.memory.truncate(usize::try_from(in_memory).unwrap_or(usize::MAX));
        if len < self.file_bytes
            && let Some(file) = &mut self.file
        {
            file.set_len(len)?;
            file.seek(SeekFrom::Start(len))?;
            self.file_bytes = len;
        }
        Ok(())
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
            let part = buffer.into_part(b"prologue", || folder.path().join("whole")).unwrap();
            let read = match &part {
                PartBody::Memory(bytes) => bytes.to_vec(),
                PartBody::File { path, .. } => std::fs::read(path).unwrap(),
            };
            assert_eq!(read.len() as u64, part.len());
            assert_eq!(read, [b"prologue", bytes.as_slice()].concat());
            assert!(!folder.path().join("scratch").exists());
        }
    }
}

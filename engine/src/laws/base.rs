//! Laws of [`crate::base`].

use super::{SLACK, memory, mend};
use crate::base::{
    BaseBuilder, CHUNK_BYTES, ChunkCodec, ChunkRef, MANIFEST_BYTES_MAX, Manifest, check_pack, decode_chunk,
};
use crate::digest::Hasher;
use crate::ids::{DatabaseId, Digest, Position, TimelineId, TxId};
use crate::page::{PageSize, StateChecksum};
use crate::time::Timestamp;

/// Any bytes are a manifest that encodes to one that decodes to the same, or an error. Its lists and the packs and
/// chunks in them are all the memory it takes: two and a half times the lists.
pub fn base_manifest(input: &[u8]) {
    let mut mended = input.to_vec();
    if mended.len() >= 80 {
        mend(&mut mended, 72, 80..usize::MAX);
        mend(&mut mended, 76, 0..76);
    }
    for bytes in [input.to_vec(), mended] {
        let lists = bytes.get(64..72).map_or(0, |raw| u64::from_le_bytes(raw.try_into().unwrap()));
        let lists = usize::try_from(lists).unwrap_or(usize::MAX).min(MANIFEST_BYTES_MAX).max(bytes.len());
        let decoded = memory::within(lists * 5 / 2 + SLACK, || Manifest::decode(&bytes));
        let Ok(manifest) = decoded else { continue };
        assert_eq!(Manifest::decode(&manifest.encode().unwrap()).unwrap(), manifest);
        let bytes: u64 = (0..manifest.chunks.len()).map(|index| manifest.chunk_len(index) as u64).sum();
        assert_eq!(bytes, u64::from(manifest.page_count) * u64::from(manifest.page_size.get()));
    }
}

/// Any bytes are the chunk that was named, or an error. The first five bytes say how it is stored and how long it is.
pub fn pack_chunk(input: &[u8]) {
    let _ = check_pack(input);
    let Some((head, stored)) = input.split_at_checked(5) else { return };
    let codec = if head[0] & 1 == 0 { ChunkCodec::Raw } else { ChunkCodec::Zstd };
    let raw_len = u32::from_le_bytes(head[1..].try_into().unwrap()) as usize;
    let (crc, len) = (crc32fast::hash(stored), stored.len() as u32);
    let mut chunk = ChunkRef { digest: Digest::from_bytes([0; 32]), pack: 0, offset: 0, len, codec, crc };
    let decode = |chunk: &ChunkRef| {
        let limit = stored.len().max(CHUNK_BYTES) + SLACK;
        memory::within(limit, || decode_chunk(&Hasher::Plain, chunk, raw_len, stored))
    };
    // Under its right name it is what it was named for.
    let Err(error) = decode(&chunk) else { panic!("a chunk that has not its name's digest") };
    if let crate::base::BaseError::Digest { found, .. } = error {
        chunk.digest = found;
        let raw = decode(&chunk).unwrap();
        assert_eq!((raw.len(), Hasher::Plain.digest(&raw)), (raw_len, found));
    }
    chunk.crc ^= 1;
    assert!(decode(&chunk).is_err());
}

fn built() -> (Vec<u8>, Manifest) {
    let position = Position::new(TimelineId::FIRST, TxId::FIRST);
    let database = DatabaseId::from_bytes(*b"database");
    let time = Timestamp::from_micros(1_795_219_200_000_000);
    let mut builder = BaseBuilder::new(Hasher::Plain, database, position, time, PageSize::MIN);
    for byte in [1, 2, 1] {
        builder.chunk(&[byte; CHUNK_BYTES]).unwrap();
    }
    builder.chunk(&Vec::from_iter((0..=255).cycle().take(1024))).unwrap();
    let (pack, manifest) = builder.finish(3 * 512 + 2, StateChecksum::from_raw(7)).unwrap();
    (pack.unwrap().bytes, manifest)
}

pub(super) fn manifests() -> Vec<Vec<u8>> {
    vec![built().1.encode().unwrap()]
}

pub(super) fn chunks() -> Vec<Vec<u8>> {
    let (pack, manifest) = built();
    let stored = |(index, chunk): (usize, &ChunkRef)| {
        let bytes = &pack[chunk.offset as usize..][..chunk.len as usize];
        let codec = u8::from(chunk.codec == ChunkCodec::Zstd);
        [&[codec], &(manifest.chunk_len(index) as u32).to_le_bytes()[..], bytes].concat()
    };
    manifest.chunks.iter().enumerate().map(stored).chain([pack.clone()]).collect()
}

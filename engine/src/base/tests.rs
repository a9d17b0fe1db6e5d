//! Laws of bases, on random images.

use proptest::prelude::*;

use super::*;
use crate::digest::Hasher;
use crate::ids::{DatabaseId, Position, TimelineId, TxId};
use crate::page::StateChecksum;
use crate::time::Timestamp;

fn build(image: &[u8], page_size: PageSize, earlier: Option<&Manifest>) -> (Vec<Pack>, Manifest) {
    let position = Position::new(TimelineId::FIRST, TxId::FIRST);
    let database = DatabaseId::from_bytes(*b"database");
    let time = Timestamp::from_micros(1_700_000_000_000_000);
    let mut builder = BaseBuilder::new(Hasher::Plain, database, position, time, page_size);
    earlier.into_iter().for_each(|earlier| builder.reuse(earlier));
    let mut packs: Vec<Pack> =
        image.chunks(CHUNK_BYTES).filter_map(|chunk| builder.chunk(chunk).unwrap()).collect();
    let pages = (image.len() / page_size.bytes()) as u32;
    let (last, manifest) = builder.finish(pages, StateChecksum::from_raw(7)).unwrap();
    packs.extend(last);
    (packs, manifest)
}

fn read(packs: &[Pack], manifest: &Manifest) -> Result<Vec<u8>, BaseError> {
    let mut image = Vec::new();
    for (index, chunk) in manifest.chunks.iter().enumerate() {
        let name = manifest.packs[chunk.pack as usize].digest;
        let pack = packs.iter().find(|pack| pack.digest == name).unwrap();
        check_pack(&pack.bytes)?;
        let stored = &pack.bytes[chunk.offset as usize..][..chunk.len as usize];
        image.extend(decode_chunk(&Hasher::Plain, chunk, manifest.chunk_len(index), stored)?);
    }
    Ok(image)
}

/// Runs of noise, text and repeated chunks.
fn image(page_size: PageSize, pages: usize, seed: u8) -> Vec<u8> {
    let mut bytes = vec![seed; pages * page_size.bytes()];
    for (index, chunk) in bytes.chunks_mut(CHUNK_BYTES).enumerate() {
        if (index + usize::from(seed)).is_multiple_of(3) {
            blake3::Hasher::new().update(&[index as u8 / 2]).finalize_xof().fill(chunk);
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn an_image_comes_back(log in 9_u32..=16, share in 0_usize..100, seed in 0_u8..4) {
        let page_size = PageSize::new(1 << log).unwrap();
        let image = image(page_size, share * 6 * chunk_pages(page_size) as usize / 100, seed);
        let (packs, manifest) = build(&image, page_size, None);
        let decoded = Manifest::decode(&manifest.encode().unwrap()).unwrap();
        prop_assert_eq!(&decoded, &manifest);
        prop_assert_eq!(read(&packs, &decoded).unwrap(), image);
    }

    #[test]
    fn an_altered_manifest_is_refused(at in any::<prop::sample::Index>(), bit in 0_u32..8) {
        let page_size = PageSize::new(4096).unwrap();
        let mut bytes = build(&image(page_size, 400, 0), page_size, None).1.encode().unwrap();
        let at = at.index(bytes.len());
        prop_assert!(Manifest::decode(&bytes[..at]).is_err());
        bytes[at] ^= 1 << bit;
        prop_assert!(Manifest::decode(&bytes).is_err());
    }
}

#[test]
fn a_later_base_stores_only_what_changed() {
    let page_size = PageSize::new(4096).unwrap();
    let mut content: Vec<u8> = vec![0; 80 * CHUNK_BYTES];
    for (index, chunk) in content.chunks_mut(CHUNK_BYTES).enumerate() {
        blake3::Hasher::new().update(&index.to_le_bytes()).finalize_xof().fill(chunk);
    }
    let (mut packs, first) = build(&content, page_size, None);
    assert_eq!(packs.len(), 3, "20 MiB of noise");
    content[CHUNK_BYTES * 70] ^= 1;
    let (more, second) = build(&content, page_size, Some(&first));
    assert_eq!(more.len(), 1);
    assert!(more[0].bytes.len() < 2 * CHUNK_BYTES);
    packs.extend(more);
    assert_eq!(read(&packs, &second).unwrap(), content);
    let (none, third) = build(&content, page_size, Some(&second));
    assert!(none.is_empty());
    assert_eq!(read(&packs, &third).unwrap(), content);
}

#[test]
fn a_swapped_chunk_is_noticed() {
    let page_size = PageSize::new(4096).unwrap();
    let (packs, mut manifest) = build(&image(page_size, 200, 0), page_size, None);
    let digest = manifest.chunks[0].digest;
    manifest.chunks[0].digest = manifest.chunks[1].digest;
    assert!(matches!(read(&packs, &manifest), Err(BaseError::Digest { found, .. }) if found == digest));
    manifest.chunks.pop();
    assert!(matches!(manifest.encode(), Err(BaseError::Chunks { .. })));
}

#[test]
fn a_short_chunk_must_be_the_last() {
    let page_size = PageSize::new(4096).unwrap();
    let position = Position::new(TimelineId::FIRST, TxId::FIRST);
    let time = Timestamp::from_micros(0);
    let database = DatabaseId::from_bytes([0; 8]);
    let mut builder = BaseBuilder::new(Hasher::Plain, database, position, time, page_size);
    assert!(builder.chunk(&[0; 100]).is_err());
    builder.chunk(&[0; 4096]).unwrap();
    assert!(builder.chunk(&[0; 4096]).is_err());
    assert!(builder.finish(2, StateChecksum::EMPTY).is_err());
}

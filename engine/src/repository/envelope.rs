//! The envelope of a sealed object: AES-256-GCM in blocks, so that any part can be read alone and still be checked.
//!
//! ```text
//! offset  bytes
//! 0       4      "EWX1"
//! 4       1      scheme: 1 = AES-256-GCM, blocks of 256 KiB
//! 5       3      zero
//! 8       32     salt, random for every object
//! 40      8      length of the content, little-endian
//! 48             blocks: up to 256 KiB of content, sealed, then its 16-byte tag; an empty content is one empty block
//! ```
//! The key of an object is BLAKE3 over its salt, keyed with the secret of its database: used for one object only, so
//! block numbers serve as nonces (`last?1:0`, three zero bytes, the number as 8 bytes big-endian). Every block is bound
//! to the whole header and to the object's key name: altered, cut, swapped, renamed or reordered objects do not open.
#![warn(clippy::indexing_slicing)]

use std::io;
use std::ops::Range;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use bytes::Bytes;
use zeroize::Zeroizing;

use crate::random;
use crate::store::Body;

use super::RepositoryError;
use super::secret::Secret;

/// Bytes of content in a block.
pub(super) const BLOCK: u64 = 256 * 1024;
const TAG: u64 = 16;
const SALT: usize = 32;
/// Bytes before the first block.
pub(super) const HEADER: u64 = 48;
/// Bytes of content that a header may speak of.
const CONTENT_MAX: u64 = 1 << 62;
const MAGIC: &[u8; 8] = b"EWX1\x01\0\0\0";

/// The bytes an object takes when `content` bytes are sealed.
pub(super) fn sealed_len(content: u64) -> u64 {
    let blocks = content.div_ceil(BLOCK).max(1);
    HEADER.saturating_add(content).saturating_add(blocks.saturating_mul(TAG))
}

/// The bytes of content in an object of this size; `None` when no content gives that size.
pub(super) fn content_len(sealed: u64) -> Option<u64> {
    let blocks = sealed.checked_sub(HEADER)?.div_ceil(BLOCK + TAG);
    let content = sealed.checked_sub(HEADER)?.checked_sub(blocks.checked_mul(TAG)?)?;
    (sealed_len(content) == sealed).then_some(content)
}

/// The head of a sealed object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    salt: [u8; SALT],
    /// Bytes of content. Believed only when a block opens under it.
    pub(super) len: u64,
}

impl Header {
    /// Reads the first [`HEADER`] bytes of an object.
    pub(super) fn parse(key: &str, bytes: &[u8]) -> Result<Self, RepositoryError> {
        let damaged = |reason: &str| RepositoryError::damaged(key, reason);
        let Some((magic, rest)) = bytes.split_first_chunk::<8>() else {
            return Err(damaged("it is too short to be a sealed object"));
        };
        if magic != MAGIC {
            return Err(match magic {
                [b'E', b'W', b'X', b'1', scheme, 0, 0, 0] if *scheme > 1 => {
                    RepositoryError::NewerFormat { key: key.to_owned(), found: u32::from(*scheme), known: 1 }
                }
                _ => damaged("it is not a sealed object"),
            });
        }
        let parsed = rest.split_first_chunk::<SALT>().and_then(|(salt, rest)| {
            let len = u64::from_le_bytes(*rest.first_chunk::<8>()?);
            Some(Self { salt: *salt, len })
        });
        let header = parsed.ok_or_else(|| damaged("it is too short to be a sealed object"))?;
        // No store holds half of that; offsets of its blocks can be added up without a check.
        if header.len > CONTENT_MAX {
            return Err(damaged(&format!("it says that it holds {} bytes", header.len)));
        }
        Ok(header)
    }

    fn bytes(&self) -> [u8; HEADER as usize] {
        let mut bytes = [0; HEADER as usize];
        let parts = MAGIC.iter().chain(&self.salt).copied().chain(self.len.to_le_bytes());
        for (to, from) in bytes.iter_mut().zip(parts) {
            *to = from;
        }
        bytes
    }

    fn blocks(&self) -> u64 {
        self.len.div_ceil(BLOCK).max(1)
    }
}

/// Opens or seals the blocks of one object.
pub(super) struct Sealed {
    key_name: String,
    header: Header,
    cipher: LessSafeKey,
    bound: Vec<u8>,
}

impl Sealed {
    /// For an object that is there.
    pub(super) fn open(secret: &Secret, key: &str, header: Header) -> Result<Self, RepositoryError> {
        let subkey = Zeroizing::new(*blake3::keyed_hash(secret.bytes(), &header.salt).as_bytes());
        let cipher = UnboundKey::new(&AES_256_GCM, subkey.as_slice())
            .map_err(|_| RepositoryError::damaged(key, "the cipher takes no key"))?;
        let mut bound = header.bytes().to_vec();
        bound.extend_from_slice(key.as_bytes());
        Ok(Self { key_name: key.to_owned(), header, cipher: LessSafeKey::new(cipher), bound })
    }

    /// For an object to be made, of so many bytes of content.
    pub(super) fn create(secret: &Secret, key: &str, len: u64) -> Result<Self, RepositoryError> {
        Self::open(secret, key, Header { salt: random::bytes()?, len })
    }

    pub(super) fn header(&self) -> Header {
        self.header
    }

    fn nonce(&self, block: u64) -> Nonce {
        let mut nonce = [0; 12];
        if let Some((flag, number)) = nonce.split_first_mut() {
            *flag = u8::from(block + 1 == self.header.blocks());
            for (to, from) in number.iter_mut().skip(3).zip(block.to_be_bytes()) {
                *to = from;
            }
        }
        Nonce::assume_unique_for_key(nonce)
    }

    fn seal_block(&self, block: u64, content: &mut Vec<u8>) -> io::Result<()> {
        self.cipher
            .seal_in_place_append_tag(self.nonce(block), Aad::from(self.bound.as_slice()), content)
            .map_err(|_| io::Error::other("the cipher failed"))
    }

    fn open_block(&self, block: u64, sealed: &[u8], content: &mut Vec<u8>) -> Result<(), RepositoryError> {
        let mut buffer = sealed.to_vec();
        let opened = self
            .cipher
            .open_in_place(self.nonce(block), Aad::from(self.bound.as_slice()), &mut buffer)
            .map_err(|_| {
                let reason =
                    format!("block {block} does not open: altered, or another object under this name");
                RepositoryError::damaged(&self.key_name, reason)
            })?;
        content.extend_from_slice(opened);
        Ok(())
    }

    /// The bytes of the object that hold these bytes of content; `None` when they are not in it.
    pub(super) fn sealed_range(&self, content: &Range<u64>) -> Option<Range<u64>> {
        if content.start >= content.end || content.end > self.header.len {
            return None;
        }
        let (first, last) = (content.start / BLOCK, (content.end - 1) / BLOCK);
        let end = HEADER + (last + 1) * (BLOCK + TAG);
        Some(HEADER + first * (BLOCK + TAG)..end.min(sealed_len(self.header.len)))
    }

    /// Opens what [`Sealed::sealed_range`] named and gives the content asked for.
    pub(super) fn open_range(&self, content: &Range<u64>, sealed: &[u8]) -> Result<Bytes, RepositoryError> {
        let opened = self.open_blocks(content.start / BLOCK, sealed)?;
        let skip = content.start % BLOCK;
        let wanted = usize::try_from(skip)
            .ok()
            .zip(usize::try_from(skip + (content.end - content.start)).ok())
            .filter(|(_, end)| *end <= opened.len());
        match wanted {
            Some((start, end)) => Ok(Bytes::from(opened).slice(start..end)),
            None => Err(RepositoryError::damaged(&self.key_name, "it is shorter than its header says")),
        }
    }

    fn open_blocks(&self, first: u64, sealed: &[u8]) -> Result<Vec<u8>, RepositoryError> {
        let mut content = Vec::with_capacity(sealed.len());
        let size = usize::try_from(BLOCK + TAG).unwrap_or(usize::MAX);
        for (block, sealed) in (first..).zip(sealed.chunks(size)) {
            self.open_block(block, sealed, &mut content)?;
        }
        Ok(content)
    }
}

/// Opens a whole object.
pub(super) fn open_whole(secret: &Secret, key: &str, object: &[u8]) -> Result<Bytes, RepositoryError> {
    let header = Header::parse(key, object)?;
    let expected = sealed_len(header.len);
    if object.len() as u64 != expected {
        let reason = format!("it has {} bytes, expected {expected}", object.len());
        return Err(RepositoryError::damaged(key, reason));
    }
    let sealed = Sealed::open(secret, key, header)?;
    let blocks = object.get(HEADER as usize..).unwrap_or_default();
    let content = sealed.open_blocks(0, blocks)?;
    Ok(content.into())
}

/// Seals a content at hand.
pub(super) fn seal_whole(secret: &Secret, key: &str, content: Vec<u8>) -> Result<Bytes, RepositoryError> {
    let (sealed, _) = seal_body(secret, key, Body::from(content))?;
    sealed.into_bytes().map_err(|error| RepositoryError::damaged(key, error.to_string()))
}

/// Seals a body while it is read.
pub(super) fn seal_body(secret: &Secret, key: &str, body: Body) -> Result<(Body, Header), RepositoryError> {
    let len = body.len();
    let sealed = Sealed::create(secret, key, len)?;
    let header = sealed.header();
    let head = Bytes::copy_from_slice(&header.bytes());
    let blocks = SealedBlocks { sealed, pieces: body.into_pieces(), left: len, held: Bytes::new(), block: 0 };
    Ok((Body::new(sealed_len(len), std::iter::once(Ok(head)).chain(blocks)), header))
}

struct SealedBlocks<P> {
    sealed: Sealed,
    pieces: P,
    /// Content not yet sealed.
    left: u64,
    /// What was read and not yet sealed.
    held: Bytes,
    block: u64,
}

impl<P: Iterator<Item = io::Result<Bytes>>> SealedBlocks<P> {
    fn seal_next(&mut self) -> io::Result<Bytes> {
        let want = usize::try_from(self.left.min(BLOCK)).unwrap_or_default();
        let mut content = Vec::with_capacity(want + TAG as usize);
        while content.len() < want {
            if self.held.is_empty() {
                self.held = self.pieces.next().unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))?;
            }
            let take = self.held.len().min(want - content.len());
            content.extend_from_slice(&self.held.split_to(take));
        }
        self.left -= want as u64;
        self.sealed.seal_block(self.block, &mut content)?;
        self.block += 1;
        Ok(content.into())
    }
}

impl<P: Iterator<Item = io::Result<Bytes>>> Iterator for SealedBlocks<P> {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.block >= self.sealed.header.blocks() {
            // Nothing is left, but the source is asked once more: a checking one has its last word then.
            return match self.pieces.next() {
                Some(Err(error)) => Some(Err(error)),
                _ => None,
            };
        }
        let sealed = self.seal_next();
        if sealed.is_err() {
            self.block = u64::MAX;
        }
        Some(sealed)
    }
}

/// Wraps a small secret: 12 bytes nonce, 32 bytes sealed, 16 bytes tag.
pub(super) fn wrap(with: &Secret, bound: &[u8], secret: &Secret) -> Result<Vec<u8>, RepositoryError> {
    wrap_under(random::bytes()?, with, bound, secret)
}

/// A nonce must never be used twice with the same key.
fn wrap_under(
    nonce: [u8; 12],
    with: &Secret,
    bound: &[u8],
    secret: &Secret,
) -> Result<Vec<u8>, RepositoryError> {
    let failed = |_| RepositoryError::damaged("key", "the cipher failed");
    let mut content = Zeroizing::new(secret.bytes().to_vec());
    let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, with.bytes()).map_err(failed)?);
    let tag = cipher
        .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(bound), &mut content)
        .map_err(failed)?;
    Ok([nonce.as_slice(), &content, tag.as_ref()].concat())
}

/// The inverse of [`wrap`]; `None` when it does not open.
pub(super) fn unwrap(with: &Secret, bound: &[u8], wrapped: &[u8]) -> Option<Secret> {
    let (nonce, sealed) = wrapped.split_first_chunk::<12>()?;
    let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, with.bytes()).ok()?);
    let mut buffer = Zeroizing::new(sealed.to_vec());
    let opened =
        cipher.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(bound), &mut buffer).ok()?;
    Secret::from_slice(opened)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "a test that slices wrongly fails")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "db/0011223344556677/chunk/ab/x";

    fn secret() -> Secret {
        Secret::from_slice(&[7; 32]).unwrap()
    }

    fn content(len: u64) -> Vec<u8> {
        (0..len).map(|i| (i % 251) as u8).collect()
    }

    /// As `seal_body` does, under a salt of ours.
    fn sealed_under(salt: [u8; SALT], content: &[u8]) -> Vec<u8> {
        let header = Header { salt, len: content.len() as u64 };
        let sealed = Sealed::open(&secret(), KEY, header).unwrap();
        let body = Body::from(content.to_vec());
        let blocks = SealedBlocks {
            sealed,
            pieces: body.into_pieces(),
            left: header.len,
            held: Bytes::new(),
            block: 0,
        };
        blocks.fold(header.bytes().to_vec(), |object, block| [object.as_slice(), &block.unwrap()].concat())
    }

    /// The bytes in `tests/golden` are what is made, and what is read.
    #[test]
    fn the_envelope_is_the_golden_one() {
        use crate::repository::golden::golden;
        let object = golden("sealed-v1.sealed", &sealed_under([0x51; SALT], &content(300)));
        assert_eq!(open_whole(&secret(), KEY, &object).unwrap(), content(300));
        assert_eq!(
            open_whole(&secret(), KEY, &golden("empty-v1.sealed", &sealed_under([0x52; SALT], &[]))).unwrap(),
            content(0)
        );
        // Three blocks, too large to be kept: their digest is.
        let large = sealed_under([0x53; SALT], &content(2 * BLOCK + 9));
        golden("three-blocks-v1.txt", format!("{}\n", blake3::hash(&large).to_hex()).as_bytes());
        assert_eq!(open_whole(&secret(), KEY, &large).unwrap(), content(2 * BLOCK + 9));
        let wrapped = golden(
            "wrapped-v1.bin",
            &wrap_under([0x54; 12], &secret(), b"bound", &secret().derive("x")).unwrap(),
        );
        assert_eq!(unwrap(&secret(), b"bound", &wrapped).unwrap(), secret().derive("x"));
    }

    #[test]
    fn lengths_go_both_ways() {
        for len in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK] {
            assert_eq!(content_len(sealed_len(len)), Some(len), "{len}");
        }
        assert_eq!(content_len(HEADER), None);
        assert_eq!(content_len(sealed_len(BLOCK) + 1), None);
        let _ = content_len(u64::MAX);
        let _ = sealed_len(u64::MAX);
    }

    #[test]
    fn every_flipped_bit_of_a_small_object_is_noticed() {
        let object = seal_whole(&secret(), KEY, content(40)).unwrap();
        assert_eq!(open_whole(&secret(), KEY, &object).unwrap(), content(40));
        for at in 0..object.len() {
            assert!(open_whole(&secret(), KEY, &object[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut flipped = object.to_vec();
                flipped[at] ^= 1 << bit;
                assert!(open_whole(&secret(), KEY, &flipped).is_err(), "byte {at} bit {bit}");
            }
        }
        assert!(open_whole(&secret(), "another/name", &object).is_err());
        assert!(open_whole(&Secret::from_slice(&[8; 32]).unwrap(), KEY, &object).is_err());
    }

    #[test]
    fn blocks_cannot_change_places_nor_the_last_be_dropped() {
        let object = seal_whole(&secret(), KEY, content(2 * BLOCK)).unwrap().to_vec();
        let (head, blocks) = object.split_at(HEADER as usize);
        let (first, second) = blocks.split_at((BLOCK + TAG) as usize);
        assert!(open_whole(&secret(), KEY, &[head, second, first].concat()).is_err());
        let mut shorter = Header::parse(KEY, &object).unwrap();
        shorter.len = BLOCK;
        assert!(open_whole(&secret(), KEY, &[&shorter.bytes(), first].concat()).is_err());
    }

    #[test]
    fn wrapped_secrets_open_with_their_key_and_place_only() {
        let wrapped = wrap(&secret(), b"here", &Secret::from_slice(&[9; 32]).unwrap()).unwrap();
        assert_eq!(unwrap(&secret(), b"here", &wrapped).unwrap().bytes(), &[9; 32]);
        assert!(unwrap(&secret(), b"there", &wrapped).is_none());
        for at in 0..wrapped.len() {
            let mut flipped = wrapped.clone();
            flipped[at] ^= 1;
            assert!(unwrap(&secret(), b"here", &flipped).is_none());
            assert!(unwrap(&secret(), b"here", &wrapped[..at]).is_none());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_range_of_any_content_is_read_back(len in 0..3 * BLOCK, a in any::<u64>(), b in any::<u64>(), cut in 1..50_000usize) {
            let content = content(len);
            let pieces: Vec<_> = content.chunks(cut).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
            let (body, header) = seal_body(&secret(), KEY, Body::new(len, pieces.into_iter())).unwrap();
            let object = body.into_bytes().unwrap();
            prop_assert_eq!(object.len() as u64, sealed_len(len));
            prop_assert_eq!(Header::parse(KEY, &object).unwrap(), header);
            prop_assert_eq!(&open_whole(&secret(), KEY, &object).unwrap(), &content);
            if len > 0 {
                let (a, b) = (a % len, b % len);
                let range = a.min(b)..a.max(b) + 1;
                let sealed = Sealed::open(&secret(), KEY, header).unwrap();
                let part = sealed.sealed_range(&range).unwrap();
                let part = &object[part.start as usize..part.end as usize];
                let opened = sealed.open_range(&range, part).unwrap();
                prop_assert_eq!(&opened[..], &content[range.start as usize..range.end as usize]);
            }
        }

        #[test]
        fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), sound in any::<bool>()) {
            let mut bytes = bytes;
            if sound && bytes.len() >= 8 {
                bytes[..8].copy_from_slice(MAGIC);
            }
            prop_assert!(open_whole(&secret(), KEY, &bytes).is_err());
        }
    }
}

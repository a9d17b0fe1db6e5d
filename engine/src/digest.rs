//! Digests: the one place that computes BLAKE3, plain or keyed.

use std::fmt;
use std::io;

use zeroize::Zeroize;

use crate::ids::Digest;

/// How digests of one database are computed: keyed when its repository is encrypted, so that names tell nothing.
#[derive(Clone)]
pub enum Hasher {
    /// BLAKE3.
    Plain,
    /// BLAKE3 keyed with a key derived for the database.
    Keyed([u8; 32]),
}

impl Hasher {
    /// The digest of `bytes`.
    #[must_use]
    pub fn digest(&self, bytes: &[u8]) -> Digest {
        let mut hashing = self.start();
        hashing.update(bytes);
        hashing.finish()
    }

    /// Begins a digest over bytes that come in pieces.
    #[must_use]
    pub fn start(&self) -> Hashing {
        Hashing(match self {
            Self::Plain => blake3::Hasher::new(),
            Self::Keyed(key) => blake3::Hasher::new_keyed(key),
        })
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "Plain",
            Self::Keyed(_) => "Keyed(..)",
        })
    }
}

impl Drop for Hasher {
    fn drop(&mut self) {
        if let Self::Keyed(key) = self {
            key.zeroize();
        }
    }
}

/// A digest under way. A clone goes its own way from here.
#[derive(Clone, Debug)]
pub struct Hashing(blake3::Hasher);

impl Hashing {
    /// Takes the next bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of everything taken in so far.
    #[must_use]
    pub fn finish(&self) -> Digest {
        Digest::from_bytes(*self.0.finalize().as_bytes())
    }
}

impl io::Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_give_the_digest_of_the_whole_and_keys_give_others() {
        let mut pieces = Hasher::Plain.start();
        pieces.update(b"every");
        pieces.update(b"when");
        assert_eq!(pieces.finish(), Hasher::Plain.digest(b"everywhen"));
        let keyed = Hasher::Keyed([7; 32]);
        assert_ne!(keyed.digest(b"everywhen"), Hasher::Plain.digest(b"everywhen"));
        assert_ne!(keyed.digest(b"everywhen"), Hasher::Keyed([8; 32]).digest(b"everywhen"));
        assert_eq!(format!("{keyed:?}"), "Keyed(..)");
    }

    #[test]
    fn the_empty_digest_is_the_published_one() {
        let expected = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(Hasher::Plain.digest(b"").to_string(), expected);
    }
}

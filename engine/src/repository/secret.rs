//! Keys at rest and in memory: where the repository key comes from, and secrets that are wiped when dropped.

use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::str::FromStr;

use zeroize::{Zeroize, Zeroizing};

use crate::ids::{ParseIdError, parse_hex_u64};
use crate::random;

use super::RepositoryError;

/// What a key's text begins with.
const PREFIX: &str = "everwhen-key-1-";
/// More than any key's text with remarks around it.
const MAX_TEXT: u64 = 64 * 1024;

/// 32 secret bytes, wiped when dropped and never printed.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret([u8; 32]);

impl Secret {
    pub(super) fn random() -> Result<Self, random::NoRandomness> {
        Ok(Self(random::bytes()?))
    }

    pub(super) fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Another secret for one purpose, from which this one cannot be found.
    pub(super) fn derive(&self, purpose: &str) -> Self {
        Self(blake3::derive_key(purpose, &self.0))
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Tells repository keys apart, and nothing about them. Text: 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId([u8; 8]);

impl KeyId {
    pub(super) fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub(super) fn bytes(self) -> [u8; 8] {
        self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&random::hex(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The key of a repository: what the operator keeps. Text: `everwhen-key-1-<64 hex digits>-<8 hex digits of CRC-32>`.
#[derive(Clone, Debug)]
pub struct RepositoryKey(Secret);

impl RepositoryKey {
    /// A fresh one.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub fn generate() -> Result<Self, RepositoryError> {
        Ok(Self(Secret::random()?))
    }

    /// Its text: the only form in which it leaves memory.
    #[must_use]
    pub fn text(&self) -> Zeroizing<String> {
        let bytes = self.0.bytes();
        let digits = Zeroizing::new(random::hex(bytes));
        Zeroizing::new(format!("{PREFIX}{}-{:08x}", digits.as_str(), crc32fast::hash(bytes)))
    }

    /// Which key it is.
    #[must_use]
    pub fn id(&self) -> KeyId {
        let mut id = [0; 8];
        let whole = self.0.derive("everwhen repository key id v1");
        if let Some(first) = whole.bytes().first_chunk::<8>() {
            id = *first;
        }
        KeyId(id)
    }

    pub(super) fn secret(&self) -> &Secret {
        &self.0
    }
}

impl FromStr for RepositoryKey {
    type Err = ParseIdError;

    /// Reads a key's text. White space around it and lines that begin with `#` do not count.
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        // The text is secret: the error never shows it.
        parse_key(text)
            .ok_or(ParseIdError { text: "…".to_owned(), expected: "a key (one line: everwhen-key-1-…)" })
    }
}

fn parse_key(text: &str) -> Option<RepositoryKey> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let line = lines.next()?;
    if lines.next().is_some() {
        return None;
    }
    let (digits, check) = line.strip_prefix(PREFIX)?.split_once('-')?;
    if digits.len() != 64 || check.len() != 8 {
        return None;
    }
    let mut bytes = Zeroizing::new([0u8; 32]);
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        *byte = u8::try_from(parse_hex_u64(std::str::from_utf8(pair).ok()?, 2)?).ok()?;
    }
    let expected = parse_hex_u64(check, 8)?;
    (u64::from(crc32fast::hash(bytes.as_slice())) == expected).then(|| RepositoryKey(Secret(*bytes)))
}

/// Where the repository key is to be found. It is read when a repository is opened and kept in memory only.
#[derive(Clone, Debug)]
pub enum KeySource {
    /// A file that holds the key's text.
    File(PathBuf),
    /// An environment variable that holds the key's text.
    Environment(String),
    /// A command for the shell that prints the key's text: the way to a key management service.
    Command(String),
    /// The key itself.
    Key(RepositoryKey),
}

impl KeySource {
    /// Gets the key. Blocks while a command runs.
    ///
    /// # Errors
    /// [`RepositoryError::KeyUnreadable`].
    pub fn load(&self) -> Result<RepositoryKey, RepositoryError> {
        let unreadable =
            |reason: String| RepositoryError::KeyUnreadable { source_text: self.to_string(), reason };
        let text = match self {
            Self::Key(key) => return Ok(key.clone()),
            Self::File(path) => {
                let file = std::fs::File::open(path).map_err(|error| unreadable(error.to_string()))?;
                read_text(file).map_err(|error| unreadable(error.to_string()))?
            }
            Self::Environment(name) => match std::env::var(name) {
                Ok(text) => Zeroizing::new(text),
                Err(error) => return Err(unreadable(error.to_string())),
            },
            Self::Command(command) => run(command).map_err(unreadable)?,
        };
        text.parse().map_err(|error: ParseIdError| unreadable(error.to_string()))
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Command(command) => write!(f, "command '{command}'"),
            Self::Key(key) => write!(f, "key {}", key.id()),
        }
    }
}

fn read_text(source: impl Read) -> std::io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    source.take(MAX_TEXT).read_to_string(&mut text)?;
    Ok(text)
}

fn run(command: &str) -> Result<Zeroizing<String>, String> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let text = child.stdout.take().map(read_text);
    let status = child.wait().map_err(|error| error.to_string())?;
    match text {
        Some(Ok(text)) if status.success() => Ok(text),
        Some(Err(error)) => Err(error.to_string()),
        _ => Err(format!("it ended with {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_from_its_text_and_typing_errors_are_noticed() {
        let key = RepositoryKey::generate().unwrap();
        let text = format!("# of the production repository\n\n  {}\n", key.text().as_str());
        assert_eq!(text.parse::<RepositoryKey>().unwrap().id(), key.id());
        let line = key.text().to_string();
        for at in 0..line.len() {
            let mut altered = line.clone().into_bytes();
            altered[at] = if altered[at] == b'0' { b'1' } else { b'0' };
            let altered = String::from_utf8(altered).unwrap();
            let error = altered.parse::<RepositoryKey>().unwrap_err();
            assert!(!error.to_string().contains(&line[20..40]), "an error shows the key");
        }
        assert!(!format!("{key:?}").contains(&line[15..79]));
    }

    #[test]
    fn keys_come_from_files_and_commands() {
        let key = RepositoryKey::generate().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), key.text().as_bytes()).unwrap();
        assert_eq!(KeySource::File(file.path().into()).load().unwrap().id(), key.id());
        let command = KeySource::Command(format!("cat '{}'", file.path().display()));
        assert_eq!(command.load().unwrap().id(), key.id());
        for source in [
            KeySource::File("/nonexistent/key".into()),
            KeySource::Environment("EVERWHEN_NO_SUCH_VARIABLE".into()),
            KeySource::Command("exit 3".into()),
            KeySource::Command("echo hello".into()),
        ] {
            assert!(matches!(source.load(), Err(RepositoryError::KeyUnreadable { .. })), "{source}");
        }
    }
}

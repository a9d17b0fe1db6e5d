//! What can go wrong with a repository, by what the operator can do about it.

use crate::error::{ErrorKind, Explain};
use crate::ids::{DatabaseId, RepositoryId};
use crate::random::NoRandomness;
use crate::store::{StoreError, keys};

use super::secret::KeyId;

/// Why the repository did not do as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepositoryError {
    /// The store did not do its part.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no marker under the address.
    #[error("{store} is not a repository: there is no object 'everwhen' in it")]
    NotARepository {
        /// The store's address.
        store: String,
    },
    /// There is a repository where one was to be created.
    #[error("{store} is a repository already ({found})")]
    AlreadyThere {
        /// The store's address.
        store: String,
        /// Which.
        found: RepositoryId,
    },
    /// Another repository than the one the caller means.
    #[error("{store} is repository {found}, expected {expected}")]
    Foreign {
        /// The store's address.
        store: String,
        /// Whose state the caller holds.
        expected: RepositoryId,
        /// What is there.
        found: RepositoryId,
    },
    /// A newer Everwhen wrote it.
    #[error("object '{key}' is of format {found}, this program reads up to {known}")]
    NewerFormat {
        /// The object.
        key: String,
        /// Its format.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// It is encrypted and no key was given.
    #[error("repository {store} is encrypted and no key was given")]
    KeyNeeded {
        /// The store's address.
        store: String,
    },
    /// A key was given for a repository without encryption.
    #[error("repository {store} is not encrypted, but a key was given")]
    NotEncrypted {
        /// The store's address.
        store: String,
    },
    /// The key given is not the one in use.
    #[error("key {given} does not open repository {store}: it is locked with key {expected}")]
    WrongKey {
        /// The store's address.
        store: String,
        /// The key that was given.
        given: KeyId,
        /// The key in use.
        expected: KeyId,
    },
    /// The key could not be got from its source.
    #[error("cannot get the key from {source_text}: {reason}")]
    KeyUnreadable {
        /// The source, in words.
        source_text: String,
        /// What was expected and found.
        reason: String,
    },
    /// An object that must be there is not.
    #[error("object '{key}' is missing from the repository")]
    Missing {
        /// The object.
        key: String,
    },
    /// An object is not what its name says, or is not whole.
    #[error("object '{key}' is damaged: {reason}")]
    Damaged {
        /// The object.
        key: String,
        /// What was expected and found.
        reason: String,
    },
    /// What was to be put under a name does not belong there. Nothing was put.
    #[error("will not put '{key}': the content does not have the digest in its name")]
    WrongContent {
        /// The object.
        key: String,
    },
    /// Somebody else wrote the next version first.
    #[error("'{key}' was just written by somebody else")]
    Conflict {
        /// The object.
        key: String,
    },
    /// A database of that name is registered.
    #[error("there is a database named '{name}' already ({found})")]
    NameTaken {
        /// The name.
        name: String,
        /// The one that has it.
        found: DatabaseId,
    },
    /// No database goes by that name, path or id.
    #[error("no database '{wanted}' in this repository{}", known_names(.known))]
    NoSuchDatabase {
        /// As asked for.
        wanted: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// Several databases go by that name.
    #[error("'{wanted}' may be any of several databases: {}", ids(.found))]
    Ambiguous {
        /// As asked for.
        wanted: String,
        /// Which.
        found: Vec<DatabaseId>,
    },
    /// No randomness.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// Whether it is the marker or a key record: `verify` needs them as everything does.
fn opens_all(key: &str) -> bool {
    key == keys::MARKER || key.starts_with("key/")
}

fn known_names(known: &[String]) -> String {
    let mut names: Vec<&str> = known.iter().take(10).map(String::as_str).collect();
    if known.len() > names.len() {
        names.push("…");
    }
    if names.is_empty() { ": it holds none".to_owned() } else { format!("; there are: {}", names.join(", ")) }
}

fn ids(found: &[DatabaseId]) -> String {
    found.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl RepositoryError {
    /// Whether the same request may succeed later without anybody doing anything.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_passing())
    }

    pub(super) fn damaged(key: &str, reason: impl Into<String>) -> Self {
        Self::Damaged { key: key.to_owned(), reason: reason.into() }
    }
}

impl Explain for RepositoryError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::NotARepository { .. } => ErrorKind::StoreUnreachable,
            Self::AlreadyThere { .. }
            | Self::Foreign { .. }
            | Self::KeyNeeded { .. }
            | Self::WrongKey { .. } => ErrorKind::Refused,
            Self::NotEncrypted { .. } | Self::KeyUnreadable { .. } | Self::NameTaken { .. } => {
                ErrorKind::Usage
            }
            Self::Ambiguous { .. } => ErrorKind::Usage,
            Self::NewerFormat { .. } | Self::Missing { .. } | Self::Damaged { .. } => ErrorKind::Damaged,
            Self::WrongContent { .. } | Self::Conflict { .. } | Self::Randomness(_) => ErrorKind::Failed,
            Self::NoSuchDatabase { .. } => ErrorKind::NoSuchPoint,
        }
    }

    fn advice(&self) -> Option<String> {
        let text = match self {
            Self::Store(error) => return error.advice(),
            Self::NotARepository { .. } => {
                "Check the address, the prefix in it too, and whether its disk is mounted. `everwhen run DB --store …` makes a repository where there is none."
            }
            Self::AlreadyThere { .. } => "Open it, or choose another prefix.",
            Self::Foreign { .. } => {
                "Check the address. Local state of another repository is never mixed in; give the daemon a fresh state folder \
                 if this is the repository you mean."
            }
            Self::NewerFormat { .. } => "Use the version of Everwhen that wrote it, or a newer one.",
            Self::KeyNeeded { .. } => {
                "Give the repository's key with --key-file FILE or EVERWHEN_KEY_FILE, or the key itself in EVERWHEN_KEY, or \
                 name a file, a variable or a command that prints it in the configuration's [key]."
            }
            Self::NotEncrypted { .. } => {
                "Leave --key-file, EVERWHEN_KEY_FILE, EVERWHEN_KEY and the configuration's [key] out; a repository is encrypted \
                 from its creation or never."
            }
            Self::WrongKey { .. } => {
                "Give the key of that id. If it was rotated, the former key no longer opens it."
            }
            Self::KeyUnreadable { .. } => {
                "A key is one line as `everwhen key init` writes it: everwhen-key-1-…."
            }
            Self::Missing { key } | Self::Damaged { key, .. } if opens_all(key) => {
                "Nothing in the repository can be read without it: bring it back from a copy of the repository, or from \
                 an older version of the object if the store keeps them."
            }
            Self::Missing { .. } | Self::Damaged { .. } => {
                "Run `everwhen verify` to see all that is touched, and what is still restorable."
            }
            Self::Conflict { .. } => "Look at what is there now and try again.",
            Self::NameTaken { .. } => "Choose another name with --name.",
            Self::Ambiguous { .. } => "Name it by its id.",
            Self::WrongContent { .. } => "A spool file was altered, or this is a bug: please report it.",
            Self::NoSuchDatabase { .. } | Self::Randomness(_) => return None,
        };
        Some(text.to_owned())
    }
}

//! What can go wrong between us and the store, by what the operator can do about it.

use std::io;
use std::ops::Range;

use crate::error::{ErrorKind, Explain, chain};

use super::provider::Provider;

/// What a lower layer said, as text, with its causes: drivers repeat some of them in their own messages and keep others
/// for themselves, so the chain is told once, here, and ends here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Cause(pub(crate) String);

impl Cause {
    pub(crate) fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        Self(chain(error))
    }
}

/// Why the store did not do as asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The text is not the address of a store.
    #[error("'{url}' is not a store: {reason}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What the environment says about the store does not fit.
    #[error("store {store} cannot be used as it is set up")]
    Settings {
        /// Its address.
        store: String,
        /// What the driver said.
        #[source]
        source: Cause,
    },
    /// No answer, in the time allowed.
    #[error("store {store} does not answer")]
    Unreachable {
        /// Its address.
        store: String,
        /// What the driver said.
        #[source]
        source: Cause,
    },
    /// There is nothing to sign requests with, or it is not accepted.
    #[error("store {store}: no credentials, or none that it accepts")]
    NoCredentials {
        /// Its address.
        store: String,
        /// What the driver said.
        #[source]
        source: Cause,
    },
    /// The credentials are good but not for this.
    #[error("store {store}: not allowed to {action} '{key}'")]
    Denied {
        /// Its address.
        store: String,
        /// The verb: "read", "write", "list", "delete".
        action: &'static str,
        /// The object, or the prefix of a listing.
        key: String,
        /// What the driver said.
        #[source]
        source: Cause,
    },
    /// It cannot be written at all.
    #[error("store {store} is read-only: cannot write '{key}'")]
    ReadOnly {
        /// Its address.
        store: String,
        /// The object.
        key: String,
        /// What the driver said.
        #[source]
        source: Cause,
    },
    /// No space or quota is left.
    #[error("store {store} is full: cannot write '{key}'")]
    Full {
        /// Its address.
        store: String,
        /// The object.
        key: String,
        /// What the driver said.
        #[source]
        source: Cause,
    },
    /// The bucket or container itself is not there.
    #[error("store {store}: there is no such bucket or container")]
    NoBucket {
        /// Its address.
        store: String,
        /// What the driver said.
        #[source]
        source: Cause,
    },
    /// There is no object of that name.
    #[error("store {store}: no object '{key}'")]
    Missing {
        /// Its address.
        store: String,
        /// The object.
        key: String,
    },
    /// An object of that name is there and cannot be the one we hold: names of contents never change their content.
    #[error("store {store}: object '{key}' is there with {found} bytes, expected {expected}")]
    Differs {
        /// Its address.
        store: String,
        /// The object.
        key: String,
        /// Bytes we hold.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// A range outside the object.
    #[error("store {store}: object '{key}' has no bytes {}..{}", range.start, range.end)]
    Range {
        /// Its address.
        store: String,
        /// The object.
        key: String,
        /// Asked for.
        range: Range<u64>,
    },
    /// What was to be written could not be read on our side (a spool file that is gone or altered).
    #[error("cannot read what is to be stored as '{key}'")]
    Body {
        /// The object.
        key: String,
        /// What the reader said.
        #[source]
        source: Cause,
    },
    /// Anything else; trying again may help.
    #[error("store {store}: cannot {action} '{key}'")]
    Failed {
        /// Its address.
        store: String,
        /// The verb: "read", "write", "list", "delete".
        action: &'static str,
        /// The object, or the prefix of a listing.
        key: String,
        /// What the driver said.
        #[source]
        source: Cause,
    },
}

impl StoreError {
    /// Whether it only says that the object is not there.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Missing { .. })
    }

    /// Whether the same request may succeed later without anybody doing anything.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Failed { .. } | Self::Full { .. })
    }

    /// Sorts an IO error of a local store.
    pub(crate) fn from_io(store: &str, action: &'static str, key: &str, error: &io::Error) -> Self {
        let (store, key, source) = (store.to_owned(), key.to_owned(), Cause::of(error));
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory
                if action != "write" =>
            {
                Self::Missing { store, key }
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { store, key, source },
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { store, key, source },
            io::ErrorKind::PermissionDenied if action == "write" => Self::ReadOnly { store, key, source },
            io::ErrorKind::PermissionDenied => Self::Denied { store, action, key, source },
            _ => Self::Failed { store, action, key, source },
        }
    }
}

impl Explain for StoreError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Url { .. } | Self::Settings { .. } => ErrorKind::Usage,
            Self::Unreachable { .. }
            | Self::NoCredentials { .. }
            | Self::Denied { .. }
            | Self::ReadOnly { .. }
            | Self::Full { .. }
            | Self::NoBucket { .. } => ErrorKind::StoreUnreachable,
            Self::Missing { .. } | Self::Differs { .. } | Self::Range { .. } => ErrorKind::Damaged,
            Self::Body { .. } | Self::Failed { .. } => ErrorKind::Failed,
        }
    }

    fn advice(&self) -> Option<String> {
        let text = match self {
            Self::Url { .. } => {
                "Write a folder (/var/backups/everwhen), file:///folder, s3://bucket/prefix, gs://bucket/prefix or \
                 az://container/prefix."
            }
            Self::Settings { store, .. } => return Provider::of(store).map(settings_advice),
            Self::Unreachable { store, .. } => {
                Provider::of(store).map_or("Check the network and the address.", Provider::address_advice)
            }
            Self::NoCredentials { store, .. } => Provider::of(store)?.credentials_advice(),
            Self::Denied { store, .. } if Provider::of(store).is_none() => {
                "Run it as a user who may read and write the folder, as the daemon does."
            }
            Self::Denied { .. } => {
                "The credentials need put, get and list on the prefix; delete only for expiry and erasure."
            }
            Self::ReadOnly { .. } => {
                "Protecting a database needs a store that can be written; restoring and verifying do not."
            }
            Self::Full { .. } => {
                "Make room; nothing is lost meanwhile: the daemon spools, and goes on by itself."
            }
            Self::NoBucket { store, .. } => Provider::of(store)?.bucket_advice(),
            Self::Missing { .. } | Self::Differs { .. } | Self::Range { .. } => {
                "Run `everwhen verify` to see what else is touched."
            }
            Self::Failed { store, .. } => Provider::of(store)
                .map_or("Look whether the folder is there and its disk is sound.", Provider::address_advice),
            Self::Body { .. } => return None,
        };
        Some(text.to_owned())
    }
}

fn settings_advice(provider: Provider) -> String {
    format!("Its settings are the environment variables {}…; check the one named.", provider.variables())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_tells_its_causes_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer ({0})")]
        struct Repeats(#[source] Keeps);
        #[derive(Debug, thiserror::Error)]
        #[error("sending failed")]
        struct Keeps(#[source] io::Error);
        let error = Repeats(Keeps(io::Error::other("connection refused")));
        assert_eq!(Cause::of(&error).0, "outer (sending failed): connection refused");
    }

    #[test]
    fn errors_of_a_folder_are_told_apart() {
        let sort = |kind: io::ErrorKind, action| StoreError::from_io("file:///x", action, "k", &kind.into());
        assert!(matches!(sort(io::ErrorKind::StorageFull, "write"), StoreError::Full { .. }));
        assert!(matches!(sort(io::ErrorKind::ReadOnlyFilesystem, "write"), StoreError::ReadOnly { .. }));
        assert!(matches!(sort(io::ErrorKind::PermissionDenied, "write"), StoreError::ReadOnly { .. }));
        assert!(matches!(sort(io::ErrorKind::PermissionDenied, "read"), StoreError::Denied { .. }));
        assert!(matches!(sort(io::ErrorKind::NotFound, "read"), StoreError::Missing { .. }));
        assert!(matches!(sort(io::ErrorKind::NotFound, "write"), StoreError::Failed { .. }));
        let denied = sort(io::ErrorKind::PermissionDenied, "read").advice().unwrap();
        assert!(denied.contains("folder") && !denied.contains("credentials"), "{denied}");
        assert!(sort(io::ErrorKind::StorageFull, "write").is_passing());
        assert!(!sort(io::ErrorKind::PermissionDenied, "write").is_passing());
    }
}

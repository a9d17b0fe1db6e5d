//! Creating a record once, on any store (see the module's head for the rules).

use std::time::Duration;

use crate::ids::HostId;
use crate::store::{PutOutcome, keys};

use super::{Repository, RepositoryError};

/// How long a record has to show in listings on a store without conditions, before its writer trusts in it.
const SETTLE: Duration = Duration::from_secs(2);

/// The winning record of one number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Numbered {
    pub(super) number: u64,
    /// The whole key.
    pub(super) key: String,
}

/// The winners among listed names `<number>` and `<number>-<nonce>`, in order. Other names are no records of ours.
pub(super) fn winners<'a>(
    prefix: &str,
    digits: usize,
    names: impl IntoIterator<Item = &'a str>,
) -> Vec<Numbered> {
    let mut winners: Vec<Numbered> = Vec::new();
    for key in names {
        let Some(name) = key.strip_prefix(prefix) else { continue };
        let (number, nonce) =
            name.split_once('-').map_or((name, None), |(number, nonce)| (number, Some(nonce)));
        if nonce.is_some_and(|nonce| crate::ids::parse_hex_u64(nonce, 16).is_none()) {
            continue;
        }
        let Some(number) = crate::ids::parse_hex_u64(number, digits) else { continue };
        // The plain name sorts before those with a nonce, and so does the lowest nonce: the first listed wins.
        if winners.last().is_none_or(|last| last.number < number) {
            winners.push(Numbered { number, key: key.to_owned() });
        }
    }
    winners
}

impl Repository {
    /// Whether the store keeps the promise of create-if-absent. Asked once, with a throwaway object: two small puts at
    /// most, none for folders.
    ///
    /// # Errors
    /// What the store says.
    pub async fn probe_create_if_absent(&self, host: HostId) -> Result<bool, RepositoryError> {
        self.conditions_hold(&keys::probe_key(host)).await
    }

    pub(super) async fn conditions_hold(&self, probe: &str) -> Result<bool, RepositoryError> {
        let holds = self.inner.conditions.get_or_try_init(|| async {
            let store = self.store();
            if let Some(known) = store.keeps_conditions() {
                return Ok::<_, RepositoryError>(known);
            }
            let mut holds = false;
            // One name for all times: on a store that keeps the condition, the second start needs one put.
            for _ in 0..2 {
                holds = store.create(probe, b"everwhen".as_slice().into()).await? == PutOutcome::AlreadyThere;
                if holds {
                    break;
                }
            }
            let holds = store.keeps_conditions().unwrap_or(holds);
            if !holds {
                tracing::warn!(
                    store = store.url(),
                    "this store ignores create-if-absent; claims are settled by looking again, which takes two seconds each"
                );
            }
            Ok(holds)
        });
        holds.await.copied()
    }

    /// Gives other writers a moment to be seen, on a store without conditions.
    pub(super) async fn settle(&self) -> Result<(), RepositoryError> {
        if !self.conditions_hold(&keys::probe_key(HostId::from_bytes([0; 8]))).await? {
            tokio::time::sleep(SETTLE).await;
        }
        Ok(())
    }

    /// Creates record `name` below `prefix`; `false` when somebody else has that number. `bytes` makes the object's
    /// bytes for its key.
    pub(super) async fn create_once(
        &self,
        prefix: &str,
        name: &str,
        nonce: [u8; 8],
        bytes: impl Fn(&str) -> Result<Vec<u8>, RepositoryError>,
    ) -> Result<bool, RepositoryError> {
        let store = self.store();
        if self.conditions_hold(&keys::probe_key(HostId::from_bytes([0; 8]))).await? {
            let key = format!("{prefix}{name}");
            let bytes = bytes(&key)?;
            return match store.create(&key, bytes.clone().into()).await? {
                PutOutcome::Created => Ok(true),
                // Ours after all, when an earlier attempt was carried out but its answer was lost.
                PutOutcome::AlreadyThere => Ok(store.get(&key).await? == bytes),
            };
        }
        let key = format!("{prefix}{name}-{}", crate::random::hex(&nonce));
        if self.winner(prefix, name).await?.is_some() {
            return Ok(false);
        }
        store.create(&key, bytes(&key)?.into()).await?;
        self.settle().await?;
        Ok(self.winner(prefix, name).await?.is_some_and(|winner| winner == key))
    }

    async fn winner(&self, prefix: &str, name: &str) -> Result<Option<String>, RepositoryError> {
        let entries = self.store().list_all(prefix, None).await?;
        let found = winners(prefix, name.len(), entries.iter().map(|entry| entry.key.as_str()))
            .into_iter()
            .find(|winner| winner.key.strip_prefix(prefix).is_some_and(|key| key.starts_with(name)));
        Ok(found.map(|winner| winner.key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_name_of_a_number_wins() {
        let names = [
            "p/0000000000000001",
            "p/0000000000000001-00000000000000aa",
            "p/0000000000000002-00000000000000bb",
            "p/0000000000000002-00000000000000cc",
            "p/something",
            "p/0000000000000003-x",
        ];
        let found = winners("p/", 16, names);
        let keys: Vec<_> = found.iter().map(|winner| winner.key.as_str()).collect();
        assert_eq!(keys, ["p/0000000000000001", "p/0000000000000002-00000000000000bb"]);
    }
}

//! One repository with its local state: where a daemon's databases live.

use std::path::PathBuf;

use everwhen_engine::digest::Hasher;
use everwhen_engine::history::Seen;
use everwhen_engine::ids::{DatabaseId, HostId};
use everwhen_engine::protect::ProtectOptions;
use everwhen_engine::repository::SeenEntry;
use everwhen_engine::time::Timestamp;

use crate::config::{Config, DatabaseEntry, Flush};
use crate::failure::Failure;
use crate::place::Place;
use crate::reader::{self, Records};
use crate::state::Lock;

/// See the module.
pub(crate) struct Home {
    /// Where it is.
    pub(crate) place: Place,
    /// What holds the history.
    pub(crate) records: Records,
    host: HostId,
    host_name: String,
    _lock: Lock,
}

impl Home {
    /// Takes the state folder for this process and opens the repository, made if it was not there.
    pub(crate) async fn open(place: Place, config: &Config) -> Result<Self, Failure> {
        place.state.make()?;
        let lock = place.state.lock()?;
        let host = place.state.host()?;
        let repository = reader::open_or_create(&place.store, config, &place.state).await?;
        let records = Records::new(repository, &place.state)?;
        place.state.remember(records.url())?;
        Ok(Self { place, records, host, host_name: host_name(), _lock: lock })
    }

    /// The repository's URL.
    pub(crate) fn url(&self) -> String {
        self.records.url().to_owned()
    }

    /// This installation.
    pub(crate) fn host(&self) -> HostId {
        self.host
    }

    /// Puts a mark: up to these moments nothing but these positions was committed. It lets idle databases be restored
    /// "as of now" after the daemon is gone.
    pub(crate) async fn mark(&self, seen: Vec<(DatabaseId, Seen)>) -> Result<(), Failure> {
        if seen.is_empty() {
            return Ok(());
        }
        let entry =
            |(id, seen): (DatabaseId, Seen)| (id, SeenEntry { position: seen.position, through: seen.time });
        let entries = seen.into_iter().map(entry).collect();
        let put = self.records.repository.put_seen(self.host, Timestamp::now(), entries).await;
        put.map_err(|error| Failure::of(&error).while_("cannot put a covered-through mark"))
    }

    /// The folder for the engine's state of a database.
    pub(crate) fn state_of(&self, name: &str) -> PathBuf {
        self.place.state.path().join(folder_name(name, &self.records.repository.id().to_string()))
    }

    /// How the engine shall protect a database here.
    pub(crate) fn options_for(&self, entry: &DatabaseEntry, flush: &Flush) -> ProtectOptions {
        let name = entry.name();
        let state = self.state_of(&name);
        let mut options =
            ProtectOptions::new(entry.path.clone(), name, state, self.host, self.host_name.clone());
        options.class.clone_from(&entry.class);
        options.sqlite = entry.sqlite.clone();
        options.flush_interval = flush.interval.unwrap_or(options.flush_interval);
        options.segment_bytes = flush.segment_bytes.unwrap_or(options.segment_bytes);
        options.memory_queue_bytes = flush.queue_bytes.unwrap_or(options.memory_queue_bytes);
        options.spool_bytes = flush.spool_bytes.unwrap_or(options.spool_bytes);
        options
    }
}

/// A folder for a database's state. It is known before the database has an id, and another repository's database of the
/// same name has another one. So has one whose name is only the same after what a folder cannot be called was taken
/// out.
fn folder_name(name: &str, repository: &str) -> PathBuf {
    let plain: String = name
        .chars()
        .map(|c| if c.is_alphanumeric() || "-_".contains(c) { c } else { '_' })
        .take(80)
        .collect();
    if plain == name {
        return format!("{plain}-{repository}").into();
    }
    let digest = Hasher::Plain.digest(name.as_bytes()).to_string();
    format!("{plain}.{}-{repository}", digest.get(..8).unwrap_or_default()).into()
}

/// This machine, as people call it.
pub(crate) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_name_stays_in_its_folder() {
        let folder = folder_name("../../etc/x y", "ab");
        assert!(folder.to_string_lossy().starts_with("______etc_x_y.") && folder.components().count() == 1);
        assert!(!host_name().is_empty());
    }

    #[test]
    fn no_two_names_share_a_folder_and_a_plain_one_is_its_folder() {
        assert_eq!(folder_name("shop_eu", "ab"), PathBuf::from("shop_eu-ab"));
        assert_ne!(folder_name("shop.eu", "ab"), folder_name("shop_eu", "ab"));
        assert_ne!(folder_name("shop.eu", "ab"), folder_name("shop/eu", "ab"));
        let long = "x".repeat(81);
        assert_ne!(folder_name(&long, "ab"), folder_name(&format!("{long}y"), "ab"));
    }
}

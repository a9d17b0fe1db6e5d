//! `everwhen key`.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use everwhen_engine::error::ErrorKind;
use everwhen_engine::repository::{CreateOptions, KeySource, Repository, RepositoryKey};
use everwhen_engine::time::Timestamp;

use crate::cli::{self, KeyVerb};
use crate::failure::Failure;
use crate::output;
use crate::place::Told;
use crate::reader::{self, key_source};

pub(crate) async fn key(verb: cli::Key) -> Result<(), Failure> {
    match verb.what {
        KeyVerb::Init { file, address, json } => init(&file, &Told::by(&address.place())?, json).await,
        KeyVerb::Rotate { file, place, json } => rotate(&file, &Told::by(&place)?, json).await,
        KeyVerb::Show { place, json } => show(&Told::by(&place)?, json).await,
    }
}

fn store_of(told: &Told) -> Result<&str, Failure> {
    told.store.as_deref().ok_or_else(|| {
        Failure::usage("which repository is not said")
            .advise("give it with --store URL, EVERWHEN_STORE or --config FILE")
    })
}

/// A key without a repository is of no use, and a repository whose key was not written down is lost: the file first.
async fn init(file: &Path, told: &Told, json: cli::Json) -> Result<(), Failure> {
    let store = store_of(told)?;
    let key = RepositoryKey::generate().map_err(|error| Failure::of(&error))?;
    write_key(file, &key)?;
    let options = CreateOptions {
        encryption: Some(KeySource::Key(key.clone())),
        location: String::new(),
        now: Timestamp::now(),
    };
    let created = Repository::create(reader::store(store)?, options).await;
    let repository = created.map_err(|error| {
        // Nothing is locked with it.
        let _ = std::fs::remove_file(file);
        Failure::of(&error).while_("no encrypted repository was made")
    })?;
    let value = serde_json::json!({
        "key": key.id().to_string(),
        "file": file,
        "store": repository.store().url(),
        "repository": repository.id(),
    });
    output::report(json.json, &value, || {
        format!(
            "made the encrypted repository {}\nits key {} is in {}; keep a copy elsewhere: without it the repository is \
             noise\n",
            repository.store().url(),
            key.id(),
            file.display()
        )
    })
}

async fn rotate(file: &Path, told: &Told, json: cli::Json) -> Result<(), Failure> {
    let repository = reader::open(store_of(told)?, &told.config).await?;
    // Before a file is made: a key that opens nothing would only be mistaken for one that does.
    if !repository.encrypted() {
        let url = repository.store().url();
        return Err(Failure::usage(format!("repository {url} is not encrypted: there is no key to rotate"))
            .advise(
                "a repository is encrypted from its creation or never; `everwhen key init` makes one that is",
            ));
    }
    let key = RepositoryKey::generate().map_err(|error| Failure::of(&error))?;
    write_key(file, &key)?;
    let rotated = repository.rotate_key(&KeySource::Key(key), Timestamp::now()).await;
    let rotation = rotated.map_err(|error| {
        Failure::of(&error).while_("the key may or may not have been rotated").advise(format!(
            "keep both keys, and see with `everwhen key show --key-file {}` which one opens the repository",
            file.display()
        ))
    })?;
    let value = serde_json::json!({
        "from": rotation.from.to_string(),
        "to": rotation.to.to_string(),
        "file": file,
        "left": rotation.left,
    });
    output::report(json.json, &value, || {
        let mut text = format!(
            "the key is now {} (in {}); {} opens the repository no longer\n\
             give the new file to every daemon before its next start\n",
            rotation.to,
            file.display(),
            rotation.from
        );
        for record in &rotation.left {
            text.push_str(&format!(
                "  ! {record} could not be deleted: with it the former key still has power\n"
            ));
        }
        text
    })
}

async fn show(told: &Told, json: cli::Json) -> Result<(), Failure> {
    let repository = reader::open(store_of(told)?, &told.config).await?;
    let info = repository.key_info().await.map_err(|error| Failure::of(&error))?;
    let url = repository.store().url();
    let value = serde_json::json!({
        "store": url,
        "encrypted": info.is_some(),
        "key": info.map(|info| info.key.to_string()),
        "number": info.map(|info| info.seq),
        "since": info.map(|info| info.since),
    });
    output::report(json.json, &value, || match info {
        None => format!("{url} is not encrypted\n"),
        Some(info) => format!(
            "{url} is encrypted; {} opens it: key {}, number {}, in use since {}\n",
            key_source(&told.config).map(|source| source.to_string()).unwrap_or_default(),
            info.key,
            info.seq,
            info.since.in_local_zone()
        ),
    })
}

/// Writes a key into a new file that only this user can read, durably.
fn write_key(path: &Path, key: &RepositoryKey) -> Result<(), Failure> {
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(b"# The key of an Everwhen repository. Keep it secret, and keep a copy.\n")?;
        file.write_all(key.text().as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()
    };
    write().map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Failure::new(ErrorKind::Refused, format!("{} exists, and may hold a key", path.display()))
                .advise("name a file that does not exist")
        }
        _ => Failure::io(format!("cannot write the key to {}", path.display()), &error)
            .advise("name a file in a folder that is there and can be written"),
    })
}

//! From the text a person writes to a store.
//!
//! | text | store |
//! | --- | --- |
//! | `/var/backups/everwhen`, `./here`, `file:///var/backups` | a folder |
//! | `s3://bucket/prefix` | S3 and compatibles; the standard `AWS_…` variables |
//! | `gs://bucket/prefix` | Google Cloud Storage; `GOOGLE_…` variables |
//! | `az://container/prefix` | Azure Blob Storage; `AZURE_…` variables |
//! | `memory://name` | this process's memory, shared by name; for tests |

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::memory::InMemory;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use super::local::LocalStore;
use super::remote::RemoteStore;
use super::{Backend, StoreError};

static MEMORY: LazyLock<Mutex<HashMap<String, Arc<InMemory>>>> = LazyLock::new(Mutex::default);

/// Opens a store; `settings` are taken as environment variables are, and win over them.
pub(crate) fn open(text: &str, settings: &[(String, String)]) -> Result<Arc<dyn Backend>, StoreError> {
    let wrong = |reason: &str| StoreError::Url { url: shown(text), reason: reason.to_owned() };
    if text.trim().is_empty() {
        return Err(wrong("it is empty"));
    }
    let Some((scheme, rest)) = text.split_once("://") else { return folder(Path::new(text), text) };
    match scheme {
        "file" => {
            let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
            let path = url.to_file_path().map_err(|()| wrong("write file:///an/absolute/path"))?;
            folder(&path, text)
        }
        "memory" => {
            let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if name.is_empty() {
                return Err(wrong("write memory://NAME"));
            }
            let mut stores = MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
            let store = Arc::clone(stores.entry(name.to_owned()).or_default());
            Ok(Arc::new(RemoteStore::new(text.to_owned(), prefix, Box::new(store), true)))
        }
        "s3" | "s3a" | "gs" | "gcs" | "az" | "azure" => {
            let (bucket, prefix) = bucket_and_prefix(rest).map_err(wrong)?;
            let (store, named) =
                network(scheme, bucket, settings).map_err(|error| wrong(&error.to_string()))?;
            object_store::path::Path::parse(prefix).map_err(|error| wrong(&error.to_string()))?;
            Ok(Arc::new(RemoteStore::new(text.to_owned(), prefix, store, named)))
        }
        _ => Err(wrong(&format!("stores of kind '{}' are not known", shown(scheme)))),
    }
}

/// The text without what could be a secret in it (`user:password@`), and not endlessly long.
fn shown(text: &str) -> String {
    let text: String = text.chars().take(200).collect();
    match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://…@{rest}"),
        _ => text,
    }
}

fn folder(path: &Path, text: &str) -> Result<Arc<dyn Backend>, StoreError> {
    let wrong = |reason: String| StoreError::Url { url: shown(text), reason };
    // Absolute, so that a daemon that changes its folder still means the same; links are followed by the system.
    let path: PathBuf = std::path::absolute(path).map_err(|error| wrong(error.to_string()))?;
    if path.is_file() {
        return Err(wrong("it is a file; a store is a folder".to_owned()));
    }
    let url = Url::from_file_path(&path).map_err(|()| wrong("it is not an absolute path".to_owned()))?;
    Ok(Arc::new(LocalStore::new(path, url.to_string())))
}

fn bucket_and_prefix(rest: &str) -> Result<(&str, &str), &'static str> {
    if rest.contains(['?', '#', '@']) {
        return Err("options and credentials come from the environment, not from the address");
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() { Err("the bucket is missing") } else { Ok((bucket, prefix.trim_matches('/'))) }
}

/// Attempts within one step of [`RemoteStore`]; together they stay within its deadline.
fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(1),
            base: 2.,
        },
        max_retries: 4,
        retry_timeout: Duration::from_secs(6),
    }
}

fn named(variables: &[&str]) -> bool {
    variables.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

type Opened = (Box<dyn ObjectStore>, bool);

fn network(scheme: &str, bucket: &str, settings: &[(String, String)]) -> Result<Opened, object_store::Error> {
    match scheme {
        "s3" | "s3a" => s3(bucket, settings),
        "gs" | "gcs" => {
            let store = GoogleCloudStorageBuilder::from_env()
                .with_bucket_name(bucket)
                .with_retry(retry())
                .with_client_options(client_options())
                .build()?;
            let named = named(&[
                "GOOGLE_SERVICE_ACCOUNT",
                "GOOGLE_SERVICE_ACCOUNT_PATH",
                "GOOGLE_SERVICE_ACCOUNT_KEY",
                "GOOGLE_APPLICATION_CREDENTIALS",
            ]);
            Ok((Box::new(store), named))
        }
        _ => {
            let store = MicrosoftAzureBuilder::from_env()
                .with_container_name(bucket)
                .with_retry(retry())
                .with_client_options(client_options())
                .build()?;
            let named = named(&[
                "AZURE_STORAGE_ACCOUNT_KEY",
                "AZURE_STORAGE_ACCESS_KEY",
                "AZURE_STORAGE_CLIENT_SECRET",
                "AZURE_STORAGE_SAS_KEY",
                "AZURE_STORAGE_TOKEN",
                "AZURE_FEDERATED_TOKEN_FILE",
                "AZURE_STORAGE_USE_EMULATOR",
            ]);
            Ok((Box::new(store), named))
        }
    }
}

fn s3(bucket: &str, settings: &[(String, String)]) -> Result<Opened, object_store::Error> {
    // `with_client_options` would forget what `from_env` found, so the options of ours are set one by one; what the
    // operator set in the environment comes last and wins.
    use object_store::ClientConfigKey as Client;
    use object_store::aws::AmazonS3ConfigKey as Key;
    let mut builder = AmazonS3Builder::new()
        .with_config(Key::Client(Client::ConnectTimeout), "3 seconds")
        .with_config(Key::Client(Client::Timeout), "10 minutes")
        .with_config(Key::Client(Client::PoolIdleTimeout), "60 seconds");
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with("AWS_"));
    for (name, value) in environment.chain(settings.iter().cloned()) {
        if let Ok(key) = name.to_ascii_lowercase().parse::<Key>() {
            builder = builder.with_config(key, value);
        }
    }
    let store = builder.with_bucket_name(bucket).with_retry(retry()).build()?;
    let in_settings = settings.iter().any(|(name, _)| name == "AWS_ACCESS_KEY_ID");
    let named = in_settings
        || named(&[
            "AWS_ACCESS_KEY_ID",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "AWS_SKIP_SIGNATURE",
        ]);
    Ok((Box::new(store), named))
}

fn client_options() -> ClientOptions {
    ClientOptions::new()
        .with_connect_timeout(Duration::from_secs(3))
        .with_timeout(Duration::from_secs(600))
        .with_pool_idle_timeout(Duration::from_secs(60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_name_no_store_say_why() {
        for text in
            ["", " ", "ftp://x", "s3://", "s3:///prefix", "memory://", "file://host/x", "s3://b/p?x=1"]
        {
            let error = open(text, &[]).unwrap_err();
            assert!(matches!(error, StoreError::Url { .. }), "{text}: {error}");
        }
        let secret = open("ftp://user:hunter2@host/x", &[]).unwrap_err();
        assert!(!secret.to_string().contains("hunter2"));
    }

    #[test]
    fn a_bare_path_is_a_folder() {
        let store = open("some where/é", &[]).unwrap();
        assert!(store.url().starts_with("file:///"), "{}", store.url());
        assert!(store.url().ends_with("/some%20where/%C3%A9"), "{}", store.url());
        // And its address opens the same folder again.
        assert_eq!(open(store.url(), &[]).unwrap().url(), store.url());
    }

    #[test]
    fn a_file_is_not_a_store() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(open(file.path().to_str().unwrap(), &[]).is_err());
    }
}

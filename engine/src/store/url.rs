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
use std::str::FromStr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::memory::InMemory;
use object_store::{BackoffConfig, ClientConfigKey, Error, ObjectStore, RetryConfig};
use url::Url;

use super::local::LocalStore;
use super::provider::Provider;
use super::remote::RemoteStore;
use super::{Backend, Cause, StoreError};

static MEMORY: LazyLock<Mutex<HashMap<String, Arc<InMemory>>>> = LazyLock::new(Mutex::default);

/// Opens a store; `settings` are taken as environment variables are, and win over them.
pub(crate) fn open(text: &str, settings: &[(String, String)]) -> Result<Arc<dyn Backend>, StoreError> {
    let wrong = |reason: &str| StoreError::Url { url: shown(text), reason: reason.to_owned() };
    if text.trim().is_empty() {
        return Err(wrong("it is empty"));
    }
    let Some((scheme, rest)) = text.split_once("://") else { return folder(Path::new(text), text) };
    if let Some(provider) = Provider::of(text) {
        return bucket(provider, text, rest, settings);
    }
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
        _ => Err(wrong(&format!("stores of kind '{}' are not known", shown(scheme)))),
    }
}

/// A bucket or container of one of the three.
fn bucket(
    provider: Provider,
    text: &str,
    rest: &str,
    settings: &[(String, String)],
) -> Result<Arc<dyn Backend>, StoreError> {
    let wrong = |reason: &str| StoreError::Url { url: shown(text), reason: reason.to_owned() };
    let (bucket, prefix) = bucket_and_prefix(rest).map_err(wrong)?;
    object_store::path::Path::parse(prefix).map_err(|error| wrong(&error.to_string()))?;
    let said = said(provider.variables(), settings);
    are_addresses(&said)
        .map_err(|reason| StoreError::Settings { store: text.to_owned(), source: Cause(reason) })?;
    let (store, named) = network(provider, bucket, &said).map_err(|error| unfit(text, &error))?;
    Ok(Arc::new(RemoteStore::new(text.to_owned(), prefix, store, named)))
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
    if bucket.is_empty() {
        return Err("the bucket is missing");
    }
    // Anything else would end in a request that cannot be written down.
    if !bucket.chars().all(|c| c.is_ascii_alphanumeric() || "._-:".contains(c)) {
        return Err("the bucket's name has characters that no bucket has");
    }
    Ok((bucket, prefix.trim_matches('/')))
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

/// What our clients do unless the environment says otherwise. The time-out is for a whole request: object_store's own,
/// 30 s, would cut off a pack on a slow line; [`RemoteStore`] has deadlines by size.
const CLIENT: [(ClientConfigKey, &str); 4] = [
    (ClientConfigKey::AllowHttp, "false"),
    (ClientConfigKey::ConnectTimeout, "3 seconds"),
    (ClientConfigKey::Timeout, "10 minutes"),
    (ClientConfigKey::PoolIdleTimeout, "60 seconds"),
];

/// The settings of one provider: what the environment says, then what the caller says, which wins. What is empty is not
/// said.
fn said(prefix: &str, settings: &[(String, String)]) -> Vec<(String, String)> {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with(prefix));
    environment.chain(settings.iter().cloned()).filter(|(_, value)| !value.is_empty()).collect()
}

/// The drivers take any text for the address of a server, and panic when a request is to be signed for it.
fn are_addresses(said: &[(String, String)]) -> Result<(), String> {
    let is_address = |name: &str| {
        ["ENDPOINT", "ENDPOINT_URL", "ENDPOINT_URL_S3", "ENDPOINT_URL_STS", "BASE_URL"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    let is_of_web = |url: Url| matches!(url.scheme(), "http" | "https") && url.has_host();
    match said.iter().find(|(name, value)| is_address(name) && !Url::parse(value).is_ok_and(is_of_web)) {
        Some((name, value)) => {
            Err(format!("{name} is '{}', expected http://HOST or https://HOST", shown(value)))
        }
        None => Ok(()),
    }
}

/// The setting of a provider that a variable is, if it is one.
fn key<K: FromStr>(name: &str) -> Option<K> {
    name.to_ascii_lowercase().parse().ok()
}

/// Whether one of these variables is said: else the driver asks a metadata service for credentials.
fn named(said: &[(String, String)], variables: &[&str]) -> bool {
    said.iter().any(|(name, _)| variables.contains(&name.as_str()))
}

/// A client, and whether the environment named credentials for it.
type Opened = (Box<dyn ObjectStore>, bool);

fn network(provider: Provider, bucket: &str, said: &[(String, String)]) -> Result<Opened, Error> {
    match provider {
        Provider::S3 => {
            let store = s3(said).with_bucket_name(bucket).with_retry(retry()).build()?;
            Ok((Box::new(store), named(said, &S3_CREDENTIALS)))
        }
        Provider::Google => {
            let store = google(said).with_bucket_name(bucket).with_retry(retry()).build()?;
            Ok((Box::new(store), named(said, &GOOGLE_CREDENTIALS) || application_default()))
        }
        Provider::Azure => {
            let store = azure(said).with_container_name(bucket).with_retry(retry()).build()?;
            Ok((Box::new(store), named(said, &AZURE_CREDENTIALS)))
        }
    }
}

const S3_CREDENTIALS: [&str; 5] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
];

const GOOGLE_CREDENTIALS: [&str; 6] = [
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_PATH",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_BEARER_TOKEN",
    "GOOGLE_SKIP_SIGNATURE",
];

const AZURE_CREDENTIALS: [&str; 13] = [
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_MASTER_KEY",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_TOKEN",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_CLIENT_SECRET",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_STORAGE_USE_EMULATOR",
    "AZURE_USE_AZURE_CLI",
    "AZURE_SKIP_SIGNATURE",
];

// The drivers' `from_env` would do for what follows, but for three things: settings of the caller, defaults of ours
// below what the operator says (`with_client_options` forgets what the environment said), and empty variables.

fn s3(said: &[(String, String)]) -> AmazonS3Builder {
    use object_store::aws::AmazonS3ConfigKey as Key;
    let defaults = CLIENT.map(|(key, value)| (Key::Client(key), value.to_owned()));
    let said = said.iter().filter_map(|(name, value)| Some((key::<Key>(name)?, value.clone())));
    defaults
        .into_iter()
        .chain(said)
        .fold(AmazonS3Builder::new(), |builder, (key, value)| builder.with_config(key, value))
}

fn google(said: &[(String, String)]) -> GoogleCloudStorageBuilder {
    use object_store::gcp::GoogleConfigKey as Key;
    let defaults = CLIENT.map(|(key, value)| (Key::Client(key), value.to_owned()));
    let said = said.iter().filter_map(|(name, value)| Some((key::<Key>(name)?, value.clone())));
    defaults
        .into_iter()
        .chain(said)
        .fold(GoogleCloudStorageBuilder::new(), |builder, (key, value)| builder.with_config(key, value))
}

/// Where `gcloud auth application-default login` leaves credentials; the driver looks there, too.
fn application_default() -> bool {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    home.is_some_and(|home| home.join(".config/gcloud/application_default_credentials.json").exists())
}

fn azure(said: &[(String, String)]) -> MicrosoftAzureBuilder {
    use object_store::azure::AzureConfigKey as Key;
    let defaults = CLIENT.map(|(key, value)| (Key::Client(key), value.to_owned()));
    // Names that Azure's own tools read and the driver does not, then the endpoint of a managed identity.
    let others = said.iter().filter_map(|(name, value)| match name.as_str() {
        "AZURE_STORAGE_ACCOUNT" => Some((Key::AccountName, value.clone())),
        "AZURE_STORAGE_KEY" => Some((Key::AccessKey, value.clone())),
        _ => None,
    });
    let identity = std::env::var("IDENTITY_ENDPOINT").ok().map(|endpoint| (Key::MsiEndpoint, endpoint));
    let said = said.iter().filter_map(|(name, value)| Some((key::<Key>(name)?, value.clone())));
    defaults
        .into_iter()
        .chain(others)
        .chain(identity)
        .chain(said)
        .fold(MicrosoftAzureBuilder::new(), |builder, (key, value)| builder.with_config(key, value))
}

/// A client that cannot be made: either nothing to sign with, or a setting that does not fit.
fn unfit(store: &str, error: &Error) -> StoreError {
    let (store, source) = (store.to_owned(), Cause::of(error));
    let credentials = ["Account must be", "Access Key", "AccessKey", "redential", "service account", "SAS"];
    if credentials.iter().any(|part| source.0.contains(part)) {
        return StoreError::NoCredentials { store, source };
    }
    StoreError::Settings { store, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_name_no_store_say_why() {
        for text in [
            "",
            " ",
            "ftp://x",
            "s3://",
            "s3:///prefix",
            "memory://",
            "file://host/x",
            "s3://b/p?x=1",
            "s3://bu cket/x",
            "gs://bü/x",
        ] {
            let error = open(text, &[]).unwrap_err();
            assert!(matches!(error, StoreError::Url { .. }), "{text}: {error}");
        }
        let secret = open("ftp://user:hunter2@host/x", &[]).unwrap_err();
        assert!(!secret.to_string().contains("hunter2"));
    }

    fn settings(said: &[(&str, &str)]) -> Vec<(String, String)> {
        said.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_whole_request_may_take_ten_minutes_unless_the_operator_says_otherwise() {
        let timeouts = |said: &[(String, String)]| {
            use object_store::{aws, azure as az, gcp};
            [
                s3(said).get_config_value(&aws::AmazonS3ConfigKey::Client(ClientConfigKey::Timeout)),
                google(said).get_config_value(&gcp::GoogleConfigKey::Client(ClientConfigKey::Timeout)),
                azure(said).get_config_value(&az::AzureConfigKey::Client(ClientConfigKey::Timeout)),
            ]
            .map(Option::unwrap_or_default)
        };
        assert_eq!(timeouts(&[]), ["10 minutes"; 3]);
        let said = ["AWS_TIMEOUT", "GOOGLE_TIMEOUT", "AZURE_TIMEOUT"].map(|name| (name, "5s"));
        assert_eq!(timeouts(&settings(&said)), ["5s"; 3]);
    }

    #[test]
    fn what_lacks_for_a_client_is_told_apart_from_what_does_not_fit() {
        let open = |url: &str, said: &[(&str, &str)]| open(url, &settings(said)).unwrap_err();
        let error = open("az://container/x", &[]);
        assert!(matches!(error, StoreError::NoCredentials { .. }), "{error:?}");
        let named = [("AZURE_STORAGE_ACCOUNT", "mine")];
        let error = open("az://container/x", &[named[0], ("AZURE_STORAGE_KEY", "not base64")]);
        assert!(matches!(error, StoreError::NoCredentials { .. }), "{error:?}");
        let error = open("az://container/x", &[named[0], ("AZURE_STORAGE_ENDPOINT", "no address")]);
        assert!(matches!(error, StoreError::Settings { .. }), "{error:?}");
        let error = open("gs://bucket/x", &[("GOOGLE_SERVICE_ACCOUNT", "/no/such/file")]);
        assert!(matches!(error, StoreError::NoCredentials { .. }), "{error:?}");
        let error = open("gs://bucket/x", &[("GOOGLE_BEARER_TOKEN", "x"), ("GOOGLE_TIMEOUT", "soon")]);
        assert!(matches!(error, StoreError::Settings { .. }), "{error:?}");
        let error = open("s3://bucket/x", &[("AWS_ACCESS_KEY_ID", "half")]);
        assert!(matches!(error, StoreError::NoCredentials { .. }), "{error:?}");
    }

    #[test]
    fn a_server_whose_address_is_none_is_told_by_its_variable() {
        for (url, name) in [
            ("s3://bucket/x", "AWS_ENDPOINT_URL"),
            ("s3://bucket/x", "AWS_ENDPOINT"),
            ("gs://bucket/x", "GOOGLE_BASE_URL"),
            ("az://container/x", "AZURE_STORAGE_ENDPOINT"),
        ] {
            for value in ["nonsense", "localhost:9000", "http://", "ftp://host", "http://a b/"] {
                let error = open(url, &settings(&[(name, value)])).unwrap_err();
                let StoreError::Settings { source, .. } = error else { panic!("{name}={value}: {error:?}") };
                assert!(source.0.contains(name), "{name}={value}: {source:?}");
            }
        }
        let said = [("AWS_ENDPOINT_URL", "http://127.0.0.1:9"), ("AWS_SKIP_SIGNATURE", "true")];
        assert!(open("s3://bucket/x", &settings(&said)).is_ok());
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

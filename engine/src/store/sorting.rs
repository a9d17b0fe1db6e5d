//! What a cloud's driver says, sorted by what an operator can do about it.
//!
//! The driver has kinds of errors for whole objects only; listings, uploads in parts and tokens come under none of them.
//! So it is the HTTP status that counts, which the driver keeps in its text.

use object_store::Error;

use super::provider::Provider;
use super::{Cause, StoreError};

/// Codes of the three clouds that speak of who asks, not of what is asked for.
const CREDENTIALS: [&str; 10] = [
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "AuthenticationFailed",
    "AuthenticationRequired",
    "InvalidAuthenticationInfo",
    "NoAuthenticationInformation",
    "KeyBasedAuthenticationNotPermitted",
];

/// How the drivers tell that they asked for a token.
const TOKENS: [&str; 2] = ["token request", "token response"];

/// How questions to a metadata service show in errors.
const METADATA: [&str; 5] =
    ["169.254.169.254", "/latest/api/token", "/latest/meta-data", "/computeMetadata/", "/metadata/identity"];

/// Codes of a bucket or container that is not there.
const BUCKETS: [&str; 3] = ["NoSuchBucket", "ContainerNotFound", "ResourceNotFound"];

/// The error of doing something ("read", "write", "list", "delete") to a key of a store. `credentials_named`: the
/// environment names credentials; if not, the driver asks the metadata service of the machine.
pub(super) fn sorted(
    store: &str,
    credentials_named: bool,
    action: &'static str,
    key: &str,
    error: &Error,
) -> StoreError {
    let (store, key, source) = (store.to_owned(), key.to_owned(), Cause::of(error));
    let text = source.0.as_str();
    let status = status_in(error, text);
    let by_instance = !credentials_named && has(text, &METADATA);
    if by_instance || is_about_credentials(text, status) {
        return StoreError::NoCredentials { store, source };
    }
    match status {
        // Only a read can miss an object: who answers a put or a listing so is not the store we take it for.
        Some(404) if action == "list" || has(text, &BUCKETS) => StoreError::NoBucket { store, source },
        Some(404) if action != "write" => StoreError::Missing { store, key },
        Some(404) if !text.contains("NoSuchUpload") => StoreError::NoBucket { store, source },
        // It is elsewhere: in another region, as a rule.
        Some(300..=399) => StoreError::NoBucket { store, source },
        None if text.contains("Received redirect") => StoreError::NoBucket { store, source },
        Some(403) => StoreError::Denied { store, action, key, source },
        Some(507) => StoreError::Full { store, key, source },
        _ if text.contains("QuotaExceeded") => StoreError::Full { store, key, source },
        Some(408 | 429 | 500 | 502..=504) => StoreError::Unreachable { store, source },
        // One of many deletes in one request.
        None if text.contains("AccessDenied") => StoreError::Denied { store, action, key, source },
        None if text.contains("scheme is not allowed") => plain_http(store),
        None if is_of_the_transport(error) => StoreError::Unreachable { store, source },
        _ => StoreError::Failed { store, action, key, source },
    }
}

/// Whether the same request may succeed in a moment. `answered`: the store has answered before, so its address is right.
pub(super) fn may_pass(error: &Error, answered: bool) -> bool {
    let text = error.to_string();
    match status_in(error, &text) {
        Some(status) => matches!(status, 408 | 429 | 500 | 502..=504),
        None if is_another_range(&text) => true,
        None => answered && is_of_the_transport(error),
    }
}

/// Whether the store has no conditional puts.
pub(super) fn refuses_conditions(error: &Error) -> bool {
    matches!(error, Error::NotImplemented { .. } | Error::NotSupported { .. })
        || matches!(error, Error::Generic { .. } if error.to_string().contains("501 Not Implemented"))
}

fn has(text: &str, parts: &[&str]) -> bool {
    parts.iter().any(|part| text.contains(part))
}

fn is_about_credentials(text: &str, status: Option<u16>) -> bool {
    let by_code = matches!(status, Some(400 | 403)) && has(text, &CREDENTIALS);
    // Where tokens are given out, another server refuses than the store.
    let by_token = has(text, &TOKENS) && matches!(status, Some(400..=499));
    let by_command = has(text, &["get-access-token", "federated token file"]);
    status == Some(401) || by_code || by_token || by_command
}

fn plain_http(store: String) -> StoreError {
    let variables = Provider::of(&store).map_or("", Provider::variables);
    let reason = format!("the endpoint speaks plain HTTP, which only {variables}ALLOW_HTTP=true permits");
    StoreError::Settings { store, source: Cause(reason) }
}

/// The HTTP status behind an error.
fn status_in(error: &Error, text: &str) -> Option<u16> {
    match error {
        Error::NotFound { .. } => return Some(404),
        Error::PermissionDenied { .. } => return Some(403),
        Error::Unauthenticated { .. } => return Some(401),
        _ => {}
    }
    let behind = ["status code: ", "(code: "].iter().find_map(|words| Some(text.split_once(words)?.1))?;
    behind.get(..3)?.parse().ok()
}

/// Whether the answer holds another part of the object than was asked for.
fn is_another_range(text: &str) -> bool {
    text.contains("Requested ") && text.contains(", got ")
}

/// Whether the transport failed.
fn is_of_the_transport(error: &Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = source {
        if current.is::<object_store::client::HttpError>() {
            return true;
        }
        source = current.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> Error {
        Error::Generic { store: "S3", source: text.into() }
    }

    fn of(action: &'static str, text: &str) -> StoreError {
        sorted("s3://b", true, action, "k", &generic(text))
    }

    fn with(status: &str) -> String {
        format!("Error performing GET http://x/y in 5ms - Server returned non-2xx status code: {status}")
    }

    #[test]
    fn the_status_tells_what_the_driver_does_not() {
        let listing = |status: &str| of("list", &with(status));
        assert!(matches!(listing("403 Forbidden: AccessDenied"), StoreError::Denied { .. }));
        assert!(matches!(listing("403 Forbidden: SignatureDoesNotMatch"), StoreError::NoCredentials { .. }));
        assert!(matches!(listing("400 Bad Request: ExpiredToken"), StoreError::NoCredentials { .. }));
        assert!(matches!(listing("400 Bad Request: "), StoreError::Failed { .. }));
        assert!(matches!(listing("404 Not Found: "), StoreError::NoBucket { .. }));
        assert!(matches!(listing("429 Too Many Requests: "), StoreError::Unreachable { .. }));
        assert!(matches!(listing("507 Insufficient Storage: "), StoreError::Full { .. }));
        assert!(matches!(of("write", &with("404 Not Found: a web page")), StoreError::NoBucket { .. }));
        assert!(matches!(of("write", &with("404 Not Found: NoSuchUpload")), StoreError::Failed { .. }));
        assert!(matches!(of("read", &with("404 Not Found: BlobNotFound")), StoreError::Missing { .. }));
        assert!(matches!(of("delete", "reason (code: 403)"), StoreError::Denied { .. }));
        let redirect =
            "Received redirect without LOCATION, this normally indicates an incorrectly configured region";
        assert!(matches!(of("read", redirect), StoreError::NoBucket { .. }));
    }

    #[test]
    fn a_refused_token_is_about_credentials_and_a_token_server_that_is_away_is_not() {
        let refused = format!("Error performing token request: {}", with("400 Bad Request: invalid_grant"));
        assert!(matches!(of("read", &refused), StoreError::NoCredentials { .. }));
        let away = format!("Error performing token request: {}", with("503 Service Unavailable"));
        assert!(matches!(of("read", &away), StoreError::Unreachable { .. }));
        let instance = generic("Error performing GET http://169.254.169.254/latest/api/token");
        let sort = |named| sorted("s3://b", named, "read", "k", &instance);
        assert!(matches!(sort(false), StoreError::NoCredentials { .. }));
        assert!(matches!(sort(true), StoreError::Failed { .. }));
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        assert!(may_pass(&generic(&with("503 Service Unavailable: SlowDown")), false));
        assert!(may_pass(&generic("Requested 0..10, got 0..5"), false));
        assert!(!may_pass(&generic(&with("501 Not Implemented")), true));
        assert!(!may_pass(&generic(&with("403 Forbidden")), true));
    }
}

//! As Google Cloud Storage speaks in XML. It has listings and uploads in parts from S3, but its own condition of puts,
//! deletes one object at a time, and names with every '/' escaped.

use hyper::StatusCode;

use super::s3;
use super::shelf::{Told, Trouble, Wish};
use super::wire::{Answer, Asked, whole};

const TOKEN: &str = "a-token-for-tests";

/// The environment by which a process finds it.
pub(super) fn environment(endpoint: String) -> Vec<(&'static str, String)> {
    vec![
        ("GOOGLE_BASE_URL", endpoint),
        ("GOOGLE_ALLOW_HTTP", "true".to_owned()),
        ("GOOGLE_BEARER_TOKEN", TOKEN.to_owned()),
    ]
}

/// Whether the token is ours.
pub(super) fn is_signed(asked: &Asked) -> bool {
    asked.header("authorization").strip_prefix("Bearer ") == Some(TOKEN)
}

/// What is asked for.
pub(super) fn wish(asked: &Asked) -> Wish {
    let if_absent = asked.header("x-goog-if-generation-match") == "0";
    s3::object_wish(asked, asked.key.clone(), if_absent)
}

/// How it is put.
pub(super) fn answer(told: Told) -> Answer {
    let trouble = match told {
        Told::Trouble(trouble) => trouble,
        Told::Deleted(keys) if keys.iter().any(|(_, was_there)| !was_there) => Trouble::NoKey,
        Told::Deleted(_) => return whole(StatusCode::NO_CONTENT, &[], ""),
        told => {
            let mut answer = s3::object_answer(told);
            answer.headers_mut().insert("x-goog-generation", hyper::header::HeaderValue::from_static("1"));
            return answer;
        }
    };
    let (status, code) = match &trouble {
        Trouble::NoKey => (StatusCode::NOT_FOUND, "NoSuchKey"),
        Trouble::NoBucket => (StatusCode::NOT_FOUND, "NoSuchBucket"),
        Trouble::NoUpload => (StatusCode::NOT_FOUND, "NoSuchUpload"),
        Trouble::NoRange => (StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange"),
        Trouble::Taken => (StatusCode::PRECONDITION_FAILED, "PreconditionFailed"),
        Trouble::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
        Trouble::Throttled => (StatusCode::TOO_MANY_REQUESTS, "SlowDown"),
        Trouble::Unsigned => (StatusCode::UNAUTHORIZED, "AuthenticationRequired"),
        Trouble::Denied => (StatusCode::FORBIDDEN, "AccessDenied"),
        Trouble::Rejected(code) => (StatusCode::FORBIDDEN, code.as_str()),
        Trouble::NotImplemented => (StatusCode::NOT_IMPLEMENTED, "NotImplemented"),
    };
    s3::error(status, code)
}

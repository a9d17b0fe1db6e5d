//! As Amazon S3 speaks, addressed by path.

use std::fmt::Write;

use hyper::{Method, StatusCode};

use super::shelf::{Listing, Page, Told, Trouble, Wish};
use super::wire::{Answer, Asked, between, object, whole, xml};

/// The environment by which a process finds it.
pub(super) fn environment(endpoint: String) -> Vec<(&'static str, String)> {
    vec![
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ACCESS_KEY_ID", "test".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
    ]
}

/// Whether somebody signed it.
pub(super) fn is_signed(asked: &Asked) -> bool {
    asked.header("authorization").starts_with("AWS4-HMAC-SHA256 Credential=")
}

/// What is asked for.
pub(super) fn wish(asked: &Asked) -> Wish {
    let if_absent = asked.header("if-none-match") == "*";
    let key = asked.key.clone();
    if asked.method == Method::POST && asked.query.contains_key("delete") {
        let keys = between(&asked.text(), "Key").into_iter().map(str::to_owned).collect();
        return Wish::Delete { keys };
    }
    object_wish(asked, key, if_absent)
}

/// What Google's XML interface has in common with S3.
pub(super) fn object_wish(asked: &Asked, key: String, if_absent: bool) -> Wish {
    let upload = asked.parameter("uploadId");
    match (&asked.method, upload) {
        (&Method::PUT, Some(upload)) => {
            let part = asked.parameter("partNumber").unwrap_or_default();
            Wish::Part { upload, part, bytes: asked.body.clone(), begins: false }
        }
        (&Method::PUT, None) => Wish::Put { key, if_absent, bytes: asked.body.clone() },
        (&Method::POST, Some(upload)) => {
            let parts = between(&asked.text(), "PartNumber").into_iter().map(str::to_owned).collect();
            Wish::Complete { key, upload, parts }
        }
        (&Method::POST, None) if asked.query.contains_key("uploads") => Wish::Begin,
        (&Method::GET, _) if asked.parameter("list-type").as_deref() == Some("2") => Wish::List(Listing {
            prefix: asked.parameter("prefix").unwrap_or_default(),
            folders: asked.query.contains_key("delimiter"),
            after: asked.parameter("start-after"),
            from: None,
            token: asked.parameter("continuation-token"),
        }),
        (&Method::GET, _) => Wish::Get { key, range: asked.range() },
        (&Method::HEAD, _) => Wish::Head { key },
        (&Method::DELETE, Some(upload)) => Wish::Abort { upload },
        (&Method::DELETE, None) => Wish::Delete { keys: vec![key] },
        _ => Wish::Unknown,
    }
}

/// How it is put.
pub(super) fn answer(told: Told) -> Answer {
    match told {
        Told::Deleted(keys) => {
            let mut text = String::from("<DeleteResult>");
            for (key, _) in keys {
                let _ = write!(text, "<Deleted><Key>{key}</Key></Deleted>");
            }
            xml(StatusCode::OK, &[], &format!("{text}</DeleteResult>"))
        }
        Told::Trouble(trouble) => {
            let (status, code) = code(&trouble);
            error(status, &code)
        }
        told => object_answer(told),
    }
}

/// What Google's XML interface has in common with S3.
pub(super) fn object_answer(told: Told) -> Answer {
    match told {
        // The body is that of a completed upload; for a put nobody reads it.
        Told::Done { tag } => {
            let text =
                format!("<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>");
            xml(StatusCode::OK, &[("etag", &tag)], &text)
        }
        Told::Begun(id) => {
            let text = format!(
                "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
            );
            xml(StatusCode::OK, &[], &text)
        }
        Told::Page(page) => list(&page),
        told @ Told::Object { .. } => object(told, &[]),
        Told::Deleted(_) | Told::Trouble(_) => whole(StatusCode::NO_CONTENT, &[], ""),
    }
}

fn list(page: &Page) -> Answer {
    let mut text = String::from("<ListBucketResult>");
    let _ = write!(text, "<IsTruncated>{}</IsTruncated>", page.token.is_some());
    if let Some(token) = &page.token {
        let _ = write!(text, "<NextContinuationToken>{token}</NextContinuationToken>");
    }
    for (key, size) in &page.objects {
        let _ = write!(
            text,
            "<Contents><Key>{key}</Key><Size>{size}</Size><ETag>\"1\"</ETag>\
             <LastModified>2026-11-21T00:00:00.000Z</LastModified></Contents>"
        );
    }
    for folder in &page.folders {
        let _ = write!(text, "<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>");
    }
    xml(StatusCode::OK, &[], &format!("{text}</ListBucketResult>"))
}

fn code(trouble: &Trouble) -> (StatusCode, String) {
    let (status, code) = match trouble {
        Trouble::NoKey => (StatusCode::NOT_FOUND, "NoSuchKey"),
        Trouble::NoBucket => (StatusCode::NOT_FOUND, "NoSuchBucket"),
        Trouble::NoUpload => (StatusCode::NOT_FOUND, "NoSuchUpload"),
        Trouble::NoRange => (StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange"),
        Trouble::Taken => (StatusCode::PRECONDITION_FAILED, "PreconditionFailed"),
        Trouble::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "SlowDown"),
        Trouble::Throttled => (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"),
        Trouble::Unsigned | Trouble::Denied => (StatusCode::FORBIDDEN, "AccessDenied"),
        Trouble::Rejected(code) => (StatusCode::FORBIDDEN, code.as_str()),
        Trouble::NotImplemented => (StatusCode::NOT_IMPLEMENTED, "NotImplemented"),
    };
    (status, code.to_owned())
}

/// An error in XML.
pub(super) fn error(status: StatusCode, code: &str) -> Answer {
    xml(status, &[], &format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>"))
}

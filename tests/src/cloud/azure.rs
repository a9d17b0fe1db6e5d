//! As Azure Blob Storage speaks: blocks and block lists, listings with markers, deletes in batches. With the emulator's
//! switch, the account stands before the container.

use std::fmt::Write;

use hyper::{Method, StatusCode};

use super::shelf::{Listing, Page, Told, Trouble, Wish};
use super::wire::{Answer, Asked, between, object, whole, xml};

const ACCOUNT: &str = "devstoreaccount1";
/// Any bytes in base64 are a key.
const KEY: &str = "dGhpcyBpcyBub3QgYSBzZWNyZXQ=";

/// The environment by which a process finds it.
pub(super) fn environment(endpoint: String) -> Vec<(&'static str, String)> {
    vec![
        ("AZURE_STORAGE_ENDPOINT", endpoint),
        ("AZURE_ALLOW_HTTP", "true".to_owned()),
        ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT.to_owned()),
        ("AZURE_STORAGE_ACCOUNT_KEY", KEY.to_owned()),
    ]
}

/// The environment by which a process finds it as it finds Azurite.
pub(super) fn emulator_environment(endpoint: String) -> Vec<(&'static str, String)> {
    vec![("AZURE_STORAGE_USE_EMULATOR", "true".to_owned()), ("AZURITE_BLOB_STORAGE_URL", endpoint)]
}

/// The path behind the account.
pub(super) fn without_account(path: &str) -> &str {
    path.strip_prefix(ACCOUNT).and_then(|rest| rest.strip_prefix('/')).unwrap_or(path)
}

/// Whether somebody signed it: by the account's key, a token, or a signature in the address.
pub(super) fn is_signed(asked: &Asked) -> bool {
    let by = asked.header("authorization");
    let dated = !asked.header("x-ms-version").is_empty() && !asked.header("date").is_empty();
    let key = by.strip_prefix("SharedKey ").and_then(|by| by.split_once(':'));
    let by_key = key.is_some_and(|(account, signature)| account == ACCOUNT && !signature.is_empty());
    dated && (by_key || by.starts_with("Bearer ") || asked.query.contains_key("sig"))
}

/// What is asked for.
pub(super) fn wish(asked: &Asked) -> Wish {
    let key = asked.key.clone();
    let part = asked.parameter("comp");
    match (&asked.method, part.as_deref()) {
        (&Method::PUT, Some("block")) => Wish::Part {
            upload: key,
            part: asked.parameter("blockid").unwrap_or_default(),
            bytes: asked.body.clone(),
            begins: true,
        },
        (&Method::PUT, Some("blocklist")) => {
            let parts = between(&asked.text(), "Uncommitted").into_iter().map(str::to_owned).collect();
            Wish::Complete { upload: key.clone(), key, parts }
        }
        (&Method::PUT, None) if asked.header("x-ms-blob-type") == "BlockBlob" => {
            let if_absent = asked.header("if-none-match") == "*";
            Wish::Put { key, if_absent, bytes: asked.body.clone() }
        }
        (&Method::GET, Some("list")) => Wish::List(Listing {
            prefix: asked.parameter("prefix").unwrap_or_default(),
            folders: asked.query.contains_key("delimiter"),
            after: None,
            from: asked.parameter("startFrom"),
            token: asked.parameter("marker"),
        }),
        (&Method::POST, Some("batch")) => Wish::Delete { keys: batch(&asked.text()) },
        (&Method::GET, None) => Wish::Get { key, range: asked.range() },
        (&Method::HEAD, None) => Wish::Head { key },
        _ => Wish::Unknown,
    }
}

/// The keys of a batch of deletes.
fn batch(text: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("DELETE /"));
    let paths = lines.filter_map(|line| line.strip_suffix(" HTTP/1.1"));
    paths.filter_map(|path| Some(without_account(path).split_once('/')?.1.to_owned())).collect()
}

/// How it is put.
pub(super) fn answer(told: Told, asked: &Asked) -> Answer {
    match told {
        Told::Done { tag } => whole(StatusCode::CREATED, &[("etag", &tag)], ""),
        Told::Begun(_) => whole(StatusCode::NOT_IMPLEMENTED, &[], ""),
        told @ Told::Object { .. } => object(told, &[("x-ms-blob-type", "BlockBlob")]),
        Told::Page(page) => list(&page),
        Told::Deleted(keys) => deleted(&keys),
        Told::Trouble(trouble) => error(&trouble, asked),
    }
}

fn list(page: &Page) -> Answer {
    let mut text = String::from("<EnumerationResults ContainerName=\"bucket\"><Blobs>");
    for (key, size) in &page.objects {
        let _ = write!(
            text,
            "<Blob><Name>{key}</Name><Properties><Last-Modified>Sat, 21 Nov 2026 00:00:00 GMT</Last-Modified>\
             <Etag>0x1</Etag><Content-Length>{size}</Content-Length>\
             <Content-Type>application/octet-stream</Content-Type></Properties></Blob>"
        );
    }
    for folder in &page.folders {
        let _ = write!(text, "<BlobPrefix><Name>{folder}</Name></BlobPrefix>");
    }
    let marker = page.token.as_deref().unwrap_or_default();
    let _ = write!(text, "</Blobs><NextMarker>{marker}</NextMarker></EnumerationResults>");
    xml(StatusCode::OK, &[], &text)
}

fn deleted(keys: &[(String, bool)]) -> Answer {
    let mut text = String::new();
    for (id, (_, was_there)) in keys.iter().enumerate() {
        let status = if *was_there { "202 Accepted" } else { "404 The specified blob does not exist." };
        let _ = write!(
            text,
            "--batchresponse\r\nContent-Type: application/http\r\nContent-ID: {id}\r\n\r\n\
             HTTP/1.1 {status}\r\nx-ms-version: 2023-11-03\r\n\r\n"
        );
    }
    text.push_str("--batchresponse--\r\n");
    whole(StatusCode::ACCEPTED, &[("content-type", "multipart/mixed; boundary=batchresponse")], text)
}

fn error(trouble: &Trouble, asked: &Asked) -> Answer {
    let (status, code) = match trouble {
        Trouble::NoKey => (StatusCode::NOT_FOUND, "BlobNotFound"),
        Trouble::NoBucket => (StatusCode::NOT_FOUND, "ContainerNotFound"),
        Trouble::NoUpload => (StatusCode::BAD_REQUEST, "InvalidBlockList"),
        Trouble::NoRange => (StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange"),
        Trouble::Taken => (StatusCode::CONFLICT, "BlobAlreadyExists"),
        Trouble::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "ServerBusy"),
        Trouble::Throttled => (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"),
        Trouble::Unsigned => (StatusCode::UNAUTHORIZED, "NoAuthenticationInformation"),
        Trouble::Denied => (StatusCode::FORBIDDEN, "AuthorizationPermissionMismatch"),
        Trouble::Rejected(code) => (StatusCode::FORBIDDEN, code.as_str()),
        Trouble::NotImplemented => (StatusCode::NOT_IMPLEMENTED, "NotImplemented"),
    };
    let text = format!(
        "<Error><Code>{code}</Code><Message>{code}: {} /{}</Message></Error>",
        asked.method, asked.key
    );
    xml(status, &[("x-ms-error-code", code)], &text)
}

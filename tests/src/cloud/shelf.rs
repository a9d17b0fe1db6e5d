//! The store behind all dialects: objects in memory, uploads in parts, listings in pages. No HTTP here.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;

use super::Faults;

/// What a client wants, in any dialect.
#[derive(Debug)]
pub(super) enum Wish {
    /// An object; whether only if there is none.
    Put { key: String, if_absent: bool, bytes: Bytes },
    /// To send an object in parts.
    Begin,
    /// A part. `begins` where sending the first part is what begins an upload.
    Part { upload: String, part: String, bytes: Bytes, begins: bool },
    /// To make an object of parts, in this order.
    Complete { key: String, upload: String, parts: Vec<String> },
    /// To give parts up.
    Abort { upload: String },
    /// An object, or the bytes of it from the first to the last.
    Get { key: String, range: Option<(usize, usize)> },
    /// What an object is like.
    Head { key: String },
    /// A page of a listing.
    List(Listing),
    /// To remove objects.
    Delete { keys: Vec<String> },
    /// Nothing we know.
    Unknown,
}

/// Where a listing is.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) prefix: String,
    pub(super) folders: bool,
    /// Behind this key.
    pub(super) after: Option<String>,
    /// At this key or behind it.
    pub(super) from: Option<String>,
    /// As given out with the last page.
    pub(super) token: Option<String>,
}

/// What became of a wish, in any dialect.
#[derive(Debug)]
pub(super) enum Told {
    /// It is done.
    Done { tag: String },
    /// An upload was begun under this name.
    Begun(String),
    /// An object, or a part of it.
    Object { bytes: Bytes, range: Option<(usize, usize)>, size: usize, tag: String },
    /// A page of a listing.
    Page(Page),
    /// Which were there to be deleted.
    Deleted(Vec<(String, bool)>),
    /// It is not done.
    Trouble(Trouble),
}

/// A page of a listing.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) objects: Vec<(String, usize)>,
    pub(super) folders: BTreeSet<String>,
    pub(super) token: Option<String>,
}

/// Why something is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    NoKey,
    NoBucket,
    NoUpload,
    NoRange,
    Taken,
    Unavailable,
    Throttled,
    Unsigned,
    Denied,
    /// Denied with the dialect's own code.
    Rejected(String),
    NotImplemented,
}

/// The objects.
#[derive(Default)]
pub(super) struct Shelf {
    pub(super) objects: BTreeMap<String, Bytes>,
    uploads: BTreeMap<String, BTreeMap<String, Bytes>>,
    begun: u64,
}

impl Shelf {
    /// Does what is wanted.
    pub(super) fn handle(&mut self, wish: Wish, faults: &Faults) -> Told {
        match wish {
            Wish::Put { key, if_absent, bytes } => self.put(key, if_absent, bytes, faults),
            Wish::Begin => {
                self.begun += 1;
                self.uploads.insert(self.begun.to_string(), BTreeMap::new());
                Told::Begun(self.begun.to_string())
            }
            Wish::Part { upload, part, bytes, begins } => {
                let tag = tag(&bytes);
                if begins {
                    self.uploads.entry(upload.clone()).or_default();
                }
                let Some(parts) = self.uploads.get_mut(&upload) else {
                    return Told::Trouble(Trouble::NoUpload);
                };
                parts.insert(part, bytes);
                Told::Done { tag }
            }
            Wish::Complete { key, upload, parts } => self.complete(key, &upload, &parts),
            Wish::Abort { upload } => {
                self.uploads.remove(&upload);
                Told::Done { tag: String::new() }
            }
            Wish::Get { key, range } => self.get(&key, range),
            Wish::Head { key } => self.get(&key, None),
            Wish::List(listing) => Told::Page(self.list(&listing, faults)),
            Wish::Delete { keys } => {
                let removed = |key: String| {
                    let was_there = self.objects.remove(&key).is_some();
                    (key, was_there)
                };
                Told::Deleted(keys.into_iter().map(removed).collect())
            }
            Wish::Unknown => Told::Trouble(Trouble::NotImplemented),
        }
    }

    fn put(&mut self, key: String, if_absent: bool, bytes: Bytes, faults: &Faults) -> Told {
        if if_absent && faults.refuses_conditions {
            return Told::Trouble(Trouble::NotImplemented);
        }
        if if_absent && !faults.ignores_conditions && self.objects.contains_key(&key) {
            return Told::Trouble(Trouble::Taken);
        }
        if faults.no_overwrite && self.objects.contains_key(&key) {
            return Told::Trouble(Trouble::Denied);
        }
        let tag = tag(&bytes);
        self.objects.insert(key, bytes);
        Told::Done { tag }
    }

    fn complete(&mut self, key: String, upload: &str, parts: &[String]) -> Told {
        let Some(sent) = self.uploads.remove(upload) else { return Told::Trouble(Trouble::NoUpload) };
        let mut whole = Vec::new();
        for part in parts {
            let Some(bytes) = sent.get(part) else { return Told::Trouble(Trouble::NoUpload) };
            whole.extend_from_slice(bytes);
        }
        let tag = tag(&whole);
        self.objects.insert(key, whole.into());
        Told::Done { tag }
    }

    fn get(&self, key: &str, range: Option<(usize, usize)>) -> Told {
        let Some(object) = self.objects.get(key) else { return Told::Trouble(Trouble::NoKey) };
        let (size, tag) = (object.len(), tag(object));
        match range {
            None => Told::Object { bytes: object.clone(), range, size, tag },
            Some((first, _)) if first >= size => Told::Trouble(Trouble::NoRange),
            Some((first, last)) => {
                let last = last.min(size - 1);
                Told::Object { bytes: object.slice(first..=last), range: Some((first, last)), size, tag }
            }
        }
    }

    fn list(&self, listing: &Listing, faults: &Faults) -> Page {
        let limit = if faults.page == 0 { 1000 } else { faults.page };
        let token = listing.token.as_deref().map(untoken);
        let begin = if faults.ignores_offsets { None } else { listing.after.clone() };
        let after = token.clone().or(begin).unwrap_or_default();
        let from = listing.from.as_ref().filter(|_| token.is_none() && !faults.ignores_offsets);
        let mut page = Page::default();
        let mut last = None;
        for (key, bytes) in self.objects.iter().filter(|(key, _)| key.starts_with(&listing.prefix)) {
            let within = listing.folders && after.ends_with('/') && key.starts_with(&after);
            if *key <= after || within || from.is_some_and(|from| key < from) {
                continue;
            }
            let folder = key[listing.prefix.len()..].find('/').filter(|_| listing.folders);
            let folder = folder.map(|at| key[..=listing.prefix.len() + at].to_owned());
            if folder.as_ref().is_some_and(|folder| page.folders.contains(folder)) {
                continue;
            }
            if page.objects.len() + page.folders.len() == limit {
                page.token = last.as_deref().map(token_of);
                break;
            }
            last = Some(folder.clone().unwrap_or_else(|| key.clone()));
            match folder {
                Some(folder) => drop(page.folders.insert(folder)),
                None => page.objects.push((key.clone(), bytes.len())),
            }
        }
        if faults.lists_backwards {
            page.objects.reverse();
        }
        page
    }
}

/// Another content has another tag.
fn tag(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

/// Tokens mean nothing to a client.
fn token_of(key: &str) -> String {
    key.bytes().rev().map(|byte| format!("{byte:02x}")).collect()
}

fn untoken(token: &str) -> String {
    let byte = |at| u8::from_str_radix(token.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..token.len()).step_by(2).rev().map(byte).collect();
    String::from_utf8(bytes.unwrap_or_default()).unwrap_or_default()
}

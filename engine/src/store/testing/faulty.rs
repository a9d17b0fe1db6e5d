//! A store that fails by rule.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};

use super::Verb;
use crate::store::{Backend, Body, Cause, ObjectEntry, PutOutcome, StoreError};

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The store says that it does not answer; nothing was done.
    Unreachable,
    /// The store says something passing; nothing was done.
    Error,
    /// No answer for this long, then [`Fault::Unreachable`]; nothing was done.
    Timeout(Duration),
    /// It was done, but the answer was lost.
    LostAck,
    /// No space.
    Full,
    /// No right.
    Denied,
    /// What is read is cut by one byte.
    Cut,
    /// What is read has one bit flipped, in its middle.
    Flip,
}

/// When what goes wrong.
#[derive(Clone, Debug)]
pub struct Rule {
    verb: Verb,
    key_contains: String,
    skip: u64,
    times: u64,
    fault: Fault,
}

impl Rule {
    /// Every such request fails.
    #[must_use]
    pub fn always(verb: Verb, fault: Fault) -> Self {
        Self { verb, key_contains: String::new(), skip: 0, times: u64::MAX, fault }
    }

    /// Only keys that contain this.
    #[must_use]
    pub fn on_keys_with(mut self, part: &str) -> Self {
        part.clone_into(&mut self.key_contains);
        self
    }

    /// Only after so many such requests went well.
    #[must_use]
    pub fn after(mut self, requests: u64) -> Self {
        self.skip = requests;
        self
    }

    /// Only so many times.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }
}

/// A store that fails by rule. Clones share the rules, so a test keeps one to change them.
#[derive(Clone, Debug, Default)]
pub struct Faulty {
    rules: Arc<Mutex<Vec<Rule>>>,
}

impl Faulty {
    /// Without rules: nothing fails.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a rule. The first that fits a request decides.
    pub fn add(&self, rule: Rule) {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).push(rule);
    }

    /// Everything goes well from now on.
    pub fn clear(&self) {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Puts it around a store.
    #[must_use]
    pub fn wrap(&self, inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
        Arc::new(Wrapped { inner, faulty: self.clone() })
    }

    fn fault(&self, verb: Verb, key: &str) -> Option<Fault> {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let rule = rules
            .iter_mut()
            .find(|rule| rule.verb == verb && rule.times > 0 && key.contains(&rule.key_contains))?;
        if rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        rule.times -= 1;
        Some(rule.fault.clone())
    }
}

#[derive(Debug)]
struct Wrapped {
    inner: Arc<dyn Backend>,
    faulty: Faulty,
}

impl Wrapped {
    /// The error that comes before anything is done.
    async fn before(&self, fault: Option<&Fault>, action: &'static str, key: &str) -> Result<(), StoreError> {
        let (store, key, source) =
            (self.url().to_owned(), key.to_owned(), Cause(String::from("injected fault")));
        match fault {
            Some(Fault::Unreachable) => Err(StoreError::Unreachable { store, source }),
            Some(Fault::Timeout(wait)) => {
                tokio::time::sleep(*wait).await;
                Err(StoreError::Unreachable { store, source })
            }
            Some(Fault::Error) => Err(StoreError::Failed { store, action, key, source }),
            Some(Fault::Full) => Err(StoreError::Full { store, key, source }),
            Some(Fault::Denied) => Err(StoreError::Denied { store, action, key, source }),
            Some(Fault::LostAck | Fault::Cut | Fault::Flip) | None => Ok(()),
        }
    }

    /// The error that comes after all was done.
    fn after<T>(&self, fault: Option<&Fault>, done: T) -> Result<T, StoreError> {
        if fault == Some(&Fault::LostAck) {
            let source = Cause(String::from("injected fault: the answer was lost"));
            return Err(StoreError::Unreachable { store: self.url().to_owned(), source });
        }
        Ok(done)
    }
}

impl Backend for Wrapped {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn put(&self, key: &str, body: Body) -> BoxFuture<'_, Result<PutOutcome, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move {
            let fault = self.faulty.fault(Verb::Put, &key);
            self.before(fault.as_ref(), "write", &key).await?;
            self.after(fault.as_ref(), self.inner.put(&key, body).await?)
        })
    }

    fn get(&self, key: &str, range: Option<Range<u64>>) -> BoxFuture<'_, Result<Bytes, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move {
            let fault = self.faulty.fault(Verb::Get, &key);
            self.before(fault.as_ref(), "read", &key).await?;
            let bytes = self.inner.get(&key, range).await?;
            Ok(match fault {
                Some(Fault::Cut) => bytes.slice(..bytes.len().saturating_sub(1)),
                Some(Fault::Flip) => {
                    let mut flipped = bytes.to_vec();
                    let middle = flipped.len() / 2;
                    if let Some(byte) = flipped.get_mut(middle) {
                        *byte ^= 0x10;
                    }
                    flipped.into()
                }
                fault => self.after(fault.as_ref(), bytes)?,
            })
        })
    }

    fn size(&self, key: &str) -> BoxFuture<'_, Result<Option<u64>, StoreError>> {
        let key = key.to_owned();
        Box::pin(async move {
            let fault = self.faulty.fault(Verb::Size, &key);
            self.before(fault.as_ref(), "read", &key).await?;
            self.after(fault.as_ref(), self.inner.size(&key).await?)
        })
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> BoxStream<'_, Result<ObjectEntry, StoreError>> {
        let fault = self.faulty.fault(Verb::List, prefix);
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        let listing = async move {
            let failed = self.before(fault.as_ref(), "list", &prefix).await;
            match failed.and_then(|()| self.after(fault.as_ref(), ())) {
                Ok(()) => self.inner.list(&prefix, after.as_deref()),
                Err(error) => stream::once(async { Err(error) }).boxed(),
            }
        };
        stream::once(listing).flatten().boxed()
    }

    fn list_folders(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<String>, StoreError>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            let fault = self.faulty.fault(Verb::List, &prefix);
            self.before(fault.as_ref(), "list", &prefix).await?;
            self.after(fault.as_ref(), self.inner.list_folders(&prefix).await?)
        })
    }

    fn delete(&self, key: &str) -> BoxFuture<'_, Result<(), StoreError>> {
        let key = key.to_owned();
        Box::pin(async move {
            let fault = self.faulty.fault(Verb::Delete, &key);
            self.before(fault.as_ref(), "delete", &key).await?;
            self.inner.delete(&key).await?;
            self.after(fault.as_ref(), ())
        })
    }

    fn keeps_conditions(&self) -> Option<bool> {
        self.inner.keeps_conditions()
    }
}

//! Verification of what a repository holds of its databases, with or without a record that says what they are.

use std::path::Path;

use everwhen_engine::ids::DatabaseId;
use everwhen_engine::repository::RepositoryError;
use everwhen_engine::restore::Cancel;
use everwhen_engine::store::keys::record_key;
use everwhen_engine::time::Timestamp;
use everwhen_engine::verify::{self, Problem, VerifyOptions, VerifyProgressFn, VerifyReport};

use super::Reader;
use super::database::sqlite_options;
use super::records::Record;
use crate::failure::Failure;

/// A database to be verified.
pub(crate) struct Suspect {
    id: DatabaseId,
    /// Its name; its id if there is no record to tell.
    pub(crate) name: String,
    /// What is wrong with its record.
    wrong: Option<Problem>,
}

impl Suspect {
    fn known(record: Record) -> Self {
        Self { id: record.id, name: record.name, wrong: None }
    }

    fn unknown(id: DatabaseId, error: &RepositoryError) -> Self {
        let wrong = match error {
            RepositoryError::Missing { key } => Problem::new(key, &"it is missing"),
            RepositoryError::Damaged { key, reason } => Problem::new(key, reason),
            error => Problem::new(&format!("the record of database {id}"), error),
        };
        Self { id, name: id.to_string(), wrong: Some(wrong) }
    }
}

impl Reader {
    /// One database, or all of which anything is left.
    pub(crate) async fn suspects(&self, called: Option<&str>) -> Result<Vec<Suspect>, Failure> {
        let records = &self.records;
        if let Some(called) = called {
            return match records.find(called).await? {
                Some(record) => Ok(vec![Suspect::known(record)]),
                None => Err(records.none_called(called).await),
            };
        }
        let failed = |error: RepositoryError| Failure::of(&error);
        let found = records.repository.databases_or_errors().await.map_err(failed)?;
        let lost = records.repository.lost_databases(Timestamp::now()).await.map_err(failed)?;
        let found = found.into_iter().map(|(id, record)| match record {
            Ok(record) => Suspect::known(record),
            Err(error) => Suspect::unknown(id, &error),
        });
        let lost = lost
            .into_iter()
            .map(|id| Suspect::unknown(id, &RepositoryError::Missing { key: record_key(id, 1) }));
        Ok(found.chain(lost).collect())
    }

    /// Verifies what the repository holds of a database; with a folder for scratch files, also by rebuilding every state.
    pub(crate) async fn verify(
        &self,
        suspect: &Suspect,
        deep_in: Option<&Path>,
        progress: VerifyProgressFn,
        cancel: &Cancel,
    ) -> Result<VerifyReport, Failure> {
        // What a catalog remembers is no evidence: everything is listed and read anew.
        let objects = &self.records.repository;
        let restore = sqlite_options();
        let options = VerifyOptions { deep_in, restore: &restore, progress, cancel };
        let report = verify::verify_database(objects, suspect.id, &options).await;
        let mut report = report.map_err(|error| Failure::of(&error))?;
        if let Some(wrong) = suspect.wrong.clone().filter(|wrong| !report.problems.contains(wrong)) {
            report.problems.insert(0, wrong);
        }
        if !report.is_sound() {
            // The next history is of what there is, not of what there was.
            self.records.objects.forget(suspect.id).await;
        }
        Ok(report)
    }

    /// The repository's URL.
    pub(crate) fn url(&self) -> &str {
        self.records.url()
    }
}

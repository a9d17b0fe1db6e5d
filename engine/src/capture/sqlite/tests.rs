//! What happens between two steps of ours, which no test from outside can bring about.

use std::os::unix::fs::FileExt;

use rusqlite::Connection;

use super::*;
use crate::capture::sink::{Commit, PreviousPage};
use crate::page::PageNo;

/// An application that does something when the sink is called.
struct Meddler {
    app: Connection,
    /// Done once, when the source is about to let go.
    on_secure: Option<fn(&Connection)>,
    /// Done once, at the first page handed over after that.
    on_page: Option<fn(&Connection)>,
    /// Refuse the page.
    refuse: bool,
    pending: u32,
    commits: u32,
}

#[derive(Debug, thiserror::Error)]
#[error("refused")]
struct Refused;

impl Sink for Meddler {
    type Error = Refused;

    fn page(&mut self, _: PageNo, _: &[u8], _: PreviousPage<'_>) -> std::result::Result<(), Refused> {
        self.pending += 1;
        if let Some(meddle) = self.on_page.take_if(|_| self.on_secure.is_none()) {
            meddle(&self.app);
        }
        if self.refuse { Err(Refused) } else { Ok(()) }
    }

    fn commit(&mut self, _: Commit) -> std::result::Result<(), Refused> {
        (self.pending, self.commits) = (0, self.commits + 1);
        Ok(())
    }

    fn began_anew(&mut self, _: Vec<u8>) -> std::result::Result<(), Refused> {
        Ok(())
    }

    fn unwatched(&mut self, _: Timestamp) -> std::result::Result<(), Refused> {
        Ok(())
    }

    fn watched(&mut self) -> std::result::Result<(), Refused> {
        Ok(())
    }

    fn rollback(&mut self) {
        self.pending = 0;
    }

    fn distrust(&mut self) {}

    fn secure(&mut self) -> std::result::Result<(), Refused> {
        if let Some(meddle) = self.on_secure.take() {
            meddle(&self.app);
        }
        Ok(())
    }
}

/// A database of more pages than are read at once, captured up to its end.
fn captured(folder: &Path) -> (SqliteSource, Meddler) {
    let path = folder.join("app.db");
    let app = Connection::open(&path).unwrap();
    app.execute_batch(
        "PRAGMA journal_mode=wal; PRAGMA wal_autocheckpoint=0; PRAGMA synchronous=off;
         create table t(a integer primary key, b);
         with recursive n(i) as (select 1 union all select i + 1 from n where i < 1000)
         insert into t select i, randomblob(3000) from n;",
    )
    .unwrap();
    let mut source = SqliteSource::open(&path, SqliteOptions::default()).unwrap();
    let mut meddler = Meddler { app, on_secure: None, on_page: None, refuse: false, pending: 0, commits: 0 };
    source.attach(None).unwrap();
    drop(source.image(&mut meddler, folder).unwrap());
    (source, meddler)
}

fn change_all(app: &Connection) {
    app.execute_batch("update t set b = randomblob(3000)").unwrap();
}

/// Overwrites the whole log.
fn reset_and_change_all(app: &Connection) {
    let busy: i64 = app.query_row("PRAGMA wal_checkpoint(restart)", [], |row| row.get(0)).unwrap();
    assert_eq!(busy, 0, "something is pinned");
    (0..3).for_each(|_| change_all(app));
}

#[test]
fn a_log_reset_while_a_transaction_is_handed_over_unpinned_is_lost_and_nothing_wrong_is_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let (mut source, mut meddler) = captured(folder.path());
    meddler.on_secure = Some(change_all);
    meddler.on_page = Some(reset_and_change_all);
    let outcome = source.unpinned_cycle(&mut meddler, &mut 0);
    assert!(meddler.on_page.is_none());
    let outcome = outcome.map_err(|trouble| match trouble {
        Trouble::Lost(reason) => reason,
        _ => "something else".to_owned(),
    });
    assert_eq!(outcome, Err("the log was reset unseen: 4 commits were made, 3 were found".to_owned()));
    assert_eq!((meddler.commits, meddler.pending), (0, 0));
}

#[test]
fn after_an_error_without_a_pin_the_next_look_pins_and_captures_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let (mut source, mut meddler) = captured(folder.path());
    (source.slot, meddler.refuse) = (Slot::Zero, true);
    meddler.on_secure = Some(change_all);
    assert!(matches!(source.unpinned_cycle(&mut meddler, &mut 0), Err(Trouble::Sink(_))));
    assert_eq!(
        (source.unpinned, source.slot),
        (true, Slot::Either),
        "a reset is not proven to have lost nothing"
    );
    assert!(source.links.as_ref().is_some_and(|links| !links.pinned().is_autocommit()));
    meddler.refuse = false;
    assert_eq!(source.poll(&mut meddler).unwrap().transactions, 1);
    assert!(!source.unpinned);
    assert_eq!((meddler.commits, meddler.pending), (1, 0));
}

#[test]
fn a_reset_before_the_pin_is_back_is_noticed_after_an_error_too() {
    let folder = tempfile::tempdir().unwrap();
    let (mut source, mut meddler) = captured(folder.path());
    meddler.refuse = true;
    meddler.on_secure = Some(change_all);
    meddler.on_page = Some(reset_and_change_all);
    assert!(matches!(source.unpinned_cycle(&mut meddler, &mut 0), Err(Trouble::Sink(_))));
    meddler.refuse = false;
    let polled = source.poll(&mut meddler).unwrap();
    assert!(matches!(polled.event, Some(SourceEvent::LogLost { .. })), "{polled:?}");
    assert_eq!(meddler.commits, 0);
}

#[test]
fn a_look_at_a_torn_index_does_not_claim_to_have_captured_everything() {
    let folder = tempfile::tempdir().unwrap();
    let (mut source, mut meddler) = captured(folder.path());
    assert!(source.poll(&mut meddler).unwrap().complete);
    change_all(&meddler.app);
    let committed = meddler.commits;
    // Another writer is about to publish: the two copies of the head differ.
    let index = std::fs::File::options().write(true).open(folder.path().join("app.db-shm")).unwrap();
    let second_copy = HEAD_LEN as u64 / 2;
    index.write_all_at(&[0xff; 4], second_copy + 8).unwrap();
    assert!(!source.poll(&mut meddler).unwrap().complete);
    // Whoever reads next finds its writer gone and mends it.
    meddler.app.query_row("select count(*) from t", [], |_| Ok(())).unwrap();
    let polled = source.poll(&mut meddler).unwrap();
    assert_eq!((meddler.commits, polled.complete), (committed + 1, true), "{polled:?}");
    // Closing it would drop the locks of this process.
    std::mem::forget(index);
}

#[test]
fn the_index_of_a_replaced_database_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.db");
    let held = || {
        let links = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| entry.unwrap().path().read_link().ok());
        let gone = format!("{}-shm (deleted)", path.display());
        links.filter(|link| link.as_os_str() == gone.as_str()).count()
    };
    for _ in 0..5 {
        let app = Connection::open(&path).unwrap();
        app.execute_batch("PRAGMA journal_mode=wal; create table t(a)").unwrap();
        let source = SqliteSource::open(&path, SqliteOptions::default()).unwrap();
        drop((source, app));
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(files::beside(&path, suffix));
        }
    }
    assert!(held() <= 1, "{}", held());
}

#[test]
fn a_log_that_comes_back_from_before_its_reset_is_not_captured_again() {
    let folder = tempfile::tempdir().unwrap();
    let (mut source, _) = captured(folder.path());
    source.slot = Slot::Zero;
    let head = source.look().unwrap().unwrap().head;
    let next = IndexHead { salts: Salts(1, 2), ..head };
    assert!(source.begin_generation::<Refused>(next).is_ok());
    assert!(matches!(source.begin_generation::<Refused>(head), Err(Trouble::Lost(_))));
}

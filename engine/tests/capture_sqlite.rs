//! Capture of one database: commits, resets of the log, images, going on after a restart.

mod capture_support;

use std::time::Duration;

use capture_support::{Rig, wal_database};

#[test]
fn each_commit_is_one_transaction_and_the_image_follows() {
    let folder = tempfile::tempdir().unwrap();
    let (path, app) = wal_database(folder.path(), "PRAGMA page_size=4096");
    app.execute_batch("create table t(a integer primary key, b)").unwrap();
    let mut rig = Rig::attach(&path);
    for number in 0..3_000 {
        app.execute("insert into t(b) values (?1)", [format!("row {number}")]).unwrap();
        if number % 7 == 0 {
            rig.poll();
        }
    }
    rig.settle_and_compare();
    assert_eq!(rig.model.commits.len(), 3_000);
    assert_eq!(rig.model.previous_missing, 0);
    assert_eq!(rig.model.previous_given, rig.model.previous_right);
    let copy = rig.model.open_copy(folder.path(), 4096);
    assert_eq!(copy.query_row("select count(*) from t", [], |row| row.get::<_, i64>(0)).unwrap(), 3_000);
    rig.run_until(|rig| {
        rig.source.log_status().unwrap().backfilled == rig.source.log_status().unwrap().frames
    });
    rig.run_for(Duration::from_millis(100));
    for number in 0..500 {
        app.execute("insert into t(b) values (?1)", [format!("row {number}")]).unwrap();
        rig.poll();
    }
    rig.settle_and_compare();
    assert_eq!(rig.model.commits.len(), 3_500);
    assert!(rig.source.log_status().unwrap().frames < 3_000, "the log was never reset");
}

//! Interim thin line.
use everwhen_engine::ids::HostId;
use everwhen_engine::protect::*;
use everwhen_engine::repository::Repository;
use everwhen_engine::segment::*;
use std::time::{Duration, Instant};
#[tokio::main]
async fn main() {
    let dir = std::path::PathBuf::from(std::env::args().nth(1).unwrap());
    std::fs::create_dir_all(&dir).unwrap();
    let db = dir.join("app.db");
    let app = rusqlite::Connection::open(&db).unwrap();
    app.pragma_update(None, "journal_mode", "wal").unwrap();
    app.execute_batch("CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v TEXT)").unwrap();
    let repo = Repository::open(&dir.join("repo"));
    let options =
        ProtectOptions::new(db, "app".into(), dir.join("state"), HostId::from_bytes([1; 8]), "here".into());
    let p = Protection::start(repo.clone(), options).await.unwrap();
    println!("{:?}", p.wait_durable(None, Duration::from_secs(5)).await);
    println!("{:#?}", p.status());
    let mut lat = vec![];
    for i in 0..20 {
        app.execute("INSERT INTO t(v) VALUES (?1)", [format!("row {i}")]).unwrap();
        let t = Instant::now();
        p.wait_durable(None, Duration::from_secs(5)).await.unwrap();
        lat.push(t.elapsed());
    }
    println!("{lat:?}");
    for i in 0..2000 {
        app.execute("INSERT INTO t(v) VALUES (?1)", [format!("row {i}")]).unwrap();
    }
    println!("{:?}", p.wait_durable(None, Duration::from_secs(5)).await);
    println!("{:#?}", p.stop().await.unwrap());
    // replay
    let bases = {
        let s = std::fs::read_dir(dir.join("repo/db")).unwrap().next().unwrap().unwrap().file_name();
        s.to_string_lossy().to_string()
    };
    let id = bases.parse().unwrap();
    let (bk, _) = repo.bases(id).await.unwrap().remove(0);
    let m = everwhen_engine::base::Manifest::decode(&repo.get_base(&bk).await.unwrap()).unwrap();
    println!("base {} pages {}", m.position, m.page_count);
    for (k, _) in repo.segments(id, m.position.timeline, None).await.unwrap() {
        println!("{k}");
        for part in parts(&repo.get_segment(&k).await.unwrap()).unwrap() {
            part.check().unwrap();
        }
    }
}

//! What clouds and networks do wrong, in all three dialects over real HTTP: told for what it is, ridden out where that
//! can be, and never taken for what was asked for.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "what a test needs and does not get fails the test"
)]

use std::time::{Duration, Instant};

use bytes::Bytes;
use everwhen_engine::error::{ErrorKind, Explain};
use everwhen_engine::store::{Body, PutOutcome, Store, StoreError};
use everwhen_tests::cloud::{CloudServer, Dialect, Faults};

const QUARTER_OF_A_MINUTE: Duration = Duration::from_secs(15);

fn unreachable_by(error: &StoreError) {
    assert_eq!(error.kind(), ErrorKind::StoreUnreachable, "{error:?}");
    assert!(error.advice().is_some(), "{error}");
}

/// A server of each dialect, and a store on it.
fn clouds() -> [(CloudServer, Store, Dialect); 3] {
    Dialect::ALL.map(|dialect| {
        let server = CloudServer::start(dialect);
        let store = server.open("x");
        (server, store, dialect)
    })
}

fn letters(len: usize) -> Bytes {
    (0..len).map(|at| (at * 7 % 251) as u8).collect::<Vec<u8>>().into()
}

// ---- Who does not answer --------------------------------------------------------------------------------------------

#[tokio::test]
async fn stores_that_do_not_answer_are_told_within_a_quarter_of_a_minute() {
    let tests = Dialect::ALL.map(|dialect| {
        tokio::spawn(async move {
            // A port nobody listens on.
            let gone = CloudServer::start(dialect);
            let refused = Store::open_with(&gone.url("x"), &gone.environment()).unwrap();
            drop(gone);
            // A server that takes the request and stays silent.
            let silent = CloudServer::start(dialect);
            silent.fault(|faults| faults.delay = Duration::from_secs(60));
            // A server that always says 503.
            let busy = CloudServer::start(dialect);
            busy.fault(|faults| faults.unavailable = u32::MAX);
            for store in [refused, silent.open("x"), busy.open("x")] {
                let begun = Instant::now();
                let (get, put, list) = tokio::join!(
                    store.get("everwhen"),
                    store.create("everwhen", Bytes::from_static(b"x")),
                    store.list_all("db/", None)
                );
                let errors =
                    [get.map(drop).unwrap_err(), put.map(drop).unwrap_err(), list.map(drop).unwrap_err()];
                for error in errors {
                    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
                    unreachable_by(&error);
                }
                assert!(begun.elapsed() < QUARTER_OF_A_MINUTE, "{:?}", begun.elapsed());
            }
        })
    });
    for test in tests {
        test.await.unwrap();
    }
}

#[tokio::test]
async fn a_store_that_is_busy_for_some_seconds_is_not_an_error() {
    let kinds: [fn(&mut Faults); 2] = [|faults| faults.unavailable = 8, |faults| faults.throttled = 8];
    let tests = clouds().map(|(server, store, dialect)| {
        tokio::spawn(async move {
            for (number, busy) in kinds.into_iter().enumerate() {
                let key = format!("a/{number}");
                // More than the client itself repeats.
                server.fault(busy);
                let put = store.put_new(&key, Bytes::from_static(b"x")).await.unwrap();
                assert_eq!(put, PutOutcome::Created, "{dialect:?}");
                server.fault(busy);
                assert_eq!(store.get(&key).await.unwrap(), b"x"[..], "{dialect:?}");
                server.fault(busy);
                assert_eq!(store.list_all("a/", None).await.unwrap().len(), number + 1, "{dialect:?}");
            }
            assert_eq!(server.faults().unavailable + server.faults().throttled, 0);
        })
    });
    for test in tests {
        test.await.unwrap();
    }
}

#[tokio::test]
async fn a_store_that_answered_before_is_waited_for() {
    let server = CloudServer::start(Dialect::S3);
    let store = server.open("x");
    store.put_new("a/one", Bytes::from_static(b"x")).await.unwrap();
    // The answer is lost more often than the client tries.
    server.fault(|faults| faults.lost_acks = 7);
    let put = store.put_new("a/two", Bytes::from_static(b"y")).await.unwrap();
    assert_eq!(put, PutOutcome::AlreadyThere);
    assert_eq!(server.faults().lost_acks, 0);
}

#[tokio::test]
async fn a_lost_acknowledgement_is_found_out_by_trying_again() {
    for (server, store, dialect) in clouds() {
        server.fault(|faults| faults.lost_acks = 1);
        // The caller may be told, and tries again.
        let mut outcome = store.put_new("a/one", Bytes::from_static(b"x")).await;
        if outcome.is_err() {
            outcome = store.put_new("a/one", Bytes::from_static(b"x")).await;
        }
        assert_eq!(outcome.unwrap(), PutOutcome::AlreadyThere, "{dialect:?}");
        assert_eq!(server.objects(), [("x/a/one".to_owned(), 1)], "{dialect:?}");
        // Of a part, and of the end of an upload in parts.
        let large = letters(40 << 20);
        server.fault(|faults| faults.lost_acks = 2);
        let body = || Body::from(large.clone());
        let mut outcome = store.put_new("a/large", body()).await;
        while outcome.is_err() {
            outcome = store.put_new("a/large", body()).await;
        }
        assert!(store.get("a/large").await.unwrap() == large, "{dialect:?}");
    }
}

// ---- Who refuses ----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn refusals_are_told_apart() {
    for (server, store, dialect) in clouds() {
        store.put_new("a/one", Bytes::from_static(b"x")).await.unwrap();

        server.fault(|faults| faults.read_only = true);
        let error = store.put_new("a/two", Bytes::from_static(b"x")).await.unwrap_err();
        assert!(matches!(error, StoreError::Denied { action: "write", .. }), "{error:?}");
        unreachable_by(&error);
        let large = store.put_new("a/two", letters(17 << 20)).await.unwrap_err();
        assert!(matches!(large, StoreError::Denied { action: "write", .. }), "{large:?}");
        assert_eq!(store.get("a/one").await.unwrap(), b"x"[..]);

        server.fault(|faults| faults.no_list = true);
        let error = store.list_all("a/", None).await.unwrap_err();
        assert!(matches!(error, StoreError::Denied { action: "list", .. }), "{error:?}");
        unreachable_by(&error);
        let error = store.list_folders("a/").await.unwrap_err();
        assert!(matches!(error, StoreError::Denied { action: "list", .. }), "{error:?}");

        server.fault(|faults| faults.no_delete = true);
        let error = store.delete("a/one").await.unwrap_err();
        assert!(matches!(error, StoreError::Denied { action: "delete", .. }), "{error:?}");

        let codes: &[&str] = match dialect {
            Dialect::S3 => &["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"],
            Dialect::Google => &["InvalidToken", "ExpiredToken"],
            Dialect::Azure => &["AuthenticationFailed", "KeyBasedAuthenticationNotPermitted"],
        };
        for code in codes {
            server.fault(|faults| faults.rejects_all_with = Some((*code).to_owned()));
            for error in [
                store.get("a/one").await.unwrap_err(),
                store.list_all("a/", None).await.unwrap_err(),
                store.create("a/one", Bytes::new()).await.unwrap_err(),
            ] {
                assert!(matches!(error, StoreError::NoCredentials { .. }), "{error:?}");
                unreachable_by(&error);
            }
        }
    }
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_told_as_that() {
    for (server, _, dialect) in clouds() {
        let nowhere = Store::open_with(&server.url_in("nowhere", "x"), &server.environment()).unwrap();
        for error in [
            nowhere.get("everwhen").await.unwrap_err(),
            nowhere.put_new("a/one", Bytes::from_static(b"x")).await.unwrap_err(),
            nowhere.put_new("a/two", letters(17 << 20)).await.unwrap_err(),
            nowhere.list_all("a/", None).await.unwrap_err(),
            nowhere.list_folders("a/").await.unwrap_err(),
        ] {
            assert!(matches!(error, StoreError::NoBucket { .. }), "{dialect:?}: {error:?}");
            unreachable_by(&error);
        }
    }
}

#[tokio::test]
async fn unsigned_requests_are_refused_as_such() {
    let azure = CloudServer::start(Dialect::Azure);
    let mut settings = azure.environment();
    settings.push(("AZURE_SKIP_SIGNATURE".into(), "true".into()));
    let error = Store::open_with(&azure.url("x"), &settings).unwrap().get("everwhen").await.unwrap_err();
    assert!(matches!(error, StoreError::NoCredentials { .. }), "{error:?}");
    // A signature in the address does instead, and never shows.
    settings.retain(|(name, _)| !name.contains("KEY") && !name.contains("SKIP"));
    settings.push(("AZURE_STORAGE_SAS_TOKEN".into(), "sv=2023-11-03&sig=hunter2".into()));
    let store = Store::open_with(&azure.url("x"), &settings).unwrap();
    store.put_new("a/one", Bytes::from_static(b"x")).await.unwrap();
    azure.fault(|faults| faults.rejects_all_with = Some("AuthenticationFailed".into()));
    let error = store.get("a/one").await.unwrap_err();
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");

    let google = CloudServer::start(Dialect::Google);
    let mut settings = google.environment();
    settings.push(("GOOGLE_BEARER_TOKEN".into(), "of somebody else".into()));
    let error = Store::open_with(&google.url("x"), &settings).unwrap().get("everwhen").await.unwrap_err();
    assert!(matches!(error, StoreError::NoCredentials { .. }), "{error:?}");
}

#[tokio::test]
async fn having_no_credentials_is_told_as_that() {
    let server = CloudServer::start(Dialect::S3);
    let mut settings = server.environment();
    settings.retain(|(name, _)| !name.contains("KEY"));
    // Where an instance would tell its role; nobody is there.
    settings.push(("AWS_METADATA_ENDPOINT".into(), "http://127.0.0.1:9".into()));
    let azure = CloudServer::start(Dialect::Azure);
    let mut others = azure.environment();
    others.retain(|(name, _)| !name.contains("KEY"));
    others.push(("AZURE_MSI_ENDPOINT".into(), "http://127.0.0.1:9/metadata/identity".into()));
    for (url, settings, variable) in [
        (server.url("x"), settings, "AWS_ACCESS_KEY_ID"),
        (azure.url("x"), others, "AZURE_STORAGE_ACCOUNT_KEY"),
    ] {
        let store = Store::open_with(&url, &settings).unwrap();
        let begun = Instant::now();
        let error = store.get("everwhen").await.unwrap_err();
        assert!(matches!(error, StoreError::NoCredentials { .. }), "{error:?}");
        assert!(error.advice().unwrap().contains(variable));
        assert!(begun.elapsed() < QUARTER_OF_A_MINUTE);
    }
}

#[tokio::test]
async fn plain_http_needs_a_word_of_the_operator() {
    for (server, _, dialect) in clouds() {
        let mut settings = server.environment();
        settings.retain(|(name, _)| !name.ends_with("ALLOW_HTTP"));
        let error = Store::open_with(&server.url("x"), &settings).unwrap().get("everwhen").await.unwrap_err();
        assert!(matches!(error, StoreError::Settings { .. }), "{dialect:?}: {error:?}");
        assert_eq!(error.kind(), ErrorKind::Usage);
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("_ALLOW_HTTP=true"), "{source}");
    }
}

// ---- Bodies that are not what they should be ------------------------------------------------------------------------

#[tokio::test]
async fn bodies_that_break_off_are_read_on() {
    let kinds: [fn(&mut Faults); 3] = [
        |faults| faults.cut_bodies = 6,
        |faults| faults.reset_bodies = 6,
        |faults| (faults.cut_bodies, faults.unavailable) = (1, 6),
    ];
    let tests = clouds().map(|(server, store, dialect)| {
        tokio::spawn(async move {
            let content = letters(3_000_000);
            store.put_new("a/one", content.clone()).await.unwrap();
            for breaks in kinds {
                server.fault(breaks);
                assert!(store.get("a/one").await.unwrap() == content, "{dialect:?}");
                server.fault(breaks);
                let part = store.get_range("a/one", 1_000..2_000_000).await.unwrap();
                assert!(part == content[1_000..2_000_000], "{dialect:?}");
                assert_eq!(server.faults().cut_bodies + server.faults().reset_bodies, 0);
            }
            // Without end, it is an error in the end.
            server.fault(|faults| faults.cut_bodies = u32::MAX);
            let begun = Instant::now();
            let error = store.get("a/one").await.unwrap_err();
            assert!(matches!(error, StoreError::Unreachable { .. }), "{dialect:?}: {error:?}");
            assert!(error.is_passing() && begun.elapsed() < QUARTER_OF_A_MINUTE, "{:?}", begun.elapsed());
        })
    });
    for test in tests {
        test.await.unwrap();
    }
}

#[tokio::test]
async fn ranges_answered_with_less_are_asked_for_again() {
    for (server, store, dialect) in clouds() {
        let content = letters(100_000);
        store.put_new("a/one", content.clone()).await.unwrap();
        for times in [1, 3] {
            server.fault(|faults| faults.short_ranges = times);
            assert!(
                store.get_range("a/one", 10..90_000).await.unwrap() == content[10..90_000],
                "{dialect:?}"
            );
            server.fault(|faults| faults.lying_ranges = times);
            assert!(
                store.get_range("a/one", 10..90_000).await.unwrap() == content[10..90_000],
                "{dialect:?}"
            );
            assert_eq!(server.faults().short_ranges + server.faults().lying_ranges, 0);
        }
    }
}

#[tokio::test]
async fn ranges_answered_with_less_for_ever_are_an_error_but_no_damage() {
    let tests = Dialect::ALL.map(|dialect| {
        tokio::spawn(async move {
            let server = CloudServer::start(dialect);
            let store = server.open("x");
            store.put_new("a/one", letters(100_000)).await.unwrap();
            let kinds: [fn(&mut Faults); 3] = [
                |faults| faults.short_ranges = u32::MAX,
                |faults| {
                    faults.short_ranges = 0;
                    faults.lying_ranges = u32::MAX;
                },
                |faults| {
                    faults.lying_ranges = 0;
                    faults.ignores_ranges = true;
                },
            ];
            for kind in kinds {
                server.fault(kind);
                let begun = Instant::now();
                let error = store.get_range("a/one", 10..90_000).await.unwrap_err();
                assert!(matches!(error, StoreError::Failed { action: "read", .. }), "{dialect:?}: {error:?}");
                assert!(begun.elapsed() < QUARTER_OF_A_MINUTE, "{dialect:?}: {:?}", begun.elapsed());
            }
            // But beyond the object there is nothing to be had.
            let error = store.get_range("a/one", 10..100_001).await.unwrap_err();
            assert!(matches!(error, StoreError::Failed { .. } | StoreError::Range { .. }), "{error:?}");
        })
    });
    for test in tests {
        test.await.unwrap();
    }
}

// ---- Listings -------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn listings_begin_where_they_are_asked_to_even_where_the_store_does_not() {
    for (server, store, dialect) in clouds() {
        server.fault(|faults| {
            faults.page = 4;
            faults.ignores_offsets = true;
        });
        let mut all: Vec<String> = (0..23).map(|number| format!("l/{number:02}")).collect();
        for key in &all {
            store.put_new(key, Bytes::from_static(b"x")).await.unwrap();
        }
        let rest: Vec<String> =
            store.list_all("l/", Some("l/06")).await.unwrap().into_iter().map(|entry| entry.key).collect();
        assert_eq!(rest, all.split_off(7), "{dialect:?}");
    }
}

#[tokio::test]
async fn listings_without_order_are_refused() {
    for (server, store, dialect) in clouds() {
        for key in ["l/a", "l/b", "l/c"] {
            store.put_new(key, Bytes::from_static(b"x")).await.unwrap();
        }
        server.fault(|faults| faults.lists_backwards = true);
        let error = store.list_all("l/", None).await.unwrap_err();
        assert!(matches!(error, StoreError::Failed { action: "list", .. }), "{dialect:?}: {error:?}");
    }
}

// ---- Slow lines -----------------------------------------------------------------------------------------------------

/// Longer than the time for any step, and than the client repeats requests.
#[tokio::test]
async fn a_pack_on_a_slow_line_is_not_cut_off() {
    let tests = Dialect::ALL.map(|dialect| {
        tokio::spawn(async move {
            let server = CloudServer::start(dialect);
            let store = server.open("x");
            server.fault(|faults| faults.reads_at = 1_000_000);
            let pack = letters(16 << 20);
            let begun = Instant::now();
            assert_eq!(store.put_new("a/pack", pack.clone()).await.unwrap(), PutOutcome::Created);
            assert!(begun.elapsed() > Duration::from_secs(14), "{:?}", begun.elapsed());
            assert_eq!(server.requests().puts, 1, "{dialect:?}");
            server.fault(|faults| faults.reads_at = 0);
            assert!(store.get("a/pack").await.unwrap() == pack);
        })
    });
    for test in tests {
        test.await.unwrap();
    }
}

/// An operator may want less patience: then it is an error, and nothing else.
#[tokio::test]
async fn a_time_out_of_the_operator_counts() {
    for (server, _, dialect) in clouds() {
        let mut settings = server.environment();
        let name = match dialect {
            Dialect::S3 => "AWS_TIMEOUT",
            Dialect::Google => "GOOGLE_TIMEOUT",
            Dialect::Azure => "AZURE_TIMEOUT",
        };
        settings.push((name.into(), "300ms".into()));
        let store = Store::open_with(&server.url("x"), &settings).unwrap();
        server.fault(|faults| faults.reads_at = 100_000);
        let error = store.put_new("a/one", letters(1 << 20)).await.unwrap_err();
        assert!(matches!(error, StoreError::Unreachable { .. }), "{dialect:?}: {error:?}");
    }
}

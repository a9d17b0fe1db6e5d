//! What a verification finds, on real segments and bases in memory.

use std::sync::Mutex;

use tempfile::TempDir;

use super::*;
use crate::page::{PageSize, StateChecksum};
use crate::restore::testing::{World, with_twins};

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn verify_world(world: &World, deep: bool) -> VerifyReport {
    let folder = TempDir::new().unwrap();
    let cancel = Cancel::new();
    let restore = Options { reserve_bytes: Some(0), ..Options::default() };
    let options = VerifyOptions {
        deep_in: deep.then_some(folder.path()),
        restore: &restore,
        progress: Arc::new(|_| {}),
        cancel: &cancel,
    };
    let report = run(verify(&world.objects, &world.history(), &world.packs(), &options)).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the scratch file is gone");
    for Problem { object, what } in &report.problems {
        assert!(!what.contains(object) && !what.contains('\n'), "not one clean line: {object}: {what}");
    }
    report
}

/// Three bases, a fork, a wide segment beside narrow ones, an image that shrinks and grows.
fn world() -> World {
    let mut world = World::new(PageSize::MIN, 20);
    for step in 0..30_u64 {
        let pages = [20, 25, 12, 30][usize::try_from(step % 4).unwrap()];
        world.commit(pages, &[(u32::try_from(step % 9).unwrap() + 1, 500 + step), (2, 900 + step)]);
        match step {
            2 | 3 | 7 | 15 | 16 => world.cut(),
            10 | 20 => world.base(),
            17 => world.repack(2),
            22 => world.group(2),
            24 => world.fork(1),
            _ => {}
        }
    }
    world.base();
    world.seen();
    world
}

#[test]
fn a_sound_history_is_found_sound_and_every_state_is_proven() {
    let world = world();
    for deep in [false, true] {
        let report = verify_world(&world, deep);
        assert_eq!(report.problems, [], "deep: {deep}");
        assert!(report.is_sound());
        assert_eq!(report.objects, world.objects.keys().len() as u64);
        assert_eq!(report.unused_packs, 0);
        if deep {
            assert_eq!(report.proven_transactions, world.images.len() as u64);
            assert_eq!(report.proven_through, Some(world.position()));
        }
    }
}

#[test]
fn every_damaged_or_missing_object_is_named() {
    let world = world();
    for key in world.objects.keys() {
        let sound = world.objects.remove(&key);
        let report = verify_world(&world, true);
        // A pack that is gone is in no listing, but a base names it.
        assert!(report.problems.iter().any(|problem| problem.object == key), "{key} missing: {report:?}");
        for at in [0, sound.len() / 2, sound.len() - 1] {
            let mut altered = sound.to_vec();
            altered[at] ^= 4;
            world.objects.put(&key, altered);
            let report = verify_world(&world, false);
            assert!(report.problems.iter().any(|problem| problem.object == key), "{key} at {at}: {report:?}");
        }
        world.objects.put(&key, sound.slice(..sound.len() - 1));
        assert!(!verify_world(&world, false).is_sound(), "{key} cut off");
        world.objects.put(&key, sound);
    }
    assert!(verify_world(&world, false).is_sound());
}

#[test]
fn holes_and_missing_ends_are_found_from_names_alone() {
    let mut lost = world();
    let at = lost.findings.segments.iter().position(|entry| entry.key.range.first().get() == 5).unwrap();
    lost.findings.segments.remove(at);
    let report = verify_world(&lost, true);
    assert!(report.problems.iter().any(|problem| problem.what.contains("missing")), "{report:?}");
    let mut cut = world();
    cut.findings.segments.pop();
    assert!(!verify_world(&cut, false).is_sound());
}

#[test]
fn a_base_that_is_another_image_than_the_log_leads_to_is_found_by_deep_only() {
    let mut world = World::new(PageSize::MIN, 20);
    world.commit(20, &[(2, 77)]);
    world.cut();
    world.base_of(StateChecksum::from_raw(5));
    world.commit(20, &[(3, 78)]);
    world.cut();
    assert!(verify_world(&world, false).is_sound());
    let report = verify_world(&world, true);
    assert!(
        matches!(&report.problems[..], [problem] if problem.object == "1/0000000000000002"),
        "{report:?}"
    );
    assert_eq!(report.proven_transactions, 3);
}

#[test]
fn two_transactions_of_one_number_are_found_however_their_segments_are_cut() {
    // The same history up to a kill; then the same numbers for other transactions.
    let until_the_kill = |pages: &[u32], cut_each: bool, seed: u64| {
        let mut world = World::new(PageSize::MIN, 20);
        world.commit(20, &[(1, 7)]);
        world.cut();
        for (&page, seed) in pages.iter().zip(seed..) {
            world.commit(20, &[(page, seed)]);
            if cut_each {
                world.cut();
            }
        }
        world.cut();
        world
    };
    let mut world = until_the_kill(&[2, 3, 4, 5, 6], false, 100);
    for (seed, sound) in [(100, true), (200, false)] {
        let other = until_the_kill(&[2, 3, 4], true, seed);
        for entry in other.findings.segments {
            let key = entry.key.to_string();
            world.objects.put(&key, other.objects.bytes(&key));
            world.findings.segments.push(entry);
        }
        let report = verify_world(&world, false);
        assert_eq!(report.is_sound(), sound, "{report:?}");
        let told = |problem: &Problem| problem.what.contains("another transaction");
        assert_eq!(report.problems.iter().any(told), !sound);
    }
}

#[test]
fn a_large_segment_is_checked_in_pieces() {
    let mut world = World::new(PageSize::MAX, 2);
    let pages: Vec<(u32, u64)> = (1..400).map(|page| (page, u64::from(page) * 3 + 1)).collect();
    world.commit(400, &pages);
    world.cut();
    assert!(world.findings.segments.last().unwrap().size > 16 << 20);
    assert_eq!(verify_world(&world, true).problems, []);
    let key = world.findings.segments.last().unwrap().key.to_string();
    let sound = world.objects.bytes(&key);
    for at in [1, 60, sound.len() / 2, sound.len() - 1] {
        let mut altered = sound.to_vec();
        altered[at] ^= 4;
        world.objects.put(&key, altered);
        assert!(verify_world(&world, false).problems.iter().any(|problem| problem.object == key), "{at}");
    }
}

#[test]
fn progress_ends_with_everything_done_and_cancelling_stops_it() {
    let world = world();
    let seen: Arc<Mutex<Vec<VerifyProgress>>> = Arc::default();
    let tell = Arc::clone(&seen);
    let (folder, cancel) = (TempDir::new().unwrap(), Cancel::new());
    let restore = Options { reserve_bytes: Some(0), ..Options::default() };
    let mut options = VerifyOptions {
        deep_in: Some(folder.path()),
        restore: &restore,
        progress: Arc::new(move |progress| tell.lock().unwrap().push(progress)),
        cancel: &cancel,
    };
    run(verify(&world.objects, &world.history(), &world.packs(), &options)).unwrap();
    let last = *seen.lock().unwrap().last().unwrap();
    assert_eq!((last.objects, last.bytes), (last.total_objects, last.total_bytes));
    assert_eq!(last.transactions, last.total_transactions);
    options.progress = Arc::new(|_| {});
    cancel.cancel();
    let error = run(verify(&world.objects, &world.history(), &world.packs(), &options)).unwrap_err();
    assert!(matches!(error, VerifyError::Stopped(RestoreError::Cancelled)));
}

#[test]
fn twins_that_say_the_same_are_sound() {
    for seed in 0..6 {
        let mut world = with_twins(seed);
        // A fork right there has its state rebuilt through the twins.
        world.fork(0);
        world.commit(12, &[(4, 5)]);
        world.cut();
        for deep in [false, true] {
            assert_eq!(verify_world(&world, deep).problems, [], "seed {seed}, deep: {deep}");
        }
    }
}

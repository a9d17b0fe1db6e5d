//! What a restore promises, on real segments and bases in memory.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use tempfile::TempDir;

use super::testing::{World, order, with_twins};
use super::*;
use crate::base::{ChunkCodec, Manifest, decode_chunk};
use crate::digest::Hasher;
use crate::error::{ErrorKind, Explain};
use crate::history::testing::at;
use crate::history::{BaseEntry, SegmentEntry};
use crate::plan::NoSuchPoint;
use crate::store::keys::{BaseKey, SegmentKey, pack_key};

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn options() -> Options {
    Options { reserve_bytes: Some(0), sidecar_suffixes: &["-wal", "-journal"], ..Options::default() }
}

fn quiet() -> ProgressFn {
    Arc::new(|_| {})
}

fn restore_to(world: &World, target: Target, to: &Path) -> Result<RestoreReport, RestoreError> {
    let history = world.history();
    run(restore(&world.objects, &history, &order(world, target, to, &options())))
}

fn files(folder: &TempDir) -> Vec<String> {
    let names = std::fs::read_dir(folder.path()).unwrap();
    names.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// A few dozen commits of all kinds, with cuts, bases, a fork and a wide segment.
fn varied(page_size: u32) -> World {
    let mut world = World::new(PageSize::new(page_size).unwrap(), 30);
    for step in 0..40_u64 {
        let pages = [30, 31, 45, 45, 20, 33][usize::try_from(step % 6).unwrap()];
        let page = u32::try_from(step % 7).unwrap() + 1;
        world.commit(pages, &[(page, 1000 + step), (page + 9, 2000 + step), (1, 3000 + step)]);
        match step {
            3 | 4 | 9 | 15 | 16 | 18 | 26 | 33 => world.cut(),
            12 | 22 => world.base(),
            19 => world.repack(2),
            13 => world.group(2),
            29 => world.fork(2),
            _ => {}
        }
    }
    world.cut();
    world.seen();
    world
}

#[test]
fn every_commit_is_restored_byte_for_byte_at_several_page_sizes() {
    for page_size in [512, 4096, 65_536] {
        let world = varied(page_size);
        assert_eq!(world.history().flaws(), &[]);
        let folder = TempDir::new().unwrap();
        for (position, (transaction, image)) in &world.images {
            let to = folder.path().join("restored");
            let report = restore_to(&world, Target::Position(*position), &to).unwrap();
            assert_eq!((report.position, report.time), (*position, transaction.time));
            assert_eq!(report.proof.state, transaction.state);
            assert!(std::fs::read(&to).unwrap() == *image, "{position} at page size {page_size}");
            assert_eq!(files(&folder), ["restored"]);
            std::fs::remove_file(&to).unwrap();
        }
    }
}

/// The base has four stretches of a MiB. Those that the log leaves alone are not read again.
#[test]
fn a_log_that_changes_some_of_a_large_base_gives_every_commit() {
    let mut world = World::new(PageSize::MAX, 64);
    for (pages, page) in [(64, 3), (64, 40), (37, 36), (60, 50), (33, 1), (64, 64), (16, 16), (17, 17)] {
        world.commit(pages, &[(page, u64::from(pages * page))]);
        world.cut();
    }
    world.seen();
    let folder = TempDir::new().unwrap();
    for (position, (_, image)) in &world.images {
        let to = folder.path().join("restored");
        restore_to(&world, Target::Position(*position), &to).unwrap();
        assert!(std::fs::read(&to).unwrap() == *image, "{position}");
        std::fs::remove_file(&to).unwrap();
    }
}

#[test]
fn a_time_gives_the_state_of_that_time_and_says_how_far_off_it_is() {
    let world = varied(512);
    let folder = TempDir::new().unwrap();
    let (position, (transaction, image)) = world.images.iter().nth(7).unwrap();
    let to = folder.path().join("restored");
    let asked = transaction.time.plus_micros(3);
    let report = restore_to(&world, Target::Time(asked), &to).unwrap();
    assert_eq!((report.position, report.distance_ms), (*position, Some(0)));
    assert!(std::fs::read(&to).unwrap() == *image);
    let json = serde_json::to_value(&report).unwrap();
    for field in ["position", "time", "asked", "distance_ms", "path", "bytes", "proof"] {
        assert!(json.get(field).is_some(), "{field}");
    }
    assert_eq!(json["asked"], asked.to_string());
    let latest = restore_to(&world, Target::Latest, &folder.path().join("latest")).unwrap();
    assert_eq!(latest.position, world.position());
}

#[test]
fn the_dry_run_is_the_plan_and_is_what_happens() {
    let world = varied(4096);
    let history = world.history();
    let plan = run(plan(&world.objects, &history, Target::Latest, at(world.now))).unwrap();
    let seen: Arc<Mutex<Vec<Progress>>> = Arc::default();
    let tell = Arc::clone(&seen);
    let progress: ProgressFn = Arc::new(move |progress| tell.lock().unwrap().push(progress));
    let folder = TempDir::new().unwrap();
    let to = folder.path().join("restored");
    run(apply(&world.objects, &plan, &to, &options(), progress, &Cancel::new())).unwrap();
    let last = *seen.lock().unwrap().last().unwrap();
    assert_eq!((last.phase, last.transactions), (Phase::Done, plan.transactions));
    // The manifest is part of the plan's bytes and not of the progress.
    assert!(last.read_bytes <= plan.read_bytes && last.read_bytes * 2 > plan.read_bytes, "{last:?} {plan:?}");
    assert_eq!(last.proven_bytes, plan.image_bytes);
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["position"], world.position().to_string());
    assert_eq!(json["segments"].as_array().unwrap().len(), plan.segments.len());
    assert_eq!(json["distance_ms"], serde_json::Value::Null);
}

#[test]
fn page_hashes_are_those_of_the_image() {
    let world = varied(512);
    let folder = TempDir::new().unwrap();
    let plan = run(plan(&world.objects, &world.history(), Target::Latest, at(world.now))).unwrap();
    let scratch = folder.path().join("scratch");
    let hashes =
        run(rebuild_page_hashes(&world.objects, &plan, &scratch, &options(), &Cancel::new())).unwrap();
    let (_, image) = &world.images[&world.position()];
    let expected =
        (1..).map_while(PageNo::new).zip(image.chunks(512)).map(|(page, bytes)| PageHash::of(page, bytes));
    assert_eq!(hashes, expected.collect::<Vec<_>>());
}

#[test]
fn nothing_is_ever_overwritten_nor_put_beside_a_foreign_log() {
    let world = varied(512);
    let folder = TempDir::new().unwrap();
    let to = folder.path().join("app.db");
    std::fs::write(&to, "precious").unwrap();
    let error = restore_to(&world, Target::Latest, &to).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TargetUnfit);
    assert_eq!(std::fs::read(&to).unwrap(), b"precious");
    std::fs::remove_file(&to).unwrap();
    std::fs::write(folder.path().join("app.db-wal"), "").unwrap();
    let error = restore_to(&world, Target::Latest, &to).unwrap_err();
    assert!(matches!(error, RestoreError::Target(TargetUnfit::InUse { .. })), "{error}");
    std::fs::remove_file(folder.path().join("app.db-wal")).unwrap();
    std::os::unix::fs::symlink("nowhere", &to).unwrap();
    let error = restore_to(&world, Target::Latest, &to).unwrap_err();
    assert!(matches!(error, RestoreError::Target(TargetUnfit::Exists { .. })), "{error}");
    assert_eq!(files(&folder), ["app.db"]);
}

#[test]
fn a_target_that_appears_meanwhile_is_not_overwritten() {
    let world = varied(512);
    let folder = TempDir::new().unwrap();
    let to = folder.path().join("app.db");
    let plan = run(plan(&world.objects, &world.history(), Target::Latest, at(world.now))).unwrap();
    let path = to.clone();
    let progress: ProgressFn = Arc::new(move |progress| {
        if progress.phase == Phase::Publish {
            std::fs::write(&path, "precious").unwrap();
        }
    });
    let error = run(apply(&world.objects, &plan, &to, &options(), progress, &Cancel::new())).unwrap_err();
    assert!(matches!(error, RestoreError::Target(TargetUnfit::Exists { .. })), "{error}");
    assert_eq!(std::fs::read(&to).unwrap(), b"precious");
    assert_eq!(files(&folder), ["app.db"]);
}

#[test]
fn unfit_targets_are_refused_before_anything_is_touched() {
    let world = varied(512);
    let folder = TempDir::new().unwrap();
    let unfit = |to: &Path, options: &Options| {
        let plan = run(plan(&world.objects, &world.history(), Target::Latest, at(world.now))).unwrap();
        let error = run(apply(&world.objects, &plan, to, options, quiet(), &Cancel::new())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TargetUnfit, "{error}");
        assert!(error.advice().is_some());
        match error {
            RestoreError::Target(error) => error,
            other => panic!("{other}"),
        }
    };
    assert!(matches!(unfit(&folder.path().join("no/app.db"), &options()), TargetUnfit::NoFolder { .. }));
    assert!(matches!(unfit(Path::new("/"), &options()), TargetUnfit::NoName { .. }));
    let greedy = Options { reserve_bytes: Some(u64::MAX), ..options() };
    assert!(matches!(unfit(&folder.path().join("app.db"), &greedy), TargetUnfit::NoSpace { .. }));
    std::fs::write(folder.path().join("file"), "").unwrap();
    assert!(matches!(unfit(&folder.path().join("file/app.db"), &options()), TargetUnfit::NoFolder { .. }));
    assert_eq!(files(&folder), ["file"]);
}

#[test]
fn a_cancelled_restore_leaves_nothing_behind() {
    let world = varied(4096);
    let folder = TempDir::new().unwrap();
    let to = folder.path().join("app.db");
    for phase in [Phase::Base, Phase::Log, Phase::Prove] {
        let cancel = Cancel::new();
        let stop = cancel.clone();
        let progress: ProgressFn = Arc::new(move |progress| {
            if progress.phase == phase {
                stop.cancel();
            }
        });
        let history = world.history();
        let options = options();
        let order = Order { progress, cancel: &cancel, ..order(&world, Target::Latest, &to, &options) };
        let error = run(restore(&world.objects, &history, &order));
        assert!(matches!(error.unwrap_err(), RestoreError::Cancelled), "{phase:?}");
        assert!(files(&folder).is_empty(), "{phase:?}");
    }
}

#[test]
fn a_damaged_or_missing_object_is_gone_around_when_another_way_leads_to_the_same_state() {
    let world = varied(4096);
    let folder = TempDir::new().unwrap();
    let history = world.history();
    let plan = run(plan(&world.objects, &history, Target::Latest, at(world.now))).unwrap();
    world.objects.remove(&plan.base.to_string());
    let report = restore_to(&world, Target::Latest, &folder.path().join("one")).unwrap();
    assert_eq!(report.avoided, [plan.base.to_string()]);
    assert_eq!(report.position, world.position());
    // Segments that exist both wide and narrow serve for each other, too.
    let wide = |entry: &&SegmentEntry| {
        let inside = |other: &SegmentEntry| {
            other.key != entry.key && entry.key.range.contains(other.key.range.first())
        };
        world.findings.segments.iter().any(|other| other.key.timeline == entry.key.timeline && inside(other))
    };
    let wide =
        world.findings.segments.iter().filter(wide).max_by_key(|entry| entry.key.range.count()).unwrap().key;
    world.objects.remove(&wide.to_string());
    let target = Target::Position(Position::new(wide.timeline, wide.range.last()));
    let report = restore_to(&world, target, &folder.path().join("two")).unwrap();
    assert_eq!(report.avoided, [wide.to_string()]);
}

#[test]
fn without_a_way_around_damage_is_named_and_nothing_is_left() {
    let world = varied(512);
    let folder = TempDir::new().unwrap();
    let last = world.findings.segments.last().unwrap().key.to_string();
    let mut bytes = world.objects.remove(&last).to_vec();
    let error = restore_to(&world, Target::Latest, &folder.path().join("one")).unwrap_err();
    assert_eq!((error.kind(), error.lost_object()), (ErrorKind::Damaged, Some(last.as_str())), "{error}");
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    world.objects.put(&last, bytes);
    let error = restore_to(&world, Target::Latest, &folder.path().join("one")).unwrap_err();
    assert_eq!((error.kind(), error.lost_object()), (ErrorKind::Damaged, Some(last.as_str())), "{error}");
    assert!(files(&folder).is_empty());
}

#[test]
fn a_base_that_contradicts_the_log_is_gone_around() {
    let mut world = World::new(PageSize::MIN, 10);
    world.commit(10, &[(2, 77)]);
    world.cut();
    world.base_of(StateChecksum::from_raw(5));
    let folder = TempDir::new().unwrap();
    let report = restore_to(&world, Target::Latest, &folder.path().join("one")).unwrap();
    assert_eq!(report.avoided, [world.findings.bases[1].key.to_string()]);
    assert!(std::fs::read(folder.path().join("one")).unwrap() == world.images[&world.position()].1);
    world.base_with_other_content(5);
    world.findings.bases.remove(1);
    world.commit(10, &[(3, 78)]);
    world.cut();
    let report = restore_to(&world, Target::Latest, &folder.path().join("two")).unwrap();
    assert_eq!(report.avoided, [world.findings.bases[1].key.to_string()]);
    assert!(std::fs::read(folder.path().join("two")).unwrap() == world.images[&world.position()].1);
}

#[test]
fn a_result_that_is_not_the_recorded_state_is_not_handed_over() {
    let mut world = World::new(PageSize::MIN, 10);
    world.commit(10, &[(2, 77)]);
    world.cut();
    world.base_with_other_content(5);
    world.commit(10, &[(3, 78)]);
    world.cut();
    world.findings.bases.remove(0);
    let folder = TempDir::new().unwrap();
    let error = restore_to(&world, Target::Latest, &folder.path().join("one")).unwrap_err();
    assert!(matches!(error, RestoreError::NotProven { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(files(&folder).is_empty());
}

/// Nothing but the sum of all pages notices this one, and that does not say where it is.
#[test]
fn a_chunk_that_is_not_what_its_name_says_is_found() {
    let mut world = World::new(PageSize::MIN, 10);
    let entry = world.findings.bases[0];
    let mut manifest = Manifest::decode(&world.objects.bytes(&entry.key.to_string())).unwrap();
    let pack = pack_key(manifest.database, manifest.packs[0].digest);
    let mut bytes = world.objects.bytes(&pack).to_vec();
    let raw_len = manifest.chunk_len(0);
    let [chunk] = &mut manifest.chunks[..] else { panic!() };
    let mut raw = decode_chunk(&Hasher::Plain, chunk, raw_len, &bytes[chunk.offset as usize..]).unwrap();
    raw[raw_len / 2] ^= 1;
    bytes.splice(chunk.offset as usize.., raw.iter().copied());
    (chunk.codec, chunk.len, chunk.crc) = (ChunkCodec::Raw, raw.len() as u32, crc32fast::hash(&raw));
    manifest.packs[0].len = bytes.len() as u64;
    world.objects.put(&pack, bytes);
    let bytes = manifest.encode().unwrap();
    let key = BaseKey { digest: Hasher::Plain.digest(&bytes), ..entry.key };
    world.findings.bases = vec![BaseEntry { key, size: bytes.len() as u64 }];
    world.objects.put(&key, bytes);
    let folder = TempDir::new().unwrap();
    let error = restore_to(&world, Target::Latest, &folder.path().join("one")).unwrap_err();
    assert_eq!((error.kind(), error.lost_object()), (ErrorKind::Damaged, Some(pack.as_str())), "{error}");
    assert!(files(&folder).is_empty());
}

#[test]
fn swapped_objects_are_noticed() {
    let world = varied(512);
    let folder = TempDir::new().unwrap();
    let [.., one, other] = &world.findings.segments[..] else { panic!() };
    let (one, other) = (one.key.to_string(), other.key.to_string());
    let (a, b) = (world.objects.bytes(&one), world.objects.bytes(&other));
    world.objects.put(&one, b);
    world.objects.put(&other, a);
    let error = restore_to(&world, Target::Latest, &folder.path().join("one")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
}

#[test]
fn refusals_come_through_with_their_neighbours() {
    let world = varied(512);
    let folder = TempDir::new().unwrap();
    let error = restore_to(&world, Target::Time(at(5)), &folder.path().join("one")).unwrap_err();
    assert!(matches!(
        &error,
        RestoreError::Plan(crate::plan::PlanError::NoSuchPoint(NoSuchPoint::BeforeWindow { .. }))
    ));
    assert!(error.nearest().after.is_some());
    assert_eq!(error.kind(), ErrorKind::NoSuchPoint);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn no_single_altered_byte_or_lost_object_ever_gives_a_wrong_file(
        which in any::<prop::sample::Index>(),
        place in any::<prop::sample::Index>(),
        bit in 0u8..8,
        lose in proptest::bool::weighted(0.2),
        target in any::<prop::sample::Index>(),
    ) {
        let world = varied(512);
        let keys = world.objects.keys();
        let key = which.get(&keys);
        let mut bytes = world.objects.remove(key).to_vec();
        if !lose {
            let at = place.index(bytes.len());
            bytes[at] ^= 1 << bit;
            world.objects.put(key, bytes);
        }
        let positions: Vec<Position> = world.images.keys().copied().collect();
        let position = *target.get(&positions);
        let folder = TempDir::new().unwrap();
        let to = folder.path().join("restored");
        match restore_to(&world, Target::Position(position), &to) {
            Ok(_) => prop_assert!(std::fs::read(&to).unwrap() == world.images[&position].1),
            Err(error) => {
                prop_assert_eq!(error.kind(), ErrorKind::Damaged);
                prop_assert!(files(&folder).is_empty());
            }
        }
    }
}

#[test]
fn a_segment_larger_than_a_piece_is_read_in_pieces() {
    let mut world = World::new(PageSize::new(65_536).unwrap(), 2);
    let pages: Vec<(u32, u64)> = (1..400).map(|page| (page, u64::from(page) * 3 + 1)).collect();
    world.commit(400, &pages);
    world.commit(400, &[(5, 1), (6, 2)]);
    world.cut();
    assert!(world.findings.segments.last().unwrap().size > 16 << 20);
    let folder = TempDir::new().unwrap();
    let to = folder.path().join("restored");
    restore_to(&world, Target::Latest, &to).unwrap();
    assert!(std::fs::read(&to).unwrap() == world.images[&world.position()].1);
    // An altered byte in it is noticed, too.
    let key = world.findings.segments.last().unwrap().key.to_string();
    let mut bytes = world.objects.bytes(&key).to_vec();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    world.objects.put(&key, bytes);
    let error = restore_to(&world, Target::Latest, &folder.path().join("two")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
}

#[test]
fn a_page_that_is_never_stored_is_in_no_checksum() {
    static ASKED: AtomicBool = AtomicBool::new(false);
    let world = varied(512);
    let folder = TempDir::new().unwrap();
    let options = Options {
        left_out: |_| {
            ASKED.store(true, Ordering::Relaxed);
            PageNo::new(1 << 21)
        },
        ..options()
    };
    let plan = run(plan(&world.objects, &world.history(), Target::Latest, at(world.now))).unwrap();
    run(apply(&world.objects, &plan, &folder.path().join("one"), &options, quiet(), &Cancel::new())).unwrap();
    assert!(ASKED.load(Ordering::Relaxed));
}

#[test]
fn a_base_amid_a_part_of_the_log_is_gone_around() {
    let mut world = World::new(PageSize::MIN, 10);
    world.commit(10, &[(2, 77)]);
    let state = world.images[&world.position()].0.state;
    world.base_of(state);
    let amid = world.position();
    world.commit(10, &[(3, 78)]);
    world.cut();
    let folder = TempDir::new().unwrap();
    let report = restore_to(&world, Target::Latest, &folder.path().join("one")).unwrap();
    assert_eq!(report.avoided, [world.findings.bases[1].key.to_string()]);
    assert!(std::fs::read(folder.path().join("one")).unwrap() == world.images[&world.position()].1);
    let report = restore_to(&world, Target::Position(amid), &folder.path().join("two")).unwrap();
    assert_eq!(report.avoided, [""; 0]);
}

#[test]
fn when_the_newest_segment_is_damaged_the_one_before_is_not_the_latest() {
    let mut world = World::new(PageSize::MIN, 10);
    for step in 0..3 {
        world.commit(10, &[(2, 70 + step)]);
        world.cut();
    }
    let (last, folder) = (world.findings.segments.last().unwrap().key.to_string(), TempDir::new().unwrap());
    let mut bytes = world.objects.bytes(&last).to_vec();
    let at_end = bytes.len() - 1;
    bytes[at_end] ^= 1;
    world.objects.put(&last, bytes);
    let error = restore_to(&world, Target::Latest, &folder.path().join("one")).unwrap_err();
    assert_eq!(error.lost_object(), Some(last.as_str()), "{error}");
    let error = run(plan(&world.objects, &world.history(), Target::Latest, at(world.now))).unwrap_err();
    assert_eq!(error.lost_object(), Some(last.as_str()), "{error}");
    assert!(files(&folder).is_empty());
}

#[test]
fn a_plan_goes_around_a_damaged_manifest_and_is_told_once_it_is_made() {
    let world = varied(512);
    let history = world.history();
    let direct = run(plan(&world.objects, &history, Target::Latest, at(world.now))).unwrap();
    let key = direct.base.to_string();
    let mut bytes = world.objects.bytes(&key).to_vec();
    bytes[100] ^= 1;
    world.objects.put(&key, bytes);
    let around = run(plan(&world.objects, &history, Target::Latest, at(world.now))).unwrap();
    assert_eq!((around.position, around.state), (direct.position, direct.state));
    assert!(around.base.position < direct.base.position);
    let (told, folder) = (Mutex::new(Vec::new()), TempDir::new().unwrap());
    let (to, options) = (folder.path().join("restored"), options());
    let planned = |plan: &RestorePlan| told.lock().unwrap().push(plan.base);
    let order = Order { planned: &planned, ..order(&world, Target::Latest, &to, &options) };
    let report = run(restore(&world.objects, &history, &order)).unwrap();
    assert_eq!((report.avoided, told.into_inner().unwrap()), (vec![key], vec![around.base]));
}

#[test]
fn a_moment_within_a_damaged_segment_is_told_only_by_those_that_hold_the_same_transactions() {
    let mut world = World::new(PageSize::MIN, 10);
    for step in 0..4 {
        world.commit(10, &[(2, 70 + step)]);
        world.commit(10, &[(3, 80 + step)]);
        world.cut();
    }
    world.repack(2);
    let (wide, target) = (world.findings.segments.last().unwrap().key, Target::Time(at(world.now - 30)));
    let expected = wide.range.first();
    world.objects.remove(&wide.to_string());
    let folder = TempDir::new().unwrap();
    let report = restore_to(&world, target, &folder.path().join("one")).unwrap();
    assert_eq!((report.position.tx, report.avoided), (expected, vec![wide.to_string()]));
    let narrow = world.findings.segments[world.findings.segments.len() - 3].key;
    assert_eq!(narrow.range.first(), expected);
    world.objects.remove(&narrow.to_string());
    let error = restore_to(&world, target, &folder.path().join("two")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    assert_eq!(files(&folder), ["one"]);
}

#[test]
fn of_twins_that_a_broken_off_put_left_the_one_that_the_log_goes_on_from_is_taken() {
    let mut avoided = 0;
    for seed in 0..12 {
        let world = with_twins(seed);
        let folder = TempDir::new().unwrap();
        let report = restore_to(&world, Target::Latest, &folder.path().join("one")).unwrap();
        assert!(std::fs::read(folder.path().join("one")).unwrap() == world.images[&world.position()].1);
        avoided += report.avoided.len();
    }
    assert!(0 < avoided && avoided < 12, "either may come first: {avoided}");
}

#[test]
fn a_segment_that_follows_none_of_the_twins_is_the_one_to_blame() {
    let mut world = with_twins(0);
    let last = world.findings.segments.pop().unwrap();
    let other = with_twins(1).findings.segments.pop().unwrap().key;
    let foreign = with_twins(1).objects.bytes(&other.to_string());
    let key = SegmentKey { digest: other.digest, ..last.key };
    world.findings.segments.push(SegmentEntry { key, ..last });
    world.objects.put(&key, foreign);
    let folder = TempDir::new().unwrap();
    let error = restore_to(&world, Target::Latest, &folder.path().join("one")).unwrap_err();
    assert!(matches!(&error, RestoreError::ChainBroken { segment, .. } if **segment == key), "{error}");
    world.findings.segments.push(last);
    let report = restore_to(&world, Target::Latest, &folder.path().join("one")).unwrap();
    assert!(std::fs::read(folder.path().join("one")).unwrap() == world.images[&world.position()].1);
    assert!(report.avoided.len() <= 2, "{report:?}");
}

#[test]
fn a_wide_segment_that_begins_with_a_needed_base_is_replayed_from_a_later_base_within_it() {
    let mut world = World::new(PageSize::MIN, 10);
    world.commit(10, &[(2, 77)]);
    world.base();
    world.commit(10, &[(3, 78)]);
    world.cut();
    world.group(3);
    assert_eq!(world.findings.segments.len(), 1);
    let folder = TempDir::new().unwrap();
    let report = restore_to(&world, Target::Latest, &folder.path().join("one")).unwrap();
    assert_eq!((report.transactions, report.avoided), (1, Vec::new()));
    assert!(std::fs::read(folder.path().join("one")).unwrap() == world.images[&world.position()].1);
}

#[test]
fn what_comes_after_the_target_in_a_large_segment_is_not_read() {
    let mut world = World::new(PageSize::new(65_536).unwrap(), 2);
    let before = world.commit(2, &[(1, 7)]);
    let pages: Vec<(u32, u64)> = (1..700).map(|page| (page, u64::from(page) * 3 + 1)).collect();
    world.commit(700, &pages);
    world.cut();
    let size = world.findings.segments.last().unwrap().size;
    assert!(size > 40 << 20, "{size}");
    let read = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let told = Arc::clone(&read);
    let progress: ProgressFn = Arc::new(move |progress| told.store(progress.read_bytes, Ordering::Relaxed));
    let folder = TempDir::new().unwrap();
    let (to, options) = (folder.path().join("restored"), options());
    let order = Order { progress, ..order(&world, Target::Position(before), &to, &options) };
    run(restore(&world.objects, &world.history(), &order)).unwrap();
    assert!(std::fs::read(&to).unwrap() == world.images[&before].1);
    assert!(read.load(Ordering::Relaxed) < 10 << 20, "{read:?} bytes of {size}");
}

#[test]
fn a_scratch_file_needs_room_like_a_target() {
    let world = varied(512);
    let folder = TempDir::new().unwrap();
    let plan = run(plan(&world.objects, &world.history(), Target::Latest, at(world.now))).unwrap();
    let (scratch, greedy) =
        (folder.path().join("scratch"), Options { reserve_bytes: Some(u64::MAX), ..options() });
    let rebuilt = run(rebuild_page_hashes(&world.objects, &plan, &scratch, &greedy, &Cancel::new()));
    assert!(matches!(rebuilt, Err(RestoreError::Target(TargetUnfit::NoSpace { .. }))), "{rebuilt:?}");
    assert!(files(&folder).is_empty());
}

//! The laws of resolving and routing, against worlds whose every commit is known.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::error::{ErrorKind, Explain};
use crate::history::testing::{Event, World, at, database, events, position, tx};
use crate::history::{Findings, Flaw, History, Nearest};

fn resolve(world: &World, history: &History, target: Target) -> Result<Point, PlanError> {
    match locate(history, target, Timestamp::MAX)? {
        Located::Exact(point) => Ok(point),
        Located::Within(key, which) => pick(history, &key, which, &world.transactions(&key)),
        Located::AtBase(base) => Ok(Point { position: base.position, time: Timestamp::MIN }),
    }
}

/// Begins with a first commit and its base, as every real history does.
fn begun(more: &[Event]) -> World {
    let mut all = vec![Event::NeedsBase(1, true), Event::Cut];
    all.extend_from_slice(more);
    World::of(&all)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_moment_resolves_to_what_the_database_was(events in events(), with_base in any::<bool>()) {
        let world = if with_base { begun(&events) } else { World::of(&events) };
        let history = world.history();
        prop_assert_eq!(history.flaws(), &[]);
        for time in 0..world.now + 8 {
            let truth = world.state_at(time);
            let found = resolve(&world, &history, Target::Time(at(time)));
            prop_assert_eq!(found.as_ref().ok().map(|point| point.position), truth, "at {}: {:?}", time, found);
            if let Ok(point) = found {
                prop_assert!(point.time <= at(time));
            }
        }
    }

    #[test]
    fn windows_and_gaps_are_exactly_the_known_and_unknown_moments(events in events()) {
        let world = begun(&events);
        let (windows, gaps) = (world.history().windows(), world.history().gaps());
        for time in 0..world.now + 8 {
            let known = windows.iter().any(|w| w.from <= at(time) && at(time) <= w.to);
            prop_assert_eq!(known, world.state_at(time).is_some(), "at {}", time);
        }
        prop_assert_eq!(gaps.len() + 1, windows.len().max(1));
        for (gap, pair) in gaps.iter().zip(windows.windows(2)) {
            prop_assert_eq!((gap.from, gap.to), (pair[0].to, pair[1].from));
        }
    }

    #[test]
    fn refusals_name_restorable_points_on_both_sides(events in events()) {
        let world = begun(&events);
        let history = world.history();
        for time in 0..world.now + 8 {
            let Err(error) = resolve(&world, &history, Target::Time(at(time))) else { continue };
            let Nearest { before, after } = error.nearest();
            let any = !history.windows().is_empty();
            prop_assert_eq!(before.is_some() || after.is_some(), any, "{}", error);
            prop_assert!(before.is_none_or(|point| point.time <= at(time)));
            prop_assert!(after.is_none_or(|point| point.time > at(time)));
            for point in [before, after].into_iter().flatten() {
                prop_assert!(world.rebuilds(point.position), "{} names {:?}", error, point);
            }
            // A log is never stored before its base.
            let no_base = matches!(&error, PlanError::NoSuchPoint(NoSuchPoint::NoBase { .. }));
            let expected = if no_base { ErrorKind::Damaged } else { ErrorKind::NoSuchPoint };
            prop_assert_eq!(error.kind(), expected);
            prop_assert!(error.advice().is_some());
        }
    }

    #[test]
    fn every_commit_has_a_route_exactly_if_it_can_be_rebuilt(events in events()) {
        let world = begun(&events);
        let history = world.history();
        for line in &world.lines {
            for transaction in &line.transactions {
                let asked = Position::new(line.id, transaction.tx);
                let found = resolve(&world, &history, Target::Position(asked));
                prop_assert_eq!(found.is_ok(), world.rebuilds(asked));
                if found.is_ok() {
                    prop_assert_eq!(found.unwrap(), Point { position: asked, time: transaction.time });
                }
                match route(&history, asked) {
                    Ok(route) => check_route(&world, &route, asked)?,
                    Err(_) => prop_assert!(!world.rebuilds(asked)),
                }
            }
        }
    }

    #[test]
    fn with_segments_missing_a_moment_resolves_right_or_not_at_all(
        events in events(),
        lost in proptest::collection::btree_set(0usize..30, 1..4),
    ) {
        let mut world = begun(&events);
        let mut at_index = 0;
        world.findings.segments.retain(|_| { at_index += 1; !lost.contains(&(at_index - 1)) });
        let history = world.history();
        for time in 0..world.now + 8 {
            let Ok(point) = resolve(&world, &history, Target::Time(at(time))) else { continue };
            let truth = world.known_at(time).unwrap();
            // What is cut off at the end without a trace is told by its time alone, to the microsecond.
            let committed = world.time_of(truth);
            let told = committed > point.time && committed < at(time);
            prop_assert!(point.position == truth || !told, "at {}: {:?}, not {}", time, point, truth);
            let route = route(&history, point.position);
            prop_assert!(route.is_ok(), "{:?}", route);
            check_route(&world, &route.unwrap(), point.position)?;
        }
    }
}

/// Base and segments join without a gap, end with the target, and cross no state that needs a base.
fn check_route(world: &World, route: &Route, target: Position) -> Result<(), TestCaseError> {
    let target = world.own(target);
    let mut reached = world.own(route.base.key.position);
    for (at, entry) in route.segments.iter().enumerate() {
        let key = entry.key;
        let on_base = key.flags.needs_base && key.range.first() == reached.tx;
        // A replay may begin amid a segment where the timeline's own writer made a base.
        let amid =
            at == 0 && route.base.key.position.timeline == key.timeline && key.range.contains(reached.tx);
        let on_base = on_base || amid;
        prop_assert!(on_base || key.range.first() == reached.tx.next(), "{} after {}", key, reached);
        prop_assert!(on_base || !key.flags.needs_base);
        if let Some(before) = key.range.first().previous().filter(|_| !on_base) {
            prop_assert_eq!(world.own(Position::new(key.timeline, before)), reached);
        }
        // A timeline may have left its parent in the middle of a segment.
        let next = route.segments.get(at + 1).filter(|next| next.key.timeline != key.timeline);
        let until = next.and_then(|next| next.key.range.first().previous()).unwrap_or(key.range.last());
        reached = Position::new(key.timeline, until);
    }
    prop_assert_eq!(reached.timeline, target.timeline);
    prop_assert!(target.tx <= reached.tx);
    Ok(())
}

fn error_of(world: &World, target: Target, now: i64) -> NoSuchPoint {
    match locate(&world.history(), target, at(now)) {
        Err(PlanError::NoSuchPoint(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_refusal_has_its_name_and_its_neighbours() {
    // Commit 1 at 11, 2 at 14, known until 16, gap, 3 at 20, seen at 25.
    let world = begun(&[Event::Commit(3), Event::Gap(2, 4), Event::Mark(5)]);
    let names = |time, now| {
        let error = error_of(&world, Target::Time(at(time)), now);
        let name = |point: Option<Point>| point.map(|point| point.position.tx.get());
        (error.name(), name(error.nearest().before), name(error.nearest().after))
    };
    assert_eq!(names(40, 30), ("future", Some(3), None));
    assert_eq!(names(5, 30), ("before_window", None, Some(1)));
    assert_eq!(names(17, 30), ("in_gap", Some(2), Some(3)));
    assert_eq!(names(26, 30), ("not_known_yet", Some(3), None));
    let unknown = error_of(&world, Target::Position(position("1/9")), 30);
    assert_eq!(unknown.name(), "unknown_position");
    assert_eq!(unknown.nearest().before.unwrap().position, position("1/3"));
    assert!(unknown.advice().unwrap().contains("--position 1/0000000000000003"));
    assert_eq!(error_of(&World::of(&[]), Target::Latest, 30).name(), "no_history");
    assert_eq!(error_of(&World::of(&[Event::Commit(1)]), Target::Latest, 30).name(), "no_base");
}

#[test]
fn a_live_daemons_word_extends_what_is_known() {
    let mut world = begun(&[Event::Commit(3)]);
    assert_eq!(error_of(&world, Target::Time(at(20)), 30).name(), "not_known_yet");
    world.findings.seen.push(crate::history::Seen { position: position("1/2"), time: at(30) });
    let found = locate(&world.history(), Target::Time(at(20)), at(30)).unwrap();
    assert_eq!(found, Located::Exact(Point { position: position("1/2"), time: at(14) }));
}

#[test]
fn a_position_at_or_before_the_fork_point_is_the_parents() {
    let world = begun(&[Event::Commit(3), Event::Commit(3), Event::Fork(1, 4), Event::Commit(2)]);
    let history = world.history();
    for (asked, own) in [("2/1", "1/1"), ("2/2", "1/2"), ("2/3", "2/3"), ("1/3", "1/3")] {
        let found = resolve(&world, &history, Target::Position(position(asked))).unwrap();
        assert_eq!(found.position, position(own));
    }
    // The old timeline's third commit was the state before the new timeline took over.
    assert_eq!(resolve(&world, &history, Target::Time(at(17))).unwrap().position, position("1/3"));
    assert_eq!(resolve(&world, &history, Target::Time(at(22))).unwrap().position, position("1/2"));
    assert_eq!(resolve(&world, &history, Target::Latest).unwrap().position, position("2/3"));
}

#[test]
fn a_hole_is_named_and_not_stepped_over() {
    let mut world = begun(&[Event::Commit(3), Event::Cut, Event::Commit(3), Event::Cut, Event::Commit(3)]);
    world.findings.segments.remove(2);
    let history = world.history();
    assert!(matches!(history.flaws(), [Flaw::Hole { missing, .. }] if missing.first() == tx(3)));
    for target in
        [Target::Time(at(18)), Target::Time(at(20)), Target::Position(position("1/4")), Target::Latest]
    {
        let error = locate(&history, target, at(30)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{target}");
        assert!(error.to_string().contains("transaction 0000000000000003 is missing"), "{error}");
        assert_eq!(error.nearest().before.map(|point| point.position), Some(position("1/2")), "{target}");
    }
    assert!(locate(&history, Target::Position(position("1/2")), at(30)).is_ok());
}

#[test]
fn a_cut_off_end_is_noticed_if_a_daemon_vouched_for_it() {
    let mut world = begun(&[Event::Commit(3), Event::Cut, Event::Commit(3), Event::Mark(1)]);
    world.findings.segments.pop();
    let error = locate(&world.history(), Target::Latest, at(30)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.to_string().contains("at its end"), "{error}");
}

#[test]
fn a_lost_wide_segment_or_base_is_gone_around() {
    let world = begun(&[
        Event::Commit(3),
        Event::Cut,
        Event::Commit(3),
        Event::Cut,
        Event::Repack(2, true),
        Event::Base,
        Event::Commit(1),
    ]);
    let history = world.history();
    let target = position("1/4");
    let direct = route(&history, target).unwrap();
    assert_eq!((direct.base.key.position, direct.segments.len()), (position("1/3"), 1));
    let lost_base = BTreeSet::from([direct.base.key.to_string()]);
    let around = route(&history.without(&BTreeSet::new(), &lost_base), target).unwrap();
    assert_eq!((around.base.key.position, around.segments.len()), (position("1/1"), 2));
    let wide = around.segments.iter().find(|entry| entry.key.range.count() == 2).unwrap();
    let lost = BTreeSet::from([wide.key.to_string()]);
    let narrow = route(&history.without(&lost, &lost_base), target).unwrap();
    assert_eq!(narrow.segments.len(), 3);
}

#[test]
fn foreign_and_senseless_findings_are_flaws_not_failures() {
    let mut world = begun(&[Event::Commit(3), Event::Cut, Event::Commit(1), Event::Cut, Event::Commit(1)]);
    let mut stray = world.findings.segments[0];
    stray.key.timeline = crate::ids::TimelineId::new(9).unwrap();
    let mut overlap = world.findings.segments[2];
    overlap.key.range = crate::ids::TxRange::new(tx(2), tx(3)).unwrap();
    let mut straddling = overlap;
    straddling.key.range = crate::ids::TxRange::new(tx(3), tx(4)).unwrap();
    let mut base = world.findings.bases[0];
    base.key.database = DatabaseId::from_bytes([9; 8]);
    let mut foreign = world.findings.segments[0];
    foreign.key.database = DatabaseId::from_bytes([9; 8]);
    world.findings.segments.extend([stray, overlap, straddling, foreign]);
    world.findings.bases.push(base);
    let history = world.history();
    let flaws = history.flaws();
    assert!(flaws.contains(&Flaw::Unclaimed(stray.key.timeline)), "{flaws:?}");
    assert!(flaws.contains(&Flaw::StraySegment(foreign.key)), "{flaws:?}");
    assert!(flaws.iter().any(|flaw| matches!(flaw, Flaw::StrayBase(_))), "{flaws:?}");
    assert!(flaws.iter().any(|flaw| matches!(flaw, Flaw::Overlap(..))), "{flaws:?}");
    assert!(route(&history, position("1/4")).is_ok());
}

#[test]
fn a_history_whose_claims_are_lost_is_damaged_and_says_so_once_for_each() {
    let mut world = begun(&[Event::Commit(3), Event::Cut, Event::Commit(1), Event::Cut, Event::Commit(1)]);
    let lost = Flaw::Unclaimed(world.findings.timelines[0].id);
    world.findings.timelines.clear();
    let history = world.history();
    assert_eq!(
        history.flaws(),
        std::slice::from_ref(&lost),
        "with {} segments",
        world.findings.segments.len()
    );
    for target in [Target::Latest, Target::Time(at(1))] {
        let error = locate(&history, target, Timestamp::MAX).unwrap_err();
        assert!(matches!(&error, PlanError::Missing { missing, .. } if **missing == lost), "{error:?}");
    }
    let error = locate(&history, Target::Position(position("1/1")), Timestamp::MAX).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
}

/// Commit 1 at 11, 2 at 14, 3 at 17; a fork from 2, claimed at 21, its first commit at 23, a mark at 24.
fn forked() -> World {
    begun(&[
        Event::Commit(3),
        Event::Cut,
        Event::Commit(3),
        Event::Fork(1, 4),
        Event::Commit(2),
        Event::Cut,
        Event::Mark(1),
    ])
}

#[test]
fn from_the_first_sign_of_life_of_a_timeline_without_a_claim_on_no_older_one_answers() {
    let lost = Flaw::Unclaimed(crate::ids::TimelineId::FIRST.next());
    for left in ["log and mark", "log", "mark"] {
        let mut world = forked();
        let first_sign = if left == "mark" { 24 } else { 23 };
        world.findings.timelines.pop();
        if left == "mark" {
            world.findings.segments.retain(|entry| entry.key.timeline != lost_timeline(&lost));
        }
        if left == "log" {
            world.findings.seen.clear();
        }
        // The old writer is still there, and says that nothing happened.
        world.findings.seen.push(crate::history::Seen { position: position("1/3"), time: at(40) });
        let history = world.history();
        assert_eq!(history.flaws(), std::slice::from_ref(&lost), "{left}");
        for target in [Target::Latest, Target::Time(at(first_sign)), Target::Time(at(30))] {
            let error = locate(&history, target, at(50)).unwrap_err();
            assert!(
                matches!(&error, PlanError::Missing { missing, .. } if **missing == lost),
                "{left}: {error}"
            );
            assert_eq!(error.nearest().before.map(|point| point.position), Some(position("1/3")), "{left}");
        }
        let before = locate(&history, Target::Time(at(first_sign - 1)), at(50)).unwrap();
        assert_eq!(before, Located::Exact(Point { position: position("1/3"), time: at(17) }), "{left}");
        assert_eq!(history.newest(), None, "{left}");
    }
}

#[test]
fn what_was_committed_on_a_line_after_it_was_left_makes_the_latest_uncertain() {
    let first = crate::ids::TimelineId::FIRST;
    let latest = |last: i64| {
        let mut world = forked();
        let old = world.findings.segments.iter_mut().filter(|entry| entry.key.timeline == first);
        old.max_by_key(|entry| entry.key.range.last()).unwrap().key.to = at(last);
        locate(&world.history(), Target::Latest, at(5_000_000))
    };
    let on_the_main_line = Located::Exact(Point { position: position("2/3"), time: at(23) });
    for same in [17, 23, 1_000_023] {
        assert_eq!(latest(same), Ok(on_the_main_line), "two daemons may have seen the same commit");
    }
    let mut world = forked();
    world.findings.segments.iter_mut().for_each(|entry| {
        if entry.key.timeline == first && entry.key.range.contains(tx(3)) {
            entry.key.to = at(2_000_000);
        }
    });
    let mut taken = world.findings.timelines[1].clone();
    (taken.id, taken.parent) = (taken.id.next(), Some(position("1/3")));
    world.findings.timelines.push(taken);
    let found = locate(&world.history(), Target::Latest, at(5_000_000));
    let taken_back = Located::Exact(Point { position: position("1/3"), time: at(2_000_000) });
    assert_eq!(found, Ok(taken_back), "the newest timeline goes on from there");
    let error = latest(1_000_024).unwrap_err();
    let PlanError::NoSuchPoint(NoSuchPoint::TwoLatest { main, other }) = &error else { panic!("{error}") };
    assert_eq!((main.position, other.position), (position("2/3"), position("1/3")));
    assert!(error.advice().unwrap().contains("--position 1/0000000000000003"), "{:?}", error.advice());
}

fn lost_timeline(flaw: &Flaw) -> crate::ids::TimelineId {
    match flaw {
        Flaw::Unclaimed(timeline) => *timeline,
        other => panic!("{other}"),
    }
}

#[test]
fn a_number_that_claims_pass_over_is_a_lost_claim() {
    let mut world = forked();
    for timeline in &mut world.findings.timelines {
        if timeline.parent.is_some() {
            timeline.id = crate::ids::TimelineId::new(4).unwrap();
        }
    }
    world.findings.segments.retain(|entry| entry.key.timeline == crate::ids::TimelineId::FIRST);
    world.findings.seen.clear();
    let lost = [2, 3].map(|number| Flaw::Unclaimed(crate::ids::TimelineId::new(number).unwrap()));
    assert_eq!(world.history().flaws(), lost);
}

#[test]
fn a_known_moment_is_known_also_to_a_clock_that_lags() {
    let world = begun(&[Event::Commit(3), Event::Mark(5)]);
    let found = locate(&world.history(), Target::Time(at(18)), at(15)).unwrap();
    assert_eq!(found, Located::Exact(Point { position: position("1/2"), time: at(14) }));
    assert_eq!(error_of(&world, Target::Time(at(28)), 20).name(), "future");
}

#[test]
fn nothing_at_all_is_a_history_too() {
    let history = History::build(database(), Findings::default());
    assert_eq!((history.windows(), history.gaps(), history.newest()), (vec![], vec![], None));
}

//! Crash loops: how long a set that died is waited for, and what each death is put down to.

use super::*;

/// For how long a respawn is waited for after each of three deaths at once after another.
fn waits(story: &mut Story, from: u64) -> Vec<Duration> {
    let mut waits = Vec::new();
    for generation in from..from + 3 {
        story.dies(generation, ExitKind::Signal(11));
        let wait = match spawns(&story.log).last() {
            Some((last, _)) if *last == generation + 1 => Duration::ZERO,
            _ => story.state.next_deadline().expect("a respawn") - story.now,
        };
        story.wait(wait);
        story.up(generation + 1);
        waits.push(wait);
    }
    waits
}

fn note_of_crash(actions: &[Action]) -> Option<(u64, Option<Duration>)> {
    actions.iter().find_map(|action| match action {
        Action::Note(Note::Crashed { generation, respawn_in, .. }) => Some((generation.0, *respawn_in)),
        _ => None,
    })
}

#[test]
fn chance_shortens_a_wait_by_up_to_a_quarter_and_only_with_a_seed() {
    let whole = [0, 200, 400].map(Duration::from_millis);
    assert_eq!(waits(&mut Story::serving(), 1), whole, "without a seed there is no chance");
    let mut all = std::collections::BTreeSet::new();
    for seed in 1..100 {
        let mut story = Story::serving();
        story.state = story.state.with_seed(seed << 20);
        let waits = waits(&mut story, 1);
        for (wait, whole) in waits.iter().zip(whole) {
            assert!(*wait >= whole * 3 / 4 && *wait <= whole, "{waits:?}");
        }
        all.insert(waits);
    }
    assert_eq!(all.len(), 99, "no two servers come back at the same moments");
}

#[test]
fn the_chance_is_that_of_marsaglias_xorshift() {
    // The seed of his paper. Its first numbers: 8748534153485358512, for a wait of nothing; 3040900993826735515, which is 411
    // modulo 1024, and 3453997556048239312, which is 720: so many 4096ths are taken off.
    let mut story = Story::serving();
    story.state = story.state.with_seed(88_172_645_463_325_252);
    let nanos: Vec<u128> = waits(&mut story, 1).iter().map(Duration::as_nanos).collect();
    let (second, third) = (200_000_000, 400_000_000);
    assert_eq!(nanos, [0, second - second * 411 / 4096, third - third * 720 / 4096]);
}

#[test]
fn a_set_that_begins_to_die_after_a_long_life_is_waited_for_as_any_other() {
    let mut story = Story::serving();
    story.wait(Duration::from_secs(3600));
    assert_eq!(waits(&mut story, 1), [0, 200, 400].map(Duration::from_millis), "only its own life counts");
}

#[test]
fn one_that_dies_while_it_drains_is_counted_and_nothing_comes_back_for_it() {
    let mut story = Story::serving();
    story.reload(1);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.up(2);
    story.says(1, ToMaster::Paused);
    let actions = story.dies(1, ExitKind::Signal(11));
    assert_eq!((note_of_crash(&actions), spawns(&actions)), (Some((1, None)), vec![]));
    assert_eq!((story.state.crashes(), story.serving_generation()), (1, Some(2)));
}

#[test]
fn what_only_stands_in_is_counted_when_it_dies_but_no_respawn_waits_for_longer() {
    // Generation 2, which is to bring the set back, loads for ever; generation 3 stands in.
    let mut story = Story::serving();
    story.dies(1, ExitKind::Signal(11));
    story.spawned(2);
    story.says(2, hello());
    story.wait(Duration::from_secs(10));
    story.up(3);
    let actions = story.dies(3, ExitKind::Signal(11));
    assert_eq!((note_of_crash(&actions), story.state.crashes()), (Some((3, None)), 2));
    let actions = story.dies(2, ExitKind::Signal(11));
    assert_eq!(note_of_crash(&actions), Some((2, Some(Duration::from_millis(200)))), "the second in a row");
}

#[test]
fn what_comes_back_says_whose_death_it_answers_and_a_start_is_none() {
    let cause = |story: &Story| story.state.generations(story.now)[0].cause.clone();
    let mut story = Story::serving();
    assert_eq!(cause(&story), Cause::Start);
    story.dies(1, ExitKind::Signal(9));
    assert_eq!(cause(&story), Cause::Crash { of: Generation(1) });

    // Nothing has crashed where the first set could not even be read.
    let mut story = Story::new();
    story.state.bad_start = BadStart::ServeEmpty;
    story.ask(Cause::Start, None);
    assert_eq!(spawns(&story.prepared(1, Err(Failure::new(Stage::Snapshot, "x")))), [(1, 0)]);
    assert_eq!(cause(&story), Cause::Start);
}

//! The checker of the invariants: it tells of every way in which a state can be broken, which no story can show, and lets pass
//! what only looks like it.

use super::*;

type Breaks = fn(&mut State);

/// One more generation, which has come to `phase` somehow.
fn one(state: &mut State, phase: Phase) -> Generation {
    one_of(state, phase, info(1, &["hello"]))
}

fn one_of(state: &mut State, phase: Phase, set: Arc<SetInfo>) -> Generation {
    let number = state.start(set, Cause::Start);
    state.enter(number, phase, None);
    number
}

fn add<const COUNT: usize>(state: &mut State, phases: [Phase; COUNT]) {
    for phase in phases {
        one(state, phase);
    }
}

fn is_put_into(state: &mut State, phase: Phase) {
    state.enter(Generation(1), phase, None);
}

/// What the checker says of a state in which generation 1 serves, once `breaks` has been at it.
fn says(breaks: Breaks) -> Result<(), String> {
    let mut story = Story::serving();
    breaks(&mut story.state);
    story.state.check()
}

/// The same, where a cold operation has stopped what served: generation 2 is the candidate, and alone.
fn says_when_stopped(breaks: Breaks) -> Result<(), String> {
    let mut story = Story::stopped();
    breaks(&mut story.state);
    story.state.check()
}

#[test]
fn two_that_stand_by_are_one_too_many() {
    let broken: [Breaks; 3] = [
        |state| add(state, [Phase::Standby, Phase::Standby]),
        |state| add(state, [Phase::Pausing, Phase::Pausing]),
        |state| add(state, [Phase::Standby, Phase::Pausing]),
    ];
    for breaks in broken {
        assert_eq!(says(breaks).unwrap_err(), "two generations stand by");
    }
    let sound: [Breaks; 2] = [|state| add(state, [Phase::Standby]), |state| add(state, [Phase::Pausing])];
    for breaks in sound {
        assert_eq!(says(breaks), Ok(()));
    }
}

#[test]
fn two_that_are_committed_are_one_too_many() {
    let broken: [Breaks; 3] = [
        |state| add(state, [Phase::Serving]),
        |state| add(state, [Phase::Resuming]),
        |state| {
            is_put_into(state, Phase::Resuming);
            add(state, [Phase::Resuming]);
        },
    ];
    for breaks in broken {
        assert_eq!(says(breaks).unwrap_err(), "two generations are committed");
    }
}

#[test]
fn the_one_that_is_committed_serves_unless_the_end_has_begun() {
    let broken = says(|state| state.committed = None).unwrap_err();
    assert_eq!(broken, "committed is None, but Some(Generation(1)) serves");
    let broken = says(|state| is_put_into(state, Phase::Retiring)).unwrap_err();
    assert_eq!(broken, "committed is Some(Generation(1)), but None serves");
    assert_eq!(says(|state| is_put_into(state, Phase::Resuming)), Ok(()));
    let mut story = Story::serving();
    story.term();
    story.state.committed = Some(Generation(1));
    assert_eq!(story.state.check(), Ok(()), "it retires");
}

#[test]
fn no_more_accept_than_a_switch_needs() {
    let broken: [(Breaks, [usize; 3]); 3] = [
        (|state| add(state, [Phase::Committing, Phase::Committing]), [2, 1, 0]),
        (|state| add(state, [Phase::Committing, Phase::Pausing]), [1, 1, 1]),
        (
            |state| {
                is_put_into(state, Phase::Pausing);
                state.committed = None;
            },
            [0, 0, 1],
        ),
    ];
    for (breaks, [committing, serving, pausing]) in broken {
        assert_eq!(says(breaks).unwrap_err(), format!("too many accept: ({committing}, {serving}, {pausing})"));
    }
    let sound: [Breaks; 2] = [
        // What stands in goes before it has said that it serves.
        |state| {
            add(state, [Phase::Committing]);
            one_of(state, Phase::Committing, info(0, &[]));
        },
        // Whoever began to accept before the end did is told to go, one by one.
        |state| {
            add(state, [Phase::Committing, Phase::Pausing]);
            state.step(asked_to_end(), Time::ZERO);
            is_put_into(state, Phase::Serving);
        },
    ];
    for breaks in sound {
        assert_eq!(says(breaks), Ok(()));
    }
}

fn asked_to_end() -> Event {
    let cause = Cause::Signal { signal: "SIGTERM".into(), sender: 1 };
    Event::Asked { verb: Verb::Shutdown, cause, options: OpOptions::default(), caller: None }
}

#[test]
fn nothing_serves_beside_what_a_cold_operation_has_stopped() {
    assert_eq!(says_when_stopped(|_| {}), Ok(()));
    let broken: [Breaks; 2] = [
        |state| state.committed = Some(one(state, Phase::Serving)),
        |state| state.committed = Some(one(state, Phase::Resuming)),
    ];
    for breaks in broken {
        assert_eq!(says_when_stopped(breaks).unwrap_err(), "something serves beside what was stopped");
    }
    let broken = says_when_stopped(|state| add(state, [Phase::Standby])).unwrap_err();
    assert_eq!(broken, "something serves beside what was stopped");
    let broken = says_when_stopped(|state| {
        state.committed = Some(one(state, Phase::Serving));
        add(state, [Phase::Pausing]);
    });
    assert_eq!(broken.unwrap_err(), "something serves beside what was stopped");
}

#[test]
fn a_candidate_of_a_cold_operation_is_alone() {
    let broken = says_when_stopped(|state| add(state, [Phase::Retiring])).unwrap_err();
    assert_eq!(broken, "two processes live in a cold operation");
    let sound = says_when_stopped(|state| {
        is_put_into(state, Phase::Retiring);
        add(state, [Phase::Retiring]);
        state.candidate = None;
    });
    assert_eq!(sound, Ok(()), "those that are waited for");
}

#[test]
fn where_nothing_serves_something_is_on_its_way_or_all_ends() {
    fn nothing(state: &mut State) {
        state.generations.clear();
        state.committed = None;
    }
    assert_eq!(says(nothing).unwrap_err(), "nothing serves and nothing is on its way");
    let sound: [Breaks; 3] = [
        |state| state.respawn = Some(Respawn { at: Time::ZERO, of: Generation(1) }),
        |state| state.ending = Some(Exit::Drained),
        |state| state.set = None,
    ];
    for sound in sound {
        let mut story = Story::serving();
        nothing(&mut story.state);
        sound(&mut story.state);
        assert_eq!(story.state.check(), Ok(()));
    }
}

#[test]
fn a_candidate_has_not_served_yet() {
    let broken: [Breaks; 2] =
        [|state| state.candidate = Some(Generation(7)), |state| state.candidate = Some(Generation(1))];
    for breaks in broken {
        assert_eq!(says(breaks).unwrap_err(), "the candidate is none");
    }
    assert_eq!(says(|state| state.candidate = Some(one(state, Phase::Committing))), Ok(()));
}

#[test]
fn nobody_waits_for_a_turn_that_will_not_come() {
    let broken = says(|state| {
        state.settings.shutdown.delay = Duration::from_secs(5);
        state.step(asked_to_end(), Time::ZERO);
        let op = state.new_operation(Verb::Reload, Cause::Start, OpOptions::default(), None);
        state.waiting = Some(op);
    });
    assert_eq!(broken.unwrap_err(), "an operation waits for its turn, and none will come");
}

#[test]
#[should_panic(expected = "broken invariant: two generations are committed")]
fn a_step_that_leaves_the_state_broken_does_not_go_on() {
    let mut story = Story::serving();
    add(&mut story.state, [Phase::Serving]);
    story.wait(Duration::ZERO);
}

//! What is said of a candidate that died or spoke out of turn: where it stood, whose fault it was, and that what serves is not touched.

use super::*;

/// Generation 1 serves, and a reload has started generation 2.
fn reloading() -> Story {
    let mut story = Story::serving();
    story.reload(7);
    story.prepared(2, Ok(info(2, &["hello"])));
    story.spawned(2);
    story
}

fn unexpected(actions: &[Action]) -> Vec<(u64, &str)> {
    let of = |action| match action {
        &Action::Note(Note::Unexpected { generation, ref what, .. }) => Some((generation.0, what.as_str())),
        _ => None,
    };
    actions.iter().filter_map(of).collect()
}

#[test]
fn a_refusal_says_where_the_child_died_and_names_a_plugin_only_if_its_init_ran() {
    let loading = || ToMaster::Loading { plugin: "hello".into() };
    let endings: [(Vec<ToMaster>, Stage, Option<&str>, &str); 6] = [
        (vec![], Stage::Spawn, None, "keep the new child alive: it ended with SIGSEGV"),
        (vec![hello()], Stage::Load, None, "keep the new child alive: it ended with SIGSEGV"),
        (
            vec![hello(), loading()],
            Stage::Load,
            Some("hello"),
            "survive the init of hello: the child ended with SIGSEGV",
        ),
        (
            vec![hello(), loading(), ToMaster::Proving],
            Stage::Prove,
            None,
            "survive its probes: the child ended with SIGSEGV",
        ),
        (
            vec![hello(), loading(), ToMaster::Ready],
            Stage::Switch,
            None,
            "keep the new child alive: it ended with SIGSEGV",
        ),
        (
            vec![hello(), loading(), ToMaster::Proving, ToMaster::Ready],
            Stage::Switch,
            None,
            "keep the new child alive: it ended with SIGSEGV",
        ),
    ];
    for (says, stage, plugin, error) in endings {
        let mut story = reloading();
        for message in says {
            story.says(2, message);
        }
        story.dies(2, ExitKind::Signal(11));
        let answer = story.answer(7);
        assert_eq!(
            (answer.result, answer.stage, answer.plugin.as_deref(), answer.error.as_deref()),
            (OpResult::Refused, Some(stage), plugin, Some(error))
        );
        assert_eq!((answer.detail.as_deref(), answer.serving), (Some("last words"), Some(Generation(1))));
    }
}

#[test]
fn a_candidate_that_speaks_out_of_turn_is_killed_and_refused_with_what_it_said() {
    let steps: [(Vec<ToMaster>, ToMaster, &str); 3] = [
        (vec![], ToMaster::Serving, "SERVING while Starting"),
        (vec![hello()], ToMaster::Paused, "PAUSED while Loading"),
        (vec![hello(), ToMaster::Proving], ToMaster::Proving, "PROVING while Proving"),
    ];
    for (says, wrong, what) in steps {
        let mut story = reloading();
        for message in says {
            story.says(2, message);
        }
        let actions = story.says(2, wrong);
        assert!(kills(&actions, 2), "{actions:?}");
        assert_eq!(unexpected(&actions), [(2, what)]);
        let answer = story.answer(7);
        let error = format!("follow the control protocol: it sent {what}");
        assert_eq!((answer.stage, answer.error.as_ref()), (Some(Stage::Spawn), Some(&error)));
        assert_eq!(story.serving_generation(), Some(1));
    }
}

#[test]
fn from_go_on_a_message_out_of_turn_is_only_noted() {
    let mut story = reloading();
    story.says(2, hello());
    story.says(2, ToMaster::Ready);
    let actions = story.says(2, ToMaster::Proving);
    assert!(!kills(&actions, 2), "it may have accepted already: {actions:?}");
    assert_eq!(unexpected(&actions), [(2, "PROVING while Committing")]);
    story.says(2, ToMaster::Serving);
    story.says(1, ToMaster::Paused);
    assert_eq!(story.answer(7).result, OpResult::Switched);
    story.wait(Duration::from_secs(1));
    let actions = story.says(2, ToMaster::Paused);
    assert_eq!((actions.len(), unexpected(&actions)), (1, vec![(2, "PAUSED while Serving")]));
}

#[test]
fn messages_out_of_turn_are_noted_once_a_second() {
    let mut story = Story::serving();
    let left_out = |actions: &[Action]| match actions {
        [Action::Note(Note::Unexpected { left_out, .. })] => Some(*left_out),
        [] => None,
        other => panic!("{other:?}"),
    };
    assert_eq!(left_out(&story.says(1, ToMaster::Paused)), Some(0));
    for _ in 0..1000 {
        assert_eq!(left_out(&story.says(1, ToMaster::Ready)), None);
    }
    story.wait(Duration::from_secs(1));
    assert_eq!(left_out(&story.says(1, ToMaster::Paused)), Some(1000));
}

#[test]
fn a_plugin_outside_of_the_set_is_not_named_as_loading() {
    let mut story = reloading();
    story.says(2, hello());
    let actions = story.says(2, ToMaster::Loading { plugin: "stranger".into() });
    assert!(kills(&actions, 2), "{actions:?}");
    assert_eq!(story.answer(7).plugin, None);
}

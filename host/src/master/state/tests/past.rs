//! What is remembered of sets that have served: how many may be gone back to, which of them the loop must still have, what is
//! held back of those that were given up, and until when.

use super::rollback::{again, file, source, whole};
use super::*;
use crate::report::{Change, Why};

/// Set `id`; its configuration has `keep` as `store.keep`.
fn kept(id: u64, keep: usize) -> Arc<SetInfo> {
    let mut set = (*info(id, &["hello"])).clone();
    set.settings.keep = keep;
    Arc::new(set)
}

/// Set `id` of files that change one by one: their plugins' names, and which content of it.
fn mixed(id: u64, plugins: &[(&str, u64)]) -> Arc<SetInfo> {
    let names: Vec<&str> = plugins.iter().map(|(name, _)| *name).collect();
    let mut set = (*info(id, &names)).clone();
    for (plugin, (name, of)) in set.plugins.iter_mut().zip(plugins) {
        plugin.sha256 = format!("{name} {of}");
    }
    Arc::new(set)
}

/// Set `id`: the plugin of set `of` under `config`.
fn with_config(id: u64, of: u64, config: &str) -> Arc<SetInfo> {
    let sha256 = format!("set {of} {config}");
    Arc::new(SetInfo { sha256, config: config.into(), ..(*again(of, id)).clone() })
}

impl Story {
    /// Generation 1 serves `set`.
    fn starting_with(set: Arc<SetInfo>) -> Story {
        let mut story = Story::new();
        story.ask(Cause::Start, None);
        story.prepared(1, Ok(set));
        story.up(1);
        story
    }

    /// Operation `op` puts `set` in the place of generation `from`, which ends.
    fn takes(&mut self, op: u64, set: Arc<SetInfo>, from: u64) {
        self.prepared(op, Ok(set));
        self.up(from + 1);
        self.says(from, ToMaster::Paused);
        self.leaves(from);
        assert_eq!(self.serving_generation(), Some(from + 1));
    }

    fn force(&mut self, caller: u64) -> Vec<Action> {
        self.ask_with(Verb::Reload, OpOptions { force: true, ..OpOptions::default() }, caller)
    }

    fn ask_with(&mut self, verb: Verb, options: OpOptions, caller: u64) -> Vec<Action> {
        let cause = Cause::Admin { peer: "test".into() };
        self.event(Event::Asked { verb, cause, options, caller: Some(Caller(caller)) })
    }

    fn held(&self) -> Vec<Change> {
        self.written.held.iter().map(|(change, _)| change.clone()).collect()
    }

    fn has(&self, set: u64) -> bool {
        self.state.sets_in_use().any(|one| one == SetId(set))
    }
}

#[test]
fn as_many_sets_are_kept_beside_the_last_two_as_the_configuration_says() {
    for keep in [0, 1, 3] {
        let mut story = Story::starting_with(kept(1, keep));
        for at in 1..=6 {
            story.reload(at);
            story.takes(at + 1, kept(at + 1, keep), at);
        }
        let oldest = 7 - 1 - keep as u64;
        assert!(story.has(oldest) && !story.has(oldest - 1), "{keep}");
        story.rollback(7, Some(oldest - 1));
        assert_eq!(story.answer(7).result, OpResult::Refused);
        let goes_back = story.rollback(8, Some(oldest));
        assert!(
            matches!(source(&goes_back), Some(Source::Again { set, .. }) if *set == SetId(oldest)),
            "{goes_back:?}"
        );
    }
}

#[test]
fn what_a_rollback_goes_back_to_is_kept_until_it_has_though_a_switch_before_it_takes_its_place() {
    let mut story = Story::starting_with(kept(1, 0));
    story.reload(1);
    story.takes(2, kept(2, 0), 1);
    story.reload(2);
    story.prepared(3, Ok(kept(3, 0)));
    story.ready(3);
    // It may have accepted already: the rollback comes after it.
    story.rollback(3, Some(1));
    story.says(3, ToMaster::Serving);
    assert!(story.has(1), "the rollback waits");
    let begins = story.says(2, ToMaster::Paused);
    let within = Within::Set(SetId(3));
    assert_eq!(source(&begins), Some(&Source::Again { set: SetId(1), within }), "in what serves by now");
    assert!(story.has(1), "it has begun, and the set is still being made");
    let back = Arc::new(SetInfo { id: SetId(10), ..(*kept(1, 0)).clone() });
    story.takes(4, back, 3);
    assert!(!story.has(1), "its content serves as another set");
    assert!(story.has(10));
}

#[test]
fn the_addresses_of_what_is_about_to_be_started_are_open_already() {
    let mut story = Story::serving();
    story.dies(1, ExitKind::Signal(9));
    story.reload(1);
    let accepting = |story: &Story| story.state.sets_accepting().any(|set| set == SetId(2));
    assert!(!accepting(&story) && !story.has(2));
    assert_eq!(spawns(&story.prepared(2, Ok(info(2, &["hello"])))), [], "the respawn comes first");
    assert!(accepting(&story) && story.has(2));
}

#[test]
fn only_the_plugins_that_changed_are_held_back() {
    let mut story = Story::starting_with(mixed(1, &[("a", 1), ("b", 1)]));
    story.reload(1);
    story.takes(2, mixed(2, &[("a", 2), ("b", 1)]), 1);
    story.rollback(2, None);
    story.takes(3, mixed(1, &[("a", 1), ("b", 1)]), 2);
    let changed = Change::Plugin { plugin: "a".into(), sha256: "a 2".into() };
    assert_eq!(story.held()[1..], [changed]);
}

#[test]
fn a_removal_is_held_back_until_it_is_meant() {
    let both = |id| Arc::new(SetInfo { id: SetId(id), ..(*info(1, &["gone", "hello"])).clone() });
    let mut story = Story::starting_with(both(1));
    story.reload(1);
    story.takes(2, mixed(2, &[("hello", 1)]), 1);
    story.rollback(2, None);
    story.takes(3, both(3), 2);
    let removal = Change::Removal { plugin: "gone".into() };
    assert!(story.held().contains(&removal));
    story.reload(3);
    story.takes(4, mixed(4, &[("gone", 4), ("hello", 4)]), 3);
    assert!(story.held().contains(&removal), "nobody has removed it");
    story.force(4);
    story.takes(5, mixed(5, &[("hello", 1)]), 4);
    assert!(!story.held().contains(&removal));
}

#[test]
fn a_section_is_held_back_until_it_is_meant() {
    let section = |id: u64, of: u64, section: &str| {
        let sections = [("hello".to_string(), section.to_string())].into();
        let sha256 = format!("set {of} {section}");
        Arc::new(SetInfo { sha256, sections, ..(*again(of, id)).clone() })
    };
    let mut story = Story::starting_with(section(1, 1, "good"));
    story.reload(1);
    story.takes(2, section(2, 1, "bad"), 1);
    story.rollback(2, None);
    story.takes(3, section(3, 1, "good"), 2);
    let settings = Change::Settings { plugin: "hello".into(), sha256: "bad".into() };
    assert!(story.held().contains(&settings));
    story.reload(3);
    story.takes(4, section(4, 4, "good"), 3);
    assert!(story.held().contains(&settings), "another file with the section that was gone back to");
    story.force(4);
    story.takes(5, section(5, 4, "bad"), 4);
    assert!(!story.held().contains(&settings));
}

#[test]
fn a_configuration_that_was_rolled_back_with_its_plugins_is_held_back_until_it_is_meant() {
    let bad = (Change::Config { sha256: "bad".into() }, Why::RolledBack);
    let whole_config = OpOptions { with_config: true, ..OpOptions::default() };
    let mut story = Story::starting_with(with_config(1, 1, "good"));
    story.reload(1);
    story.takes(2, with_config(2, 2, "bad"), 1);
    story.ask_with(Verb::Rollback, whole_config, 2);
    story.takes(3, with_config(3, 1, "good"), 2);
    let times = |story: &Story| story.written.held.iter().filter(|held| **held == bad).count();
    assert_eq!(times(&story), 1, "once, though it served and was what was to be left");
    // Another plugin with the configuration that was gone back to brings nothing of it.
    story.reload(3);
    story.takes(4, with_config(4, 4, "good"), 3);
    assert_eq!(times(&story), 1);
    story.force(4);
    story.takes(5, with_config(5, 4, "bad"), 4);
    assert_eq!(times(&story), 0);
}

#[test]
fn a_configuration_is_not_held_back_where_it_was_not_what_changed_or_was_not_gone_back_from() {
    for (config, whole_config) in [("good", true), ("bad", false)] {
        let mut story = Story::starting_with(with_config(1, 1, "good"));
        story.reload(1);
        story.takes(2, with_config(2, 2, config), 1);
        story.ask_with(Verb::Rollback, OpOptions { with_config: whole_config, ..OpOptions::default() }, 2);
        story.takes(3, with_config(3, 1, "good"), 2);
        assert!(!story.held().iter().any(|change| matches!(change, Change::Config { .. })), "{:?}", story.held());
    }
}

#[test]
fn a_start_that_serves_nothing_goes_back_within_the_configuration_that_it_was_started_with() {
    let memory = Memory { good: vec![again(1, 1)], ..Memory::default() };
    let mut story = Story { state: State::new(settings(), BadStart::ServeEmpty, memory), ..Story::new() };
    story.ask(Cause::Start, None);
    story.prepared(1, Err(Failure::new(Stage::Snapshot, "x")));
    story.up(1);
    let actions = story.rollback(1, None);
    assert_eq!(source(&actions), Some(&Source::Again { set: SetId(1), within: Within::Start }));
}

#[test]
fn the_next_program_holds_back_what_this_one_did_and_goes_back_where_it_could() {
    let mut story = Story::on_probation();
    story.dies(2, ExitKind::Signal(11));
    story.says(1, ToMaster::Serving);
    story.restart(2);
    story.tested(1, Ok(()));
    let mut story = story.taken_over(Ok(()));
    let reload = story.wait(Duration::ZERO);
    let held = vec![whole(2), file(2)];
    assert_eq!(source(&reload), Some(&Source::Files { held, instead: Some(SetId(1)) }));
    assert_eq!(story.written.pin, Some(Generation(1)));
    story.prepared(3, Err(Failure::new(Stage::Snapshot, "x")));
    let back = story.rollback(3, Some(2));
    assert!(matches!(source(&back), Some(Source::Again { set: SetId(2), .. })), "{back:?}");
}

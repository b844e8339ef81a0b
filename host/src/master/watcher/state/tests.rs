//! The decision of the watcher, case by case and by random histories.

use proptest::prelude::*;

use super::*;
use crate::master::watcher::targets::Targets;

const WINDOW: Window = Window { quiet: Duration::from_millis(200), most: Duration::from_secs(5) };
const SETTINGS: Settings =
    Settings { window: WINDOW, rescan: Some(Duration::from_secs(30)), poll: Duration::from_secs(2) };

fn ms(ms: u64) -> Time {
    Duration::from_millis(ms)
}

/// A folder with files: name, number of the file, content; and whether somebody is writing to it.
#[derive(Clone, Debug, Default)]
struct World(BTreeMap<String, (u64, String, bool)>);

impl World {
    fn of(files: &[(&str, u64, &str)]) -> World {
        World(
            files.iter().map(|(name, number, content)| ((*name).into(), (*number, (*content).into(), false))).collect(),
        )
    }

    fn path(name: &str) -> PathBuf {
        Path::new("/p").join(name)
    }

    fn view(&self) -> View {
        let stamp = |(name, (number, content, open)): (&String, &(u64, String, bool))| {
            let content = match open {
                true => Content::BeingWritten,
                false => Content::Sha256(content.clone()),
            };
            (World::path(name), Stamp { identity: Some(Identity::fake(*number)), content })
        };
        self.0.iter().map(stamp).collect()
    }

    fn sighting(&self) -> Sighting {
        let found = self.0.iter().map(|(name, (number, ..))| (World::path(name), Some(Identity::fake(*number))));
        let covered = Targets { folders: [PathBuf::from("/p")].into(), ..Targets::default() };
        Sighting { covered, found: found.collect(), ..Sighting::default() }
    }
}

fn look(state: &mut State, world: &World, now: Time) -> Vec<Action> {
    state.step(Event::Looked { view: world.view(), sense: Sense::Events }, now)
}

fn reload(names: &[&str]) -> Vec<Action> {
    vec![Action::Reload { changed: names.iter().map(|name| World::path(name)).collect() }]
}

/// Watches, and has seen all of `world` as it was tried.
fn calm(world: &World) -> State {
    let mut state = State::new(None);
    assert_eq!(state.step(Event::Configured(Some(SETTINGS)), ms(0)), []);
    assert_eq!(state.step(Event::Read(world.sighting()), ms(0)), [Action::Look]);
    assert_eq!(look(&mut state, world, ms(0)), []);
    state
}

/// The kernel tells of a change at `at`; the look that follows.
#[track_caller]
fn told(state: &mut State, world: &World, at: Time) -> Vec<Action> {
    assert_eq!(state.step(Event::Told { at }, at), []);
    assert_eq!(state.next_deadline(), Some(at + WINDOW.quiet));
    assert_eq!(state.step(Event::Tick, at + WINDOW.quiet), [Action::Look]);
    look(state, world, at + WINDOW.quiet)
}

fn answer(state: &mut State, world: &World, refused: Option<&str>, now: Time) -> Vec<Action> {
    let mut actions = state.step(Event::Read(world.sighting()), now);
    actions.extend(state.step(Event::Answered { refused: refused.map(str::to_owned) }, now));
    actions
}

#[test]
fn a_burst_is_one_reload_once_it_is_quiet() {
    let mut world = World::of(&[("a.so", 1, "a1"), ("b.so", 2, "b1")]);
    let mut state = calm(&world);
    world = World::of(&[("a.so", 3, "a2"), ("b.so", 4, "b2"), ("c.so", 5, "c1")]);
    for at in [1000, 1100, 1250] {
        assert_eq!(state.step(Event::Told { at: ms(at) }, ms(at)), []);
    }
    assert!(state.is_settling());
    assert_eq!(state.step(Event::Tick, ms(1449)), []);
    assert_eq!(state.step(Event::Tick, ms(1450)), [Action::Look]);
    assert_eq!(look(&mut state, &world, ms(1460)), reload(&["a.so", "b.so", "c.so"]));
    // Not twice at once, whatever is told.
    assert_eq!(state.step(Event::Told { at: ms(1500) }, ms(1500)), []);
    assert_eq!((state.step(Event::Tick, ms(9000)), state.next_deadline()), (vec![], None));
    assert_eq!(answer(&mut state, &world, None, ms(9001)), [Action::Look]);
    assert_eq!(look(&mut state, &world, ms(9002)), []);
    assert!(!state.is_settling() && state.holding().is_none());
}

#[test]
fn what_is_told_during_a_look_is_looked_at_after_it() {
    let mut state = calm(&World::of(&[("a.so", 1, "a1")]));
    let world = World::of(&[("a.so", 2, "a2")]);
    assert_eq!(state.step(Event::Told { at: ms(1000) }, ms(1000)), []);
    assert_eq!(state.step(Event::Tick, ms(1200)), [Action::Look]);
    assert_eq!(state.step(Event::Told { at: ms(1210) }, ms(1210)), []);
    // It has not seen that.
    assert_eq!(look(&mut state, &World::of(&[("a.so", 1, "a1")]), ms(1220)), []);
    assert_eq!(state.next_deadline(), Some(ms(1410)));
    assert_eq!(state.step(Event::Tick, ms(1410)), [Action::Look]);
    assert_eq!(look(&mut state, &world, ms(1410)), reload(&["a.so"]));
}

#[test]
fn a_look_that_was_overtaken_by_a_reading_decides_nothing() {
    let old = World::of(&[("a.so", 1, "a1")]);
    let mut state = calm(&old);
    assert_eq!(state.step(Event::Told { at: ms(1000) }, ms(1000)), []);
    assert_eq!(state.step(Event::Tick, ms(1200)), [Action::Look]);
    let new = World::of(&[("a.so", 2, "a2")]);
    assert_eq!(state.step(Event::Read(new.sighting()), ms(1210)), []);
    // It saw what was there before.
    assert_eq!(look(&mut state, &old, ms(1220)), [Action::Look]);
    assert_eq!(look(&mut state, &new, ms(1230)), []);
    assert!(!state.is_settling());
}

#[test]
fn what_was_refused_waits_until_its_content_changes() {
    let good = World::of(&[("a.so", 1, "a1")]);
    let mut state = calm(&good);
    let bad = World::of(&[("a.so", 2, "bad")]);
    assert_eq!(told(&mut state, &bad, ms(1000)), reload(&["a.so"]));
    assert_eq!(answer(&mut state, &bad, Some("broken"), ms(1300)), []);
    assert_eq!(state.holding(), Some("broken"));
    let touched = World::of(&[("a.so", 3, "bad")]);
    assert_eq!(told(&mut state, &touched, ms(2000)), []);
    assert_eq!(state.step(Event::Tick, ms(40_000)), [Action::Look]);
    assert_eq!(look(&mut state, &touched, ms(40_000)), []);
    assert_eq!(state.holding(), Some("broken"));
    // What serves came before it: that is a change.
    assert_eq!(told(&mut state, &good, ms(50_000)), reload(&["a.so"]));
    assert_eq!(answer(&mut state, &good, None, ms(50_300)), []);
    assert_eq!(state.holding(), None);
}

#[test]
fn what_somebody_else_has_reloaded_is_not_reloaded_again() {
    let mut state = calm(&World::of(&[("a.so", 1, "a1")]));
    let world = World::of(&[("a.so", 2, "a2")]);
    assert_eq!(state.step(Event::Told { at: ms(1000) }, ms(1000)), []);
    // He was quicker: what he has seen only from outside is read at once, and recognized.
    assert_eq!(state.step(Event::Read(world.sighting()), ms(1010)), [Action::Look]);
    assert_eq!(look(&mut state, &world, ms(1020)), []);
    let touched = World::of(&[("a.so", 3, "a2")]);
    assert_eq!(told(&mut state, &touched, ms(2000)), []);
    // It was completed while he read it, and is known by what he took.
    let (part, whole) = (World::of(&[("a.so", 4, "half")]), World::of(&[("a.so", 5, "a3")]));
    let taken = [(World::path("a.so"), "a3".into())].into();
    assert_eq!(state.step(Event::Read(Sighting { taken, ..part.sighting() }), ms(3000)), []);
    assert_eq!(told(&mut state, &whole, ms(4000)), []);
    // It changed after he had looked, and before we had.
    assert_eq!(state.step(Event::Read(World::of(&[("a.so", 6, "a4")]).sighting()), ms(5000)), [Action::Look]);
    let later = World::of(&[("a.so", 7, "a5")]);
    assert_eq!(look(&mut state, &later, ms(5010)), []);
    assert_eq!(state.step(Event::Tick, ms(5210)), [Action::Look]);
    assert_eq!(look(&mut state, &later, ms(5210)), reload(&["a.so"]));
}

#[test]
fn a_file_that_is_written_to_is_waited_for_and_not_for_ever() {
    let mut state = calm(&World::of(&[("a.so", 1, "a1")]));
    let mut world = World::of(&[("a.so", 2, "half")]);
    world.0.get_mut("a.so").unwrap().2 = true;
    assert_eq!(told(&mut state, &world, ms(1000)), []);
    let mut now = ms(1200);
    let asked = loop {
        now += WINDOW.quiet;
        assert_eq!(state.step(Event::Tick, now), [Action::Look]);
        let actions = look(&mut state, &world, now);
        if !actions.is_empty() {
            break actions;
        }
    };
    assert_eq!((asked, now), (reload(&["a.so"]), ms(6000)), "5 s after the first");
    let path = Some(World::path("a.so"));
    let written = Sighting { being_written: path, ..world.sighting() };
    assert_eq!(state.step(Event::Read(written), now), []);
    assert_eq!(state.step(Event::Answered { refused: Some("still written".into()) }, now), []);
    assert_eq!(told(&mut state, &world, now + ms(1)), [], "as it was when it was refused");
    // Only closed, not written to any more: it was refused for being written to, not for what is in it.
    world.0.get_mut("a.so").unwrap().2 = false;
    assert_eq!(told(&mut state, &world, now + ms(1000)), reload(&["a.so"]));
}

#[test]
fn a_file_that_is_only_opened_is_no_change() {
    let mut world = World::of(&[("a.so", 1, "a1")]);
    let mut state = calm(&world);
    world.0.get_mut("a.so").unwrap().2 = true;
    assert_eq!(told(&mut state, &world, ms(1000)), []);
    assert!(!state.is_settling());
    world.0.get_mut("a.so").unwrap().0 = 2;
    assert_eq!(told(&mut state, &world, ms(2000)), []);
    assert!(state.is_settling());
}

#[test]
fn an_endless_stream_of_changes_starves_nobody() {
    let mut state = calm(&World::default());
    let mut reloads = Vec::new();
    let mut hint = |state: &mut State, number: u64| {
        let now = ms(number * 20);
        let world = World::of(&[("a.so", number, &number.to_string())]);
        let mut actions = state.step(Event::Told { at: now }, now);
        while let Some(action) = actions.pop() {
            match action {
                Action::Look => actions.extend(look(state, &world, now)),
                Action::Reload { .. } => {
                    reloads.push(number * 20);
                    actions.extend(answer(state, &world, None, now));
                }
            }
        }
    };
    (1..=1000).for_each(|number| hint(&mut state, number));
    assert!((3..=4).contains(&reloads.len()), "{reloads:?}");
    assert!(reloads[0] <= 5020, "{reloads:?}");
}

#[test]
fn what_nobody_told_of_is_found_and_must_look_the_same_twice() {
    let mut state = calm(&World::of(&[("a.so", 1, "a1")]));
    let world = World::of(&[("a.so", 2, "a2")]);
    assert_eq!(state.next_deadline(), Some(ms(30_000)));
    assert_eq!(state.step(Event::Tick, ms(30_000)), [Action::Look]);
    assert_eq!(look(&mut state, &world, ms(30_000)), []);
    let more = World::of(&[("a.so", 2, "a2"), ("b.so", 3, "b1")]);
    assert_eq!(state.step(Event::Tick, ms(30_200)), [Action::Look]);
    assert_eq!(look(&mut state, &more, ms(30_200)), [], "it goes on");
    assert_eq!(state.step(Event::Tick, ms(30_400)), [Action::Look]);
    assert_eq!(look(&mut state, &more, ms(30_400)), reload(&["a.so", "b.so"]));
}

#[test]
fn after_an_overflow_the_kernels_silence_proves_nothing() {
    let mut state = calm(&World::of(&[("a.so", 1, "a1")]));
    let world = World::of(&[("a.so", 2, "a2")]);
    assert_eq!(state.step(Event::Overflowed { at: ms(1000) }, ms(1000)), []);
    assert_eq!(state.step(Event::Tick, ms(1200)), [Action::Look]);
    assert_eq!(look(&mut state, &world, ms(1200)), []);
    assert_eq!(state.step(Event::Tick, ms(1400)), [Action::Look]);
    assert_eq!(look(&mut state, &world, ms(1400)), reload(&["a.so"]));
}

#[test]
fn where_nothing_is_told_it_looks_more_often() {
    let mut state = calm(&World::default());
    assert_eq!(state.step(Event::Tick, ms(30_000)), [Action::Look]);
    let seen = Event::Looked { view: View::new(), sense: Sense::Polling };
    assert_eq!(state.step(seen, ms(30_000)), []);
    assert_eq!(state.next_deadline(), Some(ms(32_000)));
    let never = Settings { rescan: None, ..SETTINGS };
    assert_eq!(state.step(Event::Configured(Some(never)), ms(30_001)), [Action::Look]);
    assert_eq!(look(&mut state, &World::default(), ms(30_002)), []);
    assert_eq!(state.next_deadline(), None);
}

#[test]
fn nothing_is_done_before_the_first_reading_nor_while_it_is_off_or_suspended() {
    let mut state = State::new(None);
    assert_eq!(state.step(Event::Configured(Some(SETTINGS)), ms(0)), []);
    assert_eq!((state.step(Event::Tick, ms(90_000)), state.next_deadline()), (vec![], None));
    let (old, new) = (World::of(&[("a.so", 1, "a1")]), World::of(&[("a.so", 2, "a2")]));
    for (off, on) in [(Event::Configured(None), Event::Configured(Some(SETTINGS))), (Event::Suspended, Event::Resumed)]
    {
        let mut state = calm(&old);
        assert_eq!(state.step(off, ms(1000)), []);
        assert!(!state.is_on());
        assert_eq!(state.step(Event::Told { at: ms(1001) }, ms(1001)), []);
        assert_eq!((state.step(Event::Tick, ms(90_000)), state.next_deadline()), (vec![], None));
        // What was missed is found.
        assert_eq!(state.step(on, ms(90_001)), [Action::Look]);
        assert_eq!(look(&mut state, &new, ms(90_001)), []);
        assert_eq!(state.step(Event::Tick, ms(90_201)), [Action::Look]);
        assert_eq!(look(&mut state, &new, ms(90_201)), reload(&["a.so"]));
    }
    // A look that ends after it was switched off leads to nothing.
    let mut state = calm(&old);
    assert_eq!(state.step(Event::Tick, ms(30_000)), [Action::Look]);
    assert_eq!(state.step(Event::Suspended, ms(30_001)), []);
    assert_eq!(look(&mut state, &new, ms(30_002)), []);
}

#[test]
fn what_was_tried_is_known_to_the_next_program() {
    let mut state = calm(&World::of(&[("a.so", 1, "a1")]));
    let bad = World::of(&[("a.so", 2, "bad")]);
    assert_eq!(told(&mut state, &bad, ms(1000)), reload(&["a.so"]));
    answer(&mut state, &bad, Some("broken"), ms(1300));
    let json = serde_json::to_string(&state.save()).unwrap();
    let mut next = State::new(serde_json::from_str(&json).unwrap());
    assert_eq!(next.step(Event::Configured(Some(SETTINGS)), ms(0)), [Action::Look]);
    assert_eq!(look(&mut next, &World::of(&[("a.so", 3, "bad")]), ms(0)), []);
    assert_eq!(told(&mut next, &World::of(&[("a.so", 4, "a2")]), ms(1000)), reload(&["a.so"]));
}

#[test]
fn a_reload_that_reads_nothing_is_not_asked_for_again() {
    let mut state = calm(&World::default());
    let world = World::of(&[("a.so", 1, "a1")]);
    assert_eq!(told(&mut state, &world, ms(1000)), reload(&["a.so"]));
    let superseded = Event::Answered { refused: Some("operation 7 took its place".into()) };
    assert_eq!(state.step(superseded, ms(1300)), []);
    assert_eq!(told(&mut state, &world, ms(2000)), []);
    assert_eq!(state.holding(), Some("operation 7 took its place"));
}

#[test]
fn a_failed_look_is_taken_again() {
    let mut state = calm(&World::default());
    assert_eq!(state.step(Event::Tick, ms(30_000)), [Action::Look]);
    assert_eq!(state.step(Event::LookFailed, ms(30_000)), []);
    assert_eq!(state.step(Event::Tick, ms(32_000)), [Action::Look]);
}

#[test]
fn a_reading_says_nothing_of_where_it_did_not_look() {
    let mut state = calm(&World::of(&[("a.so", 1, "a1")]));
    let elsewhere = PathBuf::from("/b.toml");
    let found: BTreeMap<_, _> = [(elsewhere.clone(), Some(Identity::fake(9)))].into();
    let covered = Targets::of_files(std::slice::from_ref(&elsewhere));
    let broken = Sighting { covered, found, ..Sighting::default() };
    assert_eq!(state.step(Event::Read(broken), ms(1000)), [Action::Look]);
    let mut view = World::of(&[("a.so", 1, "a1")]).view();
    view.insert(elsewhere, Stamp { identity: Some(Identity::fake(9)), content: Content::Sha256("t".into()) });
    assert_eq!(state.step(Event::Looked { view, sense: Sense::Events }, ms(1000)), []);
}

/// What may happen in a random history.
#[derive(Clone, Debug)]
enum Act {
    /// Of a file; the kernel tells of it unless it is deaf.
    Write {
        file: u8,
        content: u8,
    },
    Touch {
        file: u8,
    },
    Remove {
        file: u8,
    },
    Open {
        file: u8,
    },
    Close {
        file: u8,
    },
    Overflow,
    /// Somebody else reloads.
    Foreign,
    /// The look under way ends.
    Look,
    /// The operation under way reads the files, then ends.
    Read,
    Answer {
        refused: bool,
    },
    Suspend,
    Resume,
    Wait {
        ms: u64,
    },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let file = 0..3_u8;
    prop::collection::vec(
        prop_oneof![
            4 => (file.clone(), 0..4_u8).prop_map(|(file, content)| Act::Write { file, content }),
            2 => file.clone().prop_map(|file| Act::Touch { file }),
            1 => file.clone().prop_map(|file| Act::Remove { file }),
            1 => file.clone().prop_map(|file| Act::Open { file }),
            2 => file.prop_map(|file| Act::Close { file }),
            1 => Just(Act::Overflow),
            1 => Just(Act::Foreign),
            4 => Just(Act::Look),
            3 => Just(Act::Read),
            3 => any::<bool>().prop_map(|refused| Act::Answer { refused }),
            1 => Just(Act::Suspend),
            2 => Just(Act::Resume),
            6 => (1..3000_u64).prop_map(|ms| Act::Wait { ms }),
        ],
        1..120,
    )
}

/// Plays the world, the kernel and the master.
struct Play {
    state: State,
    world: World,
    number: u64,
    now: Time,
    sense: Sense,
    /// What the look under way has seen: all as it was when it began.
    looking: Option<View>,
    /// The same of the look that began last.
    seen: BTreeMap<String, (String, bool)>,
    /// Ours: whether it has read.
    asked: Option<bool>,
    /// Contents at the last reading.
    read: Option<BTreeMap<String, (String, bool)>>,
    /// Since a reading by somebody else nobody has looked, and a file was touched: it may count as changed.
    unseen: bool,
    blurred: bool,
    reloads: usize,
}

impl Play {
    fn contents(&self) -> BTreeMap<String, (String, bool)> {
        self.world.0.iter().map(|(name, (_, content, open))| (name.clone(), (content.clone(), *open))).collect()
    }

    fn step(&mut self, event: Event) {
        for action in self.state.step(event, self.now) {
            match action {
                Action::Look => {
                    assert!(self.looking.is_none() && self.asked.is_none(), "one thing at a time");
                    self.looking = Some(self.world.view());
                    self.seen = self.contents();
                    // What is in a file that is open is not looked at.
                    self.unseen &= self.world.0.values().any(|(.., open)| *open);
                }
                Action::Reload { changed } => {
                    assert!(self.asked.is_none() && self.state.is_on() && !changed.is_empty());
                    let read = self.read.as_ref().expect("something was read before");
                    assert!(self.blurred || *read != self.seen, "nothing is new: {changed:?} {read:?}");
                    self.read = Some(self.seen.clone());
                    self.asked = Some(false);
                    self.blurred = false;
                    self.reloads += 1;
                }
            }
        }
    }

    fn tell(&mut self) {
        if self.sense == Sense::Events && self.state.is_on() {
            self.step(Event::Told { at: self.now });
        }
    }

    fn read(&mut self) {
        let written = self.world.0.iter().find(|(_, (.., open))| *open).map(|(name, _)| World::path(name));
        self.read = Some(self.contents());
        let sighting = Sighting { being_written: written, ..self.world.sighting() };
        self.step(Event::Read(sighting));
    }

    fn end_look(&mut self) {
        if let Some(view) = self.looking.take() {
            self.step(Event::Looked { view, sense: self.sense });
        }
    }

    fn act(&mut self, act: Act) {
        let name = |file: u8| format!("{file}.so");
        self.number += 1;
        let number = self.number;
        match act {
            Act::Write { file, content } => {
                let open = self.world.0.get(&name(file)).is_some_and(|(.., open)| *open);
                self.world.0.insert(name(file), (number, content.to_string(), open));
                self.blurred |= self.unseen || open;
                self.tell();
            }
            Act::Touch { file } => {
                if let Some((identity, _, open)) = self.world.0.get_mut(&name(file)) {
                    *identity = number;
                    self.blurred |= self.unseen || *open;
                    self.tell();
                }
            }
            Act::Remove { file } => {
                if self.world.0.remove(&name(file)).is_some() {
                    self.blurred |= self.unseen;
                    self.tell();
                }
            }
            Act::Open { file } => {
                if let Some((.., open)) = self.world.0.get_mut(&name(file)) {
                    *open = true;
                }
            }
            Act::Close { file } => {
                if let Some((.., open)) = self.world.0.get_mut(&name(file))
                    && std::mem::take(open)
                {
                    self.tell();
                }
            }
            Act::Overflow => self.step(Event::Overflowed { at: self.now }),
            Act::Foreign => {
                (self.unseen, self.blurred) = (true, false);
                self.read();
            }
            Act::Look => self.end_look(),
            Act::Read => {
                if self.asked == Some(false) {
                    self.asked = Some(true);
                    // Looked at just before: what changed since is another file, and seen only from outside.
                    (self.unseen, self.blurred) = (true, false);
                    self.read();
                }
            }
            Act::Answer { refused } => {
                if self.asked.take().is_some() {
                    self.step(Event::Answered { refused: refused.then(|| "no".into()) });
                }
            }
            Act::Suspend => self.step(Event::Suspended),
            Act::Resume => self.step(Event::Resumed),
            Act::Wait { ms } => {
                let until = self.now + Duration::from_millis(ms);
                while let Some(due) = self.state.next_deadline().filter(|due| *due <= until) {
                    self.now = self.now.max(due);
                    self.step(Event::Tick);
                    self.end_look();
                }
                self.now = until;
            }
        }
    }
}

fn histories() -> u32 {
    std::env::var("BATON_HISTORIES").ok().map_or(500, |count| count.parse().expect("a number"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: histories(), ..ProptestConfig::default() })]
    /// Whatever happens: one reload at a time, none for what was tried, and in the end all that is new has been tried.
    #[test]
    fn random_histories_try_every_content_and_none_twice(acts in acts(), deaf in any::<bool>()) {
        let sense = if deaf { Sense::Polling } else { Sense::Events };
        let mut play = Play {
            state: State::new(None),
            world: World::of(&[("0.so", 1, "0")]),
            number: 1,
            now: ms(0),
            sense,
            looking: None,
            seen: BTreeMap::new(),
            asked: None,
            read: None,
            unseen: true,
            blurred: false,
            reloads: 0,
        };
        play.step(Event::Configured(Some(SETTINGS)));
        play.read();
        for act in acts {
            play.act(act);
        }
        // All comes to rest.
        play.act(Act::Resume);
        for file in 0..3 {
            play.act(Act::Close { file });
        }
        for _ in 0..8 {
            play.act(Act::Look);
            play.act(Act::Read);
            play.act(Act::Answer { refused: true });
            play.act(Act::Wait { ms: 31_000 });
        }
        prop_assert_eq!(play.read.clone(), Some(play.contents()), "what is new was tried");
        let before = play.reloads;
        play.act(Act::Wait { ms: 100_000 });
        prop_assert_eq!((play.reloads, play.state.is_settling()), (before, false), "and that is all");
    }
}

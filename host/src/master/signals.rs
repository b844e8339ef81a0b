//! What each signal to the master does: one table, for the loop, for `--help`, and for docs/SIGNALS.md, which a test holds
//! equal to it. Pure: preset, signal and situation go in, an effect comes out.
//!
//! A signal that a preset does not name keeps its default action; one that was ignored when the master started (nohup(1))
//! stays ignored, whatever the preset.

use nix::sys::signal::Signal;

use crate::config::Preset;
use crate::control::Hook;
use crate::report::Verb;

/// What a signal does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Reload,
    Restart,
    /// While the server shuts down: cut.
    Shutdown,
    /// End what drains.
    Cut,
    /// Goes to the plugins.
    Hook(Hook),
    Nothing,
}

/// Where the master stands when the signal comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Situation {
    /// It is `baton dev`: it lives as long as its terminal, and cannot be restarted in place.
    pub dev: bool,
    /// A HUP tells that its terminal went away.
    pub terminal_lost: bool,
    /// It shuts down already.
    pub stopping: bool,
}

type Table = &'static [(Signal, Effect)];

const BATON: Table = &[
    (Signal::SIGHUP, Effect::Reload),
    (Signal::SIGUSR1, Effect::Reload),
    (Signal::SIGUSR2, Effect::Restart),
    (Signal::SIGTERM, Effect::Shutdown),
    (Signal::SIGINT, Effect::Shutdown),
    (Signal::SIGQUIT, Effect::Shutdown),
];

/// As gf's `os/gproc` and `net/ghttp` have it.
const GF: Table = &[
    (Signal::SIGUSR1, Effect::Reload),
    (Signal::SIGUSR2, Effect::Restart),
    (Signal::SIGHUP, Effect::Shutdown),
    (Signal::SIGTERM, Effect::Shutdown),
    (Signal::SIGINT, Effect::Shutdown),
    (Signal::SIGQUIT, Effect::Shutdown),
    (Signal::SIGABRT, Effect::Shutdown),
];

/// As endless' `handleSignals` has it. QUIT, which is not endless' but its runtime's (it ends with a dump), drains.
const ENDLESS: Table = &[
    (Signal::SIGHUP, Effect::Reload),
    (Signal::SIGUSR1, Effect::Hook(Hook::Usr1)),
    (Signal::SIGTSTP, Effect::Hook(Hook::Tstp)),
    (Signal::SIGUSR2, Effect::Cut),
    (Signal::SIGTERM, Effect::Shutdown),
    (Signal::SIGINT, Effect::Shutdown),
    (Signal::SIGQUIT, Effect::Shutdown),
];

fn table(preset: Preset) -> Table {
    match preset {
        Preset::Baton => BATON,
        Preset::Gf => GF,
        Preset::Endless => ENDLESS,
    }
}

/// What the master reacts to.
pub fn watched(preset: Preset) -> Vec<Signal> {
    table(preset).iter().map(|(signal, _)| *signal).collect()
}

/// What `signal` does; nothing if the preset does not name it.
pub fn effect(preset: Preset, signal: Signal, situation: Situation) -> Option<Effect> {
    let (_, effect) = table(preset).iter().find(|(named, _)| *named == signal)?;
    let Situation { dev, terminal_lost, stopping } = situation;
    Some(match effect {
        // The end of a terminal is told twice: by the shell, and by the kernel once that has ended. Twice is not "now".
        _ if signal == Signal::SIGHUP && terminal_lost && stopping => Effect::Nothing,
        _ if signal == Signal::SIGHUP && (terminal_lost || dev) => Effect::Shutdown,
        Effect::Restart if dev => Effect::Reload,
        effect => *effect,
    })
}

impl Effect {
    /// The operation that it asks for.
    pub fn verb(self) -> Option<Verb> {
        match self {
            Effect::Reload => Some(Verb::Reload),
            Effect::Restart => Some(Verb::Restart),
            Effect::Shutdown => Some(Verb::Shutdown),
            Effect::Cut => Some(Verb::Cut),
            Effect::Hook(_) | Effect::Nothing => None,
        }
    }

    fn says(self) -> &'static str {
        match self {
            Effect::Reload => "reload",
            Effect::Restart => "restart in place",
            Effect::Shutdown => "shut down, again cut",
            Effect::Cut => "cut what drains",
            Effect::Hook(_) => "to the plugins",
            Effect::Nothing => "nothing",
        }
    }
}

/// All presets, for `--help`.
pub fn summary() -> String {
    let mut text = String::from("Signals, by [signals] preset:");
    for preset in Preset::ALL {
        let mut parts: Vec<(&str, String)> = Vec::new();
        for (signal, effect) in table(preset) {
            let name = short(*signal);
            match parts.iter_mut().find(|(says, _)| *says == effect.says()) {
                Some((_, names)) => *names = format!("{names} {name}"),
                None => parts.push((effect.says(), name.into())),
            }
        }
        let parts: Vec<String> = parts.into_iter().map(|(says, names)| format!("{names} {says}")).collect();
        text.push_str(&format!("\n  {:<8} {}", preset.as_str(), parts.join("; ")));
    }
    text
}

/// `HUP`
pub fn short(signal: Signal) -> &'static str {
    signal.as_str().strip_prefix("SIG").unwrap_or(signal.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = include_str!("../../../docs/SIGNALS.md");

    /// Every situation, with the column that tells of it.
    fn situations() -> [(Situation, usize); 6] {
        let usual = Situation::default();
        let dev = Situation { dev: true, ..usual };
        let lost = Situation { terminal_lost: true, ..usual };
        [
            (usual, 1),
            (Situation { stopping: true, ..usual }, 2),
            (dev, 3),
            (lost, 4),
            (Situation { dev: true, ..lost }, 4),
            (Situation { stopping: true, ..lost }, 5),
        ]
    }

    fn cell(effect: Option<Effect>, stopping: bool) -> &'static str {
        match effect {
            None => "default",
            Some(Effect::Reload | Effect::Restart) if stopping => "refused",
            Some(Effect::Shutdown) if stopping => "cut",
            Some(Effect::Reload) => "reload",
            Some(Effect::Restart) => "restart",
            Some(Effect::Shutdown) => "shutdown",
            Some(Effect::Cut) => "cut",
            Some(Effect::Hook(_)) => "hook",
            Some(Effect::Nothing) => "nothing",
        }
    }

    /// The rows of a preset's table in the documentation.
    fn documented(preset: Preset) -> Vec<Vec<String>> {
        let heading = format!("### `preset = \"{preset}\"`");
        let section = DOCUMENT.split("\n#").find(|section| format!("#{section}").starts_with(&heading));
        let section = section.unwrap_or_else(|| panic!("docs/SIGNALS.md has no section {heading}"));
        let cells = |line: &str| -> Vec<String> {
            line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
        };
        section.lines().filter(|line| line.starts_with("| `")).map(cells).collect()
    }

    #[test]
    fn the_documentation_says_of_every_signal_what_it_does() {
        for preset in Preset::ALL {
            let rows = documented(preset);
            let named: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
            let watched: Vec<&str> = watched(preset).into_iter().map(short).collect();
            assert_eq!(named, watched, "{preset}");
            for (row, signal) in rows.iter().zip(super::watched(preset)) {
                for (situation, column) in situations() {
                    // Only a HUP tells of a terminal.
                    let lost = situation.terminal_lost;
                    if lost && signal != Signal::SIGHUP {
                        assert_eq!(row[column], "-", "{preset} {signal} {situation:?}");
                        continue;
                    }
                    let expected = cell(effect(preset, signal, situation), situation.stopping);
                    assert_eq!(row[column], expected, "{preset} {signal} {situation:?}");
                }
            }
        }
    }

    #[test]
    fn what_a_preset_does_not_name_is_not_taken() {
        let usual = Situation::default();
        assert_eq!(effect(Preset::Baton, Signal::SIGTSTP, usual), None);
        assert_eq!(effect(Preset::Baton, Signal::SIGABRT, usual), None);
        assert_eq!(effect(Preset::Gf, Signal::SIGTSTP, usual), None);
        assert_eq!(effect(Preset::Endless, Signal::SIGABRT, usual), None);
    }

    #[test]
    fn the_end_of_a_terminal_is_no_second_wish() {
        for preset in Preset::ALL {
            let lost = Situation { terminal_lost: true, ..Situation::default() };
            assert_eq!(effect(preset, Signal::SIGHUP, lost), Some(Effect::Shutdown));
            let again = Situation { stopping: true, ..lost };
            assert_eq!(effect(preset, Signal::SIGHUP, again), Some(Effect::Nothing));
            let term = Situation { stopping: true, ..Situation::default() };
            assert_eq!(effect(preset, Signal::SIGTERM, term), Some(Effect::Shutdown), "which then cuts");
        }
    }

    #[test]
    fn the_help_names_every_signal_once_for_each_preset() {
        let text = summary();
        for (preset, line) in Preset::ALL.into_iter().zip(text.lines().skip(1)) {
            assert!(line.trim_start().starts_with(preset.as_str()), "{text}");
            for signal in watched(preset) {
                assert_eq!(line.split([' ', ';']).filter(|word| *word == short(signal)).count(), 1, "{text}");
            }
        }
    }
}

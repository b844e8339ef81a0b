//! What may be typed: the parser holds together, and every example in the help is one of its sentences.

use super::*;

#[test]
fn the_parser_holds_together() {
    Cli::command().debug_assert();
}

/// The examples under `Examples:` of a help text, without comments and what a shell does around them.
fn examples(help: &str) -> Vec<String> {
    let block = help.split("Examples:\n").nth(1).unwrap_or_default();
    let lines = block.lines().take_while(|line| line.starts_with("  "));
    lines
        .map(|line| {
            let line = line.split(" # ").next().unwrap_or(line);
            let line = line.split(['|', '>']).next().unwrap_or(line);
            let line = line.replace("xdg-open \"$(", "").replace(")\"", "");
            line.replace('\'', "").trim().to_owned()
        })
        .collect()
}

#[test]
fn every_example_in_the_help_parses() {
    let mut command = Cli::command();
    let mut texts = vec![command.render_help().to_string()];
    for verb in command.get_subcommands_mut() {
        texts.push(verb.render_long_help().to_string());
    }
    let all: Vec<String> = texts.iter().flat_map(|text| examples(text)).collect();
    assert!(all.len() >= 20, "{all:#?}");
    for example in all {
        let words = example.split_whitespace();
        if let Err(error) = Cli::try_parse_from(words) {
            panic!("{example}: {error}");
        }
    }
}

#[test]
fn every_verb_has_examples() {
    for verb in Cli::command().get_subcommands_mut() {
        assert!(!examples(&verb.render_long_help().to_string()).is_empty(), "{}", verb.get_name());
    }
}

#[test]
fn what_is_typed_arrives() {
    let cli = Cli::try_parse_from(["baton", "dev", "a", "b", "-r", "--", "--features", "x"]).unwrap();
    let Verb::Dev(dev) = cli.verb else { panic!("another verb") };
    assert_eq!((dev.crates, dev.release), (vec!["a".into(), "b".into()], true));
    assert_eq!(dev.cargo, ["--features", "x"]);
    let cli = Cli::try_parse_from(["baton", "stop", "--name", "x", "--timeout", "5s"]).unwrap();
    let Verb::Shutdown(stop) = cli.verb else { panic!("another verb") };
    assert_eq!((stop.which.name.as_deref(), stop.timeout), (Some("x"), Duration::from_secs(5)));
    let cli = Cli::try_parse_from(["baton", "reload", "--wait", "drained"]).unwrap();
    assert!(matches!(cli.verb, Verb::Reload(ReloadArgs { waiting: Waiting { wait: Wait::Drained, .. }, .. })));
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for words in [
        &["baton"][..],
        &["baton", "relaod"],
        &["baton", "reload", "--wait", "never"],
        &["baton", "reload", "--timeout", "soon"],
        &["baton", "status", "--name", "x", "--socket", "/y"],
        &["baton", "run", "extra"],
    ] {
        assert!(Cli::try_parse_from(words).unwrap_err().use_stderr(), "{words:?}");
    }
}

#[test]
fn errors_end_with_their_own_code() {
    let no_master = ClientError::NoMaster { socket: "/x".into(), source: std::io::ErrorKind::NotFound.into() };
    let broken_pipe = std::io::ErrorKind::BrokenPipe.into();
    for (error, code) in [
        (CliError::Config(ConfigError::at_key("x", "y".into())), 78),
        (CliError::Client(no_master), 69),
        (CliError::Client(ClientError::Timeout(Duration::from_secs(1))), 1),
        (CliError::Several(vec!["a".into()]), 2),
        (CliError::Output(broken_pipe), 0),
        (CliError::Output(std::io::ErrorKind::StorageFull.into()), 1),
    ] {
        assert_eq!(error.exit_code(), code, "{error}");
    }
}

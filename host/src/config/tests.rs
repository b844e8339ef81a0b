//! What is accepted and what is refused, with the words that say so.

use super::*;

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("baton.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    let (_dir, path) = file(text);
    Config::load(Some(&path), &[])
}

/// The lines of the refusal, without the file's name.
#[track_caller]
fn refused(text: &str, settings: &[&str]) -> Vec<String> {
    let (_dir, path) = file(text);
    let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
    match Config::load(Some(&path), &settings).unwrap_err() {
        ConfigError::Refused { path: named, problems } => {
            assert_eq!(named, Some(path));
            problems.iter().map(ToString::to_string).collect()
        }
        other => panic!("{other}"),
    }
}

#[test]
fn the_reference_file_says_what_the_defaults_are() {
    assert_eq!(toml::from_str::<Config>(REFERENCE).unwrap(), Config::default());
}

/// Every key that there is, as the documentation writes it, with its default if it has one.
fn documented_keys() -> BTreeMap<String, Option<String>> {
    fn collect(
        path: &[String],
        shown: &str,
        default: Option<&toml::Table>,
        found: &mut BTreeMap<String, Option<String>>,
    ) {
        for key in super::load::known(path).unwrap() {
            let below: Vec<String> = path.iter().cloned().chain([key.to_string()]).collect();
            let shown = if shown.is_empty() { key.to_string() } else { format!("{shown}.{key}") };
            let value = default.and_then(|table| table.get(*key));
            let within = match value {
                Some(toml::Value::Array(tables)) => tables.first().and_then(toml::Value::as_table),
                other => other.and_then(toml::Value::as_table),
            };
            match key {
                // Told by what is in it.
                &"plugins" => {
                    let plugin = toml::Table::try_from(Plugin::default()).unwrap();
                    let below = ["plugins".to_owned(), "NAME".to_owned()];
                    collect(&below, "plugins.NAME", Some(&plugin), found);
                }
                _ if super::load::known(&below).is_some() => {
                    // Lists of tables that are empty by default, and what each table then has by default.
                    let fresh = match shown.as_str() {
                        "server.route" => {
                            let route = Route { host: None, prefix: super::root(), plugin: String::new() };
                            let mut route = toml::Table::try_from(route).unwrap();
                            route.remove("plugin");
                            Some(route)
                        }
                        "server.probe" => Some(toml::Table::try_from(Probe::default()).unwrap()),
                        "server.tls" => Some(toml::Table::new()),
                        _ => None,
                    };
                    if fresh.is_some() {
                        found.insert(shown.clone(), Some("[]".into()));
                    }
                    collect(&below, &shown, fresh.as_ref().or(within), found);
                }
                _ => drop(found.insert(shown, value.map(ToString::to_string))),
            }
        }
    }
    let mut found = BTreeMap::new();
    collect(&[], "", Some(&toml::Table::try_from(Config::default()).unwrap()), &mut found);
    found
}

#[test]
fn the_documentation_has_every_key_with_its_default_and_no_other() {
    let text = include_str!("../../../docs/CONFIGURATION.md");
    let cell = |cell: &str| cell.trim().strip_prefix('`')?.strip_suffix('`').map(str::to_owned);
    let rows = text.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `").and(line.strip_prefix('|'))?.split('|');
        Some((cell(cells.next()?)?, cell(cells.next()?)))
    });
    let rows: BTreeMap<String, Option<String>> = rows.collect();
    let keys = documented_keys();
    assert!(keys.len() > 30, "{keys:#?}");
    assert_eq!(rows, keys);
}

#[test]
fn the_reference_file_shows_every_key() {
    for key in documented_keys().keys().filter_map(|key| key.rsplit('.').next()) {
        let shown = |line: &str| line.trim_start_matches('#').split('=').next().is_some_and(|name| name.trim() == key);
        let inline = format!(" {key} = ");
        assert!(REFERENCE.lines().any(|line| shown(line) || line.contains(&inline)), "{key}");
    }
}

#[test]
fn empty_file_is_the_default_beside_the_file() {
    for text in ["", "# nothing\n\n# is set\n"] {
        let (dir, path) = file(text);
        let (config, origin) = Config::load_known(Some(&path), &[]).unwrap();
        assert_eq!(config, Config { plugin_dir: dir.path().join("plugins"), ..Config::default() });
        assert_eq!(origin, ConfigSource::File { path, sets_keys: false });
    }
    assert_eq!(Config::load_known(None, &[]).unwrap(), (Config::default(), ConfigSource::NoFile));
}

#[test]
fn default_plugin_folder_lies_beside_the_file() {
    let (dir, path) = file("workers = 1\n");
    let (config, origin) = Config::load_known(Some(&path), &[]).unwrap();
    assert_eq!(config.plugin_dir, dir.path().join("plugins"));
    assert_eq!(origin, ConfigSource::File { path: path.clone(), sets_keys: true });
    // What the command line says is the shell's, and relative to where it was typed.
    assert_eq!(Config::load(Some(&path), &["plugin_dir=p".into()]).unwrap().plugin_dir, Path::new("p"));
}

#[test]
fn thousands_of_routes_are_read_and_thousands_of_faults_are_named_in_part() {
    let server = "[[server]]\nlisten = [\"127.0.0.1:1\"]\n";
    let route = |i: usize, plugin: &str| format!("[[server.route]]\nhost = \"h{i}.example\"\nplugin = {plugin}\n");
    let routes: String = (0..3000).map(|i| route(i, "\"hello\"")).collect();
    assert_eq!(parse(&format!("{server}{routes}")).unwrap().server[0].route.len(), 3000);
    let wrong: String = (0..300).map(|i| route(i, "7")).collect();
    let error = parse(&format!("{server}{wrong}")).unwrap_err();
    let text = error.to_string();
    assert!(text.lines().count() <= MOST_PROBLEMS + 2 && text.contains("line 5: server[0].route[0].plugin"), "{text}");
    let unknown: String = (0..20_000).map(|i| format!("key{i} = 1\n")).collect();
    let text = parse(&unknown).unwrap_err().to_string();
    assert!(text.starts_with("failed to accept") && text.contains("20000 problems") && text.ends_with("..."));
    assert!(text.lines().count() <= MOST_PROBLEMS + 2);
}

#[test]
fn variables_cannot_make_a_configuration_larger_than_a_file() {
    let (_dir, path) =
        file(&format!("[plugins.a.config]\n{}", (0..50).map(|i| format!("k{i} = \"${{BIG}}\"\n")).collect::<String>()));
    let variables = |_: &str| Some("x".repeat(100_000));
    let error = Config::load_with(Some(&path), &[], &variables).unwrap_err().to_string();
    assert!(error.contains(": the variables bring more than 4194304 bytes in all"), "{error}");
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_what_was_meant() {
    for (text, says) in [
        (
            "name = \"x\"\n[drain]\ntimout = \"5s\"\n",
            "line 3: drain.timout: there is no such key; did you mean `timeout`?",
        ),
        ("[drian]\ntimeout = \"5s\"\n", "line 1: drian: there is no such key; did you mean `drain`?"),
        ("drain.timout = \"5s\"\n", "line 1: drain.timout: there is no such key; did you mean `timeout`?"),
        ("[store]\nsize = 3\n", "line 2: store.size: there is no such key; there are `keep`, `owners`, `signers`"),
        (
            "[[server]]\nlisten = [\"127.0.0.1:1\"]\nnane = \"x\"\n",
            "line 3: server[0].nane: there is no such key; did you mean `name`?",
        ),
        ("[plugins.a]\nmonut = \"/\"\n", "line 2: plugins.a.monut: there is no such key; did you mean `mount`?"),
    ] {
        assert_eq!(refused(text, &[]), [says], "{text}");
    }
}

#[test]
fn limits_that_cannot_hold_are_refused_with_what_to_write() {
    let text = "[limits]\nbody_size = \"10 MB\"\n";
    assert!(refused(text, &[])[0].contains("10 MiB"));
    let text = "[limits]\nhead_size = \"1 KiB\"\nhead_fields = 0\nidle_timeout = \"0s\"\nconnections = 5\n";
    assert_eq!(
        refused(text, &[]),
        [
            "line 2: limits.head_size: must lie between 8 KiB and 1 MiB",
            "line 3: limits.head_fields: must lie between 1 and 10000"
        ]
    );
}

#[test]
fn counts_and_times_beyond_their_bounds_are_refused() {
    for (text, says) in [
        ("start_timeout = \"500000000000years\"\n", "`500000000000years` is too long: at most 3650days"),
        ("crash.window = \"3651days\"\n", "is too long"),
        ("drain.max = \"100years\"\n", "\"never\" is no limit"),
        ("workers = 1025\n", "line 1: workers: must lie between 0 and 1024"),
        ("drain.linger = \"61s\"\n", "line 1: drain.linger: must be at most 1min"),
        ("max_draining = 1001\n", "line 1: max_draining: must lie between 1 and 1000"),
        ("[crash]\nlimit = 9223372036854775807\n", "line 2: crash.limit: must lie between 1 and 1000"),
        ("[store]\nkeep = 9223372036854775807\n", "line 2: store.keep: must lie between 0 and 1000"),
        ("[limits]\nconnections = 9223372036854775807\n", "line 2: limits.connections: must lie between"),
        ("[limits]\nbody_size = \"18446744073709551615\"\n", "is too large"),
        ("[plugins.a]\nworkers = 4294967295\n", "line 2: plugins.a.workers: must lie between 0 and 1024"),
        ("[drain]\nmin_rate = 1099511627777\n", "line 2: drain.min_rate: must lie between 0 and 1099511627776 bytes"),
        ("[limits]\nbody_min_rate = 1099511627777\n", "line 2: limits.body_min_rate: must lie between"),
        ("[limits]\nconnections_per_peer = 100000001\n", "line 2: limits.connections_per_peer: must lie between"),
        ("[limits]\nhttp2_glitches = 99\n", "line 2: limits.http2_glitches: must be at least 100"),
        (&format!("[plugins.{}]\nworkers = 1\n", "x".repeat(256)), "must lie between 1 and 255 bytes"),
    ] {
        let refused = refused(text, &[]);
        assert!(refused.len() == 1 && refused[0].contains(says), "{text}: {refused:?}");
    }
}

#[test]
fn addresses_that_exclude_each_other_are_refused() {
    let server = "[[server]]\nname = \"a\"\n";
    for (text, says) in [
        (
            format!("{server}listen = [\"0.0.0.0:80\", \"127.0.0.1:80\"]\n"),
            "0.0.0.0:80 takes the connections of 127.0.0.1:80",
        ),
        (
            format!("[admin]\nlisten = \"127.0.0.1:80\"\n{server}listen = [\"0.0.0.0:80\"]\n"),
            "line 2: admin.listen: 127.0.0.1:80 collides",
        ),
        (
            "[admin]\nlisten = \"127.0.0.1:81\"\nprobe_listen = \"0.0.0.0:81\"\n".into(),
            "line 3: admin.probe_listen: 0.0.0.0:81 collides",
        ),
        ("[admin]\npublic_metrics = true\n".into(), "line 2: admin.public_metrics: is for admin.probe_listen"),
    ] {
        let refused = refused(&text, &[]);
        assert!(refused.len() == 1 && refused[0].contains(says), "{text}: {refused:?}");
    }
    assert!(parse(&format!("{server}listen = [\"127.0.0.1:80\", \"127.0.0.2:80\", \"[::1]:80\"]\n")).is_ok());
}

#[test]
fn every_table_of_the_shape_knows_its_keys() {
    fn assert_known(table: &toml::Table, path: &mut Vec<String>) {
        let keys = super::load::known(path).unwrap_or_else(|| panic!("no keys are known for {path:?}"));
        for (key, value) in table {
            assert!(keys.contains(&key.as_str()), "{path:?} {key}");
            path.push(key.clone());
            match value {
                toml::Value::Table(table) if path[..] != ["plugins"] => assert_known(table, path),
                toml::Value::Array(array) => {
                    array.iter().filter_map(toml::Value::as_table).for_each(|table| assert_known(table, path));
                }
                _ => {}
            }
            path.pop();
        }
    }
    assert_known(&toml::Table::try_from(Config::default()).unwrap(), &mut Vec::new());
    // What a plugin is given is its own affair.
    assert_eq!(parse("[plugins.a.config.any]\nthing = 1\n").unwrap().plugin("a").unwrap().config.len(), 1);
}

#[test]
fn all_that_is_wrong_is_told_at_once_in_the_order_of_its_lines() {
    let text = r#"start_timeout = "soon"
workers = -1
nam = "x"
[drain]
timeout = "${NOWHERE_SET}"
max = 5
[[server]]
name = "a"
[plugins.a]
config = { key = "${" }
"#;
    let lines = refused(text, &["drain.timout=5s", "workers=many"]);
    let starts =
        ["line 1: start_timeout", "line 2: workers", "line 3: nam", "line 5: drain.timeout", "line 6: drain.max"];
    let rest = ["line 7: server[0]", "line 10: plugins.a.config.key", "--set drain.timout=5s", "--set workers=many"];
    let all: Vec<&str> = starts.into_iter().chain(rest).collect();
    for start in &all {
        assert!(lines.iter().any(|line| line.starts_with(start)), "{start}: {lines:#?}");
    }
    let order: Vec<&str> =
        lines.iter().filter_map(|line| all.iter().find(|s| line.starts_with(**s)).copied()).collect();
    assert!(order.is_sorted_by_key(|start| all.iter().position(|one| one == start)), "{lines:#?}");
    let error = Config::load(Some(&file(text).1), &[]).unwrap_err().to_string();
    assert!(error.contains(" problems\n  line 1"), "{error}");
}

#[test]
fn broken_rules_name_their_lines_too() {
    let text =
        "max_draining = 0\n[[server]]\nlisten = [\"127.0.0.1:1\",\n  \"localhost\"]\n[plugins.a]\nmount = \"x\"\n";
    let lines = refused(text, &[]);
    let keys = ["line 1: max_draining: ", "line 3: server[0].listen: ", "line 6: plugins.a.mount: "];
    assert_eq!(lines.len(), keys.len(), "{lines:#?}");
    for (line, key) in lines.iter().zip(keys) {
        assert!(line.starts_with(key), "{line}");
    }
    let lines = refused("name = \"x\"\n", &["name=a/b"]);
    assert!(lines[0].starts_with("--set name=a/b: name: "), "{lines:?}");
}

#[test]
fn what_is_no_toml_is_shown_with_its_line() {
    let error = parse("name = \"x\"\nworkers = \n").unwrap_err().to_string();
    assert!(error.contains("baton.toml") && error.contains("line 2"), "{error}");
}

#[test]
fn variables_stand_for_the_environment_in_any_string() {
    let variables = |name: &str| (name == "PORT").then(|| "81${PORT}".to_owned());
    let (_dir, path) = file(
        "[[server]]\nlisten = [\"127.0.0.1:8080\"]\n[plugins.a.config]\ntext = [\"a${PORT}b${PORT}\", \"$${PORT} $5 $$ $\"]\n",
    );
    let (config, _) = Config::load_with(Some(&path), &[], &variables).unwrap();
    let text = config.plugin("a").unwrap().config["text"].as_array().unwrap().clone();
    // What a variable holds is not looked into again.
    assert_eq!(text[0].as_str(), Some("a81${PORT}b81${PORT}"));
    assert_eq!(text[1].as_str(), Some("${PORT} $5 $$ $"));
    let (config, _) = Config::load_with(None, &["plugins.a.config.x=${PORT}".into()], &variables).unwrap();
    assert_eq!(config.plugin("a").unwrap().config["x"].as_str(), Some("${PORT}"), "the shell has seen it");
}

#[test]
fn a_variable_that_is_not_set_is_refused_with_key_line_and_name() {
    for (value, says) in [
        ("${BATON_NOT_SET}", "the environment variable `BATON_NOT_SET` is not set"),
        ("${}", "`${}` names no variable; write `$${` for a plain `${`"),
        ("${1A}", "`${1A}` names no variable; write `$${` for a plain `${`"),
        ("a ${HOME", "a `${` has no `}`; write `$${` for a plain `${`"),
    ] {
        let lines = refused(&format!("name = \"x\"\n[log]\nlevel = \"{value}\"\n"), &[]);
        assert_eq!(lines, [format!("line 3: log.level: {says}")]);
    }
}

#[test]
fn routes_are_taken_inline_and_as_tables() {
    let text = r#"[[server]]
listen = ["127.0.0.1:1"]
health = "/healthz"
[[server.route]]
host = "*.A.example"
prefix = "/x"
plugin = "hello"
[[server.route]]
host = "[::1]"
plugin = "hello"
"#;
    let config = parse(text).unwrap();
    let routes: Vec<String> = config.server[0].route.iter().map(ToString::to_string).collect();
    assert_eq!(routes, ["*.A.example/x", "[::1]/"]);
    assert_eq!(config.server[0].health.as_deref(), Some("/healthz"));
    let lines = refused(&text.replace("prefix", "prefx"), &[]);
    assert_eq!(lines, ["line 6: server[0].route[0].prefx: there is no such key; did you mean `prefix`?"]);
}

#[test]
fn probes_are_taken_and_those_that_cannot_be_sent_are_refused() {
    let server = "[[server]]\nlisten = [\"127.0.0.1:1\"]\n";
    let text =
        format!("{server}[[server.probe]]\npath = \"/up?x\"\nheaders = {{ accept = \"text/html\" }}\nbody = \"ok\"\n");
    let config = parse(&text).unwrap();
    let expected = Probe {
        path: "/up?x".into(),
        headers: [("accept".into(), "text/html".into())].into(),
        body: Some("ok".into()),
        ..Probe::default()
    };
    assert_eq!(config.server[0].probe, [expected]);
    for (line, says) in [
        ("path = \"up\"", "`up` is no path"),
        ("path = \"/a b\"", "`/a b` is no path"),
        ("method = \"GET IT\"", "no method"),
        ("method = \"CONNECT\"", "no method"),
        ("host = \"a\\nb\"", "header"),
        ("headers = { \"a b\" = \"c\" }", "no header"),
        ("headers = { Host = \"c\" }", "beside"),
        ("status = 101", "200 to 599"),
        ("timeout = \"never\"", "never"),
        ("paht = \"/\"", "did you mean `path`"),
    ] {
        let problems = refused(&format!("{server}[[server.probe]]\n{line}\n"), &[]);
        assert!(problems.len() == 1 && problems[0].starts_with("line 4: server[0].probe[0]"), "{problems:?}");
        assert!(problems[0].contains(says), "{problems:?}");
    }
}

#[test]
fn paths_in_a_file_are_relative_to_the_file() {
    let (dir, path) = file(
        "plugin_dir = \"p\"\nstate_dir = \"../s\"\nruntime_dir = \"/run/x\"\n[plugins.a]\nfile = \"a.so\"\n\
         [[server]]\nlisten = [\"127.0.0.1:1\", \"unix:x\", \"unix:/run/y\"]\n",
    );
    let config = Config::load(Some(&path), &[]).unwrap();
    assert_eq!(config.plugin("a").unwrap().file, Some(dir.path().join("a.so")));
    assert_eq!(config.plugin_dir, dir.path().join("p"));
    assert_eq!(config.state_dir, Some(dir.path().join("../s")));
    assert_eq!(config.runtime_dir, Some("/run/x".into()));
    let socket = format!("unix:{}", dir.path().join("x").display());
    assert_eq!(config.server[0].listen, ["127.0.0.1:1", &socket, "unix:/run/y"]);
    // Those of a setting are the shell's.
    let config = Config::load(Some(&path), &["plugin_dir=q".into()]).unwrap();
    assert_eq!(config.plugin_dir, Path::new("q"));
}

#[test]
fn bad_values_are_refused_and_say_what_to_write() {
    for (text, hint) in [
        ("[drain]\ntimeout = \"soon\"", "never"),
        ("start_timeout = \"never\"", "cannot be"),
        ("[[server]]\nlisten = [\"localhost\"]", "IP:PORT"),
        ("[[server]]\nlisten = [\"unix:\"]", "names no file"),
        ("[[server]]\nlisten = [\"unix:/run/\"]", "names no file"),
        (&format!("[[server]]\nlisten = [\"unix:/{}\"]", "x".repeat(99)), "too long for a socket"),
        ("[[server]]\nlisten = [\"unix:/run/x\", \"unix:/run/./x\"]", "listed twice"),
        ("[[server]]\nlisten = [\"[::1]:1\"]\nsocket_group = \"web\"", "there is none"),
        ("[[server]]\nlisten = [\"unix:/x\"]\nsocket_mode = \"rw\"", "octal"),
        ("[[server]]\nlisten = [\"127.0.0.1:1\"]\n[[server]]\nlisten = [\"127.0.0.1:2\"]", "name"),
        ("[[server]]\nlisten = [\"systemd:\"]", "FileDescriptorName"),
        ("[[server]]\nlisten = [\"systemd:web\", \"systemd:web\"]", "listed twice"),
        (
            "[[server]]\nlisten = [\"127.0.0.1:1\", \"127.0.0.1:0\", \"127.0.0.1:0\", \"127.0.0.1:1\"]",
            "127.0.0.1:1 is listed twice",
        ),
        ("[plugins.a]\nmount = \"/x/\"", "`/x`"),
        ("[plugins.\"../a\"]\nfile = \"a.so\"", "letters"),
        (
            "[[server]]\nlisten = [\"127.0.0.1:1\"]\nroute = [{ plugin = \"a\" }, { prefix = \"/\", plugin = \"b\" }]",
            "two routes for */",
        ),
        ("[[server]]\nlisten = [\"127.0.0.1:1\"]\nroute = [{ host = \"a:80\", plugin = \"a\" }]", "all ports"),
        ("[[server]]\nlisten = [\"127.0.0.1:1\"]\nroute = [{ host = \"*\", plugin = \"a\" }]", "`*` is no host"),
        ("[[server]]\nlisten = [\"127.0.0.1:1\"]\nroute = [{ host = \"a\" }]", "missing field `plugin`"),
        ("[[server]]\nlisten = [\"127.0.0.1:1\"]\nroute = [{ prefix = \"x\", plugin = \"a\" }]", "begin with `/`"),
        ("[[server]]\nlisten = [\"127.0.0.1:1\"]\nhealth = \"up\"", "begin with `/`"),
        ("name = \"a/b\"", "letters"),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(hint), "{text}: {error}");
    }
}

#[test]
fn settings_are_laid_over_the_file() {
    let config =
        Config::load(None, &["drain.timeout=7s".into(), "workers=3".into(), "plugins.a.config.x=1".into()]).unwrap();
    assert_eq!(config.drain.timeout, Limit::After(seconds(7)));
    assert_eq!(config.workers, 3);
    assert_eq!(config.plugin("a").unwrap().config["x"].as_integer(), Some(1));
    let config =
        Config::load(Some(&file("[drain]\ntimeout = \"1s\"\nmax = \"2s\"\n").1), &["drain.max=3s".into()]).unwrap();
    assert_eq!((config.drain.timeout, config.drain.max), (Limit::After(seconds(1)), Limit::After(seconds(3))));
}

#[test]
fn a_setting_that_cannot_be_is_refused_by_name() {
    for (setting, says) in [
        ("nonsense", "KEY=VALUE"),
        ("=5", "`` is no key"),
        ("drain..max=5", "`drain..max` is no key"),
        ("drain.timout=5s", "drain.timout: there is no such key; did you mean `timeout`?"),
        ("workers=many", "workers: invalid type"),
        ("server.name=x", "server: invalid type"),
        ("name=a\nworkers = 3", "name: `a\nworkers = 3` may hold"),
    ] {
        let error = Config::load(None, &[setting.into()]).unwrap_err().to_string();
        assert!(error.contains(&format!("--set {setting}: ")) && error.contains(says), "{setting}: {error}");
    }
}

#[test]
fn a_plugin_is_found_whichever_dash_is_written() {
    let config = Config::load(None, &["plugins.axum-app.mount=/x".into()]).unwrap();
    assert_eq!(config.plugin("axum_app").unwrap().mount.as_deref(), Some("/x"));
    assert!(config.plugin("axum").is_none());
}

/// As a child, the next program or the next start gets it.
fn carried(config: &Config) -> (serde_json::Value, Config) {
    #[derive(Serialize, Deserialize)]
    struct Message {
        #[serde(with = "super::carried")]
        config: Config,
    }
    let json = serde_json::to_value(Message { config: config.clone() }).unwrap();
    let Message { config } = serde_json::from_value(json.clone()).unwrap();
    (json["config"].clone(), config)
}

#[test]
fn the_effective_configuration_arrives_as_it_was_and_brings_only_what_was_set() {
    let (json, back) = carried(&Config::default());
    assert_eq!(back, Config::default());
    assert_eq!(json, serde_json::json!({ "server": [{ "listen": ["127.0.0.1:8080"] }], "plugins": {} }));
    let text = r#"
        workers = 3
        drain.max = "never"
        drain.timeout = "60s"
        probation.max_failure_ratio = 0.25
        [[server]]
        listen = ["127.0.0.1:0", "unix:/x"]
        socket_mode = "660"
        tls = [{ cert = "/c", key = "/k" }]
        [[server]]
        name = "b"
        listen = ["127.0.0.1:0"]
        health = "/health"
        http2 = false
        route = [{ prefix = "/a", plugin = "a" }, { host = "b.example", plugin = "plain" }]
        probe = [{ path = "/up", status = 204 }, { headers = { accept = "text/plain" } }]
        [plugins.a]
        allow_control = false
        config = { when = 1979-05-27, workers = 0, none = {} }
        [plugins.plain]
    "#;
    let config = Config { plugin_dir: "plugins".into(), ..parse(text).unwrap() };
    let (json, back) = carried(&config);
    assert_eq!(back, config);
    let expected = serde_json::json!({
        "workers": 3,
        "drain": { "max": "never" },
        "probation": { "max_failure_ratio": 0.25 },
        "server": [
            { "listen": ["127.0.0.1:0", "unix:/x"], "socket_mode": "0660", "tls": [{ "cert": "/c", "key": "/k" }] },
            {
                "name": "b",
                "listen": ["127.0.0.1:0"],
                "health": "/health",
                "http2": false,
                "route": [{ "prefix": "/a", "plugin": "a" }, { "host": "b.example", "plugin": "plain" }],
                "probe": [{ "path": "/up", "status": 204 }, { "headers": { "accept": "text/plain" } }],
            },
        ],
        "plugins": {
            "a": { "allow_control": false, "config": config.plugins["a"].config },
            "plain": {},
        },
    });
    assert_eq!(json, expected);
}

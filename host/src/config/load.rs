//! Reading the configuration: the file, then the settings over it. All that is wrong is told at once, each with its line or
//! its setting: keys that do not exist, values of the wrong kind, variables that are not set, rules that do not hold.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, Visitor, value};
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::*;

/// Above this likeness (0 to 1) a key that does not exist is taken for a slip of the keyboard.
const LIKE: f64 = 0.7;

/// What is relative in a file is relative to the file.
const PATHS: [&str; 3] = ["runtime_dir", "state_dir", "plugin_dir"];

type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Config {
    /// Reads `file` (if any), lays `settings` (`KEY=VALUE`, dotted keys, TOML values or bare strings) over it, validates.
    ///
    /// `${VAR}` in a string of the file is the environment's; a shell has seen the settings already.
    #[cfg(test)]
    pub fn load(file: Option<&Path>, settings: &[String]) -> Result<Config, ConfigError> {
        Config::load_known(file, settings).map(|(config, _)| config)
    }

    /// The same, with where it came from.
    pub fn load_known(file: Option<&Path>, settings: &[String]) -> Result<(Config, ConfigSource), ConfigError> {
        Config::load_with(file, settings, &|name| std::env::var(name).ok())
    }

    pub(super) fn load_with(
        file: Option<&Path>,
        settings: &[String],
        variables: Variables<'_>,
    ) -> Result<(Config, ConfigSource), ConfigError> {
        let mut places = BTreeMap::new();
        let mut problems = Vec::new();
        let mut table = toml::Table::new();
        let mut origin = ConfigSource::NoFile;
        if let Some(path) = file {
            let text = file::read(path)?;
            let mut reader = Reader::new(&text, Some(variables), &mut places);
            table = reader
                .read()
                .map_err(|error| ConfigError::Syntax { path: path.to_owned(), text: error.to_string() })?;
            problems = reader.problems;
            origin = ConfigSource::File { path: path.to_owned(), sets_keys: !table.is_empty() };
            // Where it is read from if nobody says otherwise: beside the file, as every path in it.
            table.entry("plugin_dir").or_insert_with(|| Config::default().plugin_dir.display().to_string().into());
            // Without a current directory paths stay as they were written.
            let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            from_folder(&mut table, path.parent().unwrap_or(Path::new("/")));
        }
        for setting in settings {
            let place = Place::Setting(setting.clone());
            let (keys, over) = match document(setting) {
                Ok(parts) => parts,
                Err(why) => {
                    problems.push(Problem { place: Some(place), key: None, why });
                    continue;
                }
            };
            let mut places_within = BTreeMap::new();
            let mut reader = Reader::new(&over, None, &mut places_within);
            match reader.read() {
                Ok(over) => {
                    let refused = reader.problems.into_iter().map(|problem| problem.moved_to(&place));
                    problems.extend(refused);
                    if let Err(why) = lay_over(&mut table, over) {
                        problems.push(Problem { place: Some(place.clone()), key: None, why });
                    }
                }
                Err(error) => {
                    problems.push(Problem { place: Some(place.clone()), key: None, why: error.message().into() });
                }
            }
            // What it sets is found there from now on, and no longer in the file.
            let below = format!("{keys}.");
            places.retain(|key, _| key != &keys && !key.starts_with(&below));
            places.insert(keys, place);
        }
        ConfigError::unless_empty(file, problems)?;
        let config: Config = table.try_into().map_err(|error: toml::de::Error| ConfigError::Refused {
            path: file.map(Path::to_owned),
            problems: vec![Problem { place: None, key: None, why: error.message().into() }],
        })?;
        let broken = config.problems().into_iter().map(|problem| problem.found_in(&places)).collect();
        ConfigError::unless_empty(file, broken)?;
        Ok((config, origin))
    }
}

/// One document, read with the lines of its keys kept.
struct Reader<'a> {
    text: &'a str,
    /// Where each line of it begins.
    lines: Vec<usize>,
    /// Expands `${VAR}`, unless strings are taken as they are.
    variables: Option<Variables<'a>>,
    /// Bytes that the variables may still add.
    room: usize,
    /// Where each key was set.
    places: &'a mut BTreeMap<String, Place>,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str, variables: Option<Variables<'a>>, places: &'a mut BTreeMap<String, Place>) -> Reader<'a> {
        let begins = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        let lines = std::iter::once(0).chain(begins).collect();
        Reader { text, lines, variables, room: MAX_FILE as usize, places, problems: Vec::new() }
    }

    /// What is right in the document; what is not is in `problems`. The error is for what is no TOML.
    fn read(&mut self) -> Result<toml::Table, toml::de::Error> {
        let mut root = DeTable::parse(self.text)?;
        self.table(root.get_mut(), &mut Vec::new(), "");
        // The first value of a wrong kind is told, taken out, and so on until all are right.
        while let Err(error) = Config::deserialize(toml::de::Deserializer::from(root.clone())) {
            let key = error.span().and_then(|span| take_out(root.get_mut(), &span, ""));
            let place = error.span().map(|span| self.line(span));
            let found = key.is_some();
            self.problems.push(Problem { place, key, why: error.message().into() });
            // Each turn reads the whole: nobody reads more of them at once.
            if !found || self.problems.len() >= MOST_PROBLEMS {
                break;
            }
        }
        toml::Table::deserialize(toml::de::Deserializer::from(root))
    }

    fn line(&self, span: Range<usize>) -> Place {
        Place::Line(self.lines.partition_point(|begin| *begin <= span.start))
    }

    /// Takes out the keys that do not exist. `path` has no array indices, `key` has.
    fn table(&mut self, table: &mut DeTable<'_>, path: &mut Vec<String>, key: &str) {
        let known = known(path);
        let mut unknown = Vec::new();
        for (name, value) in table.iter_mut() {
            let full = joined(key, name.get_ref());
            let place = self.line(name.span());
            if let Some(known) = known
                && !known.contains(&&**name.get_ref())
            {
                let why = nearest(name.get_ref(), known);
                self.problems.push(Problem { place: Some(place), key: Some(full), why });
                unknown.push(name.clone());
                continue;
            }
            self.places.insert(full.clone(), place);
            path.push(name.get_ref().to_string());
            self.value(value, path, &full);
            path.pop();
        }
        unknown.iter().for_each(|name| drop(table.remove(name)));
    }

    fn value(&mut self, value: &mut Spanned<DeValue<'_>>, path: &mut Vec<String>, key: &str) {
        let span = value.span();
        match value.get_mut() {
            DeValue::Table(table) => self.table(table, path, key),
            DeValue::Array(array) => {
                for (index, element) in array.iter_mut().enumerate() {
                    let key = format!("{key}[{index}]");
                    let place = self.line(element.span());
                    self.places.insert(key.clone(), place);
                    self.value(element, path, &key);
                }
            }
            DeValue::String(text) => {
                let Some(variables) = self.variables else { return };
                let expanded = expand(text, variables).and_then(|expanded| {
                    let Some(expanded) = expanded else { return Ok(None) };
                    let left = self.room.checked_sub(expanded.len());
                    self.room = left.ok_or_else(|| format!("the variables bring more than {MAX_FILE} bytes in all"))?;
                    Ok(Some(expanded))
                });
                match expanded {
                    Ok(Some(expanded)) => *text = expanded.into(),
                    Ok(None) => {}
                    Err(why) => {
                        let place = Some(self.line(span));
                        self.problems.push(Problem { place, key: Some(key.into()), why });
                    }
                }
            }
            _ => {}
        }
    }
}

fn joined(key: &str, name: &str) -> String {
    if key.is_empty() { name.into() } else { format!("{key}.{name}") }
}

/// Removes the innermost value at `span`, and answers its key.
fn take_out(table: &mut DeTable<'_>, span: &Range<usize>, key: &str) -> Option<String> {
    let mut hit = None;
    for (name, value) in table.iter_mut() {
        let full = joined(key, name.get_ref());
        if let Some(found) = take_out_of(value, span, &full) {
            return Some(found);
        }
        if covers(&value.span(), span) || covers(&name.span(), span) {
            hit = Some((name.clone(), full));
            break;
        }
    }
    let (name, full) = hit?;
    table.remove(&name);
    Some(full)
}

fn take_out_of(value: &mut Spanned<DeValue<'_>>, span: &Range<usize>, key: &str) -> Option<String> {
    match value.get_mut() {
        DeValue::Table(table) => take_out(table, span, key),
        DeValue::Array(array) => {
            let mut hit = None;
            for (index, element) in array.iter_mut().enumerate() {
                let key = format!("{key}[{index}]");
                if let Some(found) = take_out_of(element, span, &key) {
                    return Some(found);
                }
                if covers(&element.span(), span) {
                    hit = Some((index, key));
                    break;
                }
            }
            let (index, key) = hit?;
            let all = std::mem::replace(array, DeArray::new()).into_iter().enumerate();
            *array = all.filter(|(at, _)| *at != index).map(|(_, element)| element).collect();
            Some(key)
        }
        _ => None,
    }
}

fn covers(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

// ---- which keys there are ----

/// The keys of the table at `path`; nothing where any key may stand.
pub(super) fn known(path: &[String]) -> Option<&'static [&'static str]> {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match path[..] {
        [] => Some(keys::<Config>()),
        ["drain"] => Some(keys::<Drain>()),
        ["shutdown"] => Some(keys::<Shutdown>()),
        ["limits"] => Some(keys::<Limits>()),
        ["probation"] => Some(keys::<Probation>()),
        ["tls"] => Some(keys::<Tls>()),
        ["crash"] => Some(keys::<Crash>()),
        ["store"] => Some(keys::<Store>()),
        ["watch"] => Some(keys::<Watch>()),
        ["admin"] => Some(keys::<Admin>()),
        ["log"] => Some(keys::<Log>()),
        ["signals"] => Some(keys::<Signals>()),
        ["server"] => Some(keys::<Server>()),
        ["server", "tls"] => Some(keys::<Certificate>()),
        ["server", "route"] => Some(keys::<Route>()),
        ["server", "probe"] => Some(keys::<Probe>()),
        ["plugins", _] => Some(keys::<Plugin>()),
        _ => None,
    }
}

/// The fields of `T`, as its `Deserialize` asks for them.
fn keys<T: for<'de> Deserialize<'de>>() -> &'static [&'static str] {
    struct Listen<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Listen<'_> {
        type Error = value::Error;

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, value::Error> {
            *self.0 = fields;
            Err(value::Error::custom("only listening"))
        }

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, value::Error> {
            Err(value::Error::custom("no struct"))
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
            newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut fields: &'static [&'static str] = &[];
    // It always fails: all that is wanted is what was asked for.
    let _ = T::deserialize(Listen(&mut fields));
    fields
}

/// That there is no such key, and which one may have been meant.
fn nearest(name: &str, known: &[&str]) -> String {
    let likeness = |known: &&str| strsim::normalized_damerau_levenshtein(name, known);
    let best = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    match best.filter(|best| likeness(best) >= LIKE) {
        Some(best) => format!("there is no such key; did you mean `{best}`?"),
        None => format!("there is no such key; there are {}", listed(known)),
    }
}

fn listed(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

// ---- variables ----

/// `text` with each `${VAR}` replaced, `$${` being a plain `${`; nothing if there is none.
fn expand(text: &str, variables: Variables<'_>) -> Result<Option<String>, String> {
    if !text.contains("${") {
        return Ok(None);
    }
    let mut expanded = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, from) = rest.split_at(at);
        if let Some(before) = before.strip_suffix('$') {
            expanded.push_str(before);
            expanded.push_str("${");
            rest = &from[2..];
            continue;
        }
        expanded.push_str(before);
        let end = from.find('}').ok_or("a `${` has no `}`; write `$${` for a plain `${`")?;
        let name = &from[2..end];
        let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
        if !first || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(format!("`${{{name}}}` names no variable; write `$${{` for a plain `${{`"));
        }
        let value = variables(name).ok_or_else(|| format!("the environment variable `{name}` is not set"))?;
        expanded.push_str(&value);
        rest = &from[end + 1..];
    }
    expanded.push_str(rest);
    Ok(Some(expanded))
}

// ---- paths and settings ----

fn from_folder(table: &mut toml::Table, folder: &Path) {
    let join = |value: &mut toml::Value| {
        if let toml::Value::String(path) = value {
            *path = folder.join(&*path).to_string_lossy().into_owned();
        }
    };
    PATHS.iter().for_each(|key| {
        if let Some(value) = table.get_mut(*key) {
            join(value);
        }
    });
    let plugins = table.get_mut("plugins").and_then(toml::Value::as_table_mut);
    let files =
        plugins.into_iter().flat_map(|plugins| plugins.iter_mut()).filter_map(|(_, plugin)| plugin.get_mut("file"));
    files.for_each(join);
    let servers = table.get_mut("server").and_then(toml::Value::as_array_mut);
    let listens = servers.into_iter().flatten().filter_map(|server| server.get_mut("listen")?.as_array_mut());
    for listen in listens.flatten() {
        if let toml::Value::String(text) = listen
            && let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty())
        {
            *text = format!("unix:{}", folder.join(path).display());
        }
    }
    for server in table.get_mut("server").and_then(toml::Value::as_array_mut).into_iter().flatten() {
        let certificates = server.get_mut("tls").and_then(toml::Value::as_array_mut);
        for certificate in certificates.into_iter().flatten() {
            for key in ["cert", "key"] {
                certificate.get_mut(key).map(join);
            }
        }
    }
}

/// The key of a setting, and the document that it stands for.
fn document(setting: &str) -> Result<(String, String), String> {
    let (key, value) =
        setting.split_once('=').ok_or("this is no setting; write KEY=VALUE, such as drain.timeout=30s")?;
    let key = key.trim();
    let bare = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
    };
    if !key.split('.').all(bare) {
        return Err(format!("`{key}` is no key; write KEY=VALUE, such as drain.timeout=30s"));
    }
    let as_toml = format!("{key} = {value}");
    // Durations, addresses and names need no quotes. A line break would begin a second key.
    let text = if !value.contains('\n') && as_toml.parse::<toml::Table>().is_ok() {
        as_toml
    } else {
        format!("{key} = {}", toml::Value::String(value.into()))
    };
    Ok((key.into(), text))
}

/// Tables are merged; anything else takes the place of what was there.
fn lay_over(under: &mut toml::Table, over: toml::Table) -> Result<(), String> {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(toml::Value::Table(under)), toml::Value::Table(over)) => lay_over(under, over)?,
            (Some(toml::Value::Array(_)), toml::Value::Table(_)) => {
                return Err(format!("`{key}` is a list in the file; set it there"));
            }
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
    Ok(())
}

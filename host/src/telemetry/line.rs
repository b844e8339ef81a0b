//! One event as text: pretty for a person, compact for the journal, JSON for a machine. Pure: what stderr is, and the time,
//! are told. What a plugin logs is not trusted to hold no control characters.

use std::fmt::Write;
use std::time::SystemTime;

use serde_json::Value;
use tracing::Level;
use tracing::field::{Field, Visit};

use crate::config::LogFormat;

/// How lines look at the moment.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    pub format: LogFormat,
    pub colour: bool,
    /// stderr is the journal, which has its own time and takes the priority from the line's start.
    pub journal: bool,
}

/// Fields of an event and its spans in the order in which they came; the innermost word on a name counts.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    message: String,
    pairs: Vec<(&'static str, Value)>,
}

impl Fields {
    pub fn put(&mut self, name: &'static str, value: Value) {
        match self.pairs.iter_mut().find(|(known, _)| *known == name) {
            Some(pair) => pair.1 = value,
            None => self.pairs.push((name, value)),
        }
    }

    pub fn lay_over(&mut self, other: &Fields) {
        for (name, value) in &other.pairs {
            self.put(name, value.clone());
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = value.into(),
            name => self.put(name, value.into()),
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(error) = source {
            let inner = error.to_string();
            // Many texts name their source already.
            if !text.contains(&inner) {
                text = format!("{text}: {inner}");
            }
            source = error.source();
        }
        self.record_str(field, &text);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

pub struct Line<'a> {
    pub time: SystemTime,
    pub level: Level,
    pub target: &'a str,
    pub fields: Fields,
}

impl Line<'_> {
    /// The line with its end.
    pub fn render(&self, look: Look) -> String {
        let mut text = String::with_capacity(160);
        match look.format {
            LogFormat::Pretty => self.pretty(&mut text, look.colour),
            LogFormat::Compact => self.compact(&mut text, look.journal),
            LogFormat::Json | LogFormat::Auto => self.json(&mut text),
        }
        text.push('\n');
        text
    }

    fn json(&self, text: &mut String) {
        let quoted = |value: &str| harmless(Value::from(value).to_string());
        // Writing to a String cannot fail.
        write!(
            text,
            r#"{{"time":"{}","level":"{}","message":{}"#,
            humantime::format_rfc3339_millis(self.time),
            self.level.as_str().to_ascii_lowercase(),
            quoted(&self.fields.message),
        )
        .ok();
        for (name, value) in &self.fields.pairs {
            // These names are the line's own.
            let prefix = if matches!(*name, "time" | "level" | "target") { "field_" } else { "" };
            write!(text, ",{}:{}", quoted(&format!("{prefix}{name}")), harmless(value.to_string())).ok();
        }
        write!(text, r#","target":{}}}"#, quoted(self.target)).ok();
    }

    fn compact(&self, text: &mut String, journal: bool) {
        if journal {
            // sd-daemon(3): the journal takes the priority from here.
            write!(text, "<{}>", priority(self.level)).ok();
        } else {
            write!(text, "{} {:>5} ", humantime::format_rfc3339_millis(self.time), self.level).ok();
        }
        self.foreign_target(text);
        escape(text, &self.fields.message, "\\n");
        for (name, value) in &self.fields.pairs {
            text.push(' ');
            escape(text, name, "\\n");
            text.push('=');
            plain(text, value);
        }
    }

    fn pretty(&self, text: &mut String, colour: bool) {
        let paint = |text: &mut String, code: &str| {
            if colour {
                write!(text, "\x1b[{code}m").ok();
            }
        };
        let stamp = humantime::format_rfc3339_millis(self.time).to_string();
        paint(text, "2");
        // The day is known to whoever watches a terminal: HH:MM:SS.mmm of 2026-01-31T10:20:30.123Z.
        text.push_str(stamp.get(11..23).unwrap_or(&stamp));
        paint(text, "0");
        paint(
            text,
            match self.level {
                Level::ERROR => "1;31",
                Level::WARN => "33",
                Level::INFO => "32",
                _ => "2",
            },
        );
        write!(text, " {:>5} ", self.level).ok();
        paint(text, "0");
        self.foreign_target(text);
        escape(text, &self.fields.message, "\n                   ");
        paint(text, "2");
        for (name, value) in &self.fields.pairs {
            text.push(' ');
            escape(text, name, "\\n");
            text.push('=');
            plain(text, value);
        }
        paint(text, "0");
    }

    /// Ours goes without saying; a plugin's says which.
    fn foreign_target(&self, text: &mut String) {
        if self.target != "baton" && !self.target.starts_with("baton::") {
            escape(text, self.target, "\\n");
            text.push_str(": ");
        }
    }
}

/// As syslog numbers them.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

fn plain(text: &mut String, value: &Value) {
    match value {
        Value::String(word) if is_word(word) => text.push_str(word),
        Value::String(words) => {
            write!(text, "{words:?}").ok();
        }
        other => {
            write!(text, "{other}").ok();
        }
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| !c.is_whitespace() && !steers(c) && !matches!(c, '"' | '=' | '\\'))
}

/// Whether a terminal does something else with it than show it: control characters move the cursor, colour or forge a line, and marks of
/// direction show the rest of the line in another order (Unicode, bidirectional formatting characters).
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// JSON text with escapes for all that [`steers`]: JSON itself asks for them only below the space.
fn harmless(json: String) -> String {
    if !json.contains(steers) {
        return json;
    }
    let mut text = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        match c {
            // All of these lie in the basic plane: one escape each.
            c if steers(c) => drop(write!(text, "\\u{:04x}", u32::from(c))),
            c => text.push(c),
        }
    }
    text
}

fn escape(text: &mut String, raw: &str, newline: &str) {
    for c in raw.trim_end_matches('\n').chars() {
        match c {
            '\n' => text.push_str(newline),
            '\t' => text.push('\t'),
            c if steers(c) => text.extend(c.escape_default()),
            c => text.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn line(level: Level, target: &'static str) -> Line<'static> {
        let mut fields = Fields { message: "http server started".into(), ..Fields::default() };
        fields.put("pid", 7.into());
        fields.put("generation", 2.into());
        fields.put("cause", "HUP from pid 1".into());
        Line { time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_001), level, target, fields }
    }

    fn look(format: LogFormat) -> Look {
        Look { format, colour: false, journal: false }
    }

    #[test]
    fn a_machine_gets_one_object_a_line() {
        let text = line(Level::INFO, "baton::master").render(look(LogFormat::Json));
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["time"], "1970-01-01T00:00:01.001Z");
        assert_eq!(value["level"], "info");
        assert_eq!(value["message"], "http server started");
        assert_eq!(value["pid"], 7);
        assert_eq!(value["generation"], 2);
        assert_eq!(value["target"], "baton::master");
        assert_eq!(text.matches('\n').count(), 1);
    }

    #[test]
    fn the_journal_gets_a_priority_and_no_second_time() {
        let journal = Look { journal: true, ..look(LogFormat::Compact) };
        let text = line(Level::WARN, "baton::master").render(journal);
        assert_eq!(text, "<4>http server started pid=7 generation=2 cause=\"HUP from pid 1\"\n");
        let text = line(Level::WARN, "baton::master").render(look(LogFormat::Compact));
        assert!(text.starts_with("1970-01-01T00:00:01.001Z  WARN http"), "{text}");
    }

    #[test]
    fn a_person_gets_the_time_of_day_and_colours_only_on_a_terminal() {
        let text = line(Level::ERROR, "hello::db").render(look(LogFormat::Pretty));
        assert!(text.starts_with("00:00:01.001 ERROR hello::db: http server started pid=7"), "{text}");
        let colour = Look { colour: true, ..look(LogFormat::Pretty) };
        assert!(line(Level::ERROR, "baton").render(colour).contains("\x1b[1;31m"));
    }

    #[test]
    fn a_plugin_can_neither_forge_lines_nor_steer_the_terminal() {
        let mut forged = line(Level::INFO, "hello");
        forged.fields.message = "bye\x1b[2J\nERROR all lost".into();
        forged.fields.put("user", "a\nb\x1b[0m".into());
        for format in [LogFormat::Compact, LogFormat::Json] {
            let text = forged.render(look(format));
            assert_eq!(text.matches('\n').count(), 1, "{text}");
            assert!(!text.contains('\x1b'), "{text}");
        }
        let text = forged.render(look(LogFormat::Pretty));
        assert!(!text.contains('\x1b') && text.contains("\n     "), "{text}");
    }

    #[test]
    fn names_of_fields_and_marks_of_direction_are_escaped_as_well() {
        let mut forged = line(Level::INFO, "hello\u{9b}2J");
        forged.fields.message = "a\u{202e}b\u{7f}\u{9b}31m".into();
        forged.fields.put("na\x1b[2J\nme\u{9b}", "x\u{2066}y\u{9b}".into());
        forged.fields.put("word", "z\u{202e}".into());
        for format in [LogFormat::Compact, LogFormat::Json, LogFormat::Pretty] {
            let text = forged.render(look(format));
            let (line, end) = text.split_at(text.len() - 1);
            let steers = |c: char| c.is_control() || ['\u{202e}', '\u{2066}'].contains(&c);
            assert!(end == "\n" && !line.contains(steers), "{format:?}: {text:?}");
        }
        let value: Value = serde_json::from_str(&forged.render(look(LogFormat::Json))).unwrap();
        assert_eq!(value["message"], "a\u{202e}b\u{7f}\u{9b}31m", "a machine reads what was said");
    }

    #[test]
    fn the_innermost_word_on_a_name_counts() {
        let mut outer = Fields::default();
        outer.put("generation", 1.into());
        outer.put("request", "a".into());
        let mut inner = Fields::default();
        inner.put("generation", 2.into());
        outer.lay_over(&inner);
        assert_eq!(outer.pairs, [("generation", Value::from(2)), ("request", Value::from("a"))]);
    }

    #[test]
    fn a_field_cannot_pass_for_the_line_s_own() {
        let mut fields = Fields::default();
        fields.put("level", "fatal".into());
        let line = Line { fields, ..line(Level::INFO, "hello") };
        let value: Value = serde_json::from_str(&line.render(look(LogFormat::Json))).unwrap();
        assert_eq!((&value["level"], &value["field_level"]), (&"info".into(), &"fatal".into()));
    }
}

//! Makes what others wrote safe for a terminal: names of plugins, files and sockets, errors of plugins and compilers, whatever a
//! report or a status holds. A control character could move the cursor, set the window's title or pass for a line of Baton's
//! own, and a character that changes the direction of writing shows a name as another. JSON output is not for terminals and stays
//! as it is.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Keys whose text may have more than one line. All further lines are indented, so that none passes for one of Baton's own.
const TEXTS: [&str; 6] = ["error", "hint", "detail", "alert", "holding", "why"];

/// Returns the value with all of its text escaped, or an error if it has no form in JSON.
pub fn of<T: Serialize + DeserializeOwned>(value: &T) -> serde_json::Result<T> {
    let mut json = serde_json::to_value(value)?;
    escape(&mut json, None);
    serde_json::from_value(json)
}

fn escape(value: &mut Value, key: Option<&str>) {
    match value {
        Value::String(raw) => {
            let printable = match key {
                Some(key) if TEXTS.contains(&key) => text(raw).replace('\n', "\n  "),
                _ => line(raw),
            };
            *raw = printable;
        }
        Value::Array(values) => values.iter_mut().for_each(|value| escape(value, key)),
        Value::Object(fields) => fields.iter_mut().for_each(|(key, value)| escape(value, Some(key))),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Escapes all but printable characters and line ends.
pub fn text(raw: &str) -> String {
    escaped(raw, |c| c == '\n')
}

/// Escapes all but printable characters.
pub fn line(raw: &str) -> String {
    escaped(raw, |_| false)
}

fn escaped(raw: &str, is_kept: impl Fn(char) -> bool) -> String {
    let mut text = String::with_capacity(raw.len());
    for c in raw.chars() {
        match c {
            c if is_kept(c) => text.push(c),
            // Compilers and parsers align with it.
            '\t' => text.push(' '),
            c if c.is_control() || is_invisible(c) => text.extend(c.escape_default()),
            c => text.push(c),
        }
    }
    text
}

/// Whether a character changes how others are shown, or looks like none.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Cause, Change, Held, OpId, OpResult, Report, Verb, Why};

    const EVIL: &str = "a\x1b[2Jb\rc\nswitched: generation 8\u{202e}d\u{7f}\u{9b}";

    fn is_safe(text: &str) -> bool {
        text.chars().all(|c| !c.is_control() && !is_invisible(c))
    }

    #[test]
    fn every_text_of_a_report_is_escaped_and_nothing_else_changes() {
        let held = Change::Plugin { plugin: EVIL.into(), sha256: EVIL.into() };
        let report = Report {
            result: OpResult::Refused,
            plugin: Some(EVIL.into()),
            error: Some(EVIL.into()),
            detail: Some("one\ntwo".into()),
            held: vec![held],
            ..Report::new(OpId(12), Verb::Reload, Cause::Watcher { path: EVIL.into() })
        };
        let printable = of(&report).unwrap();
        assert!(is_safe(printable.plugin.as_ref().unwrap()));
        assert!(is_safe(&printable.cause.to_string()) && is_safe(&printable.held[0].to_string()));
        assert_eq!(printable.detail.as_deref(), Some("one\n  two"));
        let error = printable.error.unwrap();
        assert!(is_safe(&error.replace('\n', "")), "{error:?}");
        assert!(error.contains("\n  switched"), "a further line passes for one of Baton's own: {error:?}");
        let plain = Report { plugin: Some("größe 2".into()), ..Report::new(OpId(1), Verb::Cut, Cause::Start) };
        assert_eq!(of(&plain).unwrap(), plain);
    }

    #[test]
    fn names_in_lists_and_tagged_values_are_escaped() {
        let held = Held { change: Change::Removal { plugin: EVIL.into() }, why: Why::RolledBack, since: String::new() };
        let printable = of(&held).unwrap();
        assert_eq!(printable.why, Why::RolledBack);
        assert!(is_safe(&printable.change.to_string()));
        assert!(of(&vec![EVIL.to_owned()]).unwrap().iter().all(|name| is_safe(name)));
    }

    #[test]
    fn a_line_has_no_end_inside_and_a_text_may() {
        assert_eq!(line("a\nb\tc"), "a\\nb c");
        assert_eq!(text("a\nb\x07"), "a\nb\\u{7}");
    }
}

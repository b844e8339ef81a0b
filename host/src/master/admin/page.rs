//! The admin page: its files, and the small page that answers a GET where a POST is needed. The page holds no data; its
//! script asks for it with the token.

use crate::report::Verb;

/// Where the page is.
pub const PATH: &str = "/debug/admin";

/// A file of the page.
#[derive(Debug)]
pub struct Asset {
    pub kind: &'static str,
    pub text: &'static str,
}

pub const INDEX: Asset = Asset { kind: "text/html; charset=utf-8", text: include_str!("page/index.html") };
pub const AUTH: Asset = Asset { kind: "text/javascript; charset=utf-8", text: include_str!("page/auth.js") };
pub const SCRIPT: Asset = Asset { kind: "text/javascript; charset=utf-8", text: include_str!("page/admin.js") };
pub const STYLE: Asset = Asset { kind: "text/css; charset=utf-8", text: include_str!("page/admin.css") };
pub const ICON: Asset = Asset { kind: "image/svg+xml", text: include_str!("page/icon.svg") };

const ACTION: &str = include_str!("page/action.html");

/// One button that does `verb`, and the line for a shell.
pub fn action(verb: Verb, name: &str, curl: &str) -> String {
    let label = match verb {
        Verb::Cut => "Cut what drains",
        Verb::Reload => "Reload",
        Verb::Restart => "Restart",
        Verb::Rollback => "Roll back",
        Verb::Shutdown => "Shut down",
    };
    // The values go in one pass: one that looks like a placeholder must stay what it is.
    let mut page = String::with_capacity(ACTION.len() + 256);
    let mut rest = ACTION;
    while let Some((before, (key, after))) =
        rest.split_once("{{").and_then(|(before, from)| Some((before, from.split_once("}}")?)))
    {
        page.push_str(before);
        match key {
            "verb" => page.push_str(&verb.to_string()),
            "label" => page.push_str(label),
            "name" => escape(&mut page, name),
            "curl" => escape(&mut page, curl),
            _ => {}
        }
        rest = after;
    }
    page.push_str(rest);
    page
}

fn escape(to: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => to.push_str("&amp;"),
            '<' => to.push_str("&lt;"),
            '>' => to.push_str("&gt;"),
            '"' => to.push_str("&quot;"),
            '\'' => to.push_str("&#39;"),
            c => to.push(c),
        }
    }
}

#[cfg(test)]
mod script_tests;
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped_and_every_placeholder_is_filled() {
        let page = action(Verb::Reload, "<x>{{curl}}", "curl 'a' && b");
        assert!(page.contains("&lt;x&gt;{{curl}}"), "{page}");
        assert!(page.contains("curl &#39;a&#39; &amp;&amp; b"));
        assert!(page.contains("data-verb=\"reload\"") && page.contains(">Reload<"));
        assert!(!page.contains("{{label}}") && !page.contains("{{name}}"));
    }

    #[test]
    fn nothing_in_the_pages_needs_what_the_policy_forbids() {
        for page in [INDEX.text, ACTION] {
            for forbidden in ["<style", "style=", "onclick", "javascript:", "<script>"] {
                assert!(!page.contains(forbidden), "{forbidden}");
            }
            assert!(page.contains("<html lang=\"en\">") && page.contains("viewport"));
        }
        assert!(!SCRIPT.text.contains("innerHTML") && !AUTH.text.contains("innerHTML"));
    }
}

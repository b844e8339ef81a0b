//! Reads Rust sources just well enough: words without comments and strings, and the module paths that a file uses.

/// A word or a sign of the source, with its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub text: String,
    pub line: usize,
}

/// The words and signs of `source`. Comments, strings and characters are left out; `::` is one sign.
pub fn tokens(source: &str) -> Vec<Token> {
    let chars: Vec<char> = source.chars().collect();
    let (mut found, mut at, mut line) = (Vec::new(), 0, 1);
    let peek = |at: usize| chars.get(at).copied().unwrap_or('\0');
    while at < chars.len() {
        let start = at;
        match chars[at] {
            '/' if peek(at + 1) == '/' => {
                while at < chars.len() && chars[at] != '\n' {
                    at += 1;
                }
            }
            '/' if peek(at + 1) == '*' => {
                let mut depth = 0;
                loop {
                    match (peek(at), peek(at + 1)) {
                        ('/', '*') => (depth, at) = (depth + 1, at + 2),
                        ('*', '/') => (depth, at) = (depth - 1, at + 2),
                        _ => at += 1,
                    }
                    if depth == 0 || at >= chars.len() {
                        break;
                    }
                }
            }
            '"' => at = end_of_string(&chars, at),
            'r' if is_raw_string(&chars, at) => at = end_of_raw_string(&chars, at),
            'b' | 'c' if peek(at + 1) == '"' => at = end_of_string(&chars, at + 1),
            'b' | 'c' if peek(at + 1) == 'r' && is_raw_string(&chars, at + 1) => at = end_of_raw_string(&chars, at + 1),
            '\'' if peek(at + 1) == '\\' => {
                at += 3;
                while at < chars.len() && chars[at] != '\'' {
                    at += 1;
                }
                at += 1;
            }
            '\'' if peek(at + 2) == '\'' => at += 3,
            c if c.is_alphanumeric() || c == '_' => {
                while peek(at).is_alphanumeric() || peek(at) == '_' {
                    at += 1;
                }
                found.push(Token { text: chars[start..at].iter().collect(), line });
            }
            ':' if peek(at + 1) == ':' => {
                at += 2;
                found.push(Token { text: "::".into(), line });
            }
            c => {
                at += 1;
                if !c.is_whitespace() {
                    found.push(Token { text: c.to_string(), line });
                }
            }
        }
        at = at.min(chars.len());
        line += chars[start..at].iter().filter(|c| **c == '\n').count();
    }
    found
}

fn end_of_string(chars: &[char], open: usize) -> usize {
    let mut at = open + 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

fn is_raw_string(chars: &[char], at: usize) -> bool {
    // Not within a word such as `bar"`.
    if at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_') && !matches!(chars[at - 1], 'b' | 'c') {
        return false;
    }
    let mut at = at + 1;
    while chars.get(at) == Some(&'#') {
        at += 1;
    }
    chars.get(at) == Some(&'"')
}

fn end_of_raw_string(chars: &[char], at: usize) -> usize {
    let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
    let mut at = at + 2 + hashes;
    while at < chars.len() {
        if chars[at] == '"' && chars[at + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes {
            return at + 1 + hashes;
        }
        at += 1;
    }
    at
}

/// A use of a module of the same crate: its path from the crate's root, such as `["sys", "dylib"]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    pub path: Vec<String>,
    pub line: usize,
}

/// Every path in `source` that begins with `crate::` or `super::`, seen from the root of the crate. `module` is the file's own
/// path, such as `["master", "state"]`. Groups in braces are spread out.
pub fn uses(module: &[&str], source: &str) -> Vec<Use> {
    let tokens = tokens(source);
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    // Modules within the file, with the depth of the brace at which each ends.
    let (mut inner, mut depth): (Vec<(String, usize)>, usize) = (Vec::new(), 0);
    let (mut found, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        match text(at) {
            "mod" if text(at + 2) == "{" => {
                inner.push((text(at + 1).into(), depth));
                at += 2;
                continue;
            }
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                if inner.last().is_some_and(|(_, at)| *at == depth) {
                    inner.pop();
                }
            }
            // Not `$crate`, which is the crate of a macro's user, and not the middle of a longer path.
            "crate" | "super" if text(at + 1) == "::" && (at == 0 || !matches!(text(at - 1), "$" | "::")) => {
                let mut base: Vec<String> = module.iter().map(|part| part.to_string()).collect();
                base.extend(inner.iter().map(|(name, _)| name.clone()));
                let mut next = at;
                if text(at) == "crate" {
                    base.clear();
                    next += 2;
                }
                while text(next) == "super" {
                    base.pop();
                    next += 2;
                }
                spread(&tokens, next, base, &mut found);
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Reads the path at `at`, with its groups, below `base`; answers where it ends.
fn spread(tokens: &[Token], mut at: usize, mut base: Vec<String>, found: &mut Vec<Use>) -> usize {
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    let line = tokens.get(at).map_or(0, |token| token.line);
    loop {
        match text(at) {
            "{" => {
                at += 1;
                while at < tokens.len() && text(at) != "}" {
                    at = spread(tokens, at, base.clone(), found).max(at + 1);
                    while text(at) == "," {
                        at += 1;
                    }
                }
                return at + 1;
            }
            "self" => {}
            word if word.starts_with(|c: char| c.is_alphanumeric() || c == '_') => base.push(word.into()),
            _ => break,
        }
        at += 1;
        if text(at) != "::" {
            // `as other_name`
            if text(at) == "as" {
                at += 2;
            }
            break;
        }
        at += 1;
    }
    found.push(Use { path: base, line });
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(source: &str) -> Vec<String> {
        tokens(source).into_iter().map(|token| token.text).collect()
    }

    fn paths(module: &[&str], source: &str) -> Vec<String> {
        uses(module, source).into_iter().map(|found| found.path.join("::")).collect()
    }

    #[test]
    fn comments_strings_and_characters_are_no_code() {
        assert_eq!(words("a // unsafe\n/* unsafe /* x */ y */ b"), ["a", "b"]);
        assert_eq!(words(r##"a "un\"safe" r#"uns"afe"# b"unsafe" br"unsafe" c"##), ["a", "c"]);
        assert_eq!(words(r"a 'u' '\'' '\u{1f}' 'static b"), ["a", "'", "static", "b"]);
        assert_eq!(tokens("a\n\"x\ny\"\nb")[1].line, 4);
    }

    #[test]
    fn paths_are_found_wherever_they_stand() {
        assert_eq!(paths(&["a"], "use crate::b::C; fn f() -> crate::d::E { crate::f::g() }"), ["b::C", "d::E", "f::g"]);
        assert_eq!(paths(&["a"], "use crate::{b::{self, C}, d as e, f};"), ["b", "b::C", "d", "f"]);
        assert_eq!(paths(&["a"], "use std::b; use $crate::b;"), Vec::<String>::new());
    }

    #[test]
    fn paths_upwards_are_seen_from_the_root() {
        assert_eq!(paths(&["a", "b"], "use super::c; use super::super::d::E;"), ["a::c", "d::E"]);
        assert_eq!(
            paths(&["a"], "fn f() { g() } mod tests { use super::*; use super::super::z; } use super::y;"),
            ["a", "z", "y"]
        );
    }
}

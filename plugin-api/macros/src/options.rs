//! `mount = "...", runtime = "...", workers = N`: read, and refused with the place of the mistake.

use proc_macro2::TokenStream;
use syn::parse::Parser;
use syn::punctuated::Punctuated;
use syn::{Error, Expr, ExprLit, Lit, MetaNameValue, Token};

/// The descriptor's room for a mount, in bytes (`abi::Descriptor::mount`).
const MOUNT_LIMIT: usize = 128;

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Empty if not given.
    pub mount: String,
    pub spawn: bool,
    /// 0 if not given.
    pub workers: usize,
}

impl Options {
    pub fn parse(tokens: TokenStream) -> syn::Result<Options> {
        let pairs = Punctuated::<MetaNameValue, Token![,]>::parse_terminated.parse2(tokens)?;
        let mut options = Options::default();
        let mut seen: Vec<String> = Vec::new();
        for pair in pairs {
            let name = pair.path.get_ident().map(ToString::to_string).unwrap_or_default();
            if seen.contains(&name) {
                return Err(Error::new_spanned(&pair.path, format!("`{name}` is given twice")));
            }
            match name.as_str() {
                "mount" => options.mount = mount(&pair.value)?,
                "runtime" => options.spawn = spawn(&pair.value)?,
                "workers" => options.workers = workers(&pair.value)?,
                _ => {
                    let message = "unknown option: there are `mount`, `runtime` and `workers`";
                    return Err(Error::new_spanned(&pair.path, message));
                }
            }
            seen.push(name);
        }
        Ok(options)
    }
}

fn literal<'a>(value: &'a Expr, expected: &str) -> syn::Result<&'a Lit> {
    match value {
        Expr::Lit(ExprLit { lit, .. }) => Ok(lit),
        other => Err(Error::new_spanned(other, format!("expected {expected}"))),
    }
}

fn mount(value: &Expr) -> syn::Result<String> {
    let expected = "a path such as \"/api\"";
    let Lit::Str(text) = literal(value, expected)? else {
        return Err(Error::new_spanned(value, format!("expected {expected}")));
    };
    let mount = text.value();
    let wrong = if !mount.starts_with('/') {
        "a mount begins with `/`"
    } else if mount.len() > 1 && mount.ends_with('/') {
        "a mount does not end with `/`: it takes the path itself and all below it"
    } else if mount.contains("//") {
        "a mount has no empty segment"
    } else if mount.bytes().any(|byte| byte <= b' ' || byte == b'?' || byte == b'#' || byte >= 127) {
        "a mount is a path as in a URL: percent-encoded, without query or fragment"
    } else if mount.len() > MOUNT_LIMIT {
        "a mount has at most 128 bytes"
    } else {
        return Ok(mount);
    };
    Err(Error::new_spanned(value, wrong))
}

fn spawn(value: &Expr) -> syn::Result<bool> {
    let expected = "\"enter\" or \"spawn\"";
    if let Lit::Str(text) = literal(value, expected)? {
        match text.value().as_str() {
            "enter" => return Ok(false),
            "spawn" => return Ok(true),
            _ => {}
        }
    }
    Err(Error::new_spanned(value, format!("expected {expected}")))
}

fn workers(value: &Expr) -> syn::Result<usize> {
    let expected = "a number of threads from 1 to 1024";
    if let Lit::Int(number) = literal(value, expected)?
        && let Ok(number) = number.base10_parse::<usize>()
        && (1..=1024).contains(&number)
    {
        return Ok(number);
    }
    Err(Error::new_spanned(value, format!("expected {expected}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, String> {
        Options::parse(text.parse().unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn options_are_read_in_any_order() {
        assert_eq!(parse(""), Ok(Options::default()));
        assert_eq!(
            parse("workers = 2, mount = \"/api\", runtime = \"spawn\","),
            Ok(Options { mount: "/api".into(), spawn: true, workers: 2 })
        );
        assert_eq!(parse("runtime = \"enter\", mount = \"/\"").map(|options| options.spawn), Ok(false));
    }

    #[test]
    fn a_mistake_is_refused_and_named() {
        for (text, expected) in [
            ("mont = \"/\"", "unknown option"),
            ("mount = \"api\"", "begins with `/`"),
            ("mount = \"/api/\"", "does not end with `/`"),
            ("mount = \"/a//b\"", "no empty segment"),
            ("mount = \"/a b\"", "percent-encoded"),
            ("mount = 1", "a path such as"),
            ("runtime = \"thread\"", "\"enter\" or \"spawn\""),
            ("workers = 0", "from 1 to 1024"),
            ("workers = \"2\"", "from 1 to 1024"),
            ("workers = 1, workers = 2", "given twice"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}

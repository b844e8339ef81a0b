//! The plugin's half of the ABI: turns the safe types of the author layer into the tables of [`crate::abi`] and back.
//!
//! All unsafe code of the plugin side is here and in `abi`. Three promises, kept by every function that the host can
//! reach: no panic leaves it; the author's code runs only with the plugin's runtime entered (polls *and* drops); and what
//! the author's code logs, or its panic, knows its request. [`context::guard`] is the one place that keeps them.
#![allow(unsafe_code, reason = "the fence: tables of function pointers and the handles behind them")]

mod body;
mod call;
pub(crate) mod context;
mod head;
mod host;
mod instance;
pub(crate) mod loopback;
mod module;
mod panics;
mod stream;

use std::future::Future;

use http::{HeaderMap, StatusCode};

pub use body::{BodyError, Payload};
pub use head::Head;
pub use host::{Field, HostRef, Record};
pub use instance::Instance;
pub use module::{Logging, header, root_module};
#[cfg(feature = "ws")]
pub use stream::read_into;
pub use stream::{Claimed, Upgraded};

/// An error of any type, as everywhere in this crate.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How a plugin comes to be. A value without size (a function or a closure that captures nothing), since the tables of the
/// ABI have no room for one.
pub trait Entry: Copy + Send + Sync + 'static {
    /// What serves requests.
    type App: App;

    /// Runs the author's init.
    fn start(self, instance: &'static Instance) -> impl Future<Output = Result<Self::App, BoxError>>;
}

/// What serves requests. Lives as long as the process: a plugin is never unloaded.
pub trait App: Send + Sync + 'static {
    /// Only makes the future; the author's code runs when it is polled.
    fn call(&'static self, head: Head, body: Payload) -> impl Future<Output = Reply> + Send + 'static;
}

/// A response on its way to the host.
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// A content type that needs no header map: the common answer of one string then builds none.
    pub content_type: Option<&'static str>,
    pub body: Payload,
}

/// An error and its causes in one line, `outer: inner: innermost`; then, if one of them has more lines, all of them.
pub fn error_text(error: &(dyn std::error::Error + 'static)) -> String {
    let parts: Vec<String> =
        std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect();
    let mut text = String::new();
    for part in &parts {
        let line = part.lines().next().unwrap_or_default();
        // Many errors repeat their source in their own text.
        if line.is_empty() || text.ends_with(line) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(line);
    }
    for part in parts.iter().filter(|part| part.lines().nth(1).is_some()) {
        text.push('\n');
        text.push_str(part);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Outer(&'static str, Option<Box<Outer>>);

    impl std::fmt::Display for Outer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    impl std::error::Error for Outer {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            self.1.as_deref().map(|inner| inner as _)
        }
    }

    #[test]
    fn the_text_of_an_error_is_its_chain_in_one_line() {
        let inner = || Some(Box::new(Outer("no such file", None)));
        assert_eq!(error_text(&Outer("failed to open db", inner())), "failed to open db: no such file");
        assert_eq!(error_text(&Outer("open: no such file", inner())), "open: no such file");
        assert_eq!(
            error_text(&Outer("bad query\nat line 2", inner())),
            "bad query: no such file\nbad query\nat line 2"
        );
    }
}

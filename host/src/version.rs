//! Which Baton this is. With the feature `next`, which only the tests of restarts build, it is a later one: it has another
//! version, has a key, leaves a field and says messages that this one does not know, and fails where a file tells it to.

#[cfg(not(feature = "next"))]
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
#[cfg(feature = "next")]
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "-next");

/// Names a file; a line `hang PLACE` or `panic PLACE` in it is done at [`fault`] of that place, `fail PLACE` by whoever asks
/// for it.
#[cfg(feature = "next")]
const SCRIPT: &str = "BATON_NEXT";

/// Whether the script has `line`.
#[cfg(feature = "next")]
pub fn told(line: &str) -> bool {
    let script = std::env::var_os(SCRIPT).and_then(|path| std::fs::read_to_string(path).ok());
    script.is_some_and(|script| script.lines().any(|one| one == line))
}

/// A place at which the later version may fail.
#[cfg(feature = "next")]
pub fn fault(place: &str) {
    assert!(!told(&format!("panic {place}")), "told to panic");
    while told(&format!("hang {place}")) {
        std::thread::park();
    }
}

//! Which plugin takes a request: mounts, the longest first, on the borders of path segments. Strips the mount from the
//! target; the bridge keeps the original as a fact.

use http::Uri;

/// Mounts with what is behind them.
#[derive(Debug)]
pub struct Routes<T> {
    /// Longest prefix first; `/` is kept as the empty prefix.
    mounts: Vec<(&'static str, T)>,
}

/// A mount that matched.
#[derive(Clone, Copy, Debug)]
pub struct Match<T> {
    pub to: T,
    /// What to strip; empty for `/`.
    pub prefix: &'static str,
}

impl<T: Copy> Routes<T> {
    /// Mounts as the configuration has them: `/`, or `/a/b` without a slash at the end.
    pub fn new(mounts: impl IntoIterator<Item = (String, T)>) -> Routes<T> {
        let mut mounts: Vec<(&'static str, T)> = mounts
            .into_iter()
            .map(|(mount, to)| {
                // A worker has one set of routes, for life.
                let mount: &'static str = Box::leak(mount.into_boxed_str());
                (if mount == "/" { "" } else { mount }, to)
            })
            .collect();
        mounts.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Routes { mounts }
    }

    pub fn is_empty(&self) -> bool {
        self.mounts.is_empty()
    }

    #[inline]
    pub fn find(&self, path: &str) -> Option<Match<T>> {
        self.mounts.iter().find(|(prefix, _)| covers(prefix, path)).map(|&(prefix, to)| Match { to, prefix })
    }
}

/// Whether `path` is `prefix` or goes on below it: `/api` covers `/api` and `/api/x`, not `/apix`.
#[inline]
fn covers(prefix: &str, path: &str) -> bool {
    prefix.is_empty()
        || path.strip_prefix(prefix).is_some_and(|rest| rest.as_bytes().first().is_none_or(|next| *next == b'/'))
}

/// Path and query as the client sent them; `/` where it sent neither (CONNECT, or an absolute form without a path).
#[inline]
pub fn target(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", |target| target.as_str())
}

/// What remains of `target` without `prefix`.
#[derive(Debug, PartialEq, Eq)]
pub enum Stripped<'a> {
    /// A part of the target, beginning with `/` (or `*`).
    Part(&'a str),
    /// The path was the prefix and a query follows: a `/` belongs before it.
    Query(&'a str),
}

#[inline]
pub fn strip<'a>(target: &'a str, prefix: &str) -> Stripped<'a> {
    let rest = target.strip_prefix(prefix).unwrap_or(target);
    match rest.as_bytes().first() {
        None => Stripped::Part("/"),
        Some(b'?') => Stripped::Query(rest),
        Some(_) => Stripped::Part(rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(mounts: &[&'static str]) -> Routes<&'static str> {
        Routes::new(mounts.iter().map(|mount| (mount.to_string(), *mount)))
    }

    #[test]
    fn the_longest_mount_wins_on_segment_borders() {
        let routes = routes(&["/", "/api", "/api/v2"]);
        for (path, mount) in [
            ("/", "/"),
            ("/apix", "/"),
            ("/api", "/api"),
            ("/api/", "/api"),
            ("/api/v1", "/api"),
            ("/api/v2", "/api/v2"),
            ("/api/v2/x", "/api/v2"),
            ("/api/v20", "/api"),
            ("*", "/"),
        ] {
            assert_eq!(routes.find(path).unwrap().to, mount, "{path}");
        }
    }

    #[test]
    fn without_a_root_mount_other_paths_match_nothing() {
        let routes = routes(&["/api"]);
        assert!(routes.find("/").is_none());
        assert!(routes.find("*").is_none());
        assert!(!routes.is_empty());
    }

    #[test]
    fn what_is_stripped_always_begins_with_a_slash() {
        assert_eq!(strip("/api/x?y", "/api"), Stripped::Part("/x?y"));
        assert_eq!(strip("/api", "/api"), Stripped::Part("/"));
        assert_eq!(strip("/api?a=1", "/api"), Stripped::Query("?a=1"));
        assert_eq!(strip("/x", ""), Stripped::Part("/x"));
        assert_eq!(strip("*", ""), Stripped::Part("*"));
    }

    #[test]
    fn targets_are_what_the_client_sent() {
        assert_eq!(target(&"/a/b?c".parse().unwrap()), "/a/b?c");
        assert_eq!(target(&"http://host".parse().unwrap()), "/");
        assert_eq!(target(&"host:80".parse().unwrap()), "/");
        assert_eq!(target(&"*".parse().unwrap()), "*");
    }
}

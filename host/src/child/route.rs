//! Which plugin takes a request: by server, host and path. A server with routes of its own serves these alone; on all others
//! every plugin has its mount. Prefixes match on the borders of path segments and are stripped from the target; the bridge
//! keeps the original as a fact.
//!
//! What is not asked for costs nothing: the server is found once per connection, and the host is looked for only where a
//! route names one.

use http::uri::Authority;
use http::{HeaderValue, Request, Uri, header};

use crate::config::{self, Route};

/// What a worker serves, for life.
#[derive(Debug)]
pub struct Sites<T> {
    /// Servers that are not like all others, by name.
    own: Vec<(String, Site<T>)>,
    others: Site<T>,
}

/// What one server serves.
#[derive(Debug)]
pub struct Site<T> {
    pub routes: Routes<T>,
    /// The path that says that the server lives.
    health: Option<String>,
    /// Whether its clients may speak HTTP/2.
    pub http2: bool,
    /// Whether a client that closes its sending side ends its request.
    pub abort_on_close: bool,
}

impl<T: Copy> Sites<T> {
    /// `mounts` is where every plugin is unless a server says otherwise; `plugin` finds the one that a route names.
    pub fn new<'a>(
        servers: &[config::Server],
        mounts: impl Iterator<Item = (&'a str, T)> + Clone,
        plugin: impl Fn(&str) -> Option<T>,
    ) -> Sites<T> {
        let own = servers.iter().filter(|server| {
            !server.route.is_empty() || server.health.is_some() || !server.http2 || server.abort_on_close
        });
        let site = |server: &config::Server| {
            let routes = match &server.route[..] {
                [] => Routes::of_mounts(mounts.clone()),
                // The master has refused routes to plugins that are not there; only the set without plugins is left.
                routes => Routes::new(routes.iter().filter_map(|route| Some((route, plugin(&route.plugin)?)))),
            };
            (
                server.name.clone(),
                Site {
                    routes,
                    health: server.health.clone(),
                    http2: server.http2,
                    abort_on_close: server.abort_on_close,
                },
            )
        };
        let others =
            Site { routes: Routes::of_mounts(mounts.clone()), health: None, http2: true, abort_on_close: false };
        Sites { own: own.map(site).collect(), others }
    }

    /// What the server of that name serves.
    pub fn of(&self, server: &str) -> &Site<T> {
        self.own.iter().find(|(name, _)| name == server).map_or(&self.others, |(_, site)| site)
    }
}

impl<T> Site<T> {
    #[inline]
    pub fn is_health(&self, path: &str) -> bool {
        self.health.as_deref().is_some_and(|health| health == path)
    }
}

/// Prefixes with what is behind them.
#[derive(Debug)]
pub struct Routes<T> {
    /// Those for a host: before all others, the most specific first.
    hosts: Vec<(Host, Prefix, T)>,
    /// Those for any: the longest first.
    mounts: Vec<(Prefix, T)>,
}

/// Without the slash at its end: `/` is the empty prefix.
type Prefix = &'static str;

/// Which hosts a route is for.
#[derive(Debug, PartialEq, Eq)]
enum Host {
    /// This one.
    Named(String),
    /// Those that end so; it begins with a dot.
    Below(String),
}

impl Host {
    fn new(text: &str) -> Host {
        match text.strip_prefix('*') {
            Some(below) => Host::Below(below.into()),
            None => Host::Named(text.into()),
        }
    }

    /// Names before patterns, and long patterns before short ones.
    fn rank(&self) -> (bool, std::cmp::Reverse<usize>) {
        match self {
            Host::Named(_) => (false, std::cmp::Reverse(0)),
            Host::Below(end) => (true, std::cmp::Reverse(end.len())),
        }
    }

    fn covers(&self, host: &str) -> bool {
        match self {
            Host::Named(name) => name.eq_ignore_ascii_case(host),
            Host::Below(end) => {
                let (host, end) = (host.as_bytes(), end.as_bytes());
                host.len() > end.len() && host[host.len() - end.len()..].eq_ignore_ascii_case(end)
            }
        }
    }
}

/// A route that matched.
#[derive(Clone, Copy, Debug)]
pub struct Match<T> {
    pub to: T,
    /// What to strip; empty for `/`.
    pub prefix: &'static str,
}

impl<T: Copy> Routes<T> {
    fn new<'a>(routes: impl IntoIterator<Item = (&'a Route, T)>) -> Routes<T> {
        let (mut hosts, mut mounts) = (Vec::new(), Vec::new());
        for (route, to) in routes {
            match &route.host {
                Some(host) => hosts.push((Host::new(host), leaked(&route.prefix), to)),
                None => mounts.push((leaked(&route.prefix), to)),
            }
        }
        hosts.sort_by_key(|(host, prefix, _)| (host.rank(), std::cmp::Reverse(prefix.len())));
        mounts.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Routes { hosts, mounts }
    }

    /// Mounts as the configuration has them: `/`, or `/a/b` without a slash at the end.
    pub fn of_mounts<'a>(mounts: impl IntoIterator<Item = (&'a str, T)>) -> Routes<T> {
        let mut mounts: Vec<(Prefix, T)> = mounts.into_iter().map(|(mount, to)| (leaked(mount), to)).collect();
        mounts.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Routes { hosts: Vec::new(), mounts }
    }

    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty() && self.mounts.is_empty()
    }

    /// `host` is asked for only if it matters.
    #[inline]
    pub fn find<'a>(&self, path: &str, host: impl FnOnce() -> Option<&'a str>) -> Option<Match<T>> {
        if !self.hosts.is_empty()
            && let Some(found) = self.find_by_host(path, host())
        {
            return Some(found);
        }
        self.mounts.iter().find(|(prefix, _)| covers(prefix, path)).map(|&(prefix, to)| Match { to, prefix })
    }

    fn find_by_host(&self, path: &str, host: Option<&str>) -> Option<Match<T>> {
        let host = host?;
        let matches = |(named, prefix, _): &&(Host, Prefix, T)| covers(prefix, path) && named.covers(host);
        self.hosts.iter().find(matches).map(|&(_, prefix, to)| Match { to, prefix })
    }
}

/// A worker has one set of routes, for life.
fn leaked(mount: &str) -> Prefix {
    if mount == "/" { "" } else { Box::leak(Box::from(mount)) }
}

/// The host that a request is for, without port and final dot. An absolute target has the last word (RFC 9112, 3.2.2).
pub fn host<B>(request: &Request<B>) -> Option<&str> {
    let host = match request.uri().authority() {
        Some(authority) => Authority::host(authority),
        None => without_port(request.headers().get(header::HOST).map(HeaderValue::to_str)?.ok()?),
    };
    Some(host.strip_suffix('.').unwrap_or(host))
}

fn without_port(host: &str) -> &str {
    // The colons of an IPv6 address stand in brackets.
    let from = host.rfind(']').unwrap_or(0);
    host[from..].find(':').map_or(host, |colon| &host[..from + colon])
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
        Routes::of_mounts(mounts.iter().map(|mount| (*mount, *mount)))
    }

    /// The host does not matter, so it must not be looked for.
    fn find(routes: &Routes<&'static str>, path: &str) -> Option<&'static str> {
        routes.find(path, || panic!("nobody asks for the host")).map(|found| found.to)
    }

    /// Routes as `HOST/PREFIX`, answered by themselves; without a host for any.
    fn by_host(texts: &[&'static str]) -> Routes<&'static str> {
        let routes: Vec<(Route, &'static str)> = texts
            .iter()
            .map(|text| {
                let (host, prefix) = text.split_at(text.find('/').unwrap());
                let host = (!host.is_empty()).then(|| host.into());
                (Route { host, prefix: prefix.into(), plugin: String::new() }, *text)
            })
            .collect();
        Routes::new(routes.iter().map(|(route, to)| (route, *to)))
    }

    #[test]
    fn names_come_before_patterns_those_before_any_host_and_long_before_short() {
        let texts = ["/", "/api", "a.example/", "a.example/api", "*.example/", "*.b.example/api", "[::1]/"];
        let mut backwards = texts;
        backwards.reverse();
        for routes in [by_host(&texts), by_host(&backwards)] {
            for (host, path, to) in [
                (Some("a.example"), "/", "a.example/"),
                (Some("A.Example"), "/api/x", "a.example/api"),
                (Some("a.example"), "/apix", "a.example/"),
                (Some("c.example"), "/api", "*.example/"),
                (Some("c.b.example"), "/api", "*.b.example/api"),
                // No route of its own pattern takes this path, a wider one does.
                (Some("c.b.example"), "/other", "*.example/"),
                (Some("x.y.EXAMPLE"), "/", "*.example/"),
                (Some("example"), "/api", "/api"),
                (Some(".example"), "/", "/"),
                (Some("badexample"), "/", "/"),
                (Some("[::1]"), "/x", "[::1]/"),
                (None, "/api/x", "/api"),
            ] {
                assert_eq!(routes.find(path, || host).map(|found| found.to), Some(to), "{host:?} {path}");
            }
        }
        assert!(by_host(&["a.example/"]).find("/", || Some("b.example")).is_none());
        assert!(by_host(&["a.example/"]).find("/", || None).is_none());
    }

    #[test]
    fn the_host_is_the_targets_or_the_headers_without_its_port() {
        for (target, header, expected) in [
            ("/", Some("a.example"), Some("a.example")),
            ("/", Some("a.example:81"), Some("a.example")),
            ("/", Some("a.example.:81"), Some("a.example")),
            ("/", Some("[::1]:81"), Some("[::1]")),
            ("/", Some("[::1]"), Some("[::1]")),
            ("/", Some(""), Some("")),
            ("/", None, None),
            ("http://b.example:82/x", Some("a.example"), Some("b.example")),
        ] {
            let mut request = Request::builder().uri(target);
            if let Some(header) = header {
                request = request.header("host", header);
            }
            assert_eq!(host(&request.body(()).unwrap()), expected, "{target} {header:?}");
        }
    }

    #[test]
    fn a_server_with_routes_serves_these_alone_and_the_others_every_mount() {
        let server = |name: &str, health: Option<&str>, plugins: &[&str]| config::Server {
            route: plugins
                .iter()
                .map(|plugin| Route { host: None, prefix: format!("/{plugin}"), plugin: plugin.to_string() })
                .collect(),
            health: health.map(str::to_owned),
            ..config::Server::new(name, &[])
        };
        let servers =
            [server("own", None, &["one", "gone"]), server("health", Some("/up"), &[]), server("plain", None, &[])];
        let there = ["one", "two"];
        let sites = Sites::new(&servers, [("/1", "one"), ("/2", "two")].into_iter(), |name| {
            there.into_iter().find(|plugin| *plugin == name)
        });
        assert_eq!(find(&sites.of("own").routes, "/one/x"), Some("one"));
        for path in ["/1", "/2", "/gone"] {
            assert_eq!(find(&sites.of("own").routes, path), None, "{path}");
        }
        for name in ["health", "plain"] {
            assert_eq!(find(&sites.of(name).routes, "/2/x"), Some("two"));
            assert_eq!(find(&sites.of(name).routes, "/one"), None);
        }
        assert!(sites.of("health").is_health("/up") && !sites.of("health").is_health("/up/x"));
        assert!(!sites.of("plain").is_health("/up") && !sites.of("own").is_health("/up"));
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
            assert_eq!(find(&routes, path), Some(mount), "{path}");
        }
    }

    #[test]
    fn without_a_root_mount_other_paths_match_nothing() {
        let routes = routes(&["/api"]);
        assert!(find(&routes, "/").is_none());
        assert!(find(&routes, "*").is_none());
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

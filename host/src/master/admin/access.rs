//! Who may ask what on the TCP side: the Host and Origin that a browser may name, and the token. Pure: reads a request's head
//! and nothing else. The Unix socket needs none of it; the kernel says who is there.
//!
//! Host is checked against a list because a name that an attacker points at us (DNS rebinding) makes his page same-origin
//! with ours; Origin, because a page elsewhere may send requests, if not read the answers.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, StatusCode, Uri, header};

use super::token::Token;

/// How well a caller must be known, from not at all upwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Anyone: a load balancer's probe names any Host.
    Anyone,
    /// Anyone who names us rightly: the page itself, which holds nothing.
    RightHost,
    Token,
    /// The Unix socket only.
    Socket,
}

/// Why a request is turned away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    pub status: StatusCode,
    pub error: String,
    pub hint: String,
    /// A guess at the token; it is answered late.
    pub guess: bool,
}

/// What the TCP side asks of a request.
#[derive(Debug)]
pub struct Policy {
    pub token: Token,
    /// `[admin] hosts`: names, with or without a port.
    pub hosts: Vec<String>,
}

impl Policy {
    /// Whether a request that came to `local` may pass.
    pub fn check(&self, access: Access, local: SocketAddr, uri: &Uri, headers: &HeaderMap) -> Result<(), Denied> {
        if access == Access::Anyone {
            return Ok(());
        }
        self.host(local, uri, headers)?;
        self.origin(local, headers)?;
        match access {
            Access::Anyone | Access::RightHost => Ok(()),
            Access::Token => self.token(headers),
            Access::Socket => Err(Denied {
                status: StatusCode::FORBIDDEN,
                error: "failed to admit this request: it is answered on the Unix socket only".into(),
                hint: "run `baton admin` on the server".into(),
                guess: false,
            }),
        }
    }

    fn host(&self, local: SocketAddr, uri: &Uri, headers: &HeaderMap) -> Result<(), Denied> {
        let named = one(headers, &header::HOST)?.map(str::to_owned);
        // An absolute target overrides Host (RFC 9112 3.2.2); both must be right.
        let target = uri.authority().map(|authority| authority.as_str().to_owned());
        let Some(host) = named.or_else(|| target.clone()) else {
            return Err(wrong_host("failed to find a Host header", local));
        };
        for name in [Some(&host), target.as_ref()].into_iter().flatten() {
            if !self.knows(name, local) {
                return Err(wrong_host(&format!("failed to recognise the Host `{}`", shorten(name)), local));
            }
        }
        Ok(())
    }

    /// The address itself, localhost, or a name the operator listed. An address cannot be rebound, a name can.
    fn knows(&self, host: &str, local: SocketAddr) -> bool {
        let port = local.port();
        let ours = |name: &str| {
            host.eq_ignore_ascii_case(&format!("{name}:{port}")) || (port == 80 && host.eq_ignore_ascii_case(name))
        };
        let address = match local {
            SocketAddr::V4(v4) => v4.ip().to_string(),
            SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
        };
        ours(&address)
            || ours("localhost")
            // Behind a proxy the port is the proxy's.
            || self.hosts.iter().any(|name| ours(name) || host.eq_ignore_ascii_case(name))
    }

    fn origin(&self, local: SocketAddr, headers: &HeaderMap) -> Result<(), Denied> {
        let Some(origin) = one(headers, &header::ORIGIN)? else { return Ok(()) };
        let named = ["http://", "https://"].iter().find_map(|scheme| origin.strip_prefix(scheme));
        match named {
            // Not the same as Host: a proxy before us may have changed that one.
            Some(name) if self.knows(name, local) => Ok(()),
            _ => Err(Denied {
                status: StatusCode::FORBIDDEN,
                error: format!("failed to admit a request from the page `{}`", shorten(origin)),
                hint: "only the admin page itself may ask; curl sends no Origin".into(),
                guess: false,
            }),
        }
    }

    fn token(&self, headers: &HeaderMap) -> Result<(), Denied> {
        let denied = |error: &str, guess| {
            Err(Denied {
                status: StatusCode::UNAUTHORIZED,
                error: error.into(),
                hint: "send `Authorization: Bearer TOKEN`; `baton admin` on the server prints the link with it".into(),
                guess,
            })
        };
        let Some(value) = one(headers, &header::AUTHORIZATION)? else {
            return denied("failed to find a token", false);
        };
        match value.split_once(' ') {
            Some((scheme, token))
                if scheme.eq_ignore_ascii_case("bearer") && self.token.is(token.trim().as_bytes()) =>
            {
                Ok(())
            }
            _ => denied("failed to recognise the token", true),
        }
    }
}

/// A header that must not come twice: which of the two counts is where proxies and servers differ.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Denied> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    let text = first.map(|value| value.to_str()).transpose();
    match (text, values.next()) {
        (Ok(text), None) => Ok(text),
        _ => Err(Denied {
            status: StatusCode::FORBIDDEN,
            error: format!("failed to read the header {name}: it came twice or is no text"),
            hint: "send it once".into(),
            guess: false,
        }),
    }
}

fn wrong_host(error: &str, local: SocketAddr) -> Denied {
    Denied {
        status: StatusCode::FORBIDDEN,
        error: error.into(),
        hint: format!("use http://{local}, or list the name under [admin] hosts"),
        guess: false,
    }
}

/// It goes into an answer and a log line.
fn shorten(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(hosts: &[&str]) -> Policy {
        let dir = tempfile::tempdir().unwrap();
        let token = Token::open(&dir.path().join("token")).unwrap();
        Policy { token, hosts: hosts.iter().map(|&host| host.into()).collect() }
    }

    fn check(policy: &Policy, access: Access, local: &str, headers: &[(&'static str, &str)]) -> Result<(), u16> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let uri = Uri::from_static("/debug/admin");
        policy.check(access, local.parse().unwrap(), &uri, &map).map_err(|denied| denied.status.as_u16())
    }

    #[test]
    fn only_hosts_that_name_us_pass() {
        let policy = policy(&["admin.example.org"]);
        for (local, host, passes) in [
            ("127.0.0.1:9700", "127.0.0.1:9700", true),
            ("127.0.0.1:9700", "localhost:9700", true),
            ("127.0.0.1:9700", "LOCALHOST:9700", true),
            ("127.0.0.1:9700", "admin.example.org", true),
            ("127.0.0.1:9700", "admin.example.org:9700", true),
            ("127.0.0.1:80", "localhost", true),
            ("[::1]:9700", "[::1]:9700", true),
            ("127.0.0.1:9700", "localhost", false),
            ("127.0.0.1:9700", "localhost:9701", false),
            ("127.0.0.1:9700", "rebound.example.org:9700", false),
            ("127.0.0.1:9700", "localhost.example.org:9700", false),
            ("127.0.0.1:9700", "127.0.0.2:9700", false),
            ("127.0.0.1:9700", "", false),
        ] {
            let result = check(&policy, Access::RightHost, local, &[("host", host)]);
            assert_eq!(result, if passes { Ok(()) } else { Err(403) }, "{host} at {local}");
        }
        assert_eq!(check(&policy, Access::RightHost, "127.0.0.1:9700", &[]), Err(403));
        let twice = [("host", "localhost:9700"), ("host", "evil")];
        assert_eq!(check(&policy, Access::RightHost, "127.0.0.1:9700", &twice), Err(403));
    }

    #[test]
    fn an_absolute_target_does_not_get_around_the_host() {
        let policy = policy(&[]);
        let headers = HeaderMap::from_iter([(header::HOST, "localhost:9700".parse().unwrap())]);
        let check = |uri| policy.check(Access::RightHost, ([127, 0, 0, 1], 9700).into(), &uri, &headers);
        assert!(check(Uri::from_static("http://evil:9700/debug/admin")).is_err());
        assert!(check(Uri::from_static("http://localhost:9700/debug/admin")).is_ok());
    }

    #[test]
    fn only_our_own_page_may_ask_from_a_browser() {
        let policy = policy(&["admin.example.org"]);
        for (host, origin, passes) in [
            ("localhost:9700", "http://localhost:9700", true),
            ("admin.example.org", "https://admin.example.org", true),
            ("localhost:9700", "http://localhost:3000", false),
            ("127.0.0.1:9700", "https://admin.example.org", true),
            ("localhost:9700", "http://127.0.0.1:9701", false),
            ("localhost:9700", "null", false),
            ("localhost:9700", "https://evil.example.org", false),
            ("localhost:9700", "file://localhost:9700", false),
        ] {
            let result = check(&policy, Access::RightHost, "127.0.0.1:9700", &[("host", host), ("origin", origin)]);
            assert_eq!(result, if passes { Ok(()) } else { Err(403) }, "{origin}");
        }
    }

    #[test]
    fn the_token_is_asked_for_and_told_from_a_guess() {
        let policy = policy(&[]);
        let right = format!("Bearer {}", policy.token.expose());
        let lower = format!("bearer {}", policy.token.expose());
        let bare = policy.token.expose().to_owned();
        let local = "127.0.0.1:9700";
        let host = ("host", "localhost:9700");
        assert_eq!(check(&policy, Access::Token, local, &[host, ("authorization", &right)]), Ok(()));
        assert_eq!(check(&policy, Access::Token, local, &[host, ("authorization", &lower)]), Ok(()));
        for wrong in [&bare, "Bearer ", "Bearer x", "Basic abc", ""] {
            assert_eq!(check(&policy, Access::Token, local, &[host, ("authorization", wrong)]), Err(401), "{wrong}");
        }
        assert_eq!(check(&policy, Access::Token, local, &[host]), Err(401));
        // A right token does not make up for a wrong Host.
        assert_eq!(check(&policy, Access::Token, local, &[("host", "evil"), ("authorization", &right)]), Err(403));
        let mut headers = HeaderMap::new();
        assert!(!policy.token(&headers).unwrap_err().guess);
        headers.insert("authorization", "Bearer x".parse().unwrap());
        assert!(policy.token(&headers).unwrap_err().guess);
    }

    #[test]
    fn probes_need_nothing_and_the_socket_s_routes_stay_there() {
        let policy = policy(&[]);
        let right = format!("Bearer {}", policy.token.expose());
        let known = [("host", "localhost:9700"), ("authorization", &right)];
        assert_eq!(check(&policy, Access::Anyone, "127.0.0.1:9700", &[("host", "10.1.2.3")]), Ok(()));
        assert_eq!(check(&policy, Access::Socket, "127.0.0.1:9700", &known), Err(403));
    }
}

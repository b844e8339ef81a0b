//! Who may ask what on the TCP side: the Host and Origin that a browser may name, and the token, sent as it is (curl,
//! Prometheus) or used to sign (the page). Reads a request's head and nothing else. The Unix socket needs none of it; the
//! kernel says who is there.
//!
//! Host is checked against a list because a name that an attacker points at us (DNS rebinding) makes his page same-origin
//! with ours; Origin, because a page elsewhere may send requests, if not read the answers.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};
use tokio::time::Instant;

use super::signature::{self, Challenger, Proof, Signed, Verdict};
use super::token::Tokens;

/// How well a caller must be known, from not at all upwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Anyone: a load balancer's probe names any Host.
    Anyone,
    /// Anyone who names us rightly: the page itself, which holds nothing.
    RightHost,
    /// The token for metrics, or the one for everything.
    MetricsToken,
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
    /// The caller knows the token, and may know that this server does.
    pub proof: Option<Proof>,
}

impl Denied {
    fn new(status: StatusCode, error: impl Into<String>, hint: impl Into<String>) -> Denied {
        Denied { status, error: error.into(), hint: hint.into(), guess: false, proof: None }
    }
}

/// The head of a request, as far as it decides.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    pub method: &'a Method,
    pub uri: &'a Uri,
    pub headers: &'a HeaderMap,
}

/// What the TCP side asks of a request.
#[derive(Debug)]
pub struct Policy {
    pub tokens: Arc<Tokens>,
    /// `[admin] hosts`: names, with or without a port.
    pub hosts: Vec<String>,
    pub challenger: Challenger,
    /// The start of the process, from which the age of challenges counts.
    pub started: Instant,
}

impl Policy {
    /// Returns the proof for the response if a request that came to `local` may pass and was signed.
    pub fn check(&self, access: Access, local: SocketAddr, head: Head<'_>) -> Result<Option<Proof>, Denied> {
        if access == Access::Anyone {
            return Ok(None);
        }
        self.host(local, head.uri, head.headers)?;
        self.origin(local, head.headers)?;
        match access {
            Access::Anyone | Access::RightHost => Ok(None),
            Access::MetricsToken | Access::Token => self.token(access, local, head),
            Access::Socket => Err(Denied::new(
                StatusCode::FORBIDDEN,
                "failed to admit this request: it is answered on the Unix socket only",
                "run `baton admin` on the server",
            )),
        }
    }

    /// Returns a challenge for the page to sign.
    pub fn challenge(&self) -> String {
        self.challenger.challenge(&self.tokens.admin(), self.started.elapsed())
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
            _ => Err(Denied::new(
                StatusCode::FORBIDDEN,
                format!("failed to admit a request from the page `{}`", shorten(origin)),
                "only the admin page itself may ask; curl sends no Origin",
            )),
        }
    }

    fn token(&self, access: Access, local: SocketAddr, head: Head<'_>) -> Result<Option<Proof>, Denied> {
        let Some(value) = one(head.headers, &header::AUTHORIZATION)? else {
            return Err(unknown_token("failed to find a token", false));
        };
        let (scheme, offered) = value.split_once(' ').unwrap_or((value, ""));
        if scheme.eq_ignore_ascii_case(signature::SCHEME) {
            return self.signed(local, head, offered).map(Some);
        }
        let offered = offered.trim().as_bytes();
        let passes = scheme.eq_ignore_ascii_case("bearer")
            && (self.tokens.admin().is(offered) || access == Access::MetricsToken && self.tokens.metrics().is(offered));
        if passes { Ok(None) } else { Err(unknown_token("failed to recognise the token", true)) }
    }

    /// Checks the signature of the admin page, `HOST CHALLENGE MAC`.
    fn signed(&self, local: SocketAddr, head: Head<'_>, offered: &str) -> Result<Proof, Denied> {
        let unknown = || unknown_token("failed to recognise the signature", true);
        let mut parts = offered.split(' ');
        let (Some(host), Some(challenge), Some(mac), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(unknown());
        };
        // It is for the server that the page was loaded from: another program on that port cannot pass it on to this one.
        if !self.knows(host, local) {
            return Err(unknown());
        }
        let target = head.uri.path_and_query().map_or("", |target| target.as_str());
        let signed = Signed { method: head.method.as_str(), target, host, challenge, mac };
        let age = self.started.elapsed();
        let (verdict, proof) = self.challenger.verify(&self.tokens.admin(), &signed, age).ok_or_else(unknown)?;
        let denied = |status, error, hint| Denied { proof: Some(proof.clone()), ..Denied::new(status, error, hint) };
        if verdict == Verdict::Stale {
            let error = "failed to accept the signature: its challenge is not of this process, or too old";
            return Err(denied(StatusCode::UNAUTHORIZED, error, "sign a new one, from /debug/admin/challenge"));
        }
        // What is not signed could be another's.
        if has_body(head.headers) {
            let error = "failed to accept the signature: it does not cover a body";
            return Err(denied(StatusCode::BAD_REQUEST, error, "send no body, or the token"));
        }
        Ok(proof)
    }
}

fn unknown_token(error: &str, guess: bool) -> Denied {
    let hint = "send `Authorization: Bearer TOKEN`; `baton admin` on the server prints the link with it";
    Denied { guess, ..Denied::new(StatusCode::UNAUTHORIZED, error, hint) }
}

fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get_all(header::CONTENT_LENGTH).iter().any(|length| length.as_bytes() != b"0")
}

/// A header that must not come twice: which of the two counts is where proxies and servers differ.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Denied> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    let text = first.map(|value| value.to_str()).transpose();
    match (text, values.next()) {
        (Ok(text), None) => Ok(text),
        _ => Err(Denied::new(
            StatusCode::FORBIDDEN,
            format!("failed to read the header {name}: it came twice or is no text"),
            "send it once",
        )),
    }
}

fn wrong_host(error: &str, local: SocketAddr) -> Denied {
    let hint = format!("use http://{local}, or list the name under [admin] hosts");
    Denied::new(StatusCode::FORBIDDEN, error, hint)
}

/// It goes into an answer and a log line.
fn shorten(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::super::token::Token;
    use super::*;
    use crate::dirs::Dirs;

    fn policy(hosts: &[&str]) -> Policy {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs { runtime: dir.path().into(), state: dir.path().into() };
        Policy {
            tokens: Arc::new(Tokens::open(&dirs).unwrap()),
            hosts: hosts.iter().map(|&host| host.into()).collect(),
            challenger: Challenger::new().unwrap(),
            started: Instant::now(),
        }
    }

    fn check(policy: &Policy, access: Access, local: &str, headers: &[(&'static str, &str)]) -> Result<(), u16> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let uri = Uri::from_static("/debug/admin");
        let head = Head { method: &Method::GET, uri: &uri, headers: &map };
        policy.check(access, local.parse().unwrap(), head).map(drop).map_err(|denied| denied.status.as_u16())
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
        let check = |uri| {
            let head = Head { method: &Method::GET, uri: &uri, headers: &headers };
            policy.check(Access::RightHost, ([127, 0, 0, 1], 9700).into(), head)
        };
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
        let right = format!("Bearer {}", policy.tokens.admin().expose());
        let lower = format!("bearer {}", policy.tokens.admin().expose());
        let bare = policy.tokens.admin().expose().to_owned();
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
        let uri = Uri::from_static("/debug/admin/status");
        let guess = |headers: &HeaderMap| {
            let head = Head { method: &Method::GET, uri: &uri, headers };
            policy.token(Access::Token, local.parse().unwrap(), head).unwrap_err().guess
        };
        assert!(!guess(&headers));
        for guessed in ["Bearer x", "Baton x", "Baton localhost:9700 a b"] {
            headers.insert("authorization", guessed.parse().unwrap());
            assert!(guess(&headers), "{guessed}");
        }
    }

    #[test]
    fn the_metrics_token_opens_metrics_and_nothing_else() {
        let policy = policy(&[]);
        let host = ("host", "localhost:9700");
        let (metrics, admin) = (policy.tokens.metrics(), policy.tokens.admin());
        for (token, access, expected) in [
            (&metrics, Access::MetricsToken, Ok(())),
            (&metrics, Access::Token, Err(401)),
            (&metrics, Access::Socket, Err(403)),
            (&admin, Access::MetricsToken, Ok(())),
            (&admin, Access::Token, Ok(())),
        ] {
            let bearer = format!("Bearer {}", token.expose());
            let result = check(&policy, access, "127.0.0.1:9700", &[host, ("authorization", &bearer)]);
            assert_eq!(result, expected, "{access:?}");
        }
    }

    /// What the page sends, signed with `token` for the page at `host`.
    fn sign(policy: &Policy, token: &Token, method: &str, target: &str, host: &str) -> String {
        let challenge = policy.challenge();
        let mac = signature::tests::request_mac(token, method, target, host, &challenge);
        format!("Baton {host} {challenge} {mac}")
    }

    #[test]
    fn a_signed_request_passes_with_a_proof_and_only_for_this_server() {
        let policy = policy(&["admin.example.org"]);
        let (admin, metrics) = (policy.tokens.admin(), policy.tokens.metrics());
        let target = "/debug/admin/status";
        for (token, host, passes) in [
            (&admin, "127.0.0.1:9700", true),
            // A proxy may have changed Host; what the page calls this server is listed.
            (&admin, "admin.example.org", true),
            // A page at another port: a program there passes on what was signed for it.
            (&admin, "127.0.0.1:9701", false),
            (&admin, "evil.example", false),
            (&metrics, "127.0.0.1:9700", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("host", "127.0.0.1:9700".parse().unwrap());
            headers.insert("authorization", sign(&policy, token, "GET", target, host).parse().unwrap());
            let uri = Uri::from_static(target);
            let check = |method: &Method, headers: &HeaderMap| {
                let head = Head { method, uri: &uri, headers };
                policy.check(Access::Token, "127.0.0.1:9700".parse().unwrap(), head)
            };
            assert_eq!(check(&Method::GET, &headers).is_ok_and(|proof| proof.is_some()), passes, "{host}");
            assert_eq!(check(&Method::POST, &headers).unwrap_err().status, 401, "signed for GET");
            headers.insert("content-length", "0".parse().unwrap());
            assert_eq!(check(&Method::GET, &headers).is_ok(), passes, "{host}");
            headers.insert("content-length", "2".parse().unwrap());
            let denied = check(&Method::GET, &headers).unwrap_err();
            assert_eq!(
                (denied.status.as_u16(), denied.proof.is_some()),
                if passes { (400, true) } else { (401, false) }
            );
        }
    }

    #[test]
    fn an_old_signature_is_denied_with_a_proof() {
        let mut policy = policy(&[]);
        let mut headers = HeaderMap::new();
        headers.insert("host", "127.0.0.1:9700".parse().unwrap());
        let signed = sign(&policy, &policy.tokens.admin(), "GET", "/debug/admin/status", "127.0.0.1:9700");
        headers.insert("authorization", signed.parse().unwrap());
        policy.started -= std::time::Duration::from_secs(61);
        let uri = Uri::from_static("/debug/admin/status");
        let head = Head { method: &Method::GET, uri: &uri, headers: &headers };
        let denied = policy.check(Access::Token, "127.0.0.1:9700".parse().unwrap(), head).unwrap_err();
        assert_eq!((denied.status.as_u16(), denied.guess), (401, false));
        assert!(denied.proof.is_some());
    }

    #[test]
    fn probes_need_nothing_and_the_socket_s_routes_stay_there() {
        let policy = policy(&[]);
        let right = format!("Bearer {}", policy.tokens.admin().expose());
        let known = [("host", "localhost:9700"), ("authorization", &right)];
        assert_eq!(check(&policy, Access::Anyone, "127.0.0.1:9700", &[("host", "10.1.2.3")]), Ok(()));
        assert_eq!(check(&policy, Access::Socket, "127.0.0.1:9700", &known), Err(403));
    }
}

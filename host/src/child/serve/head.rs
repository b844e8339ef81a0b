//! What a request's head must satisfy beyond hyper's parser, before it is routed: one valid `Host`, a target that every plugin
//! can rely on, and a body whose end can be read in one way only (RFC 9112 3.2, 6.1 and 6.3; RFC 9113 8.3.1).
//!
//! Owns the rules; `serve::service` answers what breaks them. A request that keeps them costs one pass over its fields.

use http::header::{HOST, TRANSFER_ENCODING};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};

use super::service::Own;

/// What one pass over the fields of a head finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields {
    /// The address just after the last value, 0 if all are empty.
    pub end: usize,
    pub host: HostField,
}

/// The `Host` of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostField {
    Missing,
    Valid,
    /// Not a host, or one of several.
    Invalid,
}

#[inline]
pub fn scan(headers: &HeaderMap) -> Fields {
    let mut fields = Fields { end: 0, host: HostField::Missing };
    for (name, value) in headers {
        let range = value.as_bytes().as_ptr_range();
        if range.start != range.end {
            fields.end = fields.end.max(range.end.addr());
        }
        if *name == HOST {
            fields.host = match fields.host {
                HostField::Missing if is_host(value.as_bytes()) => HostField::Valid,
                _ => HostField::Invalid,
            };
        }
    }
    fields
}

/// The rules of HTTP/1. `has_length` is false for a body whose length the head does not say: only `Transfer-Encoding` makes one.
#[inline]
pub fn check<B>(request: &mut Request<B>, host: HostField, has_length: bool) -> Result<(), Own> {
    match host {
        HostField::Valid => {}
        HostField::Missing if request.version() < Version::HTTP_11 => {}
        HostField::Missing | HostField::Invalid => return Err(Own::BadHost),
    }
    if !has_length {
        check_codings(request.headers())?;
    }
    let uri = request.uri();
    if uri.authority().is_none() && uri.path().starts_with('/') && request.method() != Method::CONNECT {
        return Ok(());
    }
    settle_target(request)
}

/// The forms that a target has beside a path (RFC 9112 3.2).
#[cold]
fn settle_target<B>(request: &mut Request<B>) -> Result<(), Own> {
    let uri = request.uri();
    if request.method() == Method::CONNECT {
        let is_authority_form = uri.scheme().is_none() && uri.path_and_query().is_none();
        let port = uri.authority().filter(|_| is_authority_form).and_then(Authority::port_u16);
        return if port.is_some_and(|port| port > 0) { Ok(()) } else { Err(Own::BadTarget) };
    }
    check_scheme(uri)?;
    match (uri.scheme(), uri.authority()) {
        (None, None) => {}
        // The `Host` that came along is ignored, for routes and for plugins (RFC 9112 3.2.2).
        (Some(_), Some(authority)) if is_named_host(authority) => {
            let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Own::BadTarget)?;
            request.headers_mut().insert(HOST, host);
        }
        // The form of CONNECT, or an absolute form whose host is not one.
        (_, _) => return Err(Own::BadTarget),
    }
    settle_path(request)
}

/// What is named by another scheme is not served here (RFC 9110 7.4). `https` on a clear connection is: a proxy that speaks TLS may
/// be in front.
pub fn check_scheme(uri: &Uri) -> Result<(), Own> {
    match uri.scheme_str() {
        None | Some("http" | "https") => Ok(()),
        Some(_) => Err(Own::OtherScheme),
    }
}

/// Makes the target begin with a slash, as the routes and the plugins expect.
pub fn settle_path<B>(request: &mut Request<B>) -> Result<(), Own> {
    let uri = request.uri();
    let target = uri.path_and_query().map_or("", PathAndQuery::as_str);
    match target.as_bytes().first() {
        Some(b'/') => return Ok(()),
        Some(b'*') if target.len() == 1 && request.method() == Method::OPTIONS => return Ok(()),
        // An absolute form without a path: its path is `/` (RFC 9110 4.2.3).
        Some(b'?') | None => {}
        Some(_) => return Err(Own::BadTarget),
    }
    let target = PathAndQuery::try_from(format!("/{target}")).map_err(|_| Own::TargetTooLong)?;
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(target);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Own::BadTarget)?;
    Ok(())
}

/// hyper has seen to it that the last coding is `chunked`. Before it there must be none, as none is known here; and a coding
/// that comes twice is how two servers are made to see two different requests.
#[cold]
fn check_codings(headers: &HeaderMap) -> Result<(), Own> {
    let codings = || {
        let lines = headers.get_all(TRANSFER_ENCODING).iter();
        lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
    };
    let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    if codings().any(|coding| !coding.is_empty() && !is_chunked(coding)) {
        return Err(Own::UnknownCoding);
    }
    if codings().count() == 1 { Ok(()) } else { Err(Own::BadFraming) }
}

/// Whether a target's authority is a host, with or without a port, and not an empty one (RFC 9110 4.2.1). What comes before an
/// `@` must not be there (RFC 9110 4.2.4, RFC 9113 8.3.1).
pub fn is_named_host(authority: &Authority) -> bool {
    !authority.host().is_empty() && is_host(authority.as_str().as_bytes())
}

/// Bytes of a name or an IPv4 address (RFC 3986 3.2.2): unreserved ones and sub-delims.
const NAME: [bool; 256] = {
    let mut bytes = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        bytes[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"-._~!$&'()*+,;=";
    let mut at = 0;
    while at < others.len() {
        bytes[others[at] as usize] = true;
        at += 1;
    }
    bytes
};

/// Whether a value of `Host` is one: `uri-host [ ":" port ]` (RFC 9110 7.2), which may be empty.
#[inline]
pub fn is_host(value: &[u8]) -> bool {
    match value.iter().position(|byte| !NAME[usize::from(*byte)]) {
        None => true,
        Some(at) => is_host_from(value, at),
    }
}

/// The same for a value of which the bytes before `at` are a part of a name.
fn is_host_from(value: &[u8], mut at: usize) -> bool {
    let is_encoded = |at: usize| value.get(at + 1..at + 3).is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit));
    loop {
        match value.get(at) {
            None => return true,
            Some(b':') => return is_port(&value[at + 1..]),
            Some(b'[') if at == 0 => return is_literal(value),
            Some(b'%') if is_encoded(at) => at += 3,
            Some(byte) if NAME[usize::from(*byte)] => at += 1,
            Some(_) => return false,
        }
    }
}

fn is_port(digits: &[u8]) -> bool {
    digits.iter().all(u8::is_ascii_digit)
}

/// An address in brackets, of IPv6 or a later version.
#[cold]
fn is_literal(value: &[u8]) -> bool {
    let Some(end) = value.iter().position(|byte| *byte == b']') else { return false };
    let (address, rest) = (&value[1..end], &value[end + 1..]);
    let is_address = match address {
        [b'v' | b'V', version @ ..] => {
            let dot = version.iter().position(|byte| *byte == b'.').unwrap_or(0);
            let (version, rest) = (&version[..dot], version.get(dot + 1..).unwrap_or_default());
            let is_byte = |byte: &u8| *byte == b':' || NAME[usize::from(*byte)];
            !version.is_empty()
                && version.iter().all(u8::is_ascii_hexdigit)
                && !rest.is_empty()
                && rest.iter().all(is_byte)
        }
        _ => std::str::from_utf8(address).is_ok_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok()),
    };
    is_address && matches!(rest, [] | [b':', ..]) && is_port(rest.get(1..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_is_a_name_or_an_address_with_a_port_or_none() {
        for valid in [
            "",
            "a",
            "a.example",
            "a.example.",
            "A.Example:80",
            "a:",
            "127.0.0.1:8080",
            "[::1]",
            "[::1]:8080",
            "[::1]:",
            "[v1.a:b]",
            "a_b-c~d",
            "%61.example",
            "xn--bcher-kva.example",
            "a,b",
        ] {
            assert!(is_host(valid.as_bytes()), "{valid:?}");
        }
        for invalid in [
            "a b/c",
            "a b",
            "a/b",
            "a?b",
            "a#b",
            "user@a",
            "a:b",
            "a:80:80",
            ":80x",
            "a:-1",
            "a:+1",
            "a: 80",
            "[::1",
            "[::1]x",
            "[::g]",
            "[]",
            "::1",
            "x[::1]",
            "[v.a]",
            "[v1.]",
            "[v1]",
            "%",
            "%6",
            "%6g.example",
            "a%zz:80",
            "a\\b",
            "a\"",
            "<a>",
            "b\u{fc}cher.example",
            "a\tb",
        ] {
            assert!(!is_host(invalid.as_bytes()), "{invalid:?}");
        }
    }

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let value = |text: &str| HeaderValue::from_str(text).unwrap();
        fields.iter().map(|(name, text)| (http::HeaderName::from_static(name), value(text))).collect()
    }

    #[test]
    fn scan_finds_the_last_value_and_one_host() {
        let scanned = scan(&headers(&[("accept", "x"), ("host", "a"), ("x", "")]));
        assert_eq!(scanned.host, HostField::Valid);
        assert!(scanned.end > 0);
        assert_eq!(scan(&headers(&[("x", "")])), Fields { end: 0, host: HostField::Missing });
        for twice in [["a", "a"], ["a", "b"], ["", ""]] {
            let map: HeaderMap = twice.iter().map(|host| (HOST, HeaderValue::from_static(host))).collect();
            assert_eq!(scan(&map).host, HostField::Invalid, "{twice:?}");
        }
    }

    /// What becomes of a request: its target and its Host, or how it is refused.
    fn settled(method: &str, target: &str, host: &str) -> Result<(String, String), Own> {
        let mut request = Request::builder().method(method).uri(target).header("host", host).body(()).unwrap();
        let field = scan(request.headers()).host;
        check(&mut request, field, true)?;
        let target = request.uri().path_and_query().map_or(String::new(), ToString::to_string);
        Ok((target, request.headers()[HOST].to_str().unwrap().to_owned()))
    }

    #[test]
    fn absolute_form_replaces_host_and_gets_a_path() {
        for (target, expected, host) in [
            ("/x?y", "/x?y", "old"),
            ("//x", "//x", "old"),
            ("http://b.example:81/x?y", "/x?y", "b.example:81"),
            ("http://b.example", "/", "b.example"),
            ("http://b.example?x=1", "/?x=1", "b.example"),
            ("http://[::1]:80?", "/?", "[::1]:80"),
            ("HTTPS://b.example/", "/", "b.example"),
        ] {
            assert_eq!(settled("GET", target, "old"), Ok((expected.into(), host.into())), "{target}");
        }
        for target in ["ftp://b.example/", "FTP://b.example/", "ws://b.example/", "httpx://b.example/"] {
            assert_eq!(settled("GET", target, "old"), Err(Own::OtherScheme), "{target}");
        }
        assert_eq!(settled("OPTIONS", "*", "old"), Ok(("*".into(), "old".into())));
        assert_eq!(settled("CONNECT", "b.example:443", "old"), Ok((String::new(), "old".into())));
    }

    #[test]
    fn target_of_another_form_is_refused() {
        for (method, target) in [
            ("GET", "*"),
            ("GET", "b.example"),
            ("GET", "b.example:80"),
            ("OPTIONS", "b.example:80"),
            ("GET", "http://user@b.example/"),
            ("GET", "http://user:pass@b.example/"),
            ("CONNECT", "b.example"),
            ("CONNECT", "b.example:0"),
            ("CONNECT", "/"),
            ("CONNECT", "http://b.example:80/"),
        ] {
            assert_eq!(settled(method, target, "old"), Err(Own::BadTarget), "{method} {target}");
        }
        let mut longest = Request::new(());
        let target = format!("?{}", "x".repeat(65_533));
        *longest.uri_mut() = Uri::builder().path_and_query(target).build().unwrap();
        assert_eq!(settle_path(&mut longest), Err(Own::TargetTooLong));
    }

    #[test]
    fn codings_other_than_one_chunked_are_refused() {
        let codings = |lines: &[&str]| {
            let value = |line: &&str| (TRANSFER_ENCODING, HeaderValue::from_str(line).unwrap());
            check_codings(&lines.iter().map(value).collect())
        };
        assert_eq!(codings(&["chunked"]), Ok(()));
        assert_eq!(codings(&["Chunked"]), Ok(()));
        for lines in [&["chunked, chunked"][..], &["chunked", "chunked"], &[", chunked"], &["", "chunked"]] {
            assert_eq!(codings(lines), Err(Own::BadFraming), "{lines:?}");
        }
        for lines in [&["gzip, chunked"][..], &["gzip", "chunked"], &["identity, chunked"], &["chunked, gzip, chunked"]]
        {
            assert_eq!(codings(lines), Err(Own::UnknownCoding), "{lines:?}");
        }
    }
}

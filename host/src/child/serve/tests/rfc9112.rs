//! Every MUST of RFC 9112 (sections 3, 6, 7 and 9) that a server can break, and what is known of request smuggling, as tables:
//! the bytes of a client, and what comes of them. Each is followed by one more request, which is answered if the connection
//! goes on and must not be if it closes; so no row can make two requests out of one unnoticed.
//!
//! In one file: it is one list.

use super::fake::read;
use super::*;

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Goes,
    Closes,
}

use Then::{Closes, Goes};

/// Returns what it got: method, target, Host, and body. `/unread` leaves the body alone.
async fn record(mut asked: Asked) -> Reply {
    let seen = format!("{} {} {}", asked.method(), asked.target(), asked.header("host").unwrap_or("-".into()));
    if asked.target() == "/unread" {
        return reply(200, seen);
    }
    match read(&mut asked.body).await {
        Ok((data, _)) => reply(200, format!("{seen} [{}]", String::from_utf8_lossy(&data))),
        Err(error) => reply(400, error),
    }
}

const NEXT: &str = "GET /next HTTP/1.1\r\nhost: n\r\nconnection: close\r\n\r\n";

/// Sends `bytes` and one more request. Returns each response's status, with its text if that is 200, and whether the
/// connection went on.
fn outcome(site: &Site, bytes: &[u8]) -> (Vec<String>, Then) {
    let mut client = site.connect();
    // A server that refuses need not read the rest.
    let _ = client.stream.write_all(&[bytes, NEXT.as_bytes()].concat());
    client.buffer = client.rest().unwrap_or_else(|error| panic!("{error} after {}", bytes.escape_ascii()));
    let (mut answers, mut then) = (Vec::new(), Closes);
    while !client.buffer.is_empty() {
        let answer = client.answer();
        match (answer.status(), answer.text()) {
            (200, "GET /next n []") => then = Goes,
            (200, text) => answers.push(format!("200 {text}")),
            (status, _) => answers.push(status.to_string()),
        }
        if client.buffer.is_empty() {
            assert!(
                answer.closes() || answer.head.starts_with("HTTP/1.0"),
                "unannounced after {}",
                bytes.escape_ascii()
            );
        }
    }
    (answers, then)
}

/// A row: the rule, the bytes, the responses, and whether the connection goes on.
type Row<'a> = (&'a str, &'a str, &'a [&'a str], Then);

#[track_caller]
fn holds(rows: &[Row<'_>]) {
    let site = serve(record);
    let mut broken = Vec::new();
    for (rule, bytes, answers, then) in rows {
        let got = outcome(&site, bytes.as_bytes());
        if got != (answers.iter().map(ToString::to_string).collect(), *then) {
            let bytes = &bytes[..bytes.len().min(500)];
            broken.push(format!("{rule}: {bytes:?}\n    expected {answers:?} {then:?}\n    got      {got:?}"));
        }
    }
    assert!(broken.is_empty(), "{} of {} rules:\n{}", broken.len(), rows.len(), broken.join("\n"));
    site.until_open(0);
    assert_eq!((site.metric(Slot::Connections), site.metric(Slot::InFlight), site.metric(Slot::Idle)), (0, 0, 0));
}

const BAD: &[&str] = &["400"];

#[test]
fn request_line_and_target_follow_section_3() {
    let long = |begin: &str| format!("GET {begin}{} HTTP/1.1\r\nhost: h\r\n\r\n", "x".repeat(70_000));
    let fits = "x".repeat(60_000);
    let fitting = format!("200 GET /{fits} h []");
    holds(&[
        ("3: a request", "GET /a?b HTTP/1.1\r\nhost: h\r\n\r\n", &["200 GET /a?b h []"], Goes),
        ("3.1: methods are case-sensitive", "get /a HTTP/1.1\r\nhost: h\r\n\r\n", &["200 get /a h []"], Goes),
        ("2.2: an empty line before it", "\r\n\r\nGET /a HTTP/1.1\r\nhost: h\r\n\r\n", &["200 GET /a h []"], Goes),
        ("3: white space before it", " GET / HTTP/1.1\r\nhost: h\r\n\r\n", BAD, Closes),
        ("3: a tab before it", "\tGET / HTTP/1.1\r\nhost: h\r\n\r\n", BAD, Closes),
        ("3: two spaces", "GET  / HTTP/1.1\r\nhost: h\r\n\r\n", BAD, Closes),
        ("3: tabs", "GET\t/\tHTTP/1.1\r\nhost: h\r\n\r\n", BAD, Closes),
        ("3: a space behind it", "GET / HTTP/1.1 \r\nhost: h\r\n\r\n", BAD, Closes),
        ("3: a space in the target", "GET /a b HTTP/1.1\r\nhost: h\r\n\r\n", BAD, Closes),
        ("3: no target", "GET HTTP/1.1\r\nhost: h\r\n\r\n", BAD, Closes),
        ("3: no version", "GET /\r\nhost: h\r\n\r\n", BAD, Closes),
        ("3: a method that is no token", "G(T / HTTP/1.1\r\nhost: h\r\n\r\n", BAD, Closes),
        ("3: a bare CR in the target", "GET /\rx HTTP/1.1\r\nhost: h\r\n\r\n", BAD, Closes),
        ("3: NUL in the target", "GET /\0 HTTP/1.1\r\nhost: h\r\n\r\n", BAD, Closes),
        ("2.3: a name in lower case", "GET / http/1.1\r\nhost: h\r\n\r\n", BAD, Closes),
        ("2.3: no such version", "GET / HTTP/1.10\r\nhost: h\r\n\r\n", BAD, Closes),
        ("2.3: another major version", "GET / HTTP/3.0\r\nhost: h\r\n\r\n", &["505"], Closes),
        ("3: a target that is too long", &long("/"), &["414"], Closes),
        ("3: a query that is too long", &long("/?"), &["414"], Closes),
        ("3: a target that just fits", &format!("GET /{fits} HTTP/1.1\r\nhost: h\r\n\r\n"), &[&fitting], Goes),
        (
            "3: behind a request",
            &format!("GET /a HTTP/1.1\r\nhost: h\r\n\r\n{}", long("/")),
            &["200 GET /a h []", "414"],
            Closes,
        ),
        ("3.2: no Host", "GET / HTTP/1.1\r\n\r\n", BAD, Closes),
        ("3.2: no Host in HTTP/1.0", "GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n", &["200 GET / - []"], Goes),
        ("3.2: Host twice", "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", BAD, Closes),
        ("3.2: the same Host twice", "GET / HTTP/1.1\r\nhost: a\r\nx: y\r\nhost: a\r\n\r\n", BAD, Closes),
        ("3.2: Host twice in HTTP/1.0", "GET / HTTP/1.0\r\nhost: a\r\nhost: a\r\n\r\n", BAD, Closes),
        ("3.2: an invalid Host", "GET / HTTP/1.1\r\nhost: a b/c\r\n\r\n", BAD, Closes),
        ("3.2: a list of hosts", "GET / HTTP/1.1\r\nhost: a, b\r\n\r\n", BAD, Closes),
        ("3.2: a URI as Host", "GET / HTTP/1.1\r\nhost: http://a/\r\n\r\n", BAD, Closes),
        ("3.2: userinfo in Host", "GET / HTTP/1.1\r\nhost: u@a\r\n\r\n", BAD, Closes),
        ("3.2: an empty Host", "GET / HTTP/1.1\r\nhost:\r\n\r\n", &["200 GET /  []"], Goes),
        ("3.2: Host in absolute form too", "GET http://a/ HTTP/1.1\r\n\r\n", BAD, Closes),
        ("3.2: Host twice in absolute form", "GET http://a/ HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", BAD, Closes),
        ("3.2.2: Host is replaced", "GET http://b:81/x HTTP/1.1\r\nhost: a\r\n\r\n", &["200 GET /x b:81 []"], Goes),
        ("3.2.2: without a path", "GET http://b HTTP/1.1\r\nhost: a\r\n\r\n", &["200 GET / b []"], Goes),
        ("3.2.2: only a query", "GET http://b?x=1 HTTP/1.1\r\nhost: a\r\n\r\n", &["200 GET /?x=1 b []"], Goes),
        (
            "3.2.2: in HTTP/1.0",
            "GET http://b?x HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
            &["200 GET /?x b []"],
            Goes,
        ),
        ("3.2.2: userinfo", "GET http://u:p@b/ HTTP/1.1\r\nhost: b\r\n\r\n", BAD, Closes),
        ("3.2: a fragment", "GET /a#b HTTP/1.1\r\nhost: h\r\n\r\n", BAD, Closes),
        ("3.2: an empty fragment", "GET /a# HTTP/1.1\r\nhost: h\r\n\r\n", BAD, Closes),
        ("3.2: a fragment of the root", "GET /#a HTTP/1.1\r\nhost: h\r\n\r\n", BAD, Closes),
        ("3.2: a fragment behind a query", "GET /a?b#c HTTP/1.1\r\nhost: h\r\n\r\n", BAD, Closes),
        ("3.2: a fragment in absolute form", "GET http://h/a#b HTTP/1.1\r\nhost: h\r\n\r\n", BAD, Closes),
        ("3.2: a fragment behind a host", "GET http://h#b HTTP/1.1\r\nhost: h\r\n\r\n", BAD, Closes),
        ("3.2: a fragment in asterisk form", "OPTIONS *#b HTTP/1.1\r\nhost: h\r\n\r\n", BAD, Closes),
        (
            "3.2: a fragment of a second request",
            "GET /1 HTTP/1.1\r\nhost: h\r\nx: #\r\n\r\nGET /a#b HTTP/1.1\r\nhost: h\r\n\r\n",
            &["200 GET /1 h []", "400"],
            Closes,
        ),
        (
            "3.2: a fragment behind a body",
            "POST /1 HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\n#b#GET /a#b HTTP/1.1\r\nhost: h\r\n\r\n",
            &["200 POST /1 h [#b#]", "400"],
            Closes,
        ),
        (
            "3.2: a fragment behind a body in chunks",
            "POST /1 HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n3\r\n#b#\r\n0\r\n\r\nGET /a#b HTTP/1.1\r\nhost: h\r\n\r\n",
            &["200 POST /1 h [#b#]", "400"],
            Closes,
        ),
        ("3.2: # elsewhere", "GET /a HTTP/1.1\r\nhost: h\r\nx: #\r\n#: #\r\n\r\n", &["200 GET /a h []"], Goes),
        ("RFC 9110 7.4: another scheme", "GET ftp://b/ HTTP/1.1\r\nhost: a\r\n\r\n", &["421"], Closes),
        ("RFC 9110 7.4: one like http", "GET httpx://b/ HTTP/1.1\r\nhost: a\r\n\r\n", &["421"], Closes),
        ("RFC 9110 7.4: https", "GET HttpS://b/ HTTP/1.1\r\nhost: a\r\n\r\n", &["200 GET / b []"], Goes),
        ("3.2.2: no host", "GET http:///x HTTP/1.1\r\nhost: a\r\n\r\n", BAD, Closes),
        ("3.2.3: authority form is for CONNECT", "GET a:80 HTTP/1.1\r\nhost: a\r\n\r\n", BAD, Closes),
        ("3.2.3: no path and no authority", "GET x HTTP/1.1\r\nhost: a\r\n\r\n", BAD, Closes),
        ("3.2.3: a query alone", "GET ?x HTTP/1.1\r\nhost: a\r\n\r\n", BAD, Closes),
        ("3.2.3: CONNECT without a port", "CONNECT a HTTP/1.1\r\nhost: a\r\n\r\n", BAD, Closes),
        ("3.2.3: CONNECT to a path", "CONNECT / HTTP/1.1\r\nhost: a\r\n\r\n", BAD, Closes),
        ("3.2.4: asterisk form", "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", &["200 OPTIONS * a []"], Goes),
        ("3.2.4: asterisk form is for OPTIONS", "GET * HTTP/1.1\r\nhost: a\r\n\r\n", BAD, Closes),
    ]);
}

#[test]
fn fields_follow_section_5() {
    let field = |line: &str| format!("GET /a HTTP/1.1\r\nhost: h\r\n{line}\r\n");
    let site = serve(record);
    for (rule, line) in [
        ("5.1: a space before the colon", "x : y\r\n"),
        ("5.1: a tab before the colon", "x\t: y\r\n"),
        ("5.1: no colon", "x\r\n"),
        ("5.1: no name", ": y\r\n"),
        ("5.1: NUL in a name", "x\0: y\r\n"),
        ("5.1: a name that is no token", "x(: y\r\n"),
        ("5.1: a name that is not ASCII", "\u{fc}: y\r\n"),
        ("5.2: obs-fold by a space", "x: y\r\n z\r\n"),
        ("5.2: obs-fold by a tab", "x: y\r\n\tz\r\n"),
        ("2.2: a bare CR in a value", "x: y\rz\r\n"),
        ("2.2: a bare CR at the end", "x: y\r\r\n"),
        ("5.5: NUL in a value", "x: y\0\r\n"),
        ("5.5: a control character", "x: \u{b}y\r\n"),
        ("2.2: white space before the first field", " x: y\r\n"),
    ] {
        let got = outcome(&site, field(line).as_bytes());
        assert_eq!(got, (vec!["400".into()], Closes), "{rule}");
    }
    let begin = "GET /a HTTP/1.1\r\n host: h\r\n\r\n";
    assert_eq!(outcome(&site, begin.as_bytes()), (vec!["400".into()], Closes), "2.2: before the first of all");
    // A single LF may end a line (2.2): all that follows is read by the same rule.
    let bare = "GET /a HTTP/1.1\nhost: h\nx: y\n\n";
    assert_eq!(outcome(&site, bare.as_bytes()), (vec!["200 GET /a h []".into()], Goes));
    for line in ["x: caf\u{e9}\r\n", "x:\ty \t\r\n", "x:\r\n", "x_y.z: a\r\n"] {
        assert_eq!(outcome(&site, field(line).as_bytes()), (vec!["200 GET /a h []".into()], Goes), "{line:?}");
    }
}

/// A POST with these fields and this body.
fn post(fields: &str, body: &str) -> String {
    format!("POST /p HTTP/1.1\r\nhost: h\r\n{fields}\r\n{body}")
}

const CHUNKED: &str = "transfer-encoding: chunked\r\n";
const ABC: &[&str] = &["200 POST /p h [abc]"];

#[test]
fn body_length_follows_section_6() {
    let rows: Vec<(&str, String, &[&str], Then)> = vec![
        ("6.3: neither field: no body", post("", ""), &["200 POST /p h []"], Goes),
        ("6.3: a length", post("content-length: 3\r\n", "abc"), ABC, Goes),
        ("6.3: a length of 0", post("content-length: 0\r\n", ""), &["200 POST /p h []"], Goes),
        ("6.3: a length with zeros", post("content-length: 0003\r\n", "abc"), ABC, Goes),
        ("5.5: white space around it", post("content-length: \t3 \r\n", "abc"), ABC, Goes),
        ("6.3: the same length twice", post("content-length: 3\r\ncontent-length: 3\r\n", "abc"), ABC, Goes),
        ("6.3: two lengths", post("content-length: 3\r\ncontent-length: 4\r\n", "abc"), BAD, Closes),
        ("6.3: two lengths in a list", post("content-length: 3, 4\r\n", "abc"), BAD, Closes),
        ("6.3: a list of one length", post("content-length: 3, 3\r\n", "abc"), BAD, Closes),
        ("6.3: a sign", post("content-length: +3\r\n", "abc"), BAD, Closes),
        ("6.3: below zero", post("content-length: -1\r\n", "abc"), BAD, Closes),
        ("6.3: hexadecimal", post("content-length: 0x3\r\n", "abc"), BAD, Closes),
        ("6.3: a space in it", post("content-length: 3 3\r\n", "abc"), BAD, Closes),
        ("6.3: with a fraction", post("content-length: 3.0\r\n", "abc"), BAD, Closes),
        ("6.3: in quotes", post("content-length: \"3\"\r\n", "abc"), BAD, Closes),
        ("6.3: no digits", post("content-length:\r\n", "abc"), BAD, Closes),
        ("6.3: digits of another script", post("content-length: \u{663}\r\n", "abc"), BAD, Closes),
        ("6.3: more than 64 bits", post("content-length: 18446744073709551619\r\n", "abc"), BAD, Closes),
        ("6.1: chunked", post(CHUNKED, "3\r\nabc\r\n0\r\n\r\n"), ABC, Goes),
        ("7: names of codings in any case", post("transfer-encoding: ChunKed\r\n", "3\r\nabc\r\n0\r\n\r\n"), ABC, Goes),
        ("5.5: white space around", post("transfer-encoding: \tchunked \r\n", "3\r\nabc\r\n0\r\n\r\n"), ABC, Goes),
        ("6.1: chunked twice", post("transfer-encoding: chunked, chunked\r\n", "0\r\n\r\n"), BAD, Closes),
        (
            "6.1: chunked twice, in two lines",
            post("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"),
            BAD,
            Closes,
        ),
        ("6.1: an unknown coding", post("transfer-encoding: gzip, chunked\r\n", "0\r\n\r\n"), &["501"], Closes),
        (
            "6.1: an unknown coding, in its own line",
            post("transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"),
            &["501"],
            Closes,
        ),
        (
            "6.1: identity is none any more",
            post("transfer-encoding: identity, chunked\r\n", "0\r\n\r\n"),
            &["501"],
            Closes,
        ),
        ("6.3: chunked not last", post("transfer-encoding: chunked, gzip\r\n", "0\r\n\r\n"), BAD, Closes),
        ("6.3: no chunked", post("transfer-encoding: gzip\r\n", "0\r\n\r\n"), BAD, Closes),
        ("6.3: identity alone", post("transfer-encoding: identity\r\n", "0\r\n\r\n"), BAD, Closes),
        ("6.3: no coding", post("transfer-encoding:\r\n", "0\r\n\r\n"), BAD, Closes),
        (
            "6.1: HTTP/1.0 has no codings",
            "POST /p HTTP/1.0\r\nhost: h\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
                .into(),
            BAD,
            Closes,
        ),
        (
            "6.1: HTTP/1.0 has no codings, with a length either",
            "POST /p HTTP/1.0\r\nhost: h\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".into(),
            BAD,
            Closes,
        ),
        (
            "6.1: both fields: chunked, then a close",
            post("content-length: 4\r\ntransfer-encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n"),
            ABC,
            Closes,
        ),
    ];
    let rows: Vec<Row<'_>> =
        rows.iter().map(|(rule, bytes, answers, then)| (*rule, &bytes[..], *answers, *then)).collect();
    holds(&rows);
}

#[test]
fn chunks_follow_section_7() {
    let long = format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(20_000));
    let trailers = format!("3\r\nabc\r\n0\r\nx: {}\r\n\r\n", "x".repeat(100_000));
    let rows: Vec<(&str, &str, &[&str], Then)> = vec![
        ("7.1: several chunks", "1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", ABC, Goes),
        ("7.1: hexadecimal", "00A\r\n0123456789\r\n0\r\n\r\n", &["200 POST /p h [0123456789]"], Goes),
        ("7.1: many zeros", "0000000000000000000000003\r\nabc\r\n000\r\n\r\n", ABC, Goes),
        ("7.1.1: extensions are ignored", "3;a=b;c\r\nabc\r\n0;d=\"e\"\r\n\r\n", ABC, Goes),
        ("7.1.2: trailers change nothing", "3\r\nabc\r\n0\r\nhost: evil\r\ncontent-length: 9\r\n\r\n", ABC, Closes),
        ("7.1: a size that overflows", "10000000000000003\r\nabc\r\n0\r\n\r\n", BAD, Closes),
        ("7.1: a size that overflows far", "fffffffffffffffffffffff3\r\nabc\r\n0\r\n\r\n", BAD, Closes),
        ("7.1: below zero", "-1\r\nabc\r\n0\r\n\r\n", BAD, Closes),
        ("7.1: a sign", "+3\r\nabc\r\n0\r\n\r\n", BAD, Closes),
        ("7.1: a prefix", "0x3\r\nabc\r\n0\r\n\r\n", BAD, Closes),
        ("7.1: white space before it", " 3\r\nabc\r\n0\r\n\r\n", BAD, Closes),
        ("7.1: white space in it", "1 0\r\n0123456789abcdef\r\n0\r\n\r\n", BAD, Closes),
        ("7.1: no size", "\r\nabc\r\n0\r\n\r\n", BAD, Closes),
        ("7.1: no size but an extension", ";a\r\nabc\r\n0\r\n\r\n", BAD, Closes),
        ("7.1: no hexadecimal digit", "g\r\nabc\r\n0\r\n\r\n", BAD, Closes),
        ("7.1: NUL behind it", "3\0\r\nabc\r\n0\r\n\r\n", BAD, Closes),
        ("2.2: a bare LF behind the size", "3\nabc\r\n0\r\n\r\n", BAD, Closes),
        ("2.2: a bare CR behind the size", "3\rabc\r\n0\r\n\r\n", BAD, Closes),
        ("7.1.1: a bare LF in an extension", "3;a\nabc\r\n0\r\n\r\n", BAD, Closes),
        ("7.1.1: a bare CR in an extension", "3;a\rb\r\nabc\r\n0\r\n\r\n", BAD, Closes),
        ("7.1.1: extensions are bounded", &long, BAD, Closes),
        ("7.1: more than the size", "3\r\nabcd\r\n0\r\n\r\n", BAD, Closes),
        ("7.1: less than the size", "4\r\nabc\r\n0\r\n\r\n", BAD, Closes),
        ("2.2: a bare LF behind the data", "3\r\nabc\n0\r\n\r\n", BAD, Closes),
        ("7.1: nothing behind the data", "3\r\nabc0\r\n\r\n", BAD, Closes),
        ("7.1: two line ends behind the data", "3\r\nabc\r\n\r\n0\r\n\r\n", BAD, Closes),
        ("2.2: a bare LF behind the last chunk", "3\r\nabc\r\n0\n\r\n", BAD, Closes),
        ("7.1.2: trailers are bounded", &trailers, BAD, Closes),
        ("7.1.2: a trailer that is none", "3\r\nabc\r\n0\r\nx\r\n\r\n", BAD, Closes),
        ("7.1.2: a space before its colon", "3\r\nabc\r\n0\r\nx : y\r\n\r\n", BAD, Closes),
    ];
    let rows: Vec<_> =
        rows.iter().map(|(rule, body, answers, then)| (*rule, post(CHUNKED, body), *answers, *then)).collect();
    let rows: Vec<Row<'_>> =
        rows.iter().map(|(rule, bytes, answers, then)| (*rule, &bytes[..], *answers, *then)).collect();
    holds(&rows);
}

#[test]
fn connections_follow_section_9() {
    let three = "GET /1 HTTP/1.1\r\nhost: h\r\n\r\nPOST /2 HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\nabc\
        GET /3 HTTP/1.1\r\nhost: h\r\n\r\n";
    let close = |value: &str| format!("GET /a HTTP/1.1\r\nhost: h\r\nconnection: {value}\r\n\r\n");
    let two = "GET /a HTTP/1.1\r\nhost: h\r\nconnection: x\r\nconnection: close\r\n\r\n";
    let one = &["200 GET /a h []"][..];
    let unread = |fields: &str, body: &str| format!("POST /unread HTTP/1.1\r\nhost: h\r\n{fields}\r\n{body}");
    let length = |len: usize| format!("content-length: {len}\r\n");
    let left = &["200 POST /unread h"][..];
    holds(&[
        ("9.3.2: in order", three, &["200 GET /1 h []", "200 POST /2 h [abc]", "200 GET /3 h []"], Goes),
        ("9.6: close", &close("close"), one, Closes),
        ("9.6: close in any case", &close("CLOSE"), one, Closes),
        ("9.6: close in a list", &close("x, close"), one, Closes),
        ("9.6: close in a second line", two, one, Closes),
        ("9.3: another option", &close("x"), one, Goes),
        ("9.3: HTTP/1.0 closes", "GET /a HTTP/1.0\r\nhost: h\r\n\r\n", one, Closes),
        ("9.3: HTTP/1.0 is kept", "GET /a HTTP/1.0\r\nhost: h\r\nconnection: Keep-Alive\r\n\r\n", one, Goes),
        ("9.3: close wins", "GET /a HTTP/1.0\r\nhost: h\r\nconnection: keep-alive, close\r\n\r\n", one, Closes),
        ("9.3: an unread body", &unread(&length(200_000), &"x".repeat(200_000)), left, Goes),
        ("9.3: an unread body in chunks", &unread(CHUNKED, "3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"), left, Goes),
        ("9.3: an unread body that is large", &unread(&length(900_000), &"x".repeat(900_000)), left, Closes),
        ("9.3: an unread body that is malformed", &unread(CHUNKED, "3\r\nabcd\r\n0\r\n\r\n"), left, Closes),
    ]);
}

#[test]
fn smuggled_requests_are_never_answered() {
    const EVIL: &str = "GET /evil HTTP/1.1\r\nhost: h\r\n\r\n";
    let in_body = |fields: &str, before: &str, after: &str| post(fields, &format!("{before}{EVIL}{after}"));
    let size = EVIL.len();
    let rows: Vec<(&str, String, &[&str], Then)> = vec![
        // The framing that an attacker hopes another server follows, beside the one that holds.
        (
            "CL.TE",
            in_body(&format!("content-length: {}\r\n{CHUNKED}", size + 5), "0\r\n\r\n", ""),
            &["200 POST /p h []"],
            Closes,
        ),
        ("TE.CL", in_body(&format!("{CHUNKED}content-length: 4\r\n"), "0\r\n\r\n", ""), &["200 POST /p h []"], Closes),
        (
            "CL.0",
            in_body(&format!("content-length: {size}\r\n"), "", ""),
            &["200 POST /p h [GET /evil HTTP/1.1\r\nhost: h\r\n\r\n]"],
            Goes,
        ),
        (
            "TE.TE: two lines",
            in_body("transfer-encoding: chunked\r\ntransfer-encoding: x\r\n", "0\r\n\r\n", ""),
            BAD,
            Closes,
        ),
        (
            "TE.TE: two lines, turned",
            in_body("transfer-encoding: x\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n", ""),
            &["501"],
            Closes,
        ),
        ("TE.TE: xchunked", in_body("transfer-encoding: xchunked\r\n", "0\r\n\r\n", ""), BAD, Closes),
        ("TE.TE: quoted", in_body("transfer-encoding: \"chunked\"\r\n", "0\r\n\r\n", ""), BAD, Closes),
        ("TE.TE: a parameter", in_body("transfer-encoding: chunked;q=1\r\n", "0\r\n\r\n", ""), BAD, Closes),
        ("TE.TE: a comma behind", in_body("transfer-encoding: chunked,\r\n", "0\r\n\r\n", ""), BAD, Closes),
        ("TE.TE: a comma before", in_body("transfer-encoding: ,chunked\r\n", "0\r\n\r\n", ""), BAD, Closes),
        ("TE.TE: a vertical tab", in_body("transfer-encoding: \u{b}chunked\r\n", "0\r\n\r\n", ""), BAD, Closes),
        ("TE.TE: NUL", in_body("transfer-encoding: chunked\0\r\n", "0\r\n\r\n", ""), BAD, Closes),
        ("TE.TE: a no-break space", in_body("transfer-encoding: \u{a0}chunked\r\n", "0\r\n\r\n", ""), BAD, Closes),
        ("TE.TE: a space before the colon", in_body("transfer-encoding : chunked\r\n", "0\r\n\r\n", ""), BAD, Closes),
        ("TE.TE: a fold", in_body("transfer-encoding:\r\n chunked\r\n", "0\r\n\r\n", ""), BAD, Closes),
        ("TE.TE: a fold before", in_body("x: y\r\n transfer-encoding: chunked\r\n", "0\r\n\r\n", ""), BAD, Closes),
        ("TE.TE: a bare CR before", in_body("x: y\rtransfer-encoding: chunked\r\n", "0\r\n\r\n", ""), BAD, Closes),
        ("CL.CL", in_body(&format!("content-length: 0\r\ncontent-length: {size}\r\n"), "", ""), BAD, Closes),
        ("CL with a sign", in_body(&format!("content-length: +{size}\r\n"), "", ""), BAD, Closes),
        ("CL with a space before the colon", in_body(&format!("content-length : {size}\r\n"), "", ""), BAD, Closes),
        ("CL behind a fold", in_body(&format!("x: y\r\n content-length: {size}\r\n"), "", ""), BAD, Closes),
        ("TERM.EXT", in_body(CHUNKED, "2;\nxx\r\n", "0\r\n\r\n"), BAD, Closes),
        ("EXT.TERM", in_body(CHUNKED, "2;a\rb\r\nxx\r\n", "0\r\n\r\n"), BAD, Closes),
        ("TERM.SPILL", in_body(CHUNKED, "3\r\nabc\n0\r\n\r\n", ""), BAD, Closes),
        ("SPILL.TERM", in_body(CHUNKED, "3\r\nabcXX0\r\n\r\n", ""), BAD, Closes),
        ("a chunk's size that wraps", in_body(CHUNKED, "10000000000000000\r\n", ""), BAD, Closes),
        ("an LF ends the trailers", in_body(CHUNKED, "0\r\nx: y\n\n", ""), &["200 POST /p h []"], Closes),
        // hyper reads on to the next CRLF CRLF, over what another server takes for a request: nothing may follow it.
        ("an LF begins the trailers", in_body(CHUNKED, "0\r\n\n", ""), BAD, Closes),
        (
            "an LF ends the trailers' first line",
            in_body(CHUNKED, "0\r\nx: y\nz: w\r\n\n", ""),
            &["200 POST /p h []"],
            Closes,
        ),
        ("an LF ends the last chunk", in_body(CHUNKED, "0\n\n", ""), BAD, Closes),
        (
            "the body of a GET",
            format!("GET /g HTTP/1.1\r\nhost: h\r\ncontent-length: {size}\r\n\r\n{EVIL}"),
            &["200 GET /g h [GET /evil HTTP/1.1\r\nhost: h\r\n\r\n]"],
            Goes,
        ),
        (
            "the body of a HEAD",
            format!("HEAD /unread HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {size}\r\n\r\n{EVIL}"),
            &["200 "],
            Closes,
        ),
        (
            "an unread body",
            format!("POST /unread HTTP/1.1\r\nhost: h\r\ncontent-length: {size}\r\n\r\n{EVIL}"),
            &["200 POST /unread h"],
            Goes,
        ),
        (
            "behind a close",
            format!("GET /a HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n{EVIL}"),
            &["200 GET /a h []"],
            Closes,
        ),
        ("behind a refusal", format!("GET /a HTTP/1.1\r\n\r\n{EVIL}"), BAD, Closes),
        (
            "an upgrade with a body",
            format!(
                "POST /unread HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: x\r\ncontent-length: {size}\r\n\r\n{EVIL}"
            ),
            &["200 POST /unread h"],
            Goes,
        ),
        (
            "a line that is no header",
            in_body("transfer_encoding: chunked\r\n", "0\r\n\r\n", ""),
            &["200 POST /p h []", "400"],
            Closes,
        ),
    ];
    let site = serve(record);
    let mut broken = Vec::new();
    for (attack, bytes, answers, then) in &rows {
        let got = outcome_of(&site, bytes, attack.contains("HEAD"));
        if got != (answers.iter().map(ToString::to_string).collect(), *then) {
            broken.push(format!("{attack}: expected {answers:?} {then:?}, got {got:?}"));
        }
        assert!(!got.0.iter().any(|answer| answer.contains("200 GET /evil")), "{attack} is two requests");
    }
    assert!(broken.is_empty(), "{} of {} attacks:\n{}", broken.len(), rows.len(), broken.join("\n"));
}

/// The same for a first request that is a HEAD: its response has no body.
fn outcome_of(site: &Site, bytes: &str, is_head: bool) -> (Vec<String>, Then) {
    if !is_head {
        return outcome(site, bytes.as_bytes());
    }
    let mut client = site.connect();
    client.send(bytes).send(NEXT);
    let rest = String::from_utf8(client.rest().unwrap()).unwrap();
    assert!(rest.ends_with("\r\n\r\n") && rest.matches("HTTP/1.1 ").count() == 1, "{rest}");
    (vec![format!("{} ", &rest[9..12])], Closes)
}

#[test]
fn request_that_breaks_off_is_never_a_request() {
    let site = serve(record);
    for bytes in [
        "GET /a HTTP/1.1\r\nhost: h\r\n",
        "GET /a HTTP/1.1\r\nhost: h",
        "POST /p HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\n\r\nabc",
        "POST /p HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n4\r\nabc",
        "POST /p HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ] {
        let mut client = site.connect();
        client.send(bytes);
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        let rest = String::from_utf8(client.rest().unwrap_or_default()).unwrap();
        assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 400 "), "{bytes:?}: {rest}");
    }
    site.until_open(0);
}

#[test]
fn paths_are_matched_by_their_bytes() {
    let named = |name: &'static str| {
        fake::plugin(move |asked: Asked| async move { reply(200, format!("{name} {}", asked.target())) })
    };
    let site = site(vec![("/", named("root")), ("/api", named("api"))]);
    let mut client = site.connect();
    // Neither decoded nor resolved nor folded: whatever a plugin makes of them, no route is reached under another name.
    for (target, seen) in [
        ("/api/x", "api /x"),
        ("/api//x", "api //x"),
        ("//api/x", "root //api/x"),
        ("/API/x", "root /API/x"),
        ("/%61pi/x", "root /%61pi/x"),
        ("/api%2fx", "root /api%2fx"),
        ("/x/../api/y", "root /x/../api/y"),
        ("/api/../x", "api /../x"),
        ("/./api", "root /./api"),
        ("/api;v=1/x", "root /api;v=1/x"),
        ("/api?x", "api /?x"),
        ("/api/%2e%2e/x", "api /%2e%2e/x"),
        ("/\u{e4}pi", "root /\u{e4}pi"),
    ] {
        assert_eq!(client.get(target).text(), seen, "{target}");
    }
}

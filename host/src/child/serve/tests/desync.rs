//! Request smuggling as tables: the gadgets of public tools and papers (defparam/smuggler, PortSwigger's http-request-smuggler,
//! the HTTP Garden, "Funky Chunks"), generated from what they vary: a byte at each place of a framing field, lists and
//! repetitions of it, line ends, and each part of a chunk. Each carries a second request in what one reading takes for a body.
//!
//! The oracle is a second parser, written from RFC 9112 alone. Of what it reads the handler may see a part, from the beginning:
//! then the connection has ended with a refusal or an announced close. It never sees anything else.

use std::sync::{Arc, Mutex};

use baton_plugin_api::abi::FfiBody;

use super::fake::read;
use super::*;

const EVIL: &str = "GET /evil HTTP/1.1\r\nhost: h\r\n\r\n";
const NEXT: &str = "GET /next HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";

/// Method, target and body of a request that was read whole.
type Seen = (String, String, Vec<u8>);

// ---- the oracle ----

/// What is read of `bytes`, up to the first request that RFC 9112 has refused, or after which it has the connection closed.
fn read_all(mut bytes: &[u8]) -> Vec<Seen> {
    let mut seen = Vec::new();
    while let Some((request, rest)) = read_request(bytes) {
        seen.push(request);
        match rest {
            Some(rest) => bytes = rest,
            None => break,
        }
    }
    seen
}

/// A line without its end, and the rest. The end may be a single LF (section 2.2).
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let line = &bytes[..end];
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    (!line.contains(&b'\r')).then_some((line, &bytes[end + 1..]))
}

fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

/// A field's name in lower case, and its value.
fn field(line: &[u8]) -> Option<(String, &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let trim = |bytes: &'_ [u8]| -> (usize, usize) {
        let is_text = |byte: &u8| *byte != b' ' && *byte != b'\t';
        let begin = bytes.iter().position(is_text).unwrap_or(bytes.len());
        (begin, bytes.iter().rposition(is_text).map_or(begin, |last| last + 1))
    };
    let (begin, end) = trim(value);
    let value = &value[begin..end];
    let is_valid = value.iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f));
    (is_token(name) && is_valid).then(|| (String::from_utf8_lossy(name).to_ascii_lowercase(), value))
}

type Fields<'a> = Vec<(String, &'a [u8])>;

/// The fields up to an empty line, and the rest.
fn fields(mut bytes: &[u8]) -> Option<(Fields<'_>, &[u8])> {
    let mut fields = Vec::new();
    loop {
        let (text, rest) = line(bytes)?;
        if text.is_empty() {
            return Some((fields, rest));
        }
        fields.push(field(text)?);
        bytes = rest;
    }
}

/// The first request, and what follows unless the connection ends. `None` if it is to be refused, or not whole.
fn read_request(mut bytes: &[u8]) -> Option<(Seen, Option<&[u8]>)> {
    while let Some(("", rest)) = line(bytes).map(|(text, rest)| (std::str::from_utf8(text).unwrap_or("x"), rest)) {
        bytes = rest;
    }
    let (start, rest) = line(bytes)?;
    let parts: Vec<&[u8]> = start.split(|byte| *byte == b' ').collect();
    let [method, target, version] = parts[..] else { return None };
    let is_target = target.first() == Some(&b'/') && target.iter().all(|byte| *byte > b' ' && *byte != 0x7f);
    let minor = version.strip_prefix(b"HTTP/1.")?;
    if !is_token(method) || !is_target || !matches!(minor, [digit] if digit.is_ascii_digit()) {
        return None;
    }
    let (fields, rest) = fields(rest)?;
    let all = |name: &str| -> Vec<&[u8]> {
        fields.iter().filter(|(found, _)| found == name).map(|(_, value)| *value).collect()
    };
    if all("host").len() != 1 {
        return None;
    }
    let list = |name: &str| -> Vec<String> {
        all(name)
            .iter()
            .flat_map(|value| value.split(|byte| *byte == b','))
            .map(|item| String::from_utf8_lossy(item).trim_matches([' ', '\t']).to_ascii_lowercase())
            .filter(|item| !item.is_empty())
            .collect()
    };
    let (codings, has_codings) = (list("transfer-encoding"), !all("transfer-encoding").is_empty());
    let (lengths, has_length) = (list("content-length"), !all("content-length").is_empty());
    let mut closes = list("connection").iter().any(|option| option == "close");
    let (body, rest) = if has_codings {
        if codings != ["chunked"] || minor == b"0" {
            return None;
        }
        // Section 6.1: a server may take it by its coding, and closes.
        closes |= has_length;
        read_chunks(rest)?
    } else if has_length {
        let is_number = |text: &String| text.bytes().all(|byte| byte.is_ascii_digit());
        if lengths.is_empty() || !lengths.iter().all(is_number) {
            return None;
        }
        let numbers: Vec<u64> = lengths.iter().map(|text| text.parse().ok()).collect::<Option<_>>()?;
        let len = usize::try_from(numbers[0]).ok().filter(|_| numbers.iter().all(|number| *number == numbers[0]))?;
        let (body, rest) = rest.split_at_checked(len)?;
        (body.to_vec(), rest)
    } else {
        (Vec::new(), rest)
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some(((text(method), text(target), body), (!closes && minor != b"0").then_some(rest)))
}

/// A body in chunks (section 7.1). White space may follow a size, as before an extension; extensions are ignored.
fn read_chunks(mut bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|two| two == b"\r\n")?;
        let (size, rest) = (&bytes[..end], &bytes[end + 2..]);
        if size.iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
            return None;
        }
        let digits = size.split(|byte| *byte == b';').next()?;
        let digits = std::str::from_utf8(digits).ok()?.trim_end_matches([' ', '\t']);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let size = usize::from_str_radix(digits, 16).ok()?;
        if size == 0 {
            let (_trailers, rest) = fields(rest)?;
            return Some((body, rest));
        }
        let (data, rest) = rest.split_at_checked(size)?;
        body.extend_from_slice(data);
        bytes = rest.strip_prefix(b"\r\n")?;
    }
}

// ---- the server ----

struct Trial {
    site: Site,
    seen: Arc<Mutex<Vec<Seen>>>,
    tried: usize,
    /// Gadgets of which all was served, and of which nothing or only a part was.
    served: usize,
    broken: Vec<String>,
}

impl Trial {
    fn new() -> Trial {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        let site = serve(move |mut asked: Asked| {
            let log = log.clone();
            async move {
                match read(&mut asked.body).await {
                    Ok((body, _)) => {
                        log.lock().unwrap().push((asked.method().to_owned(), asked.target().to_owned(), body));
                        reply(200, "ok")
                    }
                    Err(error) => reply(400, error),
                }
            }
        });
        Trial { site, seen, tried: 0, served: 0, broken: Vec::new() }
    }

    /// Sends a gadget and one more request, and compares what the handler has seen with what the oracle reads.
    fn send(&mut self, gadget: &[u8]) {
        let bytes = [gadget, NEXT.as_bytes()].concat();
        let mut client = self.site.connect();
        // A server that refuses need not read the rest.
        let _ = client.stream.write_all(&bytes);
        // What is not whole is waited for.
        client.stream.shutdown(std::net::Shutdown::Write).ok();
        let answer = client.rest();
        let seen = std::mem::take(&mut *self.seen.lock().unwrap());
        let expected = read_all(&bytes);
        self.tried += 1;
        self.served += usize::from(seen == expected && !seen.is_empty());
        let is_whole = seen == expected && seen.last().is_some_and(|(_, target, _)| target == "/next");
        let ends_well = match &answer {
            // A request whose end did not come is broken off.
            Err(_) => !is_whole,
            Ok(answer) if is_whole => String::from_utf8_lossy(answer).matches("HTTP/1.1 200 ").count() == seen.len(),
            // A part was served: the last response says that no other follows.
            Ok(answer) => says_close(answer),
        };
        if !expected.starts_with(&seen) || !ends_well {
            let answer = answer.map(|answer| answer.escape_ascii().to_string());
            let text = bytes.escape_ascii();
            self.broken.push(format!("{text}\n  read as {seen:?}\n  and not {expected:?}\n  answer {answer:?}"));
        }
    }

    fn finish(self, at_least: usize) {
        let Trial { tried, served, broken, .. } = self;
        assert!(
            broken.is_empty(),
            "{} of {tried} gadgets:\n{}",
            broken.len(),
            broken[..broken.len().min(20)].join("\n")
        );
        // A server that refuses all of them keeps these rules, too.
        assert!(served >= at_least, "only {served} of {tried} were served");
    }
}

/// Whether the last response is a refusal that closes, or announces the close; or there is none, since no request was whole.
fn says_close(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some(last) = text.rfind("HTTP/1.") else { return text.is_empty() };
    let head = text[last..].split("\r\n\r\n").next().unwrap_or_default().to_ascii_lowercase();
    head.starts_with("http/1.0") || head.contains("\r\nconnection: close")
}

// ---- the gadgets ----

/// Bytes that some server takes for white space, for nothing, or for a separator.
fn bytes() -> impl Iterator<Item = u8> + Clone {
    (0..=b' ').chain(*b"\"',;:=_-+.\\/#0x").chain([0x7f, 0x80, 0x82, 0x85, 0x96, 0xa0, 0xc2, 0xff])
}

/// The field with each byte at each place: before the name and in it, at the colon, and around and in the value.
fn mutated(name: &str, value: &str) -> Vec<Vec<u8>> {
    let line = format!("{name}: {value}");
    let (colon, end) = (name.len(), line.len());
    let places = [0, name.len() / 2, colon, colon + 1, colon + 2, colon + 2 + value.len() / 2, end];
    let mut lines = Vec::new();
    for byte in bytes() {
        for place in places {
            lines.push([&line.as_bytes()[..place], &[byte], &line.as_bytes()[place..]].concat());
        }
        // In place of what is there: the space behind the colon, the hyphen of the name.
        lines.push([name.as_bytes(), b":", &[byte], value.as_bytes()].concat());
        lines.push(line.replacen('-', "\0", 1).bytes().map(|found| if found == 0 { byte } else { found }).collect());
    }
    lines
}

/// Lists, repetitions and lines around a field.
fn arranged(name: &str, values: &[String]) -> Vec<Vec<u8>> {
    let other = name.to_uppercase();
    let mut lines = Vec::new();
    for one in values {
        lines.push(format!("{name}: {one}"));
        lines.push(format!("{other}:{one}"));
        for end in ["\r\n", "\n", "\r", "\n\r", "\r\r\n"] {
            lines.push(format!("x: y{end}{name}: {one}"));
            lines.push(format!("x: y{end} {name}: {one}"));
            lines.push(format!("{name}:{end} {one}"));
            lines.push(format!("{name}:{end}\t{one}"));
            lines.push(format!("{name}{end}: {one}"));
            lines.push(format!("{name}: {one}{end}\tx"));
            lines.push(format!("x:{end}{end}{name}: {one}"));
        }
        for two in values {
            lines.push(format!("{name}: {one}\r\n{name}: {two}"));
            lines.push(format!("{name}: {one}\r\nx: y\r\n{other}: {two}"));
            lines.push(format!("{name}: {one}, {two}"));
            lines.push(format!("{name}: {one},{two},"));
            lines.push(format!("{name}: {one} {two}"));
            lines.push(format!("{name}: {one};{two}"));
        }
    }
    lines.into_iter().map(String::into_bytes).collect()
}

fn post(version: &str, lines: &[&[u8]], body: &str) -> Vec<u8> {
    let start = format!("POST /p HTTP/{version}\r\nhost: h\r\n");
    [start.as_bytes(), &lines.join(&b"\r\n"[..]), b"\r\n\r\n", body.as_bytes()].concat()
}

#[test]
fn mutated_transfer_encoding_smuggles_nothing() {
    let mut trial = Trial::new();
    let values = ["chunked", "CHUNKED", "identity", "x", "xchunked", "chunk", "\"chunked\"", "'chunked'", "gzip", ""];
    let mut lines = mutated("transfer-encoding", "chunked");
    lines.extend(arranged("transfer-encoding", &values.map(String::from)));
    for name in ["transfer_encoding", "transfer encoding", "transfer%2dencoding", "content-encoding", "te"] {
        lines.push(format!("{name}: chunked").into_bytes());
    }
    let ended = format!("0\r\n\r\n{EVIL}");
    let all = format!("content-length: {}", ended.len());
    // By its chunks the body ends behind the evil request, by its length before.
    let inner = format!("{:x}\r\n{EVIL}\r\n0\r\n\r\n", EVIL.len());
    for line in &lines {
        trial.send(&post("1.1", &[line], &ended));
        trial.send(&post("1.1", &[line, all.as_bytes()], &ended));
        trial.send(&post("1.1", &[b"content-length: 4", line], &inner));
    }
    for line in lines.iter().step_by(7) {
        trial.send(&post("1.0", &[line, all.as_bytes()], &ended));
    }
    trial.finish(250);
}

#[test]
fn mutated_content_length_smuggles_nothing() {
    let mut trial = Trial::new();
    let size = EVIL.len().to_string();
    let mut values: Vec<String> = ["0", "-0", "0x1f", "1e1", "3_1", "+31", "00031", "18446744073709551647", "", "31.0"]
        .map(String::from)
        .to_vec();
    values.push(size.clone());
    let mut lines = mutated("content-length", &size);
    lines.extend(arranged("content-length", &values));
    for line in &lines {
        trial.send(&post("1.1", &[line], EVIL));
        trial.send(&post("1.1", &[line, b"content-length: 0"], EVIL));
    }
    for line in lines.iter().step_by(5) {
        trial.send(&post("1.1", &[line, b"transfer-encoding: chunked"], &format!("0\r\n\r\n{EVIL}")));
    }
    trial.finish(180);
}

#[test]
fn mutated_chunks_smuggle_nothing() {
    let mut trial = Trial::new();
    let chunked: &[&[u8]] = &[b"transfer-encoding: chunked"];
    let ends = ["\r\n", "\n", "\r", "\n\r", "\r\r\n", "\n\n", "", "\r\n\r\n", "\r\n\n", "x\r\n", " \r\n"];
    let mut bodies = Vec::new();
    for end in ends {
        // After a size, an extension, the data, the last size, a trailer and the trailers.
        bodies.push(format!("3{end}abc\r\n0\r\n\r\n{EVIL}"));
        bodies.push(format!("3;a=b{end}abc\r\n0\r\n\r\n{EVIL}"));
        bodies.push(format!("2;{end}xx\r\n{:x}\r\n0\r\n\r\n{EVIL}0\r\n\r\n", EVIL.len() + 5));
        bodies.push(format!("3\r\nabc{end}0\r\n\r\n{EVIL}"));
        bodies.push(format!("3\r\nabc{end}{:x}\r\n{EVIL}\r\n0\r\n\r\n", EVIL.len()));
        bodies.push(format!("0{end}\r\n{EVIL}"));
        bodies.push(format!("0\r\n{end}{EVIL}"));
        bodies.push(format!("0\r\nx: y{end}\r\n{EVIL}"));
        bodies.push(format!("0\r\nx: y\r\n{end}{EVIL}"));
        bodies.push(format!("0\r\nx: y{end}z: w{end}{end}{EVIL}"));
        bodies.push(format!("0\r\n{end}x: y\r\n\r\n{EVIL}"));
    }
    for size in
        ["0x0", "+0", "-0", "0_0", "00", "0.0", "0e0", "O", "\"0\"", "10000000000000000", "fffffffffffffffff0", ""]
    {
        bodies.push(format!("{size}\r\n\r\n{EVIL}"));
        bodies.push(format!("{size};a\r\n\r\n{EVIL}"));
    }
    for body in &bodies {
        trial.send(&post("1.1", chunked, body));
    }
    for byte in bytes() {
        let around = |before: &str, after: &str| [before.as_bytes(), &[byte], after.as_bytes()].concat();
        for body in [
            around("", "3\r\nabc\r\n0\r\n\r\n"),
            around("3", "\r\nabc\r\n0\r\n\r\n"),
            around("1", "0\r\n0123456789abcdef\r\n0\r\n\r\n"),
            around("3;a", "b\r\nabc\r\n0\r\n\r\n"),
            around("3\r", "\nabc\r\n0\r\n\r\n"),
            around("3\r\nabc", "\r\n0\r\n\r\n"),
            around("3\r\nabc\r", "\n0\r\n\r\n"),
            around("3\r\nabc\r\n0", "\r\n\r\n"),
            around("3\r\nabc\r\n0\r", "\n\r\n"),
            around("3\r\nabc\r\n0\r\n", "\r\n"),
            around("3\r\nabc\r\n0\r\n\r", "\n"),
            around("3\r\nabc\r\n0\r\nx", ": y\r\n\r\n"),
            around("3\r\nabc\r\n0\r\nx: y", "\r\n\r\n"),
        ] {
            let head = post("1.1", chunked, "");
            trial.send(&[&head[..], &body, EVIL.as_bytes()].concat());
        }
    }
    trial.finish(75);
}

#[test]
fn mutated_heads_smuggle_nothing() {
    let mut trial = Trial::new();
    let head = "GET /a HTTP/1.1\r\nhost: h\r\nx: y\r\n\r\n";
    for byte in bytes() {
        for place in 0..=head.len() {
            let (before, after) = head.as_bytes().split_at(place);
            trial.send(&[before, &[byte], after, EVIL.as_bytes()].concat());
        }
    }
    for end in ["\n", "\r", "\n\r", "\r\r\n", "\r\n\r\n", "\r\n ", "\r\n\t", " \r\n", "\0\r\n", ""] {
        for at in 0..4 {
            let mut parts: Vec<&str> = head.split_inclusive("\r\n").collect();
            let line = format!("{}{end}", parts[at].trim_end());
            parts[at] = &line;
            trial.send(format!("{}{EVIL}", parts.concat()).as_bytes());
        }
    }
    trial.finish(200);
}

#[test]
fn trailers_behind_the_head_of_a_response_end_the_connection() {
    let site = serve(|mut asked: Asked| async move {
        match asked.target() {
            "/echo" => reply(200, "").body(std::mem::replace(&mut asked.body, FfiBody::EMPTY)),
            _ => reply(200, "another"),
        }
    });
    for (trailers, is_whole) in [("x: y\r\n\r\n", true), ("x: y\n\n", true), ("\n", false)] {
        let mut client = site.connect();
        client.send("POST /echo HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n");
        let head = client.head();
        assert!(head.starts_with("HTTP/1.1 200 ") && !head.contains("connection: close"), "{head}");
        client.until(b"3\r\nabc\r\n");
        client.send(format!("0\r\n{trailers}{EVIL}{NEXT}"));
        match client.rest() {
            Ok(rest) => {
                let rest = String::from_utf8(rest).unwrap();
                // What hyper has read of a next request by then is refused.
                let behind = rest.strip_prefix("0\r\n\r\n").unwrap_or_else(|| panic!("after {trailers:?}: {rest}"));
                assert!(behind.is_empty() || behind.starts_with("HTTP/1.1 400 "), "after {trailers:?}: {rest}");
                assert!(is_whole && says_close(behind.as_bytes()), "after {trailers:?}: {rest}");
            }
            Err(error) => assert!(!is_whole, "after {trailers:?}: {error}"),
        }
    }
    site.until_open(0);
}

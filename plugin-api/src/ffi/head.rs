//! A request's head, read from the host piece by piece: what a handler does not look at costs nothing.

use std::cell::RefCell;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, Uri, Version, uri};

use crate::abi::{self, FfiAddr, HeaderRef, RequestHead, SENSITIVE, Slice};

/// The head of one request. What it lends lives as long as it.
pub struct Head(RequestHead);

/// Up to this many header fields are listed without an allocation.
const INLINE_HEADERS: usize = 32;

impl Head {
    pub fn new(head: RequestHead) -> Head {
        Head(head)
    }

    pub fn request_id(&self) -> u64 {
        self.0.request_id()
    }

    /// What the host knows it by. Alive as long as this is.
    pub fn data(&self) -> *const c_void {
        self.0.data()
    }

    /// # Panics
    /// If the host sent a method that HTTP does not allow: its parser never does.
    pub fn method(&self) -> Method {
        Method::from_bytes(self.0.method()).expect("the host sends methods that its HTTP parser accepted")
    }

    pub fn version(&self) -> Version {
        match self.0.version() {
            9 => Version::HTTP_09,
            10 => Version::HTTP_10,
            20 => Version::HTTP_2,
            30 => Version::HTTP_3,
            _ => Version::HTTP_11,
        }
    }

    /// Path and query.
    pub fn target(&self) -> &str {
        self.0.target()
    }

    pub fn uri(&self) -> Uri {
        self.uri_from(Bytes::copy_from_slice(self.target().as_bytes()))
    }

    fn uri_from(&self, target: Bytes) -> Uri {
        let target = parse_target(target);
        let (Some(scheme), Some(authority)) = (self.text(abi::FACT_SCHEME), self.text(abi::FACT_AUTHORITY)) else {
            return target;
        };
        let mut parts = uri::Parts::default();
        parts.scheme = scheme.parse().ok();
        parts.authority = authority.parse().ok();
        parts.path_and_query = target.path_and_query().cloned();
        // An absolute form that does not fit together (scheme without authority) is as good as none.
        Uri::from_parts(parts).unwrap_or(target)
    }

    /// The first value of a field; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.0.header(name)
    }

    /// A fact that is text (`FACT_*`).
    pub fn text(&self, fact: u32) -> Option<&str> {
        self.0.fact(fact).and_then(|text| std::str::from_utf8(text).ok())
    }

    /// A fact that is an address (`FACT_*`).
    pub fn address(&self, fact: u32) -> Option<SocketAddr> {
        let bytes = self.0.fact(fact)?;
        if bytes.len() < size_of::<FfiAddr>() {
            return None;
        }
        // SAFETY: long enough (checked); every bit pattern is an `FfiAddr`; `read_unaligned` asks for no alignment.
        unsafe { bytes.as_ptr().cast::<FfiAddr>().read_unaligned() }.to_std()
    }

    /// All header fields, in order of arrival.
    pub fn headers(&self) -> HeaderMap {
        self.with_fields(|fields| with_scratch(|scratch| copy_fields(scratch, fields, "").0))
    }

    /// All header fields and the URI, from one buffer.
    pub fn headers_and_uri(&self) -> (HeaderMap, Uri) {
        let (headers, target) =
            self.with_fields(|fields| with_scratch(|scratch| copy_fields(scratch, fields, self.target())));
        (headers, self.uri_from(target))
    }

    fn with_fields<T>(&self, read: impl FnOnce(&[HeaderRef]) -> T) -> T {
        let count = self.0.header_count();
        let mut inline = [const { MaybeUninit::<HeaderRef>::uninit() }; INLINE_HEADERS];
        let mut heap = Vec::new();
        let out: &mut [MaybeUninit<HeaderRef>] = if count <= INLINE_HEADERS {
            &mut inline[..count]
        } else {
            heap.resize_with(count, MaybeUninit::uninit);
            &mut heap
        };
        read(self.0.headers(out))
    }
}

/// A path with its query. The host sends none that begins otherwise than with a slash (or is `*`), but a host of another version
/// may: a query alone gets the slash, and what is no target at all becomes `/`.
fn parse_target(target: Bytes) -> Uri {
    if target.first() == Some(&b'/') || target == "*" {
        if let Ok(uri) = Uri::from_maybe_shared(target) {
            return uri;
        }
    } else if target.first() == Some(&b'?')
        && let Ok(uri) = Uri::from_maybe_shared([b"/", &target[..]].concat())
    {
        return uri;
    }
    Uri::from_static("/")
}

/// Copies the values of `fields`, and then `tail`, into one buffer; values and tail are slices of it.
fn copy_fields(scratch: &mut Scratch, fields: &[HeaderRef], tail: &str) -> (HeaderMap, Bytes) {
    // SAFETY: the host's fields are alive, with the lengths it gave.
    let value_of = |field: &HeaderRef| unsafe {
        Slice { ptr: field.value, len: (field.value_len & !SENSITIVE) as usize }.as_bytes()
    };
    let length = fields.iter().map(|field| (field.value_len & !SENSITIVE) as usize).sum::<usize>() + tail.len();
    let Scratch { names, arena } = scratch;
    let arena = arena.get_or_insert_default();
    if arena.capacity() < length {
        // Begins anew at its front if nobody holds a part of it any more.
        arena.reserve(length.max(ARENA));
    }
    for field in fields {
        arena.extend_from_slice(value_of(field));
    }
    arena.extend_from_slice(tail.as_bytes());
    let mut buffer = arena.split().freeze();
    let ascii = buffer.is_ascii();

    let mut headers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        // SAFETY: as in `value_of`.
        let name = unsafe { Slice { ptr: field.name, len: field.name_len as usize }.as_bytes() };
        let value = buffer.split_to((field.value_len & !SENSITIVE) as usize);
        let Some(name) = header_name(names, name) else { continue };
        let value = if ascii {
            // SAFETY: ASCII, hence the UTF-8 that this function asks for; and a value that the host's HTTP parser accepted,
            // hence without the control characters that a value must not have.
            unsafe { HeaderValue::from_maybe_shared_unchecked(value) }
        } else {
            match HeaderValue::from_maybe_shared(value) {
                Ok(value) => value,
                Err(_) => continue,
            }
        };
        let mut value = value;
        if field.value_len & SENSITIVE != 0 {
            value.set_sensitive(true);
        }
        headers.append(name, value);
    }
    (headers, buffer)
}

/// What a thread keeps from one request to the next.
struct Scratch {
    names: Names,
    /// Where heads are copied to. As with hyper, whose values are parts of its read buffer, one value that is kept for long
    /// keeps the memory around it: here at most [`ARENA`] bytes, or a single head.
    arena: Option<BytesMut>,
}

impl Scratch {
    const EMPTY: Scratch = Scratch { names: [const { None }; 1 << NAMES_BITS], arena: None };
}

const ARENA: usize = 8 * 1024;

/// Names that a thread has seen, by [`slot`]. Clients send the same few names again and again: comparing with one seen before
/// is cheaper than parsing, and spares the copy that a name unknown to `http` (such as `sec-fetch-mode`) needs.
type Names = [Option<HeaderName>; 1 << NAMES_BITS];

const NAMES_BITS: u32 = 7;

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::EMPTY) };
}

fn with_scratch<T>(read: impl FnOnce(&mut Scratch) -> T) -> T {
    let mut read = Some(read);
    let mut call = |scratch: &mut Scratch| read.take().map(|read| read(scratch));
    // Nothing that `read` does comes back here: the borrow cannot be taken twice. But the thread may be ending, its locals
    // gone.
    let done = SCRATCH.try_with(|scratch| call(&mut scratch.borrow_mut())).ok().flatten();
    match done {
        Some(done) => done,
        None => call(&mut { Scratch::EMPTY }).expect("called once"),
    }
}

/// Where a name is remembered: by its length, first and last bytes, mixed.
fn slot(name: &[u8]) -> usize {
    let (first, last) = match (name.first_chunk::<4>(), name.last_chunk::<4>()) {
        (Some(first), Some(last)) => (u32::from_le_bytes(*first), u32::from_le_bytes(*last)),
        _ => (name.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)), 0),
    };
    let mixed = (u64::from(first) << 32 | u64::from(last)) ^ (name.len() as u64) << 16;
    // The upper bits of a product depend on all bits of its factors. Of a few well-known factors, this one keeps the names
    // of browsers apart (see the tests).
    (mixed.wrapping_mul(0xa076_1d64_78bd_642f) >> (64 - NAMES_BITS)) as usize
}

fn header_name(names: &mut Names, name: &[u8]) -> Option<HeaderName> {
    let known = &mut names[slot(name)];
    match known {
        Some(known) if known.as_str().as_bytes() == name => Some(known.clone()),
        _ => {
            let parsed = HeaderName::from_bytes(name).ok()?;
            *known = Some(parsed.clone());
            Some(parsed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &'static str, value: &'static [u8], flags: u32) -> HeaderRef {
        HeaderRef {
            name: name.as_ptr(),
            value: value.as_ptr(),
            name_len: name.len() as u32,
            value_len: value.len() as u32 | flags,
        }
    }

    #[test]
    fn fields_keep_order_repetition_bytes_and_sensitivity() {
        let fields = [
            field("host", b"a.example", 0),
            field("x-own", b"1", 0),
            field("cookie", b"secret", SENSITIVE),
            field("x-own", b"", 0),
            field("x-latin", b"caf\xe9", 0),
        ];
        for _ in 0..2 {
            let (headers, tail) = with_scratch(|scratch| copy_fields(scratch, &fields, "/path?q"));
            assert_eq!(tail, "/path?q");
            assert_eq!(headers.len(), 5);
            assert_eq!(headers["host"], "a.example");
            let own: Vec<_> = headers.get_all("x-own").iter().collect();
            assert_eq!(own, ["1", ""]);
            assert!(headers["cookie"].is_sensitive() && !headers["host"].is_sensitive());
            assert_eq!(headers["x-latin"].as_bytes(), b"caf\xe9");
        }
    }

    #[test]
    fn target_of_any_form_is_a_uri_with_a_path() {
        for (target, expected) in [
            ("/a?b", "/a?b"),
            ("//a/b", "//a/b"),
            ("*", "*"),
            ("?x=1", "/?x=1"),
            ("?", "/?"),
            ("", "/"),
            ("a.example:80", "/"),
            ("http://a/", "/"),
            ("/a b", "/"),
        ] {
            assert_eq!(parse_target(Bytes::from_static(target.as_bytes())), expected, "{target:?}");
        }
        let long = format!("/{}", "x".repeat(70_000));
        assert_eq!(parse_target(long.into()), "/");
    }

    #[test]
    fn names_that_share_a_slot_are_told_apart() {
        for _ in 0..3 {
            for number in 0..1000 {
                let name = format!("x-name-{number}");
                assert_eq!(
                    with_scratch(|scratch| header_name(&mut scratch.names, name.as_bytes())).unwrap().as_str(),
                    name
                );
            }
        }
        assert!(with_scratch(|scratch| header_name(&mut scratch.names, b"")).is_none());
        assert!(with_scratch(|scratch| header_name(&mut scratch.names, b"a b")).is_none());
    }

    #[test]
    fn the_names_that_browsers_send_share_no_slot() {
        let names = [
            "host",
            "user-agent",
            "accept",
            "accept-language",
            "accept-encoding",
            "connection",
            "cookie",
            "referer",
            "upgrade-insecure-requests",
            "sec-fetch-dest",
            "sec-fetch-mode",
            "sec-fetch-site",
            "sec-fetch-user",
            "content-type",
            "content-length",
            "origin",
            "cache-control",
            "authorization",
            "priority",
        ];
        let mut slots: Vec<usize> = names.iter().map(|name| slot(name.as_bytes())).collect();
        slots.sort_unstable();
        slots.dedup();
        assert_eq!(slots.len(), names.len());
    }
}

//! Heads: what a request says before its body, lent lazily, and what a response says before its body.

use std::ffi::c_void;
use std::mem::MaybeUninit;

use abi_stable::StableAbi;

use super::Slice;

/// Set in [`HeaderRef::value_len`] when the value must not be logged or indexed (`HeaderValue::is_sensitive`).
pub const SENSITIVE: u32 = 1 << 31;

/// One header field, borrowed. Names are lower case.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct HeaderRef {
    pub name: *const u8,
    pub value: *const u8,
    pub name_len: u32,
    /// The length, with [`SENSITIVE`] possibly set.
    pub value_len: u32,
}

/// A request's head. The host keeps it; the plugin holds this handle and asks for what it needs, when it needs it.
///
/// OWNERSHIP: the plugin's, until `drop`. The slices in it, and all that its functions lend, live until then. So a handler
/// that looks at no header pays for none. The fields are private, since every function trusts them:
///
/// ```compile_fail,E0616
/// fn retarget(mut head: baton_plugin_api::abi::RequestHead) {
///     head.line.target.len = usize::MAX;
/// }
/// ```
#[repr(C)]
#[derive(StableAbi)]
pub struct RequestHead {
    data: *mut c_void,
    vtable: *const RequestHeadVtable,
    line: RequestLine,
}

/// What a [`RequestHead`] says without being asked.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct RequestLine {
    /// The method, as sent.
    pub method: Slice,
    /// Path and query as the plugin sees them (mount prefix stripped), in UTF-8; always begins with `/`, or is `*`.
    pub target: Slice,
    /// Unique in the generation, never zero; goes with log records of this request.
    pub request_id: u64,
    /// How many header fields there are.
    pub header_count: u32,
    /// 9, 10, 11, 20 or 30 for HTTP/0.9 to HTTP/3.
    pub version: u32,
}

#[repr(C)]
#[derive(StableAbi)]
pub struct RequestHeadVtable {
    /// Writes up to `capacity` fields to `out` in order of arrival and answers how many it wrote.
    pub headers: unsafe extern "C" fn(data: *const c_void, out: *mut HeaderRef, capacity: u32) -> u32,
    /// The first value of the field `name` (lower case), if any: 1 and `out` is written, else 0.
    pub header: unsafe extern "C" fn(data: *const c_void, name: Slice, out: *mut Slice) -> u32,
    /// A fact about the request by its number (`FACT_*`): 1 and `out` is written, else 0. Unknown numbers answer 0, so that
    /// facts can be added.
    pub fact: unsafe extern "C" fn(data: *const c_void, fact: u32, out: *mut Slice) -> u32,
    /// OWNERSHIP: called exactly once.
    pub drop: unsafe extern "C" fn(data: *mut c_void),
}

/// The peer's address: the slice points to an [`FfiAddr`].
pub const FACT_PEER: u32 = 1;
/// The local address of the connection: the slice points to an [`FfiAddr`].
pub const FACT_LOCAL: u32 = 2;
/// The name of the `[[server]]` that took the connection.
pub const FACT_SERVER: u32 = 3;
/// The mount prefix that was stripped from the target (empty for `/`).
pub const FACT_PREFIX: u32 = 4;
/// The target as the client sent it, nothing stripped.
pub const FACT_ORIGINAL_TARGET: u32 = 5;
/// The URI's scheme, if the client sent an absolute form (or h2 its pseudo header).
pub const FACT_SCHEME: u32 = 6;
/// The URI's authority, likewise.
pub const FACT_AUTHORITY: u32 = 7;
/// TLS: negotiated version, such as `TLSv1.3`. Absent on clear connections.
pub const FACT_TLS_VERSION: u32 = 8;
/// TLS: the server name that the client asked for.
pub const FACT_TLS_SNI: u32 = 9;
/// TLS: the negotiated application protocol, such as `h2`.
pub const FACT_TLS_ALPN: u32 = 10;
/// TLS: the negotiated cipher suite by its registered name, such as `TLS_AES_128_GCM_SHA256`.
pub const FACT_TLS_CIPHER: u32 = 11;

/// No address (an unnamed Unix socket).
pub const ADDR_NONE: u32 = 0;
/// `ip[..4]` is an IPv4 address.
pub const ADDR_V4: u32 = 4;
/// `ip` is an IPv6 address.
pub const ADDR_V6: u32 = 6;

/// A socket address.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct FfiAddr {
    /// [`ADDR_NONE`], [`ADDR_V4`] or [`ADDR_V6`].
    pub family: u32,
    pub port: u32,
    /// Network byte order.
    pub ip: [u8; 16],
    pub flow_info: u32,
    pub scope_id: u32,
}

// SAFETY: `RequestHead::new` takes only heads that are `Send` and `Sync`.
unsafe impl Send for RequestHead {}
// SAFETY: as above; its functions only read.
unsafe impl Sync for RequestHead {}

impl RequestHead {
    /// Lends `head`.
    ///
    /// # Safety
    /// The functions of `vtable` may be called with `head` as its documentation says, until its `drop`; until then the head
    /// does not change, and what its functions and `line` lend stays alive. `line` is as its documentation says.
    #[inline]
    pub unsafe fn new<H: Send + Sync>(
        head: *mut H,
        vtable: &'static RequestHeadVtable,
        line: RequestLine,
    ) -> RequestHead {
        RequestHead { data: head.cast(), vtable, line }
    }

    /// What the host knows it by. Alive as long as this is.
    #[inline]
    pub fn data(&self) -> *const c_void {
        self.data
    }

    #[inline]
    pub fn method(&self) -> &[u8] {
        // SAFETY: `new` vouched for the slice, for as long as the head is alive.
        unsafe { self.line.method.as_bytes() }
    }

    #[inline]
    pub fn target(&self) -> &str {
        // SAFETY: as in `method`.
        let target = unsafe { self.line.target.as_bytes() };
        debug_assert!(std::str::from_utf8(target).is_ok());
        // SAFETY: `new` vouched for UTF-8.
        unsafe { std::str::from_utf8_unchecked(target) }
    }

    #[inline]
    pub fn request_id(&self) -> u64 {
        self.line.request_id
    }

    #[inline]
    pub fn header_count(&self) -> usize {
        self.line.header_count as usize
    }

    /// As in [`RequestLine::version`].
    #[inline]
    pub fn version(&self) -> u32 {
        self.line.version
    }

    /// The first value of a field; `name` in lower case.
    #[inline]
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        let mut value = Slice::EMPTY;
        // SAFETY: `new` vouched for table and data; `name` and `value` are lent for the call; what is lent back lives as long
        // as the head.
        unsafe {
            let found = ((*self.vtable).header)(self.data, Slice::new(name.as_bytes()), &raw mut value);
            (found != 0).then(|| value.as_bytes())
        }
    }

    /// A fact by its number (`FACT_*`).
    #[inline]
    pub fn fact(&self, fact: u32) -> Option<&[u8]> {
        let mut value = Slice::EMPTY;
        // SAFETY: as in `header`.
        unsafe { (((*self.vtable).fact)(self.data, fact, &raw mut value) != 0).then(|| value.as_bytes()) }
    }

    /// The fields that fit into `room`, in order of arrival. What they point to lives as long as the head.
    #[inline]
    pub fn headers<'a>(&'a self, room: &'a mut [MaybeUninit<HeaderRef>]) -> &'a [HeaderRef] {
        let capacity = u32::try_from(room.len()).unwrap_or(u32::MAX);
        // SAFETY: `new` vouched for table and data; there is room for `capacity` fields.
        let count = unsafe { ((*self.vtable).headers)(self.data, room.as_mut_ptr().cast(), capacity) };
        let count = (count as usize).min(room.len());
        // SAFETY: the host wrote the first `count` fields.
        unsafe { std::slice::from_raw_parts(room.as_ptr().cast(), count) }
    }
}

impl Drop for RequestHead {
    fn drop(&mut self) {
        // SAFETY: the table is a static of the host; this is the one call.
        unsafe { ((*self.vtable).drop)(self.data) }
    }
}

/// A response's head, borrowed for the call of [`ResponseSink::send`](super::ResponseSink).
#[repr(C)]
#[derive(StableAbi)]
pub struct ResponseHead {
    /// 100 to 999; the host answers 500 for anything else.
    pub status: u32,
    pub header_count: u32,
    /// Checked by the host: a name or value that HTTP forbids makes the response a 500.
    pub headers: *const HeaderRef,
}

impl FfiAddr {
    /// The std form; nothing for [`ADDR_NONE`] or an unknown family.
    pub fn to_std(&self) -> Option<std::net::SocketAddr> {
        use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
        let port = u16::try_from(self.port).ok()?;
        match self.family {
            ADDR_V4 => {
                let [a, b, c, d, ..] = self.ip;
                Some(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), port)))
            }
            ADDR_V6 => {
                let ip = Ipv6Addr::from(self.ip);
                Some(SocketAddr::V6(SocketAddrV6::new(ip, port, self.flow_info, self.scope_id)))
            }
            _ => None,
        }
    }
}

impl From<std::net::SocketAddr> for FfiAddr {
    fn from(addr: std::net::SocketAddr) -> FfiAddr {
        let mut out = FfiAddr { family: ADDR_NONE, port: addr.port().into(), ip: [0; 16], flow_info: 0, scope_id: 0 };
        match addr {
            std::net::SocketAddr::V4(v4) => {
                out.family = ADDR_V4;
                out.ip[..4].copy_from_slice(&v4.ip().octets());
            }
            std::net::SocketAddr::V6(v6) => {
                out.family = ADDR_V6;
                out.ip = v6.ip().octets();
                out.flow_info = v6.flowinfo();
                out.scope_id = v6.scope_id();
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_cross_and_come_back() {
        for text in ["127.0.0.1:80", "[::1]:443", "[fe80::1%3]:9"] {
            let addr: std::net::SocketAddr = text.parse().unwrap();
            assert_eq!(FfiAddr::from(addr).to_std(), Some(addr));
        }
    }
}

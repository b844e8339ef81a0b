//! The host's half of the ABI, for tests in the same process: the real tables, driven as the server drives them.

use std::ffi::c_void;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as TaskContext, Poll};

use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::std_types::{RErr, ROk};
use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{Response, StatusCode, request};
use tokio::sync::watch;

use self::line::Line;
use super::Payload;
use super::context::Context;
use crate::abi::extension::{
    CONTROL_RELOAD, CONTROL_RESTART, CONTROL_SHUTDOWN, Control, HOST_CLIENT, HOST_CONTROL, HOST_UPGRADE, Header,
    PLUGIN_SIGNALS, PLUGIN_STATE, PluginSignals, PluginState, StateBlob, Upgrade,
};
use crate::abi::{extension, *};

mod line;

/// The client's end of a connection that has left HTTP.
pub type Client = tokio::io::DuplexStream;

static HOSTED: AtomicBool = AtomicBool::new(false);

/// Whether this process is a test: then no plugin in it is the only one.
pub fn hosts_this_process() -> bool {
    HOSTED.load(Ordering::Relaxed)
}

/// A log record as the host received it.
#[derive(Clone, Debug)]
pub struct Logged {
    /// 1 error, 2 warn, 3 info, 4 debug, 5 trace.
    pub level: u32,
    /// The module it comes from, unless it said otherwise.
    pub target: String,
    /// Its text.
    pub message: String,
    /// Its own fields by name, then those of its spans.
    pub fields: Vec<(String, String)>,
    /// The request it belongs to, or 0. The first that a plugin is sent has number 1.
    pub request_id: u64,
    /// The names of the spans around it, outermost first, joined by `:`.
    pub spans: String,
    /// Whether it tells of a panic.
    pub panic: bool,
}

/// The host's state behind `HostApi::context`. Leaked: a plugin may log until the process ends.
#[derive(Default)]
pub struct Host {
    pub logs: Mutex<Vec<Logged>>,
    /// The verbs that were asked for.
    pub asked: Mutex<Vec<u32>>,
    /// What is answered to the next ones.
    pub answer: Mutex<u32>,
    pub without_control: AtomicBool,
}

/// What a plugin is given at its start.
pub struct Start<'a> {
    pub name: &'a str,
    pub config: &'a str,
    pub data_dir: &'a Path,
    pub generation: u64,
    pub log_level: u32,
    pub previous: Option<(u32, &'a [u8])>,
}

/// A started plugin.
#[derive(Clone, Copy)]
pub struct Loaded {
    module: PluginModule_Ref,
    plugin: PluginHandle,
}

impl Loaded {
    /// Starts a plugin; may block. The error is the plugin's text.
    pub fn start(module: PluginModule_Ref, host: &'static Host, start: &Start<'_>) -> Result<Loaded, String> {
        use std::os::unix::ffi::OsStrExt;
        HOSTED.store(true, Ordering::Relaxed);
        let api = HostApi::new(host, log, host_extension).leak_into_prefix();
        let (previous_version, previous) = start.previous.unwrap_or_default();
        let args = CreateArgs {
            name: Slice::new(start.name.as_bytes()),
            config: Slice::new(start.config.as_bytes()),
            data_dir: Slice::new(start.data_dir.as_os_str().as_bytes()),
            generation: start.generation,
            log_level: start.log_level,
            workers: 0,
            previous: Slice::new(previous),
            previous_version,
            has_previous: start.previous.is_some().into(),
        };
        // SAFETY: the arguments, and what they point to, are lent for the call.
        match unsafe { module.create()(api, &args) } {
            ROk(plugin) => Ok(Loaded { module, plugin }),
            RErr(text) => Err(text.into()),
        }
    }

    pub fn notify(self, event: u32) {
        // SAFETY: the handle is the one that this module gave.
        unsafe { self.module.notify()(self.plugin, event) };
    }

    pub fn set_log_level(self, level: u32) {
        self.module.set_log_level()(level);
    }

    /// Drives what the author registered for the end. False if it panicked.
    pub async fn shutdown(self) -> bool {
        // SAFETY: as in `notify`.
        drive(unsafe { self.module.shutdown()(self.plugin) }).await.0 == READY
    }

    pub fn destroy(self) {
        // SAFETY: as in `notify`; this is the last call.
        unsafe { self.module.destroy()(self.plugin) };
    }

    /// The plugin's state; an error if it panicked.
    pub fn save(self) -> Result<Option<(u32, Bytes)>, ()> {
        // SAFETY: as in `notify`.
        let table = unsafe { self.module.extension()(self.plugin, PLUGIN_STATE, 1) }.cast::<PluginState>();
        if table.is_null() {
            return Ok(None);
        }
        let mut blob = StateBlob { version: 0, bytes: FfiBytes::EMPTY };
        // SAFETY: a table that is not null lives as long as the process; `blob` is room for one blob.
        match unsafe { ((*table).save)(self.plugin, &mut blob) } {
            READY => Ok(Some((blob.version, Bytes::from(blob.bytes)))),
            PENDING => Ok(None),
            _ => Err(()),
        }
    }

    /// Tells of a signal; whether anybody listens.
    pub fn signal(self, signal: u32) -> bool {
        // SAFETY: as in `notify`.
        let table = unsafe { self.module.extension()(self.plugin, PLUGIN_SIGNALS, 1) }.cast::<PluginSignals>();
        // SAFETY: a table that is not null lives as long as the process; the handle is this plugin's.
        unsafe { table.as_ref().is_some_and(|table| (table.deliver)(self.plugin, signal) == READY) }
    }

    /// Sends a request; nothing comes back if the plugin panicked. Dropping the future cancels the request.
    pub async fn call(self, head: Head, body: Payload) -> Option<(Response<Payload>, Option<Client>)> {
        let line = head.line.clone();
        let client = CancelGuard(Some(head.closed.clone()));
        let mut body = Some(body);
        let body = std::future::poll_fn(|cx| Poll::Ready(body.take().unwrap_or(Payload::Empty).settle(cx))).await;
        let (head, body) = (head.export(), body.export(Context::default()));
        // SAFETY: as in `notify`.
        let future = unsafe { self.module.call()(self.plugin, head, body) };
        let (code, response) = drive(future).await;
        client.disarm();
        let Some(mut response) = response.filter(|_| code == READY) else {
            line.refuse();
            return None;
        };
        let switches = match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => true,
            status => line.is_connect() && status.is_success(),
        };
        let client = if switches { line.open() } else { None };
        if client.is_none() {
            line.refuse();
            match response.status() {
                _ if line.is_connect() && !line.was_claimed() => *response.status_mut() = StatusCode::NOT_IMPLEMENTED,
                StatusCode::SWITCHING_PROTOCOLS => *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
                _ => {}
            }
        }
        Some((response, client))
    }
}

/// Marks the client as closed if the call is dropped before its response.
struct CancelGuard(Option<Arc<watch::Sender<bool>>>);

impl CancelGuard {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for CancelGuard {
    fn drop(&mut self) {
        if let Some(closed) = &self.0 {
            closed.send_replace(true);
        }
    }
}

/// Polls a future of the plugin to its end.
async fn drive(mut future: FfiFuture) -> (u32, Option<Response<Payload>>) {
    let mut response: Option<Response<Payload>> = None;
    let code = std::future::poll_fn(|cx| poll(&mut future, &mut response, cx)).await;
    (code, response)
}

fn poll(future: &mut FfiFuture, response: &mut Option<Response<Payload>>, cx: &mut TaskContext<'_>) -> Poll<u32> {
    let sink = ResponseSink { context: std::ptr::from_mut(response).cast(), send };
    // SAFETY: `drive` polls no more once it has ended; the sink outlives the call.
    match unsafe { future.poll(cx.waker(), &sink) } {
        PENDING => Poll::Pending,
        code => Poll::Ready(code),
    }
}

unsafe extern "C" fn send(context: *mut c_void, head: *const ResponseHead, body: FfiBody) {
    // SAFETY: `context` is the option of `drive`, alive for the poll in which the sink is called; the head is lent for this
    // call, and so are its fields.
    let (out, head, fields) = unsafe {
        let head = &*head;
        let fields: &[HeaderRef] = if head.header_count == 0 {
            &[]
        } else {
            std::slice::from_raw_parts(head.headers, head.header_count as usize)
        };
        (&mut *context.cast::<Option<Response<Payload>>>(), head, fields)
    };
    let mut response = Response::new(Payload::from(body));
    *response.status_mut() = u16::try_from(head.status)
        .ok()
        .and_then(|status| StatusCode::from_u16(status).ok())
        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for field in fields {
        // SAFETY: as above.
        let (name, value) = unsafe {
            let length = (field.value_len & !SENSITIVE) as usize;
            (
                Slice { ptr: field.name, len: field.name_len as usize }.as_bytes(),
                Slice { ptr: field.value, len: length }.as_bytes(),
            )
        };
        match (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            (Ok(name), Ok(mut value)) => {
                value.set_sensitive(field.value_len & SENSITIVE != 0);
                response.headers_mut().append(name, value);
            }
            _ => *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
    *out = Some(response);
}

// ---- the head of a request ----

/// A request's head as the host keeps it.
pub struct Head {
    parts: request::Parts,
    target: String,
    facts: Vec<(u32, Vec<u8>)>,
    peer: Option<FfiAddr>,
    local: Option<FfiAddr>,
    request_id: u64,
    line: Line,
    /// Whether the client has closed.
    closed: Arc<watch::Sender<bool>>,
}

impl Head {
    /// `facts`: text by its number (`FACT_*`).
    pub fn new(
        parts: request::Parts,
        request_id: u64,
        peer: Option<SocketAddr>,
        local: Option<SocketAddr>,
        facts: Vec<(u32, Vec<u8>)>,
    ) -> Head {
        let target = match parts.uri.path_and_query() {
            // As the host does: an absolute form may have a query and no path.
            Some(target) if target.as_str().starts_with('?') => format!("/{}", target.as_str()),
            Some(target) if !target.as_str().is_empty() => target.as_str().to_owned(),
            _ => "/".to_owned(),
        };
        let line = Line::new(&parts);
        let closed = Arc::new(watch::Sender::new(false));
        Head {
            parts,
            target,
            facts,
            peer: peer.map(Into::into),
            local: local.map(Into::into),
            request_id,
            line,
            closed,
        }
    }

    fn export(self) -> RequestHead {
        let head = Box::new(self);
        let line = RequestLine {
            method: Slice::new(head.parts.method.as_str().as_bytes()),
            target: Slice::new(head.target.as_bytes()),
            request_id: head.request_id,
            header_count: head.parts.headers.len() as u32,
            version: match head.parts.version {
                http::Version::HTTP_09 => 9,
                http::Version::HTTP_10 => 10,
                http::Version::HTTP_2 => 20,
                http::Version::HTTP_3 => 30,
                _ => 11,
            },
        };
        // SAFETY: the functions of `HEAD` are made for this box, which does not change until it is dropped, and all that they
        // and the line lend is part of it; a target of `http` is a string.
        unsafe { RequestHead::new(Box::into_raw(head), &HEAD, line) }
    }
}

static HEAD: RequestHeadVtable =
    RequestHeadVtable { headers: head_headers, header: head_header, fact: head_fact, drop: head_drop };

unsafe extern "C" fn head_headers(data: *const c_void, out: *mut HeaderRef, capacity: u32) -> u32 {
    // SAFETY: `data` is the box of `export`, alive until `head_drop`.
    let head = unsafe { &*data.cast::<Head>() };
    let mut written = 0;
    for (name, value) in head.parts.headers.iter().take(capacity as usize) {
        let field = HeaderRef {
            name: name.as_str().as_ptr(),
            value: value.as_bytes().as_ptr(),
            name_len: name.as_str().len() as u32,
            value_len: value.len() as u32 | if value.is_sensitive() { SENSITIVE } else { 0 },
        };
        // SAFETY: `out` has room for `capacity` fields, and `written` is below it.
        unsafe { out.add(written).write(field) };
        written += 1;
    }
    written as u32
}

unsafe extern "C" fn head_header(data: *const c_void, name: Slice, out: *mut Slice) -> u32 {
    // SAFETY: as in `head_headers`; the name is lent for this call.
    let (head, name) = unsafe { (&*data.cast::<Head>(), name.as_bytes()) };
    let value = std::str::from_utf8(name).ok().and_then(|name| head.parts.headers.get(name));
    let Some(value) = value else { return 0 };
    // SAFETY: `out` is the caller's.
    unsafe { out.write(Slice::new(value.as_bytes())) };
    1
}

unsafe extern "C" fn head_fact(data: *const c_void, fact: u32, out: *mut Slice) -> u32 {
    // SAFETY: as in `head_headers`.
    let head = unsafe { &*data.cast::<Head>() };
    let address = |address: &Option<FfiAddr>| {
        address.as_ref().map(|address| Slice { ptr: std::ptr::from_ref(address).cast(), len: size_of::<FfiAddr>() })
    };
    let value = match fact {
        FACT_PEER => address(&head.peer),
        FACT_LOCAL => address(&head.local),
        FACT_SCHEME => head.parts.uri.scheme_str().map(|scheme| Slice::new(scheme.as_bytes())),
        FACT_AUTHORITY => head.parts.uri.authority().map(|authority| Slice::new(authority.as_str().as_bytes())),
        _ => head.facts.iter().find(|(number, _)| *number == fact).map(|(_, text)| Slice::new(text)),
    };
    let Some(value) = value else { return 0 };
    // SAFETY: `out` is the caller's.
    unsafe { out.write(value) };
    1
}

unsafe extern "C" fn head_drop(data: *mut c_void) {
    // SAFETY: `data` is the box of `export`; the contract of the table is one call.
    drop(unsafe { Box::from_raw(data.cast::<Head>()) });
}

// ---- what the plugin may call ----

/// # Safety
/// `Loaded::start` made the context.
unsafe fn host<'a>(context: *const c_void) -> &'a Host {
    // SAFETY: the caller vouches that it was a `&'static Host`.
    unsafe { &*context.cast::<Host>() }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

unsafe extern "C" fn log(context: *const c_void, record: *const LogRecord) {
    // SAFETY: the record, and all it points to, is lent for this call.
    let logged = unsafe {
        let record = &*record;
        let text = |slice: Slice| String::from_utf8_lossy(slice.as_bytes()).into_owned();
        let fields: &[LogField] = if record.field_count == 0 {
            &[]
        } else {
            std::slice::from_raw_parts(record.fields, record.field_count as usize)
        };
        Logged {
            level: record.level,
            target: text(record.target),
            message: text(record.message),
            fields: fields.iter().map(|field| (text(field.name), text(field.value))).collect(),
            request_id: record.request_id,
            spans: text(record.spans),
            panic: record.panic != 0,
        }
    };
    // SAFETY: the plugin passes back what it was given.
    lock(&unsafe { host(context) }.logs).push(logged);
}

static CONTROL: Control = Control { header: Header { size: size_of::<Control>() as u32, rev: 1 }, request: control };

unsafe extern "C" fn host_extension(context: *const c_void, id: u32, min_rev: u32) -> *const c_void {
    // SAFETY: as in `log`.
    let host = unsafe { host(context) };
    match id {
        HOST_CONTROL if min_rev <= 1 && !host.without_control.load(Ordering::Relaxed) => {
            std::ptr::from_ref(&CONTROL).cast()
        }
        HOST_UPGRADE if min_rev <= 1 => std::ptr::from_ref(&UPGRADE).cast(),
        HOST_CLIENT if min_rev <= 1 => std::ptr::from_ref(&CLIENT).cast(),
        _ => std::ptr::null(),
    }
}

static UPGRADE: Upgrade = Upgrade { header: Header { size: size_of::<Upgrade>() as u32, rev: 1 }, claim };

unsafe extern "C" fn claim(_: *const c_void, head: *const c_void, out: *mut FfiStream) -> u32 {
    // SAFETY: `head` is the box of `Head::export`, alive as the plugin vouches.
    let head = unsafe { &*head.cast::<Head>() };
    let Some(stream) = head.line.claim() else { return 0 };
    // SAFETY: `out` is the plugin's room for one stream.
    unsafe { out.write(FfiStream::export(stream)) };
    1
}

static CLIENT: extension::Client =
    extension::Client { header: Header { size: size_of::<extension::Client>() as u32, rev: 1 }, closed };

unsafe extern "C" fn closed(_: *const c_void, head: *const c_void, out: *mut FfiSignal) -> u32 {
    // SAFETY: `head` is the box of `Head::export`, alive as the plugin vouches.
    let head = unsafe { &*head.cast::<Head>() };
    let mut closed = head.closed.subscribe();
    let signal = FfiSignal::new(async move {
        // The sender may be gone: then the client is too.
        let _ = closed.wait_for(|closed| *closed).await;
    });
    // SAFETY: `out` is the plugin's room for one signal.
    unsafe { out.write(signal) };
    1
}

unsafe extern "C" fn control(context: *const c_void, verb: u32) -> u32 {
    if ![CONTROL_RELOAD, CONTROL_RESTART, CONTROL_SHUTDOWN].contains(&verb) {
        return 2;
    }
    // SAFETY: as in `log`.
    let host = unsafe { host(context) };
    lock(&host.asked).push(verb);
    *lock(&host.answer)
}

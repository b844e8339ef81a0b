//! The host as a plugin sees it: a place to log to, and extension tables.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use super::{Claimed, Head};
use crate::abi::{FfiSignal, FfiStream, HostApi, HostApi_Ref, LogField, LogRecord, Slice, assert_send_sync, extension};

/// The host's functions. Good on any thread, until the process ends.
#[derive(Clone, Copy)]
pub struct HostRef(HostApi_Ref);

const _: () = assert_send_sync::<HostApi>();

// SAFETY: the host's functions may be called on any thread, and its context is made for that (see `HostApi`).
unsafe impl Send for HostRef {}
// SAFETY: as above.
unsafe impl Sync for HostRef {}

/// A field of a [`Record`], already formatted.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Field<'a>(LogField, PhantomData<&'a str>);

impl<'a> Field<'a> {
    pub fn new(name: &'a str, value: &'a str) -> Field<'a> {
        Field(LogField { name: Slice::new(name.as_bytes()), value: Slice::new(value.as_bytes()) }, PhantomData)
    }
}

/// A log record on its way to the host; the fields mean what those of [`LogRecord`] do.
pub struct Record<'a> {
    pub level: u32,
    pub target: &'a str,
    pub message: &'a str,
    pub fields: &'a [Field<'a>],
    pub request_id: u64,
    pub spans: &'a str,
    pub file: &'a str,
    pub line: u32,
    pub panic: bool,
}

impl HostRef {
    pub fn new(api: HostApi_Ref) -> HostRef {
        HostRef(api)
    }

    /// Hands a record to the host, which copies what it keeps.
    pub fn log(self, record: &Record<'_>) {
        let record = LogRecord {
            level: record.level,
            field_count: u32::try_from(record.fields.len()).unwrap_or(u32::MAX),
            target: Slice::new(record.target.as_bytes()),
            message: Slice::new(record.message.as_bytes()),
            // `Field` is transparent over `LogField`.
            fields: record.fields.as_ptr().cast(),
            request_id: record.request_id,
            spans: Slice::new(record.spans.as_bytes()),
            file: Slice::new(record.file.as_bytes()),
            line: record.line,
            panic: record.panic.into(),
        };
        // SAFETY: the context is the one of this table; the record, and what it points to, is lent for the call.
        unsafe { self.0.log()(self.0.context(), &record) };
    }

    /// The host's table with this number, in its first revision or a later one; null if it has none.
    fn extension(self, id: u32) -> *const c_void {
        // SAFETY: the context is the one of this table.
        unsafe { self.0.extension()(self.0.context(), id, 1) }
    }

    /// Asks the host for `verb` (`CONTROL_*`); nothing if it has no such table.
    pub fn control(self, verb: u32) -> Option<u32> {
        let table = self.extension(extension::HOST_CONTROL).cast::<extension::Control>();
        if table.is_null() {
            return None;
        }
        // SAFETY: a table that is not null lives as long as the process and has at least revision 1.
        Some(unsafe { ((*table).request)(self.0.context(), verb) })
    }

    /// Ends once the client of the request with this head has closed; nothing if the host has no such table.
    pub fn client_closed(self, head: &Head) -> Option<FfiSignal> {
        let table = self.extension(extension::HOST_CLIENT).cast::<extension::Client>();
        if table.is_null() {
            return None;
        }
        let mut signal = MaybeUninit::<FfiSignal>::uninit();
        // SAFETY: a table that is not null lives as long as the process and has at least revision 1; the head is alive, and
        // `signal` is room for one signal.
        let made = unsafe { ((*table).closed)(self.0.context(), head.data(), signal.as_mut_ptr()) };
        // SAFETY: the answer says that it was written.
        (made == 1).then(|| unsafe { signal.assume_init() })
    }

    /// Claims what the connection of the request with this head becomes; nothing if it asks for nothing of the kind, or the
    /// host has no such table.
    pub fn claim(self, head: &Head) -> Option<Claimed> {
        let table = self.extension(extension::HOST_UPGRADE).cast::<extension::Upgrade>();
        if table.is_null() {
            return None;
        }
        let mut stream = MaybeUninit::<FfiStream>::uninit();
        // SAFETY: a table that is not null lives as long as the process and has at least revision 1; the head is alive, and
        // `stream` is room for one stream.
        let claimed = unsafe { ((*table).claim)(self.0.context(), head.data(), stream.as_mut_ptr()) };
        // SAFETY: the answer says that it was written.
        (claimed == 1).then(|| Claimed::new(unsafe { stream.assume_init() }))
    }
}

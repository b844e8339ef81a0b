//! What `[limits]` means for the kernel, and the bounds of its values that no type holds.

use std::time::Duration;

use super::{Limits, Size};
use crate::sys::tcp::{MAX_KEEPALIVE, TcpOptions};

/// The least that the kernel's queues are set to: a part of a response is as large.
const LEAST_QUEUE: Size = Size(16 << 10);
/// hyper takes no less; nor more than a head's, which is in it.
const LEAST_BUFFER: Size = Size(8 << 10);
const MOST_BUFFER: Size = Size(1 << 20);
/// SO_SNDBUF is an `int`, and the kernel doubles it.
const MOST_QUEUE: Size = Size(1 << 29);

impl Limits {
    /// For every TCP connection.
    pub fn tcp_options(&self) -> TcpOptions {
        let bounded = |size: Size| (size != Size::UNLIMITED).then_some(size.0);
        TcpOptions {
            keepalive: self.tcp_keepalive.duration(),
            send_queue: bounded(self.send_queue).and_then(|size| u32::try_from(size).ok()),
            send_buffer: bounded(self.send_buffer).and_then(|size| usize::try_from(size).ok()),
        }
    }

    /// Each key whose value is out of its bounds, with the bounds.
    pub(super) fn problems(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let mut problem = |key, why: &str| found.push((key, why.to_owned()));
        if self.tcp_keepalive.duration().is_some_and(|time| time < Duration::from_secs(1) || time > MAX_KEEPALIVE) {
            problem("tcp_keepalive", "must lie between 1s and 9h, or be \"never\"");
        }
        if (1..100).contains(&self.http2_glitches) {
            problem("http2_glitches", "must be at least 100, or 0 for no limit");
        }
        if !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&self.response_window) {
            problem("response_window", "must lie between 1s and 1h");
        }
        if !(LEAST_BUFFER..=MOST_BUFFER).contains(&self.buffer_size) {
            problem("buffer_size", "must lie between 8 KiB and 1 MiB");
        }
        for (key, size) in [("send_queue", self.send_queue), ("send_buffer", self.send_buffer)] {
            if size != Size::UNLIMITED && !(LEAST_QUEUE..=MOST_QUEUE).contains(&size) {
                problem(key, "must lie between 16 KiB and 512 MiB, or be \"unlimited\"");
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limit;

    #[test]
    fn values_out_of_bounds_are_refused_by_key() {
        let seconds = |count| Limit::After(Duration::from_secs(count));
        let wrong = |limits: Limits| limits.problems().into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert!(wrong(Limits::default()).is_empty());
        let least = Limits { tcp_keepalive: seconds(1), send_queue: Size(16 << 10), ..Limits::default() };
        assert!(wrong(least).is_empty());
        for tcp_keepalive in [seconds(0), Limit::After(Duration::from_millis(999)), seconds(32_768)] {
            assert_eq!(wrong(Limits { tcp_keepalive, ..Limits::default() }), ["tcp_keepalive"]);
        }
        assert_eq!(wrong(Limits { http2_glitches: 99, ..Limits::default() }), ["http2_glitches"]);
        assert!(wrong(Limits { http2_glitches: 0, ..Limits::default() }).is_empty());
        for response_window in [Duration::ZERO, Duration::from_secs(3601)] {
            assert_eq!(wrong(Limits { response_window, ..Limits::default() }), ["response_window"]);
        }
        for buffer_size in [Size(8191), Size((1 << 20) + 1)] {
            assert_eq!(wrong(Limits { buffer_size, ..Limits::default() }), ["buffer_size"]);
        }
        for size in [Size(0), Size(16_383), Size((512 << 20) + 1)] {
            let limits = Limits { send_queue: size, send_buffer: size, ..Limits::default() };
            assert_eq!(wrong(limits), ["send_queue", "send_buffer"]);
        }
    }

    #[test]
    fn never_and_unlimited_leave_the_kernel_its_own_way() {
        let limits = Limits {
            tcp_keepalive: Limit::Never,
            send_queue: Size::UNLIMITED,
            send_buffer: Size::UNLIMITED,
            ..Limits::default()
        };
        let expected = TcpOptions { keepalive: None, send_queue: None, send_buffer: None };
        assert_eq!(limits.tcp_options(), expected);
        let set = Limits { send_buffer: Size(1 << 20), ..Limits::default() }.tcp_options();
        assert_eq!((set.send_queue, set.send_buffer), (Some(128 << 10), Some(1 << 20)));
    }
}

//! HTTP/2 connections that a limit or a drain ends, as a client of frames sees it.

use super::http2::{
    DATA, END_HEADERS, ENHANCE_YOUR_CALM, HEADERS, LATE, PING, RST_STREAM, Raw, SHORT, fields, frame, get, limited,
    patient,
};
use super::limits::endless;
use super::*;

#[test]
fn response_without_a_length_is_ended_at_its_time_in_a_drain() {
    let mut site = super::drain::endless();
    let mut raw = Raw::new(&site);
    // The client of the last one still sends its request.
    raw.send(get(1, "/quiet")).send(get(3, "/file")).send(frame(HEADERS, END_HEADERS, 5, &fields("/echo")));
    for _ in 0..3 {
        raw.until(DATA);
    }
    let start = Instant::now();
    site.retire(Deadlines { stream_ms: Some(SHORT.as_millis() as u64), ..NEVER });
    assert_eq!(raw.until(RST_STREAM).stream, 1);
    assert!(start.elapsed() >= SHORT);
    // The passing of time is what is tried: nothing else may be cut by it.
    std::thread::sleep(SHORT * 3);
    assert_eq!(site.metric(Slot::InFlight), 2, "the others go on");
    raw.client.reset();
    assert_eq!(site.drained().cut.stream, 1);
}

#[test]
fn at_the_end_goaway_is_not_waited_for_longer_than_idle_ones() {
    let drain = config::Drain { goaway: Limit::Never, ..config::Drain::default() };
    let mut site = site_in_full(&[], &patient(), &drain, vec![("/", fake::plugin(mirror))]);
    let mut quiet = Raw::new(&site);
    quiet.send(get(1, "/"));
    quiet.until(DATA);
    let start = Instant::now();
    let keepalive_ms = Some(SHORT.as_millis() as u64);
    site.retire(Deadlines { keepalive_ms, linger_ms: Some(100), ..NEVER });
    quiet.is_closed();
    let time = start.elapsed();
    assert!(time >= SHORT && time < SHORT + LATE, "it took {time:?}");
    site.drained();
}

#[test]
fn response_taken_below_its_rate_ends_the_connection() {
    let window = Duration::from_secs(1);
    // The client takes some 20 KB a second.
    for (rate, is_cut) in [(1 << 20, true), (1 << 10, false)] {
        let site = limited(config::Limits { response_min_rate: rate, response_window: window, ..patient() }, endless);
        let mut raw = Raw::narrow(&site);
        raw.send(get(1, "/"));
        let start = Instant::now();
        let (mut room, mut ended) = ([0; 2048], None);
        while ended.is_none() && start.elapsed() < window * 6 {
            ended = raw.client.stream.read_exact(&mut room).err();
            // The rate at which this client takes the response: 2 KiB in so much time.
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!((ended.is_some(), site.metric(Slot::ResponsesTooSlow)), (is_cut, u64::from(is_cut)), "{ended:?}");
    }
}

#[test]
fn flood_during_a_response_ends_at_the_end_of_a_frame() {
    let site = limited(config::Limits { http2_glitches: 100, ..patient() }, endless);
    let mut raw = Raw::narrow(&site);
    raw.send(get(1, "/"));
    let is_stuck = || {
        let mut is_stuck = false;
        site.server.connections.each(|conn| is_stuck |= conn.activity.write.is_on());
        is_stuck
    };
    eventually(is_stuck);
    // What pays for answers to the response, and the budget, are used up.
    raw.send(frame(PING, 0, 0, &[0; 8]).repeat(400));
    // Each frame before it is whole.
    assert_eq!(raw.goaway(), (1, ENHANCE_YOUR_CALM));
    raw.is_closed();
    eventually(|| site.metric(Slot::Http2Errors) == 1);
}

//! The limits by themselves: counts and times go in, and what is met comes out.

use super::*;
use crate::config::{Limit, Size};

fn limits() -> Limits {
    let after = |seconds| Limit::After(Duration::from_secs(seconds));
    let limits = config::Limits {
        head_timeout: after(1),
        idle_timeout: after(2),
        body_timeout: after(3),
        write_timeout: after(4),
        request_timeout: after(50),
        head_size: Size(8192),
        ..config::Limits::default()
    };
    Limits::new(&limits, &config::Drain::default(), 1024, None)
}

const NOTHING: Counts = Counts { read: 0, written: 0, calls: 0 };

#[test]
fn descriptors_are_kept_for_other_things() {
    assert_eq!(limits().connections, 1024 - 64 - 64);
    assert_eq!(Limits::new(&config::Limits::default(), &config::Drain::default(), 12_000, None).connections, 11_186);
    assert_eq!(Limits::new(&config::Limits::default(), &config::Drain::default(), 10, None).connections, 1);
    let own = config::Limits { connections: 7, ..config::Limits::default() };
    assert_eq!(Limits::new(&own, &config::Drain::default(), 1024, None).connections, 7);
}

#[test]
fn longest_limits_can_be_computed_with() {
    let never_ends = Limit::After(config::MAX_DURATION);
    let longest = config::Limits {
        handshake_timeout: never_ends,
        head_timeout: never_ends,
        idle_timeout: never_ends,
        body_timeout: never_ends,
        write_timeout: never_ends,
        request_timeout: never_ends,
        body_min_rate: 1 << 40,
        body_size: Size(1 << 60),
        http2_ping: never_ends,
        ..config::Limits::default()
    };
    let limits = Limits::new(&longest, &config::Drain::default(), u64::MAX, Some(u64::MAX));
    assert!(limits.head > 0 && limits.head < NEVER - Clock::default().now());
    for time in [limits.handshake_timeout, limits.head_timeout, limits.http2_ping, limits.write_timeout()] {
        let deadline = time.and_then(|time| Instant::now().checked_add(time * 4));
        assert!(deadline.is_some(), "{time:?}");
    }
}

#[test]
fn a_tick_fits_the_shortest_limit_and_without_limits_there_is_none() {
    assert_eq!(limits().tick, Some(Duration::from_millis(125)));
    let never = Limit::Never;
    let none = config::Limits {
        head_timeout: never,
        idle_timeout: never,
        body_timeout: never,
        write_timeout: never,
        request_timeout: never,
        response_min_rate: 0,
        ..config::Limits::default()
    };
    assert_eq!(Limits::new(&none, &config::Drain::default(), 1024, None).tick, None);
    let activity = Activity::new(0);
    assert_eq!(
        activity.overdue(START, &Limits::new(&none, &config::Drain::default(), 1024, None), NOTHING, Stand::Idle),
        None
    );
}

#[test]
fn idle_time_counts_from_the_last_byte_and_before_the_first_request_it_is_that_of_heads() {
    let (limits, activity) = (limits(), Activity::new(START));
    let idle = |now, counts| activity.overdue(START + now, &limits, counts, Stand::Idle);
    assert_eq!(idle(999, NOTHING), None);
    assert_eq!(idle(1000, NOTHING), Some(Overdue::Idle));
    let moved = Counts { read: 10, written: 10, calls: 1 };
    assert_eq!(idle(5000, moved), None, "something has moved since the last tick");
    activity.observe(START + 5000, moved, &limits);
    assert_eq!(idle(6999, moved), None);
    assert_eq!(idle(7000, moved), Some(Overdue::Idle));
    let adopted = Activity::new(START - 1500);
    adopted.set_served();
    assert_eq!(adopted.overdue(START + 499, &limits, NOTHING, Stand::Idle), None);
    assert_eq!(adopted.overdue(START + 500, &limits, NOTHING, Stand::Idle), Some(Overdue::Idle));
}

#[test]
fn a_body_is_late_only_while_it_is_waited_for() {
    let (limits, activity) = (limits(), Activity::new(START));
    let late = |now, counts| activity.overdue(START + now, &limits, counts, Stand::Answering);
    activity.observe(START, NOTHING, &limits);
    assert_eq!(late(9000, NOTHING), None, "nobody waits");
    activity.body.note_poll(Some(std::task::Waker::noop()));
    assert_eq!(late(9000, NOTHING), None, "only since a moment");
    activity.observe(START + 9000, NOTHING, &limits);
    assert_eq!(late(11_999, NOTHING), None);
    assert_eq!(late(12_000, NOTHING), Some(Overdue::Body));
    let more = Counts { read: 1, ..NOTHING };
    assert_eq!(late(12_000, more), None, "a byte has come");
    activity.body.end();
    activity.observe(START + 12_000, more, &limits);
    assert_eq!(late(40_000, more), None);
    assert_eq!(late(50_000, more), Some(Overdue::Request));
}

#[test]
fn a_response_is_stuck_only_if_the_kernel_has_sent_nothing_either() {
    let (limits, activity) = (limits(), Activity::new(START));
    let look = |now| activity.overdue(START + now, &limits, NOTHING, Stand::Answering);
    activity.write.begin();
    activity.observe(START, NOTHING, &limits);
    assert_eq!(look(999), None);
    assert_eq!(look(1000), Some(Overdue::Write));
    assert!(!activity.is_stuck(START + 1000, &limits, 500));
    assert_eq!(look(1999), None);
    assert!(!activity.is_stuck(START + 4000, &limits, 499), "a byte was taken");
    assert!(!activity.is_stuck(START + 7999, &limits, 499));
    assert!(activity.is_stuck(START + 8000, &limits, 499));
    activity.write.end();
    assert!(!activity.is_stuck(START + 9000, &limits, 499));
}

#[test]
fn connections_fit_into_half_the_memory() {
    let within = |memory, connections| {
        let limits = config::Limits { connections, ..config::Limits::default() };
        Limits::new(&limits, &config::Drain::default(), 1 << 20, Some(memory))
    };
    assert_eq!(within(1 << 30, 0).connections, 8192);
    assert_eq!(within(1 << 20, 0).connections, LEAST_CONNECTIONS);
    assert_eq!(within(1 << 50, 0).connections, within(1 << 50, 0).room, "descriptors are fewer");
    assert_eq!(within(1 << 30, 50_000).connections, 50_000, "what is configured is not cut down");
    assert!(within(1 << 30, 0).room > 8192, "what comes from another generation is not refused for it");
}

#[test]
fn a_response_is_too_slow_below_the_rate_and_not_when_nothing_is_taken() {
    const RATE: u64 = 1000;
    const WINDOW: u64 = 10_000;
    let taking = Taking::default();
    let wait = |from: u64, seconds: u64| {
        (from..=from + seconds).for_each(|second| taking.observe(START + second * 1000, true));
    };
    wait(0, 10);
    assert_eq!(taking.debt(), WINDOW);
    assert!(!taking.is_too_slow(1000, RATE, WINDOW), "what was taken before is no measure");
    assert!(!taking.is_too_slow(1000, RATE, WINDOW), "out of reach, perhaps");
    wait(10, 5);
    assert!(taking.is_too_slow(6000, RATE, WINDOW), "behind by the whole window");
    wait(15, 10);
    assert!(!taking.is_too_slow(17_000, RATE, WINDOW), "it keeps the rate");
    wait(25, 10);
    assert!(taking.is_too_slow(17_100, RATE, WINDOW), "a drip");
    taking.observe(START + 36_000, false);
    taking.begin_anew();
    taking.observe(START + 90_000, false);
    taking.observe(START + 100_000, true);
    assert_eq!(taking.debt(), 0, "nobody waited");
}

#[test]
fn next_request_begins_without_the_debt_of_the_one_before() {
    let (limits, activity) = (limits(), Activity::new(START));
    activity.write.begin();
    (0..20).for_each(|second| activity.observe(START + second * 1000, NOTHING, &limits));
    assert!(activity.taking.debt() >= limits.response_window);
    let next = Counts { calls: 1, ..NOTHING };
    activity.observe(START + 20_000, next, &limits);
    assert!(activity.taking.debt() <= 1000);
}

#[test]
fn peers_are_counted_by_their_network() {
    let peers = Peers::default();
    let addr = |text: &str| Some(text.parse::<SocketAddr>().unwrap());
    for text in
        ["192.0.2.1:1", "[::ffff:192.0.2.1]:2", "[2001:db8::1]:1", "[2001:db8::ffff:2]:2", "[2001:db8:0:1::1]:1"]
    {
        peers.enter(addr(text));
    }
    assert_eq!(peers.count(addr("192.0.2.1:9")), 2);
    assert_eq!(peers.count(addr("192.0.2.2:9")), 0);
    assert_eq!(peers.count(addr("[2001:db8::9]:9")), 2);
    peers.leave(addr("192.0.2.1:1"));
    peers.leave(addr("192.0.2.1:2"));
    assert_eq!(peers.0.lock().unwrap().len(), 2, "nothing is kept for those who left");
}

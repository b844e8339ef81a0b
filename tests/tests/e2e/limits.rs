//! Clients that mean harm, many at a time: each ends by its deadline with what is documented, and the others do not notice.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use baton_tests::server::{Server, Setup};
use baton_tests::{process, wait};

const LIMIT: Duration = Duration::from_secs(2);
/// How late a limit may be met on a machine that does much else: a tick, and the turn of the task.
const LATE: Duration = Duration::from_secs(4);
/// Slowest answer that a good client may get meanwhile, on such a machine.
const SLOWEST: Duration = Duration::from_secs(3);
/// What one attacker may cost, in KiB, and what all together may cost beside that.
const MEMORY: (u64, u64) = (64, 24 * 1024);

/// How many there are of all kinds, and of those that drip.
const ATTACKERS: usize = 300;
const DRIPPING: usize = 2000;

/// What it sends: at once, then again and again; and what comes of it.
struct Attack {
    name: &'static str,
    first: &'static str,
    /// At every turn, if anything.
    more: &'static str,
    status: Option<u16>,
    /// Ends by a limit of time.
    timed: bool,
}

const DRIP: &str = "x";
const FLOOD: &str = concat!(
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
);
/// So many times a turn: together more than any limit of a head.
const FLOODS: usize = 400;

/// Many short fields: more than 100 of them come before their bytes are too many.
const FIELDS: &str = "a: b\r\na: b\r\na: b\r\na: b\r\na: b\r\na: b\r\na: b\r\na: b\r\na: b\r\na: b\r\n";

const ATTACKS: [Attack; 10] = [
    Attack { name: "a head that drips", first: "GET / HTTP/1.1\r\nx: ", more: DRIP, status: Some(408), timed: true },
    Attack { name: "half a preface", first: "PRI * HT", more: "", status: Some(408), timed: true },
    Attack { name: "silence", first: "", more: "", status: None, timed: true },
    Attack { name: "a header bomb", first: "GET / HTTP/1.1\r\nx: ", more: FLOOD, status: Some(431), timed: false },
    Attack {
        name: "a head of many fields",
        first: "GET / HTTP/1.1\r\n",
        more: FIELDS,
        status: Some(431),
        timed: false,
    },
    Attack {
        name: "endless chunk extensions",
        first: "POST /length HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1;x",
        more: FLOOD,
        status: Some(400),
        timed: false,
    },
    Attack {
        name: "a body that stops",
        first: "POST /length HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nabc",
        more: "",
        status: Some(408),
        timed: true,
    },
    Attack {
        name: "a body that drips",
        first: "POST /length HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n",
        more: DRIP,
        status: Some(408),
        timed: true,
    },
    Attack {
        name: "100-continue without a body",
        first: "POST /length HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 100\r\n\r\n",
        more: "",
        status: Some(408),
        timed: true,
    },
    Attack {
        name: "a body too large",
        first: "POST /length HTTP/1.1\r\nhost: a\r\ncontent-length: 100000000\r\n\r\n",
        more: FLOOD,
        status: Some(413),
        timed: false,
    },
];

struct Attacker {
    stream: TcpStream,
    attack: &'static Attack,
    start: Instant,
    received: Vec<u8>,
    ended: Option<Duration>,
}

impl Attacker {
    fn begin(addr: SocketAddr, attack: &'static Attack) -> Attacker {
        let mut stream = TcpStream::connect(addr).expect("failed to connect");
        stream.write_all(attack.first.as_bytes()).expect("failed to send");
        stream.set_nonblocking(true).expect("failed to make it non-blocking");
        let mut attacker = Attacker { stream, attack, start: Instant::now(), received: Vec::new(), ended: None };
        // Not only once all the others have begun.
        attacker.turn();
        attacker
    }

    fn turn(&mut self) {
        let count = if [FLOOD, FIELDS].contains(&self.attack.more) { FLOODS } else { 1 };
        for _ in 0..count {
            // The server may have closed: the next read says so.
            if self.attack.more.is_empty()
                || !self.received.is_empty()
                || self.stream.write(self.attack.more.as_bytes()).is_err()
            {
                break;
            }
        }
        let mut room = [0; 4096];
        loop {
            match self.stream.read(&mut room) {
                Ok(0) => break self.ended = Some(self.start.elapsed()),
                Ok(count) => self.received.extend_from_slice(&room[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{}: {error} after {:?}", self.attack.name, self.text()),
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.received).into_owned()
    }

    fn assert_ended_well(&self) {
        let Attack { name, status, timed, .. } = self.attack;
        let text = self.text();
        let answer = text.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(&text);
        let got = answer.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
        assert_eq!(got, *status, "{name}: {text:?}");
        assert!(status.is_none() || answer.contains("connection: close"), "{name}: {text:?}");
        let time = self.ended.expect("it has ended");
        assert!(time < LIMIT + LATE, "{name}: it took {time:?}");
        assert!(!timed || time >= LIMIT - Duration::from_millis(100), "{name}: it took only {time:?}");
    }
}

fn limited() -> Server {
    let limit = format!("{}s", LIMIT.as_secs());
    Setup::probe("v1")
        .set("limits.head_timeout", &limit)
        .set("limits.body_timeout", &limit)
        .set("limits.body_min_rate", "1000")
        .set("limits.body_size", "1 MiB")
        .start()
}

#[test]
fn many_attackers_end_by_their_deadlines_while_others_are_served() {
    attacked(ATTACKERS, &ATTACKS);
}

#[test]
fn two_thousand_heads_that_drip_end_by_their_deadline_while_others_are_served() {
    // One here and one in the server for each.
    let count = DRIPPING.min(process::raise_descriptors() as usize * 2 / 3);
    attacked(count, &ATTACKS[..1]);
}

fn attacked(count: usize, attacks: &'static [Attack]) {
    let server = limited();
    let mut good = server.connect();
    assert_eq!(good.request("GET", "/").expect("an answer").status, 200);
    let worker = server.worker();
    let before = process::memory(worker).expect("the worker runs").rss;

    let addr = server.addr();
    let attacking = std::thread::spawn(move || {
        let mut attackers: Vec<Attacker> =
            (0..count).map(|at| Attacker::begin(addr, &attacks[at % attacks.len()])).collect();
        let end = Instant::now() + LIMIT + LATE + wait::LONG;
        while attackers.iter().any(|attacker| attacker.ended.is_none()) {
            assert!(Instant::now() < end, "some go on for ever");
            attackers.iter_mut().filter(|attacker| attacker.ended.is_none()).for_each(Attacker::turn);
            wait::pass(Duration::from_millis(20));
        }
        attackers
    });

    let (mut slowest, mut most, mut served) = (Duration::ZERO, 0, 0);
    while !attacking.is_finished() {
        let start = Instant::now();
        assert_eq!(good.request("GET", "/").expect("a good client was cut off").status, 200);
        assert_eq!(server.get("/").status, 200, "a new client");
        slowest = slowest.max(start.elapsed());
        most = most.max(process::memory(worker).expect("the worker runs").rss);
        served += 1;
        wait::pass(Duration::from_millis(5));
    }
    let attackers = attacking.join().expect("the attackers failed");
    attackers.iter().for_each(Attacker::assert_ended_well);
    assert!(served > 20, "only {served} were served meanwhile");
    assert!(slowest < SLOWEST, "an answer took {slowest:?}");
    let (each, all) = MEMORY;
    let grown = most.saturating_sub(before);
    assert!(grown < all + each * count as u64, "{count} attackers cost {grown} KiB");

    assert_eq!(server.worker(), worker, "the same process serves");
    let ended = server.wait_for("the attackers to be gone", |status| {
        status.serving().is_some_and(|serving| serving.load.connections <= 1)
    });
    let hits = ended.serving().expect("it serves").load.limits;
    let of = |statuses: &[Option<u16>], name: &str| {
        let met =
            |attack: &Attack| statuses.contains(&attack.status) && attack.first.starts_with("POST") == (name == "POST");
        attackers.iter().filter(|attacker| met(attacker.attack)).count() as u64
    };
    assert_eq!(hits.head_timeouts, of(&[Some(408), None], "GET"));
    assert_eq!(hits.body_timeouts, of(&[Some(408)], "POST"));
    assert_eq!((hits.head_too_large, hits.body_too_large), (of(&[Some(431)], "GET"), of(&[Some(413)], "POST")));
}

#[test]
fn a_head_that_drips_gains_nothing_by_reloads() {
    let server = limited();
    let mut attackers: Vec<Attacker> = (0..20).map(|_| Attacker::begin(server.addr(), &ATTACKS[0])).collect();
    let end = Instant::now() + LIMIT + LATE + wait::LONG;
    while attackers.iter().any(|attacker| attacker.ended.is_none()) {
        assert!(Instant::now() < end, "some go on for ever");
        server.switch();
        attackers.iter_mut().filter(|attacker| attacker.ended.is_none()).for_each(Attacker::turn);
    }
    attackers.iter().for_each(Attacker::assert_ended_well);
    assert!(server.status().switches >= 2, "too few to show it");
}

#[test]
fn beyond_the_limit_of_connections_others_wait_and_are_served_in_the_end() {
    let server = Setup::probe("v1").set("limits.connections", "4").start();
    let mut open: Vec<_> = (0..4).map(|_| server.connect()).collect();
    for connection in &mut open {
        assert_eq!(connection.request("GET", "/").expect("an answer").status, 200);
    }
    let mut waits = server.connect();
    waits.send("GET", "/", &[], b"").expect("failed to send");
    waits.time_limit(Duration::from_millis(500)).expect("failed to set a time limit");
    assert_eq!(waits.receive().expect_err("it was served").kind(), io::ErrorKind::WouldBlock);
    assert_eq!(open[0].request("GET", "/").expect("those inside are served").status, 200);
    open.pop();
    waits.time_limit(wait::LONG).expect("failed to set a time limit");
    assert_eq!(waits.receive().expect("an answer").status, 200);
}

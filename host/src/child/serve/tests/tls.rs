//! TLS against a plugin in this process: the handshake and its limits, what a session holds back from the kernel's view, and
//! the ends.

use std::sync::Arc;

use rcgen::generate_simple_self_signed;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::sync::Notify;
use zeroize::Zeroizing;

use super::handover::hand_over;
use super::*;
use crate::child::serve::tls::Tickets;
use crate::config::Config;
use crate::control::secrets::{Certificate, ServerCertificates};

const SHORT: Duration = Duration::from_millis(400);

pub(super) struct Secured {
    pub(super) site: Site,
    config: Arc<ClientConfig>,
}

impl std::ops::Deref for Secured {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

pub(super) fn secured(limits: &config::Limits, plugin: &'static Plugin) -> Secured {
    let own = generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    let server = config::Server {
        tls: vec![config::Certificate { cert: "c".into(), key: "k".into() }],
        ..config::Server::new("web", &[])
    };
    let config = Config { server: vec![server.clone()], ..Config::default() };
    let certificate = Certificate {
        names: vec!["a.example".into()],
        chain: vec![own.cert.der().to_vec()],
        key: Zeroizing::new(own.signing_key.serialize_der()),
    };
    let certificates = [ServerCertificates { server: "web".into(), certificates: vec![certificate] }];
    let tls = Tls::new(&config, &certificates, &Tickets::default()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(own.cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Secured {
        site: site_over(tls, &[server], limits, &config::Drain::default(), vec![("/", plugin)]),
        config: Arc::new(client),
    }
}

fn mirroring() -> Secured {
    secured(&limits(), fake::plugin(mirror))
}

/// Answers when told, `/fast` at once.
fn gated() -> (Secured, Arc<Notify>) {
    let gate = Arc::new(Notify::new());
    let handlers = gate.clone();
    let plugin = fake::plugin(move |asked: Asked| {
        let gate = handlers.clone();
        async move {
            if asked.target() != "/fast" {
                gate.notified().await;
            }
            reply(200, asked.target().to_owned())
        }
    });
    (secured(&limits(), plugin), gate)
}

/// A client that can also write a part of what TLS would.
pub(super) struct Client {
    pub(super) session: ClientConnection,
    pub(super) stream: TcpStream,
    buffer: Vec<u8>,
}

/// How the server ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// With close_notify.
    Said,
    /// The stream is at its end, and TLS has not said so.
    Cut,
    Reset,
}

impl Secured {
    /// Connected, and nothing said.
    fn open(&self) -> Client {
        let super::Client { stream, .. } = self.site.connect();
        let name = ServerName::try_from("a.example").unwrap();
        Client { session: ClientConnection::new(self.config.clone(), name).unwrap(), stream, buffer: Vec::new() }
    }

    pub(super) fn secure(&self) -> Client {
        let mut client = self.open();
        client.shake();
        client
    }
}

impl Client {
    pub(super) fn shake(&mut self) {
        while self.session.is_handshaking() {
            self.session.complete_io(&mut self.stream).unwrap();
        }
        self.flush();
    }

    pub(super) fn flush(&mut self) {
        while self.session.wants_write() {
            self.session.write_tls(&mut self.stream).unwrap();
        }
    }

    /// `text` as it would go over the wire.
    fn sealed(&mut self, text: &str) -> Vec<u8> {
        self.session.writer().write_all(text.as_bytes()).unwrap();
        let mut bytes = Vec::new();
        while self.session.wants_write() {
            self.session.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    pub(super) fn send(&mut self, text: &str) {
        let bytes = self.sealed(text);
        self.raw(&bytes);
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Reads until a whole response is there, or the server's end.
    pub(super) fn answer(&mut self) -> Result<Answer, Ended> {
        loop {
            if let Some(answer) = self.parsed() {
                return Ok(answer);
            }
            self.more()?;
        }
    }

    pub(super) fn get(&mut self, target: &str) -> Answer {
        self.send(&format!("GET {target} HTTP/1.1\r\nhost: a.example\r\n\r\n"));
        self.answer().unwrap()
    }

    fn more(&mut self) -> Result<(), Ended> {
        let mut bytes = [0; 16_384];
        loop {
            match self.session.reader().read(&mut bytes) {
                Ok(0) => return Err(Ended::Said),
                Ok(len) => {
                    self.buffer.extend_from_slice(&bytes[..len]);
                    return Ok(());
                }
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Err(Ended::Cut),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
            match self.session.read_tls(&mut self.stream) {
                Ok(_) => drop(self.session.process_new_packets().unwrap()),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Err(Ended::Reset),
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn parsed(&mut self) -> Option<Answer> {
        let end = self.buffer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let head = String::from_utf8(self.buffer[..end].to_vec()).unwrap();
        let mut answer = Answer { head, body: Vec::new() };
        let len: usize = answer.header("content-length").unwrap().parse().unwrap();
        if self.buffer.len() < end + len {
            return None;
        }
        answer.body = self.buffer.drain(..end + len).skip(end).collect();
        Some(answer)
    }

    /// The server's end, with nothing before it.
    #[track_caller]
    pub(super) fn end(&mut self) -> Ended {
        self.more().expect_err("something came")
    }

    fn is_silent(&mut self, time: Duration) {
        self.stream.set_read_timeout(Some(time)).unwrap();
        let error = self.stream.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
}

fn keepalive(ms: u64) -> Deadlines {
    Deadlines { keepalive_ms: Some(ms), ..NEVER }
}

#[test]
fn requests_are_answered_one_after_the_other_and_the_end_is_said() {
    let mut site = mirroring();
    let mut client = site.secure();
    for target in ["/a", "/b"] {
        assert_eq!(client.get(target).text(), target);
    }
    assert_eq!(site.metric(Slot::Idle), 1);
    site.site.retire(keepalive(100));
    assert_eq!(client.end(), Ended::Said);
    let report = site.drained();
    assert_eq!((report.lingered, report.lost), (1, 0));
}

#[test]
fn a_response_in_the_drain_announces_the_close_and_the_end_is_said() {
    let (mut site, gate) = gated();
    let (mut busy, mut idle) = (site.secure(), site.secure());
    busy.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    assert!(!idle.get("/fast").closes());
    eventually(|| site.metric(Slot::InFlight) == 1);
    site.site.retire(keepalive(10_000));
    gate.notify_one();
    let answer = busy.answer().unwrap();
    assert!(answer.closes() && answer.text() == "/slow", "{answer:?}");
    assert_eq!(busy.end(), Ended::Said);
    assert!(idle.get("/fast").closes());
    assert_eq!(idle.end(), Ended::Said);
    let report = site.drained();
    assert_eq!((report.finished, report.lost, report.lingered), (2, 0, 0));
}

#[test]
fn a_handshake_under_way_is_waited_for_and_its_first_request_answered() {
    let mut site = mirroring();
    let (mut client, mut silent) = (site.open(), site.open());
    let mut hello = Vec::new();
    client.session.write_tls(&mut hello).unwrap();
    client.raw(&hello[..hello.len() / 2]);
    site.until_open(2);
    site.site.retire(keepalive(50));
    // Longer than an idle connection is kept.
    client.is_silent(Duration::from_millis(300));
    client.raw(&hello[hello.len() / 2..]);
    client.shake();
    let answer = client.get("/first");
    assert!(answer.closes() && answer.text() == "/first", "{answer:?}");
    assert_eq!(client.end(), Ended::Said);
    // One that has not begun is waited for as well: its accept was ours.
    silent.shake();
    assert_eq!(silent.end(), Ended::Said);
    assert_eq!(site.drained().lost, 0);
}

#[test]
fn a_handshake_that_does_not_end_is_ended_by_the_drain() {
    let mut site = mirroring();
    let mut client = site.open();
    client.raw(&[22, 3, 1, 2, 0, 1]);
    site.until_open(1);
    site.site.retire(Deadlines { timeout_ms: Some(100), ..NEVER });
    assert!(client.stream.read(&mut [0; 1]).is_err(), "a cut can be told from an end");
    assert_eq!(site.drained().cut.head, 1);
}

#[test]
fn a_client_that_stalls_in_its_handshake_is_ended_and_the_others_are_served() {
    let limits = config::Limits { handshake_timeout: Limit::After(SHORT), ..limits() };
    let site = secured(&limits, fake::plugin(mirror));
    let start = Instant::now();
    let mut stalling = [site.open(), site.open()];
    stalling[1].raw(&[22, 3, 1, 2, 0, 1]);
    // Progress does not prolong it.
    let mut dripping = site.open();
    for byte in [22, 3, 1, 2, 0, 1] {
        dripping.raw(&[byte]);
        dripping.is_silent(SHORT / 8);
    }
    assert_eq!(site.secure().get("/").text(), "/");
    for client in stalling.iter_mut().chain([&mut dripping]) {
        assert_eq!(client.stream.read_to_end(&mut Vec::new()).unwrap_or(0), 0);
    }
    let took = start.elapsed();
    assert!(took >= SHORT && took < PATIENCE, "{took:?}");
    eventually(|| site.metric(Slot::HandshakeTimeouts) == 3);
}

#[test]
fn after_its_handshake_a_connection_has_the_limits_of_all() {
    let time = Duration::from_secs(1);
    let limits = config::Limits { head_timeout: Limit::After(time), ..limits() };
    let site = secured(&limits, fake::plugin(mirror));
    let mut served = site.secure();
    served.get("/");
    let mut begun = site.secure();
    begun.send("GET / HT");
    let mut silent = site.secure();
    assert_eq!(begun.answer().unwrap().status(), 408);
    assert_eq!(begun.end(), Ended::Said);
    assert_eq!(silent.end(), Ended::Said);
    served.is_silent(time);
    served.get("/");
}

#[test]
fn a_record_that_has_come_in_part_is_a_head_begun() {
    let limits = config::Limits { head_timeout: Limit::After(SHORT), ..limits() };
    let mut site = secured(&limits, fake::plugin(mirror));
    let (mut fresh, mut served) = (site.secure(), site.secure());
    served.get("/");
    for client in [&mut fresh, &mut served] {
        let record = client.sealed("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        client.raw(&record[..4]);
        assert_eq!(client.answer().unwrap().status(), 408);
        assert_eq!(client.end(), Ended::Said);
    }
    drop((fresh, served));
    // And not idle when the worker retires.
    let mut begun = site.secure();
    begun.get("/");
    let record = begun.sealed("GET /rest HTTP/1.1\r\nhost: a\r\n\r\n");
    begun.raw(&record[..20]);
    eventually(|| site.metric(Slot::Connections) == 1 && site.metric(Slot::Idle) == 0);
    site.site.retire(keepalive(50));
    begun.is_silent(SHORT / 2);
    begun.raw(&record[20..]);
    let answer = begun.answer().unwrap();
    assert!(answer.closes() && answer.text() == "/rest", "{answer:?}");
    assert_eq!(site.drained().lost, 0);
}

#[test]
fn a_record_that_has_come_in_part_prolongs_no_limit() {
    let limits = config::Limits { body_timeout: Limit::After(SHORT), idle_timeout: Limit::After(SHORT), ..limits() };
    let counting = |mut asked: Asked| async move {
        let read = super::fake::read(&mut asked.body).await;
        reply(200, read.map_or(0, |(data, _)| data.len()).to_string())
    };
    let site = secured(&limits, fake::plugin(counting));
    let mut upload = site.secure();
    upload.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\nabc");
    let record = upload.sealed("def");
    upload.raw(&record[..7]);
    assert_eq!(upload.answer().unwrap().status(), 408);
    assert_eq!(upload.end(), Ended::Said);
    eventually(|| site.metric(Slot::BodyTimeouts) == 1);
    let mut streams = site.secure();
    streams.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    let settings = String::from_utf8(vec![0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
    streams.send(&settings);
    let record = streams.sealed(&settings);
    streams.raw(&record[..7]);
    // GOAWAY, and the end.
    while streams.more().is_ok() {}
    eventually(|| site.metric(Slot::HeadTimeouts) + site.metric(Slot::IdleTimeouts) == 1);
}

#[test]
fn requests_that_the_session_has_decrypted_are_answered_before_the_close_is_announced() {
    let (mut site, gate) = gated();
    let mut client = site.secure();
    // In one record, and more than hyper reads at once.
    let behind = 60;
    let long = format!("GET /fast HTTP/1.1\r\nhost: a\r\nx-long: {}\r\n\r\n", "x".repeat(190));
    let text = format!("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n{}", long.repeat(behind));
    assert!(text.len() > 12_000 && text.len() < 16_384);
    client.send(&text);
    eventually(|| site.metric(Slot::InFlight) == 1);
    site.site.retire(keepalive(100));
    gate.notify_one();
    assert!(!client.answer().unwrap().closes());
    let mut answered = 0;
    while let Ok(answer) = client.answer() {
        assert_eq!(answer.text(), "/fast");
        answered += 1;
    }
    assert_eq!(answered, behind);
    let report = site.drained();
    assert_eq!((report.lost, report.unanswered_pipelined), (0, 0), "{report:?}");
}

#[test]
fn a_client_that_speaks_clear_http_is_told_so() {
    let site = mirroring();
    let mut client = site.site.connect();
    let answer = client.get("/");
    assert!(answer.status() == 400 && answer.closes() && answer.text().contains("https"), "{answer:?}");
    client.is_closed();
    assert_eq!(site.secure().get("/").text(), "/");
    assert_eq!(site.metric(Slot::HandshakeFailures), 1);
}

#[test]
fn bytes_that_are_no_tls_get_an_alert_and_an_end() {
    let site = mirroring();
    for bytes in [&b"\x16\x03\x01\x00\x05hello"[..], b"\x00\x00", b"{\"a\":1}"] {
        let mut client = site.site.connect();
        client.send(bytes);
        let rest = client.rest().unwrap();
        // An alert is a record of type 21.
        assert!(rest.first().is_none_or(|first| *first == 21) && rest.len() < 20, "{rest:?}");
    }
    assert_eq!(site.metric(Slot::HandshakeFailures), 3);
    site.until_open(0);
}

#[test]
fn a_client_that_goes_without_a_word_is_no_loss() {
    let mut site = mirroring();
    let mut client = site.secure();
    client.get("/");
    drop(client);
    let open = site.open();
    drop(open);
    site.until_open(0);
    site.site.retire(keepalive(100));
    let report = site.drained();
    assert_eq!((report.lost, report.cut.total()), (0, 0));
}

#[test]
fn a_large_response_waits_for_a_slow_client_and_comes_whole() {
    let site = secured(&limits(), fake::plugin(|_| async { reply(200, vec![b'x'; 8 << 20]) }));
    let mut client = site.secure();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually(|| site.metric(Slot::InFlight) == 1);
    // The kernel has what it takes, and the session as well.
    site.secure().is_silent(SHORT);
    assert_eq!(site.metric(Slot::InFlight), 1);
    assert_eq!(client.answer().unwrap().body.len(), 8 << 20);
    eventually(|| site.metric(Slot::Idle) == 1);
}

#[test]
fn what_the_kernel_has_no_room_for_follows_once_it_has() {
    let plugin = fake::plugin(|asked: Asked| async move {
        let len = asked.target().trim_start_matches('/').parse().unwrap();
        reply(200, vec![b'x'; len])
    });
    let Secured { site, config } = secured(&limits(), plugin);
    // A Unix socket takes some 200 KiB and no more: of one of these the end lies in the session alone.
    let site = Secured { site: site.over_unix(), config };
    let mut other = site.secure();
    for len in (160..=320).step_by(8).map(|kib| kib << 10) {
        let mut client = site.secure();
        client.send(&format!("GET /{len} HTTP/1.1\r\nhost: a\r\n\r\n"));
        other.is_silent(Duration::from_millis(30));
        assert_eq!(client.answer().unwrap().body.len(), len);
    }
}

#[test]
fn a_client_that_takes_nothing_is_ended() {
    let limits = config::Limits { write_timeout: Limit::After(SHORT), ..limits() };
    let site = secured(&limits, fake::plugin(|_| async { reply(200, vec![b'x'; 32 << 20]) }));
    let mut client = site.secure();
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    site.until_open(0);
    assert_eq!(site.metric(Slot::WriteTimeouts), 1);
    let ended = loop {
        if let Err(ended) = client.more() {
            break ended;
        }
    };
    assert_ne!(ended, Ended::Said, "a response that is cut must not look whole");
}

#[test]
fn a_secure_connection_is_not_handed_over_and_keeps_nobody_waiting() {
    let (old, new) = (mirroring(), mirroring());
    let mut clients: Vec<Client> = (0..3).map(|_| old.secure()).collect();
    clients.iter_mut().for_each(|client| drop(client.get("/")));
    let clear = serve(mirror);
    hand_over(&old, &clear);
    hand_over(&old, &new);
    let start = Instant::now();
    old.runtime.block_on(old.server.handover.settled(old.server));
    assert!(start.elapsed() < Duration::from_millis(200), "it waited for those that cannot go");
    for client in &mut clients {
        assert_eq!(client.get("/still").text(), "/still");
    }
    assert_eq!(old.server.handover.moved(), 0);
    eventually(|| old.metric(Slot::Requests) == 6);
}

// ---- a client that closes its sending side ----

#[test]
fn half_closed_session_gets_the_whole_response() {
    for (close_notify, fin) in [(true, false), (true, true), (false, true)] {
        let (site, gate) = gated();
        let mut client = site.secure();
        client.send("GET /slow HTTP/1.1\r\nhost: a.example\r\n\r\n");
        eventually(|| site.metric(Slot::InFlight) == 1);
        if close_notify {
            client.session.send_close_notify();
            client.flush();
        }
        if fin {
            client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
        eventually(|| site.unread() == 0);
        gate.notify_one();
        assert_eq!(client.answer().unwrap().text(), "/slow", "close_notify {close_notify}, FIN {fin}");
        assert_eq!(client.end(), Ended::Said);
        site.until_open(0);
    }
}

#[test]
fn half_closed_session_is_answered_while_the_worker_drains() {
    let (mut site, gate) = gated();
    let mut client = site.secure();
    client.send("GET /slow HTTP/1.1\r\nhost: a.example\r\n\r\n");
    client.session.send_close_notify();
    client.flush();
    eventually(|| site.metric(Slot::InFlight) == 1 && site.unread() == 0);
    site.site.retire(NEVER);
    gate.notify_one();
    assert_eq!(client.answer().unwrap().text(), "/slow");
    assert_eq!(client.end(), Ended::Said);
    site.drained();
}

#[test]
fn requests_behind_a_slow_one_are_kept_in_the_session_and_answered() {
    let (site, gate) = gated();
    let mut client = site.secure();
    client.send("GET /slow HTTP/1.1\r\nhost: a.example\r\n\r\n");
    eventually(|| site.metric(Slot::InFlight) == 1);
    client.send("GET /fast HTTP/1.1\r\nhost: a.example\r\n\r\n");
    client.session.send_close_notify();
    client.flush();
    gate.notify_one();
    assert_eq!(client.answer().unwrap().text(), "/slow");
    assert_eq!(client.answer().unwrap().text(), "/fast");
    assert_eq!(client.end(), Ended::Said);
}

#[test]
fn reset_of_a_half_closed_session_drops_the_handler() {
    let (site, _gate) = gated();
    let mut client = site.secure();
    client.send("GET /slow HTTP/1.1\r\nhost: a.example\r\n\r\n");
    eventually(|| site.metric(Slot::InFlight) == 1);
    client.session.send_close_notify();
    client.flush();
    eventually(|| site.unread() == 0);
    reset_at_close(client.stream.as_raw_fd());
    drop(client);
    eventually(|| site.metric(Slot::InFlight) == 0);
    site.until_open(0);
    assert_eq!(site.metric(Slot::Requests), 0);
}

#[test]
fn reset_of_a_session_behind_unread_bytes_drops_the_handler() {
    let post = "POST /slow HTTP/1.1\r\nhost: a.example\r\ncontent-length: ";
    let get = "GET /slow HTTP/1.1\r\nhost: a.example\r\n\r\n".repeat(2);
    for bytes in [format!("{post}4\r\n\r\nbody"), format!("{post}9\r\n\r\nbody"), get] {
        for half_closed in [false, true] {
            let (site, _gate) = gated();
            let mut client = site.secure();
            client.send(&bytes);
            eventually(|| site.metric(Slot::InFlight) == 1);
            if half_closed {
                client.session.send_close_notify();
                client.flush();
            }
            reset_at_close(client.stream.as_raw_fd());
            drop(client);
            eventually(|| site.metric(Slot::InFlight) == 0);
            site.until_open(0);
            assert_eq!(site.metric(Slot::Requests), 0, "{bytes}");
        }
    }
}

//! Connections that move between two workers, here in one process: every state a connection can be in, and every way the
//! other side can fail.

use std::os::fd::{AsFd, OwnedFd};

use super::fake::read;
use super::*;
use crate::child::handover::{SUCCESSOR, adopt, lend};
use crate::report::Generation;
use crate::sys::seqpacket;

/// A worker that answers with its name and the target; `/slow` waits for the gate's word.
fn named(name: &'static str) -> (Site, std::sync::Arc<tokio::sync::Notify>) {
    let gate = std::sync::Arc::new(tokio::sync::Notify::new());
    let inner = gate.clone();
    let site = serve(move |mut asked: Asked| {
        let gate = inner.clone();
        async move {
            let target = asked.target().to_owned();
            if target == "/slow" {
                gate.notified().await;
            }
            let body = match target.as_str() {
                "/read" => String::from_utf8(read(&mut asked.body).await.unwrap().0.to_vec()).unwrap(),
                _ => target,
            };
            let body = if body == "/large" { "x".repeat(LARGE) } else { format!("{name} {body}") };
            reply(200, body)
        }
    });
    (site, gate)
}

const LARGE: usize = 8_000_000;

fn connect(from: &Site, to: &Site, listeners: Vec<u32>, names: Vec<(u32, &'static str)>) {
    let (giver, taker) = seqpacket::pair().unwrap();
    {
        let _entered = to.runtime.enter();
        adopt(to.server, taker, Generation(1), names);
    }
    lend_over(from, giver, listeners);
}

fn lend_over(from: &Site, giver: OwnedFd, listeners: Vec<u32>) {
    let _entered = from.runtime.enter();
    lend(from.server, giver, Generation(2), listeners);
}

pub fn hand_over(from: &Site, to: &Site) {
    connect(from, to, vec![1], vec![(1, "web")]);
}

/// Plays the other side by hand: answers HELLO with `version`, then gives the OFFERs to `answer`.
fn impostor(
    from: &Site,
    version: u8,
    answer: impl FnOnce(&OwnedFd, Vec<u8>) + Send + 'static,
) -> std::thread::JoinHandle<()> {
    let (giver, taker) = seqpacket::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let recv = || {
            let mut buffer = vec![0; 128 * 1024];
            let mut poll = [nix::poll::PollFd::new(taker.as_fd(), nix::poll::PollFlags::POLLIN)];
            nix::poll::poll(&mut poll, 20_000_u16).unwrap();
            let received = seqpacket::recv(taker.as_fd(), &mut buffer).unwrap();
            buffer.truncate(received.len);
            buffer
        };
        seqpacket::send(taker.as_fd(), &[1, version], &[]).unwrap();
        assert_eq!(recv(), [1, 2], "its HELLO");
        answer(&taker, recv());
    });
    lend_over(from, giver, vec![1]);
    thread
}

#[test]
fn connections_at_rest_move_in_whatever_state_they_are() {
    let (old, _) = named("old");
    let (new, _) = named("new");
    let mut fresh = old.connect();
    let mut begun = old.connect();
    begun.send("G");
    let mut idle = old.connect();
    assert_eq!(idle.get("/a").text(), "old /a");
    let mut partial = old.connect();
    assert_eq!(partial.get("/b").text(), "old /b");
    partial.send("GET /c HTTP/1.");
    old.until_open(4);
    hand_over(&old, &new);
    old.drained();
    new.until_open(4);
    assert_eq!(fresh.get("/d").text(), "new /d");
    assert_eq!(begun.send("ET /e HTTP/1.1\r\nhost: a\r\n\r\n").answer().text(), "new /e");
    assert_eq!(idle.get("/f").text(), "new /f");
    assert_eq!(partial.send("1\r\nhost: a\r\n\r\n").answer().text(), "new /c");
    assert_eq!(old.server.handover.moved(), 4);
}

#[test]
fn connections_of_a_unix_socket_move_as_well() {
    let (old, gate) = named("old");
    let (new, _) = named("new");
    let old = old.over_unix();
    let mut idle = old.connect();
    assert_eq!(idle.get("/a").text(), "old /a");
    let mut begun = old.connect();
    begun.send("GET /b HT");
    let mut slow = old.connect();
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually(|| old.metric(Slot::InFlight) == 1);
    old.until_open(3);
    hand_over(&old, &new);
    new.until_open(2);
    assert_eq!(idle.get("/c").text(), "new /c");
    assert_eq!(begun.send("TP/1.1\r\nhost: a\r\n\r\n").answer().text(), "new /b");
    gate.notify_one();
    assert_eq!(slow.answer().text(), "old /slow");
    assert_eq!(slow.get("/d").text(), "new /d");
    old.drained();
    assert_eq!(old.server.handover.moved(), 3);
}

#[test]
fn a_busy_connection_moves_right_after_its_response() {
    let (old, gate) = named("old");
    let (new, _) = named("new");
    let mut slow = old.connect();
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    let mut upload = old.connect();
    upload.send("POST /read HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\nabc");
    eventually(|| old.metric(Slot::InFlight) == 2);
    hand_over(&old, &new);
    gate.notify_one();
    assert_eq!(slow.answer().text(), "old /slow");
    assert_eq!(slow.get("/next").text(), "new /next");
    // The other's body is still coming.
    eventually(|| old.server.connections.open() == 1);
    assert_eq!(upload.send("def").answer().text(), "old abcdef");
    assert_eq!(upload.get("/next").text(), "new /next");
    old.drained();
}

#[test]
fn pipelined_requests_are_answered_in_order_whoever_answers() {
    let (old, gate) = named("old");
    let (new, _) = named("new");
    let mut client = old.connect();
    let more: String = (0..20).map(|n| format!("GET /{n} HTTP/1.1\r\nhost: a\r\n\r\n")).collect();
    client.send(format!("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n{more}"));
    eventually(|| old.metric(Slot::InFlight) == 1);
    hand_over(&old, &new);
    gate.notify_one();
    assert_eq!(client.answer().text(), "old /slow");
    for n in 0..20 {
        let answer = client.answer();
        assert!(answer.text().ends_with(&format!(" /{n}")) && !answer.closes(), "{answer:?}");
    }
    assert_eq!(client.get("/last").text(), "new /last");
    old.drained();
}

#[test]
fn a_response_that_is_not_taken_yet_stays_until_it_is() {
    let (old, _) = named("old");
    let (new, _) = named("new");
    let mut client = old.connect();
    client.send("GET /large HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually(|| old.metric(Slot::Requests) + old.metric(Slot::InFlight) > 0);
    hand_over(&old, &new);
    let answer = client.answer();
    assert_eq!(answer.body.len(), LARGE);
    assert_eq!(client.get("/next").text(), "new /next");
    old.drained();
}

#[test]
fn what_the_other_side_never_acknowledged_stays() {
    let (old, _) = named("old");
    let mut clients: Vec<Client> = (0..10).map(|_| old.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/a").text(), "old /a");
    }
    let dead = impostor(&old, 2, |_, offer| assert_eq!(offer[0], 2, "an OFFER"));
    dead.join().unwrap();
    for client in &mut clients {
        assert_eq!(client.get("/b").text(), "old /b");
    }
    assert_eq!((old.server.handover.moved(), old.server.connections.open()), (0, 10));
    // And another target gets them.
    let (new, _) = named("new");
    hand_over(&old, &new);
    old.drained();
    assert!(clients.iter_mut().all(|client| client.get("/c").text() == "new /c"));
}

#[test]
fn acknowledged_batch_is_not_taken_back_after_a_protocol_error() {
    let (old, _) = named("old");
    let mut clients: Vec<Client> = (0..10).map(|_| old.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/a").text(), "old /a");
    }
    let (sender, acknowledged) = std::sync::mpsc::channel();
    let broken = impostor(&old, 2, move |socket, offer| {
        sender.send(u64::from(u16::from_le_bytes([offer[5], offer[6]]))).unwrap();
        // No message of the protocol; and only behind it the word that the batch was taken.
        seqpacket::send(socket.as_fd(), &[99], &[]).unwrap();
        seqpacket::send(socket.as_fd(), &[&[3][..], &offer[1..5]].concat(), &[]).unwrap();
    });
    broken.join().unwrap();
    let acknowledged = acknowledged.recv().unwrap();
    assert!((1..=10).contains(&acknowledged));
    eventually(|| old.server.connections.open() as u64 == 10 - acknowledged);
    assert_eq!(old.server.handover.moved(), acknowledged);
    assert!(old.metric(Slot::TakenBack) <= 10 - acknowledged);
    // The others are served here, those that were offered and those that were not yet.
    eventually(|| !old.server.handover.is_open());
    let before = old.metric(Slot::Requests);
    for client in &mut clients {
        client.send("GET /b HTTP/1.1\r\nhost: a\r\n\r\n");
    }
    eventually(|| old.metric(Slot::Requests) - before == 10 - acknowledged);
}

#[test]
fn a_refused_batch_stays_and_so_does_all_with_another_version() {
    let (old, _) = named("old");
    let mut client = old.connect();
    assert_eq!(client.get("/a").text(), "old /a");
    let full = impostor(&old, 2, |socket, offer| {
        let nak = [&[4][..], &offer[1..5]].concat();
        seqpacket::send(socket.as_fd(), &nak, &[]).unwrap();
        // Until the giver has hung up.
        let mut poll = [nix::poll::PollFd::new(socket.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut poll, 20_000_u16).unwrap();
    });
    assert_eq!(client.get("/b").text(), "old /b");
    full.join().unwrap();
    let other = impostor(&old, 9, |_, end| assert!(end.is_empty(), "it hangs up without an OFFER"));
    other.join().unwrap();
    assert_eq!(client.get("/c").text(), "old /c");

    // A listener that the new one does not have: refused by it, or not even offered.
    let (new, _) = named("new");
    connect(&old, &new, vec![1], vec![(7, "other")]);
    eventually(|| !old.server.handover.is_open());
    assert_eq!(client.get("/d").text(), "old /d");
    connect(&old, &new, vec![7], vec![(7, "other")]);
    assert_eq!(client.get("/e").text(), "old /e");
    assert_eq!(old.server.handover.moved(), 0);
}

#[test]
fn a_connection_may_move_on_and_on() {
    let (first, _) = named("first");
    let (second, _) = named("second");
    let (third, _) = named("third");
    let mut clients: Vec<Client> = (0..300).map(|_| first.connect()).collect();
    first.until_open(300);
    hand_over(&second, &third);
    hand_over(&first, &second);
    first.drained();
    eventually(|| second.server.handover.moved() == 300);
    second.drained();
    assert!(clients.iter_mut().all(|client| client.get("/a").text() == "third /a"));
    assert_eq!(first.server.handover.moved(), 300);
}

#[test]
fn a_worker_that_may_still_be_given_connections_does_not_end() {
    let (worker, _) = named("any");
    let (giver, taker) = seqpacket::pair().unwrap();
    {
        let _entered = worker.runtime.enter();
        adopt(worker.server, taker, Generation(1), vec![(1, "web")]);
    }
    let ended =
        |time| worker.runtime.block_on(async { tokio::time::timeout(time, worker.server.ended()).await.is_ok() });
    assert!(!ended(Duration::from_millis(100)), "a batch may be on its way");
    drop(giver);
    assert!(ended(PATIENCE));
    // And the limits of the drain hold for this wait too.
    let (_giver, taker) = seqpacket::pair().unwrap();
    {
        let _entered = worker.runtime.enter();
        adopt(worker.server, taker, Generation(1), vec![(1, "web")]);
    }
    worker.server.drain.retire(Deadlines { max_ms: Some(50), ..NEVER });
    assert!(ended(PATIENCE));
}

#[test]
fn while_it_can_move_no_close_is_announced_and_afterwards_it_is() {
    let (mut old, gate) = named("old");
    let (new, _) = named("new");
    let mut slow = old.connect();
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually(|| old.metric(Slot::InFlight) == 1);
    hand_over(&old, &new);
    old.retire(NEVER);
    gate.notify_one();
    assert!(!slow.answer().closes());
    assert_eq!(slow.get("/a").text(), "new /a");
    old.drained();

    let (mut old, gate) = named("old");
    let mut slow = old.connect();
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    eventually(|| old.metric(Slot::InFlight) == 1);
    impostor(&old, 9, |_, _| ()).join().unwrap();
    eventually(|| !old.server.handover.is_open());
    old.retire(NEVER);
    gate.notify_one();
    assert!(slow.answer().closes());
    slow.is_closed();
}

#[test]
fn when_the_target_has_died_its_successor_is_waited_for_and_only_then_a_close_announced() {
    let (mut old, gate) = named("old");
    let (new, _) = named("new");
    let (mut waits, mut slow) = (old.connect(), old.connect());
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(waits.get("/a").text(), "old /a");
    eventually(|| old.metric(Slot::InFlight) == 1);
    impostor(&old, 2, |_, offer| assert_eq!(offer[0], 2, "an OFFER")).join().unwrap();
    eventually(|| !old.server.handover.is_open());
    eventually(|| old.metric(Slot::TakenBack) == 1);
    old.retire(NEVER);
    assert!(!waits.get("/b").closes());
    hand_over(&old, &new);
    assert_eq!(waits.get("/c").text(), "new /c");
    // Another one dies, and nobody follows in time.
    let (giver, taker) = seqpacket::pair().unwrap();
    drop(taker);
    lend_over(&old, giver, vec![1]);
    eventually(|| !old.server.handover.is_open());
    old.runtime.block_on(async { tokio::time::sleep(SUCCESSOR).await });
    gate.notify_one();
    assert!(slow.answer().closes());
    slow.is_closed();
    old.drained();
}

#[test]
fn a_pause_is_not_over_while_an_offer_is_not_answered() {
    let (old, _) = named("old");
    let mut client = old.connect();
    assert_eq!(client.get("/a").text(), "old /a");
    let (offered, told) = std::sync::mpsc::channel();
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let silent = impostor(&old, 2, move |_, _| {
        offered.send(()).unwrap();
        // Ends with the sender.
        let _ = wait.recv();
    });
    told.recv_timeout(PATIENCE).unwrap();
    let settled = |time| {
        let settled = async { tokio::time::timeout(time, old.server.handover.settled(old.server)).await.is_ok() };
        old.runtime.block_on(settled)
    };
    assert!(!settled(Duration::from_millis(600)), "the offer is out");
    drop(go_on);
    silent.join().unwrap();
    assert!(settled(PATIENCE));
    assert_eq!(client.get("/b").text(), "old /b");
}

#[test]
fn requests_that_race_with_the_move_are_all_answered() {
    let workers: Vec<Site> = (0..40).map(|_| named("any").0).collect();
    let mut client = workers[0].connect();
    for pair in workers.windows(2) {
        client.send("GET /a HTTP/1.1\r\nhost: a\r\n\r\n");
        hand_over(&pair[0], &pair[1]);
        assert_eq!(client.answer().text(), "any /a");
        client.send("GET /b HTTP/1.1\r\nhost: a\r\n\r\n");
        assert_eq!(client.answer().text(), "any /b");
        pair[0].drained();
    }
}

//! HTTP/2 clients that close their sending side: END_STREAM ends a request's body, RST_STREAM the request, and a FIN of the
//! connection none of the requests that came before it.

use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use bytes::Bytes;
use tokio::sync::Notify;

use super::fake::{Step, stream};
use super::http2::{DATA, RST_STREAM, Raw, frame, get};
use super::*;

/// Answers when the gate opens; counts the requests whose clients have closed.
fn gated(servers: &[config::Server]) -> (Site, Arc<Notify>, Arc<AtomicUsize>) {
    gated_with(servers, &config::Drain::default())
}

fn gated_with(servers: &[config::Server], drain: &config::Drain) -> (Site, Arc<Notify>, Arc<AtomicUsize>) {
    let (gate, notified) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (handlers, counter) = (gate.clone(), notified.clone());
    let plugin = fake::plugin(move |asked: Asked| {
        let (gate, counter, closed) = (handlers.clone(), counter.clone(), asked.client_closed());
        tokio::spawn(async move {
            closed.await;
            counter.fetch_add(1, Ordering::SeqCst);
        });
        async move {
            gate.notified().await;
            reply(200, vec![b'x'; 40_000])
        }
    });
    (site_in_full(servers, &limits(), drain, vec![("/", plugin)]), gate, notified)
}

/// The length of the DATA of a response, up to its end.
fn body(raw: &mut Raw) -> usize {
    let mut len = 0;
    loop {
        let frame = raw.until(DATA);
        len += frame.payload.len();
        if frame.flags & 1 != 0 {
            return len;
        }
    }
}

#[test]
fn http2_request_before_a_fin_gets_its_whole_response() {
    let (site, gate, notified) = gated(&[]);
    let mut raw = Raw::new(&site);
    raw.send(get(1, "/"));
    eventually(|| site.metric(Slot::InFlight) == 1);
    assert_eq!(notified.load(Ordering::SeqCst), 0, "END_STREAM is no close");
    raw.client.stream.shutdown(Shutdown::Write).unwrap();
    eventually(|| notified.load(Ordering::SeqCst) == 1);
    assert_eq!(site.metric(Slot::InFlight), 1);
    gate.notify_one();
    assert_eq!(body(&mut raw), 40_000);
    raw.is_closed();
    site.until_open(0);
}

/// The response is put into hyper by the stream's task: how far the connection's has come by then differs each time.
const ROUNDS: usize = 50;

#[test]
fn http2_fin_of_a_drained_worker_ends_after_its_response() {
    for _ in 0..ROUNDS {
        let (mut site, gate, _) = gated(&[]);
        let mut raw = Raw::new(&site);
        raw.send(get(1, "/"));
        eventually(|| site.metric(Slot::InFlight) == 1);
        raw.client.stream.shutdown(Shutdown::Write).unwrap();
        site.retire(NEVER);
        gate.notify_one();
        assert_eq!(body(&mut raw), 40_000);
        raw.is_closed();
        site.drained();
    }
}

#[test]
fn http2_client_that_answers_no_ping_gets_the_response_that_comes_late() {
    for _ in 0..ROUNDS {
        // Over by the time of the response.
        let goaway = Limit::After(Duration::from_millis(1));
        let (mut site, gate, _) = gated_with(&[], &config::Drain { goaway, ..config::Drain::default() });
        let mut raw = Raw::new(&site);
        raw.send(get(1, "/"));
        eventually(|| site.metric(Slot::InFlight) == 1);
        site.retire(NEVER);
        raw.goaway();
        gate.notify_one();
        assert_eq!(body(&mut raw), 40_000);
        // Its end would be waited for.
        drop(raw);
        site.drained();
    }
}

#[test]
fn http2_reset_of_one_stream_is_its_close_alone() {
    let (site, gate, notified) = gated(&[]);
    let mut raw = Raw::new(&site);
    raw.send(get(1, "/")).send(get(3, "/"));
    eventually(|| site.metric(Slot::InFlight) == 2);
    raw.send(frame(RST_STREAM, 0, 1, &8u32.to_be_bytes()));
    eventually(|| notified.load(Ordering::SeqCst) == 1);
    gate.notify_one();
    assert_eq!(body(&mut raw), 40_000);
}

#[test]
fn http2_fin_with_abort_on_close_drops_the_handlers() {
    let server = config::Server { abort_on_close: true, ..config::Server::new("web", &[]) };
    let (site, _gate, notified) = gated(&[server]);
    let mut raw = Raw::new(&site);
    raw.send(get(1, "/")).send(get(3, "/"));
    eventually(|| site.metric(Slot::InFlight) == 2);
    raw.client.stream.shutdown(Shutdown::Write).unwrap();
    eventually(|| site.metric(Slot::InFlight) == 0);
    assert_eq!(notified.load(Ordering::SeqCst), 2);
    site.until_open(0);
    assert_eq!(site.metric(Slot::AbortedOnClose), 2);
}

#[test]
fn http2_reset_of_a_half_closed_connection_drops_the_handlers() {
    let (site, _gate, notified) = gated(&[]);
    let mut raw = Raw::new(&site);
    raw.send(get(1, "/"));
    eventually(|| site.metric(Slot::InFlight) == 1);
    raw.client.stream.shutdown(Shutdown::Write).unwrap();
    eventually(|| notified.load(Ordering::SeqCst) == 1);
    raw.client.reset();
    eventually(|| site.metric(Slot::InFlight) == 0);
    site.until_open(0);
}

#[test]
fn http2_stream_shorter_than_its_length_is_reset() {
    let site = serve(|_| async {
        let mut steps = vec![Step::End, Step::Data(Bytes::from_static(b"part"))];
        let body = stream(None, move |_| Poll::Ready(steps.pop().unwrap_or(Step::End)));
        reply(200, "").header("content-length", "8").body(body)
    });
    let mut raw = Raw::new(&site);
    raw.send(get(1, "/"));
    assert_eq!(raw.until(RST_STREAM).stream, 1);
    assert_eq!(site.metric(Slot::BrokenResponses), 1);
}

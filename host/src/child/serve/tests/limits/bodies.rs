//! The limits of request bodies: how long, how slow and how large one may be.

use super::*;

#[test]
fn a_body_that_stops_is_a_408_and_one_that_goes_on_is_not() {
    let site = limited(config::Limits { body_timeout: short(), ..patient() }, count);
    let (mut stops, mut chunked, mut expects) = (site.connect(), site.connect(), site.connect());
    let mut goes_on = site.connect();
    let start = Instant::now();
    stops.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc");
    chunked.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5;ext");
    expects.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 10\r\n\r\n");
    goes_on.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n");
    assert_eq!(expects.head(), "HTTP/1.1 100 Continue\r\n\r\n");
    let sending = std::thread::spawn(move || {
        for _ in 0..10 {
            std::thread::sleep(SHORT / 4);
            goes_on.send("x");
        }
        assert_eq!(goes_on.answer().text(), "10");
        assert_eq!(goes_on.get("/").text(), "0");
    });
    for client in [&mut stops, &mut chunked, &mut expects] {
        is_refused(&takes(start, SHORT, || client.answer()), 408);
        client.is_closed();
    }
    sending.join().unwrap();
    assert_eq!(site.metric(Slot::BodyTimeouts), 3);
    eventually(|| site.metric(Slot::InFlight) == 0);
}

#[test]
fn a_body_that_stops_after_the_answer_began_is_a_reset() {
    let site = limited(config::Limits { body_timeout: short(), ..patient() }, |asked: Asked| async move {
        reply(200, "").body(asked.body)
    });
    let mut client = site.connect();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n");
    let start = Instant::now();
    assert!(client.head().starts_with("HTTP/1.1 200 "));
    takes(start, SHORT, || is_reset(&mut client));
    assert_eq!(site.metric(Slot::BodyTimeouts), 1);
}

/// Bodies that must bring 1000 bytes a second.
fn at_a_rate() -> config::Limits {
    config::Limits { body_timeout: short(), body_min_rate: 1000, ..patient() }
}

/// Sends `bytes` per 50 ms, until it has sent them `times` or the server has had enough.
fn drip(client: &mut Client, bytes: usize, times: usize) {
    for _ in 0..times {
        let chunk = format!("{bytes:x}\r\n{}\r\n", "x".repeat(bytes));
        if client.stream.write_all(chunk.as_bytes()).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

const CHUNKED: &str = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";

#[test]
fn a_body_that_drips_is_a_408_and_one_that_keeps_the_rate_is_not() {
    let site = limited(at_a_rate(), count);
    let (mut drips, mut keeps) = (site.connect(), site.connect());
    let keeping = std::thread::spawn(move || {
        keeps.send(CHUNKED);
        drip(&mut keeps, 200, 40);
        assert_eq!(keeps.send("0\r\n\r\n").answer().text(), "8000");
        assert_eq!(keeps.get("/").text(), "0", "and is served on");
    });
    let start = Instant::now();
    drips.send(CHUNKED);
    let mut dripping = Client { stream: drips.stream.try_clone().unwrap(), buffer: Vec::new() };
    let sending = std::thread::spawn(move || drip(&mut dripping, 1, 100));
    is_refused(&takes(start, SHORT, || drips.answer()), 408);
    drips.is_closed();
    assert!(start.elapsed() < Duration::from_secs(5), "it drips no more");
    keeping.join().unwrap();
    sending.join().unwrap();
    assert_eq!(site.metric(Slot::BodyTimeouts), 1);
}

#[test]
fn a_body_that_drips_after_the_answer_began_is_a_reset() {
    let site = limited(at_a_rate(), |asked: Asked| async move { reply(200, "").body(asked.body) });
    let mut client = site.connect();
    let start = Instant::now();
    client.send(CHUNKED).send("1\r\nx\r\n");
    assert!(client.head().starts_with("HTTP/1.1 200 "));
    let mut dripping = Client { stream: client.stream.try_clone().unwrap(), buffer: Vec::new() };
    let sending = std::thread::spawn(move || drip(&mut dripping, 1, 100));
    takes(start, SHORT, || is_reset(&mut client));
    sending.join().unwrap();
    assert_eq!(site.metric(Slot::BodyTimeouts), 1);
}

#[test]
fn a_body_that_a_handler_no_longer_waits_for_is_not_late() {
    for limits in [at_a_rate(), config::Limits { body_min_rate: 0, ..at_a_rate() }] {
        let site = limited(limits, |mut asked: Asked| async move {
            assert_eq!(frame(&mut asked.body).await.0, FRAME_DATA);
            tokio::select! {
                _ = frame(&mut asked.body) => panic!("nothing more was sent"),
                () = tokio::time::sleep(SHORT / 8) => {}
            }
            tokio::time::sleep(SHORT * 4).await;
            reply(200, "enough")
        });
        let mut client = site.connect();
        client.send(CHUNKED).send("1\r\nx\r\n");
        assert_eq!(client.answer().text(), "enough");
        assert_eq!(site.metric(Slot::BodyTimeouts), 0);
    }
}

#[test]
fn a_body_that_another_task_waits_for_is_late_like_any() {
    let site = limited(config::Limits { body_timeout: short(), ..patient() }, |mut asked: Asked| async move {
        let reading = tokio::spawn(async move { read(&mut asked.body).await });
        reply(200, reading.await.unwrap().unwrap().0.len().to_string())
    });
    let mut client = site.connect();
    let start = Instant::now();
    client.send(CHUNKED).send("1\r\nx\r\n");
    is_refused(&takes(start, SHORT, || client.answer()), 408);
    assert_eq!(site.metric(Slot::BodyTimeouts), 1);
}

#[test]
fn a_body_too_large_is_a_413_whether_its_length_is_announced_or_not() {
    let site = limited(config::Limits { body_size: Size(1000), ..patient() }, count);
    let mut fits = site.connect();
    fits.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n").send([b'x'; 1000]);
    assert_eq!(fits.answer().text(), "1000");
    fits.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
    fits.send(format!("3e8\r\n{}\r\n0\r\n\r\n", "x".repeat(1000)));
    assert_eq!(fits.answer().text(), "1000");

    let mut announced = site.connect();
    announced.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 200000\r\n\r\n").send(vec![b'x'; 200_000]);
    let mut expects = site.connect();
    expects.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 1001\r\n\r\n");
    let mut chunked = site.connect();
    chunked.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
    for _ in 0..50 {
        chunked.send(format!("3e8\r\n{}\r\n", "x".repeat(1000)));
    }
    for client in [&mut announced, &mut expects, &mut chunked] {
        is_refused(&client.answer(), 413);
        client.is_closed();
    }
    assert_eq!(site.metric(Slot::BodyTooLarge), 3);
}

#[test]
fn a_body_too_large_after_the_answer_began_is_an_error_to_the_handler() {
    let site = limited(config::Limits { body_size: Size(1000), ..patient() }, |mut asked: Asked| async move {
        let (first, _) = frame(&mut asked.body).await;
        assert_eq!(first, FRAME_DATA);
        reply(200, "").body(asked.body)
    });
    let mut client = site.connect();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n");
    client.head();
    client.send(format!("400\r\n{}\r\n", "x".repeat(1024)));
    is_reset(&mut client);
}

#[test]
fn the_handler_learns_why_its_body_ended() {
    let (told, hears) = std::sync::mpsc::channel();
    let site = limited(config::Limits { body_size: Size(10), ..patient() }, move |mut asked: Asked| {
        let told = told.clone();
        async move {
            let (kind, text) = frame(&mut asked.body).await;
            told.send((kind, text)).unwrap();
            reply(200, "not seen")
        }
    });
    let mut client = site.connect();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nb\r\n01234567890\r\n0\r\n\r\n");
    is_refused(&client.answer(), 413);
    let (kind, text) = hears.recv().unwrap();
    assert_eq!((kind, text), (FRAME_ERROR, Bytes::from("the request body is larger than allowed")));
}

#[test]
fn an_endless_chunk_extension_is_a_bad_request_and_no_failure_of_the_handler() {
    let site = limited(patient(), |mut asked: Asked| async move {
        read(&mut asked.body).await.unwrap_err();
        reply(500, "what came was no body")
    });
    let mut client = site.connect();
    client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5;").send(vec![b'x'; 20_000]);
    let answer = client.answer();
    assert_eq!(answer.status(), 400, "{answer:?}");
    assert!(answer.closes());
    client.is_closed();
    assert_eq!(site.metric(Slot::Failures), 0);
    eventually(|| site.server.connections.open() == 0);
}

//! Connections that leave HTTP, from the author's side: who gets the stream, when, and what happens when nobody does.

use baton_plugin_api::testing::{self, Client, Plugin, block_on, eventually};
use baton_plugin_api::tokio::io::{AsyncReadExt, AsyncWriteExt};
use baton_plugin_api::tokio::{self, time};
use baton_plugin_api::upgrade::{self, Upgraded};
use baton_plugin_api::{Body, HeaderValue, IntoResponse, Request, Response, StatusCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

fn asking(target: &str) -> http::Request<Body> {
    let mut request = testing::request("GET", target, Body::empty());
    request.headers_mut().insert("connection", HeaderValue::from_static("keep-alive, Upgrade"));
    request.headers_mut().insert("upgrade", HeaderValue::from_static("raw"));
    request
}

fn switching() -> Response {
    (StatusCode::SWITCHING_PROTOCOLS, [("upgrade", "raw")], ()).into_response()
}

async fn copy(mut stream: Upgraded) {
    let mut buffer = vec![0; 1000];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => stream.write_all(&buffer[..count]).await.expect("the client reads"),
        }
    }
    stream.shutdown().await.expect("the client is there");
}

/// Sends back what comes.
async fn echo(mut request: Request) -> Response {
    let upgrade = upgrade::on(&mut request);
    tokio::spawn(async move { copy(upgrade.await.expect("the connection leaves HTTP")).await });
    switching()
}

fn switched(plugin: &Plugin, request: http::Request<Body>) -> Client {
    let (response, client) = block_on(plugin.upgrade(request)).expect("the plugin switches");
    assert_eq!(response.status(), 101);
    client
}

#[test]
fn a_handler_that_answers_101_gets_the_stream() {
    let plugin = Plugin::start(echo);
    let mut client = switched(&plugin, asking("/"));
    block_on(async {
        client.write_all(b"hello").await.unwrap();
        let mut back = [0; 5];
        client.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"hello");
        client.shutdown().await.unwrap();
        assert_eq!(client.read(&mut back).await.unwrap(), 0, "the end crosses too");
    });
}

#[test]
fn much_crosses_both_ways_past_a_reader_that_is_slow() {
    const LEN: usize = 3_000_000;
    let plugin = Plugin::start(echo);
    let client = switched(&plugin, asking("/"));
    let (mut reader, mut writer) = tokio::io::split(client);
    let sender = std::thread::spawn(move || {
        block_on(async {
            let bytes: Vec<u8> = (0..LEN).map(|at| (at % 251) as u8).collect();
            writer.write_all(&bytes).await.unwrap();
            writer.shutdown().await.unwrap();
        });
    });
    block_on(async {
        let mut at = 0;
        let mut buffer = vec![0; 10_000];
        loop {
            let count = reader.read(&mut buffer).await.unwrap();
            if count == 0 {
                break;
            }
            assert!(buffer[..count].iter().enumerate().all(|(n, byte)| *byte == ((at + n) % 251) as u8));
            at += count;
        }
        assert_eq!(at, LEN);
    });
    sender.join().unwrap();
}

#[test]
fn under_runtime_spawn_it_works_alike() {
    let plugin = Plugin::spawned(echo).start().unwrap();
    let mut client = switched(&plugin, asking("/"));
    block_on(async {
        client.write_all(b"x").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'x');
    });
}

#[test]
fn vectored_writes_and_tokio_timeouts_work_on_it() {
    async fn handler(mut request: Request) -> Response {
        let upgrade = upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = upgrade.await.unwrap();
            let silent = time::timeout(Duration::from_millis(20), stream.read_u8()).await;
            assert!(silent.is_err());
            let parts = [std::io::IoSlice::new(b"ab"), std::io::IoSlice::new(b"cd")];
            assert_eq!(stream.write_vectored(&parts).await.unwrap(), 4);
            stream.flush().await.unwrap();
        });
        switching()
    }
    let plugin = Plugin::start(handler);
    let mut client = switched(&plugin, asking("/"));
    block_on(async {
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"abcd", "and the drop of the stream is the end");
    });
}

#[test]
fn another_answer_than_101_fails_the_wait() {
    static ENDED: AtomicUsize = AtomicUsize::new(0);
    async fn handler(mut request: Request) -> StatusCode {
        let upgrade = upgrade::on(&mut request);
        tokio::spawn(async move {
            let error = upgrade.await.expect_err("it stays with HTTP");
            assert!(!error.is_unasked() && error.to_string().contains("did not leave HTTP"), "{error}");
            ENDED.fetch_add(1, Ordering::SeqCst);
        });
        StatusCode::FORBIDDEN
    }
    let plugin = Plugin::start(handler);
    let response = block_on(plugin.upgrade(asking("/"))).expect_err("it does not switch");
    assert_eq!(response.status(), 403);
    eventually(|| ENDED.load(Ordering::SeqCst) == 1);
}

#[test]
fn a_request_that_does_not_ask_cannot_be_switched() {
    async fn handler(mut request: Request) -> Response {
        let error = upgrade::on(&mut request).await.expect_err("nobody asked");
        assert!(error.is_unasked());
        switching()
    }
    let plugin = Plugin::start(handler);
    assert_eq!(plugin.get("/").status(), 500, "a 101 that nobody asked for");
    // `Upgrade` alone is not enough: some hop on the way may have sent it.
    let mut request = asking("/");
    request.headers_mut().remove("connection");
    assert_eq!(plugin.send(request).status(), 500);
    assert!(plugin.logs().iter().all(|log| !log.panic));
}

#[test]
fn a_101_without_a_claim_is_a_500() {
    async fn handler(_: Request) -> Response {
        switching()
    }
    let plugin = Plugin::start(handler);
    assert_eq!(plugin.send(asking("/")).status(), 500);
}

#[test]
fn a_claim_that_was_let_go_is_none() {
    async fn handler(mut request: Request) -> Response {
        drop(upgrade::on(&mut request));
        switching()
    }
    let plugin = Plugin::start(handler);
    assert_eq!(plugin.send(asking("/")).status(), 500);
}

#[test]
fn the_stream_can_be_claimed_once() {
    async fn handler(mut request: Request) -> Response {
        let first = upgrade::on(&mut request);
        assert!(upgrade::on(&mut request).await.expect_err("the first has it").is_unasked());
        tokio::spawn(async move { copy(first.await.unwrap()).await });
        switching()
    }
    let plugin = Plugin::start(handler);
    let mut client = switched(&plugin, asking("/"));
    block_on(async {
        client.write_all(b"x").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'x');
    });
}

#[test]
fn a_connect_is_a_501_unless_it_is_taken() {
    async fn proxy(mut request: Request) -> StatusCode {
        if request.header("authorization").is_none() {
            return StatusCode::OK;
        }
        let upgrade = upgrade::on(&mut request);
        tokio::spawn(async move {
            if let Ok(stream) = upgrade.await {
                copy(stream).await;
            }
        });
        if request.header("authorization") == Some("yes") { StatusCode::OK } else { StatusCode::FORBIDDEN }
    }
    let plugin = Plugin::start(proxy);
    let connect = |authorization: &'static str| {
        let mut request = testing::request("CONNECT", "example.com:443", Body::empty());
        if !authorization.is_empty() {
            request.headers_mut().insert("authorization", HeaderValue::from_static(authorization));
        }
        request
    };
    assert_eq!(plugin.send(connect("")).status(), 501);
    assert_eq!(plugin.send(connect("no")).status(), 403);
    let (response, mut client) = block_on(plugin.upgrade(connect("yes"))).expect("a tunnel");
    assert_eq!(response.status(), 200);
    block_on(async {
        client.write_all(b"x").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'x');
    });
}

//! Bodies that no handler reads, over TLS 1.3: the same promises as in clear (`unread`), where the bytes to be discarded lie in the
//! session as well as in the kernel, and an end must be said.

use baton_plugin_api::abi::FfiBody;
use rustls::ProtocolVersion;

use super::fake::read;
use super::tls::{Client, Ended, Secured, secured};
use super::*;
use crate::child::serve::discard::DISCARD;
use crate::config::Size;

/// More than is discarded to keep a connection.
const LARGE: usize = DISCARD as usize + 1;
/// What a session takes before it must be flushed.
const RECORD: usize = 16_384;

/// Leaves every body alone, but that of `/read`.
async fn ignore(mut asked: Asked) -> Reply {
    if asked.target() == "/read" {
        return reply(200, read(&mut asked.body).await.unwrap().0);
    }
    reply(200, asked.target().to_owned())
}

fn ignoring() -> Secured {
    secured(&limits(), fake::plugin(ignore))
}

fn upload(target: &str, len: usize) -> String {
    format!("POST {target} HTTP/1.1\r\nhost: a.example\r\ncontent-length: {len}\r\n\r\n")
}

const CHUNKED: &str = "POST /chunked HTTP/1.1\r\nhost: a.example\r\ntransfer-encoding: chunked\r\n\r\n";

/// Speaks TLS 1.3 and HTTP/1.1.
fn connect(site: &Secured) -> Client {
    let client = site.secure();
    assert_eq!(client.session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(client.session.alpn_protocol(), None);
    client
}

/// Writes all of it before anything is read; an error is the server's end.
fn write(client: &mut Client, bytes: &[u8]) -> std::io::Result<()> {
    for part in bytes.chunks(RECORD) {
        client.session.writer().write_all(part)?;
        while client.session.wants_write() {
            client.session.write_tls(&mut client.stream)?;
        }
    }
    Ok(())
}

#[test]
fn request_behind_an_unread_body_is_answered_over_tls() {
    let site = ignoring();
    for len in [1, 100, RECORD - 1, 60_000, DISCARD as usize] {
        let mut client = connect(&site);
        let body = "x".repeat(len);
        let all = upload("/a", len) + &body + &upload("/read", 3) + "abc" + &upload("/b", len) + &body;
        write(&mut client, all.as_bytes()).unwrap();
        for text in ["/a", "abc", "/b"] {
            let answer = client.answer().unwrap();
            assert_eq!((answer.text(), answer.closes()), (text, false), "{len}");
        }
        assert_eq!(client.get("/c").text(), "/c", "{len}");
    }
    // The rest of a body comes after its response, in records that end within it.
    let mut client = connect(&site);
    client.send(&upload("/a", 50_000));
    assert!(!client.answer().unwrap().closes());
    eventually(|| site.metric(Slot::Idle) == 0);
    write(&mut client, &[b'G'; 50_000]).unwrap();
    assert_eq!(client.get("/b").text(), "/b");
    assert_eq!(site.metric(Slot::ClientAborts), 0);
}

#[test]
fn unread_body_that_is_too_large_is_announced_as_close_over_tls() {
    let site = ignoring();
    let mut large = connect(&site);
    large.send(&upload("/a", LARGE));
    let mut begun = connect(&site);
    begun.send(&format!("{CHUNKED}3\r\nabc\r\n"));
    let mut endless = connect(&site);
    write(&mut endless, format!("{CHUNKED}{LARGE:x}\r\n{}", "x".repeat(LARGE)).as_bytes()).unwrap();
    for client in [&mut large, &mut begun, &mut endless] {
        let answer = client.answer().unwrap();
        assert_eq!((answer.status(), answer.closes()), (200, true));
        assert_eq!(client.end(), Ended::Said);
    }
}

#[test]
fn body_that_is_dropped_unread_is_read_over_tls_while_the_handler_works() {
    let gate = std::sync::Arc::new(tokio::sync::Notify::new());
    let handlers = gate.clone();
    let site = secured(
        &limits(),
        fake::plugin(move |asked: Asked| {
            let gate = handlers.clone();
            async move {
                let Asked { head: _head, body } = asked;
                drop::<FfiBody>(body);
                gate.notified().await;
                reply(200, "done")
            }
        }),
    );
    let mut client = connect(&site);
    write(&mut client, (upload("/", 300_000) + &"x".repeat(300_000)).as_bytes()).unwrap();
    eventually(|| site.unread() == 0);
    for _ in 0..2 {
        gate.notify_one();
        let answer = client.answer().unwrap();
        assert_eq!((answer.text(), answer.closes()), ("done", false));
        client.send(&upload("/", 0));
    }
}

#[test]
fn large_upload_gets_its_413_over_tls_though_it_writes_first() {
    let limits = config::Limits { body_size: Size(1 << 20), ..limits() };
    let site = secured(
        &limits,
        fake::plugin(|mut asked: Asked| async move {
            match read(&mut asked.body).await {
                Ok(_) => reply(200, "read"),
                Err(error) => reply(500, error),
            }
        }),
    );
    let body = vec![b'x'; 12 << 20];
    let mut known = connect(&site);
    write(&mut known, upload("/", body.len()).as_bytes()).unwrap();
    let mut unknown = connect(&site);
    write(&mut unknown, format!("{CHUNKED}{:x}\r\n", body.len()).as_bytes()).unwrap();
    for client in [&mut known, &mut unknown] {
        write(client, &body).expect("the server reads on");
        let answer = client.answer().unwrap();
        assert_eq!((answer.status(), answer.closes()), (413, true));
        assert_eq!(client.end(), Ended::Said);
    }
    assert_eq!(site.metric(Slot::BodyTooLarge), 2);
}

#[test]
fn lingering_close_ends_in_time_over_tls_though_a_client_never_stops() {
    let limits = config::Limits { body_size: Size(1000), ..limits() };
    let site = secured(&limits, fake::plugin(mirror));
    let mut client = connect(&site);
    client.stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let start = Instant::now();
    write(&mut client, upload("/", 1 << 40).as_bytes()).unwrap();
    let part = vec![b'x'; RECORD];
    while write(&mut client, &part).is_ok() {
        assert!(start.elapsed() < PATIENCE, "it goes on");
    }
    site.until_open(0);
}

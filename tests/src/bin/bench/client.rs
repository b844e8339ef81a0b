//! Keeps a server busy for a while and says how many requests it answered: wrk, or a client of our own where wrk is absent.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use baton_tests::artifacts;
use baton_tests::http::Parser;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CONNECTIONS: usize = 64;

pub const BROWSER: [(&str, &str); 10] = [
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
    ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    ("accept-language", "en-GB,en;q=0.5"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
    ("cookie", "session=0123456789abcdef0123456789abcdef; theme=dark"),
    ("upgrade-insecure-requests", "1"),
    ("sec-fetch-dest", "document"),
    ("sec-fetch-mode", "navigate"),
    ("sec-fetch-site", "none"),
    ("priority", "u=0, i"),
];

pub fn has_wrk() -> bool {
    // wrk prints its version and exits with 1.
    Command::new("wrk").arg("-v").output().is_ok()
}

/// Requests answered in `seconds` over 64 connections. Panics at any that was not answered by 200: a server that fails fast
/// is not a fast one.
pub fn saturate(addr: SocketAddr, headers: &[(&str, &str)], seconds: u64, core: Option<usize>) -> u64 {
    if has_wrk() { with_wrk(addr, headers, seconds, core) } else { with_own(addr, headers, seconds, core) }
}

fn with_wrk(addr: SocketAddr, headers: &[(&str, &str)], seconds: u64, core: Option<usize>) -> u64 {
    let mut command = Command::new(artifacts::own_binary("tether"));
    if let Some(core) = core {
        command.args(["--core", &core.to_string()]);
    }
    command.args(["wrk", "-t1", &format!("-c{CONNECTIONS}"), &format!("-d{seconds}s")]);
    for (name, value) in headers {
        command.args(["-H", &format!("{name}: {value}")]);
    }
    command.arg(format!("http://{addr}/"));
    let output = command.output().expect("failed to run wrk");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "wrk failed: {text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "requests failed: {text}");
    let line = text.lines().find(|line| line.contains(" requests in ")).expect("wrk says how many requests it made");
    line.split_whitespace().next().and_then(|count| count.parse().ok()).expect("a number of requests")
}

fn with_own(addr: SocketAddr, headers: &[(&str, &str)], seconds: u64, core: Option<usize>) -> u64 {
    let mut request = format!("GET / HTTP/1.1\r\nhost: {addr}\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += "\r\n";
    let until = Instant::now() + Duration::from_secs(seconds);
    // A thread of its own, so that only this one is bound to the core.
    let client = move || {
        if let Some(core) = core {
            let mut set = CpuSet::new();
            set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)).expect("failed to take a core");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let clients: Vec<_> =
                (0..CONNECTIONS).map(|_| tokio::spawn(one_connection(addr, request.clone(), until))).collect();
            let mut total = 0;
            for client in clients {
                total += client.await.expect("a client failed").expect("a connection broke");
            }
            total
        })
    };
    std::thread::spawn(client).join().expect("the client failed")
}

async fn one_connection(addr: SocketAddr, request: String, until: Instant) -> std::io::Result<u64> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let (mut parser, mut bytes, mut count) = (Parser::new(), [0; 4096], 0);
    while Instant::now() < until {
        stream.write_all(request.as_bytes()).await?;
        loop {
            if let Some(response) = parser.take_response().map_err(std::io::Error::other)? {
                assert_eq!(response.status, 200);
                break;
            }
            let read = stream.read(&mut bytes).await?;
            assert!(read > 0, "the server closed");
            parser.push(&bytes[..read]);
        }
        count += 1;
    }
    Ok(count)
}

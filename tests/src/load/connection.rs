//! One connection of the load client: write, wait for whole responses, watch while idle. Says exactly how it ended.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::tally::Fault;
use crate::http::{Parser, Response};

pub(super) struct Connection {
    stream: TcpStream,
    parser: Parser,
}

/// A fault with what was seen.
pub(super) type Failed = (Fault, String);

/// How an idle time passed.
pub(super) enum Idle {
    Quiet,
    /// The server closed or reset the connection.
    Closed,
    /// The server sent bytes that nobody asked for.
    Noise(String),
}

impl Connection {
    pub(super) async fn open(target: std::net::SocketAddr, limit: Duration) -> Result<Connection, Failed> {
        let stream = match timeout(limit, TcpStream::connect(target)).await {
            Err(_) => return Err((Fault::Timeout, "connect".into())),
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
                return Err((Fault::Refused, error.to_string()));
            }
            Ok(Err(error)) => return Err((Fault::Connect, error.to_string())),
            Ok(Ok(stream)) => stream,
        };
        stream.set_nodelay(true).map_err(|error| (Fault::Connect, error.to_string()))?;
        Ok(Connection { stream, parser: Parser::new() })
    }

    pub(super) async fn write(&mut self, bytes: &[u8], limit: Duration) -> Result<(), Failed> {
        match timeout(limit, self.stream.write_all(bytes)).await {
            Err(_) => Err((Fault::Timeout, "write".into())),
            Ok(Err(error)) => Err((self.broken(), format!("write: {error}"))),
            Ok(Ok(())) => Ok(()),
        }
    }

    /// Writes `bytes` in pieces: each but the last ends at a byte named in `cuts`, and a pause follows it.
    pub(super) async fn write_cut(
        &mut self,
        bytes: &[u8],
        cuts: &[(usize, Duration)],
        limit: Duration,
    ) -> Result<(), Failed> {
        let mut written = 0;
        for (end, pause) in cuts {
            self.write(&bytes[written..*end], limit).await?;
            written = *end;
            sleep(*pause).await;
        }
        self.write(&bytes[written..], limit).await
    }

    pub(super) async fn receive(&mut self, limit: Duration) -> Result<Response, Failed> {
        match timeout(limit, self.receive_whole()).await {
            Err(_) => Err((Fault::Timeout, format!("no whole response within {limit:?}"))),
            Ok(result) => result,
        }
    }

    async fn receive_whole(&mut self) -> Result<Response, Failed> {
        let mut bytes = [0; 16 * 1024];
        loop {
            if let Some(response) = self.parser.take_response().map_err(|text| (Fault::Wrong, text))? {
                return Ok(response);
            }
            match self.stream.read(&mut bytes).await {
                Ok(0) if self.parser.is_mid_response() => {
                    return self.parser.end().ok_or_else(|| (Fault::Truncated, "closed in a response".into()));
                }
                Ok(0) => return Err((Fault::Eof, "closed before a response".into())),
                Ok(count) => self.parser.push(&bytes[..count]),
                Err(error) => return Err((self.broken(), format!("read: {error}"))),
            }
        }
    }

    /// The fault of a broken connection, by what had come before.
    fn broken(&self) -> Fault {
        if self.parser.is_mid_response() { Fault::Truncated } else { Fault::Reset }
    }

    /// Nothing may have come behind the last response.
    pub(super) fn expect_no_more(&self) -> Result<(), Failed> {
        if self.parser.is_mid_response() {
            return Err((Fault::Wrong, "bytes behind the last response".into()));
        }
        Ok(())
    }

    /// Watches the connection for `time`, as a pool watches its idle ones.
    pub(super) async fn idle(&mut self, time: Duration) -> Idle {
        let mut bytes = [0; 1024];
        tokio::select! {
            biased;
            read = self.stream.read(&mut bytes) => match read {
                Ok(0) | Err(_) => Idle::Closed,
                Ok(count) => Idle::Noise(String::from_utf8_lossy(&bytes[..count]).into_owned()),
            },
            () = sleep(time) => Idle::Quiet,
        }
    }

    /// The server said that it closes: it must, without another byte.
    pub(super) async fn expect_close(&mut self, limit: Duration) -> Result<(), Failed> {
        self.expect_no_more()?;
        let mut bytes = [0; 1024];
        match timeout(limit, self.stream.read(&mut bytes)).await {
            Err(_) => Err((Fault::Timeout, format!("announced close did not come within {limit:?}"))),
            Ok(Ok(0)) => Ok(()),
            Ok(Ok(_)) => Err((Fault::Wrong, "bytes behind a response that announced the close".into())),
            Ok(Err(error)) => Err((Fault::Wrong, format!("announced close came as an error: {error}"))),
        }
    }
}

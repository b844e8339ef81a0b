//! One connection of the load client, in clear or over TLS: write, wait for whole responses, watch while idle. Says exactly how
//! it ended; over TLS, an end that the server has not told of (close_notify) is an error.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::tally::Fault;
use crate::http::{Parser, Response};
use crate::tls;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

pub(super) struct Connection {
    stream: Box<dyn Stream>,
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
    pub(super) async fn open(
        target: std::net::SocketAddr,
        tls: Option<&tls::Client>,
        limit: Duration,
    ) -> Result<Connection, Failed> {
        let stream = match timeout(limit, TcpStream::connect(target)).await {
            Err(_) => return Err((Fault::Timeout, "connect".into())),
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
                return Err((Fault::Refused, error.to_string()));
            }
            Ok(Err(error)) => return Err((Fault::Connect, error.to_string())),
            Ok(Ok(stream)) => stream,
        };
        stream.set_nodelay(true).map_err(|error| (Fault::Connect, error.to_string()))?;
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(stream),
            Some(client) => {
                let connector = TlsConnector::from(client.config());
                match timeout(limit, connector.connect(client.name(), stream)).await {
                    Err(_) => return Err((Fault::Timeout, "handshake".into())),
                    Ok(Err(error)) => return Err((Fault::Connect, format!("handshake: {error}"))),
                    Ok(Ok(stream)) => Box::new(stream),
                }
            }
        };
        Ok(Connection { stream, parser: Parser::new() })
    }

    pub(super) async fn write(&mut self, bytes: &[u8], limit: Duration) -> Result<(), Failed> {
        let written = async {
            self.stream.write_all(bytes).await?;
            // A session may hold back what it was given.
            self.stream.flush().await
        };
        match timeout(limit, written).await {
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

    /// Closes the sending side (over TLS with close_notify); what the server sends is still read.
    pub(super) async fn close_sending_side(&mut self, limit: Duration) -> Result<(), Failed> {
        match timeout(limit, self.stream.shutdown()).await {
            Err(_) => Err((Fault::Timeout, "close of the sending side".into())),
            Ok(Err(error)) => Err((self.broken(), format!("close of the sending side: {error}"))),
            Ok(Ok(())) => Ok(()),
        }
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

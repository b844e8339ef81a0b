//! Talks to a running master over its admin socket. Owns the connection and what can go wrong with it; what is asked, and
//! what the answers mean, is for `cli`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use crate::report::{Generation, OpId, Report, Status, Verb};
use crate::sys::private_dir;

/// Bytes of an answer.
const ANSWER_LIMIT: usize = 16 * 1024 * 1024;
/// A master answers what needs no work within this.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("failed to find a running master at {}: {source}", socket.display())]
    NoMaster { socket: PathBuf, source: io::Error },
    #[error("failed to connect to {}: {source}", socket.display())]
    Connect { socket: PathBuf, source: io::Error },
    #[error("failed to trust the server at {}: {why}", socket.display())]
    Untrusted { socket: PathBuf, why: String },
    #[error("failed to get an answer: the master ended the connection ({0})")]
    Ended(hyper::Error),
    #[error("failed to get an answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    #[error("failed to get an answer at {} within {}", socket.display(), humantime::format_duration(*.after))]
    NoAnswer { socket: PathBuf, after: Duration },
    #[error("failed to understand the answer ({status}): {text}")]
    Answer { status: StatusCode, text: String },
    /// The master says why.
    #[error("{error}\nhint: {hint}")]
    Refused { error: String, hint: String },
}

/// A master by its socket; each request is a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// What is asked of one operation.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Ask {
    /// Of a reload.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_empty: bool,
    /// Of a cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// Of a reload.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// Of whatever starts another generation.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cold: bool,
    /// Of a rollback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Generation>,
    /// Of a rollback.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub with_config: bool,
}

#[derive(Deserialize)]
struct Problem {
    error: String,
    hint: String,
}

/// How people and Prometheus come in over TCP.
#[derive(Debug, Deserialize, Serialize)]
pub struct Link {
    /// The admin page's address with the token.
    pub url: String,
    /// The file with the token that reads `/metrics` and nothing else. Absent from an older master.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics_token_file: Option<String>,
}

impl Client {
    pub fn new(socket: &Path) -> Client {
        Client { socket: socket.into() }
    }

    pub async fn status(&self) -> Result<Status, ClientError> {
        self.ask(Method::GET, "/debug/admin/status", Bytes::new(), Some(PATIENCE)).await
    }

    pub async fn operation(&self, id: OpId) -> Result<Report, ClientError> {
        self.ask(Method::GET, &format!("/debug/admin/ops/{id}"), Bytes::new(), Some(PATIENCE)).await
    }

    pub async fn link(&self) -> Result<Link, ClientError> {
        self.ask(Method::GET, "/debug/admin/link", Bytes::new(), Some(PATIENCE)).await
    }

    /// Replaces the tokens, and returns the new link.
    pub async fn rotate(&self) -> Result<Link, ClientError> {
        self.ask(Method::POST, "/debug/admin/rotate", Bytes::new(), Some(PATIENCE)).await
    }

    /// Answered when the operation has ended, or a shutdown has begun.
    pub async fn operate(&self, verb: Verb, ask: Ask, patience: Option<Duration>) -> Result<Report, ClientError> {
        // Fields of plain types: that cannot fail.
        let body = serde_json::to_vec(&ask).unwrap_or_default();
        self.ask(Method::POST, &format!("/debug/admin/{verb}"), body.into(), patience).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        patience: Option<Duration>,
    ) -> Result<T, ClientError> {
        let exchange = self.exchange(method, path, body);
        let (status, bytes) = match patience {
            None => exchange.await?,
            Some(patience) => {
                let late = |_| ClientError::NoAnswer { socket: self.socket.clone(), after: patience };
                tokio::time::timeout(patience, exchange).await.map_err(late)??
            }
        };
        // A report says itself how it ended, whatever the status code.
        serde_json::from_slice(&bytes).map_err(|_| match serde_json::from_slice(&bytes) {
            Ok(Problem { error, hint }) => ClientError::Refused { error, hint },
            Err(_) => ClientError::Answer { status, text: String::from_utf8_lossy(&bytes).trim().into() },
        })
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), ClientError> {
        let socket = self.socket.clone();
        let stream = UnixStream::connect(&socket).await.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoMaster { socket, source },
            _ => ClientError::Connect { socket, source },
        })?;
        check_peer(&self.socket, stream.peer_cred().map(|peer| peer.uid()))
            .map_err(|why| ClientError::Untrusted { socket: self.socket.clone(), why })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::Ended)?;
        // It ends with the sender; its error comes out at the sender too.
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "baton")
            .header(header::CONNECTION, "close")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| ClientError::Answer { status: StatusCode::BAD_REQUEST, text: error.to_string() })?;
        let response = sender.send_request(request).await.map_err(ClientError::Ended)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
        connection.abort();
        match body {
            Ok(body) => Ok((status, body.to_bytes())),
            Err(error) => Err(ClientError::Answer { status, text: error.to_string() }),
        }
    }
}

/// Whether the server behind `socket` may be told anything: it must run as root, as this user, or as the owner of the directory, if
/// no other user could have created that (as in /tmp).
fn check_peer(socket: &Path, peer: io::Result<u32>) -> Result<(), String> {
    let uid = peer.map_err(|error| format!("the user that it runs as cannot be found out: {error}"))?;
    let own = nix::unistd::geteuid();
    if uid == 0 || uid == own.as_raw() {
        return Ok(());
    }
    let stranger = format!("it runs as uid {uid}, which is neither root nor this user ({own})");
    let hint = format!("to talk to it become that user, as by `sudo -u '#{uid}' baton ...`");
    match private_dir::owner_if_safe(socket.parent().unwrap_or(Path::new("."))) {
        Ok(owner) if owner == uid => Ok(()),
        Ok(owner) => Err(format!("{stranger} nor the owner of its directory ({owner}); {hint}")),
        Err(error) => Err(format!("{stranger}, and {error}; {hint}")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    /// Answers one connection with `answer`, as it stands.
    async fn against(answer: &'static str) -> Result<Report, ClientError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            let _ = stream.read(&mut head).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let result = Client::new(&path).operate(Verb::Reload, Ask::default(), Some(Duration::from_secs(5))).await;
        server.await.unwrap();
        result
    }

    #[tokio::test]
    async fn nobody_there_is_told_from_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert!(matches!(Client::new(&path).status().await, Err(ClientError::NoMaster { .. })));
        drop(UnixListener::bind(&path).unwrap());
        assert!(matches!(Client::new(&path).status().await, Err(ClientError::NoMaster { .. })), "a stale socket");
    }

    #[test]
    fn server_of_a_stranger_is_told_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run");
        std::fs::create_dir(&folder).unwrap();
        let check = |uid| check_peer(&folder.join("admin.sock"), Ok(uid));
        let own = nix::unistd::geteuid().as_raw();
        assert_eq!((check(0), check(own)), (Ok(()), Ok(())));
        assert!(check(65_533).unwrap_err().contains("runs as uid 65533"));
        assert!(check_peer(&folder, Err(io::ErrorKind::Other.into())).is_err());
        if own != 0 {
            return;
        }
        // Below /tmp anybody may have made the directory.
        std::os::unix::fs::chown(&folder, Some(65_533), None).unwrap();
        assert!(check(65_533).unwrap_err().contains("anybody may make one"));
        // Elsewhere root has given it to the user of a service.
        let dir = tempfile::tempdir_in("/run").unwrap();
        std::os::unix::fs::chown(dir.path(), Some(65_533), None).unwrap();
        let check = |uid| check_peer(&dir.path().join("admin.sock"), Ok(uid));
        assert_eq!(check(65_533), Ok(()));
        assert!(check(65_534).unwrap_err().contains("nor the owner of its directory"));
    }

    #[tokio::test]
    async fn a_report_counts_whatever_the_status_code() {
        let answer = "HTTP/1.1 409 Conflict\r\nconnection: close\r\n\r\n\
            {\"op\":12,\"verb\":\"reload\",\"result\":\"refused\",\"cause\":{\"by\":\"start\"},\"news\":1}";
        assert_eq!(against(answer).await.unwrap().op, OpId(12));
    }

    #[tokio::test]
    async fn what_the_master_says_is_passed_on_and_nonsense_is_an_error() {
        let answer = "HTTP/1.1 503 X\r\nconnection: close\r\n\r\n{\"error\":\"it has ended\",\"hint\":\"start it\"}";
        assert!(matches!(against(answer).await, Err(ClientError::Refused { error, .. }) if error == "it has ended"));
        let answer = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello";
        assert!(matches!(against(answer).await, Err(ClientError::Answer { .. })));
        assert!(matches!(against("").await, Err(ClientError::Ended(_))));
    }

    #[tokio::test]
    async fn a_master_that_hangs_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        let result = Client::new(&path).operate(Verb::Reload, Ask::default(), Some(Duration::from_millis(50))).await;
        assert!(matches!(result, Err(ClientError::NoAnswer { .. })));
    }
}

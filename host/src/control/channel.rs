//! The channel: typed messages over a SOCK_SEQPACKET pair. A broken message is an error value, and what to do about it is the
//! caller's decision.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{MAX_FDS, MAX_MESSAGE, ToChild, ToMaster};
use crate::sys::{readiness, seqpacket};

#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("failed to talk over the control channel: {0}")]
    Io(#[from] io::Error),
    #[error("failed to understand a control message: {0}")]
    Decode(String),
    #[error("failed to send a control message of {0} bytes: the limit is {MAX_MESSAGE}")]
    TooLong(usize),
    #[error("failed to receive a control message whole: it said {said} descriptors, {came} came")]
    Descriptors { said: usize, came: usize },
}

/// The master's end.
pub type MasterEnd = Channel<ToChild, ToMaster>;
/// The child's end.
pub type WorkerEnd = Channel<ToMaster, ToChild>;

/// One end: sends `S`, receives `R`.
#[derive(Debug)]
pub struct Channel<S, R> {
    socket: AsyncFd<OwnedFd>,
    direction: PhantomData<fn(S) -> R>,
}

/// What is on the wire: the message and how many descriptors come with it.
#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    #[serde(default)]
    fds: usize,
    message: T,
}

impl<S: Serialize, R: DeserializeOwned> Channel<S, R> {
    /// Takes over one end of [`seqpacket::pair`]. Within a tokio runtime.
    pub fn new(socket: OwnedFd) -> io::Result<Channel<S, R>> {
        Ok(Channel {
            socket: readiness::register(socket, Interest::READABLE | Interest::WRITABLE)?,
            direction: PhantomData,
        })
    }

    /// Sends one message; waits while the peer's queue is full.
    pub async fn send(&self, message: &S, fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        let bytes = encode(message, fds.len())?;
        loop {
            let mut guard = self.socket.writable().await?;
            if let Ok(sent) = guard.try_io(|socket| seqpacket::send(socket.as_fd(), &bytes, fds)) {
                return Ok(sent?);
            }
        }
    }

    /// Receives the next message with its descriptors; `None` at the peer's end. Safe to drop between polls.
    pub async fn recv(&self) -> Result<Option<(R, Vec<OwnedFd>)>, ChannelError> {
        match self.receive().await? {
            Some(Incoming { message, fds, .. }) => message.map(|message| Some((message, fds))),
            None => Ok(None),
        }
    }

    /// As [`recv`](Channel::recv), for a peer that is not trusted: its descriptors come also with a broken message, since where
    /// they are closed matters.
    pub async fn receive(&self) -> io::Result<Option<Incoming<R>>> {
        let mut buffer = vec![0; MAX_MESSAGE];
        loop {
            let mut guard = self.socket.readable().await?;
            let Ok(received) = guard.try_io(|socket| seqpacket::recv(socket.as_fd(), &mut buffer)) else { continue };
            return Ok(incoming(&buffer, received?));
        }
    }

    /// As [`receive`](Channel::receive); `None` also if there is no message.
    pub fn try_receive(&self) -> io::Result<Option<Incoming<R>>> {
        let mut buffer = vec![0; MAX_MESSAGE];
        match seqpacket::recv(self.as_fd(), &mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            received => Ok(incoming(&buffer, received?)),
        }
    }
}

/// A message as it came from a peer that is not trusted.
#[derive(Debug)]
pub struct Incoming<R> {
    pub message: Result<R, ChannelError>,
    pub fds: Vec<OwnedFd>,
    /// Its length in bytes.
    pub len: usize,
}

fn incoming<R: DeserializeOwned>(buffer: &[u8], received: seqpacket::Received) -> Option<Incoming<R>> {
    let seqpacket::Received { len, fds, truncated } = received;
    let message = match truncated {
        true => Err(ChannelError::Decode("it was cut short on the way".into())),
        false => decode(&buffer[..len], fds.len()),
    };
    (len > 0).then_some(Incoming { message, fds, len })
}

impl<S, R> AsFd for Channel<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

pub(super) fn encode<S: Serialize>(message: &S, fds: usize) -> Result<Vec<u8>, ChannelError> {
    debug_assert!(fds <= MAX_FDS);
    let bytes =
        serde_json::to_vec(&Envelope { fds, message }).map_err(|error| ChannelError::Decode(error.to_string()))?;
    if bytes.len() > MAX_MESSAGE {
        return Err(ChannelError::TooLong(bytes.len()));
    }
    Ok(bytes)
}

/// The message in `bytes`, with which so many descriptors came.
pub(super) fn decode<R: DeserializeOwned>(bytes: &[u8], came: usize) -> Result<R, ChannelError> {
    // Of what it leaves out, serde_json would not look at the encoding.
    let text = std::str::from_utf8(bytes).map_err(|error| ChannelError::Decode(error.to_string()))?;
    let envelope: Envelope<R> = serde_json::from_str(text).map_err(|error| ChannelError::Decode(error.to_string()))?;
    if envelope.fds != came || came > MAX_FDS {
        return Err(ChannelError::Descriptors { said: envelope.fds, came });
    }
    Ok(envelope.message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::control::{ControlVerb, PROTOCOL};
    use crate::report::{DrainReport, Failure, Stage};

    fn any_to_master() -> impl Strategy<Value = ToMaster> {
        prop_oneof![
            any::<String>().prop_map(|version| ToMaster::Hello { protocols: PROTOCOL, version }),
            Just(ToMaster::Ready),
            (any::<String>(), any::<Option<String>>())
                .prop_map(|(error, hint)| ToMaster::Failed(Failure { hint, ..Failure::new(Stage::Load, error) })),
            any::<u64>().prop_map(|lost| ToMaster::Done(DrainReport { lost, ..DrainReport::default() })),
            any::<String>().prop_map(|plugin| ToMaster::Control { plugin, verb: ControlVerb::Reload }),
        ]
    }

    proptest! {
        #[test]
        fn every_message_comes_back_as_it_was(message in any_to_master()) {
            let bytes = encode(&message, 0).unwrap();
            let back = decode::<ToMaster>(&bytes, 0).unwrap();
            prop_assert_eq!(back, message);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<ToMaster>(&bytes, 0);
            let _ = decode::<ToChild>(&bytes, 0);
        }

        #[test]
        fn a_message_cut_anywhere_is_an_error(message in any_to_master(), at in any::<prop::sample::Index>()) {
            let bytes = encode(&message, 0).unwrap();
            let at = at.index(bytes.len());
            prop_assert!(decode::<ToMaster>(&bytes[..at], 0).is_err());
        }
    }

    #[test]
    fn unknown_fields_are_ignored_and_unknown_messages_told_apart_from_broken_ones() {
        let newer = br#"{"fds":0,"message":{"type":"go","fast":true},"more":1}"#;
        assert_eq!(decode::<ToChild>(newer, 0).unwrap(), ToChild::Go);
        let unknown = br#"{"fds":0,"message":{"type":"juggle"}}"#;
        assert_eq!(decode::<ToChild>(unknown, 0).unwrap(), ToChild::Unknown);
        assert_eq!(decode::<ToMaster>(unknown, 0).unwrap(), ToMaster::Unknown);
        for broken in [r#"{"fds":0,"message":{"type":"listener"}}"#, r#"{"fds":0,"message":{}}"#] {
            assert!(matches!(decode::<ToChild>(broken.as_bytes(), 0), Err(ChannelError::Decode(_))));
        }
    }

    #[test]
    fn a_wrong_number_of_descriptors_is_an_error() {
        let bytes = encode(&ToChild::Listener { id: 1 }, 1).unwrap();
        assert!(matches!(decode::<ToChild>(&bytes, 0), Err(ChannelError::Descriptors { said: 1, came: 0 })));
    }

    #[test]
    fn too_long_a_message_is_refused_before_it_is_sent() {
        let message = ToMaster::Hello { protocols: PROTOCOL, version: "x".repeat(MAX_MESSAGE) };
        assert!(matches!(encode(&message, 0), Err(ChannelError::TooLong(_))));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn messages_and_descriptors_cross() {
        let (left, right) = seqpacket::pair().unwrap();
        let master = MasterEnd::new(left).unwrap();
        let worker = WorkerEnd::new(right).unwrap();
        let (_reader, writer) = std::io::pipe().unwrap();
        master.send(&ToChild::Listener { id: 3 }, &[writer.as_fd()]).await.unwrap();
        let (message, fds) = worker.recv().await.unwrap().unwrap();
        assert_eq!((message, fds.len()), (ToChild::Listener { id: 3 }, 1));
        let hello = ToMaster::Hello { protocols: PROTOCOL, version: "1".into() };
        worker.send(&hello, &[]).await.unwrap();
        drop(worker);
        assert_eq!(master.recv().await.unwrap().unwrap().0, hello);
        assert!(master.recv().await.unwrap().is_none());
    }
}

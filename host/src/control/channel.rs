//! The channel: typed messages over a SOCK_SEQPACKET pair. A broken message is an error value, and what to do about it is the
//! caller's decision. A message that is too long for the pair crosses in sealed memory beside a short one that stands for it.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{MAX_FDS, MAX_LOAD, MAX_MESSAGE, ToChild, ToMaster};
use crate::sys::closing::ClosedElsewhere;
use crate::sys::{readiness, sealed, seqpacket};

#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("failed to talk over the control channel: {0}")]
    Io(#[from] io::Error),
    #[error("failed to understand a control message: {0}")]
    Decode(String),
    #[error("failed to send a control message of {bytes} bytes: the limit is {limit}")]
    TooLong { bytes: usize, limit: usize },
    #[error("failed to receive a control message whole: it said {said} descriptors, {came} came")]
    Descriptors { said: usize, came: usize },
}

/// What crosses, by its direction.
pub trait Message: Serialize + DeserializeOwned {
    /// Bytes of one. What is longer than [`MAX_MESSAGE`] crosses in sealed memory.
    const LIMIT: usize;
}

/// The configuration of a set may be long.
impl Message for ToChild {
    const LIMIT: usize = MAX_LOAD;
}

/// A child is not trusted with the master's memory.
impl Message for ToMaster {
    const LIMIT: usize = MAX_MESSAGE;
}

/// The master's end.
pub type MasterEnd = Channel<ToChild, ToMaster>;
/// The child's end.
pub type WorkerEnd = Channel<ToMaster, ToChild>;

/// One end: sends `S`, receives `R`.
#[derive(Debug)]
pub struct Channel<S, R> {
    /// A peer that is not trusted decides what lies in it unread.
    socket: AsyncFd<ClosedElsewhere>,
    direction: PhantomData<fn(S) -> R>,
}

/// What is on the wire: the message and how many descriptors come with it.
#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    #[serde(default)]
    fds: usize,
    /// The length of a message that is in sealed memory: the last of the descriptors.
    #[serde(skip_serializing_if = "Option::is_none")]
    sealed: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<T>,
}

/// A message as it is sent.
#[derive(Debug)]
pub(super) struct Encoded {
    pub bytes: Vec<u8>,
    pub sealed: Option<OwnedFd>,
}

impl<S: Message, R: Message> Channel<S, R> {
    /// Takes over one end of [`seqpacket::pair`]. Within a tokio runtime.
    pub fn new(socket: OwnedFd) -> io::Result<Channel<S, R>> {
        Ok(Channel {
            socket: readiness::register_closed_elsewhere(socket, Interest::READABLE | Interest::WRITABLE)?,
            direction: PhantomData,
        })
    }

    /// Sends one message; waits while the peer's queue is full.
    pub async fn send(&self, message: &S, fds: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        let Encoded { bytes, sealed } = encode(message, fds.len())?;
        let fds: Vec<_> = fds.iter().copied().chain(sealed.as_ref().map(AsFd::as_fd)).collect();
        loop {
            let mut guard = self.socket.writable().await?;
            if let Ok(sent) = guard.try_io(|socket| seqpacket::send(socket.as_fd(), &bytes, &fds)) {
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

fn incoming<R: Message>(buffer: &[u8], received: seqpacket::Received) -> Option<Incoming<R>> {
    let seqpacket::Received { len, mut fds, truncated } = received;
    let message = match truncated {
        true => Err(ChannelError::Decode("it was cut short on the way".into())),
        false => decode(&buffer[..len], &mut fds),
    };
    // An empty message looks as the end does, but for its descriptors.
    (len > 0 || !fds.is_empty()).then_some(Incoming { message, fds, len })
}

impl<S, R> AsFd for Channel<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

/// Whether `message` fits into one, with its length if not.
pub fn check_length<S: Message>(message: &S) -> Result<(), ChannelError> {
    let bytes = serde_json::to_vec(message).map_err(broken)?.len();
    // What is around it is short.
    let limit = S::LIMIT - ENVELOPE;
    if bytes > limit { Err(ChannelError::TooLong { bytes, limit }) } else { Ok(()) }
}

/// Bytes that an envelope adds to a message, at most.
const ENVELOPE: usize = 64;

fn broken(error: serde_json::Error) -> ChannelError {
    ChannelError::Decode(error.to_string())
}

pub(super) fn encode<S: Message>(message: &S, fds: usize) -> Result<Encoded, ChannelError> {
    debug_assert!(fds <= MAX_FDS);
    let bytes = serde_json::to_vec(&Envelope { fds, sealed: None, message: Some(message) }).map_err(broken)?;
    if bytes.len() <= MAX_MESSAGE {
        return Ok(Encoded { bytes, sealed: None });
    }
    let text = serde_json::to_vec(message).map_err(broken)?;
    if text.len() > S::LIMIT || S::LIMIT <= MAX_MESSAGE {
        return Err(ChannelError::TooLong { bytes: text.len(), limit: S::LIMIT });
    }
    let sealed = sealed::seal(c"baton-message", &text)?;
    let short = Envelope::<&S> { fds: fds + 1, sealed: Some(text.len()), message: None };
    Ok(Encoded { bytes: serde_json::to_vec(&short).map_err(broken)?, sealed: Some(sealed) })
}

/// Returns the message in `bytes`, with which `fds` came. The memory of a long one is taken out of these.
pub(super) fn decode<R: Message>(bytes: &[u8], fds: &mut Vec<OwnedFd>) -> Result<R, ChannelError> {
    // Of what it leaves out, serde_json would not look at the encoding.
    let text = std::str::from_utf8(bytes).map_err(|error| ChannelError::Decode(error.to_string()))?;
    let envelope: Envelope<R> = serde_json::from_str(text).map_err(broken)?;
    if envelope.fds != fds.len() || fds.len() > MAX_FDS {
        return Err(ChannelError::Descriptors { said: envelope.fds, came: fds.len() });
    }
    match (envelope.message, envelope.sealed) {
        (Some(message), None) => Ok(message),
        (None, Some(length)) if length <= R::LIMIT && R::LIMIT > MAX_MESSAGE => {
            let memory = fds.pop().ok_or_else(|| ChannelError::Decode("its memory did not come".into()))?;
            let text = sealed::open(memory, length)
                .map_err(|error| ChannelError::Decode(format!("its memory cannot be read: {error}")))?;
            serde_json::from_slice(&text).map_err(broken)
        }
        (None, Some(length)) => Err(ChannelError::Decode(format!("it has {length} bytes: the limit is {}", R::LIMIT))),
        _ => Err(ChannelError::Decode("it holds no message, or two".into())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;
    use crate::control::{ControlVerb, LoadSet, PROTOCOL, PluginFile};
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
            let bytes = encode(&message, 0).unwrap().bytes;
            let back = decode::<ToMaster>(&bytes, &mut Vec::new()).unwrap();
            prop_assert_eq!(back, message);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<ToMaster>(&bytes, &mut Vec::new());
            let _ = decode::<ToChild>(&bytes, &mut Vec::new());
        }

        #[test]
        fn a_message_cut_anywhere_is_an_error(message in any_to_master(), at in any::<prop::sample::Index>()) {
            let bytes = encode(&message, 0).unwrap().bytes;
            let at = at.index(bytes.len());
            prop_assert!(decode::<ToMaster>(&bytes[..at], &mut Vec::new()).is_err());
        }
    }

    #[test]
    fn unknown_fields_are_ignored_and_unknown_messages_told_apart_from_broken_ones() {
        let newer = br#"{"fds":0,"message":{"type":"go","fast":true},"more":1}"#;
        assert_eq!(decode::<ToChild>(newer, &mut Vec::new()).unwrap(), ToChild::Go);
        let unknown = br#"{"fds":0,"message":{"type":"juggle"}}"#;
        assert_eq!(decode::<ToChild>(unknown, &mut Vec::new()).unwrap(), ToChild::Unknown);
        assert_eq!(decode::<ToMaster>(unknown, &mut Vec::new()).unwrap(), ToMaster::Unknown);
        for broken in [r#"{"fds":0,"message":{"type":"listener"}}"#, r#"{"fds":0,"message":{}}"#] {
            assert!(matches!(decode::<ToChild>(broken.as_bytes(), &mut Vec::new()), Err(ChannelError::Decode(_))));
        }
    }

    #[test]
    fn a_wrong_number_of_descriptors_is_an_error() {
        let bytes = encode(&ToChild::Listener { id: 1 }, 1).unwrap().bytes;
        assert!(matches!(
            decode::<ToChild>(&bytes, &mut Vec::new()),
            Err(ChannelError::Descriptors { said: 1, came: 0 })
        ));
    }

    #[test]
    fn too_long_a_message_is_refused_before_it_is_sent() {
        let message = ToMaster::Hello { protocols: PROTOCOL, version: "x".repeat(MAX_MESSAGE) };
        assert!(matches!(encode(&message, 0), Err(ChannelError::TooLong { .. })));
        assert!(matches!(check_length(&message), Err(ChannelError::TooLong { .. })));
        let longer = load(MAX_LOAD);
        let Err(ChannelError::TooLong { bytes, limit }) = encode(&longer, 1) else { panic!("it is too long") };
        assert!(bytes > limit && limit == MAX_LOAD);
    }

    /// LOAD with a plugin's configuration of so many bytes.
    fn load(bytes: usize) -> ToChild {
        let plugin = PluginFile {
            name: "a".into(),
            path: "/a".into(),
            mount: "/".into(),
            config: serde_json::json!({ "text": "x".repeat(bytes) }),
            data_dir: "/d".into(),
            workers: 0,
            allow_control: true,
        };
        let set =
            LoadSet { config: Config::default(), plugins: vec![plugin], listeners: Vec::new(), states: Vec::new() };
        ToChild::Load(Box::new(set))
    }

    #[tokio::test(flavor = "current_thread")]
    async fn message_too_long_for_the_pair_crosses_in_sealed_memory() {
        let (left, right) = seqpacket::pair().unwrap();
        let (master, worker) = (MasterEnd::new(left).unwrap(), WorkerEnd::new(right).unwrap());
        for bytes in [10, MAX_MESSAGE - 1000, MAX_MESSAGE, 3 << 20] {
            let message = load(bytes);
            let (reader, writer) = std::io::pipe().unwrap();
            master.send(&message, &[writer.as_fd(), reader.as_fd()]).await.unwrap();
            let (came, fds) = worker.recv().await.unwrap().unwrap();
            assert!(came == message && fds.len() == 2, "{bytes}");
        }
    }

    #[test]
    fn sealed_message_that_lies_or_comes_from_a_child_is_an_error() {
        let Encoded { bytes, sealed } = encode(&load(MAX_MESSAGE), 0).unwrap();
        let opened = |bytes: &[u8], mut fds: Vec<OwnedFd>| {
            let message = decode::<ToChild>(bytes, &mut fds);
            assert!(message.is_err() || fds.is_empty(), "the memory is not the message's");
            message
        };
        let memory = || sealed.as_ref().unwrap().try_clone().unwrap();
        assert!(opened(&bytes, vec![memory()]).is_ok());
        let error = |text: &str, fds| opened(text.as_bytes(), fds).unwrap_err();
        for text in [
            r#"{"fds":1,"sealed":10}"#,
            r#"{"fds":1,"sealed":99999999999}"#,
            r#"{"fds":1,"sealed":10,"message":{"type":"go"}}"#,
            r#"{"fds":1}"#,
        ] {
            assert!(matches!(error(text, vec![memory()]), ChannelError::Decode(_)), "{text}");
        }
        assert!(matches!(error(r#"{"fds":0,"sealed":10}"#, Vec::new()), ChannelError::Decode(_)));
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(matches!(opened(&bytes, vec![reader.into()]), Err(ChannelError::Decode(_))));
        // The master opens no memory of a child's.
        let text = serde_json::to_vec(&ToMaster::Ready).unwrap();
        let lent = sealed::seal(c"t", &text).unwrap();
        let short = format!(r#"{{"fds":1,"sealed":{}}}"#, text.len());
        assert!(matches!(decode::<ToMaster>(short.as_bytes(), &mut vec![lent]), Err(ChannelError::Decode(_))));
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

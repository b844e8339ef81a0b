//! What two children say to each other when connections move: a few fixed layouts, little endian, versioned at HELLO.
//!
//! The descriptors of an OFFER travel with it (SCM_RIGHTS, in the order of its entries). Bytes that the old child has read
//! ahead of what it served are carried behind the entries. Decoding never panics; every length is checked before it is used.

use bytes::Bytes;

/// Revision of these layouts.
pub const VERSION: u8 = 2;
/// Most connections in one OFFER: SCM_MAX_FD of the kernel.
pub const MAX_CONNECTIONS: usize = 253;
/// Longest message. The kernel's default send buffer takes a little more than twice as much.
pub const MAX_MESSAGE: usize = 96 * 1024;
/// Most bytes carried for one connection; one that has read more ahead stays where it is until its request is answered.
pub const MAX_CARRIED: usize = 32 * 1024;

const HELLO: u8 = 1;
const OFFER: u8 = 2;
const ACK: u8 = 3;
const NAK: u8 = 4;
const FIN: u8 = 5;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// First, from both. Another version: nothing is handed over.
    Hello { version: u8 },
    /// The old child lends these; its own copies stay open until the ACK.
    Offer { batch: u32, entries: Vec<Entry> },
    /// The new child owns the batch. Sent before the first byte of any of them is read.
    Ack { batch: u32 },
    /// The new child has no room; it has closed what came.
    Nak { batch: u32 },
    /// Nothing more comes.
    Fin,
}

/// One connection, as it moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The listener that accepted it, by the master's number.
    pub listener: u32,
    /// Whether it has served a request: then it is known to speak HTTP/1.
    pub http1: bool,
    /// The client once sent requests ahead of their answers.
    pub pipelined: bool,
    /// How long ago the head began that lies in `carried`, in milliseconds; 0 if none did.
    pub head_ms: u32,
    /// For how long nothing has moved, in milliseconds.
    pub idle_ms: u32,
    /// Read ahead and not served.
    pub carried: Bytes,
}

/// What an entry takes in a message, without its bytes.
const ENTRY: usize = 4 + 1 + 4 + 4 + 4;
/// What an OFFER takes without its entries.
const OFFER_HEAD: usize = 1 + 4 + 2;

const FLAG_HTTP1: u8 = 1;
const FLAG_PIPELINED: u8 = 2;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("failed to read a handover message: it is cut short")]
    Short,
    #[error("failed to read a handover message of unknown kind {0}")]
    Unknown(u8),
    #[error("failed to read a handover message: {0} bytes are left over")]
    Trailing(usize),
    #[error("failed to read a handover message: it exceeds a limit")]
    Limit,
}

impl Entry {
    /// What it takes in an OFFER.
    pub fn len(&self) -> usize {
        ENTRY + self.carried.len()
    }
}

/// Whether an entry fits beside others that take `used` bytes.
pub fn fits(used: usize, entries: usize, entry: &Entry) -> bool {
    entries < MAX_CONNECTIONS && OFFER_HEAD + used + entry.len() <= MAX_MESSAGE
}

impl Message {
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Message::Hello { version } => vec![HELLO, *version],
            Message::Ack { batch } => numbered(ACK, *batch),
            Message::Nak { batch } => numbered(NAK, *batch),
            Message::Fin => vec![FIN],
            Message::Offer { batch, entries } => {
                let mut out = numbered(OFFER, *batch);
                out.extend((entries.len() as u16).to_le_bytes());
                for entry in entries {
                    let flags = (u8::from(entry.http1) * FLAG_HTTP1) | (u8::from(entry.pipelined) * FLAG_PIPELINED);
                    out.extend(entry.listener.to_le_bytes());
                    out.push(flags);
                    out.extend(entry.head_ms.to_le_bytes());
                    out.extend(entry.idle_ms.to_le_bytes());
                    out.extend((entry.carried.len() as u32).to_le_bytes());
                }
                for entry in entries {
                    out.extend_from_slice(&entry.carried);
                }
                out
            }
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Message, WireError> {
        let mut reader = Reader(bytes);
        let message = match reader.u8()? {
            HELLO => Message::Hello { version: reader.u8()? },
            ACK => Message::Ack { batch: reader.u32()? },
            NAK => Message::Nak { batch: reader.u32()? },
            FIN => Message::Fin,
            OFFER => Message::Offer { batch: reader.u32()?, entries: entries(&mut reader)? },
            other => return Err(WireError::Unknown(other)),
        };
        match reader.0.len() {
            0 => Ok(message),
            left => Err(WireError::Trailing(left)),
        }
    }
}

fn entries(reader: &mut Reader) -> Result<Vec<Entry>, WireError> {
    let count = usize::from(reader.u16()?);
    if count > MAX_CONNECTIONS {
        return Err(WireError::Limit);
    }
    let mut entries = Vec::with_capacity(count);
    let mut lengths = Vec::with_capacity(count);
    for _ in 0..count {
        let listener = reader.u32()?;
        let flags = reader.u8()?;
        entries.push(Entry {
            listener,
            http1: flags & FLAG_HTTP1 != 0,
            pipelined: flags & FLAG_PIPELINED != 0,
            head_ms: reader.u32()?,
            idle_ms: reader.u32()?,
            carried: Bytes::new(),
        });
        lengths.push(reader.u32()? as usize);
    }
    for (entry, len) in entries.iter_mut().zip(lengths) {
        if len > MAX_CARRIED {
            return Err(WireError::Limit);
        }
        entry.carried = Bytes::copy_from_slice(reader.take(len)?);
    }
    Ok(entries)
}

fn numbered(kind: u8, batch: u32) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend(batch.to_le_bytes());
    out
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(WireError::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(WireError::Short)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, WireError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> impl Strategy<Value = Entry> {
        let carried = proptest::collection::vec(any::<u8>(), 0..200);
        let times = (any::<u32>(), any::<u32>());
        (any::<u32>(), any::<bool>(), any::<bool>(), times, carried).prop_map(
            |(listener, http1, pipelined, (head_ms, idle_ms), carried)| Entry {
                listener,
                http1,
                pipelined,
                head_ms,
                idle_ms,
                carried: carried.into(),
            },
        )
    }

    fn message() -> impl Strategy<Value = Message> {
        prop_oneof![
            any::<u8>().prop_map(|version| Message::Hello { version }),
            any::<u32>().prop_map(|batch| Message::Ack { batch }),
            any::<u32>().prop_map(|batch| Message::Nak { batch }),
            Just(Message::Fin),
            (any::<u32>(), proptest::collection::vec(entry(), 0..40))
                .prop_map(|(batch, entries)| Message::Offer { batch, entries }),
        ]
    }

    proptest! {
        #[test]
        fn every_message_comes_back_as_it_was(message in message()) {
            prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
        }

        #[test]
        fn a_message_cut_or_lengthened_is_an_error(message in message(), at in any::<prop::sample::Index>()) {
            let mut bytes = message.encode();
            let cut = at.index(bytes.len());
            prop_assert!(Message::decode(&bytes[..cut]).is_err());
            bytes.push(0);
            prop_assert!(Message::decode(&bytes).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Message::decode(&bytes);
        }
    }

    #[test]
    fn what_fits_is_within_the_limit() {
        let entry = Entry {
            listener: 1,
            http1: true,
            pipelined: false,
            head_ms: 0,
            idle_ms: 0,
            carried: Bytes::from(vec![0; 1000]),
        };
        let mut entries = Vec::new();
        let mut used = 0;
        while fits(used, entries.len(), &entry) {
            used += entry.len();
            entries.push(entry.clone());
        }
        let bytes = Message::Offer { batch: 1, entries }.encode();
        assert!(bytes.len() <= MAX_MESSAGE && bytes.len() + entry.len() > MAX_MESSAGE);
    }

    #[test]
    fn claims_beyond_the_limits_are_refused_before_memory_is_taken() {
        let mut many = numbered(OFFER, 1);
        many.extend(u16::MAX.to_le_bytes());
        assert_eq!(Message::decode(&many), Err(WireError::Limit));
        let mut long = numbered(OFFER, 1);
        long.extend(1_u16.to_le_bytes());
        long.extend([0; ENTRY - 4]);
        long.extend(u32::MAX.to_le_bytes());
        assert_eq!(Message::decode(&long), Err(WireError::Limit));
    }
}

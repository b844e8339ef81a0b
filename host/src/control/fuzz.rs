//! Fuzz target: a control message that is understood says the same after it was sent on, in either direction.

use std::collections::BTreeMap;
use std::fmt::Debug;

use serde::de::IgnoredAny;

use super::channel::{ChannelError, Encoded, Message, decode, encode};
use super::{MAX_MESSAGE, ToChild, ToMaster};

pub fn message(bytes: &[u8]) -> bool {
    if bytes.len() > MAX_MESSAGE {
        return false;
    }
    // Both, whatever the first says.
    holds::<ToMaster>(bytes) | holds::<ToChild>(bytes)
}

fn holds<T: Message + PartialEq + Debug>(bytes: &[u8]) -> bool {
    let Ok(message) = decode::<T>(bytes, &mut Vec::new()) else { return false };
    let text = std::str::from_utf8(bytes).expect("a message is UTF-8");
    let parts: BTreeMap<String, IgnoredAny> = serde_json::from_str(text).expect("a message is a JSON object");
    assert!(parts.contains_key("message"), "a message was made of nothing");
    match encode(&message, 0) {
        Ok(Encoded { bytes, sealed }) => {
            let again = decode::<T>(&bytes, &mut sealed.into_iter().collect()).expect("own messages are understood");
            assert_eq!(again, message);
        }
        // What is left out on the wire is filled in: the message may grow, by less than this.
        Err(ChannelError::TooLong { bytes: len, .. }) => assert!(bytes.len() * 100 > MAX_MESSAGE, "{len}"),
        Err(error) => panic!("{error}"),
    }
    true
}

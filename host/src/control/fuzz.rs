//! Fuzz target: a control message that is understood says the same after it was sent on, in either direction.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::channel::{ChannelError, decode, encode};
use super::{MAX_MESSAGE, ToChild, ToMaster};

pub fn message(bytes: &[u8]) -> bool {
    if bytes.len() > MAX_MESSAGE {
        return false;
    }
    // Both, whatever the first says.
    holds::<ToMaster>(bytes) | holds::<ToChild>(bytes)
}

fn holds<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> bool {
    let Ok((message, fds)) = decode::<T>(bytes, Vec::new()) else { return false };
    assert!(fds.is_empty(), "no descriptor came");
    let plain: serde_json::Value = serde_json::from_slice(bytes).expect("a message is JSON");
    assert!(plain.get("message").is_some(), "a message was made of nothing");
    match encode(&message, 0) {
        Ok(sent) => {
            let (again, _) = decode::<T>(&sent, Vec::new()).expect("own messages are understood");
            assert_eq!(again, message);
        }
        // What is left out on the wire is filled in: the message may grow, by less than this.
        Err(ChannelError::TooLong(len)) => assert!(bytes.len() * 100 > MAX_MESSAGE, "{len}"),
        Err(error) => panic!("{error}"),
    }
    true
}

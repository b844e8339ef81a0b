//! Listening sockets in systemd's keeping, so that they outlive a master that dies: under which name each lies there, and what
//! comes back must be to be the one that it is called.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::Key;
use crate::master::socket_file::{self, SocketFile};
use crate::sys::socket::Address;

/// Heads the names that are ours.
const PREFIX: &[u8] = b"baton ";
/// systemd ignores a longer name (sd_notify(3)).
const LONGEST: usize = 255;

/// A socket that an earlier master has left with systemd.
#[derive(Debug)]
pub struct Stored {
    pub socket: OwnedFd,
    pub address: Address,
    /// Of a Unix socket's file: it stays where it is until somebody claims the socket, or nobody does.
    pub file: Option<(u64, u64)>,
}

/// What a name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    pub key: Key,
    /// Device and inode of a Unix socket's file.
    pub file: Option<(u64, u64)>,
}

impl Label {
    pub fn of(key: &Key, file: Option<&SocketFile>) -> Label {
        Label { key: key.clone(), file: file.map(SocketFile::identity) }
    }

    /// Of the socket; nothing if it is systemd's own, or has no name that systemd takes.
    pub fn name(&self) -> Option<String> {
        let text = match (&self.key, self.file) {
            (Key::Fixed(address), _) => address.to_string().into_bytes(),
            (Key::Chosen { server, address, nth }, _) => format!("{address} {nth} {server}").into_bytes(),
            (Key::Unix(path), Some((dev, ino))) => [format!("unix {dev} {ino} ").as_bytes(), bytes(path)].concat(),
            (Key::Unix(_), None) | (Key::Systemd { .. }, _) => return None,
        };
        let name = escaped(&[PREFIX, &text].concat());
        (name.len() <= LONGEST).then_some(name)
    }

    /// What the name says, if it is one of ours.
    pub fn parse(name: &str) -> Option<Label> {
        let text = unescaped(name)?;
        let text = text.strip_prefix(PREFIX)?;
        if let Some(unix) = text.strip_prefix(b"unix ") {
            let mut parts = unix.splitn(3, |byte| *byte == b' ');
            let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse().ok();
            let file = Some((number()?, number()?));
            let path = PathBuf::from(OsString::from_vec(parts.next()?.to_vec()));
            return Some(Label { key: Key::Unix(path), file });
        }
        let text = std::str::from_utf8(text).ok()?;
        let key = match text.splitn(3, ' ').collect::<Vec<_>>()[..] {
            [address] => Key::Fixed(address.parse().ok()?),
            [address, nth, server] => {
                Key::Chosen { server: server.into(), address: address.parse().ok()?, nth: nth.parse().ok()? }
            }
            _ => return None,
        };
        Some(Label { key, file: None })
    }

    /// The socket under this name, which is bound to `address`, if it is what the name says and clients still reach it.
    pub fn accept(self, socket: OwnedFd, address: Address) -> Result<(Key, Stored), String> {
        let fits = match (&self.key, &address) {
            (Key::Fixed(named), Address::Ip(bound)) => named == bound,
            (Key::Chosen { address: named, .. }, Address::Ip(bound)) => same_but_for_port(named, bound),
            (Key::Unix(path), Address::Unix(bound)) => path == bound || is_beside(bytes(bound), bytes(path)),
            _ => false,
        };
        if !fits {
            return Err(format!("it is bound to {address}"));
        }
        let address = match &self.key {
            Key::Unix(path) if self.file != socket_file::identity(path).ok() => return Err("its file is gone".into()),
            Key::Unix(path) => Address::Unix(path.clone()),
            _ => address,
        };
        Ok((self.key, Stored { socket, address, file: self.file }))
    }
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

/// As version 0.1.0 bound a socket, which was renamed then: the kernel still says so.
fn is_beside(bound: &[u8], path: &[u8]) -> bool {
    let number = bound.strip_prefix(path).and_then(|rest| rest.strip_prefix(b"."));
    number.is_some_and(|number| number.iter().all(u8::is_ascii_digit))
}

fn same_but_for_port(one: &SocketAddr, other: &SocketAddr) -> bool {
    one.ip() == other.ip()
}

/// With what systemd's names may not hold (colons, control characters, other than ASCII) as `%XX`.
fn escaped(text: &[u8]) -> String {
    let letter = |byte: &u8| match byte {
        b'%' | b':' | 0..0x20 | 0x7f.. => format!("%{byte:02x}"),
        _ => char::from(*byte).to_string(),
    };
    text.iter().map(letter).collect()
}

fn unescaped(name: &str) -> Option<Vec<u8>> {
    let mut parts = name.split('%');
    let mut text = parts.next()?.as_bytes().to_vec();
    for part in parts {
        text.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        text.extend(&part.as_bytes()[2..]);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn chosen(server: &str, address: &str) -> Label {
        let key = Key::Chosen { server: server.into(), address: address.parse().unwrap(), nth: 2 };
        Label { key, file: None }
    }

    fn fixed(address: &str) -> Label {
        Label { key: Key::Fixed(address.parse().unwrap()), file: None }
    }

    fn unix(path: &str) -> Label {
        Label { key: Key::Unix(path.into()), file: Some((7, 8)) }
    }

    #[test]
    fn a_name_says_what_it_was_made_of_in_the_letters_that_systemd_takes() {
        for label in [
            fixed("127.0.0.1:80"),
            fixed("[2001:db8::1]:443"),
            fixed("[fe80::1%3]:80"),
            chosen("a", "[::1]:0"),
            unix("/run/x.sock"),
            unix("/run/with space:colon%percent\n\u{e4}"),
        ] {
            let name = label.name().unwrap();
            assert!(name.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b':'), "{name}");
            assert_eq!(Label::parse(&name), Some(label), "{name}");
        }
        assert_eq!(fixed("127.0.0.1:80").name().unwrap(), "baton 127.0.0.1%3a80");
    }

    #[test]
    fn what_is_not_ours_has_no_label_and_what_systemd_cannot_name_no_name() {
        for name in
            ["web", "", "stored", "baton", "baton ", "baton x", "baton 127.0.0.1%3a", "baton %", "baton unix 1 x y"]
        {
            assert_eq!(Label::parse(name), None, "{name}");
        }
        assert_eq!(unix(&format!("/{}", "\u{e4}".repeat(60))).name(), None);
        let systemd = Label { key: Key::Systemd { name: "web".into(), nth: 0 }, file: None };
        assert_eq!(systemd.name(), None);
    }

    #[test]
    fn a_socket_that_is_not_what_its_name_says_is_not_accepted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let accept = |label: Label| {
            label.accept(OwnedFd::from(listener.try_clone().unwrap()), Address::Ip(address)).map(|(key, _)| key)
        };
        let own = fixed(&address.to_string());
        assert_eq!(accept(own.clone()), Ok(own.key));
        assert!(accept(fixed("127.0.0.1:1")).unwrap_err().contains(&address.to_string()));
        assert!(accept(chosen("a", "127.0.0.1:0")).is_ok());
        assert!(accept(chosen("a", "127.0.0.2:0")).is_err());
        assert!(accept(unix("/run/x.sock")).is_err());
        assert!(
            is_beside(b"/run/x.77", b"/run/x") && !is_beside(b"/run/xy", b"/run/x") && !is_beside(b"/run/x", b"/run/x")
        );
    }
}

//! Addresses as people write them: what is one, what to write instead of what is none, and which two cannot both be listened on.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Parses `IP:PORT`. The error says what to write in place of what other servers take.
pub fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<SocketAddr>().map_err(|_| match written_for(text) {
        Some(instead) => format!("`{text}` is no address: {instead}"),
        None => format!("`{text}` is no address; write IP:PORT, such as 127.0.0.1:8080 or [::1]:8080"),
    })?;
    match address.ip() {
        IpAddr::V6(ip) if let Some(v4) = ip.to_ipv4_mapped() => Err(format!(
            "`{text}` is an IPv4 address in IPv6 form, and IPv6 sockets here take IPv6 alone; write {}",
            SocketAddr::new(v4.into(), address.port())
        )),
        _ => Ok(address),
    }
}

/// What to write in place of `text`, if it is known what was meant.
fn written_for(text: &str) -> Option<String> {
    const EVERY: &str = "for every address of this machine";
    let is_port = |port: &str| port.parse::<u16>().is_ok();
    if let Some((_, rest)) = text.split_once("://") {
        return Some(format!("leave out the scheme and the path, and write IP:PORT, not `{rest}` by name"));
    }
    if is_port(text) {
        return Some(format!("it is a port alone; write 127.0.0.1:{text}, or 0.0.0.0:{text} {EVERY}"));
    }
    if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        // With the last group taken for a port it may be one, too: then brackets are missing.
        return Some(format!("the port is missing; write {}", SocketAddr::new(ip, 8080)));
    }
    let (host, port) = text.rsplit_once(':')?;
    if !is_port(port) {
        return Some(format!("`{port}` is no port; write a number from 0 to 65535 behind the last `:`"));
    }
    match host {
        "" | "*" => Some(format!("write 0.0.0.0:{port} {EVERY}, and [::]:{port} beside it for IPv6")),
        "localhost" => {
            Some(format!("names are not looked up; write 127.0.0.1:{port}, and [::1]:{port} beside it for IPv6"))
        }
        _ if host.parse::<Ipv6Addr>().is_ok() => {
            Some(format!("an IPv6 address stands in brackets; write [{host}]:{port}"))
        }
        _ if host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')) => {
            Some(format!("names are not looked up; write the IP of this machine that `{host}` stands for"))
        }
        _ => None,
    }
}

/// Whether the kernel lets only one of both be listened on: they are equal, or one is every address of the same kind.
pub fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let covers = |one: SocketAddr, other: SocketAddr| one.ip() == other.ip() || one.ip().is_unspecified();
    one.port() == other.port()
        && one.port() != 0
        && one.is_ipv4() == other.is_ipv4()
        && (covers(one, other) || covers(other, one))
}

/// Why `other` cannot be listened on beside `one`.
pub fn collision(one: SocketAddr, other: SocketAddr) -> String {
    let (wide, narrow) = if one.ip().is_unspecified() { (one, other) } else { (other, one) };
    format!("{wide} takes the connections of {narrow} as well, and the kernel allows only one of them; leave out one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_address_is_refused_with_what_to_write() {
        for (text, says) in [
            ("localhost:8080", "write 127.0.0.1:8080, and [::1]:8080"),
            (":8080", "write 0.0.0.0:8080"),
            ("*:80", "write 0.0.0.0:80 for every address of this machine, and [::]:80"),
            ("8080", "write 127.0.0.1:8080, or 0.0.0.0:8080"),
            ("127.0.0.1", "the port is missing; write 127.0.0.1:8080"),
            ("::1", "the port is missing; write [::1]:8080"),
            ("[::1]", "the port is missing; write [::1]:8080"),
            ("fe80::1:2:3:4:5:6:80", "in brackets; write [fe80::1:2:3:4:5:6]:80"),
            ("www.example.com:80", "names are not looked up"),
            ("127.0.0.1:65536", "`65536` is no port"),
            ("127.0.0.1:http", "`http` is no port"),
            ("http://127.0.0.1:80/", "leave out the scheme"),
            ("a b", "write IP:PORT"),
            ("", "write IP:PORT"),
            ("[::ffff:127.0.0.1]:80", "write 127.0.0.1:80"),
            ("[::ffff:0.0.0.0]:80", "write 0.0.0.0:80"),
        ] {
            let error = parse_listen(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
        for text in ["127.0.0.1:0", "0.0.0.0:80", "[::]:80", "[::1]:8080", "[fe80::1%2]:80"] {
            assert!(parse_listen(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn addresses_collide_with_every_address_of_their_kind() {
        let both = |one: &str, other: &str| collide(one.parse().unwrap(), other.parse().unwrap());
        for (one, other, expected) in [
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("[::]:80", "[::1]:80", true),
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("0.0.0.0:80", "127.0.0.1:81", false),
            ("[::]:80", "0.0.0.0:80", false),
            ("[::]:80", "127.0.0.1:80", false),
            ("0.0.0.0:0", "127.0.0.1:0", false),
        ] {
            assert_eq!((both(one, other), both(other, one)), (expected, expected), "{one} {other}");
        }
    }
}

//! The status of a request that hyper's parser refuses. hyper has one for most faults (400), and one for every head that is too
//! large (431). Here a target that is too long gets its 414 (RFC 9112 3), and another major version of HTTP its 505.
//!
//! hyper writes its response before the error is known here, so `serve::io` holds that back.

/// The response that takes the place of `response`, which is hyper's: the same but for its status. `head` is what was read of
/// the request; `too_large` the limit of its size, if it is above that.
pub fn corrected(response: Vec<u8>, too_large: Option<usize>, head: &[u8]) -> Vec<u8> {
    let Some(end) = response.windows(2).position(|two| two == b"\r\n") else { return response };
    match status(too_large, head) {
        Some(status) => [b"HTTP/1.1 ", status.as_bytes(), &response[end..]].concat(),
        None => response,
    }
}

/// Another status than hyper's, if one fits better.
fn status(too_large: Option<usize>, head: &[u8]) -> Option<&'static str> {
    let head = head.trim_ascii_start();
    let line = head.iter().position(|byte| *byte == b'\n').map(|end| head[..end].trim_ascii_end());
    match (too_large, line) {
        (Some(limit), line) if line.is_none_or(|line| line.len() >= limit) => Some("414 URI Too Long"),
        (None, Some(line)) if names_other_version(line) => Some("505 HTTP Version Not Supported"),
        _ => None,
    }
}

/// Whether a request line ends with a major version other than 1.
fn names_other_version(line: &[u8]) -> bool {
    let version = line.rsplit(|byte| *byte == b' ').next().and_then(|last| last.strip_prefix(b"HTTP/"));
    matches!(version, Some([major, b'.', minor]) if *major != b'1' && major.is_ascii_digit() && minor.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_fits_what_is_wrong() {
        for (is_too_large, head, expected) in [
            (true, "GET /xxxx", Some("414 URI Too Long")),
            (true, "\r\nGET /xxxx", Some("414 URI Too Long")),
            (true, "GET /xxxxxxxxxxxxxxxxxxxx HTTP/1.1\r\nx: yyyy", Some("414 URI Too Long")),
            (true, "GET / HTTP/1.1\r\nx: yyyy", None),
            (false, "GET / HTTP/2.0\r\n\r\n", Some("505 HTTP Version Not Supported")),
            (false, "GET / HTTP/3.0\nx", Some("505 HTTP Version Not Supported")),
            (false, "GET / HTTP/1.7\r\n\r\n", None),
            (false, "GET / HTTP/2\r\n\r\n", None),
            (false, "GET / HTTP/x.0\r\n\r\n", None),
            (false, "BROKEN\r\n\r\n", None),
            (false, "", None),
        ] {
            assert_eq!(status(is_too_large.then_some(20), head.as_bytes()), expected, "{head:?}");
        }
    }

    #[test]
    fn fields_of_the_response_stay() {
        let response = b"HTTP/1.1 431 X\r\nconnection: close\r\n\r\n".to_vec();
        assert_eq!(
            corrected(response.clone(), Some(9), b"GET /x"),
            b"HTTP/1.1 414 URI Too Long\r\nconnection: close\r\n\r\n"
        );
        assert_eq!(corrected(response.clone(), Some(99), b"GET /x HTTP/1.1\r\n"), response);
    }
}

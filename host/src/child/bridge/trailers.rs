//! Trailers cross the boundary as lines, since they are rare and few.

use bytes::Bytes;
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};

pub(super) fn write_trailers(trailers: &HeaderMap) -> Bytes {
    let mut lines = Vec::new();
    for (name, value) in trailers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            lines.extend_from_slice(part);
        }
    }
    lines.into()
}

/// Trailers from lines `name: value\r\n`; nothing if any of them is not valid.
pub(super) fn read_trailers(lines: &[u8]) -> Option<HeaderMap> {
    let mut trailers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
        trailers.try_append(name, value).ok()?;
    }
    Some(trailers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailers_cross_as_lines() {
        let mut trailers = HeaderMap::new();
        trailers.append("x-sum", HeaderValue::from_static("abc"));
        trailers.append("x-sum", HeaderValue::from_static("def"));
        let lines = write_trailers(&trailers);
        assert_eq!(lines, "x-sum: abc\r\nx-sum: def\r\n");
        assert_eq!(read_trailers(&lines), Some(trailers));
        assert_eq!(read_trailers(b"no colon\r\n"), None);
        assert_eq!(read_trailers(b"bad name: x\r\n"), None);
    }
}

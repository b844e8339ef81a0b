//! Fuzz target: the head and the body of a request, through the tables of the ABI to a plugin and back as a response.

use std::sync::LazyLock;

use baton_plugin_api::testing::Plugin;
use baton_plugin_api::{Body, HeaderMap, HeaderName, HeaderValue, IntoResponse, Request, Response, StatusCode};
use bytes::Bytes;
use http::{Method, Uri};

/// Answers what it got. `x-method` and `x-target` are its own.
async fn echo(request: Request) -> Response {
    let own = |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("?"));
    let (method, target) = (own(request.method().as_str()), own(&request.uri().to_string()));
    for (name, value) in request.headers() {
        // One by one is the same as all at once.
        let all: Vec<_> = request.header_all(name).collect();
        assert!(all.contains(&value));
    }
    let mut headers = request.headers().clone();
    headers.insert("x-method", method);
    headers.insert("x-target", target);
    let status = match request.header("x-status").and_then(|status| status.parse().ok()) {
        Some(status) => StatusCode::from_u16(status).unwrap_or(StatusCode::OK),
        None => StatusCode::OK,
    };
    let mut response = (status, request.into_body()).into_response();
    *response.headers_mut() = headers;
    response
}

static PLUGIN: LazyLock<Plugin> = LazyLock::new(|| Plugin::start(echo));

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    fn short(&mut self) -> &'a [u8] {
        let len = self.byte();
        self.bytes(len.into())
    }
}

/// A request from an input: method, target, header fields, then the frames of the body, up to 5 kB each.
fn request(input: &mut Input<'_>) -> Option<(http::request::Parts, Vec<Bytes>, Option<HeaderMap>)> {
    let method = Method::from_bytes(input.short()).ok()?;
    let target = Uri::try_from(input.short()).ok()?;
    let mut request = http::Request::builder().method(method).uri(target).body(()).ok()?;
    for _ in 0..input.byte() % 80 {
        append(request.headers_mut(), input)?;
    }
    let frames = (0..input.byte() % 8)
        .map(|_| {
            let len = usize::from(u16::from_be_bytes([input.byte(), input.byte()]) % 5000);
            // Longer than the input is: repeated, so that large frames, which are lent, are tried too.
            let piece = input.bytes(len.min(64));
            Bytes::from(piece.iter().copied().cycle().take(if piece.is_empty() { 0 } else { len }).collect::<Vec<_>>())
        })
        .collect();
    let mut trailers = HeaderMap::new();
    for _ in 0..input.byte() % 4 {
        append(&mut trailers, input)?;
    }
    Some((request.into_parts().0, frames, (!trailers.is_empty()).then_some(trailers)))
}

fn append(headers: &mut HeaderMap, input: &mut Input<'_>) -> Option<()> {
    let name = HeaderName::from_bytes(input.short()).ok()?;
    let mut value = HeaderValue::from_bytes(input.short()).ok()?;
    value.set_sensitive(input.byte() & 1 == 1);
    // Trailers cross as text, which has no place for blanks around a value; heads may have no more than HTTP's parser leaves.
    let trimmed = value.as_bytes().trim_ascii() == value.as_bytes();
    trimmed.then(|| headers.append(name, value)).map(drop)
}

/// All that goes to the plugin comes back: what it got is what was sent, and what it answers arrives.
pub fn abi(bytes: &[u8]) -> bool {
    let mut input = Input(bytes);
    let Some((parts, frames, trailers)) = request(&mut input) else { return false };
    let upgrades = parts.headers.contains_key(http::header::UPGRADE) || parts.method == Method::CONNECT;
    if upgrades || parts.headers.contains_key("x-method") || parts.headers.contains_key("x-target") {
        return false;
    }
    let sent = parts.clone();
    let (whole, last) = (frames.concat(), trailers.clone());
    let body = match (frames.len(), &trailers) {
        (0, None) => Body::empty(),
        (1, None) => Body::full(frames[0].clone()),
        _ => Body::generate(async move |mut out| {
            for frame in frames {
                out.send(frame).await?;
            }
            if let Some(trailers) = trailers {
                out.trailers(trailers).await?;
            }
            Ok(())
        }),
    };
    let answer = PLUGIN.send(http::Request::from_parts(parts, body));
    let wanted = sent.headers.get("x-status").and_then(|status| status.to_str().ok()?.parse().ok());
    let wanted = wanted.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::OK);
    if wanted == StatusCode::SWITCHING_PROTOCOLS {
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR, "nobody has asked for another protocol");
        return false;
    }
    assert_eq!(answer.status(), wanted);
    let mut headers = answer.headers().clone();
    assert_eq!(headers.remove("x-method").expect("the handler adds it").as_bytes(), sent.method.as_str().as_bytes());
    headers.remove("x-target").expect("the handler adds it");
    assert_eq!(headers, sent.headers);
    for (name, value) in &sent.headers {
        let same =
            headers.get_all(name).iter().any(|came| came == value && came.is_sensitive() == value.is_sensitive());
        assert!(same, "{name} has lost its mark");
    }
    assert_eq!(answer.bytes()[..], whole[..]);
    assert_eq!(answer.trailers(), last.as_ref());
    true
}

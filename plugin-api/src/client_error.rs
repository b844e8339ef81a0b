//! Finds out whether an error of a handler is the client's: then the response is a 4xx, and no failure of the plugin.
//!
//! Looks at errors of this crate, and at the limit of `http-body-util`, by which tower and axum bound bodies. What the author
//! reads by own means (a number of a query, a file) may be anybody's fault, and is a failure.

use std::error::Error;
use std::fmt;

use http::StatusCode;
use http_body_util::LengthLimitError;

use crate::body::CollectError;
use crate::ffi::BodyError;
use crate::response::{IntoResponse, Response};

/// The innermost source of a [`CollectError`] without another. Wrappers (`#[error(transparent)]`, anyhow) take the place of the
/// error that they hold, but not of its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientError {
    TooLarge,
    Malformed,
}

impl ClientError {
    fn status(self) -> StatusCode {
        match self {
            ClientError::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ClientError::Malformed => StatusCode::BAD_REQUEST,
        }
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ClientError::TooLarge => "the request body is too large",
            ClientError::Malformed => "the request is malformed",
        })
    }
}

impl Error for ClientError {}

/// Returns the response to an error that the client has caused, and `None` for every other error.
pub(crate) fn response(error: &(dyn Error + 'static)) -> Option<Response> {
    let kind = chain(error).find_map(kind)?;
    // The text of this crate's error, without what wraps it: that was written for the log.
    let text = chain(error).find_map(|error| error.downcast_ref::<CollectError>()).map(ToString::to_string);
    Some((kind.status(), format!("{}\n", text.unwrap_or_else(|| kind.to_string()))).into_response())
}

/// An error and its sources.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

fn kind(error: &(dyn Error + 'static)) -> Option<ClientError> {
    if let Some(kind) = error.downcast_ref::<ClientError>() {
        return Some(*kind);
    }
    if let Some(error) = error.downcast_ref::<BodyError>() {
        return error.is_client_error().then_some(ClientError::Malformed);
    }
    error.is::<LengthLimitError>().then_some(ClientError::TooLarge)
}

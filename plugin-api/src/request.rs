//! A request as a native handler gets it: a view of the host's, read when asked for; and its facts, for all others.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use http::header::AsHeaderName;
use http::{Extensions, HeaderMap, HeaderValue, Method, Uri, Version};

use crate::abi;
use crate::body::Body;
use crate::client_closed::ClientClosed;
use crate::ffi::{Claimed, Head, Instance};
use crate::plugin::{Host, Shutdown};
#[cfg(feature = "ws")]
use crate::upgrade::OnUpgrade;

/// A request. Nothing of its head is copied or parsed before it is asked for: a handler that reads no header pays for none.
///
/// ```
/// # use baton_plugin_api::{testing, Request};
/// async fn greet(request: Request) -> String {
///     let agent = request.header("user-agent").unwrap_or("stranger");
///     format!("{} {}: hello, {agent}\n", request.method(), request.path())
/// }
/// # let plugin = testing::Plugin::start(greet);
/// # assert_eq!(plugin.get("/a?b").text(), "GET /a: hello, stranger\n");
/// ```
pub struct Request {
    head: Head,
    instance: &'static Instance,
    body: Body,
    extensions: Extensions,
    parsed: OnceLock<Box<Parsed>>,
}

/// What needs parsing, each part built at first use.
#[derive(Default)]
struct Parsed {
    method: OnceLock<Method>,
    uri: OnceLock<Uri>,
    headers: OnceLock<HeaderMap>,
}

/// The facts that [`Request`] and [`RequestInfo`] both give.
macro_rules! facts {
    () => {
        /// The client's address. Nothing on a Unix socket.
        pub fn peer_addr(&self) -> Option<SocketAddr> {
            self.head.address(abi::FACT_PEER)
        }

        /// The address that the client connected to. Nothing on a Unix socket.
        pub fn local_addr(&self) -> Option<SocketAddr> {
            self.head.address(abi::FACT_LOCAL)
        }

        /// A number that no other request of this generation has, never zero. The host's log carries it.
        pub fn request_id(&self) -> u64 {
            self.head.request_id()
        }

        /// The name of the `[[server]]` that took the connection.
        pub fn server(&self) -> &str {
            self.head.text(abi::FACT_SERVER).unwrap_or_default()
        }

        /// The mount under which the plugin was reached, such as `/api`: it was cut from the path. Empty for `/`.
        pub fn prefix(&self) -> &str {
            self.head.text(abi::FACT_PREFIX).unwrap_or_default()
        }

        /// Path and query as the client sent them, with the mount.
        pub fn original_target(&self) -> &str {
            self.head.text(abi::FACT_ORIGINAL_TARGET).unwrap_or_else(|| self.head.target())
        }

        /// `https` on a connection with TLS, else `http`. A proxy in front may have spoken another to the client.
        pub fn scheme(&self) -> &'static str {
            if self.tls().is_some() { "https" } else { "http" }
        }

        /// What TLS negotiated. Nothing on a clear connection.
        pub fn tls(&self) -> Option<Tls<'_>> {
            Some(Tls {
                version: self.head.text(abi::FACT_TLS_VERSION)?,
                cipher: self.head.text(abi::FACT_TLS_CIPHER).unwrap_or_default(),
                server_name: self.head.text(abi::FACT_TLS_SNI),
                alpn: self.head.text(abi::FACT_TLS_ALPN),
            })
        }

        /// Waits until the client has closed its sending side (FIN; with TLS close_notify), has reset the request or the
        /// connection, or the connection has ended. Never ends on a host that does not know this.
        ///
        /// A client that has closed its sending side may still read: the response is sent to it as to any other, and a
        /// handler that wants to save the work has to stop by itself. Only a reset ends the request (and drops the handler),
        /// unless the operator has set `abort_on_close` for the server. Go's request context ends at the same moments.
        ///
        /// ```
        /// # use baton_plugin_api::{testing, Request};
        /// use baton_plugin_api::tokio;
        ///
        /// async fn report(request: Request) -> &'static str {
        ///     tokio::select! {
        ///         report = long_work() => report,
        ///         () = request.client_closed() => "stopped: the client expects no more\n",
        ///     }
        /// }
        ///
        /// async fn long_work() -> &'static str {
        ///     "done\n"
        /// }
        /// # let plugin = testing::Plugin::start(report);
        /// # assert_eq!(plugin.get("/").text(), "done\n");
        /// ```
        pub fn client_closed(&self) -> ClientClosed {
            ClientClosed::new(self.instance.host.client_closed(&self.head))
        }

        /// Tells when this generation begins to retire.
        pub fn shutdown(&self) -> Shutdown {
            Shutdown::new(self.instance)
        }

        /// The server, to ask things of it.
        pub fn host(&self) -> Host {
            Host::new(self.instance)
        }
    };
}

impl Request {
    pub(crate) fn new(instance: &'static Instance, head: Head, body: Body) -> Request {
        Request { head, instance, body, extensions: Extensions::new(), parsed: OnceLock::new() }
    }

    fn parsed(&self) -> &Parsed {
        self.parsed.get_or_init(Box::default)
    }

    /// The method.
    pub fn method(&self) -> &Method {
        self.parsed().method.get_or_init(|| self.head.method())
    }

    /// The path, percent-encoded as it was sent, with the plugin's mount cut off. Begins with `/` (or is the `*` of
    /// `OPTIONS *`).
    pub fn path(&self) -> &str {
        let target = self.head.target();
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        if path.is_empty() { "/" } else { path }
    }

    /// What follows the first `?`, undecoded.
    pub fn query(&self) -> Option<&str> {
        self.head.target().split_once('?').map(|(_, query)| query)
    }

    /// The URI as the plugin shall see it: path and query, with scheme and authority if the client sent them.
    pub fn uri(&self) -> &Uri {
        self.parsed().uri.get_or_init(|| self.head.uri())
    }

    /// The version of HTTP that the client speaks.
    pub fn version(&self) -> Version {
        self.head.version()
    }

    /// The first value of the field `name` (in any case), as text. Nothing if there is none, or if it is not UTF-8: then
    /// [`headers`](Request::headers) has its bytes.
    ///
    /// Asks the host for this field alone.
    pub fn header(&self, name: impl AsRef<str>) -> Option<&str> {
        let name = name.as_ref();
        let value = if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            self.head.header(&name.to_ascii_lowercase())
        } else {
            self.head.header(name)
        };
        std::str::from_utf8(value?).ok()
    }

    /// All header fields. The map is built at first use; to look one or two fields up, [`header`](Request::header) is
    /// cheaper.
    pub fn headers(&self) -> &HeaderMap {
        self.parsed().headers.get_or_init(|| self.head.headers())
    }

    /// All values of the field `name`, in order of arrival.
    pub fn header_all(&self, name: impl AsHeaderName) -> impl Iterator<Item = &HeaderValue> {
        self.headers().get_all(name).into_iter()
    }

    facts!();

    /// The body.
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// The body, to read from it in place.
    pub fn body_mut(&mut self) -> &mut Body {
        &mut self.body
    }

    /// The body alone. Returned as the response's body it goes back to the host as it is.
    pub fn into_body(self) -> Body {
        self.body
    }

    /// Claims what the connection becomes, for `upgrade`.
    pub(crate) fn claim(&self) -> Option<Claimed> {
        self.instance.host.claim(&self.head)
    }

    /// Values that the author's own layers pass along.
    pub fn extensions(&self) -> &Extensions {
        &self.extensions
    }

    /// The same, to add some.
    pub fn extensions_mut(&mut self) -> &mut Extensions {
        &mut self.extensions
    }

    /// The request as tower services take it. A [`RequestInfo`] in its extensions keeps the facts; with the feature `axum`
    /// there is a `ConnectInfo<SocketAddr>` too, unless the client is on a Unix socket; with the feature `ws` hyper's
    /// `OnUpgrade`, if the request asks for another protocol and was not [claimed](crate::upgrade::on) before.
    pub fn into_http(self) -> http::Request<Body> {
        let Request { head, instance, body, extensions, parsed } = self;
        let (headers, uri) = match parsed.into_inner().map(|parsed| *parsed) {
            // What was built already is not built twice.
            Some(Parsed { headers, uri, .. }) if headers.get().is_some() || uri.get().is_some() => {
                let headers = headers.into_inner().unwrap_or_else(|| head.headers());
                (headers, uri.into_inner().unwrap_or_else(|| head.uri()))
            }
            _ => head.headers_and_uri(),
        };
        let mut request = http::Request::new(body);
        *request.method_mut() = head.method();
        *request.version_mut() = head.version();
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        *request.extensions_mut() = extensions;
        #[cfg(feature = "axum")]
        if let Some(peer) = head.address(abi::FACT_PEER) {
            request.extensions_mut().insert(axum::extract::ConnectInfo(peer));
        }
        #[cfg(feature = "ws")]
        if request.headers().contains_key(http::header::UPGRADE)
            && request.method() != Method::CONNECT
            && let Some(claimed) = instance.host.claim(&head)
            && let Some(offered) = crate::upgrade::hyper::offer(OnUpgrade::new(claimed), instance.handle())
        {
            request.extensions_mut().insert(offered);
        }
        request.extensions_mut().insert(RequestInfo { head: Arc::new(head), instance });
        request
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", self.method())
            .field("target", &self.head.target())
            .field("version", &self.version())
            .field("headers", self.headers())
            .field("body", &self.body)
            .finish()
    }
}

/// What is known of a request beside its head, in the extensions of every `http::Request` that a tower service or an axum
/// router gets. Read from the host when asked for. With the feature `axum` it is an extractor.
///
/// ```
/// # use baton_plugin_api::{testing, RequestInfo};
/// use axum::{extract::Extension, routing::get, Router};
///
/// async fn whoami(Extension(info): Extension<RequestInfo>) -> String {
///     format!("{:?} {}", info.peer_addr(), info.original_target())
/// }
///
/// fn app() -> Router {
///     Router::new().route("/", get(whoami))
/// }
/// # let plugin = testing::Plugin::start(app);
/// # assert_eq!(plugin.get("/").text(), "Some(127.0.0.1:40000) /");
/// ```
#[derive(Clone)]
pub struct RequestInfo {
    head: Arc<Head>,
    instance: &'static Instance,
}

impl RequestInfo {
    facts!();
}

impl fmt::Debug for RequestInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestInfo")
            .field("request_id", &self.request_id())
            .field("peer_addr", &self.peer_addr())
            .field("local_addr", &self.local_addr())
            .field("server", &self.server())
            .field("prefix", &self.prefix())
            .field("original_target", &self.original_target())
            .field("tls", &self.tls())
            .finish()
    }
}

/// What TLS negotiated on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tls<'a> {
    /// Such as `TLSv1.3`.
    pub version: &'a str,
    /// Such as `TLS_AES_128_GCM_SHA256`.
    pub cipher: &'a str,
    /// The name that the client asked for (SNI).
    pub server_name: Option<&'a str>,
    /// The application protocol, such as `h2`.
    pub alpn: Option<&'a str>,
}

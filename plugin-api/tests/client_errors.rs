//! Errors that a client has caused: a 4xx and no line in the log at `error`, whichever type carries them to the host.

use baton_plugin_api::testing::{Answer, Plugin};
use baton_plugin_api::{Body, BoxError, Bytes, CollectError, Failure, Request};

const LIMIT: usize = 10;

/// A request body that ends with an error, as of a client that has reset its connection.
fn broken_off() -> Body {
    Body::generate(async |mut out| {
        out.send("begun").await?;
        Err("reset by peer".into())
    })
}

/// How often a plugin has logged at level error.
fn error_lines(plugin: &Plugin) -> usize {
    plugin.logs().iter().filter(|line| line.level == 1).count()
}

/// Sends bodies that are broken off, too long, and no text; asserts the statuses and that no error is logged.
fn assert_client_errors(plugin: &Plugin) {
    let seen = |answer: Answer| (answer.status().as_u16(), answer.text().to_owned());
    let (status, text) = seen(plugin.post("/", broken_off()));
    assert_eq!(status, 400, "{text}");
    assert_eq!(seen(plugin.post("/", vec![b'x'; LIMIT + 1])).0, 413);
    assert_eq!(seen(plugin.post("/", "fits")), (200, "fits".into()));
    assert_eq!(error_lines(plugin), 0, "{:?}", plugin.logs());
}

#[test]
fn failure_of_a_body_is_a_client_error() {
    async fn collect(request: Request) -> Result<Bytes, Failure> {
        Ok(request.into_body().bytes(LIMIT).await?)
    }
    assert_client_errors(&Plugin::start(collect));
    let answer = Plugin::start(collect).post("/", vec![b'x'; LIMIT + 1]);
    assert_eq!(answer.text(), "the body is longer than 10 bytes\n", "as of the error itself");
}

#[test]
fn failure_of_text_or_json_is_a_bad_request() {
    async fn text(request: Request) -> Result<String, Failure> {
        Ok(request.into_body().text(LIMIT).await?)
    }
    async fn json(request: Request) -> Result<String, Failure> {
        Ok(request.into_body().json::<u32>(LIMIT).await?.to_string())
    }
    let (text, json) = (Plugin::start(text), Plugin::start(json));
    assert_client_errors(&text);
    let answer = text.post("/", vec![0xff]);
    assert_eq!(answer.status(), 400);
    assert!(answer.text().starts_with("the body is not UTF-8: "), "{}", answer.text());
    let answer = json.post("/", "[1,");
    assert_eq!(answer.status(), 400);
    assert!(answer.text().starts_with("the body is not the JSON expected: "), "{}", answer.text());
    assert_eq!((error_lines(&text), error_lines(&json)), (0, 0));
}

#[test]
fn failure_of_a_frame_is_a_client_error() {
    async fn frames(request: Request) -> Result<String, Failure> {
        let (mut body, mut length) = (request.into_body(), 0);
        while let Some(data) = body.data().await {
            length += data?.len();
        }
        Ok(length.to_string())
    }
    let plugin = Plugin::start(frames);
    assert_eq!(plugin.post("/", broken_off()).status(), 400);
    assert_eq!(plugin.post("/", "abc").text(), "3");
    assert_eq!(error_lines(&plugin), 0);
}

#[test]
fn client_error_is_found_below_other_errors() {
    /// As thiserror's `#[error(transparent)]`: the source is that of the error inside.
    #[derive(Debug)]
    struct Transparent(CollectError);
    impl std::fmt::Display for Transparent {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.0.fmt(f)
        }
    }
    impl std::error::Error for Transparent {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            self.0.source()
        }
    }
    async fn transparent(request: Request) -> Result<Bytes, Failure> {
        Ok(request.into_body().bytes(LIMIT).await.map_err(Transparent)?)
    }
    async fn context(request: Request) -> Result<Bytes, Failure> {
        use anyhow::Context as _;
        Ok(request.into_body().bytes(LIMIT).await.context("failed to read the order")?)
    }
    async fn bare(request: Request) -> Result<Bytes, Failure> {
        Ok(request.into_body().bytes(LIMIT).await.map_err(anyhow::Error::from)?)
    }
    assert_client_errors(&Plugin::start(transparent));
    assert_client_errors(&Plugin::start(context));
    assert_client_errors(&Plugin::start(bare));
}

#[test]
fn failure_of_the_plugins_own_is_a_server_error() {
    async fn own_body(_: Request) -> Result<Bytes, Failure> {
        let upstream = Body::generate(async |mut out| {
            out.send("begun").await?;
            Err("the database is gone".into())
        });
        Ok(upstream.bytes(LIMIT).await?)
    }
    async fn own_body_itself(_: Request) -> Result<Bytes, CollectError> {
        Body::generate(async |_| Err("the database is gone".into())).bytes(LIMIT).await
    }
    async fn number(_: Request) -> Result<String, Failure> {
        Ok("x".parse::<u8>()?.to_string())
    }
    for plugin in [Plugin::start(own_body), Plugin::start(own_body_itself), Plugin::start(number)] {
        assert_eq!(plugin.get("/").status(), 500);
        assert_eq!(error_lines(&plugin), 1);
    }
}

#[test]
fn tower_service_that_fails_by_its_client_is_a_client_error() {
    #[derive(Clone)]
    struct Collect;
    impl tower_service::Service<http::Request<Body>> for Collect {
        type Response = http::Response<Body>;
        type Error = BoxError;
        type Future = std::pin::Pin<Box<dyn Future<Output = Result<http::Response<Body>, BoxError>> + Send>>;
        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), BoxError>> {
            std::task::Poll::Ready(Ok(()))
        }
        fn call(&mut self, request: http::Request<Body>) -> Self::Future {
            Box::pin(async move { Ok(http::Response::new(Body::full(request.into_body().bytes(LIMIT).await?))) })
        }
    }
    fn app() -> Collect {
        Collect
    }
    assert_client_errors(&Plugin::start(app));
}

#[test]
fn limit_of_axum_is_a_client_error() {
    async fn collect(body: axum::body::Body) -> axum::response::Response {
        let bytes = axum::body::to_bytes(body, LIMIT).await;
        let result: Result<Bytes, Failure> = bytes.map_err(Failure::from);
        baton_plugin_api::IntoResponse::into_response(result).map(axum::body::Body::new)
    }
    fn app() -> axum::Router {
        axum::Router::new().route("/", axum::routing::post(collect))
    }
    assert_client_errors(&Plugin::start(app));
    // Also where the plugin's own threads run the request.
    assert_client_errors(&Plugin::spawned(app).start().unwrap());
}

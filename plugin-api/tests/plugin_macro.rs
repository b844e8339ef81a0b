//! `#[plugin]` over an axum router, with all its options.
#![deny(unsafe_code)]

use axum::Router;
use axum::routing::get;
use baton_plugin_api::testing::Plugin;
use baton_plugin_api::{BoxError, Init, plugin};

#[plugin(mount = "/", runtime = "enter", workers = 2)]
async fn app(cx: Init) -> Result<Router, BoxError> {
    let name = cx.name();
    Ok(Router::new().route("/", get(async move || name)))
}

#[test]
fn the_function_stays_as_it_is() {
    assert_eq!(Plugin::start(app).get("/").text(), "test");
}

//! The attribute macros of `baton-plugin-api`. They keep the function as it is, and beside it export what a plugin exports:
//! the descriptor, and abi_stable's header of the root module. They are written out in `baton_plugin_api::__export!`.

use proc_macro::TokenStream;

mod expand;
mod options;

/// Makes a function the whole of a plugin: it answers every request.
///
/// The function takes nothing or a `Request`, is `async` or not, and gives an `IntoResponse`. One per crate, whose
/// `crate-type` is `["cdylib"]`.
///
/// ```ignore
/// #[handler]
/// async fn hello(_: Request) -> &'static str {
///     "hello\n"
/// }
/// ```
///
/// Options, all of them optional: `#[handler(mount = "/api", runtime = "spawn", workers = 2)]`; see
/// [`macro@plugin`].
#[proc_macro_attribute]
pub fn handler(options: TokenStream, item: TokenStream) -> TokenStream {
    expand::expand(expand::Kind::Handler, options.into(), item.into()).into()
}

/// Makes a function the beginning of a plugin: it is run once, when the plugin is loaded, and what it gives serves the
/// requests.
///
/// The function takes nothing or an `Init`, is `async` or not, and gives an `IntoApp` or a `Result` of one, whose error is
/// `Into<BoxError>`. One per crate, whose `crate-type` is `["cdylib"]`.
///
/// ```ignore
/// #[plugin]
/// async fn app(cx: Init) -> Result<Router, BoxError> {
///     let config: Config = cx.config()?;
///     Ok(Router::new().route("/", get(index)).with_state(config))
/// }
/// ```
///
/// Options, all of them optional:
///
/// * `mount = "/api"`: where the plugin is mounted, unless the server's configuration says otherwise.
/// * `runtime = "enter"` (the default): requests run on the server's threads, with the plugin's runtime entered. The
///   cheapest; a handler that blocks, blocks the server. `runtime = "spawn"`: each request runs as a task of the plugin's
///   own runtime, at the price of two thread hops.
/// * `workers = 2`: threads of the plugin's runtime, unless the server's configuration says otherwise.
#[proc_macro_attribute]
pub fn plugin(options: TokenStream, item: TokenStream) -> TokenStream {
    expand::expand(expand::Kind::Plugin, options.into(), item.into()).into()
}

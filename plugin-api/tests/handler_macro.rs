//! What `#[handler]` exports, read as the server reads it.
#![deny(unsafe_code)]

use baton_plugin_api::abi::{ABI_REVISION, Descriptor, FLAG_DEBUG, FLAG_PANIC_ABORT, MAGIC, read_text};
use baton_plugin_api::testing::Plugin;
use baton_plugin_api::{Request, handler};

#[handler(mount = "/api", runtime = "spawn", workers = 1)]
async fn hello(request: Request) -> Result<String, &'static str> {
    Ok(format!("hello, {}", request.path()))
}

#[test]
fn the_function_stays_as_it_is() {
    assert_eq!(Plugin::start(hello).get("/a").text(), "hello, /a");
}

#[test]
fn the_descriptor_lies_in_the_file_as_plain_bytes() {
    let file = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let found: Vec<Descriptor> = file
        .windows(MAGIC.len())
        .enumerate()
        .filter(|(_, window)| *window == MAGIC)
        .filter_map(|(at, _)| Descriptor::from_bytes(&file[at..]))
        // The constant itself lies there too.
        .filter(|descriptor| descriptor.size as usize == size_of::<Descriptor>())
        .collect();
    assert_eq!(found.len(), 1);
    let descriptor = found[0];
    assert_eq!(descriptor.abi_revision, ABI_REVISION);
    assert_eq!(read_text(&descriptor.name), "baton-plugin-api", "the package of this test");
    assert_eq!(read_text(&descriptor.version), env!("CARGO_PKG_VERSION"));
    assert_eq!(read_text(&descriptor.api_version), env!("CARGO_PKG_VERSION"));
    assert_eq!(read_text(&descriptor.mount), "/api");
    assert!(read_text(&descriptor.rustc).starts_with("rustc 1."));
    assert_eq!(descriptor.flags & FLAG_PANIC_ABORT, 0);
    assert_eq!(descriptor.flags & FLAG_DEBUG != 0, cfg!(debug_assertions));
}

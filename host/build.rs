//! One clear error where the host cannot be built, before its sources give a hundred.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if target != "linux" {
        println!(
            "cargo::error=baton-host runs on Linux only (>= 5.10): it relies on pidfds, execveat and descriptor passing. \
             baton-plugin-api builds and tests anywhere, so plugins can be written here: cargo test -p baton-plugin-api"
        );
    }
}

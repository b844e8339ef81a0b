//! The yardstick for axum: its own server with the router compiled in, one worker thread. Prints its address and serves until
//! killed.

use std::net::Ipv4Addr;

use axum::Router;
use axum::routing::get;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;

fn main() -> std::io::Result<()> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        println!("{}", listener.local_addr()?);
        let listener = listener.tap_io(|stream| {
            if let Err(error) = stream.set_nodelay(true) {
                eprintln!("{error}");
            }
        });
        let app = Router::new().route("/", get(async || "Hello, world!\n"));
        // In a task: the thread that blocks on this one is no worker.
        tokio::spawn(async move { axum::serve(listener, app).await }).await?
    })
}

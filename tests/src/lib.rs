//! Harness of Baton's end-to-end tests and benches. Drives the real binary as a process and never links the host.
//!
//! * [`artifacts`] builds the binary and the fixture plugins, once a run; [`elf`] damages files on purpose
//! * [`server`] is an instance in directories of its own; [`status`] is what it says of itself; [`process`] what the kernel says
//! * [`load`] is the client that counts every loss; [`chaos`] the server that it must report; [`http`] what both read;
//!   [`http2`] is the client of that protocol
//! * [`torture`] is the load with what is done to the real server meanwhile
//! * [`tls`] issues certificates, and has the clients that look at them
//! * [`systemd`] is the service manager that the server talks to
//! * [`wait`] is the one way to wait; [`stats`] the numbers of the benches

pub mod artifacts;
pub mod chaos;
pub mod elf;
pub mod http;
pub mod http2;
pub mod load;
pub mod process;
pub mod server;
pub mod stats;
pub mod status;
pub mod systemd;
pub mod tls;
pub mod torture;
pub mod wait;

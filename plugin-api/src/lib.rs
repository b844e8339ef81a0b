//! Write HTTP handlers that Baton loads, and swaps behind a live port.
pub mod abi;

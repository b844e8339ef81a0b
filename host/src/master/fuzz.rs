//! Fuzz targets of the master: what lies in the plugin folder.

pub use super::store::fuzz::{elf, signature};

//! Upper bounds of the counts and rates that can be set. Times and sizes have theirs where they are read (`limit`, `size`).
//!
//! A count above its bound would exhaust the machine or leave the range of a sum; nobody means it.

use std::ops::RangeInclusive;

use super::{Config, Plugin};

/// Threads of one process.
const WORKERS: usize = 1024;
/// Processes, or sets on disk, at once.
const GENERATIONS: usize = 1000;
/// More than a process can have descriptors on any machine of today.
const CONNECTIONS: usize = 100_000_000;
/// Bytes per second: 1 TiB.
const RATE: u64 = 1 << 40;
/// Bytes of a plugin's name: what a file's name can have.
const NAME: usize = 255;

/// Every count that is out of bounds, by its key.
pub fn problems(config: &Config) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut within = |key: &str, value: u64, bounds: RangeInclusive<u64>, why: &str| {
        if !bounds.contains(&value) {
            found.push((key.to_owned(), format!("must lie between {} and {}{why}", bounds.start(), bounds.end())));
        }
    };
    let generations = |least| least..=GENERATIONS as u64;
    within("workers", config.workers as u64, 0..=WORKERS as u64, "");
    within("max_draining", config.max_draining as u64, generations(1), ": every switch leaves one generation draining");
    within("crash.limit", config.crash.limit as u64, generations(1), ": after so many deaths a set is given up");
    within("store.keep", config.store.keep as u64, generations(0), "");
    within("drain.min_rate", config.drain.min_rate, 0..=RATE, " bytes per second");
    let limits = &config.limits;
    within("limits.body_min_rate", limits.body_min_rate, 0..=RATE, " bytes per second");
    within("limits.connections", limits.connections as u64, 0..=CONNECTIONS as u64, "");
    within("limits.connections_per_peer", limits.connections_per_peer as u64, 0..=CONNECTIONS as u64, "");
    for (name, Plugin { workers, .. }) in &config.plugins {
        within(&format!("plugins.{name}.workers"), (*workers).into(), 0..=WORKERS as u64, "");
        within(&format!("plugins.{name}"), name.len() as u64, 1..=NAME as u64, " bytes: the length of a plugin's name");
    }
    found
}

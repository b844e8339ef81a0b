//! Harness of the end-to-end tests: drives the real binary as a process.

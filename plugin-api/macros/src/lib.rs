//! The attribute macros of `baton-plugin-api`.

//! The admin surface: a Unix socket for the command line, TCP with a token for people.

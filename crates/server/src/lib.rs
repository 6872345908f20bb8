//! HTTP handlers over the Unix socket.

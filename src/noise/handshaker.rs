//! handshaker

//! peer_session

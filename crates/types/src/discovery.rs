//! What our control plane and our proxies agree on beyond the discovery protocol.

/// Last character of a response's nonce while more of its type, that was there when the client asked,
/// follows in further responses. Nonces mean nothing to other clients.
pub const MORE: char = '+';

//! HBONE: CONNECT over HTTP/2 over mutual TLS, both ends, pool and relay.

//! Sockets and network namespaces; the only crate with unsafe code.

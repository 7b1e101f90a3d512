//! What pods and the node agent send to the node proxy.

use ztunnel::dns;
use ztunnel::zds::Request;

/// A packet of the node agent, without a descriptor.
///
/// # Panics
/// When it adds a pod: that takes a namespace.
pub fn packet(data: &[u8]) {
    assert!(!matches!(
        Request::decode(data, Vec::new()),
        Ok(Request::Add { .. })
    ));
}

/// A packet for the DNS proxy.
pub fn query(data: &[u8]) {
    let _ = dns::is_query(data);
}

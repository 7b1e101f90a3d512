//! What a peer can send before or with a request: frames, texts of headers, the PROXY header.

use std::net::IpAddr;

use isobar_hbone::{Authority, Baggage, Forwarded, ProxyHeader, TraceParent, taken_of_opening};

/// The authority of CONNECT.
///
/// # Panics
/// When an accepted authority is not in its one canonical form.
pub fn authority(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Some(found) = Authority::parse(text) else {
        return;
    };
    let shown = found.to_string();
    assert_eq!(Authority::parse(&shown), Some(found.clone()), "{shown}");
    match found {
        Authority::Address(at) => assert_eq!(at.ip(), at.ip().to_canonical()),
        Authority::Host { host, .. } => {
            assert!(
                host.len() <= 253 && host.parse::<IpAddr>().is_err(),
                "{host}"
            );
            assert!(
                host.bytes()
                    .all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase())
            );
        }
    }
}

/// `baggage`.
///
/// # Panics
/// When what was read does not read back from its own print.
pub fn baggage(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let found = Baggage::parse(text);
    assert_eq!(Baggage::parse(&found.to_string()), found);
}

/// `forwarded`.
///
/// # Panics
/// When a client address does not read back from its own print.
pub fn forwarded(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Some(found) = Forwarded::parse(text) else {
        return;
    };
    assert!(found.client.is_some() || found.host.is_some());
    // A host may hold anything; without it the print is ours alone.
    let client = Forwarded {
        host: None,
        ..found
    };
    if client.client.is_some() {
        assert_eq!(Forwarded::parse(&client.to_string()), Some(client));
    }
}

/// `traceparent`.
///
/// # Panics
/// When an accepted value is not printed as it was.
pub fn traceparent(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(found) = TraceParent::parse(text)
    {
        assert_eq!(found.to_string(), text);
    }
}

/// PROXY protocol, version 2.
///
/// # Panics
/// When what was read does not read back from its own encoding.
pub fn proxy_header(data: &[u8]) {
    let Ok((found, length)) = ProxyHeader::parse(data) else {
        return;
    };
    assert!(length <= data.len());
    let Ok(bytes) = found.encode() else {
        return;
    };
    assert_eq!(ProxyHeader::parse(&bytes), Ok((found, bytes.len())));
}

/// The frames a caller begins with, in pieces as long as the first byte says.
///
/// # Panics
/// When more is taken than came, or how the bytes are cut makes more difference than a frame's header.
pub fn frames(data: &[u8]) {
    let Some((piece, bytes)) = data.split_first() else {
        return;
    };
    let whole = taken_of_opening(bytes, bytes.len());
    let cut = taken_of_opening(bytes, usize::from(*piece));
    assert!(whole <= cut && cut < whole + 9 && cut <= bytes.len());
}

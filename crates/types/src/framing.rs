//! Header fields that say where messages end and what the connection is for.

/// Fields of one connection (RFC 9110 §7.6.1) and those that say where a message ends (RFC 9112 §6).
const FRAMING: [&str; 8] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// True for a header field, in any case, that nobody but whoever frames a message may write. One that
/// says of a message what is not so lets the next message on that connection, which may be
/// somebody else's, be read as a part of it.
#[must_use]
pub fn is_framing(name: &str) -> bool {
    FRAMING.iter().any(|one| name.eq_ignore_ascii_case(one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_connection_are_not_for_rules() {
        assert!(is_framing("Content-Length") && is_framing("transfer-encoding"));
        assert!(!is_framing("content-type") && !is_framing("x-te") && !is_framing("expect"));
    }
}

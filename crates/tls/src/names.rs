use isobar_types::Identity;

/// Most bytes in a SPIFFE id (the SPIFFE ID specification, §2.3).
const SPIFFE_ID_MAX: usize = 2048;

/// The identity as it goes into a certificate, if every part keeps to the SPIFFE alphabet. What is
/// signed must read the same to every verifier, so nothing that needs quoting gets in.
pub(crate) fn spiffe_uri(identity: &Identity) -> Option<String> {
    let segment = |text: &str| {
        !text.is_empty()
            && text != "."
            && text != ".."
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
    };
    let trust_domain = |text: &str| segment(text) && !text.bytes().any(|b| b.is_ascii_uppercase());
    let fits = trust_domain(&identity.trust_domain)
        && segment(&identity.namespace)
        && segment(&identity.service_account);
    let uri = identity.to_string();
    (fits && uri.len() <= SPIFFE_ID_MAX).then_some(uri)
}

/// The identity a certificate's URI names, if it is spelled exactly as we would sign it: whatever can
/// be read in two ways is not read at all.
pub(crate) fn spiffe_id(uri: &str) -> Option<Identity> {
    let identity: Identity = uri.parse().ok()?;
    (spiffe_uri(&identity).as_deref() == Some(uri)).then_some(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_spiffe_alphabet_is_signed() {
        assert_eq!(
            spiffe_uri(&Identity::new("cluster.local", "a-b", "c_d.e")).as_deref(),
            Some("spiffe://cluster.local/ns/a-b/sa/c_d.e")
        );
        for (td, ns, sa) in [
            ("cluster.local", "a,DNS:evil", "b"),
            ("cluster.local", "a", "b\0c"),
            ("cluster.local", "..", "b"),
            ("Cluster.local", "a", "b"),
            ("cluster.local", "ä", "b"),
            ("", "a", "b"),
        ] {
            assert!(
                spiffe_uri(&Identity::new(td, ns, sa)).is_none(),
                "{td} {ns} {sa}"
            );
        }
    }
}

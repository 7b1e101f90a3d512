//! Secrets that listeners name, for the gateway that has these listeners.

use std::collections::BTreeSet;

use isobar_objects::{ObjectSet, Secret};
use isobar_proto::isobar::v1 as wire;
use isobar_tls::edge::EdgeCertificate;

/// End of the name of a credential that only says who signs callers' certificates.
const AUTHORITY: &str = "-cacert";

/// How listeners name a Secret.
pub(super) fn name(namespace: &str, name: &str) -> String {
    let name = name.strip_prefix("kubernetes://").unwrap_or(name);
    format!("{namespace}/{name}")
}

/// How listeners name the authority of callers: the Secret `NAME-cacert`, where there is none `NAME`.
/// Which of the two it is is decided when the Secrets are looked at.
pub(super) fn authority(namespace: &str, own: &str) -> String {
    format!(
        "{}{AUTHORITY}",
        name(namespace, own).trim_end_matches(AUTHORITY)
    )
}

/// What the listeners name, as far as it is there.
pub(super) fn named(listeners: &[wire::Listener], set: &ObjectSet) -> Vec<wire::Credential> {
    let tls = || listeners.iter().filter_map(|one| one.tls.as_ref());
    let shown: BTreeSet<&String> = tls().flat_map(|tls| &tls.credentials).collect();
    let signers = tls().map(|tls| &tls.client_authority);
    let signers: BTreeSet<&String> = signers.filter(|name| !name.is_empty()).collect();
    let shown = shown.into_iter().filter_map(|key| {
        let (namespace, name) = key.split_once('/')?;
        let secret = set.secrets.get(namespace, name)?;
        Some(wire::Credential {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            chain: text(secret, &["tls.crt", "cert"]).unwrap_or_default(),
            key: text(secret, &["tls.key", "key"]).unwrap_or_default(),
            authority: String::new(),
        })
    });
    let signers = signers.into_iter().filter_map(|key| {
        let (namespace, name) = key.split_once('/')?;
        let bare = name.strip_suffix(AUTHORITY)?;
        let secret = set.secrets.get(namespace, name);
        let secret = secret.or_else(|| set.secrets.get(namespace, bare))?;
        Some(wire::Credential {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            authority: text(secret, &["ca.crt", "cacert"])?,
            ..wire::Credential::default()
        })
    });
    shown.chain(signers).collect()
}

/// Whether a Secret holds a certificate and its key.
///
/// # Errors
/// A sentence; never anything of the content.
pub(super) fn usable(set: &ObjectSet, namespace: &str, name: &str) -> Result<(), String> {
    let secret = set.secrets.get(namespace, name);
    let secret = secret.ok_or_else(|| format!("there is no Secret {namespace}/{name}"))?;
    let chain = text(secret, &["tls.crt", "cert"]).unwrap_or_default();
    let key = text(secret, &["tls.key", "key"]).unwrap_or_default();
    let read = EdgeCertificate::from_pem(&chain, &key);
    read.map(|_| ())
        .map_err(|error| format!("Secret {namespace}/{name}: {error}"))
}

/// The first of these entries that is there; files may have it as plain text.
fn text(secret: &Secret, entries: &[&str]) -> Option<String> {
    entries.iter().find_map(|entry| {
        let plain = secret.string_data.as_ref().and_then(|all| all.get(*entry));
        let bytes = secret.data.as_ref().and_then(|all| all.get(*entry));
        let read = bytes.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok());
        plain.cloned().or(read)
    })
}

//! Secrets that listeners name, for the gateway that has these listeners.

use std::collections::BTreeMap;

use isobar_objects::{ObjectSet, Secret, UNREAD, authority_of_callers, secret_name};
use isobar_proto::isobar::v1 as wire;
use isobar_tls::edge::EdgeCertificate;

/// How listeners name a Secret.
pub(super) fn name(namespace: &str, written: &str) -> String {
    format!("{namespace}/{}", secret_name(written))
}

/// How listeners name the authority of callers: the Secret `NAME-cacert`, where there is none `NAME`.
/// Which of the two it is is decided when the Secrets are looked at.
pub(super) fn authority(namespace: &str, written: &str) -> String {
    let [first, _] = authority_of_callers(written);
    format!("{namespace}/{first}")
}

/// What the listeners name, as far as it is there. One name may be asked for its key by one listener and
/// for an authority by another.
pub(super) fn named(listeners: &[wire::Listener], set: &ObjectSet) -> Vec<wire::Credential> {
    let mut all: BTreeMap<&str, wire::Credential> = BTreeMap::new();
    let of = |key: &str| {
        let (namespace, name) = key.split_once('/')?;
        Some(wire::Credential {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..wire::Credential::default()
        })
    };
    for tls in listeners.iter().filter_map(|one| one.tls.as_ref()) {
        for key in &tls.credentials {
            let Some(new) = of(key) else { continue };
            let Some(secret) = set.secrets.get(&new.namespace, &new.name) else {
                continue;
            };
            let told = all.entry(key.as_str()).or_insert(new);
            (told.chain, told.key) = pair(secret);
        }
        let key = &*tls.client_authority;
        if let Some((new, authority)) = of(key).and_then(|new| Some((new, signer(key, set)?))) {
            all.entry(key).or_insert(new).authority = authority;
        }
    }
    all.into_values().collect()
}

/// Chain and key, as far as they are there.
pub(in super::super) fn pair(secret: &Secret) -> (String, String) {
    (
        text(secret, &["tls.crt", "cert"]).unwrap_or_default(),
        text(secret, &["tls.key", "key"]).unwrap_or_default(),
    )
}

/// Who signs callers' certificates.
pub(in super::super) fn signer(key: &str, set: &ObjectSet) -> Option<String> {
    let (namespace, name) = key.split_once('/')?;
    let mut places = authority_of_callers(name).into_iter();
    let secret = places.find_map(|name| set.secrets.get(namespace, &name))?;
    text(secret, &["ca.crt", "cacert"])
}

/// What is wrong with a Secret.
pub(in super::super) enum Unusable {
    /// It is not there, or nothing of it is: nobody is served.
    Missing(String),
    /// What it holds cannot be used: pods go on with what they had before.
    Content(String),
}

impl Unusable {
    /// A sentence; never anything of the content.
    pub(in super::super) fn text(&self) -> String {
        match self {
            Self::Missing(text) => text.clone(),
            Self::Content(text) => {
                format!("{text}; pods go on with the last one that they could use")
            }
        }
    }
}

/// Whether a Secret holds a certificate and its key.
///
/// # Errors
/// What is wrong with it.
pub(in super::super) fn usable(
    set: &ObjectSet,
    namespace: &str,
    name: &str,
) -> Result<(), Unusable> {
    let secret = set.secrets.get(namespace, name);
    let secret = secret
        .ok_or_else(|| Unusable::Missing(format!("there is no Secret {namespace}/{name}")))?;
    if secret.type_.as_deref() == Some(UNREAD) {
        return Ok(());
    }
    let (chain, key) = pair(secret);
    if chain.is_empty() && key.is_empty() {
        let text =
            format!("Secret {namespace}/{name} has no certificate (tls.crt) and no key (tls.key)");
        return Err(Unusable::Missing(text));
    }
    let read = EdgeCertificate::from_pem(&chain, &key);
    read.map(|_| ())
        .map_err(|error| Unusable::Content(format!("Secret {namespace}/{name}: {error}")))
}

/// Everything that is wrong with what a listener of Istio's names.
pub(super) fn problems(tls: &wire::ListenerTls, set: &ObjectSet) -> Vec<String> {
    let named = tls.credentials.iter().filter_map(|key| key.split_once('/'));
    let mut all: Vec<String> = named
        .filter_map(|(namespace, name)| usable(set, namespace, name).err())
        .map(|problem| problem.text())
        .collect();
    let key = &*tls.client_authority;
    if !key.is_empty() && signer(key, set).is_none() && !is_unread(key, set) {
        let names = authority_of_callers(key).join(" nor Secret ");
        all.push(format!(
            "neither Secret {names} has an authority of callers (ca.crt)"
        ));
    }
    all
}

pub(in super::super) fn is_unread(key: &str, set: &ObjectSet) -> bool {
    let place = key.split_once('/');
    let secret = place.and_then(|(namespace, name)| set.secrets.get(namespace, name));
    secret.is_some_and(|secret| secret.type_.as_deref() == Some(UNREAD))
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

//! Certificate requests: ECDSA P-256, SHA-256, empty subject, one URI name (as Istio's ztunnel does).

use boring::hash::MessageDigest;
use boring::stack::Stack;
use boring::x509::extension::SubjectAlternativeName;
use boring::x509::{X509NameBuilder, X509ReqBuilder};
use isobar_types::Identity;

use crate::{CryptoFailure, PrivateKey, names};

/// A request for `identity` with a new key: (PEM text, the key).
///
/// # Errors
/// When the identity holds characters that no certificate may carry, or BoringSSL fails.
pub fn generate(identity: &Identity) -> Result<(String, PrivateKey), CryptoFailure> {
    let uri = names::spiffe_uri(identity).ok_or_else(|| {
        CryptoFailure::new(
            "request a certificate",
            format!("{identity} is not a SPIFFE id"),
        )
    })?;
    let key = PrivateKey::generate()?;
    let build = || -> Result<Vec<u8>, boring::error::ErrorStack> {
        let mut request = X509ReqBuilder::new()?;
        request.set_version(0)?;
        request.set_subject_name(&X509NameBuilder::new()?.build())?;
        request.set_pubkey(key.pkey())?;
        let names = SubjectAlternativeName::new()
            .critical()
            .uri(&uri)
            .build(&request.x509v3_context(None))?;
        let mut extensions = Stack::new()?;
        extensions.push(names)?;
        request.add_extensions(&extensions)?;
        request.sign(key.pkey(), MessageDigest::sha256())?;
        request.build().to_pem()
    };
    let what = "request a certificate";
    let pem = build().map_err(CryptoFailure::of(what))?;
    Ok((
        String::from_utf8(pem).map_err(CryptoFailure::of(what))?,
        key,
    ))
}

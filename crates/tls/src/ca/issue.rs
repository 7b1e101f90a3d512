use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use boring::asn1::{Asn1Integer, Asn1Time};
use boring::bn::{BigNum, MsbOption};
use boring::error::ErrorStack;
use boring::hash::MessageDigest;
use boring::nid::Nid;
use boring::pkey::{Id, PKey, PKeyRef, Public};
use boring::x509::extension::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName,
    SubjectKeyIdentifier,
};
use boring::x509::{X509, X509Builder, X509Name, X509NameBuilder, X509NameRef, X509Ref, X509Req};

use super::AuthorityError;
use crate::{CryptoFailure, PrivateKey};

/// Certificates start this much earlier, so that a peer whose clock is behind accepts them.
const BACKDATE: Duration = Duration::from_secs(120);
/// X.509 version 3 is written as 2.
const V3: i32 = 2;
/// A request beyond this many bytes is not looked at.
const REQUEST_MAX: usize = 16 * 1024;

/// One name in a certificate.
pub(super) enum Name {
    Uri(String),
    Dns(String),
    Ip(IpAddr),
}

impl Name {
    /// A DNS name (a leading `*.` allowed) or an IP address.
    pub(super) fn host(text: &str) -> Result<Self, AuthorityError> {
        if let Ok(ip) = text.parse() {
            return Ok(Self::Ip(ip));
        }
        let label = |l: &str| {
            !l.is_empty()
                && l.len() <= 63
                && l.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        let bare = text.strip_prefix("*.").unwrap_or(text);
        if bare.len() <= 253 && bare.split('.').all(label) {
            Ok(Self::Dns(text.to_ascii_lowercase()))
        } else {
            Err(AuthorityError::Name(text.to_owned()))
        }
    }
}

/// What a leaf is to say.
pub(super) struct Leaf<'a> {
    pub(super) names: &'a [Name],
    pub(super) key: &'a PKeyRef<Public>,
    pub(super) ttl: Duration,
    pub(super) now: SystemTime,
}

/// A self-signed root.
pub(super) fn root(
    key: &PrivateKey,
    organisation: &str,
    now: SystemTime,
    life: Duration,
) -> Result<X509, CryptoFailure> {
    let name = || -> Result<X509Name, ErrorStack> {
        let mut name = X509NameBuilder::new()?;
        name.append_entry_by_nid(Nid::ORGANIZATIONNAME, organisation)?;
        name.append_entry_by_nid(Nid::COMMONNAME, "Isobar root")?;
        Ok(name.build())
    };
    let name = name().map_err(CryptoFailure::of("make a root certificate"))?;
    root_of(key, &name, now, life)
}

/// A self-signed root of that name.
pub(super) fn root_of(
    key: &PrivateKey,
    name: &X509NameRef,
    now: SystemTime,
    life: Duration,
) -> Result<X509, CryptoFailure> {
    let build = || -> Result<X509, ErrorStack> {
        let mut root = X509Builder::new()?;
        root.set_version(V3)?;
        root.set_serial_number(&*serial()?)?;
        root.set_subject_name(name)?;
        root.set_issuer_name(name)?;
        root.set_pubkey(key.pkey())?;
        root.set_not_before(&*time(now - BACKDATE)?)?;
        root.set_not_after(&*time(now + life)?)?;
        root.append_extension(&*BasicConstraints::new().critical().ca().build()?)?;
        root.append_extension(
            &*KeyUsage::new()
                .critical()
                .key_cert_sign()
                .crl_sign()
                .build()?,
        )?;
        let id = SubjectKeyIdentifier::new().build(&root.x509v3_context(None, None))?;
        root.append_extension(&id)?;
        root.sign(key.pkey(), MessageDigest::sha256())?;
        Ok(root.build())
    };
    build().map_err(CryptoFailure::of("make a root certificate"))
}

/// A leaf for client and server use, signed by `issuer`; it ends with the issuer at the latest.
pub(super) fn leaf(
    issuer: &X509Ref,
    key: &PrivateKey,
    leaf: &Leaf<'_>,
) -> Result<X509, CryptoFailure> {
    let build = || -> Result<X509, ErrorStack> {
        let mut certificate = X509Builder::new()?;
        certificate.set_version(V3)?;
        certificate.set_serial_number(&*serial()?)?;
        certificate.set_subject_name(&X509NameBuilder::new()?.build())?;
        certificate.set_issuer_name(issuer.subject_name())?;
        certificate.set_pubkey(leaf.key)?;
        certificate.set_not_before(&*time(leaf.now - BACKDATE)?)?;
        let end = time(leaf.now + leaf.ttl)?;
        if end.compare(issuer.not_after())?.is_gt() {
            certificate.set_not_after(issuer.not_after())?;
        } else {
            certificate.set_not_after(&end)?;
        }
        certificate.append_extension(&*BasicConstraints::new().critical().build()?)?;
        certificate.append_extension(
            &*KeyUsage::new()
                .critical()
                .digital_signature()
                .key_encipherment()
                .build()?,
        )?;
        certificate.append_extension(
            &*ExtendedKeyUsage::new()
                .server_auth()
                .client_auth()
                .build()?,
        )?;
        let context = certificate.x509v3_context(Some(issuer), None);
        let names = san(leaf.names).build(&context)?;
        let issued_by = AuthorityKeyIdentifier::new().keyid(false).build(&context)?;
        certificate.append_extension(&names)?;
        certificate.append_extension(&issued_by)?;
        let digest = if key.pkey().bits() > 256 && key.pkey().id() == Id::EC {
            MessageDigest::sha384()
        } else {
            MessageDigest::sha256()
        };
        certificate.sign(key.pkey(), digest)?;
        Ok(certificate.build())
    };
    build().map_err(CryptoFailure::of("sign a certificate"))
}

/// The key a request asks to certify, once the request proves that its sender holds it.
pub(super) fn requested_key(csr_pem: &str) -> Result<PKey<Public>, AuthorityError> {
    let refused = |detail: &str| AuthorityError::Request(detail.to_owned());
    if csr_pem.len() > REQUEST_MAX {
        return Err(refused("it is larger than 16 KiB"));
    }
    let request = X509Req::from_pem(csr_pem.as_bytes()).map_err(|_| refused("it is not PEM"))?;
    let key = request
        .public_key()
        .map_err(|_| refused("its key cannot be read"))?;
    let allowed = match key.id() {
        Id::EC => key.ec_key().is_ok_and(|key| {
            matches!(
                key.group().curve_name(),
                Some(Nid::X9_62_PRIME256V1 | Nid::SECP384R1)
            )
        }),
        Id::RSA => (2048..=4096).contains(&key.bits()),
        _ => false,
    };
    if !allowed {
        return Err(refused(
            "its key is not P-256, P-384 or RSA of 2048 to 4096 bits",
        ));
    }
    if !request.verify(&key).unwrap_or(false) {
        return Err(refused("it is not signed by its own key"));
    }
    Ok(key)
}

/// The public half of a private key.
pub(super) fn public_half(key: &PrivateKey) -> Result<PKey<Public>, CryptoFailure> {
    key.pkey()
        .public_key_to_der()
        .and_then(|der| PKey::public_key_from_der(&der))
        .map_err(CryptoFailure::of("derive a public key"))
}

pub(super) fn pem(certificate: &X509Ref) -> Result<String, CryptoFailure> {
    let what = "encode a certificate";
    let bytes = certificate.to_pem().map_err(CryptoFailure::of(what))?;
    String::from_utf8(bytes).map_err(CryptoFailure::of(what))
}

fn san(names: &[Name]) -> SubjectAlternativeName {
    let mut san = SubjectAlternativeName::new();
    // The subject is empty, so the names must be critical (RFC 5280 §4.1.2.6).
    san.critical();
    for name in names {
        match name {
            Name::Uri(uri) => san.uri(uri),
            Name::Dns(dns) => san.dns(dns),
            Name::Ip(ip) => san.ip(&ip.to_string()),
        };
    }
    san
}

/// 127 random bits: positive, and not to be guessed.
fn serial() -> Result<Asn1Integer, ErrorStack> {
    let mut number = BigNum::new()?;
    number.rand(127, MsbOption::MAYBE_ZERO, false)?;
    // Zero is no serial number; bit 0 costs one bit of the 127.
    number.set_bit(0)?;
    number.to_asn1_integer()
}

fn time(at: SystemTime) -> Result<Asn1Time, ErrorStack> {
    let seconds = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    Asn1Time::from_unix(i64::try_from(seconds).unwrap_or(i64::MAX))
}

/// An intermediate signed by `issuer`, for tests.
#[cfg(test)]
pub(super) fn test_intermediate(
    issuer: &X509Ref,
    issuer_key: &PrivateKey,
    key: &PrivateKey,
) -> Result<X509, ErrorStack> {
    let mut name = X509NameBuilder::new()?;
    name.append_entry_by_nid(Nid::COMMONNAME, "intermediate")?;
    let mut certificate = X509Builder::new()?;
    certificate.set_version(V3)?;
    certificate.set_serial_number(&*serial()?)?;
    certificate.set_subject_name(&name.build())?;
    certificate.set_issuer_name(issuer.subject_name())?;
    certificate.set_pubkey(key.pkey())?;
    certificate.set_not_before(&*time(SystemTime::now() - BACKDATE)?)?;
    certificate.set_not_after(issuer.not_after())?;
    certificate.append_extension(&*BasicConstraints::new().critical().ca().pathlen(0).build()?)?;
    certificate.append_extension(&*KeyUsage::new().critical().key_cert_sign().build()?)?;
    let context = certificate.x509v3_context(Some(issuer), None);
    let id = SubjectKeyIdentifier::new().build(&context)?;
    certificate.append_extension(&id)?;
    certificate.sign(issuer_key.pkey(), MessageDigest::sha256())?;
    Ok(certificate.build())
}

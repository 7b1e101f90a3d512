use std::fmt;

use boring::ec::{EcGroup, EcKey};
use boring::nid::Nid;
use boring::pkey::{PKey, Private};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::CryptoFailure;

/// A private key. Never shown: `Debug` is opaque, and leaving the process takes an explicit call.
#[derive(Clone)]
pub struct PrivateKey(PKey<Private>);

impl PrivateKey {
    /// A new ECDSA P-256 key.
    ///
    /// # Errors
    /// When BoringSSL cannot generate one.
    pub fn generate() -> Result<Self, CryptoFailure> {
        let make = || {
            let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
            PKey::from_ec_key(EcKey::generate(&group)?)
        };
        make()
            .map(Self)
            .map_err(CryptoFailure::of("generate a P-256 key"))
    }

    /// Reads an unencrypted PEM key (PKCS#8, SEC1 or PKCS#1).
    ///
    /// # Errors
    /// When the text holds no key that BoringSSL can read without a pass phrase.
    pub fn from_pem(pem: &str) -> Result<Self, CryptoFailure> {
        // The callback form keeps BoringSSL from asking for a pass phrase on the terminal.
        PKey::private_key_from_pem_callback(pem.as_bytes(), |_| Ok(0))
            .map(Self)
            .map_err(CryptoFailure::of("read a private key"))
    }

    /// The key as PKCS#8 PEM: a secret, for a file of mode 0600 at most.
    ///
    /// # Errors
    /// When BoringSSL cannot encode it.
    pub fn to_pem(&self) -> Result<String, CryptoFailure> {
        let what = "encode a private key";
        let bytes = self
            .0
            .private_key_to_pem_pkcs8()
            .map_err(CryptoFailure::of(what))?;
        String::from_utf8(bytes).map_err(CryptoFailure::of(what))
    }

    pub(crate) const fn pkey(&self) -> &PKey<Private> {
        &self.0
    }

    pub(crate) fn to_der(&self) -> Result<PrivateKeyDer<'static>, CryptoFailure> {
        let der = self
            .0
            .private_key_to_der_pkcs8()
            .map_err(CryptoFailure::of("encode a private key"))?;
        Ok(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der)))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

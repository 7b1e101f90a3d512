use std::sync::{Arc, OnceLock};

use rustls::crypto::CryptoProvider;
use rustls::{KeyLog, KeyLogFile};

use crate::CryptoFailure;

/// The one cryptography of the mesh: BoringSSL, X25519MLKEM768 first, classical groups as
/// fallback, TLS 1.3 suites only, AES-128-GCM first (measured fastest with hardware AES).
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| {
        let mut provider = boring_rustls_provider::provider();
        // Key exchange order stays the provider's: the post-quantum hybrid comes first.
        provider.cipher_suites = vec![
            rustls::SupportedCipherSuite::Tls13(&boring_rustls_provider::tls13::AES_128_GCM_SHA256),
            rustls::SupportedCipherSuite::Tls13(&boring_rustls_provider::tls13::AES_256_GCM_SHA384),
        ];
        Arc::new(provider)
    }))
}

/// What encrypts here, for start-up logs and dumps.
#[must_use]
pub const fn description() -> &'static str {
    "BoringSSL (rustls, X25519MLKEM768)"
}

/// Fills `buffer` from BoringSSL's random generator.
///
/// # Errors
/// When the system has no randomness to give.
pub fn random(buffer: &mut [u8]) -> Result<(), CryptoFailure> {
    boring::rand::rand_bytes(buffer).map_err(CryptoFailure::of("random bytes"))
}

/// Session secrets go where `SSLKEYLOGFILE` says, if set: for reading one's own captures.
pub(crate) fn key_log() -> Arc<dyn KeyLog> {
    static KEY_LOG: OnceLock<Arc<KeyLogFile>> = OnceLock::new();
    Arc::clone(KEY_LOG.get_or_init(|| Arc::new(KeyLogFile::new()))) as Arc<dyn KeyLog>
}

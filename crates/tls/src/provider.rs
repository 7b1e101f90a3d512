use std::sync::{Arc, OnceLock};

use boring_rustls_provider::{tls12, tls13};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{KeyLog, KeyLogFile, NamedGroup, SupportedCipherSuite, SupportedProtocolVersion};

use crate::CryptoFailure;

/// What a process offers and accepts, where that is not the default: TLS 1.3 only, with the hybrid key
/// exchange first and classical ones as fallback.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TlsPolicy {
    /// TLS 1.2 as well, with forward secrecy and AES-GCM only.
    pub tls12: bool,
    /// No key exchange but X25519MLKEM768, which TLS 1.2 does not have.
    pub post_quantum_only: bool,
}

/// TLS has been used already, with another policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("TLS is in use already: its policy is set once, at the start")]
pub struct PolicyInForce;

static POLICY: OnceLock<TlsPolicy> = OnceLock::new();

/// Sets the policy of this process. Call it before anything uses TLS.
///
/// # Errors
/// When another one is in force.
pub fn set_policy(policy: TlsPolicy) -> Result<(), PolicyInForce> {
    if *POLICY.get_or_init(|| policy) == policy {
        Ok(())
    } else {
        Err(PolicyInForce)
    }
}

fn policy() -> TlsPolicy {
    *POLICY.get_or_init(TlsPolicy::default)
}

/// The one cryptography of the mesh: BoringSSL, X25519MLKEM768 first, classical groups as
/// fallback, TLS 1.3 suites only, AES-128-GCM first (measured fastest with hardware AES); what
/// [`TlsPolicy`] says otherwise apart.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(provider_of(policy()))))
}

/// For servers that are no part of the mesh: TLS 1.2 as well, whatever the mesh's own policy.
pub(crate) fn provider_outwards() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let wide = || {
        Arc::new(provider_of(TlsPolicy {
            tls12: true,
            post_quantum_only: policy().post_quantum_only,
        }))
    };
    Arc::clone(PROVIDER.get_or_init(wide))
}

/// Versions to offer and accept.
pub(crate) fn versions() -> &'static [&'static SupportedProtocolVersion] {
    versions_of(policy())
}

pub(crate) fn versions_of(policy: TlsPolicy) -> &'static [&'static SupportedProtocolVersion] {
    static NEWEST: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
    static BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];
    if policy.tls12 { BOTH } else { NEWEST }
}

pub(crate) fn provider_of(policy: TlsPolicy) -> CryptoProvider {
    use SupportedCipherSuite::{Tls12, Tls13};
    let mut provider = boring_rustls_provider::provider();
    provider.cipher_suites = vec![
        Tls13(&tls13::AES_128_GCM_SHA256),
        Tls13(&tls13::AES_256_GCM_SHA384),
    ];
    if policy.tls12 {
        provider.cipher_suites.extend([
            Tls12(&tls12::ECDHE_ECDSA_AES256_GCM_SHA384),
            Tls12(&tls12::ECDHE_RSA_AES256_GCM_SHA384),
            Tls12(&tls12::ECDHE_ECDSA_AES128_GCM_SHA256),
            Tls12(&tls12::ECDHE_RSA_AES128_GCM_SHA256),
        ]);
    }
    // Key exchange order stays the provider's: the post-quantum hybrid comes first.
    if policy.post_quantum_only {
        let hybrid =
            |group: &&'static dyn SupportedKxGroup| group.name() == NamedGroup::X25519MLKEM768;
        provider.kx_groups.retain(hybrid);
    }
    provider
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

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(policy: TlsPolicy) -> Vec<NamedGroup> {
        let provider = provider_of(policy);
        provider
            .kx_groups
            .iter()
            .map(|group| group.name())
            .collect()
    }

    #[test]
    fn a_policy_widens_or_narrows_what_is_offered() {
        let plain = TlsPolicy::default();
        assert_eq!(groups(plain)[0], NamedGroup::X25519MLKEM768);
        assert!(groups(plain).contains(&NamedGroup::X25519));
        assert_eq!(versions_of(plain).len(), 1);
        let hybrid = TlsPolicy {
            post_quantum_only: true,
            ..plain
        };
        assert_eq!(groups(hybrid), [NamedGroup::X25519MLKEM768]);
        let older = TlsPolicy {
            tls12: true,
            ..plain
        };
        let suites = provider_of(older).cipher_suites;
        assert_eq!(suites.len(), 6);
        let names: Vec<_> = suites
            .iter()
            .map(|suite| format!("{:?}", suite.suite()))
            .collect();
        assert!(names.iter().all(|name| name.contains("_GCM_")), "{names:?}");
        assert_eq!(versions_of(older).len(), 2);
    }
}

use isobar_types::{Identity, Reason};

/// Why there is no certificate. Shared by everybody who waits for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertError {
    /// The authority cannot be reached.
    #[error("no certificate for {identity}: the authority cannot be reached: {detail}")]
    Unreachable {
        /// Whose certificate.
        identity: Identity,
        /// What was tried and what happened.
        detail: String,
    },
    /// The authority said no.
    #[error("no certificate for {identity}: the authority refuses: {detail}")]
    Refused {
        /// Whose certificate.
        identity: Identity,
        /// Its status and message.
        detail: String,
    },
    /// What came back cannot be used.
    #[error("no certificate for {identity}: the authority's answer cannot be used: {detail}")]
    Unusable {
        /// Whose certificate.
        identity: Identity,
        /// What is wrong with it.
        detail: String,
    },
    /// The last workload with this identity is gone.
    #[error("no certificate: the identity is no longer in use on this node")]
    Forgotten,
    /// The proxy is stopping.
    #[error("no certificate: the proxy is stopping")]
    Stopped,
}

impl CertError {
    /// For metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Unreachable { .. } | Self::Refused { .. } | Self::Unusable { .. } => {
                Reason::NoCertificate
            }
            Self::Forgotten => Reason::WorkloadRemoved,
            Self::Stopped => Reason::Drained,
        }
    }
}

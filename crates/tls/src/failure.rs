/// BoringSSL refused an operation: out of memory, or input it cannot digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {detail}")]
pub struct CryptoFailure {
    what: &'static str,
    detail: String,
}

impl CryptoFailure {
    pub(crate) fn new(what: &'static str, detail: impl std::fmt::Display) -> Self {
        let detail = detail.to_string();
        let detail = if detail.is_empty() {
            "refused without a reason".to_owned()
        } else {
            detail
        };
        Self { what, detail }
    }

    /// For `map_err`: names what was tried.
    pub(crate) fn of<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::new(what, error)
    }
}

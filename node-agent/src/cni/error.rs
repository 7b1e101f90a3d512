use serde_json::json;

/// Codes of the specification's "Well-known error codes" that the plugin uses, and its own from 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The configuration's version is none that the plugin speaks.
    Version = 1,
    /// The container is not known.
    UnknownContainer = 3,
    /// A variable of the environment is missing or wrong.
    Environment = 4,
    /// Reading or writing failed.
    Io = 5,
    /// The configuration is no JSON of the right shape.
    Decode = 6,
    /// The configuration cannot be used.
    Config = 7,
    /// The agent is away, or not done yet: the runtime shall try again.
    TryAgain = 11,
    /// The plugin cannot serve anybody now.
    Unavailable = 50,
    /// A pod that should be redirected is not.
    NotRedirected = 100,
}

/// Why the plugin failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}{details}", if details.is_empty() { "" } else { ": " })]
pub struct CniError {
    /// What kind of failure.
    pub code: Code,
    /// In short.
    pub message: String,
    /// At length; may be empty.
    pub details: String,
}

impl CniError {
    /// A failure of this kind.
    pub fn new(code: Code, message: impl Into<String>, details: &(impl ToString + ?Sized)) -> Self {
        Self {
            code,
            message: message.into(),
            details: details.to_string(),
        }
    }

    /// The object that the specification wants on standard output, in the caller's version.
    #[must_use]
    pub fn to_json(&self, version: &str) -> String {
        json!({
            "cniVersion": version,
            "code": self.code as u32,
            "msg": self.message,
            "details": self.details,
        })
        .to_string()
    }
}

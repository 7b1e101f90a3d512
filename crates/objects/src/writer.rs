use std::path::PathBuf;

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::kinds::ObjectRef;
use crate::object::Object;

/// Why an object could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The file could not be read, written or renamed.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The object cannot be written as JSON.
    #[error("{object} cannot be written as JSON: {error}")]
    Encode {
        /// The object.
        object: ObjectRef,
        /// What is wrong with it.
        error: serde_json::Error,
    },
    /// The API server refused it, or could not be reached.
    #[error("{object}: {error}")]
    Refused {
        /// The object.
        object: ObjectRef,
        /// What the server said, or what went wrong on the way to it.
        error: String,
    },
    /// The API server's answer is that it does not take the object as it is.
    #[error("{object}: {message}")]
    Rejected {
        /// The object.
        object: ObjectRef,
        /// What the server said.
        message: String,
    },
    /// A name or namespace that is none.
    #[error("{object} has no usable name")]
    Name {
        /// The object.
        object: ObjectRef,
    },
}

/// Writes objects back to where they come from.
///
/// Each writer owns what it wrote: `apply` replaces its own earlier version, `delete` takes back
/// what it applied and patched, and neither touches what others wrote.
#[async_trait]
pub trait ObjectWriter: Send + Sync + 'static {
    /// Writes a whole object.
    async fn apply(&self, object: &Object) -> Result<(), WriteError>;

    /// Writes a new object; an error if there is one of its name. A writer to whose place nobody else
    /// writes may replace its own.
    async fn create(&self, object: &Object) -> Result<(), WriteError> {
        self.apply(object).await
    }

    /// Merges `patch` (JSON merge patch; null deletes) into an object that somebody else owns.
    /// Patches of one writer add up. Without the object a patch has no effect.
    async fn patch(&self, object: &ObjectRef, patch: &Value) -> Result<(), WriteError>;

    /// Takes back what this writer applied and patched. Not an error if there is nothing.
    async fn delete(&self, object: &ObjectRef) -> Result<(), WriteError>;

    /// As [`Self::patch`], for the object that was given this `uid`: another one that has its name by
    /// now stays as it is. A writer that does not know which one it writes to goes by the name.
    async fn patch_exactly(
        &self,
        object: &ObjectRef,
        uid: &str,
        patch: &Value,
    ) -> Result<(), WriteError> {
        let _ = uid;
        self.patch(object, patch).await
    }

    /// As [`Self::delete`], of the object that was given this `uid`, as in [`Self::patch_exactly`].
    async fn delete_exactly(&self, object: &ObjectRef, uid: &str) -> Result<(), WriteError> {
        let _ = uid;
        self.delete(object).await
    }

    /// Merges into `status`.
    async fn patch_status(&self, object: &ObjectRef, status: &Value) -> Result<(), WriteError> {
        self.patch(object, &json!({ "status": status })).await
    }
}

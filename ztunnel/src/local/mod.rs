//! A mesh told in a file or variable (`LOCAL_XDS`) instead of, or beside, a control plane: objects in
//! the shape of the dump, unknown keys refused. For tests and machines without a cluster.

mod mesh;
mod policy;

use isobar_state::{ConvertError, Snapshot};
use serde::{Deserialize, Serialize};

pub use mesh::{Service, Workload};
pub use policy::Policy;

/// Everything told locally.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalMesh {
    /// Workloads, of this node and others.
    #[serde(default)]
    pub workloads: Vec<Workload>,
    /// Services.
    #[serde(default)]
    pub services: Vec<Service>,
    /// L4 policies.
    #[serde(default)]
    pub policies: Vec<Policy>,
}

/// Why a local mesh cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Not YAML of this shape.
    #[error("{0}")]
    Syntax(String),
    /// An address, range or key that cannot be understood.
    #[error("{object}: {field}: {value:?} is not {expected}")]
    Value {
        /// Which object.
        object: String,
        /// Key in it.
        field: &'static str,
        /// What was given.
        value: String,
        /// What would do.
        expected: &'static str,
    },
    /// The object as a whole is refused, as it would be from a control plane.
    #[error("{object}: {source}")]
    Object {
        /// Which object.
        object: String,
        /// Why.
        #[source]
        source: ConvertError,
    },
}

impl LocalMesh {
    /// Reads YAML or JSON.
    ///
    /// # Errors
    /// When it does not have the shape, names an unknown key, or an object could not be used.
    pub fn parse(text: &str) -> Result<Self, LocalError> {
        let mesh: Self =
            serde_saphyr::from_str(text).map_err(|error| LocalError::Syntax(error.to_string()))?;
        mesh.apply(&Snapshot::default())?;
        Ok(mesh)
    }

    /// True if nothing is told.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.workloads.is_empty() && self.services.is_empty() && self.policies.is_empty()
    }

    /// `snapshot` with these objects; those of the same name are replaced.
    ///
    /// # Errors
    /// At the first object that cannot be used.
    pub fn apply(&self, snapshot: &Snapshot) -> Result<Snapshot, LocalError> {
        let mut draft = snapshot.draft();
        let refused = |object: String| move |source| LocalError::Object { object, source };
        for policy in &self.policies {
            let object = format!("policy {}/{}", policy.namespace, policy.name);
            draft
                .upsert_authorization(&policy.wire(&object)?)
                .map_err(refused(object))?;
        }
        for service in &self.services {
            let object = format!("service {}/{}", service.namespace, service.hostname);
            draft
                .upsert_address(&service.wire(&object)?)
                .map_err(refused(object))?;
        }
        for workload in &self.workloads {
            let object = format!("workload {}", workload.uid);
            draft
                .upsert_address(&workload.wire(&object)?)
                .map_err(refused(object))?;
        }
        Ok(draft.finish())
    }
}

fn bad(object: &str, field: &'static str, value: &str, expected: &'static str) -> LocalError {
    LocalError::Value {
        object: object.to_owned(),
        field,
        value: value.to_owned(),
        expected,
    }
}

/// An address as bytes.
fn address(object: &str, field: &'static str, text: &str) -> Result<Vec<u8>, LocalError> {
    match text.parse() {
        Ok(std::net::IpAddr::V4(ip)) => Ok(ip.octets().to_vec()),
        Ok(std::net::IpAddr::V6(ip)) => Ok(ip.octets().to_vec()),
        Err(_) => Err(bad(object, field, text, "an IP address")),
    }
}

#[cfg(test)]
mod tests;

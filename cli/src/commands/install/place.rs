//! Which of several installations is meant.

use std::fmt;

use anyhow::bail;
use isobar_chart::{Chart, ChartError, Values};
use isobar_kubernetes::Installer;
use serde_json::{Value, json};

use super::record::Record;
use super::{CHART, MANAGED, REVISION};
use crate::arguments::Named;

/// The one chart that a control plane beside the first one consists of.
const CONTROL_PLANE: &str = "control-plane";

/// An installation: of the whole mesh, or of a further control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) namespace: String,
    /// Name of the further control plane.
    pub(super) revision: Option<String>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            None => write!(f, "the mesh in namespace {}", self.namespace),
            Some(name) => write!(f, "revision {name} in namespace {}", self.namespace),
        }
    }
}

impl Place {
    pub(super) fn new(namespace: &str, named: &Named) -> Self {
        Self {
            namespace: namespace.to_owned(),
            revision: named.revision.clone(),
        }
    }

    /// A name of its installation.
    pub(super) fn suffixed(&self, base: &str) -> String {
        match &self.revision {
            None => base.to_owned(),
            Some(name) => format!("{base}-{name}"),
        }
    }

    /// Ends where a further control plane has no first one, whose nodes and definitions it uses.
    pub(super) async fn stands_beside(&self, installer: &Installer) -> anyhow::Result<()> {
        if self.revision.is_none() {
            return Ok(());
        }
        let first = Self {
            revision: None,
            namespace: self.namespace.clone(),
        };
        if Record::read(installer, &first).await?.is_none() {
            bail!("{first} is not installed: --revision puts another control plane beside it");
        }
        Ok(())
    }

    /// The charts that it consists of.
    pub(super) fn charts(&self, values: &Values) -> Result<Vec<Chart>, ChartError> {
        match self.revision {
            None => Chart::wanted(values),
            Some(_) => Ok(vec![Chart::named(CONTROL_PLANE)?]),
        }
    }

    /// `values` with what makes it one beside the first.
    pub(super) fn values(&self, values: &Values) -> anyhow::Result<Values> {
        let mut all = values.clone();
        if let Some(name) = &self.revision {
            let own = format!("{CONTROL_PLANE}.revision={name},{CONTROL_PLANE}.gatewayClass=false");
            all.set(&own)?;
        }
        Ok(all)
    }

    /// Selects what it consists of.
    pub(super) fn selector(&self) -> String {
        let own = match &self.revision {
            None => format!("!{REVISION}"),
            Some(name) => format!("{REVISION}={name}"),
        };
        format!("{}={},{CHART},{own}", MANAGED.0, MANAGED.1)
    }

    /// Labels the object as a part of it.
    pub(super) fn mark(&self, object: &mut Value, chart: &str) {
        let labels = &mut object["metadata"]["labels"];
        labels[MANAGED.0] = json!(MANAGED.1);
        labels[CHART] = json!(chart);
        if let Some(name) = &self.revision {
            labels[REVISION] = json!(name);
        }
    }

    /// True for what is a part of it.
    pub(super) fn has(&self, live: &Value) -> bool {
        let labels = &live["metadata"]["labels"];
        let is_managed = labels[MANAGED.0] == MANAGED.1 && labels[CHART].is_string();
        is_managed && labels[REVISION].as_str() == self.revision.as_deref()
    }
}

//! What is remembered of an installation, in the cluster itself.

use anyhow::Context as _;
use isobar_chart::Values;
use isobar_kubernetes::Installer;
use serde_json::{Value, json};

use super::place::Place;

/// Name of the ConfigMap.
pub(super) const NAME: &str = "isobar-install";

/// An installation as it was left.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) version: String,
    /// Everything that users set, now and before.
    pub(super) values: Values,
}

impl Record {
    /// The one of `place`, if there is one.
    pub(super) async fn read(installer: &Installer, place: &Place) -> anyhow::Result<Option<Self>> {
        let (namespace, name) = (&place.namespace, place.suffixed(NAME));
        let like = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": name, "namespace": namespace },
        });
        let Some(found) = installer.get(&like).await? else {
            return Ok(None);
        };
        let text = |key: &str| found["data"][key].as_str().unwrap_or_default();
        let values = Values::read(text("values"))
            .with_context(|| format!("ConfigMap {namespace}/{name}, values"))?;
        Ok(Some(Self {
            version: text("version").to_owned(),
            values,
        }))
    }
}

/// The object that remembers this installation.
pub(super) fn object(place: &Place, values: &Values) -> Value {
    let mut record = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": place.suffixed(NAME),
            "namespace": place.namespace,
            "labels": { "app.kubernetes.io/part-of": "isobar" },
        },
        "data": {
            "version": env!("CARGO_PKG_VERSION"),
            "values": values.text(),
        },
    });
    place.mark(&mut record, "install");
    record
}

/// True if version `a` is older than `b`; what is no version is not compared.
pub(super) fn is_older(a: &str, b: &str) -> bool {
    let numbers = |text: &str| -> Option<Vec<u64>> {
        let core = text.split(['-', '+']).next().unwrap_or_default();
        core.split('.').map(|part| part.parse().ok()).collect()
    };
    match (numbers(a), numbers(b)) {
        (Some(a), Some(b)) => a < b,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert!(is_older("0.9.0", "0.10.0"));
        assert!(!is_older("1.0.0", "0.10.0"));
        assert!(!is_older("0.1.0", "0.1.0-rc1"));
        assert!(!is_older("0.1.0", "unknown"));
    }
}

//! What a control plane is called where there are several in a cluster, and what is its to do then.
//!
//! One of them is the default: the one without a name, or called `default`, by its own name or by a
//! tag. It runs the waypoints that ask for nobody, judges objects that name nobody, and tells what
//! there is to say about objects that cannot name a control plane, such as Services.

use std::collections::BTreeMap;

use isobar_objects::{Kind, ObjectRef, ObjectSet};

use crate::config::Config;

/// Label that says which control plane an object is for.
pub(crate) const LABEL: &str = "istio.io/rev";
/// What the one without a name is called.
const DEFAULT: &str = "default";

/// The names of a control plane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Revision {
    name: String,
    tags: Vec<String>,
}

impl Revision {
    /// As the configuration says.
    pub(crate) fn of(config: &Config) -> Self {
        Self::new(&config.revision, &config.revision_tag)
    }

    /// With a name, which is empty for the default one, and more names for Gateways.
    pub(crate) fn new(name: &str, tags: &[String]) -> Self {
        Self {
            name: name.to_owned(),
            tags: tags.to_vec(),
        }
    }

    /// Its name in labels.
    pub(crate) fn name(&self) -> &str {
        match &*self.name {
            "" => DEFAULT,
            name => name,
        }
    }

    /// Its name, unless that is the one which needs not be said.
    pub(crate) fn own_name(&self) -> Option<&str> {
        Some(self.name()).filter(|name| *name != DEFAULT)
    }

    /// `base`, or `base-NAME`: objects of its installation are called so.
    pub(crate) fn suffixed(&self, base: &str) -> String {
        match self.own_name() {
            None => base.to_owned(),
            Some(name) => format!("{base}-{name}"),
        }
    }

    /// True for the one that has what names nobody.
    pub(crate) fn is_default(&self) -> bool {
        self.name() == DEFAULT || self.tags.iter().any(|tag| tag == DEFAULT)
    }

    /// True if an object of a mesh kind with this label counts: everybody has what names nobody.
    pub(crate) fn takes(&self, label: Option<&str>) -> bool {
        label.is_none_or(|name| name == self.name())
    }

    /// True if what runs a Gateway is its to write. Here tags count too, and the namespace's label.
    pub(crate) fn runs(&self, set: &ObjectSet, namespace: &str, name: &str) -> bool {
        let gateway = ObjectRef::new(Kind::Gateway, namespace, name);
        let space = ObjectRef::new(Kind::Namespace, "", namespace);
        let wanted = label(set, &gateway).or_else(|| label(set, &space));
        match wanted {
            None => self.is_default(),
            Some(wanted) => wanted == self.name() || self.tags.contains(wanted),
        }
    }

    /// True if it is the one that writes on an object of somebody else's.
    pub(crate) fn tells(&self, set: &ObjectSet, object: &ObjectRef) -> bool {
        if object.known() == Some(Kind::Gateway) {
            return self.runs(set, &object.namespace, &object.name);
        }
        self.tells_one(label(set, object))
    }

    /// The same of an object with these labels, other than a Gateway.
    pub(crate) fn tells_one_with(&self, labels: &BTreeMap<String, String>) -> bool {
        self.tells_one(labels.get(LABEL))
    }

    fn tells_one(&self, wanted: Option<&String>) -> bool {
        match wanted {
            None => self.is_default(),
            Some(wanted) => wanted == self.name(),
        }
    }

    /// True if labels are those of something that it made.
    pub(crate) fn made(&self, labels: &BTreeMap<String, String>) -> bool {
        labels.get(LABEL).map(String::as_str) == self.own_name()
    }
}

fn label<'a>(set: &'a ObjectSet, object: &ObjectRef) -> Option<&'a String> {
    set.labels(object)?.get(LABEL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::golden_tests::objects;

    const OBJECTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: new, labels: {istio.io/rev: stable}}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {ports: [{port: 80}]}
";

    fn gateway(namespace: &str, name: &str, rev: &str) -> String {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
             metadata: {{name: {name}, namespace: {namespace}, labels: {{{rev}}}}}\n\
             spec: {{gatewayClassName: isobar-waypoint, listeners: [{{name: m, port: 15008, protocol: HBONE}}]}}\n"
        )
    }

    #[test]
    fn every_gateway_is_run_by_one() {
        let yaml = [
            OBJECTS.to_owned(),
            gateway("new", "by-namespace", ""),
            gateway("new", "mine", "istio.io/rev: v2"),
            gateway("shop", "plain", ""),
        ];
        let set = objects(&yaml.concat());
        let stable = ["stable".to_owned()];
        for (who, runs) in [
            (Revision::default(), [false, false, true]),
            (Revision::new("default", &[]), [false, false, true]),
            (Revision::new("v2", &[]), [false, true, false]),
            (Revision::new("v2", &stable), [true, true, false]),
            (
                Revision::new("v1", &["default".to_owned()]),
                [false, false, true],
            ),
        ] {
            let all = [("new", "by-namespace"), ("new", "mine"), ("shop", "plain")];
            let found = all.map(|(namespace, name)| who.runs(&set, namespace, name));
            assert_eq!(found, runs, "{who:?}");
        }
    }

    #[test]
    fn what_names_nobody_is_the_default_ones_to_write_on() {
        let set = objects(OBJECTS);
        let service = ObjectRef::new(Kind::Service, "shop", "cart");
        assert!(Revision::default().tells(&set, &service));
        assert!(!Revision::new("v2", &[]).tells(&set, &service));
        assert!(Revision::new("v2", &["default".to_owned()]).tells(&set, &service));
    }

    #[test]
    fn names_of_an_installation_tell_whose_it_is() {
        assert_eq!(Revision::default().suffixed("isobard"), "isobard");
        assert_eq!(Revision::new("default", &[]).suffixed("isobard"), "isobard");
        let second = Revision::new("v2", &[]);
        assert_eq!(second.suffixed("isobard"), "isobard-v2");
        let labels = BTreeMap::from([(LABEL.to_owned(), "v2".to_owned())]);
        assert!(second.made(&labels) && !second.made(&BTreeMap::new()));
        assert!(!Revision::default().made(&labels) && Revision::default().made(&BTreeMap::new()));
    }
}

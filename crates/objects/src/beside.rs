use crate::claims::{self, Claims, Contender};
use crate::finding::Finding;
use crate::object::{Object, ObjectHead as _};
use crate::set::{ObjectSet, Origin};
use crate::validate::{Extent, validate_set};

/// What there is to say about an object that is about to be among these: what it refers to and is not
/// there, and hosts that another one has already.
#[must_use]
pub fn beside(set: &ObjectSet, object: &Object) -> Vec<Finding> {
    let mut set = set.clone();
    let reference = object.reference();
    set.insert(object.clone(), Origin::nowhere());
    let mut findings: Vec<Finding> = validate_set(&set, Extent::Mesh)
        .into_iter()
        .filter(|finding| finding.object.as_ref() == Some(&reference))
        .collect();
    if let Object::VirtualService(_) = object {
        let contenders = set.virtual_services.iter().map(|held| Contender {
            object: &held.object,
            // Of one age, that of others counts: it may be in force already.
            order: usize::from(held.object.reference() == reference),
        });
        let settled = claims::settle(contenders.collect(), &Claims::default(), &set);
        let refused = settled.refused.into_iter();
        let refused = refused.filter(|(refused, _)| *refused == reference);
        findings.extend(refused.map(|(_, finding)| finding.about(&reference)));
    }
    // It is in no file.
    for finding in &mut findings {
        (finding.file, finding.line) = (None, None);
    }
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::read::read_value;

    fn route(name: &str, created: Option<&str>) -> Object {
        let value: Value = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": { "name": name, "namespace": "shop", "creationTimestamp": created },
            "spec": {
                "hosts": ["x.example"],
                "http": [{ "route": [{ "destination": { "host": "x.example" } }] }],
            },
        });
        read_value(&value).0.unwrap()
    }

    #[test]
    fn a_host_that_another_has_is_told_to_who_comes_later() {
        let set = ObjectSet::of([route("a", Some("2026-01-01T00:00:00Z"))]);
        let told = beside(&set, &route("b", Some("2026-01-02T00:00:00Z")));
        assert!(
            told.iter()
                .any(|one| one.message.contains("already routed by")),
            "{told:?}"
        );
        assert!(told.iter().all(|one| one.file.is_none()), "{told:?}");
        let again = beside(&set, &route("a", Some("2026-01-01T00:00:00Z")));
        assert!(!again.iter().any(Finding::is_error), "{again:?}");
    }
}

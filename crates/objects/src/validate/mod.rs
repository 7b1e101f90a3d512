use crate::finding::Finding;
use crate::object::Object;
use crate::set::ObjectSet;

/// What is wrong or worth knowing about one object on its own, beyond types: used by the directory
/// source, by `isobard --validate` and by the admission webhook.
#[must_use]
pub fn validate(_object: &Object) -> Vec<Finding> {
    Vec::new()
}

/// What is worth knowing about the objects of a set together: routes to hosts that do not exist,
/// subsets without a rule and the like. Warnings only.
#[must_use]
pub fn validate_set(_set: &ObjectSet) -> Vec<Finding> {
    Vec::new()
}

//! Second waypoints without a first one.

use std::sync::Arc;

use isobar_types::labels;
use k8s_openapi::api::core::v1::Service;

use crate::code::Code;
use crate::finding::Finding;
use crate::istio::ServiceEntry;
use crate::object::ObjectHead;
use crate::set::{Held, ObjectSet};

/// Says where a second waypoint is named that can take no calls, as there is no first one.
pub(super) fn check(set: &ObjectSet, findings: &mut Vec<Finding>) {
    for held in set.namespaces.iter() {
        if names_second(&held.object) && !names_first(&held.object) {
            findings.push(finding(held));
        }
    }
    of_kind::<Service>(set, findings);
    of_kind::<ServiceEntry>(set, findings);
}

fn of_kind<T: ObjectHead>(set: &ObjectSet, findings: &mut Vec<Finding>) {
    for held in T::map(set).iter() {
        let object = &held.object;
        if !names_second(object) || names_first(object) {
            continue;
        }
        let home = set.namespaces.get("", object.namespace());
        // It may be in another folder.
        let of_home = home.is_none_or(|home| names_first(&home.object));
        // A Service may have that of its pods' account, too.
        let mut accounts = set.service_accounts.in_namespace(object.namespace());
        let inherited = of_home || accounts.any(|account| names_first(&account.object));
        let opted_out = object.label(labels::USE_WAYPOINT) == Some("none");
        if opted_out || !inherited {
            findings.push(finding(held));
        }
    }
}

fn names_first(object: &impl ObjectHead) -> bool {
    names(object.label(labels::USE_WAYPOINT))
}

fn names_second(object: &impl ObjectHead) -> bool {
    names(object.label(labels::USE_WAYPOINT_CANARY))
}

fn names(label: Option<&str>) -> bool {
    label.is_some_and(|name| !name.is_empty() && name != "none")
}

fn finding<T: ObjectHead>(object: &Held<T>) -> Finding {
    let field = format!("metadata.labels[{}]", labels::USE_WAYPOINT_CANARY);
    let message = format!(
        "a second waypoint takes a share of what passes a first one, and label {} names none: no \
         call passes it",
        labels::USE_WAYPOINT
    );
    Finding {
        file: Some(Arc::clone(&object.origin.file)),
        line: Some(object.origin.line),
        object: Some(object.reference()),
        hint: Some(format!(
            "name the first waypoint with label {}",
            labels::USE_WAYPOINT
        )),
        ..Finding::warning(field, message).of(Code::ADVICE)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::read::read_text;

    fn told(yaml: &str) -> Vec<String> {
        let read = read_text(Path::new("test.yaml"), yaml);
        let set = ObjectSet::of(read.objects.into_iter().map(|read| read.object));
        let mut findings = Vec::new();
        check(&set, &mut findings);
        let about = findings.into_iter().filter_map(|one| one.object);
        about.map(|object| object.to_string()).collect()
    }

    #[test]
    fn a_second_waypoint_needs_a_first_one() {
        let canary = "istio.io/use-waypoint-canary: b";
        let first = "istio.io/use-waypoint: a";
        let home = |labels: &str| {
            format!(
                "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{{labels}}}}}\n"
            )
        };
        let service = |labels: &str| {
            format!(
                "---\napiVersion: v1\nkind: Service\n\
                 metadata: {{name: cart, namespace: shop, labels: {{{labels}}}}}\nspec: {{ports: [{{port: 80}}]}}\n"
            )
        };
        let account = format!(
            "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: cart, namespace: shop, labels: {{{first}}}}}\n"
        );
        let both = format!("{first}, {canary}");
        let out = format!("istio.io/use-waypoint: none, {canary}");
        let lonely = ["Service shop/cart"];
        assert_eq!(told(&(home("") + &service(canary))), lonely);
        assert_eq!(told(&(home(first) + &service(&out))), lonely);
        assert_eq!(told(&home(canary)), ["Namespace shop"]);
        for good in [
            home("") + &service(&both),
            home(first) + &service(canary),
            home("") + &service(canary) + &account,
            service(canary),
            home(&both) + &service(""),
            home("") + &service("istio.io/use-waypoint-canary: none"),
        ] {
            assert!(told(&good).is_empty(), "{good}");
        }
    }
}

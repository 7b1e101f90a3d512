use isobar_objects::gateway_api::Gateway;
use isobar_objects::{ObjectHead, ObjectSet};
use isobar_types::labels;
use serde_json::{Value, json};

use super::bound::bound;
use crate::output::{Table, cell};

pub(super) fn waypoints<'a>(
    objects: &'a ObjectSet,
    namespace: Option<&str>,
    name: Option<&str>,
) -> Vec<&'a Gateway> {
    objects
        .gateways
        .iter()
        .map(|held| &held.object)
        .filter(|gateway| is_waypoint(gateway))
        .filter(|gateway| namespace.is_none_or(|namespace| gateway.namespace() == namespace))
        .filter(|gateway| name.is_none_or(|name| gateway.name() == name))
        .collect()
}

pub(super) fn is_waypoint(gateway: &Gateway) -> bool {
    let ours = [labels::WAYPOINT_CLASS, labels::ISTIO_WAYPOINT_CLASS];
    ours.contains(&gateway.spec.gateway_class_name.as_str())
}

pub(super) fn values(gateways: &[&Gateway]) -> anyhow::Result<Value> {
    let all: Result<Vec<Value>, _> = gateways.iter().map(serde_json::to_value).collect();
    Ok(all?.into())
}

pub(super) fn list_table(objects: &ObjectSet, gateways: &[&Gateway]) -> Table {
    let mut table = Table::new([
        "NAMESPACE",
        "NAME",
        "TRAFFIC TYPE",
        "SERVICE ACCOUNT",
        "PROGRAMMED",
        "BOUND",
    ]);
    for gateway in gateways {
        let programmed = if gateway.is_programmed() {
            "True"
        } else {
            "False"
        };
        table.row([
            gateway.namespace().to_owned(),
            gateway.name().to_owned(),
            gateway
                .label(labels::WAYPOINT_FOR)
                .unwrap_or("service")
                .to_owned(),
            gateway
                .annotation(labels::FOR_SERVICE_ACCOUNT)
                .unwrap_or("-")
                .to_owned(),
            programmed.to_owned(),
            bound_text(objects, gateway),
        ]);
    }
    table
}

fn bound_text(objects: &ObjectSet, gateway: &Gateway) -> String {
    let all = bound(objects, gateway.namespace(), gateway.name());
    let names: Vec<_> = all.iter().map(ToString::to_string).collect();
    if names.is_empty() {
        "-".to_owned()
    } else {
        names.join(", ")
    }
}

pub(super) fn status_table(gateways: &[&Gateway]) -> Table {
    let mut table = Table::new(["NAMESPACE", "NAME", "STATUS", "TYPE", "REASON", "MESSAGE"]);
    for gateway in gateways {
        let conditions = gateway.gateway_status().unwrap_or_default().conditions;
        let head = || [gateway.namespace().to_owned(), gateway.name().to_owned()];
        if conditions.is_empty() {
            let rest = [
                "Unknown",
                "-",
                "-",
                "the control plane has said nothing yet",
            ];
            table.row(head().into_iter().chain(rest.map(str::to_owned)));
        }
        for condition in conditions {
            let rest = [
                condition.status,
                condition.type_,
                condition.reason,
                condition.message,
            ];
            table.row(head().into_iter().chain(rest));
        }
    }
    table
}

/// The conditions that do not hold, for an error message.
pub(super) fn unready(gateway: &Gateway) -> String {
    let conditions = gateway.gateway_status().unwrap_or_default().conditions;
    let failing: Vec<String> = conditions
        .iter()
        .filter(|condition| condition.status != "True")
        .map(|condition| format!("{}: {}", condition.type_, cell(&json!(condition.message))))
        .collect();
    failing.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::waypoint::apply::gateway;
    use crate::commands::waypoint::apply::tests::{account, apply};
    use crate::output::plain;

    #[test]
    fn waypoints_in_tables() {
        let apply = apply("isobar waypoint apply -n shop --service-account cart");
        let mut ready = gateway(&apply, "cart", None);
        ready.status = Some(
            json!({"conditions": [{"type": "Programmed", "status": "True",
            "reason": "Programmed", "message": "serves", "lastTransitionTime":
            "2026-01-01T00:00:00Z"}]}),
        );
        let fresh = gateway(&apply, "fresh", None);
        let all = [&ready, &fresh];
        let objects = ObjectSet::of([account("shop", "cart", "cart")]);
        let text = plain(&list_table(&objects, &all)) + "\n" + &plain(&status_table(&all));
        insta::assert_snapshot!(text);
        assert!(unready(&fresh).is_empty());
    }
}

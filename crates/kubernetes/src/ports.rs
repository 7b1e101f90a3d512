//! Ports of a Service of ours that somebody else put there and that keep ours out.
//!
//! To the server the ports of a Service are a list by number and protocol, and their names are unique.
//! An apply takes over what has our number, but somebody's port with the name of ours and another
//! number makes every apply invalid: it has to go first. Others' ports with names of their own stay.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde_json::{Value, json};

/// Number and protocol.
type Key = (i64, String);

/// The patch that takes away what keeps `wanted` from being applied by `manager` to `now`, a Service of
/// that manager; none if nothing of others does, or nothing would be left.
pub(crate) fn room_for(
    wanted: &Value,
    now: &Value,
    managers: &[ManagedFieldsEntry],
    manager: &str,
) -> Option<Value> {
    let (wanted, there) = (ports(wanted), ports(now));
    let keys: Vec<Key> = wanted.iter().filter_map(key).collect();
    let names: Vec<&str> = wanted.iter().filter_map(|one| name(one)).collect();
    let in_the_way = there.iter().filter(|one| {
        let has_name = name(one).is_some_and(|name| names.contains(&name));
        let Some(key) = key(one) else { return false };
        has_name && !keys.contains(&key) && !is_ours(&key, managers, manager)
    });
    let numbers: Vec<i64> = in_the_way
        .filter_map(key)
        .map(|(number, _)| number)
        .collect();
    let alone = |number: &i64| {
        let same = there
            .iter()
            .filter_map(key)
            .filter(|(one, _)| one == number);
        same.count() == 1
    };
    // By number alone: what else has it would go too.
    if numbers.is_empty() || numbers.len() == there.len() || !numbers.iter().all(alone) {
        return None;
    }
    let gone = numbers
        .iter()
        .map(|number| json!({ "$patch": "delete", "port": number }));
    Some(json!({
        "metadata": { "resourceVersion": now["metadata"]["resourceVersion"] },
        "spec": { "ports": gone.collect::<Vec<_>>() },
    }))
}

fn ports(service: &Value) -> &[Value] {
    service["spec"]["ports"]
        .as_array()
        .map_or(&[], Vec::as_slice)
}

fn name(port: &Value) -> Option<&str> {
    port["name"].as_str()
}

fn key(port: &Value) -> Option<Key> {
    let protocol = port["protocol"].as_str().unwrap_or("TCP");
    Some((port["port"].as_i64()?, protocol.to_owned()))
}

/// True for what this manager applied itself: the apply takes it away where it is not wanted any more.
fn is_ours((number, protocol): &Key, managers: &[ManagedFieldsEntry], manager: &str) -> bool {
    let key = format!("k:{{\"port\":{number},\"protocol\":\"{protocol}\"}}");
    let mut own = managers.iter().filter(|one| {
        one.manager.as_deref() == Some(manager) && one.operation.as_deref() == Some("Apply")
    });
    own.any(|one| {
        let fields = one.fields_v1.as_ref().map(|fields| &fields.0);
        fields.is_some_and(|fields| !fields["f:spec"]["f:ports"][&*key].is_null())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESH: &str = r#"{"name": "mesh", "port": 15008}"#;

    fn service(ports: &[&str]) -> Value {
        let ports: Vec<Value> = ports
            .iter()
            .map(|p| serde_json::from_str(p).unwrap())
            .collect();
        json!({ "metadata": { "resourceVersion": "7" }, "spec": { "ports": ports } })
    }

    fn managers(owned: i64) -> Vec<ManagedFieldsEntry> {
        let entry = json!({
            "manager": "isobar", "operation": "Apply",
            "fieldsV1": { "f:spec": { "f:ports": {
                (format!("k:{{\"port\":{owned},\"protocol\":\"TCP\"}}")): { ".": {} } } } },
        });
        vec![serde_json::from_value(entry).unwrap()]
    }

    fn removed(there: &[&str], owned: i64) -> Vec<i64> {
        let wanted = service(&[
            MESH,
            r#"{"name": "status-port", "port": 15021, "protocol": "TCP"}"#,
        ]);
        let patch = room_for(&wanted, &service(there), &managers(owned), "isobar");
        let Some(patch) = patch else {
            return Vec::new();
        };
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        let gone = patch["spec"]["ports"].as_array().unwrap().iter();
        gone.map(|one| one["port"].as_i64().unwrap()).collect()
    }

    #[test]
    fn only_what_has_the_name_of_ours_and_is_of_others_goes() {
        let moved = r#"{"name": "mesh", "port": 9999, "protocol": "TCP"}"#;
        let status = r#"{"name": "status-port", "port": 15021, "protocol": "TCP"}"#;
        let other = r#"{"name": "debug", "port": 9000, "protocol": "TCP"}"#;
        assert_eq!(removed(&[status, moved, other], 15021), [9999]);
        assert!(removed(&[status, MESH, other], 15021).is_empty());
        // Ours of before goes by itself, and our number is taken over under any name.
        assert!(removed(&[status, moved], 9999).is_empty());
        let renamed = r#"{"name": "status-port", "port": 15008, "protocol": "TCP"}"#;
        assert!(removed(&[renamed, other], 15021).is_empty());
        // A Service has to have a port, and what stands on the same number is not ours to take.
        assert!(removed(&[moved], 15021).is_empty());
        let udp = r#"{"name": "quic", "port": 9999, "protocol": "UDP"}"#;
        assert!(removed(&[status, moved, udp], 15021).is_empty());
    }
}

//! Dumps of several node proxies as one, and parts of one.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::arguments::ZtunnelConfig;

/// Sections that are lists.
const LISTS: [&str; 4] = ["workloads", "services", "policies", "certificates"];

/// What several proxies know, each entry once; one that they see differently stays as often.
pub(super) fn together(dumps: Vec<Value>) -> Value {
    let mut all = json!({ "workloadState": {} });
    for section in LISTS {
        let mut seen = BTreeSet::new();
        let entries = dumps.iter().filter_map(|dump| dump[section].as_array());
        let entries = entries.flatten();
        let entries: Vec<&Value> = entries.filter(|one| seen.insert(one.to_string())).collect();
        all[section] = json!(entries);
    }
    for dump in dumps {
        if let (Value::Object(all), Value::Object(own)) =
            (&mut all["workloadState"], dump["workloadState"].clone())
        {
            all.extend(own);
        }
    }
    all
}

/// Leaves only what flags ask for.
pub(super) fn narrow(dump: &mut Value, what: &ZtunnelConfig) {
    if !dump.is_object() {
        return;
    }
    for (section, namespace) in [
        ("workloads", &what.workload_namespace),
        ("services", &what.service_namespace),
        ("policies", &what.policy_namespace),
    ] {
        if let (Some(namespace), Value::Array(list)) = (namespace, &mut dump[section]) {
            list.retain(|one| one["namespace"] == **namespace);
        }
    }
    if let (Some(address), Value::Array(list)) = (&what.address, &mut dump["workloads"]) {
        list.retain(|one| {
            let all = one["workloadIps"].as_array();
            all.is_some_and(|all| all.iter().any(|one| one == address))
        });
    }
    if let (Some(namespace), Value::Object(pods)) =
        (&what.workload_namespace, &mut dump["workloadState"])
    {
        pods.retain(|_, pod| pod["info"]["namespace"] == **namespace);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Command, Isobar};

    fn flags(line: &str) -> ZtunnelConfig {
        match Isobar::parse_from(line.split(' ')).command {
            Command::ZtunnelConfig(what) => what,
            _ => panic!("another command"),
        }
    }

    #[test]
    fn what_all_know_is_there_once() {
        let dump = |pod: &str| {
            json!({"workloads": [{"name": "a", "namespace": "shop", "workloadIps": ["10.0.0.1"]},
                    {"name": "b", "namespace": "lab", "workloadIps": ["10.0.0.2"]}],
                "services": [{"name": pod, "namespace": "shop"}], "policies": [],
                "certificates": [{"identity": pod}],
                "workloadState": {pod: {"info": {"namespace": "shop"}}}})
        };
        let mut all = together(vec![dump("x"), dump("y")]);
        assert_eq!(all["workloads"].as_array().unwrap().len(), 2);
        assert_eq!(all["services"].as_array().unwrap().len(), 2);
        assert_eq!(all["workloadState"].as_object().unwrap().len(), 2);
        let mut of_shop = all.clone();
        narrow(
            &mut of_shop,
            &flags("isobar zc w --workload-namespace shop"),
        );
        assert_eq!(of_shop["workloads"].as_array().unwrap().len(), 1);
        assert_eq!(of_shop["services"].as_array().unwrap().len(), 2);
        narrow(
            &mut all,
            &flags("isobar zc w --address 10.0.0.2 --service-namespace x"),
        );
        assert_eq!(all["workloads"][0]["name"], "b");
        assert!(all["services"].as_array().unwrap().is_empty());
    }
}

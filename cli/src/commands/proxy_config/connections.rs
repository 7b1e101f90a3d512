use std::collections::BTreeMap;

use serde_json::Value;

use crate::output::{Table, cell};

/// Open connections of every pod of a dump.
pub(super) fn table(dump: &Value) -> Table {
    let mut table = Table::new([
        "WORKLOAD",
        "DIRECTION",
        "LOCAL",
        "REMOTE",
        "REMOTE TARGET",
        "PROTOCOL",
    ]);
    let names = names(dump);
    let named = |place: &Value| named(&names, &cell(place));
    let mut lines = Vec::new();
    for pod in dump["workloadState"].as_object().into_iter().flatten() {
        let info = &pod.1["info"];
        let workload = format!("{}.{}", cell(&info["name"]), cell(&info["namespace"]));
        let of = |direction: &str| {
            let all = pod.1["connections"][direction].as_array();
            all.cloned().unwrap_or_default()
        };
        for one in of("inbound") {
            let (to, from) = (named(&one["actualDst"]), named(&one["src"]));
            let target = named(&one["originalDst"]);
            lines.push((
                workload.clone(),
                "Inbound",
                to,
                from,
                target,
                cell(&one["protocol"]),
            ));
        }
        for one in of("outbound") {
            let (from, to) = (named(&one["src"]), named(&one["actualDst"]));
            let target = named(&one["originalDst"]);
            lines.push((
                workload.clone(),
                "Outbound",
                from,
                to,
                target,
                cell(&one["protocol"]),
            ));
        }
    }
    lines.sort();
    for (workload, direction, local, remote, target, protocol) in lines {
        table.row([
            workload,
            direction.to_owned(),
            local,
            remote,
            target,
            protocol,
        ]);
    }
    table
}

/// Names of workloads and services by address.
fn names(dump: &Value) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for (section, field) in [("workloads", "workloadIps"), ("services", "vips")] {
        for one in dump[section].as_array().into_iter().flatten() {
            let name = match section {
                "services" => cell(&one["hostname"]),
                _ => format!("{}.{}", cell(&one["name"]), cell(&one["namespace"])),
            };
            for address in one[field].as_array().into_iter().flatten() {
                let address = address.as_str().unwrap_or_default();
                let address = address.rsplit('/').next().unwrap_or(address);
                if name != "-" {
                    names.insert(address.to_owned(), name.clone());
                }
            }
        }
    }
    names
}

/// `NAME:PORT` where the address is somebody's.
fn named(names: &BTreeMap<String, String>, place: &str) -> String {
    let Some((address, port)) = place.rsplit_once(':') else {
        return place.to_owned();
    };
    let address = address.trim_start_matches('[').trim_end_matches(']');
    match names.get(address) {
        Some(name) => format!("{name}:{port}"),
        None => place.to_owned(),
    }
}

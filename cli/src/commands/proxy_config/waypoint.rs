use serde_json::Value;

use crate::output::{Table, cell};

pub(super) fn listeners(rows: &[Value]) -> Table {
    let mut table = Table::new([
        "LISTENER",
        "ADDRESSES",
        "PORT",
        "PROTOCOL",
        "DESTINATION",
        "VIRTUAL SERVICE",
    ]);
    for l in rows {
        let addresses = if l["addresses"].is_array() {
            &l["addresses"]
        } else {
            &l["address"]
        };
        table.row([
            cell(&l["name"]),
            cell(addresses),
            cell(&l["port"]),
            cell(&l["protocol"]),
            cell(&l["service"]),
            cell(&l["routes"]),
        ]);
    }
    table
}

pub(super) fn routes(rows: &[Value]) -> Table {
    let mut table = Table::new([
        "VIRTUAL SERVICE",
        "ROUTE",
        "HOSTS",
        "MATCHES",
        "DESTINATION",
    ]);
    for service in rows {
        for (kind, key) in [("http", "http"), ("tcp", "tcp")] {
            let list = service[key]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default();
            for (at, route) in list.iter().enumerate() {
                let name = route["name"].as_str().filter(|name| !name.is_empty());
                table.row([
                    cell(&service["name"]),
                    name.map_or_else(|| format!("{kind}[{at}]"), str::to_owned),
                    cell(&service["hosts"]),
                    matches(&route["matches"]),
                    destination(route),
                ]);
            }
        }
    }
    table
}

fn matches(list: &Value) -> String {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    if list.is_empty() {
        return "*".to_owned();
    }
    let texts: Vec<String> = list.iter().map(conditions).collect();
    texts.join(" or ")
}

/// One match block in words: `uri prefix /a and header end-user = jason`.
fn conditions(one: &Value) -> String {
    let Value::Object(map) = one else {
        return cell(one);
    };
    let mut parts: Vec<String> = Vec::new();
    for (key, value) in map.iter().filter(|(_, value)| cell(value) != "-") {
        let each: Vec<String> = match value {
            Value::Array(list) => list.iter().map(cell).collect(),
            Value::Object(map) => {
                let pair = |(key, value): (&String, &Value)| format!("{key}={}", cell(value));
                map.iter().map(pair).collect()
            }
            other => vec![cell(other)],
        };
        let word = match &**key {
            // A name is no condition.
            "name" => continue,
            "headers" => "header",
            "withoutHeaders" => "without header",
            "ignoreUriCase" => {
                parts.push("uri in any case".to_owned());
                continue;
            }
            "sniHosts" => "server name",
            "subnets" => "subnet",
            "sourceLabels" => "source label",
            "sourceNamespace" => "source namespace",
            other => other,
        };
        // That a header is absent needs no "present".
        let end = if key == "withoutHeaders" {
            " present"
        } else {
            ""
        };
        let words = each
            .iter()
            .map(|text| text.strip_suffix(end).unwrap_or(text));
        parts.extend(words.map(|text| format!("{word} {text}")));
    }
    if parts.is_empty() {
        "*".to_owned()
    } else {
        parts.join(" and ")
    }
}

fn destination(route: &Value) -> String {
    let list = if route["to"].is_null() {
        &route["destinations"]
    } else {
        &route["to"]
    };
    let Some(list) = list.as_array() else {
        return format!("{} {}", cell(&route["action"]), cell(list));
    };
    let texts: Vec<String> = list
        .iter()
        .map(|d| {
            let mut text = cell(&d["host"]);
            if let Some(subset) = d["subset"].as_str() {
                text.push_str(&format!("/{subset}"));
            }
            if let Some(port) = d["port"].as_u64() {
                text.push_str(&format!(":{port}"));
            }
            if list.len() > 1 {
                text.push_str(&format!(" {}/{}", cell(&d["weight"]), cell(&d["of"])));
            }
            text
        })
        .collect();
    texts.join(", ")
}

pub(super) fn clusters(rows: &[Value]) -> Table {
    let mut table = Table::new([
        "SERVICE FQDN",
        "PORT",
        "SUBSET",
        "DIRECTION",
        "TYPE",
        "LABELS",
        "DESTINATION RULE",
    ]);
    for c in rows {
        let host = cell(&c["service"]);
        table.row([
            host.rsplit('/').next().unwrap_or(&host).to_owned(),
            cell(&c["port"]),
            cell(&c["subset"]),
            "outbound".to_owned(),
            cell(&c["balancer"]),
            cell(&c["labels"]),
            cell(&c["destinationRule"]),
        ]);
    }
    table
}

pub(super) fn endpoints(rows: &[Value]) -> Table {
    let mut table = Table::new([
        "ENDPOINT", "STATUS", "WORKLOAD", "PROTOCOL", "SUBSETS", "CLUSTER",
    ]);
    for e in rows {
        let ports = e["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
        for port in ports {
            let healthy = if e["healthy"] == true {
                "Healthy"
            } else {
                "Unhealthy"
            };
            let host = cell(&e["service"]);
            let host = host.rsplit('/').next().unwrap_or(&host);
            table.row([
                format!("{}:{}", cell(&e["addresses"]), cell(&port["target"])),
                healthy.to_owned(),
                cell(&e["workload"]),
                cell(&e["protocol"]),
                cell(&e["subsets"]),
                format!("outbound|{}||{host}", cell(&port["service"])),
            ]);
        }
    }
    table
}

pub(super) fn policies(rows: &[Value]) -> Table {
    let mut table = Table::new(["POLICY NAME", "ACTION", "APPLIES TO", "UNENFORCEABLE"]);
    for p in rows {
        let to = if p["wholeWaypoint"] == true {
            "the whole waypoint".to_owned()
        } else {
            cell(&p["services"])
        };
        table.row([
            cell(&p["name"]),
            cell(&p["action"]),
            to,
            cell(&p["unenforceable"]),
        ]);
    }
    table
}

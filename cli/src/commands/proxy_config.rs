//! `isobar proxy-config` and `isobar ztunnel-config`.

mod connections;
mod merge;
mod proxies;
mod waypoint;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use serde_json::{Map, Value};

use self::proxies::Proxies;
pub(super) use self::proxies::{node_of, waypoint_pod};
use crate::arguments::{Global, ProxyConfig, WaypointSection, ZtunnelConfig, ZtunnelSection};
use crate::output::{Format, Table, cell, print, print_value};

/// `isobar proxy-config`.
pub(crate) async fn run(what: ProxyConfig, global: &Global) -> anyhow::Result<ExitCode> {
    let proxies = Proxies::of(global).await?;
    let (dump, sections) = match what {
        ProxyConfig::Ztunnel {
            name,
            what,
            namespace,
        } => {
            let dump = proxies.of_node(&name, namespace.as_deref()).await?;
            (dump, names(what, ZtunnelSection::All))
        }
        ProxyConfig::Waypoint {
            name,
            what,
            namespace,
        } => {
            let dump = proxies.of_waypoint(&name, namespace.as_deref()).await?;
            (dump, names(what, WaypointSection::All))
        }
    };
    show(&dump, &sections, global.output)?;
    Ok(ExitCode::SUCCESS)
}

/// `isobar ztunnel-config`.
pub(crate) async fn of_nodes(what: &ZtunnelConfig, global: &Global) -> anyhow::Result<ExitCode> {
    let mut dump = match (&what.file, &what.node, &what.pod) {
        (Some(file), ..) => saved(file)?,
        (None, Some(node), _) => Proxies::of(global).await?.of_node(node, None).await?,
        (None, None, Some(pod)) => {
            let proxies = Proxies::of(global).await?;
            proxies.of_pod(pod, what.namespace.as_deref()).await?
        }
        (None, None, None) => merge::together(Proxies::of(global).await?.of_every_node().await?),
    };
    merge::narrow(&mut dump, what);
    show(&dump, &names(what.what, ZtunnelSection::All), global.output)?;
    Ok(ExitCode::SUCCESS)
}

fn saved(file: &Path) -> anyhow::Result<Value> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let dump: Value = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
    if !dump["workloads"].is_array() {
        bail!("{} is no page config_dump of a node proxy", file.display());
    }
    Ok(dump)
}

/// Names of the sections that are meant; they are the keys of the dump.
fn names<T: ValueEnum + PartialEq + Copy>(what: T, all: T) -> Vec<String> {
    let name = |section: &T| {
        section
            .to_possible_value()
            .map(|value| value.get_name().to_owned())
    };
    if what == all {
        let each = T::value_variants()
            .iter()
            .filter(|section| **section != all);
        each.filter_map(name).collect()
    } else {
        name(&what).into_iter().collect()
    }
}

fn show(dump: &Value, sections: &[String], format: Format) -> anyhow::Result<()> {
    if format != Format::Table {
        if let [section] = sections {
            return print_value(&dump[key_of(section)], format);
        }
        return print_value(dump, format);
    }
    let mut text = String::new();
    for section in sections {
        if sections.len() > 1 {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&format!("{section}\n"));
        }
        text.push_str(&table(section, dump).render());
    }
    print(&text)
}

/// Where a dump has a section.
fn key_of(section: &str) -> &str {
    match section {
        "connections" => "workloadState",
        own => own,
    }
}

fn table(section: &str, dump: &Value) -> Table {
    let from_waypoint = dump["proxy"]["kind"] == "waypoint";
    let rows = dump[section]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    match (section, from_waypoint) {
        ("workloads", _) => workloads(rows),
        ("services", _) => services(rows),
        ("policies", false) => policies(rows),
        ("policies", true) => waypoint::policies(rows),
        ("certificates", _) => certificates(rows),
        ("connections", _) => connections::table(dump),
        ("listeners", _) => waypoint::listeners(rows),
        ("routes", _) => waypoint::routes(rows),
        ("clusters", _) => waypoint::clusters(rows),
        _ => waypoint::endpoints(rows),
    }
}

fn workloads(rows: &[Value]) -> Table {
    let mut table = Table::new([
        "NAMESPACE",
        "POD NAME",
        "ADDRESS",
        "NODE",
        "WAYPOINT",
        "PROTOCOL",
        "STATUS",
    ]);
    let mut lines: Vec<_> = rows
        .iter()
        .map(|w| {
            let addresses = [&w["workloadIps"], &w["addresses"], &w["hostname"]]
                .into_iter()
                .map(cell)
                .find(|text| text != "-");
            [
                cell(&w["namespace"]),
                cell(&w["name"]),
                addresses.unwrap_or_else(|| "-".to_owned()),
                cell(&w["node"]),
                waypoint(w),
                cell(&w["protocol"]),
                health(w),
            ]
        })
        .collect();
    lines.sort();
    lines.into_iter().for_each(|line| table.row(line));
    table
}

/// Both proxies' ways to say it.
fn health(workload: &Value) -> String {
    match workload["healthy"].as_bool() {
        Some(true) => "Healthy".to_owned(),
        Some(false) => "Unhealthy".to_owned(),
        None => cell(&workload["status"]),
    }
}

fn services(rows: &[Value]) -> Table {
    let mut table = Table::new([
        "NAMESPACE",
        "SERVICE NAME",
        "SERVICE VIP",
        "WAYPOINT",
        "ENDPOINTS",
    ]);
    // Proxies list them by host name, in which `a-b.ns` comes before `a.ns`.
    let mut rows: Vec<&Value> = rows.iter().collect();
    rows.sort_by_key(|s| (s["namespace"].as_str(), s["name"].as_str()));
    for s in rows {
        let endpoints = s["endpoints"].as_object();
        let all = endpoints.map_or(0, Map::len);
        let healthy = endpoints
            .into_iter()
            .flatten()
            .filter(|(_, endpoint)| endpoint["status"] == "Healthy")
            .count();
        let vips = s["vips"].as_array().map(Vec::as_slice).unwrap_or_default();
        let vips: Vec<_> = vips
            .iter()
            .filter_map(Value::as_str)
            .map(|vip| vip.rsplit('/').next().unwrap_or(vip))
            .collect();
        table.row([
            cell(&s["namespace"]),
            cell(&s["name"]),
            if vips.is_empty() {
                "-".to_owned()
            } else {
                vips.join(",")
            },
            waypoint(s),
            format!("{healthy}/{all}"),
        ]);
    }
    table
}

/// Name of the waypoint: first label of its host name, or its address.
fn waypoint(object: &Value) -> String {
    let weighted = object["weightedWaypoints"].as_array();
    if let Some(list) = weighted.filter(|list| !list.is_empty()) {
        let names: Vec<_> = list
            .iter()
            .map(|entry| {
                let name = short(&cell(&entry["destination"]["destination"]));
                format!("{name}({})", cell(&entry["weight"]))
            })
            .collect();
        return names.join(",");
    }
    match object["waypoint"]["destination"].as_str() {
        Some(destination) => short(destination),
        None => "None".to_owned(),
    }
}

fn short(destination: &str) -> String {
    let host = destination.rsplit('/').next().unwrap_or(destination);
    if host.parse::<std::net::IpAddr>().is_ok() {
        return host.to_owned();
    }
    if host.ends_with(".invalid") {
        // The reserved name that refuses: it is no waypoint of anybody.
        return "(denied)".to_owned();
    }
    host.split('.').next().unwrap_or(host).to_owned()
}

fn policies(rows: &[Value]) -> Table {
    let mut table = Table::new(["NAMESPACE", "POLICY NAME", "ACTION", "SCOPE"]);
    for p in rows {
        table.row([
            cell(&p["namespace"]),
            cell(&p["name"]),
            cell(&p["action"]),
            cell(&p["scope"]),
        ]);
    }
    table
}

fn certificates(rows: &[Value]) -> Table {
    let mut table = Table::new([
        "CERTIFICATE NAME",
        "TYPE",
        "STATUS",
        "VALID CERT",
        "SERIAL NUMBER",
        "NOT AFTER",
        "NOT BEFORE",
    ]);
    let now = jiff::Timestamp::now();
    for c in rows {
        let chain = c["certChain"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let roots = c["rootCerts"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        if chain.is_empty() && roots.is_empty() {
            let not = || "NA".to_owned();
            table.row([
                cell(&c["identity"]),
                not(),
                cell(&c["state"]),
                not(),
                not(),
                not(),
                not(),
            ]);
        }
        let kinds = chain.iter().enumerate().map(|(at, one)| {
            let kind = if at == 0 { "Leaf" } else { "Intermediate" };
            (kind, one)
        });
        for (kind, one) in kinds.chain(roots.iter().map(|one| ("Root", one))) {
            let time = |key: &str| {
                one[key]
                    .as_str()
                    .and_then(|t| t.parse::<jiff::Timestamp>().ok())
            };
            let valid = time("validFrom").is_some_and(|from| from <= now)
                && time("expirationTime").is_some_and(|to| now < to);
            table.row([
                cell(&c["identity"]),
                kind.to_owned(),
                cell(&c["state"]),
                valid.to_string(),
                cell(&one["serialNumber"]),
                cell(&one["expirationTime"]),
                cell(&one["validFrom"]),
            ]);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::plain;
    use serde_json::json;

    #[test]
    fn a_node_proxy_in_tables() {
        let dump = json!({
            "workloads": [{"namespace": "hello", "name": "httpbin", "workloadIps": ["10.244.1.2"],
                "node": "node-1", "protocol": "HBONE",
                "waypoint": {"destination": "hello/waypoint.hello.svc.cluster.local"}}],
            "services": [{"namespace": "hello", "name": "svc-hello", "vips": ["/10.96.0.9"],
                "endpoints": {"u": {"status": "Healthy"}, "v": {"status": "Unhealthy"}},
                "waypoint": {"destination": "hello/denied.waypoint.isobar.invalid"}}],
            "policies": [{"namespace": "hello", "name": "p", "action": "Deny", "scope": "Global"}],
            "certificates": [
                {"identity": "spiffe://a", "state": "Initializing", "certChain": [], "rootCerts": []},
                {"identity": "spiffe://b", "state": "Available",
                 "certChain": [{"serialNumber": "1f", "validFrom": "2000-01-01T00:00:00Z",
                    "expirationTime": "2001-01-01T00:00:00Z"}],
                 "rootCerts": [{"serialNumber": "2", "validFrom": "2000-01-01T00:00:00Z",
                    "expirationTime": "2900-01-01T00:00:00Z"}]}],
            "workloadState": {"u": {"state": "Up",
                "info": {"name": "httpbin", "namespace": "hello", "serviceAccount": "httpbin"},
                "connections": {
                    "inbound": [{"src": "10.244.2.9:4000", "originalDst": "10.244.1.2:80",
                        "actualDst": "10.244.1.2:80", "protocol": "HBONE"}],
                    "outbound": [{"src": "10.244.1.2:5000", "originalDst": "10.96.0.9:8080",
                        "actualDst": "10.244.1.2:15008", "protocol": "HBONE"}]}}},
        });
        let text: Vec<String> = names(ZtunnelSection::All, ZtunnelSection::All)
            .iter()
            .map(|section| plain(&table(section, &dump)))
            .collect();
        insta::assert_snapshot!(text.join("\n"));
    }

    #[test]
    fn a_waypoint_in_tables() {
        let dump = json!({
            "proxy": {"kind": "waypoint"},
            "listeners": [{"name": "hbone", "address": "0.0.0.0", "port": 15008, "protocol": "HBONE"},
                {"name": "inbound-vip|8080|svc-hello", "service": "hello/svc-hello", "port": 8080,
                 "addresses": ["10.96.0.9"], "protocol": "HTTP", "routes": ["hello/vs"]}],
            "routes": [{"name": "hello/vs", "hosts": ["svc-hello"], "http": [
                {"name": "", "matches": [
                    {"name": "m", "uri": "prefix /a", "headers": ["end-user = jason", "x present"],
                     "withoutHeaders": ["z present"], "port": null, "sourceLabels": {"app": "a"}},
                    {"uri": null, "port": 81}],
                 "action": "forward", "to": [
                    {"host": "svc-hello", "subset": "v1", "port": null, "weight": 80, "of": 100},
                    {"host": "svc-hello", "subset": "v2", "port": 8080, "weight": 20, "of": 100}]},
                {"name": "out", "matches": [], "action": "direct", "to": 404}], "tcp": []}],
            "clusters": [{"service": "hello/svc-hello.hello.svc.cluster.local", "port": 8080,
                "subset": "v1", "labels": {"version": "v1"}, "balancer": "RoundRobin",
                "destinationRule": ["hello/rule"]}],
            "endpoints": [{"service": "hello/svc-hello.hello.svc.cluster.local",
                "workload": "hello-v1", "addresses": ["10.244.1.3"], "healthy": true,
                "ports": [{"service": 8080, "target": 8080}], "protocol": "HBONE",
                "subsets": ["v1"]}],
            "workloads": [], "certificates": [],
            "policies": [{"name": "hello/p", "action": "ALLOW", "wholeWaypoint": false,
                "services": ["hello/svc-hello"], "unenforceable": null}],
        });
        let text: Vec<String> = names(WaypointSection::All, WaypointSection::All)
            .iter()
            .map(|section| plain(&table(section, &dump)))
            .collect();
        insta::assert_snapshot!(text.join("\n"));
    }
}

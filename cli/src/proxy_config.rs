use anyhow::{Context, Result};
use isobar_lab::{Lab, Target};
use serde_json::Value;

use crate::args::{Output, ProxyCommand, WaypointPart, ZtunnelPart};
use crate::page;
use crate::render::{self, items, plain, text};

/// A view of a dump: its key, its heading and columns, and how an item becomes a row.
struct View {
    key: &'static str,
    header: &'static [&'static str],
    row: fn(&Value) -> Vec<Vec<String>>,
}

/// Shows a part of a proxy's dump.
pub(crate) async fn show(lab: &Lab, command: ProxyCommand, output: Output) -> Result<()> {
    match command {
        ProxyCommand::Ztunnel { node, part } => {
            let dump = page::admin(lab, Target::node(node), "/config_dump").await?;
            match ztunnel_view(part) {
                Some(view) => print(&dump, &view, output),
                None => render::value(output, &dump),
            }
        }
        ProxyCommand::Waypoint {
            namespace,
            name,
            part,
        } => {
            let pod = waypoint_pod(lab, &namespace, &name).await?;
            let dump = page::admin(lab, Target::pod(pod), "/config_dump").await?;
            let parts = match part {
                WaypointPart::All if output != Output::Table => {
                    return render::value(output, &dump);
                }
                WaypointPart::All => &ALL[..],
                ref one => std::slice::from_ref(one),
            };
            for (number, part) in parts.iter().enumerate() {
                if number > 0 {
                    println!();
                }
                print(&dump, &waypoint_view(*part), output)?;
            }
            Ok(())
        }
    }
}

const ALL: [WaypointPart; 4] = [
    WaypointPart::Clusters,
    WaypointPart::Listeners,
    WaypointPart::Routes,
    WaypointPart::Endpoints,
];

fn print(dump: &Value, view: &View, output: Output) -> Result<()> {
    let part = &dump[view.key];
    let mut rows: Vec<_> = items(part).flat_map(view.row).collect();
    rows.sort();
    render::rows(output, view.header, rows, part)
}

/// The ready pod of a waypoint, `namespace/name`.
async fn waypoint_pod(lab: &Lab, namespace: &str, name: &str) -> Result<String> {
    let prefix = format!("{name}-");
    lab.status()
        .await?
        .pods
        .into_iter()
        .filter(|p| {
            p.namespace == namespace && p.images.iter().any(|i| i.contains("isobar/waypoint"))
        })
        .find(|p| p.name.starts_with(&prefix) && p.ready)
        .map(|p| format!("{}/{}", p.namespace, p.name))
        .with_context(|| {
            format!(
                "no waypoint {namespace}/{name} is ready; `isobar waypoint list` shows them all"
            )
        })
}

fn one(cells: Vec<String>) -> Vec<Vec<String>> {
    vec![cells]
}

fn ztunnel_view(part: ZtunnelPart) -> Option<View> {
    Some(match part {
        ZtunnelPart::Workloads => View {
            key: "workloads",
            header: &[
                "NAMESPACE",
                "NAME",
                "ADDRESS",
                "NODE",
                "WAYPOINT",
                "PROTOCOL",
                "STATUS",
            ],
            row: |w| {
                one(vec![
                    text(w, "namespace"),
                    text(w, "name"),
                    text(w, "workloadIps"),
                    text(w, "node"),
                    destination(&w["waypoint"]),
                    text(w, "protocol"),
                    text(w, "status"),
                ])
            },
        },
        ZtunnelPart::Services => View {
            key: "services",
            header: &["NAMESPACE", "NAME", "SERVICE VIP", "WAYPOINT", "ENDPOINTS"],
            row: |s| {
                let endpoints = s["endpoints"].as_object().map_or_else(
                    || s["endpoints"].as_array().map_or(0, Vec::len),
                    serde_json::Map::len,
                );
                one(vec![
                    text(s, "namespace"),
                    text(s, "name"),
                    text(s, "vips"),
                    destination(&s["waypoint"]),
                    endpoints.to_string(),
                ])
            },
        },
        ZtunnelPart::Policies => View {
            key: "policies",
            header: &["NAMESPACE", "NAME", "ACTION", "SCOPE"],
            row: |p| {
                one(vec![
                    text(p, "namespace"),
                    text(p, "name"),
                    text(p, "action"),
                    text(p, "scope"),
                ])
            },
        },
        ZtunnelPart::Certificates => certificates(),
        ZtunnelPart::All => return None,
    })
}

fn certificates() -> View {
    View {
        key: "certificates",
        header: &["NAME", "STATUS", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE"],
        row: |c| {
            let leaf = &c["certChain"][0];
            one(vec![
                text(c, "identity"),
                text(c, "state"),
                text(leaf, "serialNumber"),
                text(leaf, "expirationTime"),
                text(leaf, "validFrom"),
            ])
        },
    }
}

fn waypoint_view(part: WaypointPart) -> View {
    match part {
        WaypointPart::Clusters | WaypointPart::All => View {
            key: "clusters",
            header: &["SERVICE", "PORT", "SUBSET", "BALANCER", "LABELS"],
            row: |c| {
                one(vec![
                    text(c, "service"),
                    text(c, "port"),
                    text(c, "subset"),
                    text(c, "balancer"),
                    text(c, "labels"),
                ])
            },
        },
        WaypointPart::Listeners => View {
            key: "listeners",
            header: &["NAME", "ADDRESS", "PORT", "PROTOCOL", "ROUTES"],
            row: |l| {
                let address = if l["addresses"].is_null() {
                    &l["address"]
                } else {
                    &l["addresses"]
                };
                one(vec![
                    text(l, "name"),
                    plain(address),
                    text(l, "port"),
                    text(l, "protocol"),
                    text(l, "routes"),
                ])
            },
        },
        WaypointPart::Routes => View {
            key: "routes",
            header: &["VIRTUAL SERVICE", "HOSTS", "ROUTE", "MATCH", "TO"],
            row: routes,
        },
        WaypointPart::Endpoints => View {
            key: "endpoints",
            header: &[
                "SERVICE", "WORKLOAD", "ADDRESS", "STATUS", "PROTOCOL", "SUBSETS",
            ],
            row: |e| {
                let healthy = e["healthy"].as_bool().unwrap_or_default();
                one(vec![
                    text(e, "service"),
                    text(e, "workload"),
                    text(e, "addresses"),
                    if healthy { "HEALTHY" } else { "UNHEALTHY" }.to_owned(),
                    text(e, "protocol"),
                    text(e, "subsets"),
                ])
            },
        },
        WaypointPart::Policies => View {
            key: "policies",
            header: &[
                "NAME",
                "ACTION",
                "WHOLE WAYPOINT",
                "SERVICES",
                "REFUSES BECAUSE",
            ],
            row: |p| {
                one(vec![
                    text(p, "name"),
                    text(p, "action"),
                    text(p, "wholeWaypoint"),
                    text(p, "services"),
                    text(p, "unenforceable"),
                ])
            },
        },
        WaypointPart::Certificates => certificates(),
    }
}

/// A row for each route of a VirtualService, numbered in the order they are tried.
fn routes(object: &Value) -> Vec<Vec<String>> {
    items(&object["http"])
        .enumerate()
        .map(|(number, route)| {
            let name = route["name"].as_str().filter(|n| !n.is_empty());
            let matches: Vec<_> = items(&route["matches"]).map(conditions).collect();
            vec![
                text(object, "name"),
                text(object, "hosts"),
                format!("{number} {}", name.unwrap_or_default())
                    .trim_end()
                    .to_owned(),
                if matches.is_empty() {
                    "any".to_owned()
                } else {
                    matches.join(" or ")
                },
                targets(&route["to"]),
            ]
        })
        .collect()
}

fn conditions(conditions: &Value) -> String {
    let set: Vec<_> = conditions
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| (key, plain(value)))
        .filter(|(key, text)| text != "-" && *key != "name")
        .map(|(key, text)| format!("{key} {text}"))
        .collect();
    if set.is_empty() {
        "any".to_owned()
    } else {
        set.join(" and ")
    }
}

fn targets(to: &Value) -> String {
    let Some(all) = to.as_array() else {
        return plain(to);
    };
    let all: Vec<_> = all
        .iter()
        .map(|target| {
            let subset = target["subset"]
                .as_str()
                .map_or_else(String::new, |s| format!(" {s}"));
            format!(
                "{}{subset} {}/{}",
                text(target, "host"),
                target["weight"],
                target["of"]
            )
        })
        .collect();
    all.join(", ")
}

fn destination(gateway: &Value) -> String {
    match gateway["destination"].as_str() {
        Some(text) => text
            .rsplit('/')
            .next()
            .unwrap_or(text)
            .split('.')
            .next()
            .unwrap_or(text)
            .to_owned(),
        None if gateway.is_null() => "None".to_owned(),
        None => plain(&gateway["destination"]),
    }
}

//! Metrics of both ends of a call.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use isobar_lab::Target;

use super::call::{CALLS, calls, calls_read};
use super::matrix::{Matrix, Scenario};
use super::policy::authorization;
use super::scenery::{BASE, PORTS, ROUTES, Route, Scene};

const OPENED: Scenario = Scenario {
    id: "figures_opened",
    what: "both node proxies count the calls once, as mutual TLS, with the identities of both ends",
};
const LABELS: Scenario = Scenario {
    id: "figures_labels",
    what: "both node proxies know every label of source and destination of these calls",
};
const BYTES: Scenario = Scenario {
    id: "figures_bytes",
    what: "both node proxies count the same bytes, in both directions",
};
const DENIED: Scenario = Scenario {
    id: "figures_denied",
    what: "the server's node proxy counts what a policy refuses, with the flag DENY",
};

const OPEN_TOTAL: &str = "istio_tcp_connections_opened_total";
const FAILED_TOTAL: &str = "istio_tcp_connections_failed_total";
const BYTES_TOTAL: [&str; 2] = [
    "istio_tcp_received_bytes_total",
    "istio_tcp_sent_bytes_total",
];
/// Bytes that are read in a call.
const BODY: u32 = 100_000;
/// Counters follow a connection's end at once, but not before it.
const SETTLE: Duration = Duration::from_millis(500);
const FILE: &str = "base-policy.yaml";

/// Labels that have a value in a call to a Service, for each end.
const KNOWN: &[&str] = &[
    "workload",
    "workload_namespace",
    "canonical_service",
    "canonical_revision",
    "principal",
    "app",
    "version",
    "cluster",
];
const KNOWN_OF_SERVICE: &[&str] = &[
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
];

/// A page of metrics.
pub(super) struct Page {
    series: Vec<Series>,
}

struct Series {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Page {
    /// What the node proxy of a node says.
    pub(super) async fn read(scene: &Scene, node: Target) -> Result<Self> {
        let text = scene.mesh.page(node, 15020, "/metrics").await?;
        Ok(Self {
            series: text.lines().filter_map(parse).collect(),
        })
    }

    /// Sum of the series of this name that have these labels.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        // A sum of nothing would be minus zero.
        self.matching(name, labels)
            .fold(0.0, |sum, s| sum + s.value)
    }

    fn matching<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&str, &str)],
    ) -> impl Iterator<Item = &'a Series> {
        self.series.iter().filter(move |series| {
            let has = |(key, value): &(&str, &str)| {
                series.labels.get(*key).is_some_and(|own| own == value)
            };
            series.name == name && labels.iter().all(has)
        })
    }
}

/// One line of the text form; `None` for what is no series.
fn parse(line: &str) -> Option<Series> {
    if line.starts_with('#') {
        return None;
    }
    let (name, rest) = line.split_once('{')?;
    let (labels, value) = rest.rsplit_once('}')?;
    let labels = labels
        .trim_end_matches('"')
        .split("\",")
        .filter_map(|pair| pair.split_once("=\""))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    Some(Series {
        name: name.to_owned(),
        labels,
        value: value.split_whitespace().next()?.parse().ok()?,
    })
}

/// Which calls are looked at, at which end.
struct Wanted {
    labels: Vec<(&'static str, String)>,
}

impl Wanted {
    fn of(route: &Route, reporter: &str) -> Self {
        let (client, server) = (route.client(), route.server);
        let principal = |ns, name: &str| format!("spiffe://cluster.local/ns/{ns}/sa/{name}");
        Self {
            labels: vec![
                ("reporter", reporter.to_owned()),
                ("source_workload", client.clone()),
                ("source_principal", principal("callers", &client)),
                ("destination_workload", server.to_owned()),
                ("destination_workload_namespace", BASE.to_owned()),
                ("destination_principal", principal(BASE, server)),
                ("connection_security_policy", "mutual_tls".to_owned()),
            ],
        }
    }

    fn labels(&self) -> Vec<(&str, &str)> {
        self.labels.iter().map(|(k, v)| (*k, &**v)).collect()
    }
}

/// Both ends of a route.
struct Ends {
    source: Page,
    destination: Page,
}

impl Ends {
    async fn read(scene: &Scene, route: &Route) -> Result<Self> {
        tokio::time::sleep(SETTLE).await;
        Ok(Self {
            source: Page::read(scene, route.near_node()).await?,
            destination: Page::read(scene, route.far_node()).await?,
        })
    }

    /// What `name` has become more since `before`, at both ends.
    fn more(&self, before: &Self, route: &Route, name: &str) -> [f64; 2] {
        let side = |reporter, now: &Page, before: &Page| {
            let wanted = Wanted::of(route, reporter);
            now.sum(name, &wanted.labels()) - before.sum(name, &wanted.labels())
        };
        [
            side("source", &self.source, &before.source),
            side("destination", &self.destination, &before.destination),
        ]
    }
}

pub(super) async fn all(scene: &Scene, matrix: &mut Matrix) -> Result<()> {
    scene.open(BASE).await?;
    for route in &ROUTES {
        counted(scene, matrix, route).await?;
        labels(scene, matrix, route).await;
    }
    let policy = super::policy::deny_clients();
    scene
        .mesh
        .apply(FILE, &authorization(BASE, "figures", policy))?;
    for route in &ROUTES {
        denied(scene, matrix, route).await?;
    }
    scene.mesh.delete(FILE)?;
    scene.open(BASE).await
}

async fn counted(scene: &Scene, matrix: &mut Matrix, route: &Route) -> Result<()> {
    let client = scene.client(route).await?;
    let to = scene.by_service(BASE, route, PORTS[0]).await?;
    let expected = format!("{CALLS} at the source, {CALLS} at the destination");
    matrix
        .cell(OPENED, route.direction, &expected, async || {
            let before = Ends::read(scene, route).await?;
            calls(&client, to, "/ip").await;
            let after = Ends::read(scene, route).await?;
            let [source, destination] = after.more(&before, route, OPEN_TOTAL);
            Ok(format!(
                "{source} at the source, {destination} at the destination"
            ))
        })
        .await;
    let path = format!("/bytes/{BODY}");
    matrix
        .cell(
            BYTES,
            route.direction,
            "the same at both ends",
            async || {
                let before = Ends::read(scene, route).await?;
                calls_read(&client, to, &path, CALLS, |_| String::new()).await;
                let after = Ends::read(scene, route).await?;
                let both = BYTES_TOTAL.map(|name| after.more(&before, route, name));
                let same = both.iter().all(|[near, far]| near == far && *near > 0.0);
                let bodies = f64::from(BODY) * CALLS as f64;
                let enough = both.iter().any(|[near, _]| *near > bodies);
                Ok(if same && enough {
                    "the same at both ends".to_owned()
                } else {
                    format!("received and sent, source and destination: {both:?}")
                })
            },
        )
        .await;
    Ok(())
}

async fn labels(scene: &Scene, matrix: &mut Matrix, route: &Route) {
    matrix
        .cell(
            LABELS,
            route.direction,
            "every label at both ends",
            async || {
                let ends = Ends::read(scene, route).await?;
                let mut missing = Vec::new();
                for (end, page) in [("source", &ends.source), ("destination", &ends.destination)] {
                    let wanted = Wanted::of(route, end);
                    let wanted = wanted.labels();
                    let by_service = [&wanted[..], &[("destination_service_name", route.server)]];
                    let by_service = by_service.concat();
                    let Some(series) = page.matching(OPEN_TOTAL, &by_service).next() else {
                        missing.push(format!("no series at the {end}"));
                        continue;
                    };
                    let of_ends = ["source", "destination"]
                        .iter()
                        .flat_map(|side| KNOWN.iter().map(move |label| format!("{side}_{label}")));
                    let all = of_ends.chain(KNOWN_OF_SERVICE.iter().map(|l| (*l).to_owned()));
                    for label in all {
                        let value = series.labels.get(&label).map_or("unknown", |v| v);
                        if value.is_empty() || value == "unknown" {
                            missing.push(format!("{label} at the {end}"));
                        }
                    }
                }
                Ok(if missing.is_empty() {
                    "every label at both ends".to_owned()
                } else {
                    format!("missing: {}", missing.join(", "))
                })
            },
        )
        .await;
}

async fn denied(scene: &Scene, matrix: &mut Matrix, route: &Route) -> Result<()> {
    let client = scene.client(route).await?;
    let to = scene.by_service(BASE, route, PORTS[0]).await?;
    let expected = format!("{CALLS}× closed; {CALLS} with DENY at the destination");
    matrix
        .cell(DENIED, route.direction, &expected, async || {
            let count = |page: &Page| {
                let wanted = Wanted::of(route, "destination");
                let mut labels = wanted.labels();
                labels.push(("response_flags", "DENY"));
                page.sum(FAILED_TOTAL, &labels)
            };
            let before = Ends::read(scene, route).await?;
            let seen = calls(&client, to, "/ip").await;
            let after = Ends::read(scene, route).await?;
            let more = count(&after.destination) - count(&before.destination);
            Ok(format!("{seen}; {more} with DENY at the destination"))
        })
        .await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_read_with_their_labels() {
        let text = "# TYPE a counter\na_total{x=\"1,2\",y=\"b\"} 3\na_total{x=\"1\",y=\"b\"} 4 1.5\nplain 1\n";
        let page = Page {
            series: text.lines().filter_map(parse).collect(),
        };
        assert_eq!(
            page.sum("a_total", &[("y", "b")]).to_bits(),
            7_f64.to_bits()
        );
        assert_eq!(
            page.sum("a_total", &[("x", "1,2")]).to_bits(),
            3_f64.to_bits()
        );
        assert_eq!(page.sum("a", &[]).to_bits(), 0_f64.to_bits());
    }
}

//! How much the endpoints of one namespace may list. Each one lists every Service, and every host of a
//! ServiceEntry, that it is an endpoint of, with all its ports: a few objects with thousands of each come
//! to more than all node proxies and the control plane together have memory for.

use std::collections::BTreeMap;

use isobar_objects::{ObjectHead, ObjectSet};
use isobar_proto::istio::workload as wire;

use super::services::{Members, ServicePlan, selects};
use super::verdict::{Severity, Verdict};

/// In bytes. Ten thousand pods with twenty Services each have half of it.
pub(super) const OF_NAMESPACE: usize = 32 << 20;
/// What a name takes besides its text, and a port.
const NAME: usize = 16;
const PORT: usize = 12;

/// Reason of conditions that tell of it.
pub(super) const REASON: &str = "TooManyEndpoints";
/// Condition type of Services that have no endpoint by it; there while they have none.
pub(super) const CONDITION: &str = "isobar.dev/EndpointsFit";

/// What endpoints list, by namespace.
#[derive(Debug, Default, Clone)]
pub(crate) struct Room {
    namespaces: BTreeMap<String, Used>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Used {
    bytes: usize,
    /// Something was left out.
    is_full: bool,
}

impl Room {
    /// That of Services with these pods. The newest ones for which there is no room are left without
    /// endpoints.
    pub(super) fn of(services: &mut [ServicePlan], members: &Members<'_>, set: &ObjectSet) -> Self {
        let mut wanted = Vec::new();
        for (at, service) in services.iter().enumerate() {
            let (namespace, name) = (&*service.key.namespace, &*service.key.name);
            let Some(object) = set.services.get(namespace, name) else {
                continue;
            };
            let entries = set.workload_entries.in_namespace(namespace).filter(|one| {
                let mut labels = one.labels().clone();
                labels.extend(one.spec.labels.clone());
                selects(object, &labels)
            });
            let pods = members.get(&service.key).map_or(0, Vec::len);
            let count = pods + entries.count();
            if count > 0 {
                let ports = object.spec.as_ref().and_then(|spec| spec.ports.as_ref());
                let of_one = bytes(namespace, &service.wire.hostname, ports.map_or(0, Vec::len));
                wanted.push((object.created(), at, count.saturating_mul(of_one)));
            }
        }
        wanted.sort_unstable();
        let mut room = Self::default();
        for (_, at, bytes) in wanted {
            let service = &mut services[at];
            if !room.take(&service.key.namespace, bytes) {
                service.left_out = true;
                if let Some(object) = set.services.get(&service.key.namespace, &service.key.name) {
                    let verdict = Verdict::fails(object.reference(), CONDITION, REASON, text());
                    service.verdicts.push(verdict.severity(Severity::Error));
                }
            }
        }
        room
    }

    /// Takes so many bytes, or none where there are not so many.
    pub(super) fn take(&mut self, namespace: &str, bytes: usize) -> bool {
        let used = self.namespaces.entry(namespace.to_owned()).or_default();
        let next = used.bytes.saturating_add(bytes);
        match next <= OF_NAMESPACE {
            true => used.bytes = next,
            false => used.is_full = true,
        }
        next <= OF_NAMESPACE
    }

    /// An endpoint lists `is` bytes that listed `was`; false if others may have to do with it.
    pub(super) fn change(&mut self, namespace: &str, was: usize, is: usize) -> bool {
        if was == is {
            return self
                .namespaces
                .get(namespace)
                .is_none_or(|used| !used.is_full);
        }
        let used = self.namespaces.entry(namespace.to_owned()).or_default();
        used.bytes = used.bytes.saturating_sub(was).saturating_add(is);
        !used.is_full && used.bytes <= OF_NAMESPACE
    }
}

/// What an endpoint lists of one name.
pub(super) const fn bytes(namespace: &str, hostname: &str, ports: usize) -> usize {
    namespace.len() + hostname.len() + NAME + ports * PORT
}

/// What an endpoint lists.
pub(super) fn listed(workload: &wire::Workload) -> usize {
    let all = workload.services.iter();
    all.map(|(name, list)| bytes("", name, list.ports.len()))
        .sum()
}

/// What is told.
pub(super) fn text() -> String {
    format!(
        "no endpoint: what the endpoints of its namespace list of Services, hosts and ports would be more \
         than {} MiB with it; remove some, or move some to another namespace",
        OF_NAMESPACE >> 20
    )
}

#[cfg(test)]
mod tests {
    use super::super::golden_tests::{namespace, planned, pod, reasons};
    use super::*;

    fn service(name: &str, ports: usize, created: u32) -> String {
        let ports: Vec<String> = (1..=ports)
            .map(|port| format!("{{name: p{port}, port: {port}, targetPort: 80}}"))
            .collect();
        format!(
            "---\napiVersion: v1\nkind: Service\n\
             metadata: {{name: {name}, namespace: shop, creationTimestamp: \"2026-01-0{created}T00:00:00Z\"}}\n\
             spec: {{clusterIP: 10.96.0.{created}, selector: {{app: a}}, ports: [{}]}}\n",
            ports.join(", ")
        )
    }

    #[test]
    fn the_newest_services_have_no_endpoints_where_there_is_no_room() {
        // Each of three Services takes two fifths of it.
        let pods: String = (0..100)
            .map(|at| pod(&format!("a-{at}"), "a", "app: a", true))
            .collect();
        let ports = OF_NAMESPACE * 2 / 5 / 100 / PORT;
        let plan = planned(&format!(
            "{}{pods}{}{}{}{}",
            namespace(""),
            service("new", ports, 3),
            service("old", ports, 1),
            service("small", 1, 4),
            service("middle", ports, 2),
        ));
        let listed: Vec<&str> = plan.workloads[0]
            .wire
            .services
            .keys()
            .map(String::as_str)
            .collect();
        let name = |name: &str| format!("shop/{name}.shop.svc.cluster.local");
        assert_eq!(listed, [name("middle"), name("old"), name("small")]);
        assert_eq!(reasons(&plan, "Service shop/new"), [REASON]);
        assert!(reasons(&plan, "Service shop/old").is_empty());
    }

    #[test]
    fn a_pod_that_fits_changes_alone() {
        let mut room = Room::default();
        assert!(room.take("shop", OF_NAMESPACE - 10));
        assert!(room.change("shop", 0, 10) && room.change("web", 5, 6));
        assert!(!room.change("shop", 10, 11), "somebody has to be left out");
        assert!(!room.take("shop", 1) && !room.change("shop", 11, 0));
        assert!(!room.change("shop", 0, 0), "somebody may come in again");
    }
}

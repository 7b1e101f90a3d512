//! How much the endpoints of one namespace may list. Each one lists every Service, and every host of a
//! ServiceEntry, that it is an endpoint of, with all its ports: a few objects with thousands of each come
//! to more than all node proxies and the control plane together have memory for.

use std::collections::{BTreeMap, HashMap};

use isobar_objects::{ObjectHead, ObjectSet};
use isobar_proto::istio::workload as wire;

use super::pods::PodFacts;
use super::services::{Members, ServicePlan};
use super::slices;
use super::verdict::{Severity, Verdict};

/// In bytes. Ten thousand pods with twenty Services each have half of it.
pub(super) const OF_NAMESPACE: usize = 32 << 20;
/// What a name takes besides its two parts, and a port.
const NAME: usize = 17;
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
    /// That of Services with these pods, WorkloadEntries and EndpointSlices. The newest ones for which
    /// there is no room are left without endpoints.
    pub(super) fn of(services: &mut [ServicePlan], members: &Members<'_>, set: &ObjectSet) -> Self {
        let mut wanted = Vec::new();
        let mut entries: BTreeMap<&str, Labelled<'_>> = BTreeMap::new();
        let in_slices = slices::listed(set, services);
        for (at, service) in services.iter().enumerate() {
            let (namespace, name) = (&*service.key.namespace, &*service.key.name);
            let Some(object) = set.services.get(namespace, name) else {
                continue;
            };
            let entries = entries
                .entry(object.namespace())
                .or_insert_with(|| Labelled::workload_entries(set, namespace));
            let spec = object.spec.as_ref();
            let selector = spec.and_then(|spec| spec.selector.as_ref());
            // What has no address is no endpoint yet, and is counted when it is one: pods that are
            // planned alone are counted by what they list.
            let pods = members.get(&service.key).into_iter().flatten();
            let pods = pods.filter(|pod| !pod.ips.is_empty() && service.takes(pod));
            let count = pods.count() + selector.map_or(0, |labels| entries.count(labels));
            let ports = spec.and_then(|spec| spec.ports.as_ref());
            let of_one = bytes(namespace, &service.wire.hostname, ports.map_or(0, Vec::len));
            let selected = count.saturating_mul(of_one);
            let all = selected.saturating_add(in_slices.get(&service.key).copied().unwrap_or(0));
            if all > 0 {
                wanted.push((object.created(), at, all));
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
    // The names have the slash between namespace and host in them.
    all.map(|(name, list)| name.len() + (NAME - 1) + list.ports.len() * PORT)
        .sum()
}

/// What selectors choose among in one namespace. Only what has the rarest of a selector's labels is
/// looked at: each with each is what nobody has the time for.
#[derive(Default)]
pub(super) struct Labelled<'a> {
    all: Vec<BTreeMap<&'a str, &'a str>>,
    by_label: HashMap<(&'a str, &'a str), Vec<usize>>,
}

impl<'a> Labelled<'a> {
    /// WorkloadEntries that can be endpoints, by the object's labels and those of the spec.
    pub(super) fn workload_entries(set: &'a ObjectSet, namespace: &str) -> Self {
        let mut found = Self::default();
        let all = set.workload_entries.in_namespace(namespace);
        for one in all.filter(|one| !one.spec.address.starts_with("unix://")) {
            found.add(one.labels().iter().chain(&one.spec.labels));
        }
        found
    }

    /// Pods that have an address.
    pub(super) fn pods(set: &'a ObjectSet, namespace: &str) -> Self {
        let mut found = Self::default();
        for pod in set.pods.in_namespace(namespace) {
            if PodFacts::read(&pod.object).is_some_and(|pod| !pod.ips.is_empty()) {
                found.add(pod.labels().iter());
            }
        }
        found
    }

    /// Adds one with these labels; of two of a name the later counts.
    fn add(&mut self, labels: impl Iterator<Item = (&'a String, &'a String)>) {
        let labels = labels.map(|(name, value)| (name.as_str(), value.as_str()));
        let labels: BTreeMap<&str, &str> = labels.collect();
        for (name, value) in &labels {
            let place = self.by_label.entry((*name, *value)).or_default();
            place.push(self.all.len());
        }
        self.all.push(labels);
    }

    /// How many have all labels of the selector; none without labels.
    pub(super) fn count(&self, selector: &BTreeMap<String, String>) -> usize {
        let with = selector.iter().map(|(name, value)| {
            let place = self.by_label.get(&(name.as_str(), value.as_str()));
            place.map_or(&[][..], Vec::as_slice)
        });
        let rarest = with.min_by_key(|some| some.len()).unwrap_or_default();
        let of = rarest.iter().filter_map(|at| self.all.get(*at));
        of.filter(|labels| {
            let mut wanted = selector.iter();
            wanted.all(|(name, value)| labels.get(name.as_str()) == Some(&value.as_str()))
        })
        .count()
    }
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
    fn what_is_counted_is_what_endpoints_list() {
        let kind = "---\napiVersion: networking.istio.io/v1\nkind: ";
        let entry = |name: &str, labels: &str, spec: &str| {
            format!(
                "{kind}WorkloadEntry\nmetadata: {{name: {name}, namespace: shop{labels}}}\nspec: {{{spec}}}\n"
            )
        };
        let plan = planned(&format!(
            "{}{}{}{}{}{}{}{kind}ServiceEntry\nmetadata: {{name: e, namespace: shop}}\n\
             spec: {{hosts: [a.example, b.example], addresses: [192.0.2.1], resolution: STATIC, \
             workloadSelector: {{labels: {{app: a, in: both}}}}, ports: [{{number: 80, name: p}}]}}\n\
             ---\napiVersion: v1\nkind: Service\nmetadata: {{name: db, namespace: shop}}\n\
             spec: {{clusterIP: 10.96.0.9, ports: [{{name: x, port: 1}}, {{name: z, port: 2}}]}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: s, namespace: shop, labels: {{kubernetes.io/service-name: db}}}}\n\
             addressType: IPv4\nendpoints: [{{addresses: [192.0.2.8]}}, {{addresses: [192.0.2.9]}}]\n\
             ports: [{{name: z, port: 3}}]\n",
            namespace(""),
            service("s", 3, 1),
            pod("a-1", "a", "app: a, in: both", true),
            pod("a-2", "a", "app: a", true).replace("  podIP: ", "  hostIP: "),
            entry(
                "both",
                ", labels: {app: a, in: none}",
                "address: 10.9.0.1, labels: {in: both}"
            ),
            entry(
                "other",
                ", labels: {app: a, in: both}",
                "address: 10.9.0.2, labels: {app: b}"
            ),
            entry(
                "nowhere",
                ", labels: {app: a, in: both}",
                "address: \"unix:///nowhere\""
            ),
        ));
        let all: usize = plan.workloads.iter().map(|one| listed(&one.wire)).sum();
        let names: usize = plan
            .workloads
            .iter()
            .map(|one| one.wire.services.len())
            .sum();
        assert_eq!((names, plan.room.namespaces["shop"].bytes), (8, all));
    }

    #[test]
    fn selectors_count_what_has_all_their_labels() {
        let mut some = Labelled::default();
        let labels = |all: &[(&str, &str)]| -> BTreeMap<String, String> {
            let all = all
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            all.collect()
        };
        let [first, second] = [labels(&[("a", "b"), ("c", "d")]), labels(&[("a", "b")])];
        some.add(first.iter());
        some.add(second.iter());
        for (selector, wanted) in [
            (&[("a", "b")][..], 2),
            (&[("a", "b"), ("c", "d")], 1),
            (&[("a", "b"), ("c", "other")], 0),
            (&[], 0),
        ] {
            assert_eq!(some.count(&labels(selector)), wanted, "{selector:?}");
        }
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

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use isobar_types::labels;

use crate::code::Code;
use crate::finding::Finding;
use crate::istio::{
    AuthorizationPolicy, Destination, DestinationRule, TargetReference, VirtualService,
};
use crate::names;
use crate::object::ObjectHead;
use crate::set::{Held, ObjectSet};

use super::canary;

/// A host that a VirtualService routes in the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostClaim {
    /// Place in `spec.hosts`.
    pub(crate) index: usize,
    /// Full name.
    pub(crate) host: String,
}

/// What a set of objects is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Everything there is in the mesh.
    Mesh,
    /// What somebody wrote into a folder; others may have written more elsewhere.
    Folder,
}

/// What is worth knowing about the objects of a set together: routes to hosts that do not exist,
/// subsets without a rule, policies without a target, second waypoints without a first. Warnings only.
#[must_use]
pub fn validate_set(set: &ObjectSet, extent: Extent) -> Vec<Finding> {
    let hosts = Hosts::of(set);
    let mut findings = Vec::new();
    for object in set.virtual_services.iter() {
        virtual_service(object, &hosts, &mut findings);
    }
    shared_hosts(set, &hosts, &mut findings);
    delegates(set, &mut findings);
    for object in set.destination_rules.iter() {
        destination_rule(object, &hosts, &mut findings);
    }
    for object in set.authorization_policies.iter() {
        authorization_policy(object, set, extent, &mut findings);
    }
    canary::check(set, &mut findings);
    findings
}

/// The hosts an object routes in the mesh, in full form.
pub(crate) fn host_claims(object: &VirtualService, services: &ObjectSet) -> Vec<HostClaim> {
    claims(object, &Hosts::of(services))
}

fn claims(object: &VirtualService, hosts: &Hosts<'_>) -> Vec<HostClaim> {
    if !object.spec.applies_to_mesh() {
        return Vec::new();
    }
    let written = object.spec.hosts.iter().enumerate();
    written
        .map(|(index, host)| HostClaim {
            index,
            host: hosts.resolve(host, object.namespace()),
        })
        .collect()
}

/// Ports of services, and subsets, by full host name.
struct Hosts<'a> {
    services: BTreeMap<String, Vec<i64>>,
    subsets: BTreeMap<String, BTreeSet<&'a str>>,
}

impl<'a> Hosts<'a> {
    fn of(set: &'a ObjectSet) -> Self {
        let domain = isobar_types::CLUSTER_DOMAIN;
        let entries = set.service_entries.iter().flat_map(|entry| {
            let ports: Vec<i64> = entry.spec.ports.iter().map(|p| p.number.into()).collect();
            let hosts = entry
                .spec
                .hosts
                .iter()
                .map(|host| host.to_ascii_lowercase());
            hosts.map(move |host| (host, ports.clone()))
        });
        let services = set.services.iter().map(|service| {
            let name = format!("{}.{}.svc.{domain}", service.name(), service.namespace());
            let spec = service.spec.iter();
            let ports = spec.flat_map(|spec| spec.ports.iter().flatten());
            (name, ports.map(|port| port.port.into()).collect())
        });
        let mut hosts = Self {
            services: entries.chain(services).collect(),
            subsets: BTreeMap::new(),
        };
        for rule in set.destination_rules.iter() {
            let host = hosts.resolve(&rule.spec.host, rule.namespace());
            let subsets = rule.spec.subsets.iter();
            hosts
                .subsets
                .entry(host)
                .or_default()
                .extend(subsets.map(|subset| subset.name.as_str()));
        }
        hosts
    }

    /// A name without a dot is a Service of `namespace`; one that is short by the cluster's domain
    /// only is completed if it then exists.
    fn resolve(&self, host: &str, namespace: &str) -> String {
        let domain = isobar_types::CLUSTER_DOMAIN;
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        if host.contains('*') {
            return host;
        }
        if !host.contains('.') {
            return format!("{host}.{namespace}.svc.{domain}");
        }
        [
            host.clone(),
            format!("{host}.{domain}"),
            format!("{host}.svc.{domain}"),
        ]
        .into_iter()
        .find(|name| self.services.contains_key(name))
        .unwrap_or(host)
    }

    /// Services a host name or `*.suffix` stands for.
    fn exists(&self, host: &str) -> bool {
        match host.strip_prefix('*') {
            None => self.services.contains_key(host),
            Some(suffix) => self.services.keys().any(|name| name.ends_with(suffix)),
        }
    }

    fn missing(&self, host: &str, effect: &str) -> String {
        format!("no Service has the host name {host}: {effect}")
    }

    fn hint(&self, written: &str) -> Option<String> {
        let wanted = written.split('.').next().unwrap_or_default();
        let short = self
            .services
            .keys()
            .filter_map(|name| name.split('.').next());
        let near = names::nearest(wanted, short)?;
        Some(format!("did you mean {near}?"))
    }
}

fn note<T: ObjectHead>(
    object: &Held<T>,
    field: String,
    message: String,
    hint: Option<String>,
) -> Finding {
    Finding {
        file: Some(Arc::clone(&object.origin.file)),
        line: Some(object.origin.line),
        object: Some(object.reference()),
        hint,
        ..Finding::warning(field, message).of(Code::DANGLING)
    }
}

/// Objects that rules are handed over to.
fn delegates(set: &ObjectSet, findings: &mut Vec<Finding>) {
    let mut used = BTreeSet::new();
    for object in set.virtual_services.iter() {
        for (index, route) in object.spec.http.iter().enumerate() {
            let Some(to) = &route.delegate else { continue };
            let namespace = match to.namespace.as_str() {
                "" => object.namespace(),
                named => named,
            };
            used.insert((namespace.to_owned(), to.name.clone()));
            if set.virtual_services.get(namespace, &to.name).is_none() {
                let field = format!("spec.http[{index}].delegate.name");
                let message = format!(
                    "there is no VirtualService {namespace}/{}: requests are answered 500",
                    to.name
                );
                findings.push(note(object, field, message, None));
            }
        }
    }
    for object in set.virtual_services.iter() {
        let key = (object.namespace().to_owned(), object.name().to_owned());
        if object.spec.hosts.is_empty() && !used.contains(&key) {
            let message = "no host, and no VirtualService hands over to it: it does nothing";
            let hint = "name the service, for example svc-hello".to_owned();
            findings.push(note(
                object,
                "spec.hosts".into(),
                message.into(),
                Some(hint),
            ));
        }
    }
}

fn virtual_service(object: &Held<VirtualService>, hosts: &Hosts<'_>, findings: &mut Vec<Finding>) {
    for claim in claims(object, hosts) {
        if !hosts.exists(&claim.host) {
            let field = format!("spec.hosts[{}]", claim.index);
            let message = hosts.missing(&claim.host, "the rules apply to nothing");
            findings.push(note(object, field, message, hosts.hint(&claim.host)));
        }
    }
    let mut look = |field: String, destination: &Destination| {
        check_destination(object, &field, destination, hosts, findings);
    };
    for (index, route) in object.spec.http.iter().enumerate() {
        for (at, one) in route.route.iter().enumerate() {
            let field = format!("spec.http[{index}].route[{at}].destination");
            look(field, &one.destination);
        }
        if let Some(mirror) = &route.mirror {
            look(format!("spec.http[{index}].mirror"), mirror);
        }
        for (at, one) in route.mirrors.iter().enumerate() {
            let field = format!("spec.http[{index}].mirrors[{at}].destination");
            look(field, &one.destination);
        }
    }
    let tls = object.spec.tls.iter().map(|rule| &rule.route);
    let tcp = object.spec.tcp.iter().map(|rule| &rule.route);
    for (list, rules) in [
        ("tls", tls.collect::<Vec<_>>()),
        ("tcp", tcp.collect::<Vec<_>>()),
    ] {
        for (index, routes) in rules.into_iter().enumerate() {
            for (at, one) in routes.iter().enumerate() {
                let field = format!("spec.{list}[{index}].route[{at}].destination");
                look(field, &one.destination);
            }
        }
    }
}

fn check_destination(
    object: &Held<VirtualService>,
    field: &str,
    destination: &Destination,
    hosts: &Hosts<'_>,
    findings: &mut Vec<Finding>,
) {
    let host = hosts.resolve(&destination.host, object.namespace());
    let Some(ports) = hosts.services.get(&host) else {
        let message = hosts.missing(&host, "requests for it are answered 503");
        let field = format!("{field}.host");
        findings.push(note(object, field, message, hosts.hint(&host)));
        return;
    };
    let subsets = hosts.subsets.get(&host);
    let subset = destination.subset.as_str();
    if !subset.is_empty() && !subsets.is_some_and(|known| known.contains(subset)) {
        let message = format!(
            "no DestinationRule for {host} has a subset {subset:?}: requests for it are answered 503"
        );
        let known = subsets.into_iter().flatten().copied();
        let hint = names::nearest(subset, known).map(|near| format!("did you mean {near}?"));
        findings.push(note(object, format!("{field}.subset"), message, hint));
    }
    if let Some(port) = &destination.port
        && !ports.contains(&port.number.into())
    {
        let message = format!("{host} has no port {}", port.number);
        let hint = Some(format!("its ports: {ports:?}"));
        findings.push(note(object, format!("{field}.port.number"), message, hint));
    }
}

/// One host routed from several namespaces: legal, and a surprise.
fn shared_hosts(set: &ObjectSet, hosts: &Hosts<'_>, findings: &mut Vec<Finding>) {
    type Owner<'a> = (&'a Held<VirtualService>, usize);
    let mut owners: BTreeMap<String, Vec<Owner<'_>>> = BTreeMap::new();
    for object in set.virtual_services.iter() {
        for claim in claims(object, hosts) {
            owners
                .entry(claim.host)
                .or_default()
                .push((object, claim.index));
        }
    }
    for (host, mut owners) in owners {
        owners.sort_by_key(|(object, _)| object.created());
        let Some(((first, _), later)) = owners.split_first() else {
            continue;
        };
        for (object, index) in later {
            let message = format!(
                "{host} is also routed by {}, whose rules come first",
                first.reference()
            );
            findings.push(note(object, format!("spec.hosts[{index}]"), message, None));
        }
    }
}

fn destination_rule(
    object: &Held<DestinationRule>,
    hosts: &Hosts<'_>,
    findings: &mut Vec<Finding>,
) {
    let host = hosts.resolve(&object.spec.host, object.namespace());
    if !hosts.exists(&host) {
        let message = hosts.missing(&host, "the rule applies to nothing");
        let hint = hosts.hint(&host);
        findings.push(note(object, "spec.host".to_owned(), message, hint));
    }
}

fn authorization_policy(
    object: &Held<AuthorizationPolicy>,
    set: &ObjectSet,
    extent: Extent,
    findings: &mut Vec<Finding>,
) {
    let listed = object.spec.target_refs.iter().enumerate();
    let listed = listed.map(|(index, target)| (format!("spec.targetRefs[{index}]"), target));
    let single = object.spec.target_ref.iter();
    for (field, target) in listed.chain(single.map(|one| ("spec.targetRef".to_owned(), one))) {
        let namespace = object.namespace();
        let exists = match target.kind.as_str() {
            "Service" => set.services.get(namespace, &target.name).is_some(),
            "Gateway" => set.gateways.get(namespace, &target.name).is_some(),
            "ServiceEntry" => set.service_entries.get(namespace, &target.name).is_some(),
            _ => true,
        };
        let name = format!("{} {namespace}/{}", target.kind, target.name);
        if !exists {
            let message = match extent {
                Extent::Mesh => format!("{name} does not exist: the policy protects nothing"),
                Extent::Folder => format!(
                    "{name} is not in this folder: unless it is made elsewhere, the policy protects nothing"
                ),
            };
            findings.push(note(object, format!("{field}.name"), message, None));
        } else if let Some(waypoint) = one_way(target, namespace, set) {
            let message = format!(
                "waypoint {waypoint} takes service traffic only: calls by pod address, by names of \
                 headless Services and from outside the mesh do not pass it, and the policy is not \
                 asked about them"
            );
            let hint = "label the Gateway istio.io/waypoint-for: all (`isobar waypoint apply --for all`), \
                        or bind the workloads' service account, so that they take nothing else";
            let field = format!("{field}.name");
            findings.push(note(object, field, message, Some(hint.to_owned())));
        }
    }
}

/// The waypoint that enforces a policy on its target, if it takes traffic to services only and the
/// workloads behind it are not bound to it.
fn one_way(target: &TargetReference, namespace: &str, set: &ObjectSet) -> Option<String> {
    let (place, name) = match target.kind.as_str() {
        "Gateway" => (namespace.to_owned(), target.name.clone()),
        "Service" => {
            let service = set.services.get(namespace, &target.name)?;
            let home = set.namespaces.get("", namespace);
            let labelled = [Some(service.labels()), home.map(|home| home.labels())];
            let own = labelled
                .into_iter()
                .flatten()
                .find(|all| all.contains_key(labels::USE_WAYPOINT))?;
            let place = own.get(labels::USE_WAYPOINT_NAMESPACE);
            let place = place.map_or(namespace, String::as_str);
            (place.to_owned(), own.get(labels::USE_WAYPOINT)?.clone())
        }
        _ => return None,
    };
    let gateway = set.gateways.get(&place, &name)?;
    let classes = [labels::WAYPOINT_CLASS, labels::ISTIO_WAYPOINT_CLASS];
    let takes_services = matches!(
        gateway.label(labels::WAYPOINT_FOR),
        None | Some("" | "service")
    );
    let one_way = classes.contains(&gateway.spec.gateway_class_name.as_str())
        && takes_services
        && gateway.annotation(labels::FOR_SERVICE_ACCOUNT).is_none();
    one_way.then(|| format!("{place}/{name}"))
}

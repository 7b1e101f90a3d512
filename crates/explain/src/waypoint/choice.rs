//! Which endpoint of a service a waypoint takes, by its rules for balancing; what cannot be known
//! (turns, loads, failures) leaves several ways.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::HeaderMap;
use isobar_route::{
    HashKey, LoadBalancer, LocalityRules, Place as Locality, Preference, Subset, TrafficRules,
    score,
};
use isobar_state::balance::{Candidate, Purpose, endpoints};
use isobar_state::{Service, TunnelProtocol, Workload};
use isobar_types::{NetworkAddress, Reason};

use super::Passage;
use crate::answer::{Outcome, Step, Way};
use crate::names::{Known, Place, WILDCARD, of_cluster};
use crate::node::named;
use crate::plain::{Sender, is_of_cluster};

/// An endpoint, and the share of the calls that it gets.
struct Chance<'a> {
    workload: &'a Arc<Workload>,
    port: u16,
    share: f64,
}

impl Chance<'_> {
    fn capacity(&self) -> f64 {
        f64::from(self.workload.capacity)
    }
}

impl Passage<'_> {
    pub(super) fn to_service(
        &self,
        service: &Service,
        subset: Option<&Subset>,
        port: u16,
        mut steps: Vec<Step>,
    ) -> Vec<Way> {
        if service.is_passthrough() {
            return self.to_itself(service, port, steps);
        }
        let from = &self.caller.workload;
        let all = match endpoints(&self.world.snapshot, service, port, from, Purpose::Call) {
            Ok(all) => all,
            Err(refusal) => return self.nobody(steps, refusal.detail),
        };
        let mut all = self.meant(service, subset, all);
        if all.is_empty() {
            return self.nobody(steps, format!("no ready pod of {} is left", service.key));
        }
        let rules = self.tables.traffic(&service.key, subset, port);
        if rules.balancer() == LoadBalancer::Passthrough {
            if let Some(ways) = self.as_dialled(service, (&mut all, port), &steps) {
                return ways;
            }
        } else {
            self.nearest(rules, &mut all, &mut steps);
        }
        share(&mut all);
        self.by_hash(rules, &mut all, &mut steps);
        let each = all.iter().flat_map(|one| {
            let ways = self.to_endpoint(service, one);
            ways.into_iter().map(|way| way.after(one.share, &steps))
        });
        each.collect()
    }

    /// Those that the call may be for at all.
    fn meant<'a>(
        &'a self,
        service: &Service,
        subset: Option<&Subset>,
        mut all: Vec<Candidate<'a>>,
    ) -> Vec<Chance<'a>> {
        let account = self.info.account.as_deref();
        if let Some(account) = account.filter(|_| self.is_ours(service)) {
            all.retain(|c| {
                let workload = &c.endpoint.workload;
                workload.namespace == self.info.name.namespace
                    && *workload.service_account == *account
            });
        }
        if let Some(subset) = subset {
            all.retain(|c| {
                let labels = self.tables.labels(&c.endpoint.workload.uid);
                subset.contains(labels.map(|l| &**l))
            });
        }
        let chances = all.into_iter().map(|candidate| Chance {
            workload: self.meshed(&candidate.endpoint.workload),
            port: candidate.port,
            share: 0.0,
        });
        chances.collect()
    }

    /// The pod of the mesh at the address of what is told as outside.
    fn meshed<'a>(&'a self, workload: &'a Arc<Workload>) -> &'a Arc<Workload> {
        let is_itself = !workload.node.is_empty() || workload.tunnel == TunnelProtocol::Hbone;
        let own = workload.addresses.first().filter(|_| !is_itself);
        let pod = own.and_then(|ip| {
            let here = NetworkAddress::new(workload.network.clone(), *ip);
            let mut there = self.world.snapshot.workloads_at(&here).iter();
            there.find(|one| one.tunnel == TunnelProtocol::Hbone)
        });
        pod.unwrap_or(workload)
    }

    fn nobody(&self, mut steps: Vec<Step>, detail: String) -> Vec<Way> {
        steps.push(self.step("refused", detail.clone()));
        let outcome = match self.request {
            Some(_) => Outcome::status(503, Reason::NoHealthyUpstream, detail),
            None => Outcome::closed(Reason::NoHealthyUpstream, detail),
        };
        self.end(steps, outcome)
    }

    /// The address that was dialled, if it is one of this service.
    fn dialled(&self, service: &Service) -> Option<IpAddr> {
        let own = self.service.is_some_and(|own| own.key == service.key);
        own.then(|| self.address.ip())
    }

    /// A service whose addresses stand for themselves.
    fn to_itself(&self, service: &Service, port: u16, mut steps: Vec<Step>) -> Vec<Way> {
        let Some(target) = service.ports.target(port) else {
            let detail = format!("service {} has no port {port}", service.key);
            let way = self.no_cluster(503, detail);
            return vec![way.after(1.0, &steps)];
        };
        let Some(ip) = self.dialled(service) else {
            let detail = format!(
                "the addresses of service {} stand for themselves, and the caller dialled none of them",
                service.key
            );
            return self.nobody(steps, detail);
        };
        let at = SocketAddr::new(ip, if target == 0 { port } else { target });
        let because = format!("the addresses of {} stand for themselves", service.key);
        steps.push(self.step(format!("to {at}, as it was dialled"), because));
        let here = NetworkAddress::new("".into(), ip);
        match self.world.snapshot.workload_by_address(&here) {
            Some(workload) => vec![self.at_pod(workload, at).after(1.0, &steps)],
            None => self
                .in_plain_text(at)
                .into_iter()
                .map(|way| way.after(1.0, &steps))
                .collect(),
        }
    }

    /// For rules that say PASSTHROUGH. None where the address stands for any of the endpoints.
    fn as_dialled(
        &self,
        service: &Service,
        (all, port): (&mut Vec<Chance<'_>>, u16),
        steps: &[Step],
    ) -> Option<Vec<Way>> {
        let ip = self.dialled(service)?;
        if let Some(at) = all
            .iter()
            .position(|one| one.workload.addresses.contains(&ip))
        {
            let own = all.swap_remove(at);
            all.clear();
            all.push(own);
            return None;
        }
        let snapshot = &self.world.snapshot;
        let mut own = snapshot.endpoints(&service.key).map(|one| &one.workload);
        let outside = own.all(|one| one.tunnel == TunnelProtocol::None && one.node.is_empty());
        (outside && !is_given_out(ip)).then(|| self.to_itself(service, port, steps.to_vec()))
    }

    /// Keeps those that the caller's place prefers, each with its share.
    fn nearest(&self, rules: &TrafficRules, all: &mut Vec<Chance<'_>>, steps: &mut Vec<Step>) {
        let balancing = rules.balancing.as_ref();
        let locality = balancing.and_then(|balancing| balancing.locality.as_ref());
        let counts = |locality: &&LocalityRules| locality.counts(rules.outliers.is_some());
        let Some(locality) = locality.filter(counts) else {
            return;
        };
        let caller = self.place(&self.caller.workload);
        let before = all.len();
        let preferred = |one: &Chance<'_>| locality.preference(&caller, &self.place(one.workload));
        let best = all.iter().filter_map(|one| match preferred(one) {
            Preference::Rank(rank) => Some(rank),
            Preference::Share(..) | Preference::Never => None,
        });
        let best = best.min();
        let mut groups: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
        all.retain(|one| match preferred(one) {
            Preference::Rank(rank) => Some(rank) == best,
            Preference::Share(group, share) => {
                let of = groups.entry(group).or_insert((f64::from(share), 0.0));
                of.1 += one.capacity();
                true
            }
            Preference::Never => false,
        });
        for one in all.iter_mut() {
            if let Preference::Share(group, _) =
                locality.preference(&caller, &self.place(one.workload))
                && let Some((share, capacity)) = groups.get(&group)
            {
                one.share = share * one.capacity() / capacity;
            }
        }
        let because = "localityLbSetting: by the places of the caller and of endpoints";
        let decision = format!("among {} of {before} endpoints", all.len());
        steps.push(self.step(decision, because));
    }

    fn place<'a>(&'a self, workload: &'a Workload) -> Locality<'a> {
        let locality = &workload.locality;
        Locality {
            region: &locality.region,
            zone: &locality.zone,
            subzone: &locality.subzone,
            labels: self.tables.labels(&workload.uid).map(|labels| &**labels),
        }
    }

    /// The one that what stands for the call leads to.
    fn by_hash(&self, rules: &TrafficRules, all: &mut Vec<Chance<'_>>, steps: &mut Vec<Step>) {
        let Some(key) = rules.balancing.as_ref().and_then(|b| b.hash.as_ref()) else {
            return;
        };
        let by = match key {
            HashKey::Header(name) => format!("header {name}"),
            HashKey::Cookie(cookie) => format!("cookie {}", cookie.name),
            HashKey::SourceIp => "the caller's address".to_owned(),
            HashKey::Query(name) => format!("query parameter {name}"),
        };
        let ip = self.caller.ip;
        let number = match &self.request {
            Some(request) => {
                let call = request.call();
                key.of(call.headers, call.query, ip)
            }
            None if *key == HashKey::SourceIp => key.of(&HeaderMap::new(), None, ip),
            None => None,
        };
        let because = format!("consistent hash of {by}");
        let Some(number) = number else {
            let kept = match key {
                HashKey::Cookie(cookie)
                    if cookie.given_with.is_some() && self.request.is_some() =>
                {
                    "to any of them; a cookie keeps the caller there"
                }
                _ => "to any of them: the call does not have the key",
            };
            steps.push(self.step(kept, because));
            return;
        };
        if all.iter().any(|one| one.workload.addresses.is_empty()) {
            let decision =
                "always to the same one while its addresses stay; which is not known here";
            steps.push(self.step(decision, because));
            return;
        }
        let score = |one: &Chance<'_>| score(number, &one.workload.uid, one.workload.capacity);
        let best = all.iter().map(score).max_by(f64::total_cmp);
        // The last of equals, as the waypoint has it.
        let at = best.and_then(|best| {
            all.iter()
                .rposition(|one| score(one).total_cmp(&best).is_eq())
        });
        if let Some(at) = at {
            let mut one = all.swap_remove(at);
            one.share = 1.0;
            all.clear();
            all.push(one);
            steps.push(self.step("always to the same one", because));
        }
    }

    fn to_endpoint(&self, service: &Service, one: &Chance<'_>) -> Vec<Way> {
        let workload = one.workload;
        let v4 = self
            .caller
            .workload
            .addresses
            .first()
            .is_none_or(IpAddr::is_ipv4);
        let mut own = workload.addresses.iter();
        let same = own.find(|ip| ip.is_ipv4() == v4);
        if let Some(ip) = same.or(workload.addresses.first()) {
            let at = SocketAddr::new(*ip, one.port);
            if workload.node.is_empty() && is_of_cluster(self.world, *ip) {
                return self.at_ip(at);
            }
            return vec![self.at_pod(workload, at)];
        }
        if !workload.hostname.starts_with(WILDCARD) {
            return self.to_host(&workload.hostname, one.port);
        }
        match self.in_domain(&workload.hostname) {
            Some(host) => self.to_host(&host, one.port),
            None => {
                let text = format!(
                    "the call names no host outside the mesh that service {} stands for",
                    service.key
                );
                self.nobody(Vec::new(), text)
            }
        }
    }

    /// The host that a request is for, if it is one of the domain that `pattern` stands for.
    fn in_domain(&self, pattern: &str) -> Option<String> {
        let request = self.request.as_ref()?;
        let call = request.call();
        let host = call
            .authority
            .rsplit_once(':')
            .map_or(call.authority, |(host, _)| host);
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let own = host.strip_suffix(pattern.strip_prefix('*')?)?;
        (!own.is_empty()).then_some(host)
    }

    /// What a host resolves to, as the waypoint is told.
    fn to_host(&self, host: &str, port: u16) -> Vec<Way> {
        let asks = |because: &str| self.step(format!("to what {host} resolves to"), because);
        let ip = self.instance.addresses.first().copied();
        let like = ip.unwrap_or(self.caller.ip);
        let Some(Known {
            place: Place::Here(ips, _),
            ..
        }) = of_cluster(self.world, like, host)
        else {
            let because = "it asks its name server; without an answer the call is refused";
            return vec![Way::new(1.0, vec![asks(because)], named(host, port))];
        };
        if ips.is_empty() {
            return self.nobody(Vec::new(), format!("{host} has no address"));
        }
        let before = [asks("the cluster's name server knows it")];
        let share = 1.0 / ips.len() as f64;
        let each = ips.iter().flat_map(|ip| {
            let ways = self.at_ip(SocketAddr::new(*ip, port));
            ways.into_iter().map(|way| way.after(share, &before))
        });
        each.collect()
    }

    /// At an address that is told as outside: a pod takes it as it takes any call, everything else in
    /// plain text.
    fn at_ip(&self, at: SocketAddr) -> Vec<Way> {
        match self.world.pod_at(at.ip()) {
            Some(pod) => vec![self.at_pod(pod, at)],
            None => self.in_plain_text(at),
        }
    }

    fn in_plain_text(&self, at: SocketAddr) -> Vec<Way> {
        let ip = self.instance.addresses.first().copied();
        let sender = Sender {
            workload: self.instance,
            ip: ip.unwrap_or(self.caller.ip),
            place: format!("waypoint {}", self.info.name),
            because: format!("{at} is outside the mesh"),
            may_probe: false,
        };
        let ways = sender.send(self.world, at).into_iter();
        ways.map(|way| self.told(way)).collect()
    }

    /// What a node refuses, the waypoint tells as an upstream that failed.
    pub(super) fn told(&self, way: Way) -> Way {
        let outcome = match (way.outcome, &self.request) {
            (Outcome::Refused { reason, detail, .. }, Some(_)) => {
                Outcome::status(503, reason, detail)
            }
            (outcome, _) => outcome,
        };
        Way::new(way.share, way.steps, outcome)
    }
}

/// Shares by capacity, unless places have given them.
fn share(all: &mut [Chance<'_>]) {
    let given: f64 = all.iter().map(|one| one.share).sum();
    let total: f64 = all.iter().map(Chance::capacity).sum();
    for one in all.iter_mut() {
        one.share = match given > 0.0 {
            true => one.share / given,
            false => one.capacity() / total,
        };
    }
}

/// True for addresses that hosts without one are given: nobody is there. The ranges are Istio's.
fn is_given_out(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..2] == [240, 240],
        IpAddr::V6(ip) => ip.segments()[..3] == [0x2001, 2, 0],
    }
}

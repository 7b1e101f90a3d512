//! Endpoints that are told by a host name, as one endpoint for each of its addresses.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use isobar_runtime::LocalScope;
use isobar_state::balance::Candidate;
use isobar_state::{Endpoint, TunnelProtocol, Workload};
use isobar_types::{NetworkAddress, Str};

use crate::names::{Known, Names};
use crate::world::View;

/// Stands between the uid of a workload and the address of one of its endpoints.
const MARK: char = '#';

/// Names as one worker looks at them.
#[derive(Debug)]
pub(crate) struct Resolver {
    names: Names,
    scope: Rc<LocalScope>,
}

/// What host names came to.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    /// Endpoints with an address, and their ports.
    pub(crate) endpoints: Vec<(Endpoint, u16)>,
    /// Names that have to be asked for first.
    pub(crate) missing: Vec<Str>,
}

impl Resolver {
    pub(crate) const fn new(names: Names, scope: Rc<LocalScope>) -> Self {
        Self { names, scope }
    }

    /// Takes out of `candidates` those without an address, and those that are told as something
    /// outside while their address is that of a pod of the mesh: what they are instead.
    pub(crate) fn resolve(&self, view: &View, candidates: &mut Vec<Candidate<'_>>) -> Resolved {
        let mut resolved = Resolved::default();
        // Pods are on a node; what is told by ServiceEntries and WorkloadEntries is not.
        let is_itself = |c: &Candidate<'_>| {
            let workload = &c.endpoint.workload;
            !workload.node.is_empty()
                || (workload.tunnel == TunnelProtocol::Hbone && !workload.addresses.is_empty())
        };
        if candidates.iter().all(is_itself) {
            return resolved;
        }
        let mut left = Vec::with_capacity(candidates.len());
        for candidate in candidates.drain(..) {
            let workload = &candidate.endpoint.workload;
            if is_itself(&candidate) {
                left.push(candidate);
                continue;
            }
            let addresses = match workload.addresses.first() {
                Some(ip) => match meshed(view, candidate.endpoint, *ip) {
                    Some(pod) => {
                        resolved.endpoints.push((pod, candidate.port));
                        continue;
                    }
                    None => {
                        left.push(candidate);
                        continue;
                    }
                },
                None => self.addresses(&workload.hostname, &mut resolved.missing),
            };
            for ip in addresses.iter() {
                let one = at(candidate.endpoint, *ip);
                let one = meshed(view, &one, *ip).unwrap_or(one);
                resolved.endpoints.push((one, candidate.port));
            }
        }
        *candidates = left;
        resolved
    }

    /// What is known of a name; asks for it where that is due.
    fn addresses(&self, name: &Str, missing: &mut Vec<Str>) -> Arc<[IpAddr]> {
        match self.names.now(name) {
            Known::Fresh(addresses) => addresses,
            Known::Due(addresses) => {
                self.ask(name);
                addresses
            }
            Known::Not => {
                self.ask(name);
                missing.push(name.clone());
                Arc::default()
            }
        }
    }

    fn ask(&self, name: &Str) {
        if !self.names.undertake(name) {
            return;
        }
        let (names, name) = (self.names.clone(), name.clone());
        self.scope.spawn("host name", async move {
            names.ask(&name).await;
        });
    }

    /// Waits until these names have been asked for.
    pub(crate) async fn wait(&self, missing: &[Str]) {
        let all = missing.iter().map(|name| self.names.ask(name));
        futures_util::future::join_all(all).await;
    }
}

fn at(endpoint: &Endpoint, ip: IpAddr) -> Endpoint {
    let workload = &endpoint.workload;
    Endpoint {
        workload: Arc::new(Workload {
            uid: format!("{}{MARK}{ip}", workload.uid).into(),
            addresses: vec![ip].into(),
            ..Workload::clone(workload)
        }),
        ports: endpoint.ports.clone(),
    }
}

/// The pod of the mesh at this address, in place of an endpoint that is told without one.
fn meshed(view: &View, endpoint: &Endpoint, ip: IpAddr) -> Option<Endpoint> {
    let told = &endpoint.workload;
    if told.tunnel == TunnelProtocol::Hbone {
        return None;
    }
    let here = NetworkAddress::new(told.network.clone(), ip);
    let mut there = view.snapshot.workloads_at(&here).iter();
    let pod = there.find(|w| w.tunnel == TunnelProtocol::Hbone)?;
    Some(Endpoint {
        workload: Arc::clone(pod),
        ports: endpoint.ports.clone(),
    })
}

/// The uid that the mesh knows a workload by.
pub(crate) fn told(uid: &str) -> &str {
    uid.split_once(MARK).map_or(uid, |(told, _)| told)
}

//! Where a request goes: the service that is meant, what its rules say, and what of the request decides.

use std::net::IpAddr;
use std::sync::Arc;

use ::http::header::HeaderValue;
use isobar_route::path::split_port;
use isobar_route::{HashKey, Subset, Target as RouteTarget, TrafficRules};
use isobar_state::{Service, Workload};
use isobar_types::Str;

use super::exchange::ClusterName;
use super::pipeline::Flow;
use super::reply::Local;
use super::standing::Asked;
use crate::cluster::Cluster;
use crate::edge;
use crate::endpoint::{Endpoint, Wanted};
use crate::resolved::{Asked as Named, turn_of};
use crate::session::Session;
use crate::target::Target;
use crate::upstream::{How, Preface, Tls};
use crate::world::View;

/// Where the tries may go.
pub(super) enum Place {
    Pod(Endpoint),
    Cluster(Destination),
}

/// A service or subset, and what its rules say.
pub(super) struct Destination {
    pub(super) service: Arc<Service>,
    pub(super) port: u16,
    subset: Option<Arc<Subset>>,
    rules: Arc<TrafficRules>,
    cluster: Option<Arc<Cluster>>,
    hash: Option<u64>,
    dialled: Option<IpAddr>,
    pub(super) session: Option<u64>,
    /// The host that is asked for and in whose turn, where the service stands for many.
    asked: Option<(Str, Str)>,
    preface: Option<Preface>,
}

impl Destination {
    /// A choice among all its endpoints.
    pub(super) fn wanted<'a>(&'a self, source: &'a Workload, tried: &'a [Str]) -> Wanted<'a> {
        Wanted {
            service: &self.service,
            port: self.port,
            subset: self.subset.as_deref(),
            rules: &self.rules,
            cluster: self.cluster.as_ref(),
            hash: self.hash,
            source,
            tried,
            remote: false,
            dialled: self.dialled,
            asked: self.asked.as_ref().map(|(host, turn)| Named { host, turn }),
            session: self.session,
            dice: rand::random(),
        }
    }

    fn how(&self) -> How {
        How {
            limits: self.rules.limits(),
            cluster: self.cluster.clone(),
            tls: self.rules.tls().map(|rules| Tls {
                rules: rules.clone(),
                host: self
                    .asked
                    .as_ref()
                    .map_or(&self.service.key.hostname, |(host, _)| host)
                    .clone(),
            }),
            preface: self.preface,
            alone: false,
        }
    }
}

impl Place {
    /// Rules and memory, where there are limits or outliers to look at.
    pub(super) fn limited(&self) -> Option<(&TrafficRules, &Arc<Cluster>, &Service)> {
        let Self::Cluster(to) = self else {
            return None;
        };
        Some((&to.rules, to.cluster.as_ref()?, &to.service))
    }

    pub(super) fn how(&self) -> How {
        match self {
            Self::Pod(_) => How::default(),
            Self::Cluster(to) => to.how(),
        }
    }
}

/// Finds what a destination names.
pub(super) fn place(flow: &mut Flow, target: Option<&RouteTarget>) -> Result<Place, Local> {
    let addressed = &flow.session.addressed;
    let own = match (&addressed.target, target) {
        (Target::Workload(workload), _) => {
            let uid = workload.uid.clone();
            flow.exchange.cluster = ClusterName::Pod(addressed.destination);
            // The pod as it is now: it may have gone, or left the mesh.
            let now = flow.view.snapshot.workload_by_uid(&uid);
            let workload = now.ok_or_else(|| Local::no_endpoint(format!("pod {uid} is gone")))?;
            return Ok(Place::Pod(Endpoint {
                workload: workload.clone(),
                address: addressed.destination,
            }));
        }
        (Target::Service(service), _) => Some(service.clone()),
        (Target::Listener(_), _) => None,
    };
    let from = (&*flow.session, &*flow.asked);
    let to = destination(from, &flow.view, own.as_deref(), target)?;
    flow.exchange.cluster = ClusterName::Service {
        port: to.port,
        subset: to.subset.clone(),
        host: to.service.key.hostname.clone(),
    };
    flow.exchange.service = Some(to.service.clone());
    let waypoint = waypoint(&flow.session, &flow.view, &to)?;
    Ok(waypoint.map_or(Place::Cluster(to), Place::Pod))
}

/// A pod of the waypoint that callers from outside reach this destination through, where they do.
pub(super) fn waypoint(
    session: &Session,
    view: &View,
    to: &Destination,
) -> Result<Option<Endpoint>, Local> {
    let Target::Listener(_) = session.addressed.target else {
        return Ok(None);
    };
    let through = edge::through(&session.worker, view, &to.service, to.port);
    through.map_err(|(reason, why)| Local::no_waypoint(reason, why))
}

/// The service that a target names, or the one that was addressed, with its rules.
pub(super) fn destination(
    (session, asked): (&Session, &Asked),
    view: &View,
    own: Option<&Service>,
    target: Option<&RouteTarget>,
) -> Result<Destination, Local> {
    if let Some(status) = target.and_then(|t| t.refuse) {
        return Err(Local::refused(status, target.map_or("", |t| &*t.host)));
    }
    let key = match target {
        None => own
            .map(|own| &own.key)
            .ok_or_else(|| Local::no_cluster("no destination is named".into()))?,
        Some(target) => target.service.as_ref().ok_or_else(|| {
            Local::no_cluster(format!("the destination {:?} is not known", &*target.host))
        })?,
    };
    let service = view
        .snapshot
        .service(key)
        .cloned()
        .ok_or_else(|| Local::no_cluster(format!("service {key} is not known")))?;
    let dialled = session.addressed.destination;
    let ports = service.ports.iter().map(|(port, _)| port);
    let port = target.map_or(dialled.port(), |t| t.port_of(ports, dialled.port()));
    let name = target.and_then(|t| t.subset.as_deref());
    let tables = &view.tables;
    let subset =
        match name {
            None => None,
            Some(name) => Some(tables.subset(key, name).cloned().ok_or_else(|| {
                Local::no_cluster(format!("service {key} has no subset {name:?}"))
            })?),
        };
    let rules = tables.traffic(key, subset.as_deref(), port).clone();
    let turns = &session.worker.turns;
    let cluster = turns.cluster(&rules, &service, subset.as_deref(), port);
    let many = service.key.hostname.starts_with("*.");
    Ok(Destination {
        dialled: session.addressed.dialled(&service),
        asked: many.then(|| {
            let (host, _) = split_port(&asked.clean.authority);
            (host.into(), turn_of(&session.peer))
        }),
        preface: rules.proxy.map(|version| Preface {
            version,
            source: session.peer.address,
            destination: dialled,
        }),
        service,
        port,
        subset,
        rules,
        cluster,
        hash: None,
        session: None,
    })
}

/// Finds what of the request decides where it goes, if something does. The `set-cookie` of a caller
/// that had no cookie yet.
pub(super) fn sticky(place: &mut Place, flow: &Flow) -> Option<HeaderValue> {
    let Place::Cluster(to) = place else {
        return None;
    };
    let key = to.rules.balancing.as_ref()?.hash.as_ref()?;
    let asked = &flow.asked;
    let ip = flow.session.peer.address.ip();
    to.hash = key.of(&asked.headers, asked.clean.query.as_deref(), ip);
    let HashKey::Cookie(cookie) = key else {
        return None;
    };
    let given = cookie.give(rand::random()).filter(|_| to.hash.is_none());
    let (hash, header) = given?;
    to.hash = Some(hash);
    Some(header)
}

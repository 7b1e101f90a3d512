use std::sync::Arc;

use ipnet::IpNet;
use isobar_proto::isobar::v1 as proto;
use isobar_types::NamespacedHostname;

use crate::action::Weighted;
use crate::call::{Caller, Labels, TcpCall};
use crate::table::Tables;
use crate::virtual_service::{FieldError, VirtualService, compile_destinations, port};

/// A compiled TLS or TCP rule.
#[derive(Debug, Clone, PartialEq)]
pub struct TcpRoute {
    /// One must match; empty matches everything.
    pub matches: Vec<L4Match>,
    /// Where to.
    pub destinations: Vec<Weighted>,
    /// A rule of the `tls` list: takes only connections that start with a TLS hello, if it asks for
    /// server names.
    pub tls: bool,
}

/// A compiled L4 match block; all parts must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct L4Match {
    /// Server names, exact or `*.suffix`; empty matches everything.
    pub sni_hosts: Vec<String>,
    /// Ranges of the destination address; empty matches everything.
    pub subnets: Vec<IpNet>,
    /// Range of the caller's address.
    pub source: Option<IpNet>,
    /// Service port; 0 matches every port.
    pub port: u16,
    /// Labels of the caller.
    pub source_labels: Labels,
    /// Namespace of the caller's certificate; empty matches all.
    pub source_namespace: String,
}

/// Which rule takes an opaque connection.
#[derive(Debug, Clone, PartialEq)]
pub enum TcpDecision {
    /// No rule for opaque traffic names the service: it goes to the service itself.
    Default,
    /// This rule of this object.
    Taken(Arc<VirtualService>, usize),
    /// Rules exist and none matches: the connection is closed, flag `NR`.
    NoRoute,
}

impl TcpDecision {
    /// The rule, if one took it.
    #[must_use]
    pub fn route(&self) -> Option<&TcpRoute> {
        match self {
            Self::Taken(object, at) => object.tcp.get(*at),
            Self::Default | Self::NoRoute => None,
        }
    }
}

/// Finds the first rule that matches; `tls` rules are consulted before `tcp` rules in every object.
#[must_use]
pub fn match_tcp(
    tables: &Tables,
    service: &NamespacedHostname,
    call: &TcpCall<'_>,
    caller: &Caller,
) -> TcpDecision {
    let mut any = false;
    for object in tables.virtual_services_of(service) {
        for (at, route) in object.tcp.iter().enumerate() {
            any = true;
            let holds = |m: &L4Match| m.holds(call, caller, &service.hostname);
            if route.matches.is_empty() || route.matches.iter().any(holds) {
                return TcpDecision::Taken(object.clone(), at);
            }
        }
    }
    if any {
        TcpDecision::NoRoute
    } else {
        TcpDecision::Default
    }
}

impl L4Match {
    fn holds(&self, call: &TcpCall<'_>, caller: &Caller, service: &str) -> bool {
        let to = call.destination;
        (self.port == 0 || self.port == to.port())
            && (self.subnets.is_empty() || self.subnets.iter().any(|net| net.contains(&to.ip())))
            && self.source.is_none_or(|net| net.contains(&caller.ip))
            && (self.source_namespace.is_empty()
                || caller.namespace() == Some(self.source_namespace.as_str()))
            && caller.has_labels(&self.source_labels)
            && self.server_name_holds(call.sni, service)
    }

    /// Without a server name in the connection, only the service's own name counts as asked for.
    fn server_name_holds(&self, sni: Option<&str>, service: &str) -> bool {
        let asked = sni.unwrap_or(service).to_ascii_lowercase();
        self.sni_hosts.is_empty()
            || self
                .sni_hosts
                .iter()
                .any(|host| match host.strip_prefix('*') {
                    Some(suffix) => asked.len() > suffix.len() && asked.ends_with(suffix),
                    None => *host == asked,
                })
    }
}

pub(crate) fn compile_tcp(from: &proto::TcpRoute) -> Result<TcpRoute, FieldError> {
    Ok(TcpRoute {
        matches: compile_matches(from.matches.iter().map(|m| (Some(m), &[][..])))?,
        destinations: compile_destinations(&from.destinations, "route")?,
        tls: false,
    })
}

pub(crate) fn compile_tls(from: &proto::TlsRoute) -> Result<TcpRoute, FieldError> {
    let blocks = from
        .matches
        .iter()
        .map(|m| (m.l4.as_ref(), &m.sni_hosts[..]));
    Ok(TcpRoute {
        matches: compile_matches(blocks)?,
        destinations: compile_destinations(&from.destinations, "route")?,
        tls: true,
    })
}

fn compile_matches<'a>(
    blocks: impl Iterator<Item = (Option<&'a proto::L4Match>, &'a [String])>,
) -> Result<Vec<L4Match>, FieldError> {
    blocks
        .enumerate()
        .map(|(at, (l4, sni_hosts))| {
            compile_l4(l4, sni_hosts).map_err(|e| e.under(&format!("match[{at}]")))
        })
        .collect()
}

fn compile_l4(from: Option<&proto::L4Match>, sni: &[String]) -> Result<L4Match, FieldError> {
    let from = from.cloned().unwrap_or_default();
    let range = |field: &str, text: &str| {
        let problem = || FieldError::new(field, format!("{text:?} is not an address range"));
        parse_block(text).ok_or_else(problem)
    };
    let mut subnets = Vec::with_capacity(from.destination_subnets.len());
    for (at, text) in from.destination_subnets.iter().enumerate() {
        subnets.push(range(&format!("destinationSubnets[{at}]"), text)?);
    }
    let source = Some(&from.source_subnet).filter(|text| !text.is_empty());
    Ok(L4Match {
        sni_hosts: sni.iter().map(|host| host.to_ascii_lowercase()).collect(),
        subnets,
        source: source.map(|text| range("sourceSubnet", text)).transpose()?,
        port: port(from.port, "port")?,
        source_labels: from.source_labels,
        source_namespace: from.source_namespace,
    })
}

/// A range in CIDR form, or a single address.
pub(crate) fn parse_block(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>()
        .ok()
        .or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from))
}

#[cfg(test)]
mod tests;

//! Ports of a gateway, of Istio's Gateways and of the Gateway API's.

use std::collections::BTreeMap;

use isobar_objects::gateway_api::{Gateway, Listener};
use isobar_objects::istio::{self, IstioGateway, ServerTlsMode, TlsVersion};
use isobar_objects::{Kind, ObjectHead, ObjectSet, pods};
use isobar_proto::isobar::v1 as wire;
use serde::Deserialize;
use wire::listener::Protocol;
use wire::listener_tls::ClientCertificate;

use super::super::super::gateways::WaypointGateway;
use super::credentials;

/// A port, and the hosts that are shown there.
#[derive(Debug, Clone)]
pub(in super::super) struct Server {
    /// Of its listener: servers that are told apart by host alone share one.
    pub(super) name: String,
    /// Istio's Gateway, by namespace and name.
    pub(super) of: (String, String),
    /// As users name it.
    pub(super) port: u16,
    /// Where the pods listen.
    pub(super) bind: u16,
    pub(super) protocol: Protocol,
    pub(super) hosts: Vec<Shown>,
    pub(super) tls: Option<wire::ListenerTls>,
    pub(super) https_redirect: bool,
}

/// A host, and whose rules count for it.
#[derive(Debug, Clone)]
pub(in super::super) struct Shown {
    pub(super) host: String,
    /// Only rules of this namespace.
    pub(super) only: Option<String>,
}

/// The servers of all of Istio's Gateways that select the pods. A Gateway's port is that of the Service
/// in front of them.
pub(super) fn istio_servers(waypoint: &WaypointGateway<'_>, set: &ObjectSet) -> Vec<Server> {
    let gateways = waypoint.edge.iter().flat_map(|edge| &edge.istio);
    let mut all = Vec::new();
    for gateway in gateways {
        for (index, server) in gateway.spec.servers.iter().enumerate() {
            all.extend(istio_server(waypoint, gateway, index, server, set));
        }
    }
    all
}

fn istio_server(
    waypoint: &WaypointGateway<'_>,
    gateway: &IstioGateway,
    index: usize,
    server: &istio::Server,
    set: &ObjectSet,
) -> Option<Server> {
    let port = u16::try_from(server.port.number).ok().filter(|p| *p != 0)?;
    let bind = bind(waypoint, port, set);
    let protocol = match server.port.protocol.to_ascii_uppercase().as_str() {
        "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB" => Protocol::Http,
        word @ ("HTTPS" | "TLS") => match server.tls.as_ref()?.mode {
            ServerTlsMode::Passthrough => Protocol::Tls,
            ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual
                if word == "HTTPS" =>
            {
                Protocol::Https
            }
            // TLS that ends before what is no HTTP, or the mesh's own: told by the validation.
            _ => return None,
        },
        "TCP" | "MONGO" => Protocol::Tcp,
        _ => return None,
    };
    let own = (gateway.namespace().to_owned(), gateway.name().to_owned());
    let tls = server.tls.as_ref();
    let hosts = server.hosts.iter().map(|host| shown(host, &own.0));
    let hosts: Vec<_> = hosts.collect();
    Some(Server {
        name: match protocol {
            Protocol::Http | Protocol::Tcp => format!("port-{bind}"),
            Protocol::Https | Protocol::Tls => format!("{}.{}-{index}", own.0, own.1),
        },
        tls: tls
            .filter(|_| protocol == Protocol::Https)
            .map(|tls| ending(tls, &waypoint.key.namespace)),
        https_redirect: protocol == Protocol::Http && tls.is_some_and(|tls| tls.https_redirect),
        of: own,
        port,
        bind,
        protocol,
        hosts,
    })
}

/// `ns/host`, `./host`, `*/host` or a host.
fn shown(host: &str, own: &str) -> Shown {
    let (only, host) = match host.split_once('/') {
        None | Some(("*", _)) => (None, host.rsplit('/').next().unwrap_or(host)),
        Some((".", host)) => (Some(own.to_owned()), host),
        Some((namespace, host)) => (Some(namespace.to_owned()), host),
    };
    Shown {
        host: host.to_ascii_lowercase(),
        only,
    }
}

/// Secrets lie where the gateway's pods run, not where somebody writes a Gateway.
fn ending(tls: &istio::ServerTls, namespace: &str) -> wire::ListenerTls {
    let named = std::iter::once(&tls.credential_name).chain(&tls.credential_names);
    let named: Vec<_> = named.filter(|name| !name.is_empty()).collect();
    let first = named.first().map_or("", |name| name.as_str());
    let authority = match tls.ca_cert_credential_name.as_str() {
        "" => first,
        name => name,
    };
    let client = match tls.mode {
        ServerTlsMode::Mutual => ClientCertificate::Required,
        ServerTlsMode::OptionalMutual => ClientCertificate::Optional,
        _ => ClientCertificate::None,
    };
    wire::ListenerTls {
        credentials: named
            .iter()
            .map(|name| credentials::name(namespace, name))
            .collect(),
        client: client.into(),
        client_authority: match client {
            ClientCertificate::None => String::new(),
            _ => credentials::authority(namespace, authority),
        },
        only_tls13: tls.min_protocol_version == TlsVersion::V1_3,
        only_tls12: tls.max_protocol_version == TlsVersion::V1_2,
    }
}

/// Where pods listen for a port of the Service in front of them; without one, there.
fn bind(waypoint: &WaypointGateway<'_>, port: u16, set: &ObjectSet) -> u16 {
    let pod = waypoint.pods.iter();
    let mut pod = pod.filter_map(|key| set.pods.get(&key.namespace, &key.name));
    let Some(pod) = pod.next() else {
        return port;
    };
    let mut services = set.services.in_namespace(&waypoint.key.namespace);
    let found = services.find_map(|service| {
        let spec = service.spec.as_ref()?;
        let selector = spec.selector.as_ref().filter(|labels| !labels.is_empty())?;
        let mut wanted = selector.iter();
        if !wanted.all(|(key, value)| pod.labels().get(key) == Some(value)) {
            return None;
        }
        let mut ports = spec.ports.iter().flatten();
        let there = ports.find(|one| one.port == i32::from(port))?;
        pods::target_port(pod, there.target_port.as_ref(), port)
    });
    found.unwrap_or(port)
}

/// The listeners of a Gateway by name, each as a server or as a word and a sentence why it is none.
pub(in super::super) struct ApiServers(pub(in super::super) BTreeMap<String, Result<Server, Flaw>>);

/// Why a listener is not served: a word of the Gateway API, and a sentence.
pub(in super::super) type Flaw = (&'static str, String);

impl ApiServers {
    /// Those that are served.
    pub(super) fn good(&self) -> impl Iterator<Item = (&String, &Server)> {
        let all = self.0.iter();
        all.filter_map(|(name, server)| Some((name, server.as_ref().ok()?)))
    }
}

impl Server {
    /// Its listener's name on the wire.
    pub(in super::super) fn listener(&self) -> &str {
        &self.name
    }

    /// What is spoken.
    pub(in super::super) const fn protocol(&self) -> Protocol {
        self.protocol
    }
}

/// Reads the listeners of a Gateway of the Gateway API.
pub(in super::super) fn api_servers(gateway: &Gateway, set: &ObjectSet) -> ApiServers {
    let listeners = gateway.spec.listeners.iter();
    let read = listeners.map(|one| (one.name.clone(), api_server(gateway, one, set)));
    ApiServers(read.collect())
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ApiTls {
    mode: Option<String>,
    certificate_refs: Vec<CertificateRef>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct CertificateRef {
    group: Option<String>,
    kind: Option<String>,
    name: String,
    namespace: Option<String>,
}

fn api_server(gateway: &Gateway, listener: &Listener, set: &ObjectSet) -> Result<Server, Flaw> {
    let port = u16::try_from(listener.port).ok().filter(|port| *port != 0);
    let port = port.ok_or(("PortUnavailable", format!("{} is no port", listener.port)))?;
    let tls = listener.tls.clone().unwrap_or_default();
    let tls: ApiTls = match tls {
        serde_json::Value::Null => ApiTls::default(),
        some => serde_json::from_value(some)
            .map_err(|error| ("Invalid", format!("tls cannot be read: {error}")))?,
    };
    let protocol = match (listener.protocol.as_str(), tls.mode.as_deref()) {
        ("HTTP", _) => Protocol::Http,
        ("HTTPS", None | Some("Terminate")) => Protocol::Https,
        ("TLS", Some("Passthrough")) => Protocol::Tls,
        ("TCP", _) => Protocol::Tcp,
        (other, mode) => {
            let text = format!("protocol {other} with TLS mode {mode:?} is not served");
            return Err(("UnsupportedProtocol", text));
        }
    };
    let ends = match protocol {
        Protocol::Https => Some(certificates(gateway, &tls, set)?),
        Protocol::Http | Protocol::Tls | Protocol::Tcp => None,
    };
    let host = listener.hostname.as_deref().filter(|host| !host.is_empty());
    Ok(Server {
        name: match protocol {
            Protocol::Http => format!("port-{port}"),
            Protocol::Https | Protocol::Tls | Protocol::Tcp => {
                format!("{}-{}", gateway.name(), listener.name)
            }
        },
        of: (gateway.namespace().to_owned(), gateway.name().to_owned()),
        port,
        bind: port,
        protocol,
        hosts: vec![Shown {
            host: host.unwrap_or("*").to_ascii_lowercase(),
            only: None,
        }],
        tls: ends,
        https_redirect: false,
    })
}

fn certificates(
    gateway: &Gateway,
    tls: &ApiTls,
    set: &ObjectSet,
) -> Result<wire::ListenerTls, Flaw> {
    let invalid = |text: String| ("InvalidCertificateRef", text);
    let mut named = Vec::new();
    for one in &tls.certificate_refs {
        let group = one.group.as_deref().unwrap_or_default();
        let kind = one.kind.as_deref().unwrap_or("Secret");
        if !group.is_empty() || kind != "Secret" {
            return Err(invalid(format!("{kind} {:?} is no Secret", one.name)));
        }
        let place = one.namespace.as_deref().unwrap_or(gateway.namespace());
        if place != gateway.namespace() && !granted(gateway, place, &one.name, set) {
            let own = gateway.namespace();
            let text = format!(
                "no ReferenceGrant in {place} lets {own} use Secret {}",
                one.name
            );
            return Err(("RefNotPermitted", text));
        }
        credentials::usable(set, place, &one.name).map_err(invalid)?;
        named.push(credentials::name(place, &one.name));
    }
    if named.is_empty() {
        return Err(invalid("tls.certificateRefs names no Secret".to_owned()));
    }
    Ok(wire::ListenerTls {
        credentials: named,
        ..wire::ListenerTls::default()
    })
}

fn granted(gateway: &Gateway, place: &str, name: &str, set: &ObjectSet) -> bool {
    let mut grants = set.reference_grants.in_namespace(place);
    grants.any(|grant| {
        let mut from = grant.spec.from.iter();
        let from = from.any(|from| {
            from.group == Kind::Gateway.group()
                && from.kind == Kind::Gateway.as_str()
                && from.namespace == gateway.namespace()
        });
        let mut to = grant.spec.to.iter();
        from && to.any(|to| {
            let any = to.name.as_deref().is_none_or(|only| only == name);
            to.group.is_empty() && to.kind == "Secret" && any
        })
    })
}

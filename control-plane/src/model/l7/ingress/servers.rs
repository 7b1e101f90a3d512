//! Ports of a gateway, of Istio's Gateways and of the Gateway API's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use isobar_objects::gateway_api::{CertificateRef, Gateway, Listener};
use isobar_objects::istio::{self, IstioGateway, ServerTlsMode, TlsVersion};
use isobar_objects::{Kind, ObjectHead, ObjectRef, ObjectSet, may_name_secret, pods};
use isobar_proto::isobar::v1 as wire;
use isobar_types::Identity;
use serde::Deserialize;
use wire::listener::Protocol;
use wire::listener_tls::ClientCertificate;

use super::super::super::gateways::{Gateways, WaypointGateway};
use super::super::super::verdict::Verdict;
use super::super::scope::CONDITION;
use super::by_name;
use super::claims::Claims;
use super::credentials::{self, Unusable};

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
    /// Server names say where connections go.
    pub(super) by_name: bool,
    /// What is wrong with it although it is served.
    pub(super) flaw: Option<Flaw>,
}

/// A host, and whose rules count for it.
#[derive(Debug, Clone)]
pub(in super::super) struct Shown {
    pub(super) host: String,
    /// Only rules of this namespace.
    pub(super) only: Option<String>,
}

/// What Istio's Gateways make of some pods.
pub(super) struct IstioServers {
    pub(super) served: Vec<Server>,
    /// What is taken and refused: nobody else's wider host answers there.
    pub(super) closed: Vec<Server>,
    pub(super) claims: Claims,
    /// What is not served, by the Gateway's namespace and name.
    pub(super) told: Vec<((String, String), Flaw)>,
}

/// The servers of all of Istio's Gateways that select the pods, the oldest Gateway first. A Gateway's port
/// is that of the Service in front of them.
pub(super) fn istio_servers(waypoint: &WaypointGateway<'_>, set: &ObjectSet) -> IstioServers {
    let gateways = waypoint.edge.iter().flat_map(|edge| &edge.istio);
    let mut gateways: Vec<_> = gateways.collect();
    gateways.sort_by_key(|one| (one.created(), one.namespace(), one.name()));
    let mut all = IstioServers {
        served: Vec::new(),
        closed: Vec::new(),
        claims: Claims::new(true),
        told: Vec::new(),
    };
    for gateway in gateways {
        let own = (gateway.namespace().to_owned(), gateway.name().to_owned());
        for (index, server) in gateway.spec.servers.iter().enumerate() {
            let Some((server, refused)) = istio_server(waypoint, gateway, index, server, set)
            else {
                continue;
            };
            let of = format!("Gateway {}/{}", own.0, own.1);
            let (server, lost) = all.claims.settle(server, &of);
            let served = server.as_ref().and_then(|server| server.flaw.clone());
            let flaws = refused.clone().into_iter().chain(lost).chain(served);
            let at =
                |(word, text): Flaw| (own.clone(), (word, format!("servers[{index}]: {text}")));
            all.told.extend(flaws.map(at));
            match refused {
                Some(_) => all.closed.extend(server),
                None => all.served.extend(server.into_iter().flat_map(apart)),
            }
        }
    }
    all
}

/// What is told about Istio's Gateways that pods have.
pub(in super::super) fn told(set: &ObjectSet, gateways: &Gateways<'_>) -> Vec<Verdict> {
    let mut all: BTreeMap<(String, String), BTreeSet<Flaw>> = BTreeMap::new();
    for waypoint in gateways.values() {
        for gateway in waypoint.edge.iter().flat_map(|edge| &edge.istio) {
            let own = (gateway.namespace().to_owned(), gateway.name().to_owned());
            all.entry(own).or_default();
        }
        for (own, flaw) in istio_servers(waypoint, set).told {
            all.entry(own).or_default().insert(flaw);
        }
    }
    let all = all.into_iter().map(|((namespace, name), flaws)| {
        let object = ObjectRef::new(Kind::IstioGateway, &namespace, &name);
        let reason = match flaws.first() {
            None => return Verdict::holds(object, CONDITION, "Accepted", "served by its pods"),
            Some((word, _)) if word.ends_with("Conflict") => "Conflicted",
            Some((word, _)) => *word,
        };
        let texts: Vec<&str> = flaws.iter().map(|(_, text)| text.as_str()).collect();
        Verdict::fails(object, CONDITION, reason, texts.join("; "))
    });
    all.collect()
}

/// Hosts of connections that are no HTTP are listeners of their own: the server name says whose rules count.
fn apart(server: Server) -> Vec<Server> {
    if server.by_name {
        return vec![server];
    }
    let mut hosts: BTreeMap<String, Vec<Shown>> = BTreeMap::new();
    for shown in &server.hosts {
        let same = hosts.entry(shown.host.clone()).or_default();
        same.push(shown.clone());
    }
    if server.protocol != Protocol::Tls || hosts.len() < 2 {
        return vec![server];
    }
    let all = hosts.into_iter().map(|(host, hosts)| Server {
        // No object has a colon in its name.
        name: format!("{}:{host}", server.name),
        hosts,
        ..server.clone()
    });
    all.collect()
}

/// A server, and why it is refused, if it is.
fn istio_server(
    waypoint: &WaypointGateway<'_>,
    gateway: &IstioGateway,
    index: usize,
    server: &istio::Server,
    set: &ObjectSet,
) -> Option<(Server, Option<Flaw>)> {
    let port = u16::try_from(server.port.number).ok().filter(|p| *p != 0)?;
    let bind = bind(waypoint, port, set);
    let tls = server.tls.as_ref();
    let (protocol, refused) = match server.port.protocol.to_ascii_uppercase().as_str() {
        "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB" => (Protocol::Http, None),
        word @ ("HTTPS" | "TLS") => in_tls(word, tls),
        "TCP" | "MONGO" => (Protocol::Tcp, None),
        _ => return None,
    };
    let refused = refused.or_else(|| elsewhere(&server.bind));
    let own = (gateway.namespace().to_owned(), gateway.name().to_owned());
    let hosts = server.hosts.iter().map(|host| shown(host, &own.0));
    let hosts: Vec<_> = hosts.collect();
    let is_passed = |tls: &&istio::ServerTls| {
        let modes = [ServerTlsMode::Passthrough, ServerTlsMode::AutoPassthrough];
        modes.contains(&tls.mode) || refused.is_some()
    };
    let ends = tls
        .filter(|tls| match protocol {
            Protocol::Https => true,
            Protocol::Tls => !is_passed(tls),
            Protocol::Http | Protocol::Tcp => false,
        })
        .map(|tls| ending(tls, &waypoint.key.namespace));
    let problems = ends.iter().flat_map(|tls| credentials::problems(tls, set));
    let problems: Vec<String> = problems.collect();
    let redirects = protocol == Protocol::Http && tls.is_some_and(|tls| tls.https_redirect);
    let server = Server {
        name: match protocol {
            Protocol::Http | Protocol::Tcp => format!("port-{bind}"),
            Protocol::Https | Protocol::Tls => format!("{}.{}-{index}", own.0, own.1),
        },
        tls: ends,
        https_redirect: redirects && refused.is_none(),
        by_name: protocol == Protocol::Tls
            && refused.is_none()
            && tls.is_some_and(|tls| tls.mode == ServerTlsMode::AutoPassthrough),
        of: own,
        port,
        bind,
        protocol,
        hosts,
        flaw: (!problems.is_empty()).then(|| ("InvalidCertificateRef", problems.join("; "))),
    };
    Some((server, refused))
}

/// Pods listen on all of their addresses: a server that is for some of them only is for nobody.
fn elsewhere(bind: &str) -> Option<Flaw> {
    let any = ["", "0.0.0.0", "::"];
    (!any.contains(&bind)).then(|| {
        let text = format!("bind {bind} is not honoured: nothing is served there");
        ("UnsupportedValue", text)
    })
}

/// What becomes of TLS, and why it is refused.
fn in_tls(word: &str, tls: Option<&istio::ServerTls>) -> (Protocol, Option<Flaw>) {
    let refused = |text: &str| {
        let text = format!("{text}: nothing is served there");
        (Protocol::Tls, Some(("UnsupportedValue", text)))
    };
    let Some(tls) = tls else {
        return refused("TLS is not described");
    };
    let of_mesh = tls.mode == ServerTlsMode::IstioMutual;
    let verified = matches!(
        tls.mode,
        ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual | ServerTlsMode::IstioMutual
    );
    let limits = [
        ("caCrl", tls.ca_crl.is_empty()),
        (
            "verifyCertificateSpki",
            tls.verify_certificate_spki.is_empty(),
        ),
        (
            "verifyCertificateHash",
            tls.verify_certificate_hash.is_empty(),
        ),
        (
            "maxProtocolVersion",
            !of_mesh || tls.max_protocol_version != TlsVersion::V1_2,
        ),
    ];
    let limit = limits.iter().find(|(_, honoured)| !honoured);
    let shown = if of_mesh { is_of_mesh } else { may_be_shown };
    let mut names = tls.subject_alt_names.iter();
    let odd = names.find(|name| verified && !shown(name));
    match (tls.mode, limit, odd) {
        (ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough, ..) => (Protocol::Tls, None),
        // Without it callers would be let in that are not meant to be.
        (_, Some((field, _)), _) => refused(&format!("tls.{field} is not honoured")),
        _ if !verified && !tls.subject_alt_names.is_empty() => refused(
            "tls.subjectAltNames are names of callers, who show no certificate with mode SIMPLE \
             (MUTUAL asks them for one)",
        ),
        (_, _, Some(name)) if of_mesh => refused(&format!(
            "{name:?} in tls.subjectAltNames is no identity of the mesh (spiffe://DOMAIN/ns/NS/sa/ACCOUNT)"
        )),
        (_, _, Some(name)) => refused(&format!(
            "{name:?} in tls.subjectAltNames is no host name, address or URI"
        )),
        (ServerTlsMode::IstioMutual, ..) if tls.shown().next().is_some() => {
            refused("mode ISTIO_MUTUAL shows the certificate of the mesh, and no credentialName")
        }
        _ if word == "HTTPS" => (Protocol::Https, None),
        _ => (Protocol::Tls, None),
    }
}

fn is_of_mesh(name: &str) -> bool {
    name.parse::<Identity>().is_ok()
}

/// Whether a certificate can show this name in a way that is compared here.
fn may_be_shown(name: &str) -> bool {
    let label = |label: &str| {
        let inside = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.len() < 64 && label.bytes().all(inside)
    };
    name.contains("://") || name.parse::<IpAddr>().is_ok() || name.split('.').all(label)
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
    if tls.mode == ServerTlsMode::IstioMutual {
        return wire::ListenerTls {
            mesh: true,
            client_names: tls.subject_alt_names.clone(),
            ..wire::ListenerTls::default()
        };
    }
    let client = match tls.mode {
        ServerTlsMode::Mutual => ClientCertificate::Required,
        ServerTlsMode::OptionalMutual => ClientCertificate::Optional,
        _ => ClientCertificate::None,
    };
    let named = tls.shown().map(|name| credentials::name(namespace, name));
    let authority = tls.authority();
    wire::ListenerTls {
        credentials: named.collect(),
        client: client.into(),
        client_authority: authority
            .map(|name| credentials::authority(namespace, name))
            .unwrap_or_default(),
        client_names: match authority {
            Some(_) => tls.subject_alt_names.clone(),
            None => Vec::new(),
        },
        only_tls13: tls.min_protocol_version == TlsVersion::V1_3,
        only_tls12: tls.max_protocol_version == TlsVersion::V1_2,
        mesh: false,
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

/// The listeners of a Gateway.
pub(in super::super) struct ApiServers {
    /// By name, each as a server or as a word and a sentence why it is none.
    pub(in super::super) all: BTreeMap<String, Result<Server, Flaw>>,
    /// What is taken and refused.
    pub(super) closed: Vec<Server>,
    pub(in super::super) claims: Claims,
}

/// Why a listener is not served: a word of the Gateway API, and a sentence.
pub(in super::super) type Flaw = (&'static str, String);

impl ApiServers {
    /// Those that are served.
    pub(super) fn good(&self) -> impl Iterator<Item = &Server> {
        self.all.values().filter_map(|server| server.as_ref().ok())
    }
}

impl Server {
    /// Server names that it is for.
    pub(super) fn server_names(&self) -> Vec<String> {
        let hosts = self.hosts.iter().map(|shown| match self.by_name {
            true => by_name::pattern(&shown.host),
            false => shown.host.clone(),
        });
        hosts.collect()
    }

    /// Its listener's name on the wire.
    pub(in super::super) fn listener(&self) -> &str {
        &self.name
    }

    /// What is wrong with it although it is served.
    pub(in super::super) const fn flaw(&self) -> Option<&Flaw> {
        self.flaw.as_ref()
    }

    /// What is spoken.
    pub(in super::super) const fn protocol(&self) -> Protocol {
        self.protocol
    }
}

/// Reads the listeners of a Gateway of the Gateway API; of two that want the same the first is served.
pub(in super::super) fn api_servers(gateway: &Gateway, set: &ObjectSet) -> ApiServers {
    let mut all = BTreeMap::new();
    let mut closed = Vec::new();
    let mut claims = Claims::new(false);
    for listener in &gateway.spec.listeners {
        if all.contains_key(&listener.name) {
            continue;
        }
        let read = api_server(gateway, listener, set).and_then(|(server, refused)| {
            let of = format!("listener {}", listener.name);
            let (server, lost) = claims.settle(server, &of);
            match (server, refused.or(lost)) {
                (Some(server), None) => Ok(server),
                (server, Some(flaw)) => {
                    closed.extend(server);
                    Err(flaw)
                }
                (None, None) => Err(("Invalid", "it has no host".to_owned())),
            }
        });
        all.insert(listener.name.clone(), read);
    }
    ApiServers {
        all,
        closed,
        claims,
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ApiTls {
    mode: Option<String>,
    certificate_refs: Vec<CertificateRef>,
    frontend_validation: Option<serde_json::Value>,
}

/// A listener, and why it is refused, if it is.
fn api_server(
    gateway: &Gateway,
    listener: &Listener,
    set: &ObjectSet,
) -> Result<(Server, Option<Flaw>), Flaw> {
    let port = u16::try_from(listener.port).ok().filter(|port| *port != 0);
    let port = port.ok_or(("PortUnavailable", format!("{} is no port", listener.port)))?;
    let (protocol, ends) = match listener.protocol.as_str() {
        "HTTP" => (Protocol::Http, Ok(None)),
        "TCP" => (Protocol::Tcp, Ok(None)),
        "HTTPS" | "TLS" => match api_tls(gateway, listener, set) {
            Ok(Some(ends)) => (Protocol::Https, Ok(Some(ends))),
            other => (Protocol::Tls, other),
        },
        other => {
            let text = format!("protocol {other} is not served");
            return Err(("UnsupportedProtocol", text));
        }
    };
    let (ends, refused) = match ends {
        Ok(ends) => (ends, None),
        Err(flaw) => (None, Some(flaw)),
    };
    let (tls, flaw) = ends.unzip();
    let host = listener.hostname.as_deref().filter(|host| !host.is_empty());
    let server = Server {
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
        tls,
        https_redirect: false,
        by_name: false,
        flaw: flaw.flatten(),
    };
    Ok((server, refused))
}

/// How TLS ends, and what is wrong with that although it is served.
type Ending = (wire::ListenerTls, Option<Flaw>);

/// How TLS of a listener ends; none where it is passed on.
fn api_tls(
    gateway: &Gateway,
    listener: &Listener,
    set: &ObjectSet,
) -> Result<Option<Ending>, Flaw> {
    let tls: ApiTls = match listener.tls.clone().unwrap_or_default() {
        serde_json::Value::Null => ApiTls::default(),
        some => serde_json::from_value(some)
            .map_err(|error| ("Invalid", format!("tls cannot be read: {error}")))?,
    };
    match (listener.protocol.as_str(), tls.mode.as_deref()) {
        ("TLS", Some("Passthrough")) => return Ok(None),
        ("HTTPS", None | Some("Terminate")) => {}
        (other, mode) => {
            let text = format!("protocol {other} with TLS mode {mode:?} is not served");
            return Err(("UnsupportedProtocol", text));
        }
    }
    let whole = gateway.spec.tls.as_ref();
    let whole = whole.and_then(|tls| tls.get("frontend"));
    // Without it callers would be let in that are not meant to be.
    if tls.frontend_validation.is_some() || whole.is_some_and(|one| !one.is_null()) {
        let text = "certificates of callers are not verified here yet: nothing is served";
        return Err(("Invalid", text.to_owned()));
    }
    certificates(gateway, &tls, set).map(Some)
}

fn certificates(gateway: &Gateway, tls: &ApiTls, set: &ObjectSet) -> Result<Ending, Flaw> {
    let invalid = |text: String| ("InvalidCertificateRef", text);
    let (mut named, mut flaw) = (Vec::new(), None);
    for one in &tls.certificate_refs {
        if !one.is_secret() {
            let kind = one.kind.as_deref().unwrap_or("Secret");
            return Err(invalid(format!("{kind} {:?} is no Secret", one.name)));
        }
        let place = one.namespace.as_deref().unwrap_or(gateway.namespace());
        if !may_name_secret(set, gateway, place, &one.name) {
            let own = gateway.namespace();
            let text = format!(
                "no ReferenceGrant in {place} lets {own} use Secret {}",
                one.name
            );
            return Err(("RefNotPermitted", text));
        }
        match credentials::usable(set, place, &one.name) {
            Ok(()) => {}
            Err(Unusable::Missing(text)) => return Err(invalid(text)),
            Err(content) => flaw = Some(invalid(content.text())),
        }
        named.push(credentials::name(place, &one.name));
    }
    if named.is_empty() {
        return Err(invalid("tls.certificateRefs names no Secret".to_owned()));
    }
    let tls = wire::ListenerTls {
        credentials: named,
        ..wire::ListenerTls::default()
    };
    Ok((tls, flaw))
}

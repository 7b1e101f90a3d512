//! Ports of a gateway at the edge of the mesh, and which rules are for which host.

use std::collections::HashMap;

use isobar_proto::isobar::v1 as proto;
use isobar_types::{NamespacedHostname, Str};
use proto::listener_tls::ClientCertificate;

use crate::path::split_port;
use crate::table::ResourceError;

/// What callers of a port speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerProtocol {
    /// HTTP in the clear.
    Http,
    /// HTTP in TLS that ends here.
    Https,
    /// TLS that is passed on by its server name; where TLS ends here, what is within.
    Tls,
    /// Anything.
    Tcp,
}

/// A port of a gateway, or the part of it that is for some server names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Unique in its gateway.
    pub name: Str,
    /// Where it listens.
    pub port: u16,
    /// The port of the Service in front of it, as rules and redirects mean it.
    pub service_port: u16,
    /// What is spoken.
    pub protocol: ListenerProtocol,
    /// How TLS ends, where it does.
    pub tls: Option<ListenerTls>,
    /// Connections go on as they came, without TLS of ours around them.
    pub raw: bool,
    server_names: ByHost<()>,
    hosts: ByHost<VirtualHost>,
}

/// What is done with requests for a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualHost {
    /// By what the rules of this host are found.
    pub rules: NamespacedHostname,
    /// Every request is sent to https.
    pub https_redirect: bool,
}

/// How a listener ends TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerTls {
    /// Names of what is shown to callers.
    pub credentials: Vec<Str>,
    /// Name of what signs callers' certificates, and whether they must have one; `None`: not asked.
    pub clients: Option<(Str, bool)>,
    /// Names of which a caller's certificate must have one; empty: any.
    pub client_names: Vec<Str>,
    /// TLS 1.3 may be spoken.
    pub tls13: bool,
    /// TLS 1.2 may be spoken.
    pub tls12: bool,
    /// The gateway's own certificate of the mesh is shown, and callers must have one of the mesh.
    pub mesh: bool,
}

/// Values by host: a whole one before any pattern, the longer pattern before the shorter.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ByHost<T> {
    whole: HashMap<Str, T>,
    /// Ends of names, the longest first; the empty one takes every name.
    ends: Vec<(Str, T)>,
}

impl<T> ByHost<T> {
    fn of(entries: impl Iterator<Item = (String, T)>) -> Self {
        let mut all = Self {
            whole: HashMap::new(),
            ends: Vec::new(),
        };
        for (host, value) in entries {
            let host = host.to_ascii_lowercase();
            match host.strip_prefix('*') {
                Some(end) => all.ends.push((end.into(), value)),
                None => {
                    all.whole.insert(host.as_str().into(), value);
                }
            }
        }
        all.ends
            .sort_by_key(|(end, _)| std::cmp::Reverse(end.len()));
        all
    }

    /// With how exactly it is meant.
    fn get(&self, host: &str) -> Option<(usize, &T)> {
        if let Some(found) = self.whole.get(host) {
            return Some((usize::MAX, found));
        }
        let takes = |end: &str| host.len() > end.len() && host.ends_with(end);
        let mut ends = self.ends.iter();
        let found = ends.find(|(end, _)| end.is_empty() || takes(end));
        found.map(|(end, value)| (end.len(), value))
    }
}

impl Listener {
    pub(crate) fn compile(from: &proto::Listener, object: &str) -> Result<Self, ResourceError> {
        let wrong = |field: &str, problem: String| ResourceError {
            kind: "Waypoint",
            object: object.to_owned(),
            field: format!("listeners[{}].{field}", from.name),
            problem,
        };
        let port = |field: &str, number: u32| {
            let port = u16::try_from(number).ok().filter(|port| *port != 0);
            port.ok_or_else(|| wrong(field, format!("{number} is no port")))
        };
        let protocol = match proto::listener::Protocol::try_from(from.protocol) {
            Ok(proto::listener::Protocol::Http) => ListenerProtocol::Http,
            Ok(proto::listener::Protocol::Https) => ListenerProtocol::Https,
            Ok(proto::listener::Protocol::Tls) => ListenerProtocol::Tls,
            Ok(proto::listener::Protocol::Tcp) => ListenerProtocol::Tcp,
            Err(_) => return Err(wrong("protocol", format!("{} is none", from.protocol))),
        };
        let tls = match (&from.tls, protocol) {
            (Some(tls), _) => Some(ListenerTls::compile(tls).map_err(|(f, p)| wrong(f, p))?),
            // Never in the clear what was to be in TLS.
            (None, ListenerProtocol::Https) => return Err(wrong("tls", "is missing".to_owned())),
            (None, _) => None,
        };
        let mut hosts = Vec::with_capacity(from.virtual_hosts.len());
        for one in &from.virtual_hosts {
            let rules = one.rules.as_ref();
            let rules = rules.ok_or_else(|| wrong("virtual_hosts", "rules are missing".into()))?;
            hosts.push((
                one.host.clone(),
                VirtualHost {
                    rules: NamespacedHostname {
                        namespace: rules.namespace.as_str().into(),
                        hostname: rules.hostname.as_str().into(),
                    },
                    https_redirect: one.https_redirect,
                },
            ));
        }
        Ok(Self {
            name: from.name.as_str().into(),
            port: port("port", from.port)?,
            service_port: port("service_port", from.service_port)?,
            protocol,
            tls,
            raw: from.raw,
            server_names: ByHost::of(from.server_names.iter().map(|name| (name.clone(), ()))),
            hosts: ByHost::of(hosts.into_iter()),
        })
    }

    /// How exactly it is for callers that ask for this server name; the greater is the more exact.
    /// Who asks for none gets what is for every name.
    #[must_use]
    pub fn takes(&self, server_name: Option<&str>) -> Option<usize> {
        let name = server_name.unwrap_or_default().to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        self.server_names.get(name).map(|(exact, ())| exact)
    }

    /// TLS is spoken on its port, whoever ends it.
    #[must_use]
    pub const fn in_tls(&self) -> bool {
        matches!(
            self.protocol,
            ListenerProtocol::Https | ListenerProtocol::Tls
        )
    }

    /// Its callers are those of the mesh, by their certificates.
    #[must_use]
    pub fn of_mesh(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.mesh)
    }

    /// What is done with requests for this authority, a port in it left aside.
    #[must_use]
    pub fn host(&self, authority: &str) -> Option<&VirtualHost> {
        let (host, _) = split_port(authority);
        self.hosts.get(host).map(|(_, host)| host)
    }

    /// The rules for connections that are passed on unread.
    #[must_use]
    pub fn opaque(&self) -> Option<&NamespacedHostname> {
        self.hosts.get("").map(|(_, host)| &host.rules)
    }
}

impl ListenerTls {
    fn compile(from: &proto::ListenerTls) -> Result<Self, (&'static str, String)> {
        let client = ClientCertificate::try_from(from.client);
        let client = client.map_err(|_| ("tls.client", format!("{} is unknown", from.client)))?;
        let authority: Str = from.client_authority.as_str().into();
        let clients = match client {
            ClientCertificate::None => None,
            _ if from.mesh => None,
            _ if authority.is_empty() => {
                return Err(("tls.client_authority", "is missing".to_owned()));
            }
            ClientCertificate::Required => Some((authority, true)),
            ClientCertificate::Optional => Some((authority, false)),
        };
        Ok(Self {
            credentials: from.credentials.iter().map(|n| n.as_str().into()).collect(),
            clients,
            client_names: from
                .client_names
                .iter()
                .map(|n| n.as_str().into())
                .collect(),
            tls13: !from.only_tls12,
            tls12: !from.only_tls13,
            mesh: from.mesh,
        })
    }

    /// Whether every caller that `before` let in would be let in as well, by the certificates that
    /// callers have to show.
    #[must_use]
    pub fn admits_all_of(&self, before: &Self) -> bool {
        let named = &self.client_names;
        let has_name = named.is_empty() || *named == before.client_names;
        match (&self.clients, &before.clients) {
            _ if self.mesh => before.mesh && has_name,
            (None, _) => true,
            (Some(_), None) => false,
            (Some((now, required)), Some((then, was_required))) => {
                now == then && (!required || *was_required) && has_name
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(hosts: &[&str], names: &[&str]) -> proto::Listener {
        let host = |host: &&str| proto::VirtualHost {
            host: (*host).to_owned(),
            rules: Some(proto::ServiceRef {
                namespace: "edge".into(),
                hostname: format!("80/{host}"),
            }),
            https_redirect: false,
        };
        proto::Listener {
            name: "a".into(),
            port: 8080,
            service_port: 80,
            server_names: names.iter().map(|name| (*name).to_owned()).collect(),
            virtual_hosts: hosts.iter().map(host).collect(),
            ..proto::Listener::default()
        }
    }

    #[test]
    fn the_most_exact_host_counts_and_its_port_does_not() {
        let hosts = ["*", "*.shop.example", "*.example", "a.shop.example"];
        let listener = Listener::compile(&listener(&hosts, &["*.example"]), "edge/gw").unwrap();
        for (authority, host) in [
            ("a.shop.example", "a.shop.example"),
            ("a.shop.example:8080", "a.shop.example"),
            ("b.shop.example", "*.shop.example"),
            ("shop.example", "*.example"),
            ("example", "*"),
            (".example", "*"),
            ("10.0.0.1:80", "*"),
            ("[::1]:80", "*"),
        ] {
            let found = listener.host(authority).unwrap();
            assert_eq!(*found.rules.hostname, format!("80/{host}"), "{authority}");
        }
        assert!(listener.takes(Some("A.example.")).is_some());
        assert_eq!(listener.takes(Some("a.test")), None);
        assert_eq!(listener.takes(None), None, "it is not for every name");
    }

    #[test]
    fn what_was_to_be_in_tls_is_never_in_the_clear() {
        let mut from = listener(&["*"], &["*"]);
        from.protocol = proto::listener::Protocol::Https.into();
        assert!(Listener::compile(&from, "edge/gw").is_err());
        from.tls = Some(proto::ListenerTls {
            client: ClientCertificate::Required.into(),
            ..proto::ListenerTls::default()
        });
        let error = Listener::compile(&from, "edge/gw").unwrap_err();
        assert!(error.field.ends_with("client_authority"), "{error}");
        from.protocol = 99;
        assert!(Listener::compile(&from, "edge/gw").is_err());
    }

    #[test]
    fn who_was_let_in_without_what_is_asked_for_now_would_not_be() {
        let tls = |clients: Option<(&str, bool)>, names: &[&str]| ListenerTls {
            credentials: Vec::new(),
            clients: clients.map(|(name, required)| (name.into(), required)),
            client_names: names.iter().map(|name| (*name).into()).collect(),
            tls13: true,
            tls12: true,
            mesh: false,
        };
        let of_mesh = |names: &[&str]| ListenerTls {
            mesh: true,
            ..tls(None, names)
        };
        let (none, may, must) = (None, Some(("a", false)), Some(("a", true)));
        for (now, before, admits) in [
            (tls(none, &[]), tls(must, &[]), true),
            (tls(may, &[]), tls(must, &[]), true),
            (tls(may, &[]), tls(none, &[]), false),
            (tls(must, &[]), tls(may, &[]), false),
            (tls(must, &[]), tls(must, &["x"]), true),
            (tls(must, &["x"]), tls(must, &[]), false),
            (tls(must, &["x"]), tls(must, &["x"]), true),
            (tls(Some(("b", true)), &[]), tls(must, &[]), false),
            (of_mesh(&[]), of_mesh(&["x"]), true),
            (of_mesh(&["x"]), of_mesh(&["x"]), true),
            (of_mesh(&["x"]), of_mesh(&[]), false),
            (of_mesh(&[]), tls(must, &[]), false),
            (of_mesh(&[]), tls(none, &[]), false),
            (tls(none, &[]), of_mesh(&[]), true),
            (tls(must, &[]), of_mesh(&[]), false),
        ] {
            assert_eq!(now.admits_all_of(&before), admits, "{now:?} {before:?}");
        }
    }

    #[test]
    fn what_is_spoken_says_who_calls_and_where_it_goes() {
        use proto::listener::Protocol;
        let made = |protocol: Protocol, tls: Option<proto::ListenerTls>| {
            let mut from = listener(&["*"], &["*"]);
            from.protocol = protocol.into();
            from.tls = tls;
            Listener::compile(&from, "edge/gw").unwrap()
        };
        let of_mesh = || proto::ListenerTls {
            mesh: true,
            ..Default::default()
        };
        let plain = || Some(proto::ListenerTls::default());
        for (one, in_tls, mesh) in [
            (made(Protocol::Http, None), false, false),
            (made(Protocol::Tcp, None), false, false),
            (made(Protocol::Tls, None), true, false),
            (made(Protocol::Https, plain()), true, false),
            (made(Protocol::Https, Some(of_mesh())), true, true),
            (made(Protocol::Tls, Some(of_mesh())), true, true),
        ] {
            assert_eq!((one.in_tls(), one.of_mesh()), (in_tls, mesh), "{one:?}");
            assert_eq!(one.opaque().map(|rules| &*rules.hostname), Some("80/*"));
        }
    }

    #[test]
    fn versions_and_callers_are_those_that_are_asked_for() {
        let made = |change: &dyn Fn(&mut proto::ListenerTls)| {
            let mut from = proto::ListenerTls::default();
            change(&mut from);
            ListenerTls::compile(&from).unwrap()
        };
        let versions = |tls: ListenerTls| (tls.tls13, tls.tls12);
        assert_eq!(versions(made(&|_| ())), (true, true));
        assert_eq!(versions(made(&|tls| tls.only_tls13 = true)), (true, false));
        assert_eq!(versions(made(&|tls| tls.only_tls12 = true)), (false, true));
        let asked = |client: ClientCertificate, mesh| {
            made(&|tls: &mut proto::ListenerTls| {
                tls.client = client.into();
                tls.client_authority = "edge/ca".into();
                tls.mesh = mesh;
            })
            .clients
        };
        let by = |required| Some(("edge/ca".into(), required));
        assert_eq!(asked(ClientCertificate::None, false), None);
        assert_eq!(asked(ClientCertificate::Required, false), by(true));
        assert_eq!(asked(ClientCertificate::Optional, false), by(false));
        // Whose callers are of the mesh asks nobody else.
        assert_eq!(asked(ClientCertificate::Required, true), None);
        let mesh_alone = proto::ListenerTls {
            client: ClientCertificate::Required.into(),
            mesh: true,
            ..Default::default()
        };
        assert!(ListenerTls::compile(&mesh_alone).is_ok());
    }
}

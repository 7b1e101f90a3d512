//! The cluster's name server: services, headless pods, nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use isobar_runtime::Scope;
use isobar_types::CLUSTER_DOMAIN;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::cluster::Cluster;

/// Life of an answer in caches, in seconds: short, because pods come and go.
const TTL: u32 = 5;
/// Longest answer over UDP.
const UDP_MAX: usize = 1232;
/// How long a TCP client may be silent.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// What one name means.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Meaning {
    Addresses(BTreeSet<Ipv4Addr>),
    Alias(String),
}

/// All names of a cluster. Names are lower case, without a last dot.
#[derive(Debug, Clone, Default)]
pub(crate) struct Zone {
    names: BTreeMap<String, Meaning>,
    /// Parents of names, which exist without records of their own.
    between: BTreeSet<String>,
}

impl Zone {
    /// The names of `cluster`, as Kubernetes gives them.
    pub(crate) fn of(cluster: &Cluster) -> Self {
        let mut zone = Self::default();
        zone.between.insert(format!("svc.{CLUSTER_DOMAIN}"));
        zone.between.insert(format!("pod.{CLUSTER_DOMAIN}"));
        for namespace in cluster.namespaces.keys() {
            zone.between
                .insert(format!("{namespace}.svc.{CLUSTER_DOMAIN}"));
        }
        for view in &cluster.services {
            let name = format!("{}.{}.svc.{CLUSTER_DOMAIN}", view.name, view.namespace);
            let spec = view.service.spec.as_ref();
            if let Some(alias) = spec.and_then(|spec| spec.external_name.as_ref()) {
                zone.put(
                    &name,
                    Meaning::Alias(alias.trim_end_matches('.').to_owned()),
                );
            } else if let Some(ip) = view.ip {
                zone.put(&name, Meaning::Addresses(BTreeSet::from([ip])));
            } else {
                zone.headless(cluster, &name, view);
            }
        }
        for pod in &cluster.pods {
            let dashed = pod.ip.to_string().replace('.', "-");
            let name = format!("{dashed}.{}.pod.{CLUSTER_DOMAIN}", pod.namespace);
            zone.put(&name, Meaning::Addresses(BTreeSet::from([pod.ip])));
        }
        zone
    }

    fn headless(&mut self, cluster: &Cluster, name: &str, view: &crate::cluster::ServiceView) {
        let endpoints: Vec<_> = cluster.endpoints(&view.service).collect();
        let all = endpoints.iter().map(|pod| pod.ip).collect();
        self.put(name, Meaning::Addresses(all));
        for pod in endpoints {
            let spec = pod.pod.spec.as_ref();
            let own = spec
                .filter(|spec| spec.subdomain.as_deref() == Some(&view.name))
                .and_then(|spec| spec.hostname.clone())
                .unwrap_or_else(|| pod.ip.to_string().replace('.', "-"));
            self.put(
                &format!("{own}.{name}"),
                Meaning::Addresses(BTreeSet::from([pod.ip])),
            );
        }
    }

    fn put(&mut self, name: &str, meaning: Meaning) {
        let name = name.to_ascii_lowercase();
        let mut rest = name.as_str();
        while let Some((_, parent)) = rest.split_once('.') {
            self.between.insert(parent.to_owned());
            rest = parent;
        }
        self.names.insert(name, meaning);
    }

    /// The answer to a query: unknown names do not exist, and nobody else is asked.
    pub(crate) fn answer(&self, query: &Message) -> Message {
        let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
        reply.metadata.recursion_desired = query.metadata.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.metadata.authoritative = true;
        reply.add_queries(query.queries.iter().cloned());
        let [question] = query.queries.as_slice() else {
            reply.metadata.response_code = ResponseCode::FormErr;
            return reply;
        };
        if query.metadata.op_code != OpCode::Query || question.query_class() != DNSClass::IN {
            reply.metadata.response_code = ResponseCode::NotImp;
            return reply;
        }
        let (records, exists) = self.records(question.name(), question.query_type());
        if !exists {
            reply.metadata.response_code = ResponseCode::NXDomain;
        }
        reply.add_answers(records);
        reply
    }

    fn records(&self, asked: &Name, kind: RecordType) -> (Vec<Record>, bool) {
        let mut records = Vec::new();
        let mut owner = asked.clone();
        // An alias may lead to another; a chain that bites its tail ends here.
        for _ in 0..8 {
            let text = owner.to_ascii().to_ascii_lowercase();
            let text = text.trim_end_matches('.');
            match self.names.get(text) {
                Some(Meaning::Addresses(list)) => {
                    if matches!(kind, RecordType::A | RecordType::ANY) {
                        records
                            .extend(list.iter().map(|ip| {
                                Record::from_rdata(owner.clone(), TTL, RData::A(A(*ip)))
                            }));
                    }
                    return (records, true);
                }
                Some(Meaning::Alias(to)) => {
                    let Ok(target) = Name::from_ascii(format!("{to}.")) else {
                        return (records, true);
                    };
                    let alias = RData::CNAME(CNAME(target.clone()));
                    records.push(Record::from_rdata(owner, TTL, alias));
                    if kind == RecordType::CNAME {
                        return (records, true);
                    }
                    owner = target;
                }
                None => {
                    let exists = !records.is_empty() || self.between.contains(text);
                    return (records, exists);
                }
            }
        }
        (records, true)
    }
}

/// The zone in force, shared between the server and who changes it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names(Arc<RwLock<Arc<Zone>>>);

impl Names {
    pub(crate) fn set(&self, zone: Zone) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(zone);
    }

    fn get(&self) -> Arc<Zone> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The answer to one message; `None` for what is no query.
    fn reply(&self, bytes: &[u8], limit: usize) -> Option<Vec<u8>> {
        let query = Message::from_vec(bytes).ok()?;
        if query.metadata.message_type != MessageType::Query {
            return None;
        }
        let mut reply = self.get().answer(&query);
        let text = reply.to_vec().ok()?;
        if text.len() <= limit {
            return Some(text);
        }
        reply.answers.clear();
        reply.metadata.truncation = true;
        reply.to_vec().ok()
    }
}

/// Serves `names` at `address`, over UDP and TCP, in the namespace of the calling thread.
pub(crate) async fn serve(
    names: &Names,
    address: SocketAddr,
    scope: &Arc<Scope>,
) -> std::io::Result<()> {
    let udp = UdpSocket::bind(address).await?;
    let tcp = TcpListener::bind(address).await?;
    let zone = names.clone();
    scope.spawn("dns over udp", async move { serve_udp(&udp, &zone).await });
    let (zone, children) = (names.clone(), Arc::downgrade(scope));
    scope.spawn("dns over tcp", async move {
        loop {
            let Ok((stream, _)) = tcp.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let zone = zone.clone();
            if let Some(scope) = children.upgrade() {
                scope.spawn("dns client", async move { serve_tcp(stream, &zone).await });
            }
        }
    });
    Ok(())
}

async fn serve_udp(socket: &UdpSocket, names: &Names) {
    let mut buffer = vec![0; 4096];
    loop {
        // An error is a client's closed port; the next message is unaffected.
        let Ok((len, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        if let Some(reply) = names.reply(&buffer[..len], UDP_MAX) {
            let _ = socket.send_to(&reply, from).await;
        }
    }
}

async fn serve_tcp(mut stream: TcpStream, names: &Names) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let question = tokio::time::timeout(TCP_IDLE, async {
            let len = usize::from(stream.read_u16().await?);
            stream.read_exact(&mut buffer[..len]).await
        });
        let Ok(Ok(len)) = question.await else { return };
        let Some(reply) = names.reply(&buffer[..len], buffer.len()) else {
            return;
        };
        let Ok(len) = u16::try_from(reply.len()) else {
            return;
        };
        let sent = async {
            stream.write_u16(len).await?;
            stream.write_all(&reply).await
        };
        if sent.await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{PodView, ServiceView};
    use hickory_proto::op::Query;
    use isobar_objects::{ObjectHead, Pod, Service};
    use serde_json::json;

    fn names() -> Names {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "db-0", "namespace": "shop", "labels": {"app": "db"}},
            "spec": {"hostname": "db-0", "subdomain": "db", "containers": []}}))
        .unwrap();
        let service = |name: &str, ip: Option<Ipv4Addr>, spec: serde_json::Value| {
            let value = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec});
            let service: Service = serde_json::from_value(value).unwrap();
            ServiceView {
                namespace: "shop".into(),
                name: name.into(),
                ip,
                service: Arc::new(service),
            }
        };
        let cluster = Cluster {
            pods: vec![PodView {
                namespace: "shop".into(),
                labels: pod.labels().clone(),
                ip: Ipv4Addr::new(10, 244, 1, 2),
                node: "node-1".into(),
                device: "pod1".into(),
                ready: true,
                pod: Arc::new(pod),
            }],
            services: vec![
                service("web", Some(Ipv4Addr::new(10, 96, 1, 1)), json!({})),
                service("db", None, json!({"selector": {"app": "db"}})),
                service(
                    "alias",
                    None,
                    json!({"type": "ExternalName",
                    "externalName": "web.shop.svc.cluster.local"}),
                ),
            ],
            namespaces: BTreeMap::from([("shop".into(), BTreeMap::new())]),
        };
        let names = Names::default();
        names.set(Zone::of(&cluster));
        names
    }

    fn ask(names: &Names, name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let reply = names.reply(&query.to_vec().unwrap(), UDP_MAX).unwrap();
        let reply = Message::from_vec(&reply).unwrap();
        assert_eq!(reply.metadata.id, query.metadata.id);
        let answers = reply.answers.iter().map(|r| r.data.to_string()).collect();
        (reply.metadata.response_code, answers)
    }

    #[test]
    fn services_pods_and_aliases_have_names() {
        let names = names();
        let a = |name: &str| ask(&names, name, RecordType::A);
        let found = |list: &[&str]| {
            let list = list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
            (ResponseCode::NoError, list)
        };
        assert_eq!(a("web.shop.svc.cluster.local."), found(&["10.96.1.1"]));
        assert_eq!(a("WEB.shop.svc.Cluster.local."), found(&["10.96.1.1"]));
        assert_eq!(a("db.shop.svc.cluster.local."), found(&["10.244.1.2"]));
        assert_eq!(a("db-0.db.shop.svc.cluster.local."), found(&["10.244.1.2"]));
        assert_eq!(
            a("10-244-1-2.shop.pod.cluster.local."),
            found(&["10.244.1.2"])
        );
        assert_eq!(
            a("alias.shop.svc.cluster.local."),
            found(&["web.shop.svc.cluster.local.", "10.96.1.1"])
        );
    }

    #[test]
    fn nothing_else_exists() {
        let names = names();
        let ask = |name: &str, kind| ask(&names, name, kind);
        for name in ["none.shop.svc.cluster.local.", "example.com.", "web."] {
            let (code, answers) = ask(name, RecordType::A);
            assert_eq!(code, ResponseCode::NXDomain, "{name}");
            assert!(answers.is_empty());
        }
        for (name, kind) in [
            ("web.shop.svc.cluster.local.", RecordType::AAAA),
            ("shop.svc.cluster.local.", RecordType::A),
        ] {
            assert_eq!(ask(name, kind), (ResponseCode::NoError, vec![]), "{name}");
        }
    }

    #[test]
    fn what_is_no_query_gets_no_answer() {
        let names = names();
        assert!(names.reply(b"", UDP_MAX).is_none());
        assert!(names.reply(&[0xff; 40], UDP_MAX).is_none());
    }
}

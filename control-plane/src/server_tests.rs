//! The whole server on loopback, over TLS, with real tokens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use isobar_objects::Published;
use isobar_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use isobar_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use isobar_proto::istio::v1::auth::IstioCertificateRequest;
use isobar_proto::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use isobar_runtime::Scope;
use isobar_telemetry::Registry;
use isobar_tls::ca::Authority;
use isobar_tls::token::{BoundObject, Claims, Issuer, KubernetesClaims};
use isobar_tls::{control, csr};
use isobar_types::{Identity, NamespacedName};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use crate::auth::{Authenticator, JwksReviewer};
use crate::ca::{CertificateService, Roster, Rules};
use crate::engine::{Changeover, Engine};
use crate::metrics::Metrics;
use crate::model::KeptKeys;
use crate::model::golden_tests::{objects, settings};
use crate::process::serve;
use crate::xds::catalog::Catalog;
use crate::xds::clients::Clients;
use crate::xds::kind::Kind;
use crate::xds::service::DiscoveryService;

const OBJECTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: wp}}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.96.0.7, selector: {app: cart}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cart-1, namespace: shop, uid: u-cart-1, labels: {app: cart}}
spec: {serviceAccountName: cart, nodeName: node-1, containers: [{name: c, image: i}]}
status: {phase: Running, podIP: 10.244.1.2, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: pay-1, namespace: shop, uid: u-pay-1}
spec: {serviceAccountName: pay, nodeName: node-2, containers: [{name: c, image: i}]}
status: {phase: Running, podIP: 10.244.2.2, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata:
  name: wp-1
  namespace: shop
  uid: u-wp-1
  labels: {gateway.networking.k8s.io/gateway-name: wp, networking.istio.io/tunnel: http}
spec: {serviceAccountName: wp, nodeName: node-1, containers: [{name: c, image: i}]}
status: {phase: Running, podIP: 10.244.1.9, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec:
  gatewayClassName: isobar-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cart, namespace: shop}
spec: {hosts: [cart], http: [{route: [{destination: {host: cart}}]}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

struct Server {
    scope: Scope,
    issuer: Issuer,
    port: u16,
    roots: String,
    objects: watch::Sender<Arc<Published>>,
    clients: Clients,
    _keys: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let issuer = Issuer::generate("https://test").unwrap();
        let keys = dir.path().join("keys.json");
        std::fs::write(&keys, issuer.jwks()).unwrap();
        let reviewer = JwksReviewer::new(keys, Some("https://test".into()), "cluster.local".into());
        let node_accounts: Arc<[NamespacedName]> =
            vec![NamespacedName::parse("istio-system/ztunnel").unwrap()].into();
        let authenticator = Authenticator::new(Arc::new(reviewer), node_accounts.clone());
        let authority = Arc::new(Authority::generate("test").unwrap());
        let roots = authority.roots().to_owned();
        let authorities = watch::channel(authority).1;
        let metrics = Metrics::new(&Registry::new());
        let scope = Scope::new("test");
        let (catalogs, catalog) = watch::channel(Arc::new(Catalog::default()));
        let (rosters, roster) = watch::channel(Arc::new(Roster::default()));
        let engine = Engine {
            settings: settings(),
            catalogs,
            rosters,
            plans: watch::Sender::new(None),
            metrics: metrics.clone(),
            kept_keys: KeptKeys::default(),
            clients: Clients::default(),
            changeover: Changeover::default(),
        };
        let (objects, source) = watch::channel(Arc::new(Published::default()));
        scope.spawn("engine", engine.run(source, scope.lifetime()));
        let clients = Clients::default();
        let certificates = CertificateService {
            authorities: authorities.clone(),
            authenticator: authenticator.clone(),
            rules: Rules {
                trust_domain: "cluster.local".into(),
                node_accounts,
            },
            rosters: roster,
            metrics: metrics.clone(),
            pace: crate::ca::Pace::default(),
        };
        let discovery = DiscoveryService {
            authenticator,
            catalogs: catalog,
            clients: clients.clone(),
            life: scope.lifetime(),
            metrics,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let names = vec!["127.0.0.1".to_owned()];
        serve(
            &scope,
            listener,
            names,
            authorities,
            certificates,
            discovery,
        )
        .unwrap();
        Self {
            scope,
            issuer,
            port,
            roots,
            objects,
            clients,
            _keys: dir,
        }
    }

    fn publish(&self, yaml: &str) {
        self.objects.send_replace(Arc::new(Published {
            objects: Arc::new(objects(yaml)),
            findings: Arc::default(),
            synced: true,
            ..Published::default()
        }));
    }

    async fn channel(&self) -> Channel {
        let tls = control::client_config(&self.roots, None).unwrap();
        let port = self.port;
        let connector = tower::service_fn(move |_: http::Uri| {
            let tls = tls.clone();
            async move {
                let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
                let stream = tls.connect(tcp, "127.0.0.1").await;
                stream
                    .map(hyper_util::rt::TokioIo::new)
                    .map_err(std::io::Error::other)
            }
        });
        Endpoint::from_static("https://127.0.0.1")
            .connect_with_connector(connector)
            .await
            .unwrap()
    }

    fn token(&self, namespace: &str, account: &str, pod: &str, node: &str) -> String {
        self.issuer
            .issue(&claims(namespace, account, pod, node))
            .unwrap()
    }

    async fn certificate(
        &self,
        token: Option<&str>,
        wanted: Option<&str>,
    ) -> Result<usize, Status> {
        let identity: Identity = wanted
            .unwrap_or("spiffe://cluster.local/ns/x/sa/y")
            .parse()
            .unwrap();
        let (csr, _) = csr::generate(&identity).unwrap();
        let metadata = wanted.map(|wanted| prost_types::Struct {
            fields: BTreeMap::from([(
                "ImpersonatedIdentity".to_owned(),
                prost_types::Value {
                    kind: Some(prost_types::value::Kind::StringValue(wanted.to_owned())),
                },
            )]),
        });
        let request = authorised(
            IstioCertificateRequest {
                csr,
                validity_duration: 3600,
                metadata,
            },
            token,
        );
        let reply = IstioCertificateServiceClient::new(self.channel().await)
            .create_certificate(request)
            .await?;
        Ok(reply.into_inner().cert_chain.len())
    }
}

fn claims(namespace: &str, account: &str, pod: &str, node: &str) -> Claims {
    let exp = SystemTime::now() + Duration::from_secs(600);
    let exp = exp
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let object = |name: &str| BoundObject {
        name: name.into(),
        uid: format!("u-{name}"),
    };
    Claims {
        iss: String::new(),
        sub: format!("system:serviceaccount:{namespace}:{account}"),
        aud: vec!["istio-ca".into()],
        exp: i64::try_from(exp).unwrap(),
        iat: None,
        nbf: None,
        kubernetes: Some(KubernetesClaims {
            namespace: namespace.into(),
            serviceaccount: object(account),
            pod: Some(object(pod)),
            node: Some(object(node)),
        }),
    }
}

fn authorised<T>(message: T, token: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    request
}

/// A scripted discovery client.
struct Client {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Client {
    async fn open(server: &Server, token: Option<&str>) -> Result<Self, Status> {
        let (requests, outgoing) = mpsc::channel(16);
        let request = authorised(ReceiverStream::new(outgoing), token);
        let responses = AggregatedDiscoveryServiceClient::new(server.channel().await)
            .delta_aggregated_resources(request)
            .await?
            .into_inner();
        Ok(Self {
            requests,
            responses,
        })
    }

    async fn subscribe(&self, kind: Kind) {
        let request = DeltaDiscoveryRequest {
            type_url: kind.url().into(),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// The next response, acknowledged: its kind, the names in it, the names removed.
    async fn next(&mut self) -> (Kind, Vec<String>, Vec<String>) {
        let response = self.responses.message().await.unwrap().unwrap();
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        };
        self.requests.send(ack).await.unwrap();
        let names = response.resources.into_iter().map(|r| r.name).collect();
        let kind = Kind::from_url(&response.type_url).unwrap();
        (kind, names, response.removed_resources)
    }
}

#[tokio::test]
async fn certificates_go_to_whom_they_belong() {
    let server = Server::start().await;
    server.publish(OBJECTS);
    let zt = server.token("istio-system", "ztunnel", "zt-1", "node-1");
    let cart = "spiffe://cluster.local/ns/shop/sa/cart";
    let pay = "spiffe://cluster.local/ns/shop/sa/pay";
    // Leaf and root.
    assert_eq!(server.certificate(Some(&zt), Some(cart)).await.unwrap(), 2);
    let own = server.token("shop", "pay", "pay-1", "node-2");
    assert_eq!(server.certificate(Some(&own), None).await.unwrap(), 2);
    let mut audience = claims("istio-system", "ztunnel", "zt-1", "node-1");
    audience.aud = vec!["elsewhere".into()];
    let audience = server.issuer.issue(&audience).unwrap();
    let mut expired = claims("istio-system", "ztunnel", "zt-1", "node-1");
    expired.exp = 1000;
    let expired = server.issuer.issue(&expired).unwrap();
    for (token, wanted, code, say) in [
        (
            Some(zt.as_str()),
            pay,
            Code::PermissionDenied,
            "no pod of account shop/pay",
        ),
        (
            Some(&zt),
            "spiffe://foreign/ns/shop/sa/cart",
            Code::PermissionDenied,
            "trust domain",
        ),
        (
            Some(&own),
            cart,
            Code::PermissionDenied,
            "only ask for its own",
        ),
        (Some(&audience), cart, Code::Unauthenticated, "not for"),
        (Some(&expired), cart, Code::Unauthenticated, "expired"),
        (None, cart, Code::Unauthenticated, "no token"),
    ] {
        let refused = server.certificate(token, Some(wanted)).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused:?}");
        assert!(
            refused.message().contains(say),
            "{refused:?} should say {say:?}"
        );
    }
    server.scope.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn node_proxies_get_policies_first_then_addresses_then_changes() {
    let server = Server::start().await;
    let token = server.token("istio-system", "ztunnel", "zt-1", "node-1");
    let mut client = Client::open(&server, Some(&token)).await.unwrap();
    client.subscribe(Kind::Address).await;
    client.subscribe(Kind::Authorization).await;
    server.publish(OBJECTS);
    let (kind, names, _) = client.next().await;
    assert_eq!(kind, Kind::Authorization);
    assert_eq!(names, ["istio-system/istio_converted_static_strict"]);
    let (kind, names, _) = client.next().await;
    assert_eq!(kind, Kind::Address);
    assert_eq!(
        names,
        [
            "Kubernetes//Pod/shop/wp-1",
            "shop/cart.shop.svc.cluster.local",
            "Kubernetes//Pod/shop/cart-1",
            "Kubernetes//Pod/shop/pay-1",
        ]
    );
    // Waypoint kinds are not for node proxies.
    client.subscribe(Kind::VirtualService).await;
    // A pod goes.
    let (before, after) = OBJECTS
        .split_once("---\napiVersion: v1\nkind: Pod\nmetadata: {name: pay-1")
        .unwrap();
    let (_, after) = after.split_once("---").unwrap();
    server.publish(&format!("{before}---{after}"));
    let (kind, names, removed) = client.next().await;
    assert_eq!((kind, names.len()), (Kind::Address, 0));
    assert_eq!(removed, ["Kubernetes//Pod/shop/pay-1"]);
    let state = server.clients.all();
    assert_eq!(
        (state[0].kind, state[0].node.as_str()),
        ("ztunnel", "node-1")
    );
    server.scope.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn waypoints_get_their_own_by_who_they_are() {
    let server = Server::start().await;
    server.publish(OBJECTS);
    let token = server.token("shop", "wp", "wp-1", "node-1");
    let mut client = Client::open(&server, Some(&token)).await.unwrap();
    for kind in Kind::WAYPOINT {
        client.subscribe(*kind).await;
    }
    let mut seen = Vec::new();
    for _ in Kind::WAYPOINT {
        let (kind, names, _) = client.next().await;
        seen.push((kind, names.len()));
    }
    assert_eq!(
        seen,
        [
            (Kind::Credential, 0),
            (Kind::Waypoint, 1),
            (Kind::Authorization, 1),
            (Kind::WaypointAuthorization, 0),
            (Kind::RateLimitPolicy, 0),
            (Kind::Address, 4),
            (Kind::WorkloadLabels, 0),
            (Kind::DestinationRule, 0),
            (Kind::VirtualService, 1),
        ]
    );
    assert_eq!(server.clients.all()[0].gateway, "shop/wp");

    // Another account of the namespace asks for the same by name, and claims to be that waypoint.
    let token = server.token("shop", "cart", "wp-1", "node-1");
    let mut other = Client::open(&server, Some(&token)).await.unwrap();
    let request = DeltaDiscoveryRequest {
        type_url: Kind::VirtualService.url().into(),
        resource_names_subscribe: vec!["shop/cart".into()],
        ..Default::default()
    };
    other.requests.send(request).await.unwrap();
    other.subscribe(Kind::Authorization).await;
    other.subscribe(Kind::Address).await;
    let kinds = [other.next().await.0, other.next().await.0];
    assert_eq!(
        kinds,
        [Kind::Authorization, Kind::Address],
        "and no VirtualService"
    );
    server.scope.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn streams_without_a_good_token_are_refused() {
    let server = Server::start().await;
    server.publish(OBJECTS);
    let missing = Client::open(&server, None).await.err().unwrap();
    assert_eq!(missing.code(), Code::Unauthenticated);
    let mut wrong = claims("istio-system", "ztunnel", "zt-1", "node-1");
    wrong.aud = vec!["elsewhere".into()];
    let wrong = server.issuer.issue(&wrong).unwrap();
    let refused = Client::open(&server, Some(&wrong)).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    // A node id of another namespace than the token's ends the stream.
    let token = server.token("istio-system", "ztunnel", "zt-1", "node-1");
    let mut liar = Client::open(&server, Some(&token)).await.unwrap();
    let request = DeltaDiscoveryRequest {
        node: Some(isobar_proto::envoy::config::core::v3::Node {
            id: "ztunnel~1.1.1.1~zt-1.shop~shop.svc.cluster.local".into(),
            ..Default::default()
        }),
        type_url: Kind::Address.url().into(),
        ..Default::default()
    };
    liar.requests.send(request).await.unwrap();
    let ended = liar.responses.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::PermissionDenied);
    server.scope.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn the_mesh_s_own_client_gets_a_whole_snapshot_and_certificates() {
    use isobar_state::Snapshot;
    use isobar_xds::{
        AdsClient, AdsConfig, CaClient, CaConfig, Requester as _, Roots, Store, Token,
    };

    let server = Server::start().await;
    server.publish(OBJECTS);
    let token = Token::Literal(server.token("istio-system", "ztunnel", "zt-1", "node-1"));
    let address = format!("https://127.0.0.1:{}", server.port);
    let store = Store::new(Snapshot::default());
    let client = AdsClient::new(
        AdsConfig {
            address: address.clone(),
            roots: Roots::Pem(server.roots.clone()),
            alt_hostname: None,
            token: Some(token.clone()),
            cluster_id: "Kubernetes".into(),
            headers: Vec::new(),
            node_id: "ztunnel~1.1.1.1~zt-1.istio-system~istio-system.svc.cluster.local".into(),
            metadata: serde_json::Map::new(),
        },
        store.clone(),
        Vec::new(),
    );
    let status = client.status();
    server
        .scope
        .spawn("client", client.run(server.scope.lifetime()));
    status.synced().await;
    let snapshot = store.load();
    let cart = snapshot
        .workload_by_uid("Kubernetes//Pod/shop/cart-1")
        .unwrap();
    assert_eq!(&*cart.identity().service_account, "cart");
    let services = snapshot.services_by_hostname("cart.shop.svc.cluster.local");
    assert!(services[0].waypoint.is_some());

    // Published again: the change arrives, and only the change.
    server.publish(&OBJECTS.replace("istio.io/use-waypoint: wp", "a: b"));
    let mut versions = store.versions();
    loop {
        let services = store.load();
        let services = services
            .services_by_hostname("cart.shop.svc.cluster.local")
            .to_vec();
        if services[0].waypoint.is_none() {
            break;
        }
        versions.changed().await.unwrap();
    }
    let authority = CaClient::new(CaConfig {
        address,
        roots: Roots::Pem(server.roots.clone()),
        alt_hostname: None,
        token: Some(token),
        cluster_id: "Kubernetes".into(),
        headers: Vec::new(),
        ttl: Duration::from_secs(3600),
        impersonate: true,
    });
    let wanted = Identity::new("cluster.local", "shop", "cart");
    assert!(authority.request(&wanted).await.is_ok());
    let elsewhere = Identity::new("cluster.local", "shop", "pay");
    assert!(authority.request(&elsewhere).await.is_err());
    server.scope.shutdown(Duration::ZERO).await;
}

/// Anybody who may make a pod has a token for discovery.
#[tokio::test]
async fn an_account_of_nobody_s_takes_little_of_the_memory() {
    let server = Server::start().await;
    server.publish(OBJECTS);
    let token = server.token("shop", "cart", "cart-1", "node-1");
    let mut client = Client::open(&server, Some(&token)).await.unwrap();
    let held = |count: usize| DeltaDiscoveryRequest {
        type_url: Kind::Address.url().into(),
        initial_resource_versions: (0..count).map(|n| (n.to_string(), "1".into())).collect(),
        ..Default::default()
    };
    client.requests.send(held(4_000)).await.unwrap();
    let (_, names, removed) = client.next().await;
    assert_eq!((names.len(), removed.len()), (4, 4_000));
    for (count, say) in [(4_097, "4097 names"), (50_000, "message")] {
        let mut client = Client::open(&server, Some(&token)).await.unwrap();
        client.requests.send(held(count)).await.unwrap();
        let refused = client.responses.message().await.unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
        assert!(refused.message().contains(say), "{refused:?}");
    }
    // What came before counts, of kinds that are not for it too.
    let mut client = Client::open(&server, Some(&token)).await.unwrap();
    for n in 0..3 {
        let mut request = held(0);
        request.type_url = Kind::ALL[9 - n].url().into();
        request.resource_names_subscribe = vec!["x".repeat(200_000)];
        client.requests.send(request).await.unwrap();
    }
    let refused = client.responses.message().await.unwrap_err();
    let say = "3 names of 600000 bytes on one stream";
    assert!(refused.message().contains(say), "{refused:?}");
    // A node proxy has the whole mesh to tell of.
    let token = server.token("istio-system", "ztunnel", "zt-1", "node-1");
    let mut proxy = Client::open(&server, Some(&token)).await.unwrap();
    proxy.requests.send(held(50_000)).await.unwrap();
    assert_eq!(proxy.next().await.2.len(), 50_000);

    let token = server.token("shop", "pay", "pay-1", "node-2");
    let mut open = Vec::new();
    for _ in 0..8 {
        open.push(Client::open(&server, Some(&token)).await.unwrap());
    }
    let refused = Client::open(&server, Some(&token)).await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    // Those of another pod are not fewer for it.
    let other = server.token("shop", "pay", "pay-2", "node-2");
    Client::open(&server, Some(&other)).await.unwrap();
    server.scope.shutdown(Duration::ZERO).await;
}

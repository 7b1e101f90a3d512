use isobar_types::NetworkAddress;

use super::*;

const MESH: &str = r#"
workloads:
- uid: east//Pod/shop/cart-1
  name: cart-1
  namespace: shop
  serviceAccount: cart
  trustDomain: cluster.local
  network: ""
  node: node-a
  workloadIps: ["127.0.0.2"]
  protocol: HBONE
  waypoint: {destination: shop/way.shop.svc.cluster.local, hboneMtlsPort: 15008}
  services:
    shop/cart.shop.svc.cluster.local: {80: 8080}
services:
- name: cart
  namespace: shop
  hostname: cart.shop.svc.cluster.local
  vips: ["/127.44.0.9"]
  ports: {80: 8080}
  loadBalancer: {routingPreferences: [Network, Region], mode: Failover}
policies:
- name: strict
  namespace: shop
  scope: Namespace
  action: Deny
  rules: [[[{notPrincipals: [{Presence: []}], destinationPorts: [80], sourceIps: ["10.0.0.0/8"]}]]]
"#;

#[test]
fn a_local_mesh_is_what_a_control_plane_would_have_told() {
    let mesh = LocalMesh::parse(MESH).unwrap();
    let snapshot = mesh.apply(&Snapshot::default()).unwrap();
    let vip = NetworkAddress::new("".into(), "127.44.0.9".parse().unwrap());
    let service = snapshot.service_by_vip(&vip, None).unwrap();
    let endpoints: Vec<_> = snapshot.endpoints(&service.key).collect();
    assert_eq!(endpoints.len(), 1);
    assert_eq!(&*endpoints[0].workload.uid, "east//Pod/shop/cart-1");
    assert_eq!(
        endpoints[0].workload.tunnel,
        isobar_state::TunnelProtocol::Hbone
    );
    assert_eq!(
        service.load_balancing.as_ref().unwrap().mode,
        isobar_state::BalanceMode::Failover
    );
    let waypoint = endpoints[0].workload.waypoint.as_ref().unwrap();
    assert_eq!(
        waypoint.destination.to_string(),
        "shop/way.shop.svc.cluster.local"
    );
    let policy = snapshot.authorizations().next().unwrap();
    assert_eq!(policy.rules[0].clauses[0].matches[0].source_ips.len(), 1);
    // What is read can be written, and read again.
    let text = serde_json::to_string(&mesh).unwrap();
    assert_eq!(LocalMesh::parse(&text).unwrap(), mesh);
}

#[test]
fn what_cannot_be_understood_is_named() {
    for (from, to, expected) in [
        ("protocol: HBONE", "protocol: TLS", "TLS"),
        ("node: node-a", "nodes: node-a", "nodes"),
        ("127.0.0.2", "127.0.0.x", "workloadIps"),
        ("/127.44.0.9", "127.44.0.9", "vips"),
        ("10.0.0.0/8", "10.0.0.0", "sourceIps"),
        ("uid: east//Pod/shop/cart-1", "uid: ''", "uid"),
        ("shop/way.shop.svc.cluster.local", "way", "destination"),
    ] {
        let text = MESH.replacen(from, to, 1);
        assert_ne!(text, MESH, "{from}");
        let error = LocalMesh::parse(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{to}: {error}");
    }
    assert!(LocalMesh::parse("{}").unwrap().is_empty());
}

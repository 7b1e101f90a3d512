//! IPv6: the node agent's rules, the node proxy's tunnels, probes and policies, all together.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use isobar_lab::Target;
use isobar_tests::{Caller, Mesh, MeshOptions, Reply, eventually};

use crate::fixture::{ambient, client, other, outside, run, server};

/// What the node's probes come from.
const PROBES: &str = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff";

const STRICT: &str = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: strict
  namespace: shop
spec:
  mtls:
    mode: STRICT
";

const ENTRY: &str = "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: six
  namespace: shop
spec:
  hosts: [six.example]
  addresses: ['fd00:77::1']
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
  - number: 8000
    targetPort: 80
    name: http
    protocol: HTTP
  workloadSelector:
    labels:
      app: server
";

const DENY: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: addresses
  namespace: shop
spec:
  action: DENY
  rules:
  - from:
    - source:
        ipBlocks: ['CLIENT/128']
";

const POLICY: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: others
  namespace: shop
spec:
  podSelector:
    matchLabels:
      app: server
  policyTypes: [Ingress]
  ingress:
  - from:
    - podSelector:
        matchLabels:
          app: other
    ports:
    - port: 80
    - port: 15008
  - from:
    - ipBlock:
        cidr: 169.254.7.127/32
    ports:
    - port: 80
";

#[test]
fn pods_with_ipv6_are_in_the_mesh_with_both_families() {
    run(both_families("nft"));
}

#[test]
fn the_same_with_rules_of_iptables() {
    run(both_families("iptables"));
}

async fn both_families(backend: &str) -> Result<()> {
    let arguments = vec!["--backend".to_owned(), backend.to_owned()];
    let options = MeshOptions {
        dual_stack: true,
        program_args: BTreeMap::from([("isobar-cni".to_owned(), arguments)]),
        ..MeshOptions::default()
    };
    let files = [
        ("ns.yaml", ambient("shop")),
        ("client.yaml", client("shop")),
        ("other.yaml", other("shop")),
        ("server.yaml", server("shop", &[])),
        ("strict.yaml", STRICT.to_owned()),
        ("outside.yaml", outside()),
    ];
    let files: Vec<_> = files.iter().map(|(n, t)| (*n, t.as_str())).collect();
    let mesh = Mesh::start_with(options, &files).await?;
    for pod in ["shop/client", "shop/other", "shop/server"] {
        mesh.settled(pod, "enrolled").await?;
    }
    written_with(&mesh, backend).await?;
    let caller = mesh.caller("shop/client").await?;
    let other = mesh.caller("shop/other").await?;
    let (from, four) = (
        mesh.pod_ip("shop/client").await?,
        mesh.pod_ip("shop/server").await?,
    );
    let (from6, six) = (of_ipv6(from)?, of_ipv6(four)?);
    for (to, origin) in [(four, from), (six, from6)] {
        sees(&caller, (to, 80).into(), "/ip", &origin.to_string()).await?;
    }
    // The line is written when the connection has ended at both sides.
    eventually("a tunnel has brought the call over IPv6", async || {
        let log = mesh.log("ztunnel-node-2").await?;
        let inbound = log.lines().any(|line| {
            line.contains(&format!("[{six}]:80"))
                && line.contains("spiffe://cluster.local/ns/shop/sa/client")
        });
        ensure!(inbound, "{log}");
        Ok(())
    })
    .await?;

    // Who has no identity is kept out, but for the node's probes.
    let outsider = mesh.caller("outside/outsider").await?;
    let near = Caller::inside(mesh.lab().netns(Target::Node("node-2".into())).await?)?;
    let far = Caller::inside(mesh.lab().netns(Target::Node("node-1".into())).await?)?;
    for to in [four, six].map(|ip| SocketAddr::new(ip, 80)) {
        refused(&outsider, to).await?;
        refused(&far, to).await?;
    }
    sees(&near, (six, 80).into(), "/ip", PROBES).await?;

    mesh.apply("entry.yaml", ENTRY)?;
    let service: SocketAddr = "[fd00:77::1]:8000".parse()?;
    sees(&caller, service, "/status/200", "").await?;

    // Policies about addresses, the server's and the caller's.
    mesh.apply("deny.yaml", &DENY.replace("CLIENT", &from6.to_string()))?;
    kept_out(&caller, (six, 80).into()).await?;
    sees(&caller, (four, 80).into(), "/ip", "").await?;
    mesh.delete("deny.yaml")?;
    sees(&caller, (six, 80).into(), "/ip", "").await?;
    mesh.apply("policy.yaml", POLICY)?;
    kept_out(&caller, (six, 80).into()).await?;
    let three = [(six, 80).into(), (four, 80).into(), service];
    for to in three {
        sees(&other, to, "/ip", "").await?;
    }
    mesh.down()
}

/// The lab gives each byte of the other address a group of its own.
fn of_ipv6(ip: IpAddr) -> Result<IpAddr> {
    let IpAddr::V4(ip) = ip else {
        bail!("{ip} is no address of IPv4")
    };
    let [a, b, c, d] = ip.octets().map(u16::from);
    Ok(Ipv6Addr::new(0xfd00, 0, 0, 0, a, b, c, d).into())
}

async fn written_with(mesh: &Mesh, backend: &str) -> Result<()> {
    for (tool, words) in [
        ("nft", vec!["nft", "list", "table", "inet", "isobar"]),
        ("iptables", vec!["ip6tables-save", "-t", "nat"]),
    ] {
        let output = mesh.exec("shop/server", &words).await?;
        let text = output.stdout;
        ensure!(
            text.contains("15006") == (tool == backend),
            "{backend} was asked for, {tool} shows:\n{text}"
        );
    }
    Ok(())
}

async fn get(caller: &Caller, to: SocketAddr, path: &str) -> Result<Reply> {
    tokio::time::timeout(Duration::from_secs(2), caller.get(to, path)).await?
}

/// The call is answered, and `word` is in the answer.
async fn sees(caller: &Caller, to: SocketAddr, path: &str, word: &str) -> Result<()> {
    eventually(&format!("{to} answers"), async || {
        let reply = get(caller, to, path).await?;
        ensure!(
            reply.status == 200 && reply.body.contains(word),
            "{reply:?}"
        );
        Ok(())
    })
    .await
}

async fn refused(caller: &Caller, to: SocketAddr) -> Result<()> {
    let answer = get(caller, to, "/ip").await;
    ensure!(answer.is_err(), "{to} was reached: {answer:?}");
    Ok(())
}

async fn kept_out(caller: &Caller, to: SocketAddr) -> Result<()> {
    eventually(&format!("{to} is kept"), async || refused(caller, to).await).await
}

//! IPv6: pods of both families, tunnels and policies between their IPv6 addresses.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use anyhow::{Result, bail};

use super::call::{CALLS, calls, calls_read};
use super::matrix::{Direction, Matrix, Scenario};
use super::policy::authorization;
use super::scenery::{BASE, NODES, PORTS, ROUTES, Route, Scene};

const POD: Scenario = Scenario {
    id: "six_pod_address",
    what: "calls over IPv6 to the server's pod address; the server sees its caller's IPv6 address",
};
const SERVICE: Scenario = Scenario {
    id: "six_service_address",
    what: "calls to an IPv6 address that a ServiceEntry gives the server",
};
const BULK: Scenario = Scenario {
    id: "six_bulk",
    what: "replies of 8 MiB each over IPv6, whole",
};
const IDENTITY: Scenario = Scenario {
    id: "six_deny_principal",
    what: "DENY of the client's identity, over IPv6",
};
const ADDRESS: Scenario = Scenario {
    id: "six_deny_address",
    what: "DENY of the client's IPv6 address: over IPv4 the client is let in",
};
const STRICT: Scenario = Scenario {
    id: "six_strict",
    what: "PeerAuthentication STRICT: over IPv6 plain text is kept out, the mesh is let in",
};

const BULK_BYTES: usize = 8 << 20;
/// Port of the ServiceEntry's addresses; the servers' is another.
const ENTRY_PORT: u16 = 8000;
const FILE: &str = "base-policy.yaml";

pub(super) async fn all(scene: &Scene, matrix: &mut Matrix) -> Result<()> {
    scene.open(BASE).await?;
    let entries: Vec<_> = NODES.iter().map(|(word, _)| entry(word)).collect();
    scene
        .mesh
        .apply("six-entries.yaml", &entries.join("---\n"))?;
    for route in &ROUTES {
        let client = scene.client(route).await?;
        let from = own_address(scene, route).await?;
        let pod = by_pod(scene, route).await?;
        let expected = format!("{CALLS}× 200 from the caller's address");
        matrix
            .cell(POD, route.direction, &expected, async || {
                let seen = calls_read(&client, pod, "/ip", CALLS, |reply| {
                    let kept = reply.body.contains(&format!("\"{from}\""));
                    let whose = if kept { "the caller's" } else { "another" };
                    format!("{} from {whose} address", reply.status)
                });
                Ok(seen.await)
            })
            .await;
        let service = SocketAddr::new(entry_address(first_word(route)), ENTRY_PORT);
        matrix
            .cell(
                SERVICE,
                route.direction,
                &format!("{CALLS}× 200"),
                async || Ok(calls(&client, service, "/ip").await),
            )
            .await;
        let path = format!("/bytes/{BULK_BYTES}");
        let expected = format!("{CALLS}× {BULK_BYTES} bytes");
        matrix
            .cell(BULK, route.direction, &expected, async || {
                let seen = calls_read(&client, pod, &path, CALLS, |reply| {
                    format!("{} bytes", reply.body.len())
                });
                Ok(seen.await)
            })
            .await;
    }
    policies(scene, matrix).await?;
    scene.mesh.delete("six-entries.yaml")
}

async fn policies(scene: &Scene, matrix: &mut Matrix) -> Result<()> {
    for route in &ROUTES {
        let (client, stranger) = (scene.client(route).await?, scene.stranger(route).await?);
        let six = by_pod(scene, route).await?;
        let four = scene.by_pod(BASE, route, PORTS[0]).await?;
        let principal = format!("cluster.local/ns/callers/sa/{}", route.client());
        let spec = rule(&format!("principals: ['{principal}']"));
        let name = "six-identity";
        scene.mesh.apply(FILE, &authorization(BASE, name, &spec))?;
        let expected = format!("client {CALLS}× closed; stranger {CALLS}× 200");
        matrix
            .cell(IDENTITY, route.direction, &expected, async || {
                let client = calls(&client, six, "/ip").await;
                let stranger = calls(&stranger, six, "/ip").await;
                Ok(format!("client {client}; stranger {stranger}"))
            })
            .await;
        let from = own_address(scene, route).await?;
        let spec = rule(&format!("ipBlocks: ['{from}/128']"));
        let name = "six-address";
        scene.mesh.apply(FILE, &authorization(BASE, name, &spec))?;
        let expected = format!("IPv6 {CALLS}× closed; IPv4 {CALLS}× 200");
        matrix
            .cell(ADDRESS, route.direction, &expected, async || {
                let six = calls(&client, six, "/ip").await;
                let four = calls(&client, four, "/ip").await;
                Ok(format!("IPv6 {six}; IPv4 {four}"))
            })
            .await;
        scene.mesh.delete(FILE)?;
    }
    strict(scene, matrix).await
}

async fn strict(scene: &Scene, matrix: &mut Matrix) -> Result<()> {
    scene.open(BASE).await?;
    let text = format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: strict\n  namespace: {BASE}\nspec:\n  mtls:\n    mode: STRICT\n"
    );
    scene.mesh.apply(FILE, &text)?;
    let outsider = scene.outsider().await?;
    for (direction, route) in [
        (Direction::OutsideToOurs, ROUTES[0]),
        (Direction::OutsideToPeer, ROUTES[1]),
    ] {
        let to = by_pod(scene, &route).await?;
        matrix
            .cell(
                STRICT,
                direction,
                &format!("{CALLS}× closed"),
                async || Ok(calls(&outsider, to, "/ip").await),
            )
            .await;
    }
    for route in &ROUTES {
        let client = scene.client(route).await?;
        let to = by_pod(scene, route).await?;
        matrix
            .cell(
                STRICT,
                route.direction,
                &format!("{CALLS}× 200"),
                async || Ok(calls(&client, to, "/ip").await),
            )
            .await;
    }
    scene.mesh.delete(FILE)
}

fn rule(source: &str) -> String {
    format!("  action: DENY\n  rules:\n  - from:\n    - source:\n        {source}\n")
}

/// First word of the route's server.
fn first_word(route: &Route) -> &'static str {
    route.server.trim_end_matches("-server")
}

fn entry(word: &str) -> String {
    let address = entry_address(word);
    let port = PORTS[0];
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: {word}-six\n  namespace: {BASE}\nspec:\n  hosts: [{word}.six.example]\n  addresses: ['{address}']\n  location: MESH_INTERNAL\n  resolution: STATIC\n  ports:\n  - number: {ENTRY_PORT}\n    targetPort: {port}\n    name: tcp\n    protocol: TCP\n  workloadSelector:\n    labels:\n      app: {word}-server\n"
    )
}

/// The address that [`entry`] gives a server.
fn entry_address(word: &str) -> IpAddr {
    let number = NODES.iter().zip(1..).find(|((own, _), _)| *own == word);
    let number = number.map_or(0, |(_, number)| number);
    Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, number).into()
}

async fn by_pod(scene: &Scene, route: &Route) -> Result<SocketAddr> {
    let pod = scene.by_pod(BASE, route, PORTS[0]).await?;
    Ok(SocketAddr::new(of_ipv6(pod.ip())?, pod.port()))
}

async fn own_address(scene: &Scene, route: &Route) -> Result<IpAddr> {
    let pod = format!("callers/{}", route.client());
    of_ipv6(scene.mesh.pod_ip(&pod).await?)
}

/// The lab gives each byte of a pod's IPv4 address a group of its own.
fn of_ipv6(ip: IpAddr) -> Result<IpAddr> {
    let IpAddr::V4(ip) = ip else {
        bail!("{ip} is no address of IPv4")
    };
    let [a, b, c, d] = ip.octets().map(u16::from);
    Ok(Ipv6Addr::new(0xfd00, 0, 0, 0, a, b, c, d).into())
}

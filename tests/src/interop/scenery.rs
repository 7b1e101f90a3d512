//! Who calls whom: callers on every node, and servers of the same kinds in each namespace.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Result, ensure};
use isobar_lab::Target;

use super::matrix::Direction;
use super::peer::Peer;
use crate::yaml::{Pod, documents, namespace, service, service_account};
use crate::{Caller, Mesh, MeshOptions, eventually};

/// Label of a namespace in the mesh.
pub(super) const AMBIENT: (&str, &str) = ("istio.io/dataplane-mode", "ambient");
/// What answers requests on port 80.
pub(super) const HTTPBIN: &str = "docker.io/honester/httpbin:latest";
/// What answers requests on port 8080.
const HELLO: &str = "docker.io/honester/hello-server:v1";
/// Does nothing.
pub(super) const IDLE: &str = "docker.io/curlimages/curl:latest";
/// Servers without more than their mesh.
pub(super) const BASE: &str = "base";
/// Two ports of a server.
pub(super) const PORTS: [u16; 2] = [80, 8080];
/// Our node proxy is the first node's.
pub(super) const NODES: [(&str, &str); 3] =
    [("ours", "node-1"), ("peer", "node-2"), ("far", "node-3")];

/// A pair of nodes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Route {
    pub(super) direction: Direction,
    /// First word of the caller's name.
    caller: &'static str,
    /// Name of the server.
    pub(super) server: &'static str,
    /// Node of the caller.
    pub(super) near: &'static str,
    /// Node of the server.
    pub(super) far: &'static str,
}

/// Every pair of nodes of which one at least has the peer.
pub(super) const ROUTES: [Route; 4] = [
    Route {
        direction: Direction::PeerToOurs,
        caller: "peer",
        server: "ours-server",
        near: "node-2",
        far: "node-1",
    },
    Route {
        direction: Direction::OursToPeer,
        caller: "ours",
        server: "peer-server",
        near: "node-1",
        far: "node-2",
    },
    Route {
        direction: Direction::PeerSameNode,
        caller: "peer",
        server: "peer-server",
        near: "node-2",
        far: "node-2",
    },
    Route {
        direction: Direction::PeerAcross,
        caller: "peer",
        server: "far-server",
        near: "node-2",
        far: "node-3",
    },
];

impl Route {
    /// The caller that policies name, in namespace `callers`.
    pub(super) fn client(&self) -> String {
        format!("{}-client", self.caller)
    }

    /// Node proxy of the caller.
    pub(super) fn near_node(&self) -> Target {
        Target::node(self.near)
    }

    /// Node proxy of the server.
    pub(super) fn far_node(&self) -> Target {
        Target::node(self.far)
    }

    /// Whether its calls go through the node proxy of `node`.
    pub(super) fn passes(&self, node: &str) -> bool {
        self.near == node || self.far == node
    }
}

/// A mesh with callers and servers.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) mesh: Mesh,
}

impl Scene {
    pub(super) async fn start(peer: &Peer) -> Result<Self> {
        let program = |node: &str| (format!("ztunnel-{node}"), peer.path.clone());
        let options = MeshOptions {
            programs: [program("node-2"), program("node-3")].into(),
            nodes: Some(3),
            dual_stack: true,
            ..MeshOptions::default()
        };
        let callers = |ns: &str, kind: &str| {
            let labels = [AMBIENT, ("role", ns)];
            let mut all = vec![namespace(ns, &labels)];
            for (word, node) in &NODES[..2] {
                all.push(idle(ns, &format!("{word}-{kind}"), node));
            }
            documents(all)
        };
        let outside = [
            namespace("outside", &[]),
            idle("outside", "outsider", "node-1"),
        ];
        let mesh = Mesh::start_with(
            options,
            &[
                ("callers.yaml", &callers("callers", "client")),
                ("strangers.yaml", &callers("strangers", "stranger")),
                ("outside.yaml", &documents(outside)),
            ],
        )
        .await?;
        let scene = Self { mesh };
        scene.peers_are_the_peer(peer)?;
        for word in ["ours", "peer"] {
            for (ns, kind) in [("callers", "client"), ("strangers", "stranger")] {
                let pod = format!("{ns}/{word}-{kind}");
                scene.mesh.settled(&pod, "enrolled").await?;
            }
        }
        scene.servers(BASE, &[]).await?;
        Ok(scene)
    }

    /// A matrix about the peer is worth nothing if somebody else ran there.
    fn peers_are_the_peer(&self, peer: &Peer) -> Result<()> {
        let lab = self.mesh.lab().paths().dir().to_string_lossy().into_owned();
        for node in ["node-2", "node-3"] {
            let marks = [lab.clone(), format!("NODE_NAME={node}")];
            let runs = environments(|program| program == peer.path)?
                .iter()
                .any(|environ| marks.iter().all(|mark| environ.contains(mark)));
            ensure!(runs, "the node proxy of {node} is another program");
        }
        Ok(())
    }

    pub(super) fn down(self) -> Result<()> {
        self.mesh.down()
    }

    /// A namespace of the mesh, with `labels`, and in it a server on each node behind a Service each.
    pub(super) async fn servers(&self, ns: &str, labels: &[(&str, &str)]) -> Result<()> {
        self.label(ns, labels)?;
        let objects: Vec<_> = NODES
            .iter()
            .map(|(word, node)| server(ns, word, node))
            .collect();
        self.mesh
            .apply(&format!("{ns}-servers.yaml"), &documents(objects))?;
        for (word, _) in NODES {
            let pod = format!("{ns}/{word}-server");
            self.mesh.settled(&pod, "enrolled").await?;
        }
        Ok(())
    }

    /// Gives a namespace of the mesh these labels besides, and no others.
    pub(super) fn label(&self, ns: &str, labels: &[(&str, &str)]) -> Result<()> {
        let all = [&[AMBIENT], labels].concat();
        self.mesh
            .apply(&format!("{ns}-ns.yaml"), &namespace(ns, &all))
    }

    pub(super) async fn client(&self, route: &Route) -> Result<Caller> {
        self.mesh
            .caller(&format!("callers/{}", route.client()))
            .await
    }

    pub(super) async fn stranger(&self, route: &Route) -> Result<Caller> {
        let name = format!("strangers/{}-stranger", route.caller);
        self.mesh.caller(&name).await
    }

    pub(super) async fn outsider(&self) -> Result<Caller> {
        self.mesh.caller("outside/outsider").await
    }

    /// Addresses of the route's server in `ns`: of its Service, and of its pod.
    pub(super) async fn by_service(
        &self,
        ns: &str,
        route: &Route,
        port: u16,
    ) -> Result<SocketAddr> {
        let name = format!("{ns}/{}", route.server);
        Ok((self.mesh.service_ip(&name).await?, port).into())
    }

    pub(super) async fn by_pod(&self, ns: &str, route: &Route, port: u16) -> Result<SocketAddr> {
        let name = format!("{ns}/{}", route.server);
        Ok((self.mesh.pod_ip(&name).await?, port).into())
    }

    /// Waits until everybody has every server of a namespace.
    pub(super) async fn open(&self, ns: &str) -> Result<()> {
        for route in &ROUTES {
            for caller in [self.client(route).await?, self.stranger(route).await?] {
                let to = self.by_service(ns, route, PORTS[0]).await?;
                eventually(&format!("{} of {ns} answers", route.server), async || {
                    for _ in 0..3 {
                        let reply = caller.get(to, "/ip").await?;
                        ensure!(reply.status == 200, "{reply:?}");
                    }
                    Ok(())
                })
                .await?;
            }
        }
        Ok(())
    }
}

/// Environments of the processes whose program `is` one that is looked for.
pub(super) fn environments(is: impl Fn(&Path) -> bool) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let process = entry?.path();
        // What ends while it is looked at, or is somebody else's, is none of them.
        let Ok(runs) = std::fs::read_link(process.join("exe")) else {
            continue;
        };
        if is(&runs) {
            let environ = std::fs::read(process.join("environ")).unwrap_or_default();
            found.push(String::from_utf8_lossy(&environ).into_owned());
        }
    }
    Ok(found)
}

/// A pod with an account of its own that does nothing by itself.
pub(super) fn idle(ns: &str, name: &str, node: &str) -> String {
    let pod = Pod {
        namespace: ns,
        name,
        account: name,
        node,
        image: IDLE,
        port: None,
        labels: &[],
    };
    documents([service_account(ns, name, &[]), pod.yaml()])
}

fn server(ns: &str, word: &str, node: &str) -> String {
    let name = format!("{word}-server");
    let pod = Pod {
        namespace: ns,
        name: &name,
        account: &name,
        node,
        image: HTTPBIN,
        port: Some(PORTS[0]),
        labels: &[],
    };
    let second = format!(
        "  - name: second\n    image: {HELLO}\n    ports:\n    - containerPort: {}\n",
        PORTS[1]
    );
    let both = service(ns, &name, &name, PORTS[0], false)
        + &format!("  - name: second\n    port: {}\n", PORTS[1]);
    let headless = service(ns, &format!("{name}-headless"), &name, PORTS[0], true);
    documents([
        service_account(ns, &name, &[]),
        pod.yaml() + &second,
        both,
        headless,
    ])
}

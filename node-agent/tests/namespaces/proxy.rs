//! A stand-in for the node proxy: takes pods over ZDS, listens inside them, relays, and notes what
//! was redirected to it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};

use isobar_net::{
    DialOptions, ListenOptions, NetNs, SeqPacket, Source, UdpOptions, dial, listen, original_dst,
    peer_addr, udp,
};
use isobar_proto::istio::workload::zds::{
    Ack, Version, WorkloadRequest, WorkloadResponse, ZdsHello, workload_request::Payload,
    workload_response,
};
use isobar_runtime::Scope;
use isobar_types::ports;
use prost::Message;
use tokio::net::TcpStream;

use crate::network::{LIMIT, POD};

/// What the proxy saw, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notes(Arc<Mutex<Vec<String>>>);

impl Notes {
    fn add(&self, note: String) {
        self.0.lock().unwrap().push(note);
    }

    /// Everything since the last call.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    pub(crate) fn contain(&self, note: &str) -> bool {
        self.0.lock().unwrap().iter().any(|one| one == note)
    }
}

/// The proxy's listeners inside the pod; they outlive a session with the agent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Proxy {
    pub(crate) notes: Notes,
    pods: Arc<Mutex<Vec<(String, Scope)>>>,
}

impl Proxy {
    /// Connects to the agent and follows it until the agent goes.
    pub(crate) fn connect(&self, scope: &Scope, socket: &Path) {
        self.attach(scope, SeqPacket::connect(socket).unwrap());
    }

    /// Follows the agent at the other end until it goes.
    pub(crate) fn attach(&self, scope: &Scope, socket: SeqPacket) {
        let proxy = self.clone();
        scope.spawn("proxy", async move { proxy.follow(socket).await });
    }

    async fn follow(self, socket: SeqPacket) {
        let hello = ZdsHello {
            version: Version::V1.into(),
        };
        // An agent that is told to end at once may be gone before it was greeted.
        if socket.send(&hello.encode_to_vec(), &[]).await.is_err() {
            return;
        }
        let mut buffer = [0; 1024];
        while let Ok(Some(mut packet)) = socket.recv(&mut buffer).await {
            let request = WorkloadRequest::decode(&buffer[..packet.len]).unwrap();
            match request.payload.unwrap() {
                Payload::Add(add) => {
                    let netns = NetNs::from_fd(packet.fds.remove(0)).unwrap();
                    let known = self
                        .pods
                        .lock()
                        .unwrap()
                        .iter()
                        .any(|(uid, _)| *uid == add.uid);
                    if !known {
                        let scope = Scope::new("pod");
                        self.listen(&scope, &netns);
                        self.pods.lock().unwrap().push((add.uid.clone(), scope));
                    }
                    self.notes.add(format!("add {}", add.uid));
                }
                Payload::Del(del) => {
                    self.pods.lock().unwrap().retain(|(uid, _)| *uid != del.uid);
                    self.notes.add(format!("del {}", del.uid));
                }
                Payload::SnapshotSent(_) => self.notes.add("end of snapshot".to_owned()),
                Payload::Keep(_) => panic!("keep is never sent"),
            }
            let ack = WorkloadResponse {
                payload: Some(workload_response::Payload::Ack(Ack::default())),
            };
            if socket.send(&ack.encode_to_vec(), &[]).await.is_err() {
                return;
            }
        }
    }

    fn listen(&self, scope: &Scope, netns: &NetNs) {
        for port in [ports::OUTBOUND, ports::INBOUND_PLAINTEXT, ports::HBONE] {
            let listener = listen(&ListenOptions {
                netns: Some(netns.clone()),
                mark: Some(ports::PACKET_MARK),
                ..ListenOptions::new(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
            })
            .unwrap();
            let (netns, notes) = (netns.clone(), self.notes.clone());
            scope.spawn("listener", async move {
                let connections = Scope::new("relays");
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let (netns, notes) = (netns.clone(), notes.clone());
                    connections.spawn("relay", async move {
                        relay(port, stream, netns, &notes).await;
                    });
                }
            });
        }
        let names = udp(&UdpOptions {
            address: SocketAddr::from(([127, 0, 0, 1], ports::DNS)),
            netns: Some(netns.clone()),
            mark: Some(ports::PACKET_MARK),
            reuse_port: false,
        })
        .unwrap();
        scope.spawn("names", async move {
            let mut buffer = [0; 512];
            loop {
                let (_, from) = names.recv_from(&mut buffer).await.unwrap();
                names.send_to(b"named", from).await.unwrap();
            }
        });
    }
}

async fn relay(port: u16, mut stream: TcpStream, netns: NetNs, notes: &Notes) {
    let caller = peer_addr(&stream).unwrap().ip();
    let asked = original_dst(&stream).unwrap();
    let (to, source) = match port {
        ports::OUTBOUND => {
            notes.add(format!("outbound {asked}"));
            (asked, None)
        }
        ports::INBOUND_PLAINTEXT => {
            notes.add(format!("inbound {asked}"));
            (asked, Some(caller))
        }
        _ => {
            notes.add("tunnel".to_owned());
            let application: IpAddr = POD.parse().unwrap();
            (SocketAddr::new(application, 8080), Some(caller))
        }
    };
    let options = DialOptions {
        netns: Some(netns),
        mark: Some(ports::PACKET_MARK),
        source: source.map(|ip| Source { ip, required: true }),
        timeout: LIMIT,
        ..DialOptions::default()
    };
    let mut other = dial(&options, to).await.unwrap();
    // How a connection ends is the business of its two ends.
    let _ = tokio::io::copy_bidirectional(&mut stream, &mut other).await;
}

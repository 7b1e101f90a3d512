//! Names that the node proxy of the caller answers.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hickory_proto::op::{Message, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::figures::Page;
use super::matrix::{Matrix, Scenario};
use super::scenery::{BASE, ROUTES, Route, Scene};
use crate::Caller;

const UDP: Scenario = Scenario {
    id: "names_udp",
    what: "the caller's node proxy answers a Service's name over UDP",
};
const TCP: Scenario = Scenario {
    id: "names_tcp",
    what: "the caller's node proxy answers a Service's name over TCP",
};
const HEADLESS: Scenario = Scenario {
    id: "names_headless",
    what: "the caller's node proxy answers the name of a Service without an address with its pod's",
};
const SEARCH: Scenario = Scenario {
    id: "names_search",
    what: "a program in the pod finds a short name through its search domains",
};
const UNKNOWN: Scenario = Scenario {
    id: "names_unknown",
    what: "a name that the mesh does not know is the cluster's name server's to answer",
};

/// The cluster's name server, as pods know it.
const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 10)), 53);
const LIMIT: Duration = Duration::from_secs(5);

pub(super) async fn all(scene: &Scene, matrix: &mut Matrix) -> Result<()> {
    scene.open(BASE).await?;
    for route in &ROUTES {
        let name = format!("{}.{BASE}.svc.cluster.local.", route.server);
        let headless = format!("{}-headless.{BASE}.svc.cluster.local.", route.server);
        let service = scene.by_service(BASE, route, 0).await?.ip();
        let pod = scene.by_pod(BASE, route, 0).await?.ip();
        for (scenario, name, stream, address) in [
            (UDP, &name, false, service),
            (TCP, &name, true, service),
            (HEADLESS, &headless, false, pod),
        ] {
            let whose = if address == pod {
                "the pod"
            } else {
                "the Service"
            };
            let expected = format!("address of {whose}; the proxy was asked, nobody else");
            matrix
                .cell(scenario, route.direction, &expected, async || {
                    let (answer, asked) = watched(scene, route, name, stream).await?;
                    let right = answer.contains(&address);
                    let what = if right {
                        format!("address of {whose}")
                    } else {
                        format!("{answer:?}")
                    };
                    Ok(format!("{what}; {asked}"))
                })
                .await;
        }
        search(scene, matrix, route).await;
        let expected = "NXDomain; the proxy was asked, and asked the name server";
        matrix
            .cell(UNKNOWN, route.direction, expected, async || {
                let client = scene.client(route).await?;
                let before = Asked::read(scene, route).await?;
                let reply = ask(&client, "nobody.example.", false).await?;
                let asked = Asked::read(scene, route).await?.since(&before);
                Ok(format!("{:?}; {asked}", reply.metadata.response_code))
            })
            .await;
    }
    Ok(())
}

/// Addresses that a name has, and whom that took.
async fn watched(
    scene: &Scene,
    route: &Route,
    name: &str,
    stream: bool,
) -> Result<(Vec<IpAddr>, String)> {
    let client = scene.client(route).await?;
    let before = Asked::read(scene, route).await?;
    let reply = ask(&client, name, stream).await?;
    let asked = Asked::read(scene, route).await?.since(&before);
    let addresses = reply
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            _ => None,
        });
    Ok((addresses.collect(), asked))
}

/// Questions that the caller's node proxy had from it, and passed on.
struct Asked {
    all: f64,
    passed_on: f64,
}

impl Asked {
    async fn read(scene: &Scene, route: &Route) -> Result<Self> {
        let page = Page::read(scene, route.near_node()).await?;
        let client = route.client();
        let own = [("source_canonical_service", &*client)];
        Ok(Self {
            all: page.sum("istio_dns_requests_total", &own),
            passed_on: page.sum("istio_dns_upstream_requests_total", &own),
        })
    }

    fn since(&self, before: &Self) -> String {
        let asked = self.all > before.all;
        let passed_on = self.passed_on > before.passed_on;
        let text = match (asked, passed_on) {
            (true, false) => "the proxy was asked, nobody else",
            (true, true) => "the proxy was asked, and asked the name server",
            (false, _) => "the proxy was not asked",
        };
        text.to_owned()
    }
}

async fn search(scene: &Scene, matrix: &mut Matrix, route: &Route) {
    let pod = format!("callers/{}", route.client());
    let short = format!("{}.{BASE}", route.server);
    matrix
        .cell(
            SEARCH,
            route.direction,
            "address of the Service",
            async || {
                let service = scene.by_service(BASE, route, 0).await?.ip();
                let argv = ["getent", "ahostsv4", &*short];
                let output = scene.mesh.exec(&pod, &argv).await?;
                let first = output.stdout.split_whitespace().next().unwrap_or_default();
                Ok(if first == service.to_string() {
                    "address of the Service".to_owned()
                } else {
                    format!("exit code {}, {:?}", output.code, output.stdout)
                })
            },
        )
        .await;
}

/// Asks as an application would: the name server of its pod.
async fn ask(client: &Caller, name: &str, stream: bool) -> Result<Message> {
    let mut question = Message::query();
    question.metadata.op_code = OpCode::Query;
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(Name::from_ascii(name)?, RecordType::A));
    let bytes = question.to_vec()?;
    let exchange = async {
        if stream {
            let mut stream = client.connect(SERVER).await?;
            stream.write_u16(u16::try_from(bytes.len())?).await?;
            stream.write_all(&bytes).await?;
            let mut reply = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut reply).await?;
            return anyhow::Ok(reply);
        }
        let socket = client.datagrams(SERVER).await?;
        socket.send(&bytes).await?;
        let mut reply = vec![0; 4096];
        let len = socket.recv(&mut reply).await?;
        reply.truncate(len);
        Ok(reply)
    };
    let reply = tokio::time::timeout(LIMIT, exchange)
        .await
        .context("no answer")??;
    let reply = Message::from_vec(&reply)?;
    let same = reply.metadata.id == question.metadata.id;
    ensure!(same, "the answer is to another question");
    Ok(reply)
}

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::stage::Stage;
use crate::caller::{Caller, Reply};
use crate::capture::Capture;
use crate::mesh::{Mesh, samples};
use crate::wait::eventually;

const HOST: &str = "svc-hello:8080";

/// Every stop in order.
pub(super) async fn all(mesh: &Mesh, stage: &mut Stage) -> Result<()> {
    let tour = Tour::begin(mesh).await?;
    tour.round_robin(stage).await?;
    tour.selector(stage).await?;
    tour.wire(stage).await?;
    tour.with_waypoint(stage).await?;
    tour.matching(stage).await?;
    tour.weights(stage).await?;
    tour.subsets(stage).await?;
    tour.without_waypoint(stage).await?;
    tour.network_policy(stage).await?;
    tour.denial(stage).await
}

struct Tour<'a> {
    mesh: &'a Mesh,
    caller: Caller,
    to: SocketAddr,
}

fn lesson(file: &str) -> PathBuf {
    samples().join("hello/lesson").join(file)
}

impl<'a> Tour<'a> {
    async fn begin(mesh: &'a Mesh) -> Result<Self> {
        let caller = mesh.caller("hello/httpbin").await?;
        let to = (mesh.service_ip("hello/svc-hello").await?, 8080).into();
        Ok(Self { mesh, caller, to })
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Result<Reply> {
        self.caller
            .request(self.to, "GET", HOST, path, headers)
            .await
    }

    /// Requests on connections of their own: how many went to v1, to v2, to nobody.
    async fn count(&self, requests: u32, path: &str) -> (u32, u32, u32) {
        let (mut v1, mut v2, mut none) = (0, 0, 0);
        for _ in 0..requests {
            match self.get(path, &[]).await {
                Ok(reply) if reply.body.contains("v1") => v1 += 1,
                Ok(reply) if reply.body.contains("v2") => v2 += 1,
                Ok(_) | Err(_) => none += 1,
            }
        }
        (v1, v2, none)
    }

    fn apply(&self, stage: &mut Stage, from: &str, as_file: &str) -> Result<()> {
        let sample = format!("manifests/samples/hello/lesson/{from}");
        stage.command(&if self.mesh.has_api_server() {
            format!("kubectl apply -f {sample}")
        } else {
            format!("cp {sample} DIR/{as_file}")
        });
        self.mesh.apply_file(&lesson(from), as_file)
    }

    /// Waits until `requests` in a row give `wanted`.
    async fn until(&self, path: &str, wanted: impl Fn(&Result<Reply>) -> bool) -> Result<Duration> {
        let start = Instant::now();
        eventually("the change is in force", async || {
            for _ in 0..5 {
                let reply = self.get(path, &[]).await;
                ensure!(wanted(&reply), "{reply:?}");
            }
            Ok(())
        })
        .await?;
        Ok(start.elapsed())
    }

    async fn round_robin(&self, stage: &mut Stage) -> Result<()> {
        stage.title("A Service spreads connections over its pods");
        stage.command(
            "isobar lab exec -n hello httpbin -- sh -c 'for i in $(seq 100); do curl -s http://svc-hello:8080; done'",
        );
        let (v1, v2, none) = self.count(100, "/").await;
        stage.check(
            "100 connections to svc-hello",
            "each version 30 to 70",
            &format!("v1 {v1}, v2 {v2}, failed {none}"),
            (30..=70).contains(&v1) && (30..=70).contains(&v2) && none == 0,
        );
        Ok(())
    }

    async fn selector(&self, stage: &mut Stage) -> Result<()> {
        stage.title("Manual routing: the Service's selector changes");
        stage.note(&format!(
            "DIR is the lab's folder of objects, {}: a file there is applied",
            self.mesh.objects().display()
        ));
        for version in ["v1", "v2"] {
            self.apply(stage, &format!("selector-{version}.yaml"), "svc-hello.yaml")?;
            let took = self
                .until("/", |r| r.as_ref().is_ok_and(|r| r.body.contains(version)))
                .await?;
            let (v1, v2, none) = self.count(50, "/").await;
            let only = if version == "v1" { v1 } else { v2 };
            stage.check(
                &format!("50 connections, selector {version}"),
                &format!("all {version}, within 2 s"),
                &format!(
                    "v1 {v1}, v2 {v2}, failed {none}, after {} ms",
                    took.as_millis()
                ),
                only == 50 && took < Duration::from_secs(2),
            );
        }
        stage.command("cp manifests/samples/hello/svc-hello.yaml DIR/svc-hello.yaml");
        self.mesh
            .apply_file(&samples().join("hello/svc-hello.yaml"), "svc-hello.yaml")
    }

    async fn wire(&self, stage: &mut Stage) -> Result<()> {
        stage.title("What travels between the nodes");
        stage.command(
            "isobar lab exec outer -- tcpdump -i br0    # while httpbin calls hello-server-v2",
        );
        let marker = "marker-4f7a1c";
        let folder = crate::scratch()?;
        let capture = Capture::start(self.mesh.lab(), folder.path()).await?;
        let server = self.mesh.pod_ip("hello/hello-server-v2").await?;
        let reply = self
            .caller
            .request(
                (server, 8080).into(),
                "GET",
                HOST,
                &format!("/?{marker}"),
                &[],
            )
            .await?;
        ensure!(reply.status == 200, "{reply:?}");
        let recorded = capture.stop().await?;
        let client = self.mesh.pod_ip("hello/httpbin").await?;
        let between = format!("tcp && ip.addr=={client} && ip.addr=={server}");
        let ports = recorded
            .fields(&between, &["tcp.srcport", "tcp.dstport"], None)
            .await?;
        let inside = ports
            .iter()
            .filter(|l| l.split('\t').any(|p| p == "15008"))
            .count();
        stage.check(
            "TCP segments between the two pods",
            "all on port 15008",
            &format!("{inside} of {} on 15008", ports.len()),
            inside > 0 && inside == ports.len(),
        );
        let readable = recorded
            .bytes()?
            .windows(marker.len())
            .any(|w| w == marker.as_bytes());
        stage.check(
            "the request's text on the wire",
            "nowhere",
            if readable { "readable" } else { "nowhere" },
            !readable,
        );
        Ok(())
    }

    async fn with_waypoint(&self, stage: &mut Stage) -> Result<()> {
        stage.title("A waypoint for the namespace");
        for version in ["v1", "v2"] {
            let file = format!("svc-hello-{version}.yaml");
            self.apply(stage, &file, &file)?;
        }
        let start = Instant::now();
        self.deploy_waypoint(stage).await?;
        self.until("/", |r| {
            r.as_ref()
                .is_ok_and(|r| r.status == 200 && r.headers.contains_key("x-request-id"))
                || r.as_ref()
                    .is_ok_and(|r| r.headers.contains_key("x-envoy-upstream-service-time"))
        })
        .await?;
        stage.check(
            "requests pass the waypoint",
            "yes",
            &format!("yes, after {:.1} s", start.elapsed().as_secs_f32()),
            true,
        );
        Ok(())
    }

    async fn matching(&self, stage: &mut Stage) -> Result<()> {
        stage.title("VirtualService: match");
        self.apply(stage, "virtualservice-match.yaml", "virtualservice.yaml")?;
        self.until("/", |r| r.as_ref().is_ok_and(|r| r.status == 404))
            .await?;
        for (what, path, headers, status, body) in [
            ("path /v1", "/v1", &[][..], 200, "v1"),
            ("path /v2", "/v2", &[], 200, "v2"),
            ("header x-lesson: v2", "/", &[("x-lesson", "v2")], 200, "v2"),
            ("no match", "/", &[], 404, ""),
        ] {
            let reply = self.get(path, headers).await?;
            stage.check(
                what,
                &format!("{status} {body}"),
                &format!("{} {}", reply.status, reply.body.trim()),
                reply.status == status && reply.body.contains(body),
            );
        }
        let log = self.mesh.log("hello/waypoint").await?;
        let line = log
            .lines()
            .rev()
            .find(|l| l.contains("404 NR"))
            .map(str::to_owned);
        stage.check(
            "the waypoint's log for the last one",
            "404 with flag NR",
            line.as_deref()
                .map_or("no such line", |l| l.get(..60).unwrap_or(l)),
            line.is_some(),
        );
        Ok(())
    }

    async fn weights(&self, stage: &mut Stage) -> Result<()> {
        stage.title("VirtualService: weights");
        self.apply(stage, "virtualservice-weight.yaml", "virtualservice.yaml")?;
        self.until("/", |r| r.as_ref().is_ok_and(|r| r.status == 200))
            .await?;
        self.split(stage, "80/20", 80).await
    }

    async fn subsets(&self, stage: &mut Stage) -> Result<()> {
        stage.title("VirtualService and DestinationRule: subsets");
        self.apply(stage, "virtualservice-subset.yaml", "virtualservice.yaml")?;
        let refused = |r: &Result<Reply>| r.as_ref().is_ok_and(|r| r.status == 503);
        self.until("/", refused).await?;
        stage.check("a subset that nobody defined", "503", "503", true);
        self.apply(stage, "destinationrule.yaml", "destinationrule.yaml")?;
        self.until("/", |r| r.as_ref().is_ok_and(|r| r.status == 200))
            .await?;
        self.split(stage, "20/80", 20).await
    }

    async fn split(&self, stage: &mut Stage, weights: &str, percent: u32) -> Result<()> {
        let mut connection = self.caller.http(self.to).await?;
        let (total, mut v1, mut v2) = (2000, 0, 0);
        for _ in 0..total {
            let reply = connection.get(HOST, "/").await?;
            v1 += u32::from(reply.body.contains("v1"));
            v2 += u32::from(reply.body.contains("v2"));
        }
        let (low, high) = (total * (percent - 4) / 100, total * (percent + 4) / 100);
        stage.check(
            &format!("{total} requests, weights {weights}"),
            &format!("v1 {low} to {high}"),
            &format!("v1 {v1}, v2 {v2}"),
            (low..=high).contains(&v1) && v1 + v2 == total,
        );
        Ok(())
    }

    async fn deploy_waypoint(&self, stage: &mut Stage) -> Result<()> {
        if !self.mesh.has_api_server() {
            stage.command("isobar waypoint apply -n hello --enroll-namespace --wait");
            let apply = ["waypoint", "apply", "-n", "hello"];
            let how = ["--enroll-namespace", "--wait"];
            let all = [&apply[..], &how].concat();
            return self.mesh.isobar(&all).await.map(drop);
        }
        self.apply(stage, "waypoint.yaml", "waypoint.yaml")?;
        let wait = ["wait", "--for=condition=Programmed", "gateway/waypoint"];
        stage.command(&format!("kubectl {} -n hello", wait.join(" ")));
        self.mesh
            .kubectl(&[&wait[..], &["-n", "hello", "--timeout=30s"]].concat())?;
        self.apply(stage, "namespace-with-waypoint.yaml", "namespace.yaml")
    }

    async fn remove_waypoint(&self, stage: &mut Stage) -> Result<()> {
        if !self.mesh.has_api_server() {
            stage.command("isobar waypoint delete -n hello waypoint");
            let delete = ["waypoint", "delete", "-n", "hello", "waypoint"];
            return self.mesh.isobar(&delete).await.map(drop);
        }
        self.mesh
            .apply_file(&samples().join("hello/namespace.yaml"), "namespace.yaml")?;
        self.until("/", |r| {
            r.as_ref()
                .is_ok_and(|r| !r.headers.contains_key("x-envoy-upstream-service-time"))
        })
        .await?;
        self.mesh.delete("waypoint.yaml")
    }

    async fn without_waypoint(&self, stage: &mut Stage) -> Result<()> {
        stage.title("The waypoint is removed: unbound first, then deleted");
        for file in ["virtualservice.yaml", "destinationrule.yaml"] {
            self.mesh.delete(file)?;
        }
        self.remove_waypoint(stage).await?;
        self.until("/", |r| {
            r.as_ref().is_ok_and(|r| {
                r.status == 200 && !r.headers.contains_key("x-envoy-upstream-service-time")
            })
        })
        .await?;
        let (v1, v2, none) = self.count(20, "/").await;
        stage.check(
            "20 connections without it",
            "all answered",
            &format!("v1 {v1}, v2 {v2}, failed {none}"),
            none == 0,
        );
        Ok(())
    }

    async fn network_policy(&self, stage: &mut Stage) -> Result<()> {
        stage.title("A NetworkPolicy from before the mesh, and its repair");
        self.apply(stage, "networkpolicy-blocking.yaml", "networkpolicy.yaml")?;
        let blocked = eventually("the policy cuts port 15008", async || {
            let short = tokio::time::timeout(Duration::from_secs(1), self.get("/", &[])).await;
            ensure!(!matches!(short, Ok(Ok(_))), "still answered");
            Ok(())
        })
        .await;
        stage.check(
            "it admits 8080 only",
            "callers in the mesh are cut",
            if blocked.is_ok() {
                "cut"
            } else {
                "still answered"
            },
            blocked.is_ok(),
        );
        self.apply(stage, "networkpolicy-repaired.yaml", "networkpolicy.yaml")?;
        eventually("the repair lets them in", async || {
            let reply = tokio::time::timeout(Duration::from_secs(2), self.get("/", &[])).await??;
            ensure!(reply.status == 200, "{reply:?}");
            Ok(())
        })
        .await?;
        let (v1, v2, none) = self.count(20, "/").await;
        stage.check(
            "it admits 8080 and 15008",
            "all answered",
            &format!("v1 {v1}, v2 {v2}, failed {none}"),
            none == 0,
        );
        Ok(())
    }

    async fn denial(&self, stage: &mut Stage) -> Result<()> {
        stage.title("An L4 policy on the caller's identity");
        self.apply(stage, "deny-httpbin.yaml", "deny.yaml")?;
        self.until("/", Result::is_err).await?;
        let (v1, v2, none) = self.count(10, "/").await;
        stage.check(
            "10 connections as sa/httpbin",
            "all refused",
            &format!("v1 {v1}, v2 {v2}, refused {none}"),
            none == 10,
        );
        let log = [
            self.mesh.log("ztunnel-node-1").await?,
            self.mesh.log("ztunnel-node-2").await?,
        ];
        let told = log.iter().any(|l| l.contains("deny-httpbin"));
        stage.check(
            "the server's node proxy says which policy",
            "hello/deny-httpbin",
            if told {
                "hello/deny-httpbin"
            } else {
                "nothing"
            },
            told,
        );
        Ok(())
    }
}

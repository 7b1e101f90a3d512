//! What both proxies are configured with: ordinary objects, put through the control plane's model.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Result, ensure};
use isobar_control_plane::{Told, told};
use isobar_objects::{ObjectSet, read_text};
use isobar_tests::envoy::Call;
use isobar_types::labels::REDIRECTION;
use serde_json::{Value, json};

pub(super) const NAMESPACE: &str = "bench";
pub(super) const WAYPOINT: &str = "wp";
/// The waypoint runs as that.
pub(super) const ACCOUNT: &str = "wp";
/// Endpoints run as that, and callers who come through tunnels.
pub(super) const APP: &str = "app";
pub(super) const CALLER: &str = "caller";
/// The port of every service.
const PORT: u16 = 80;
/// Endpoints of a service nobody calls.
const ENDPOINTS: u32 = 3;

/// A service that is called, with the name of its port: that declares the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Called {
    pub(super) name: &'static str,
    port: &'static str,
    /// Rules of its VirtualService, by the start of a path; a request for the last of them passes
    /// all others by.
    pub(super) routes: u32,
    policies: bool,
}

const fn called(name: &'static str, port: &'static str, routes: u32, policies: bool) -> Called {
    Called {
        name,
        port,
        routes,
        policies,
    }
}

/// One configuration of a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scene {
    pub(super) name: String,
    pub(super) called: Vec<Called>,
    /// A line for each request, to nowhere.
    pub(super) access_log: bool,
    /// Services nobody calls.
    pub(super) services: u32,
    /// Callers and endpoints of those that are called are in the mesh.
    pub(super) tunnels: bool,
}

impl Scene {
    /// A plain hop: ten routes and nothing else.
    pub(super) fn plain() -> Self {
        Self {
            name: "plain".to_owned(),
            called: vec![
                called("web", "http", 10, false),
                called("two", "http2", 10, false),
                called("unary", "grpc", 10, false),
            ],
            access_log: false,
            services: 0,
            tunnels: false,
        }
    }

    /// The same routes between tunnels.
    pub(super) fn hbone() -> Self {
        Self {
            name: "hbone".to_owned(),
            tunnels: true,
            ..Self::plain()
        }
    }

    /// True without policies: then the application alone can be asked the same.
    pub(super) fn is_hop(&self) -> bool {
        self.called == Self::plain().called && self.services == 0
    }

    /// The same with ten policies.
    pub(super) fn policies() -> Self {
        Self {
            name: "policies".to_owned(),
            called: vec![
                called("web", "http", 10, true),
                called("two", "http2", 10, true),
                called("unary", "grpc", 10, true),
            ],
            access_log: true,
            services: 0,
            tunnels: false,
        }
    }

    /// One service with so many routes.
    pub(super) fn routes(count: u32) -> Self {
        Self {
            name: format!("routes-{count}"),
            called: vec![called("web", "http", count, false)],
            access_log: false,
            services: 0,
            tunnels: false,
        }
    }

    /// The plain hop beside so many services.
    pub(super) fn services(count: u32) -> Self {
        Self {
            name: format!("services-{count}"),
            services: count,
            ..Self::plain()
        }
    }

    /// The one called so.
    pub(super) fn service(&self, name: &str) -> Option<&Called> {
        self.called.iter().find(|called| called.name == name)
    }

    /// Those that are called, with their addresses.
    pub(super) fn addresses(&self) -> impl Iterator<Item = (&Called, SocketAddr)> {
        (1..)
            .zip(&self.called)
            .map(|(n, called)| (called, (Ipv4Addr::new(10, 96, 0, n), PORT).into()))
    }

    /// What a waypoint is told, with endpoints at these addresses. `version` is seen in a header of
    /// replies.
    pub(super) fn told(&self, endpoints: &[SocketAddr], version: u32) -> Result<Told> {
        let documents = self.objects(endpoints, version);
        let documents: Vec<String> = documents.iter().map(Value::to_string).collect();
        let read = read_text(Path::new("bench.yaml"), &documents.join("\n---\n"));
        let wrong: Vec<_> = read.findings.iter().filter(|f| f.is_error()).collect();
        ensure!(wrong.is_empty(), "{wrong:?}");
        let told = told(&ObjectSet::of(read.objects.into_iter().map(|o| o.object)));
        // That the waypoint has no pod is so: it runs beside the mesh.
        let about_waypoint = |object: &str| object.starts_with("Service ");
        let complaints = told.complaints.iter();
        let complaints: Vec<_> = complaints.filter(|(o, _)| !about_waypoint(o)).collect();
        ensure!(complaints.is_empty(), "{complaints:?}");
        Ok(told)
    }

    fn objects(&self, endpoints: &[SocketAddr], version: u32) -> Vec<Value> {
        let mut all = vec![
            json!({"apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": NAMESPACE, "labels": {"istio.io/use-waypoint": WAYPOINT}}}),
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
                "metadata": {"name": WAYPOINT, "namespace": NAMESPACE},
                "spec": {"gatewayClassName": "isobar-waypoint",
                    "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]}}),
        ];
        for (index, at) in endpoints.iter().enumerate() {
            let name = format!("app-{index}");
            all.push(pod(&name, APP, &at.ip().to_string(), at.port()));
        }
        if self.tunnels {
            // Loads come from there.
            let mut caller = pod("caller", CALLER, &Ipv4Addr::LOCALHOST.to_string(), PORT);
            caller["spec"]["serviceAccountName"] = json!(CALLER);
            all.push(caller);
            for pod in all.iter_mut().filter(|object| object["kind"] == "Pod") {
                pod["metadata"]["annotations"] = json!({REDIRECTION: "enabled"});
            }
        }
        for (one, at) in self.addresses() {
            all.push(service(one.name, &at.ip().to_string(), one.port, APP));
            all.push(one.virtual_service(version));
            if one.policies {
                all.extend(one.policies());
            }
        }
        for n in 0..self.services {
            let (name, high, low) = (format!("other-{n}"), n / 250, n % 250 + 1);
            all.push(service(
                &name,
                &format!("10.97.{high}.{low}"),
                "http",
                &name,
            ));
            for endpoint in 0..ENDPOINTS {
                let ip = format!("10.{}.{high}.{low}", 244 + endpoint);
                all.push(pod(&format!("{name}-{endpoint}"), &name, &ip, 8080));
            }
        }
        all
    }
}

impl Called {
    /// The call as Envoy's configuration is made for it: like a plain caller of ours it is nobody.
    pub(super) fn call(&self) -> Call {
        Call {
            namespace: NAMESPACE.to_owned(),
            account: String::new(),
            hostname: format!("{}.{NAMESPACE}.svc.cluster.local", self.name),
            port: PORT,
        }
    }

    /// What our waypoint is told to take plain traffic for.
    pub(super) fn authority(&self) -> String {
        let call = self.call();
        format!("{}:{}", call.hostname, call.port)
    }

    /// A path for the last route that wants a body of `size` bytes.
    pub(super) fn path(&self, size: usize) -> String {
        format!("/r{}/{size}", self.routes.saturating_sub(1))
    }

    fn virtual_service(&self, version: u32) -> Value {
        let mut rules: Vec<Value> = (0..self.routes)
            .map(|n| {
                json!({"match": [{"uri": {"prefix": format!("/r{n}/")}}],
                    "route": [{"destination": {"host": self.name}}]})
            })
            .collect();
        if let Some(last) = rules.last_mut() {
            last["headers"] = json!({"response": {"set": {"x-version": version.to_string()}}});
            if self.policies {
                last["headers"] = json!({
                    "request": {"set": {"x-tenant": "bench", "x-route": "last"},
                        "add": {"x-via": "waypoint"}, "remove": ["x-noise"]},
                    "response": {"set": {"x-version": version.to_string()},
                        "remove": ["x-internal"]}});
                last["timeout"] = json!("10s");
                last["retries"] = json!({"attempts": 3, "perTryTimeout": "5s",
                    "retryOn": "5xx,connect-failure,refused-stream"});
            }
        }
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": self.name, "namespace": NAMESPACE},
            "spec": {"hosts": [self.name], "http": rules}})
    }

    fn policies(&self) -> [Value; 2] {
        let policy = |name: &str, action: &str, rules: Value| {
            json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                "metadata": {"name": format!("{}-{name}", self.name), "namespace": NAMESPACE},
                "spec": {"action": action, "rules": rules,
                    "targetRefs": [{"group": "", "kind": "Service", "name": self.name}]}})
        };
        [
            policy(
                "deny",
                "DENY",
                json!([
                    {"to": [{"operation": {"paths": ["/admin*", "/internal/*"]}}]},
                    {"when": [{"key": "request.headers[x-blocked]", "values": ["*"]}]}]),
            ),
            policy(
                "allow",
                "ALLOW",
                json!([{"to": [{"operation":
                    {"methods": ["GET", "POST"], "paths": ["/r*"]}}]}]),
            ),
        ]
    }
}

fn service(name: &str, vip: &str, port: &str, app: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"clusterIP": vip, "selector": {"app": app},
            "ports": [{"name": port, "port": PORT, "targetPort": "app"}]}})
}

fn pod(name: &str, app: &str, ip: &str, port: u16) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": format!("u-{name}"),
            "labels": {"app": app}},
        "spec": {"serviceAccountName": APP, "nodeName": "node-1",
            "containers": [{"name": "main", "image": "app",
                "ports": [{"name": "app", "containerPort": port}]}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}]}})
}

#[cfg(test)]
mod tests {
    use isobar_proto::istio::workload::TunnelProtocol;
    use isobar_proto::istio::workload::address::Type;

    use super::*;

    #[test]
    fn every_scene_is_in_force_as_written() {
        let endpoints = ["127.128.0.2:8080".parse().unwrap()];
        for scene in [
            Scene::plain(),
            Scene::hbone(),
            Scene::policies(),
            Scene::routes(20),
            Scene::services(300),
        ] {
            let told = scene.told(&endpoints, 1).unwrap();
            let own = &told.waypoints["bench/wp"];
            assert_eq!(
                own.virtual_services.len(),
                scene.called.len(),
                "{}",
                scene.name
            );
            let rules = own.virtual_services.iter().map(|vs| vs.http.len());
            let wanted: u32 = scene.called.iter().map(|c| c.routes).sum();
            assert_eq!(rules.sum::<usize>(), wanted as usize);
        }
        let told = Scene::policies().told(&endpoints, 1).unwrap();
        assert_eq!(told.waypoints["bench/wp"].authorizations.len(), 6);
        assert_eq!(Scene::routes(20).called[0].path(64), "/r19/64");
    }

    #[test]
    fn only_pods_of_the_mesh_take_tunnels() {
        let endpoints = ["127.128.0.2:8080".parse().unwrap()];
        let tunnels = |scene: Scene| -> Vec<bool> {
            let told = scene.told(&endpoints, 1).unwrap();
            let workloads = told.addresses.into_iter().filter_map(|a| match a.r#type {
                Some(Type::Workload(workload)) => Some(workload),
                _ => None,
            });
            workloads
                .map(|w| w.tunnel_protocol() == TunnelProtocol::Hbone)
                .collect()
        };
        assert_eq!(tunnels(Scene::plain()), [false]);
        assert_eq!(tunnels(Scene::hbone()), [true, true]);
    }
}

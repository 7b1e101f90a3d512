use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// TCP ports at which the kubelet calls the pod: probes and hooks of containers that keep running,
/// but for those that name another host.
#[must_use]
pub fn probed_ports(pod: &Pod) -> BTreeSet<u16> {
    let Some(spec) = &pod.spec else {
        return BTreeSet::new();
    };
    let lasting = |one: &&Container| one.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(lasting);
    let all = spec.containers.iter().chain(sidecars);
    all.flat_map(ports_of).collect()
}

fn ports_of(container: &Container) -> Vec<u16> {
    let probes = [
        &container.startup_probe,
        &container.readiness_probe,
        &container.liveness_probe,
    ];
    let hooks = container.lifecycle.iter();
    let hooks = hooks.flat_map(|hooks| [&hooks.post_start, &hooks.pre_stop]);
    let probed = probes.into_iter().flatten().filter_map(by_probe);
    let hooked = hooks.flatten().filter_map(by_hook);
    let ports: Vec<IntOrString> = probed.chain(hooked).collect();
    ports
        .iter()
        .filter_map(|port| number(container, port))
        .collect()
}

fn by_probe(probe: &Probe) -> Option<IntOrString> {
    if let Some(http) = &probe.http_get {
        return is_here(http.host.as_ref()).then(|| http.port.clone());
    }
    if let Some(tcp) = &probe.tcp_socket {
        return is_here(tcp.host.as_ref()).then(|| tcp.port.clone());
    }
    probe.grpc.as_ref().map(|grpc| IntOrString::Int(grpc.port))
}

fn by_hook(hook: &LifecycleHandler) -> Option<IntOrString> {
    if let Some(http) = &hook.http_get {
        return is_here(http.host.as_ref()).then(|| http.port.clone());
    }
    let tcp = hook.tcp_socket.as_ref()?;
    is_here(tcp.host.as_ref()).then(|| tcp.port.clone())
}

fn is_here(host: Option<&String>) -> bool {
    host.is_none_or(String::is_empty)
}

/// A name is that of a port of the same container.
fn number(container: &Container, port: &IntOrString) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let named = ports.find(|port| port.name.as_ref() == Some(name));
            // A number may be written as text.
            named.map_or_else(|| name.parse().ok(), |port| Some(port.container_port))?
        }
    };
    u16::try_from(number).ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn ports(spec: &Value) -> Vec<u16> {
        let pod = json!({"metadata": {"name": "cart"}, "spec": spec});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        probed_ports(&pod).into_iter().collect()
    }

    #[test]
    fn every_kind_of_probe_of_what_keeps_running_counts() {
        let spec = json!({
            "containers": [
                {"name": "a", "ports": [{"name": "web", "containerPort": 8080}],
                    "startupProbe": {"httpGet": {"port": "web"}},
                    "readinessProbe": {"tcpSocket": {"port": 8081}},
                    "livenessProbe": {"grpc": {"port": 8082}}},
                {"name": "b", "ports": [{"name": "other", "containerPort": 9000}],
                    "livenessProbe": {"exec": {"command": ["true"]}},
                    "lifecycle": {"preStop": {"httpGet": {"port": "8083"}}}},
            ],
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "readinessProbe": {"httpGet": {"port": 15021}}},
                {"name": "i", "readinessProbe": {"httpGet": {"port": 7}}},
            ],
        });
        assert_eq!(ports(&spec), [8080, 8081, 8082, 8083, 15021]);
    }

    #[test]
    fn other_hosts_names_that_are_none_and_pods_without_probes_open_nothing() {
        let probe = |probe: Value| {
            ports(&json!({"containers": [{"name": "a",
                "ports": [{"name": "web", "containerPort": 8080}], "readinessProbe": probe}]}))
        };
        let elsewhere = json!({"httpGet": {"host": "10.0.0.9", "port": 8080}});
        assert!(probe(elsewhere).is_empty());
        assert!(probe(json!({"tcpSocket": {"port": "nothing"}})).is_empty());
        assert!(probe(json!({"tcpSocket": {"port": 70000}})).is_empty());
        assert!(probe(Value::Null).is_empty());
    }
}

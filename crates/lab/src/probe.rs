//! Probes from the node, as a kubelet sends them.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use isobar_net::{DialOptions, NetNs, dial};
use isobar_objects::pods::named_port;
use k8s_openapi::api::core::v1::{HTTPGetAction, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Most bytes of a page.
const PAGE: u64 = 64 * 1024 * 1024;

/// What a probe asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Question {
    Http {
        port: u16,
        path: String,
        host: Option<String>,
        headers: Vec<(String, String)>,
    },
    Tcp {
        port: u16,
    },
    Exec {
        argv: Vec<String>,
    },
}

/// A probe with Kubernetes' defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) question: Question,
    pub(crate) delay: Duration,
    pub(crate) period: Duration,
    pub(crate) timeout: Duration,
    pub(crate) successes: u32,
    pub(crate) failures: u32,
}

impl Plan {
    /// Reads a probe; an error says what the lab cannot ask.
    pub(crate) fn of(probe: &Probe, pod: &Pod) -> Result<Self, String> {
        let question = if let Some(get) = &probe.http_get {
            http(get, pod)?
        } else if let Some(tcp) = &probe.tcp_socket {
            Question::Tcp {
                port: port(&tcp.port, pod)?,
            }
        } else if let Some(exec) = &probe.exec {
            Question::Exec {
                argv: exec.command.clone().unwrap_or_default(),
            }
        } else {
            return Err("the lab can probe by httpGet, tcpSocket and exec only".to_owned());
        };
        let seconds = |value: Option<i32>, default: u64, least: u64| {
            let value = value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default);
            Duration::from_secs(value.max(least))
        };
        let count = |value: Option<i32>, default: u32| {
            value
                .and_then(|v| u32::try_from(v).ok())
                .filter(|v| *v > 0)
                .unwrap_or(default)
        };
        Ok(Self {
            question,
            delay: seconds(probe.initial_delay_seconds, 0, 0),
            period: seconds(probe.period_seconds, 10, 1),
            timeout: seconds(probe.timeout_seconds, 1, 1),
            successes: count(probe.success_threshold, 1),
            failures: count(probe.failure_threshold, 3),
        })
    }
}

fn http(get: &HTTPGetAction, pod: &Pod) -> Result<Question, String> {
    if get.scheme.as_deref().is_some_and(|scheme| scheme != "HTTP") {
        return Err("the lab cannot probe over HTTPS".to_owned());
    }
    let path = get.path.clone().unwrap_or_default();
    let headers = get
        .http_headers
        .iter()
        .flatten()
        .map(|header| (header.name.clone(), header.value.clone()))
        .collect();
    Ok(Question::Http {
        port: port(&get.port, pod)?,
        path: if path.starts_with('/') {
            path
        } else {
            format!("/{path}")
        },
        host: get.host.clone(),
        headers,
    })
}

fn port(port: &IntOrString, pod: &Pod) -> Result<u16, String> {
    match port {
        IntOrString::Int(number) => {
            u16::try_from(*number).map_err(|_| format!("{number} is no port"))
        }
        IntOrString::String(name) => {
            named_port(pod, name).ok_or_else(|| format!("no container port is named {name:?}"))
        }
    }
}

/// Asks over the network, from the node; `Err` says why the answer was no.
pub(crate) async fn ask(
    question: &Question,
    node: &NetNs,
    pod: Ipv4Addr,
    timeout: Duration,
) -> Result<(), String> {
    let asked = async {
        match question {
            Question::Tcp { port } => connect(node, pod, *port, timeout).await.map(drop),
            Question::Http {
                port,
                path,
                host,
                headers,
            } => {
                let status = get(node, pod, *port, path, host.as_deref(), headers, timeout).await?;
                if (200..400).contains(&status) {
                    Ok(())
                } else {
                    Err(format!("GET {path} on port {port} answered {status}"))
                }
            }
            Question::Exec { .. } => Err("not a question for the network".to_owned()),
        }
    };
    tokio::time::timeout(timeout, asked)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")))
}

async fn connect(
    node: &NetNs,
    pod: Ipv4Addr,
    port: u16,
    timeout: Duration,
) -> Result<tokio::net::TcpStream, String> {
    let options = DialOptions {
        netns: Some(node.clone()),
        timeout,
        ..DialOptions::default()
    };
    dial(&options, SocketAddr::from((pod, port)))
        .await
        .map_err(|error| format!("port {port}: {}", crate::stage::with_causes(&error)))
}

/// The JSON at a path, asked from inside a namespace; for pages of our own programs.
pub(crate) async fn page(
    from: &NetNs,
    (ip, port): (Ipv4Addr, u16),
    path: &str,
    timeout: Duration,
) -> Result<serde_json::Value, String> {
    let asked = async {
        let failed = |error: std::io::Error| format!("port {port}: {error}");
        let mut stream = connect(from, ip, port, timeout).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {ip}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.map_err(failed)?;
        let mut bytes = Vec::new();
        stream
            .take(PAGE)
            .read_to_end(&mut bytes)
            .await
            .map_err(failed)?;
        let body = bytes
            .windows(4)
            .position(|end| end == b"\r\n\r\n")
            .map(|at| &bytes[at + 4..])
            .filter(|_| status(&bytes) == Some(200))
            .ok_or_else(|| format!("port {port}: no page {path}"))?;
        serde_json::from_slice(body).map_err(|error| format!("port {port}: {error}"))
    };
    tokio::time::timeout(timeout, asked)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")))
}

async fn get(
    node: &NetNs,
    pod: Ipv4Addr,
    port: u16,
    path: &str,
    host: Option<&str>,
    headers: &[(String, String)],
    timeout: Duration,
) -> Result<u16, String> {
    let mut stream = connect(node, pod, port, timeout).await?;
    let own_host = format!("{pod}:{port}");
    let host = headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("host"))
        .map(|(_, value)| value.as_str())
        .or(host)
        .unwrap_or(&own_host);
    let mut request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: kube-probe/1.35\r\nAccept: */*\r\n\
         Connection: close\r\n"
    );
    for (name, value) in headers {
        if !name.eq_ignore_ascii_case("host") {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    request.push_str("\r\n");
    let failed = |error: std::io::Error| format!("port {port}: {error}");
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut head = Vec::with_capacity(64);
    // "HTTP/1.1 200" is all that counts.
    while head.len() < 12 {
        if stream.read_buf(&mut head).await.map_err(failed)? == 0 {
            break;
        }
    }
    status(&head).ok_or_else(|| format!("port {port} does not speak HTTP"))
}

fn status(head: &[u8]) -> Option<u16> {
    let rest = head.strip_prefix(b"HTTP/1.")?;
    std::str::from_utf8(rest.get(2..5)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_are_those_of_kubernetes() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec":
            {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]}}))
        .unwrap();
        let probe: Probe =
            serde_json::from_value(json!({"httpGet": {"path": "ok", "port": "web"}})).unwrap();
        let plan = Plan::of(&probe, &pod).unwrap();
        assert_eq!(
            plan.question,
            Question::Http {
                port: 8080,
                path: "/ok".into(),
                host: None,
                headers: vec![]
            }
        );
        assert_eq!(plan.period, Duration::from_secs(10));
        assert_eq!((plan.successes, plan.failures), (1, 3));
        for bad in [
            json!({"grpc": {"port": 1}}),
            json!({"httpGet": {"port": "gone"}}),
            json!({"httpGet": {"port": 1, "scheme": "HTTPS"}}),
        ] {
            let probe: Probe = serde_json::from_value(bad).unwrap();
            assert!(Plan::of(&probe, &pod).is_err());
        }
    }

    #[test]
    fn status_lines() {
        assert_eq!(status(b"HTTP/1.1 204 No Content"), Some(204));
        assert_eq!(status(b"HTTP/1.0 500"), Some(500));
        assert_eq!(status(b"SSH-2.0"), None);
        assert_eq!(status(b""), None);
    }
}

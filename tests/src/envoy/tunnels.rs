//! Envoy between tunnels, as Istio configures it for a waypoint: what takes callers' tunnels hands each stream to a
//! listener within the process, and what goes to an endpoint passes another one, which opens tunnels.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{Export, OfMesh};

/// The listener that takes tunnels.
const TERMINATE: &str = "connect_terminate";
/// The listener within the process that opens them, and its cluster.
const ORIGINATE: &str = "connect_originate";
/// Carries the address that a connection within the process is for.
const ORIGINAL: &str = "envoy.filters.listener.original_dst";
const SOCKETS: &str = "type.googleapis.com/envoy.extensions.transport_sockets";
const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters";
/// KiB between two listeners of one process (as Istio does).
const BETWEEN: u32 = 64;
/// Streams that one caller's tunnel may have (as Istio does).
const STREAMS: u32 = 100;

impl Export {
    /// Name of the listener that takes the tunnels of [`Self::through_tunnels`].
    pub const TUNNELS: &str = TERMINATE;

    /// Puts tunnels on both sides of everything that was added: callers reach a listener by a tunnel to
    /// [`Self::TUNNELS`] and a CONNECT for its authority in `ways`, endpoints by one to `port` of their
    /// address. Istio's statistics and what it looks up about callers are left out.
    pub fn through_tunnels(
        &mut self,
        of_mesh: OfMesh<'_>,
        port: u16,
        ways: impl IntoIterator<Item = (SocketAddr, String)>,
    ) {
        for cluster in &mut self.clusters {
            through_tunnel(cluster);
        }
        for listener in &mut self.listeners {
            within(listener);
        }
        let ways: Vec<_> = ways.into_iter().collect();
        for (_, listener) in &ways {
            self.clusters.push(to_listener(listener));
        }
        self.clusters.push(originating_cluster(of_mesh, port));
        self.listeners.push(originating_listener());
        self.listeners.push(terminating_listener(of_mesh, &ways));
    }

    /// What a process needs that has listeners within.
    pub(super) fn extensions(&self) -> Vec<Value> {
        let mut listeners = self.listeners.iter();
        let inner = listeners.any(|listener| listener.get("internal_listener").is_some());
        let kind =
            "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener";
        let extension = || {
            json!({"name": "envoy.bootstrap.internal_listener", "typed_config": {
                "@type": kind, "buffer_size_kb": BETWEEN}})
        };
        inner.then(extension).into_iter().collect()
    }
}

/// Makes a listener one of the process alone.
fn within(listener: &mut Value) {
    if let Some(fields) = listener.as_object_mut() {
        fields.remove("address");
        fields.insert("internal_listener".to_owned(), json!({}));
    }
}

/// Name of the cluster that leads to a listener.
fn lead_to(listener: &str) -> String {
    format!("within|{listener}")
}

fn raw() -> Value {
    json!({"name": "envoy.transport_sockets.raw_buffer",
        "typed_config": {"@type": format!("{SOCKETS}.raw_buffer.v3.RawBuffer")}})
}

/// A connection within the process, with the address it is for where `told`.
fn internal_socket(inner: &Value, told: bool) -> Value {
    let mut config = json!({
        "@type": format!("{SOCKETS}.internal_upstream.v3.InternalUpstreamTransport"),
        "transport_socket": inner});
    if told {
        config["passthrough_metadata"] = json!([{"kind": {"host": {}}, "name": ORIGINAL}]);
    }
    json!({"name": "envoy.transport_sockets.internal_upstream", "typed_config": config})
}

fn unlimited() -> Value {
    let most = u32::MAX;
    json!({"thresholds": [{"max_connections": most, "max_pending_requests": most,
        "max_requests": most, "max_retries": most}]})
}

/// Has a cluster reach its endpoints through [`ORIGINATE`].
fn through_tunnel(cluster: &mut Value) {
    let inner = cluster.get("transport_socket").cloned();
    cluster["transport_socket"] = internal_socket(&inner.unwrap_or_else(raw), true);
    let endpoints = cluster["load_assignment"]["endpoints"].as_array_mut();
    for group in endpoints.into_iter().flatten() {
        for endpoint in group["lb_endpoints"].as_array_mut().into_iter().flatten() {
            let at = &endpoint["endpoint"]["address"]["socket_address"];
            let ip = at["address"].as_str().unwrap_or_default();
            let to = format!("{ip}:{}", at["port_value"]);
            endpoint["metadata"] = json!({"filter_metadata": {ORIGINAL: {"local": to}}});
            endpoint["endpoint"]["address"] = json!({"envoy_internal_address": {
                "server_listener_name": ORIGINATE, "endpoint_id": to}});
        }
    }
}

fn to_listener(listener: &str) -> Value {
    let name = lead_to(listener);
    let at = json!({"endpoint": {"address": {
        "envoy_internal_address": {"server_listener_name": listener}}}});
    json!({
        "name": name,
        "type": "STATIC",
        "circuit_breakers": unlimited(),
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [at]}]},
        "transport_socket": internal_socket(&raw(), false),
    })
}

/// Mutual TLS 1.3 for HTTP/2 between members of the mesh.
fn common_tls(of_mesh: OfMesh<'_>) -> Value {
    json!({
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3"},
        "alpn_protocols": ["h2"],
        "tls_certificates": [{
            "certificate_chain": {"inline_string": of_mesh.chain},
            "private_key": {"inline_string": of_mesh.key}}],
        "validation_context": {
            "trusted_ca": {"inline_string": of_mesh.roots},
            "match_typed_subject_alt_names": [
                {"san_type": "URI", "matcher": {"prefix": "spiffe://cluster.local/"}}]},
    })
}

fn originating_cluster(of_mesh: OfMesh<'_>, port: u16) -> Value {
    let options = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    json!({
        "name": ORIGINATE,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "10s",
        "cleanup_interval": "60s",
        "original_dst_lb_config": {"upstream_port_override": port},
        "circuit_breakers": unlimited(),
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": format!("{SOCKETS}.tls.v3.UpstreamTlsContext"),
            "common_tls_context": common_tls(of_mesh)}},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": options,
                "explicit_http_config": {"http2_protocol_options": {"allow_connect": true}}}},
    })
}

fn originating_listener() -> Value {
    json!({
        "name": ORIGINATE,
        "internal_listener": {},
        "listener_filters": [{"name": ORIGINAL, "typed_config": {
            "@type": format!("{FILTERS}.listener.original_dst.v3.OriginalDst")}}],
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": {
            "@type": format!("{FILTERS}.network.tcp_proxy.v3.TcpProxy"),
            "stat_prefix": ORIGINATE,
            "cluster": ORIGINATE,
            "tunneling_config": {"hostname": "%DOWNSTREAM_LOCAL_ADDRESS%"}}}]}],
    })
}

fn terminating_listener(of_mesh: OfMesh<'_>, ways: &[(SocketAddr, String)]) -> Value {
    let hosts = ways.iter().map(|(authority, listener)| {
        let connect = json!({"match": {"connect_matcher": {}}, "route": {
            "cluster": lead_to(listener), "timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]}});
        json!({"name": listener, "domains": [authority.to_string()], "routes": [connect]})
    });
    let manager = json!({
        "@type": format!("{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager"),
        "codec_type": "AUTO",
        "stat_prefix": TERMINATE,
        "use_remote_address": false,
        "stream_idle_timeout": "0s",
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "http2_protocol_options": {"allow_connect": true, "max_concurrent_streams": STREAMS,
            "connection_keepalive": {"interval": "10s", "timeout": "20s"}},
        "route_config": {"name": "default", "validate_clusters": false,
            "virtual_hosts": hosts.collect::<Vec<_>>()},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": format!("{FILTERS}.http.router.v3.Router")}}]});
    json!({
        "name": TERMINATE,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": {
                "@type": format!("{SOCKETS}.tls.v3.DownstreamTlsContext"),
                "require_client_certificate": true,
                "common_tls_context": common_tls(of_mesh)}},
            "filters": [{"name": "envoy.filters.network.http_connection_manager",
                "typed_config": manager}]}],
    })
}

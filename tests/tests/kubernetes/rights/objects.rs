//! An object of each kind.

use anyhow::{Context as _, Result};
use isobar_objects::{Kind, ObjectRef};
use serde_json::{Value, json};

/// One object of each kind, named x, in the namespace shop.
pub(super) const OBJECTS: &[(Kind, &str)] = &[
    (Kind::Namespace, "{}"),
    (Kind::Node, "{}"),
    (Kind::ServiceAccount, "{}"),
    (
        Kind::Pod,
        "{spec: {nodeName: x, containers: [{name: c, image: i}]}}",
    ),
    (
        Kind::Deployment,
        "{spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}},
          spec: {containers: [{name: c, image: i}]}}}}",
    ),
    (
        Kind::Service,
        "{spec: {ports: [{port: 80}], selector: {a: b}}}",
    ),
    (
        Kind::EndpointSlice,
        "{addressType: IPv4, endpoints: [{addresses: [192.0.2.1]}]}",
    ),
    (Kind::NetworkPolicy, "{spec: {podSelector: {}}}"),
    (
        Kind::VirtualService,
        "{spec: {hosts: [x.example], http: [{route: [{destination: {host: x.example}}]}]}}",
    ),
    (Kind::DestinationRule, "{spec: {host: x.example}}"),
    (
        Kind::ServiceEntry,
        "{spec: {hosts: [x.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}}",
    ),
    (
        Kind::Gateway,
        "{spec: {gatewayClassName: c, listeners: [{name: m, port: 15008, protocol: HBONE}]}}",
    ),
    (
        Kind::GatewayClass,
        "{spec: {controllerName: example.org/c}}",
    ),
    (
        Kind::HttpRoute,
        "{spec: {rules: [{backendRefs: [{name: x, port: 80}]}]}}",
    ),
    (
        Kind::GrpcRoute,
        "{spec: {rules: [{backendRefs: [{name: x, port: 80}]}]}}",
    ),
    (
        Kind::TcpRoute,
        "{spec: {rules: [{backendRefs: [{name: x, port: 80}]}]}}",
    ),
    (
        Kind::TlsRoute,
        "{spec: {hostnames: [x.example], rules: [{backendRefs: [{name: x, port: 80}]}]}}",
    ),
    (Kind::WorkloadEntry, "{spec: {address: 10.9.9.9}}"),
    (
        Kind::IstioGateway,
        "{spec: {selector: {a: b}, servers: [{port: {number: 80, protocol: HTTP}, hosts: [x.example]}]}}",
    ),
    (
        Kind::ReferenceGrant,
        "{spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}],
          to: [{group: '', kind: Service}]}}",
    ),
    (Kind::PeerAuthentication, "{spec: {mtls: {mode: STRICT}}}"),
    (Kind::AuthorizationPolicy, "{spec: {}}"),
    (
        Kind::RateLimitPolicy,
        "{spec: {targetRefs: [{group: '', kind: Service, name: x}], limits: [{name: all, requests: 1, per: 1s}]}}",
    ),
];
/// Kinds that get a status.
pub(super) const TOLD: &[Kind] = &[
    Kind::Service,
    Kind::VirtualService,
    Kind::DestinationRule,
    Kind::ServiceEntry,
    Kind::WorkloadEntry,
    Kind::Gateway,
    Kind::GatewayClass,
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TcpRoute,
    Kind::TlsRoute,
    Kind::AuthorizationPolicy,
    Kind::PeerAuthentication,
    Kind::RateLimitPolicy,
    Kind::IstioGateway,
];
/// Kinds that waypoints are made of.
pub(super) const MADE: &[Kind] = &[Kind::Service, Kind::ServiceAccount, Kind::Deployment];

pub(super) fn object(kind: Kind, name: &str) -> Result<Value> {
    let found = OBJECTS
        .iter()
        .find(|(of, _)| *of == kind)
        .context("an object")?;
    let mut value: Value = serde_saphyr::from_str(found.1)?;
    value["apiVersion"] = json!(kind.api_version());
    value["kind"] = json!(kind.as_str());
    value["metadata"] = json!({ "name": name });
    if kind.is_namespaced() {
        value["metadata"]["namespace"] = json!("shop");
    }
    Ok(value)
}

pub(super) fn named(api_version: &str, kind: &str, namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": api_version, "kind": kind,
        "metadata": { "name": name, "namespace": namespace },
    })
}

pub(super) fn reference(kind: Kind) -> ObjectRef {
    let namespace = if kind.is_namespaced() { "shop" } else { "" };
    ObjectRef::new(kind, namespace, "x")
}

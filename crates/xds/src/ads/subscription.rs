use std::collections::{BTreeMap, HashMap};

use isobar_proto::envoy::config::core::v3::Node;
use isobar_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use isobar_proto::google::rpc::Status;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

use crate::handler::{Rejected, ResourceHandler};
use crate::status::{Applied, SyncStatus};

/// All resources of one type: what is held, in which version.
pub(super) struct Subscription {
    handler: Box<dyn ResourceHandler>,
    /// Name to version of what is in force; survives the stream.
    held: HashMap<String, String>,
}

impl Subscription {
    pub(super) fn new(handler: Box<dyn ResourceHandler>) -> Self {
        Self {
            handler,
            held: HashMap::new(),
        }
    }

    pub(super) fn type_url(&self) -> &'static str {
        self.handler.type_url()
    }

    pub(super) fn is_optional(&self) -> bool {
        self.handler.is_optional()
    }

    /// The first request of a stream: subscribes to everything by naming nothing, and tells what
    /// is held, so that the server sends only the difference.
    pub(super) fn first_request(&self, node: &Node) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            node: Some(node.clone()),
            type_url: self.type_url().to_owned(),
            initial_resource_versions: self
                .held
                .iter()
                .map(|(name, version)| (name.clone(), version.clone()))
                .collect(),
            ..Default::default()
        }
    }

    /// Applies a response and makes its answer.
    pub(super) fn take(
        &mut self,
        response: &DeltaDiscoveryResponse,
        status: &SyncStatus,
    ) -> DeltaDiscoveryRequest {
        let type_url = self.type_url();
        let rejected = self
            .handler
            .apply(&response.resources, &response.removed_resources);
        let mut settled = Vec::with_capacity(response.resources.len());
        let bad: BTreeMap<&str, &str> = rejected
            .iter()
            .map(|r| (r.name.as_str(), r.reason.as_str()))
            .collect();
        for resource in &response.resources {
            // A rejected resource keeps the version that is in force, if any: the server then
            // sends the newer one again, and knows what to remove.
            if !bad.contains_key(resource.name.as_str()) {
                self.held
                    .insert(resource.name.clone(), resource.version.clone());
                settled.push(resource.name.as_str());
            }
        }
        for name in &response.removed_resources {
            self.held.remove(name);
            settled.push(name.as_str());
        }
        status.applied(&Applied {
            type_url,
            resources: self.held.len(),
            bytes: content_bytes(response),
            version: &response.system_version_info,
            nonce: &response.nonce,
            settled,
            rejected: &rejected,
        });
        tracing::debug!(
            type_url,
            nonce = response.nonce,
            updates = response.resources.len(),
            removed = response.removed_resources.len(),
            rejected = rejected.len(),
            "discovery response"
        );
        DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            response_nonce: response.nonce.clone(),
            error_detail: complaint(type_url, &rejected),
            ..Default::default()
        }
    }
}

fn complaint(type_url: &str, rejected: &[Rejected]) -> Option<Status> {
    if rejected.is_empty() {
        return None;
    }
    let parts: Vec<_> = rejected
        .iter()
        .map(|r| format!("{}: {}", r.name, r.reason))
        .collect();
    let message = parts.join("; ");
    tracing::warn!(type_url, "rejected: {message}");
    Some(Status {
        message,
        ..Default::default()
    })
}

fn content_bytes(response: &DeltaDiscoveryResponse) -> usize {
    let contents = response
        .resources
        .iter()
        .filter_map(|r| r.resource.as_ref());
    contents.map(|any| any.value.len()).sum()
}

/// JSON as the protobuf struct of the same meaning.
pub(super) fn metadata(map: &serde_json::Map<String, serde_json::Value>) -> Struct {
    Struct {
        fields: map
            .iter()
            .map(|(key, value)| (key.clone(), protobuf_value(value)))
            .collect(),
    }
}

fn protobuf_value(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(b) => Kind::BoolValue(*b),
        Json::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or(f64::NAN)),
        Json::String(s) => Kind::StringValue(s.clone()),
        Json::Array(list) => Kind::ListValue(ListValue {
            values: list.iter().map(protobuf_value).collect(),
        }),
        Json::Object(map) => Kind::StructValue(metadata(map)),
    };
    Value { kind: Some(kind) }
}

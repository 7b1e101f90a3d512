use std::collections::BTreeSet;

use isobar_proto::envoy::config::core::v3::Node;
use isobar_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use isobar_proto::google::rpc::Status;
use isobar_types::Str;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

use crate::handler::{Rejected, ResourceHandler};
use crate::on_demand::OnDemand;
use crate::saved::Held;
use crate::status::{Applied, SyncStatus};

/// The name that stands for all.
const EVERYTHING: &str = "*";

/// All resources of one type: what is held, in which version.
pub(crate) struct Subscription {
    handler: Box<dyn ResourceHandler>,
    /// Name to version of what is in force; survives the stream.
    held: Held,
    /// Asked for by name, instead of everything.
    on_demand: Option<OnDemand>,
}

impl Subscription {
    pub(crate) fn new(handler: Box<dyn ResourceHandler>) -> Self {
        Self {
            handler,
            held: Held::default(),
            on_demand: None,
        }
    }

    /// From now on names are asked for one by one.
    pub(super) fn ask_by_name(&mut self, on_demand: OnDemand) {
        self.on_demand = Some(on_demand);
    }

    pub(crate) fn type_url(&self) -> &'static str {
        self.handler.type_url()
    }

    pub(super) fn is_optional(&self) -> bool {
        self.handler.is_optional()
    }

    /// What is in force, shared.
    pub(crate) fn held(&self) -> Held {
        self.held.clone()
    }

    /// Takes what was saved earlier, as if it had come from the server. Returns how many resources
    /// are in force now.
    pub(crate) fn restore(&mut self, resources: &[Resource]) -> usize {
        let rejected = self.handler.apply(resources, &[]);
        for Rejected { name, reason } in &rejected {
            tracing::warn!(name, "saved resource ignored: {reason}");
        }
        self.hold(resources, &rejected);
        self.held.lock().len()
    }

    /// A rejected resource keeps the version that is in force, if any: the server then sends the
    /// newer one again, and knows what to remove.
    fn hold(&self, resources: &[Resource], rejected: &[Rejected]) {
        let bad: BTreeSet<&str> = rejected.iter().map(|r| r.name.as_str()).collect();
        let mut held = self.held.lock();
        let mut last = Str::from("");
        for resource in resources {
            let name = resource.name.as_str();
            if bad.contains(name) {
                continue;
            }
            // Servers mostly give what they send together one version.
            if *last != *resource.version {
                last = resource.version.as_str().into();
            }
            if let Some(version) = held.get_mut(name) {
                *version = last.clone();
            } else {
                let stored = self.handler.stored_name(name);
                held.insert(stored.unwrap_or_else(|| name.into()), last.clone());
            }
        }
    }

    /// The first request of a stream: subscribes to everything by naming nothing, and tells what
    /// is held, so that the server sends only the difference. On demand, everything is given up in
    /// the same breath: that leaves what is held, and what is asked for and not held, which has no
    /// version (as Istio's ztunnel does).
    pub(crate) fn first_request(&mut self, node: &Node) -> DeltaDiscoveryRequest {
        self.handler.stream_opened();
        let held = self.held.lock();
        let mut request = DeltaDiscoveryRequest {
            node: Some(node.clone()),
            type_url: self.type_url().to_owned(),
            initial_resource_versions: held
                .iter()
                .map(|(name, version)| (name.to_string(), version.to_string()))
                .collect(),
            ..Default::default()
        };
        if let Some(on_demand) = &self.on_demand {
            request.resource_names_subscribe.push(EVERYTHING.to_owned());
            request
                .resource_names_unsubscribe
                .push(EVERYTHING.to_owned());
            for name in on_demand.on_new_stream() {
                let versions = &mut request.initial_resource_versions;
                versions.entry(name).or_default();
            }
        }
        request
    }

    /// Applies a response and makes its answer.
    pub(crate) fn take(
        &mut self,
        response: &DeltaDiscoveryResponse,
        status: &SyncStatus,
    ) -> DeltaDiscoveryRequest {
        let type_url = self.type_url();
        let rejected = self
            .handler
            .apply(&response.resources, &response.removed_resources);
        self.hold(&response.resources, &rejected);
        let mut held = self.held.lock();
        for name in &response.removed_resources {
            held.remove(name.as_str());
        }
        let resources = held.len();
        drop(held);
        if let Some(on_demand) = &self.on_demand {
            on_demand.take(response);
        }
        let bad: BTreeSet<&str> = rejected.iter().map(|r| r.name.as_str()).collect();
        let good = response.resources.iter().map(|r| r.name.as_str());
        let removed = response.removed_resources.iter().map(String::as_str);
        let settled = good.filter(|name| !bad.contains(name)).chain(removed);
        status.applied(&Applied {
            type_url,
            resources,
            bytes: content_bytes(response),
            version: &response.system_version_info,
            nonce: &response.nonce,
            settled: settled.collect(),
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

/// Longest text about one resource, in characters, and about a response, in bytes: what is wrong may
/// quote what came, and a server refuses a request that is too long.
const LONGEST_REASON: usize = 400;
const LONGEST_COMPLAINT: usize = 32 << 10;

fn complaint(type_url: &str, rejected: &[Rejected]) -> Option<Status> {
    if rejected.is_empty() {
        return None;
    }
    let mut message = String::new();
    for (at, r) in rejected.iter().enumerate() {
        if message.len() > LONGEST_COMPLAINT {
            let more = rejected.len() - at;
            message.push_str(&format!("; and {more} more"));
            break;
        }
        if at > 0 {
            message.push_str("; ");
        }
        let one = format!("{}: {}", r.name, r.reason);
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        message.extend(one.chars().take(LONGEST_REASON).map(plain));
    }
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
pub(crate) fn metadata(map: &serde_json::Map<String, serde_json::Value>) -> Struct {
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

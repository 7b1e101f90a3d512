//! `isobar.dev` RateLimitPolicy: how many requests pass a waypoint in a time.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::duration;
use crate::istio::{HttpMatch, Resource, TargetReference};

/// `isobar.dev` RateLimitPolicy.
pub type RateLimitPolicy = Resource<RateLimitPolicySpec>;

/// What is limited, and how.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RateLimitPolicySpec {
    /// Services, waypoints or all waypoints of a class, as in an AuthorizationPolicy. Besides these it is
    /// about the rules of routes that name it in an ExtensionRef.
    pub target_refs: Vec<TargetReference>,
    /// Each counts on its own, and each must have room.
    pub limits: Vec<RateLimit>,
}

/// One limit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RateLimit {
    /// Name for log and metric.
    pub name: String,
    /// One must match; empty matches every request. The fields of a VirtualService's match.
    #[serde(rename = "match")]
    pub matches: Vec<HttpMatch>,
    /// Names of HTTP rules of VirtualServices; empty means whatever the rule.
    pub routes: Vec<String>,
    /// What separates the counts; empty means one count for all requests.
    pub by: Vec<RateKey>,
    /// Requests in a time.
    pub requests: u32,
    /// The time; one second where it is absent.
    #[serde(with = "duration")]
    pub per: Option<Duration>,
    /// Requests that may come together; as many as `requests` where it is absent.
    pub burst: Option<u32>,
}

/// One thing that separates counts; exactly one field is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RateKey {
    /// Something of the caller.
    pub caller: Option<CallerPart>,
    /// The value of a header.
    pub header: Option<String>,
    /// The value of a query parameter.
    pub query_param: Option<String>,
    /// The path.
    pub path: Option<bool>,
}

/// Part of the caller that separates counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CallerPart {
    /// The identity in its certificate; without one, its address.
    Identity,
    /// The namespace in it.
    Namespace,
    /// Its address.
    Address,
}

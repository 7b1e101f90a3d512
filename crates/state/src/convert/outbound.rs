use std::num::NonZeroU32;
use std::time::Duration;

use isobar_proto::isobar::v1 as wire;
use isobar_types::NamespacedHostname;
use wire::outbound_policy::Kind;

use super::fields::required;
use super::{ConvertError, Interner};
use crate::egress::{ConnectionLimits, OutboundPolicy};

/// Converts an outbound policy.
///
/// # Errors
/// When a field cannot be understood.
pub fn outbound_policy(
    policy: &wire::OutboundPolicy,
    interner: &mut Interner,
) -> Result<OutboundPolicy, ConvertError> {
    match &policy.kind {
        None => Err(ConvertError::Missing {
            field: "kind".to_owned(),
        }),
        Some(Kind::Egress(egress)) => Ok(OutboundPolicy::Egress {
            namespace: interner.intern(&egress.namespace),
            registry_only: egress.registry_only,
        }),
        Some(Kind::Limits(limits)) => Ok(OutboundPolicy::Limits {
            service: NamespacedHostname {
                namespace: required("namespace", &limits.namespace, interner)?,
                hostname: required("hostname", &limits.hostname, interner)?,
            },
            limits: ConnectionLimits {
                max_connections: NonZeroU32::new(limits.max_connections),
                connect_timeout: limits.connect_timeout.and_then(positive),
            },
        }),
    }
}

/// The resource name under which a server announces and removes this policy; empty if the message
/// is empty.
#[must_use]
pub fn outbound_policy_name(policy: &wire::OutboundPolicy) -> String {
    match &policy.kind {
        None => String::new(),
        Some(Kind::Egress(egress)) => format!("egress/{}", egress.namespace),
        Some(Kind::Limits(limits)) => format!("limits/{}/{}", limits.namespace, limits.hostname),
    }
}

/// What is not longer than nothing is no limit.
fn positive(duration: prost_types::Duration) -> Option<Duration> {
    Duration::try_from(duration).ok().filter(|d| !d.is_zero())
}

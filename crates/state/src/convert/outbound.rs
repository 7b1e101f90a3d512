use std::num::NonZeroU32;
use std::time::Duration;

use isobar_proto::isobar::v1 as wire;
use isobar_types::NamespacedHostname;
use wire::outbound_policy::Kind;

use super::fields::{namespace, required};
use super::{ConvertError, Interner};
use crate::egress::{ConnectionLimits, OutboundPolicy};
use crate::outlier::OutlierRule;

/// Default of `outlierDetection.interval`.
const INTERVAL: Duration = Duration::from_secs(10);
/// Default of `outlierDetection.baseEjectionTime`.
const BASE_EJECTION: Duration = Duration::from_secs(30);

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
                namespace: namespace(&limits.namespace, interner)?,
                hostname: required("hostname", &limits.hostname, interner)?,
            },
            limits: ConnectionLimits {
                max_connections: NonZeroU32::new(limits.max_connections),
                connect_timeout: limits.connect_timeout.and_then(positive),
                outliers: limits.outliers.as_ref().and_then(outliers),
            },
        }),
        Some(Kind::Trust(trust)) => {
            let names = trust.domains.iter();
            let names = names.map(|name| required("domains", name, interner));
            Ok(OutboundPolicy::Trust(names.collect::<Result<_, _>>()?))
        }
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
        Some(Kind::Trust(_)) => "trust/".to_owned(),
    }
}

/// Times that are absent are Istio's defaults; without a number of failures there is no rule.
fn outliers(wire: &wire::connection_limits::Outliers) -> Option<OutlierRule> {
    Some(OutlierRule {
        failures: NonZeroU32::new(wire.failures)?,
        interval: wire.interval.and_then(positive).unwrap_or(INTERVAL),
        base_ejection: wire
            .base_ejection
            .and_then(positive)
            .unwrap_or(BASE_EJECTION),
        max_ejected_percent: wire.max_ejected_percent.min(100),
        min_healthy_percent: wire.min_healthy_percent.min(100),
    })
}

/// What is not longer than nothing is no limit.
fn positive(duration: prost_types::Duration) -> Option<Duration> {
    Duration::try_from(duration).ok().filter(|d| !d.is_zero())
}

//! Where spans of requests go, and of which.

use isobar_proto::isobar::v1 as proto;
use isobar_types::Str;

/// What a waypoint does with the traces that requests are part of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracing {
    /// Host name or address of a collector that takes OTLP over gRPC.
    pub host: Str,
    /// Its port.
    pub port: u16,
    /// Traces of a million that are sampled, where nobody before has decided.
    pub per_million: u32,
}

impl Tracing {
    /// As a control plane tells it. What cannot be used is as if it were not there: spans may not stop a waypoint.
    pub(crate) fn compile(from: Option<&proto::Tracing>) -> Option<Self> {
        let from = from?;
        let port = u16::try_from(from.port).ok().filter(|port| *port > 0);
        let port = port.filter(|_| !from.host.is_empty())?;
        Some(Self {
            host: from.host.as_str().into(),
            port,
            per_million: from.per_million.min(1_000_000),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_as_if_it_were_not_there() {
        let told = |host: &str, port, per_million| {
            let from = proto::Tracing {
                host: host.into(),
                port,
                per_million,
            };
            let found = Tracing::compile(Some(&from))?;
            Some((found.port, found.per_million))
        };
        assert_eq!(Tracing::compile(None), None);
        assert_eq!(told("otel", 4317, 10_000), Some((4317, 10_000)));
        assert_eq!(told("otel", 4317, u32::MAX), Some((4317, 1_000_000)));
        for (host, port) in [("", 4317), ("otel", 0), ("otel", 65_536)] {
            assert_eq!(told(host, port, 1), None, "{host} {port}");
        }
    }
}

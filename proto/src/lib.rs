//! Generated messages and nothing else: no conversion and no logic lives here.
//!
//! Packages keep the names they have on the wire, because a type URL is made of them.

#![allow(missing_docs, clippy::all, reason = "generated code")]

/// `istio.*`: what an Istio ztunnel or istiod speaks.
pub mod istio {
    pub mod workload {
        tonic::include_proto!("istio.workload");
        pub mod zds {
            tonic::include_proto!("istio.workload.zds");
        }
    }
    pub mod security {
        tonic::include_proto!("istio.security");
    }
    pub mod v1 {
        pub mod auth {
            tonic::include_proto!("istio.v1.auth");
        }
    }
}

/// `envoy.*`: the discovery transport, and what authorisers are asked.
pub mod envoy {
    pub mod service {
        pub mod auth {
            pub mod v3 {
                tonic::include_proto!("envoy.service.auth.v3");
            }
        }
        pub mod discovery {
            pub mod v3 {
                tonic::include_proto!("envoy.service.discovery.v3");
            }
        }
    }
    pub mod config {
        pub mod core {
            pub mod v3 {
                tonic::include_proto!("envoy.config.core.v3");
            }
        }
    }
}

/// `google.rpc`.
pub mod google {
    pub mod rpc {
        tonic::include_proto!("google.rpc");
    }
}

/// `isobar.v1`: what our waypoints are fed with, and what our node proxies know beyond Istio's.
pub mod isobar {
    pub mod v1 {
        tonic::include_proto!("isobar.v1");
    }
}

/// Type URLs of the resources served over delta discovery.
pub mod type_url {
    pub const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
    pub const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
    pub const WAYPOINT: &str = "type.googleapis.com/isobar.v1.Waypoint";
    pub const CREDENTIAL: &str = "type.googleapis.com/isobar.v1.Credential";
    pub const WORKLOAD_LABELS: &str = "type.googleapis.com/isobar.v1.WorkloadLabels";
    pub const VIRTUAL_SERVICE: &str = "type.googleapis.com/isobar.v1.VirtualService";
    pub const DESTINATION_RULE: &str = "type.googleapis.com/isobar.v1.DestinationRule";
    pub const WAYPOINT_AUTHORIZATION: &str = "type.googleapis.com/isobar.v1.Authorization";
    pub const RATE_LIMIT_POLICY: &str = "type.googleapis.com/isobar.v1.RateLimitPolicy";
    pub const OUTBOUND_POLICY: &str = "type.googleapis.com/isobar.v1.OutboundPolicy";
    /// An extension inside an Authorization, not a resource.
    pub const AUDITED_RULES: &str = "type.googleapis.com/isobar.v1.AuditedRules";
}

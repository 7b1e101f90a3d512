//! Label and annotation keys the mesh reads or writes.

/// Enrolment label on a namespace or pod; values `ambient` and `none`.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// The short form of [`DATAPLANE_MODE`]; where both are present the long one wins.
pub const DATAPLANE_MODE_PLAIN: &str = "dataplane-mode";
/// Value that enrols.
pub const MODE_AMBIENT: &str = "ambient";
/// Value that opts out.
pub const MODE_NONE: &str = "none";

/// Annotation the node agent writes once a pod's traffic is redirected; value `enabled`.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// Annotation that leaves inbound traffic of a pod alone; value `true`.
pub const BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";
/// Annotation that turns DNS capture of a pod on or off; values `true`, `false`.
pub const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
/// Label of workloads that terminate HBONE themselves; contains `http`.
pub const TUNNEL: &str = "networking.istio.io/tunnel";

/// Annotation on an AuthorizationPolicy: `true` has it evaluated and told, and nothing refused.
pub const DRY_RUN: &str = "istio.io/dry-run";

/// Label naming the waypoint to use, on a Service, Pod, Namespace or ServiceAccount; `none` opts out.
pub const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// Label: namespace of the waypoint named by [`USE_WAYPOINT`], where it is another one.
pub const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
/// Label on a Service, ServiceEntry or Namespace: a second waypoint, which takes a share of the calls.
pub const USE_WAYPOINT_CANARY: &str = "istio.io/use-waypoint-canary";
/// Label: namespace of the waypoint named by [`USE_WAYPOINT_CANARY`], where it is another one.
pub const USE_WAYPOINT_CANARY_NAMESPACE: &str = "istio.io/use-waypoint-canary-namespace";
/// Annotation: percentage of calls for the waypoint named by [`USE_WAYPOINT_CANARY`], 0 to 100; 0
/// where it is missing.
pub const USE_WAYPOINT_CANARY_WEIGHT: &str = "istio.io/use-waypoint-canary-weight";
/// Annotation on a Gateway or GatewayClass: how traffic gets into a waypoint that does not end tunnels
/// itself; `NONE` or `PROXY`, each with `/PORT` where one is meant.
pub const INBOUND_BINDING: &str = "ambient.istio.io/waypoint-inbound-binding";
/// Label on a Gateway: which traffic its waypoint takes (`service`, `workload`, `all`, `none`).
pub const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
/// Annotation on a Gateway: the account whose workloads may be bound to it.
pub const FOR_SERVICE_ACCOUNT: &str = "istio.io/for-service-account";
/// Label on a Service, Pod, Namespace or ServiceAccount: `fail-open` lets traffic pass a missing waypoint.
pub const WAYPOINT_FAILURE: &str = "isobar.dev/waypoint-failure";
/// Value of [`WAYPOINT_FAILURE`] that lets traffic pass.
pub const FAIL_OPEN: &str = "fail-open";
/// Annotation the control plane writes on a ServiceAccount when its waypoint binding has taken force.
pub const WAYPOINT_LATCHED: &str = "isobar.dev/waypoint-latched";
/// Label on a Namespace, Pod or Service: `true` makes node proxies refuse what did not come through
/// the object's waypoint, also where it is bound by its Namespace or Service only.
pub const REQUIRE_WAYPOINT: &str = "isobar.dev/require-waypoint";
/// Label on a Namespace: what becomes of its ingress NetworkPolicies inside tunnels; `off`, `audit`
/// or `enforce`.
pub const PORT_RULES: &str = "isobar.dev/port-rules";
/// Label on a Namespace: where its workloads may go; `REGISTRY_ONLY` or `ALLOW_ANY`.
pub const OUTBOUND_TRAFFIC_POLICY: &str = "isobar.dev/outbound-traffic-policy";
/// Label the control plane puts on what it made for a Gateway; the Gateway's name.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// Gateway class of our waypoints.
pub const WAYPOINT_CLASS: &str = "isobar-waypoint";
/// Gateway class of Istio's waypoints, owned only when asked to.
pub const ISTIO_WAYPOINT_CLASS: &str = "istio-waypoint";

/// Gateway class of our gateways at the edge of the mesh.
pub const GATEWAY_CLASS: &str = "isobar";
/// Label on a Service or Namespace: `true` sends what comes through a gateway to the waypoint first.
pub const INGRESS_USE_WAYPOINT: &str = "istio.io/ingress-use-waypoint";

/// Annotation on a pod in the lab: the local program to run instead of an image.
pub const LAB_COMMAND: &str = "lab.isobar.dev/command";

/// Who the control plane is in the status of a route (`status.parents[].controllerName`).
pub const ROUTE_CONTROLLER: &str = "isobar.dev/control-plane";

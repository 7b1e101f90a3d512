//! Names of L4 policies that the control plane makes of other objects. Underscores keep them apart
//! from objects of users, whose names cannot have any.

/// Start of the name of a policy that refuses what did not come through a waypoint.
pub const WAYPOINT: &str = "converted_waypoint_";
/// Start of the name of a policy made of the ingress NetworkPolicies that select a pod.
pub const NETWORK_POLICY: &str = "converted_network_policy_";

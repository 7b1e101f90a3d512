use isobar_types::Str;

/// Settings of the mesh that decide what objects mean.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Trust domain of every identity.
    pub(crate) trust_domain: Str,
    /// Id of this cluster, first part of workload uids.
    pub(crate) cluster_id: Str,
    /// Network every address here belongs to; empty for a cluster's only one.
    pub(crate) network: Str,
    /// Namespace whose policies apply to the whole mesh.
    pub(crate) root_namespace: Str,
    /// DNS suffix of services.
    pub(crate) cluster_domain: Str,
    /// Gateway classes of waypoints this control plane runs.
    pub(crate) waypoint_classes: Vec<String>,
}

impl Settings {
    /// Host name of a Service.
    pub(crate) fn hostname(&self, namespace: &str, name: &str) -> String {
        format!("{name}.{namespace}.svc.{}", self.cluster_domain)
    }
}

use std::path::Path;

use anyhow::{Context, Result};
use isobar_control_plane::Told;
use isobar_proto::isobar::v1 as proto;
use isobar_proto::istio::workload as wire;
use serde_json::{Value, json};

use super::route::Routes;
use super::{authorization, cluster, external_auth};

/// Listeners and clusters of any number of configurations, for one process.
#[derive(Debug, Default)]
pub struct Export {
    pub(super) listeners: Vec<Value>,
    pub(super) clusters: Vec<Value>,
}

/// A kind of call, which gets a listener of its own: Envoy does not know who calls, so that a
/// configuration is made for one caller.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// Namespace of the caller.
    pub namespace: String,
    /// Account of the caller; empty for one from outside the mesh, who has no identity.
    pub account: String,
    /// Full host name of the service that is called.
    pub hostname: String,
    /// Service port.
    pub port: u16,
}

impl Call {
    /// Name of its listener.
    #[must_use]
    pub fn listener(&self, configuration: &str) -> String {
        let Self {
            account,
            hostname,
            port,
            ..
        } = self;
        format!("{configuration}|{account}|{hostname}|{port}")
    }
}

/// Who calls, as a waypoint knows it.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) namespace: String,
    pub(super) account: String,
    pub(super) labels: std::collections::BTreeMap<String, String>,
}

/// The messages of one configuration, as the exporter reads them.
pub(super) struct Mesh<'a> {
    pub(super) name: &'a str,
    pub(super) services: Vec<&'a wire::Service>,
    pub(super) workloads: Vec<&'a wire::Workload>,
    pub(super) virtual_services: Vec<&'a proto::VirtualService>,
    pub(super) destination_rules: &'a [proto::DestinationRule],
    pub(super) authorizations: &'a [proto::Authorization],
    pub(super) labels: &'a [proto::WorkloadLabels],
    paths: proto::PathNormalization,
}

impl Export {
    /// Adds what these calls need of what the waypoint `namespace/name` was told. `name` tells
    /// configurations apart.
    ///
    /// # Panics
    /// When there is no such waypoint, or what it was told has no counterpart here.
    pub fn add(
        &mut self,
        name: &str,
        told: &Told,
        waypoint: &str,
        calls: impl IntoIterator<Item = Call>,
    ) {
        let mesh = Mesh::of(name, told, waypoint);
        self.clusters.extend(cluster::clusters(&mesh));
        for call in calls {
            let caller = mesh.caller(&call.namespace, &call.account);
            self.listeners.push(listener(&mesh, &caller, &call));
        }
    }

    /// Has a line written to `file` for each request, in Envoy's own format.
    pub fn log_requests(&mut self, file: &Path) {
        for listener in &mut self.listeners {
            manager(listener)["access_log"] = json!([{"name": "envoy.access_loggers.file",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                    "path": file}}]);
        }
    }

    /// Has routes read from files in `folder`, which are written here; [`Export::write_routes`] of
    /// another export of the same calls replaces them while Envoy runs.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn read_routes_from(&mut self, folder: &Path) -> Result<()> {
        self.write_routes(folder, 0)?;
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            let manager = manager(listener);
            if let Some(fields) = manager.as_object_mut() {
                fields.remove("route_config");
            }
            manager["rds"] = json!({"route_config_name": "routes", "config_source": {
                "resource_api_version": "V3",
                "path_config_source": {"path": routes_file(folder, index)}}});
        }
        Ok(())
    }

    /// Replaces the routes of all listeners, each at once.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_routes(&mut self, folder: &Path, version: u32) -> Result<()> {
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            let mut routes = manager(listener)["route_config"].clone();
            let kind = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
            routes["@type"] = json!(kind);
            let told = json!({"version_info": version.to_string(), "resources": [routes]});
            let file = routes_file(folder, index);
            let new = file.with_extension("new");
            let written = std::fs::write(&new, told.to_string());
            let moved = written.and_then(|()| std::fs::rename(&new, &file));
            moved.with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(())
    }
}

fn routes_file(folder: &Path, listener: usize) -> std::path::PathBuf {
    folder.join(format!("routes-{listener}.json"))
}

/// The HTTP part of a listener.
fn manager(listener: &mut Value) -> &mut Value {
    &mut listener["filter_chains"][0]["filters"][0]["typed_config"]
}

impl<'a> Mesh<'a> {
    pub(super) fn of(name: &'a str, told: &'a Told, waypoint: &str) -> Self {
        use wire::address::Type;

        let addresses = || told.addresses.iter().filter_map(|a| a.r#type.as_ref());
        let told = &told.waypoints[waypoint];
        let mut virtual_services: Vec<_> = told.virtual_services.iter().collect();
        virtual_services.sort_by_key(|vs| (vs.created, &vs.namespace, &vs.name));
        Self {
            name,
            services: addresses()
                .filter_map(|a| match a {
                    Type::Service(service) => Some(service),
                    Type::Workload(_) => None,
                })
                .collect(),
            workloads: addresses()
                .filter_map(|a| match a {
                    Type::Workload(workload) => Some(workload),
                    Type::Service(_) => None,
                })
                .collect(),
            virtual_services,
            destination_rules: &told.destination_rules,
            authorizations: &told.authorizations,
            labels: &told.labels,
            paths: told.waypoint.path_normalization(),
        }
    }

    fn caller(&self, namespace: &str, account: &str) -> Caller {
        let workload = self
            .workloads
            .iter()
            .find(|w| w.namespace == namespace && w.service_account == account);
        let labels = workload.and_then(|w| self.labels_of(&w.uid));
        Caller {
            namespace: namespace.to_owned(),
            account: account.to_owned(),
            labels: labels.cloned().unwrap_or_default(),
        }
    }

    pub(super) fn labels_of(
        &self,
        uid: &str,
    ) -> Option<&'a std::collections::BTreeMap<String, String>> {
        let found = self.labels.iter().find(|labels| labels.uid == uid);
        found.map(|labels| &labels.labels)
    }

    /// Writes down in the HTTP part of a listener how far paths are normalised.
    pub(super) fn normalise(&self, manager: &mut Value) {
        use proto::PathNormalization as Form;

        let decodes = self.paths == Form::DecodeAndMergeSlashes;
        let merges = decodes || self.paths == Form::MergeSlashes;
        manager["normalize_path"] = json!(self.paths != Form::None);
        manager["merge_slashes"] = json!(merges);
        if decodes {
            manager["path_with_escaped_slashes_action"] = json!("UNESCAPE_AND_FORWARD");
        }
    }

    pub(super) fn service(&self, hostname: &str) -> Option<&'a wire::Service> {
        let mut all = self.services.iter();
        all.find(|service| service.hostname == hostname).copied()
    }
}

fn listener(mesh: &Mesh<'_>, caller: &Caller, call: &Call) -> Value {
    let (service, port) = (&call.hostname, call.port);
    let routes = Routes { mesh, caller, port };
    let mut filters = authorization::filters(mesh, caller, service, port);
    let filter = |name: &str, kind: &str| {
        json!({"name": name, "typed_config": {
            "@type": format!("type.googleapis.com/envoy.extensions.filters.http.{kind}")}})
    };
    filters.push(filter("envoy.filters.http.fault", "fault.v3.HTTPFault"));
    filters.push(filter("envoy.filters.http.cors", "cors.v3.Cors"));
    filters.extend(external_auth::filters(mesh));
    filters.push(filter("envoy.filters.http.router", "router.v3.Router"));
    let host = json!({"name": "inbound|http", "domains": ["*"], "routes": routes.of(service)});
    let mut manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "codec_type": "AUTO",
        "stat_prefix": "oracle",
        "use_remote_address": false,
        "server_name": "istio-envoy",
        "stream_idle_timeout": "0s",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "route_config": {"name": "routes", "validate_clusters": false, "virtual_hosts": [host]},
        "http_filters": filters,
    });
    mesh.normalise(&mut manager);
    json!({
        "name": call.listener(mesh.name),
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
    })
}

use std::collections::BTreeSet;

use isobar_proto::isobar::v1 as proto;
use isobar_proto::istio::workload as wire;
use serde_json::{Value, json};

use super::route::Routes;
use super::{authorization, cluster};
use crate::objects::{NAMESPACE, Resolved, hostname};
use crate::scenario::Configuration;

/// Listeners and clusters of all configurations, for one process.
#[derive(Default)]
pub(crate) struct Export {
    pub(super) listeners: Vec<Value>,
    pub(super) clusters: Vec<Value>,
}

/// Who calls, as a waypoint knows it; Envoy's configuration is made for one caller.
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
}

/// Name of the listener for calls of `caller` to `svc` on `port`.
pub(crate) fn listener_name(configuration: &str, caller: &str, port: u16) -> String {
    format!("{configuration}|{caller}|{port}")
}

impl Export {
    /// Adds what one configuration needs.
    pub(crate) fn add(&mut self, configuration: &Configuration, resolved: &Resolved) {
        let mesh = Mesh::of(&configuration.name, resolved);
        self.clusters.extend(cluster::clusters(&mesh));
        let calls: BTreeSet<(&str, u16)> = configuration
            .cases
            .iter()
            .map(|case| (case.caller.as_str(), configuration.port_of(case)))
            .collect();
        for (account, port) in calls {
            let own = configuration.callers.get(account);
            let namespace = own.and_then(|caller| caller.namespace.as_deref());
            let caller = mesh.caller(namespace.unwrap_or(NAMESPACE), account);
            let listener = listener(&mesh, &caller, port);
            self.listeners.push(listener);
        }
    }
}

impl<'a> Mesh<'a> {
    fn of(name: &'a str, resolved: &'a Resolved) -> Self {
        use wire::address::Type;

        let told = resolved.waypoint();
        let addresses = || {
            resolved
                .told
                .addresses
                .iter()
                .filter_map(|a| a.r#type.as_ref())
        };
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

    pub(super) fn service(&self, hostname: &str) -> Option<&'a wire::Service> {
        let mut all = self.services.iter();
        all.find(|service| service.hostname == hostname).copied()
    }
}

fn listener(mesh: &Mesh<'_>, caller: &Caller, port: u16) -> Value {
    let service = hostname("svc");
    let routes = Routes { mesh, caller, port };
    let mut filters = authorization::filters(mesh, caller, &service, port);
    let filter = |name: &str, kind: &str| {
        json!({"name": name, "typed_config": {
            "@type": format!("type.googleapis.com/envoy.extensions.filters.http.{kind}")}})
    };
    filters.push(filter("envoy.filters.http.fault", "fault.v3.HTTPFault"));
    filters.push(filter("envoy.filters.http.cors", "cors.v3.Cors"));
    filters.push(filter("envoy.filters.http.router", "router.v3.Router"));
    let host = json!({"name": "inbound|http", "domains": ["*"], "routes": routes.of(&service)});
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "codec_type": "AUTO",
        "stat_prefix": "oracle",
        "normalize_path": true,
        "use_remote_address": false,
        "server_name": "istio-envoy",
        "stream_idle_timeout": "0s",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "route_config": {"name": "routes", "validate_clusters": false, "virtual_hosts": [host]},
        "http_filters": filters,
    });
    json!({
        "name": listener_name(mesh.name, &caller.account, port),
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
    })
}

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use isobar_objects::{ObjectRef, is_trust_domain, mesh_config_of};
use isobar_types::labels;

use crate::model::{OutboundTraffic, PortRules};
use crate::revision::Revision;

/// The control plane of the mesh.
#[derive(Debug, Clone, Parser)]
#[command(name = "isobard", version, about, long_about = None)]
pub struct Config {
    /// Check the objects in these directories or files, print what is wrong, and exit: 0 if
    /// everything is valid, 1 if not
    #[arg(long, value_name = "PATH", num_args = 1.., conflicts_with_all = ["objects", "kubernetes"])]
    pub validate: Vec<PathBuf>,

    /// Take objects from the Kubernetes API server that KUBECONFIG names, or else from that of the pod
    /// this runs in; review tokens with it, keep the authority in it, and write statuses to it
    #[arg(long, conflicts_with_all = ["objects", "overlay", "token_keys", "token_issuer"])]
    pub kubernetes: bool,

    /// Directory of YAML objects; may be given several times
    #[arg(long, value_name = "DIR", required_unless_present_any = ["validate", "kubernetes"])]
    pub objects: Vec<PathBuf>,

    /// Directory of overlays, beside the objects; this process writes below `control-plane/` in it
    #[arg(long, value_name = "DIR", required_unless_present_any = ["validate", "kubernetes"])]
    pub overlay: Option<PathBuf>,

    /// Directory for the root certificate and its key, and for the last good version of every
    /// object, which is what counts when this starts while a file is broken
    #[arg(long, value_name = "DIR", required_unless_present = "validate")]
    pub state_dir: Option<PathBuf>,

    /// Directory with an intermediate to sign with (ca-cert.pem, ca-key.pem, cert-chain.pem,
    /// root-cert.pem), instead of a root of our own
    #[arg(long, value_name = "DIR")]
    pub ca_dir: Option<PathBuf>,

    /// Address for discovery and certificates, over TLS
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:15012")]
    pub listen: SocketAddr,

    /// Address for health, metrics and debug pages
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:15014")]
    pub monitoring: SocketAddr,

    /// Further address, for probes only: /ready, as Istio has it on 8080
    #[arg(long, value_name = "IP:PORT")]
    pub health: Option<SocketAddr>,

    /// Address for the admission webhook, over TLS: the API server asks there before it stores an
    /// object
    #[arg(long, value_name = "IP:PORT", requires = "kubernetes")]
    pub webhook: Option<SocketAddr>,

    /// ValidatingWebhookConfiguration that the webhook is registered in; it has to be there
    #[arg(long, value_name = "NAME", default_value = "isobar-validator")]
    pub webhook_configuration: String,

    /// Where the API server finds the webhook; by default port 443 of the Service isobard in the root
    /// namespace
    #[arg(long, value_name = "URL")]
    pub webhook_url: Option<String>,

    /// What becomes of objects that the API server cannot ask about, once it was seen to ask: Fail
    /// refuses them, Ignore lets them in
    #[arg(
        long,
        value_name = "POLICY",
        default_value = "Fail",
        value_parser = ["Fail", "Ignore"]
    )]
    pub webhook_failure_policy: String,

    /// Name of this control plane where there are several: with one, only objects of Istio's API whose
    /// label istio.io/rev has it, or that have no such label, count
    #[arg(long, env = "REVISION", default_value = "")]
    pub revision: String,

    /// Another name of the revision, for Gateways of waypoints; may be given several times
    #[arg(long, value_name = "TAG")]
    pub revision_tag: Vec<String>,

    /// Label selectors, a YAML list: only objects of namespaces that one of them takes count. Where they
    /// are not given a MeshConfig may have some
    #[arg(long, env = "DISCOVERY_SELECTORS", value_name = "YAML")]
    pub discovery_selectors: Option<String>,

    /// Run waypoints beside Istio's own control plane and do nothing else: certify nobody, serve no
    /// node proxy, write nothing on objects of others
    #[arg(long, requires = "kubernetes")]
    pub waypoints_only: bool,

    /// With --waypoints-only: where waypoints get their certificates
    #[arg(
        long,
        value_name = "URL",
        default_value = "https://istiod.istio-system.svc:15012"
    )]
    pub authority_address: String,

    /// Namespace of this control plane itself; by default the root namespace
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE")]
    pub namespace: Option<String>,

    /// JSON Web Key Set that verifies bound service account tokens
    #[arg(long, value_name = "FILE", required_unless_present_any = ["validate", "kubernetes"])]
    pub token_keys: Option<PathBuf>,

    /// Issuer the tokens must have; any if not given
    #[arg(long, value_name = "URL")]
    pub token_issuer: Option<String>,

    /// Further name or address in the server certificate; may be given several times
    #[arg(long, value_name = "NAME_OR_IP")]
    pub tls_san: Vec<String>,

    /// Trust domain of every identity
    #[arg(long, env = "TRUST_DOMAIN", default_value = isobar_types::DEFAULT_TRUST_DOMAIN)]
    pub trust_domain: String,

    /// Another name that the trust domain has, as while it is renamed: peers may show it, and policies
    /// that name one of the names mean all; may be given several times
    #[arg(
        long,
        env = "TRUST_DOMAIN_ALIASES",
        value_name = "DOMAIN",
        value_delimiter = ',',
        value_parser = trust_domain
    )]
    pub trust_domain_alias: Vec<String>,

    /// Id of this cluster
    #[arg(long, env = "CLUSTER_ID", default_value = isobar_types::DEFAULT_CLUSTER_ID)]
    pub cluster_id: String,

    /// Network of this cluster's addresses
    #[arg(long, env = "NETWORK", default_value = "")]
    pub network: String,

    /// Namespace whose policies apply to the whole mesh
    #[arg(long, env = "ROOT_NAMESPACE", default_value = isobar_types::DEFAULT_ROOT_NAMESPACE)]
    pub root_namespace: String,

    /// Account that may ask for certificates of the pods on its node, as NAMESPACE/ACCOUNT
    #[arg(
        long,
        env = "CA_TRUSTED_NODE_ACCOUNTS",
        value_delimiter = ',',
        default_value = "istio-system/ztunnel"
    )]
    pub trusted_node_account: Vec<String>,

    /// Gateway class that is a waypoint run by this control plane; may be given several times
    #[arg(long, value_name = "CLASS", default_value = labels::WAYPOINT_CLASS)]
    pub waypoint_class: Vec<String>,

    /// Make the GatewayClass of waypoints again, as it was, when somebody deletes it
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = true,
        action = clap::ArgAction::Set
    )]
    pub gateway_class: bool,

    /// What becomes of ingress NetworkPolicies inside tunnels, in namespaces whose label
    /// isobar.dev/port-rules does not say: callers in the mesh arrive on port 15008, so without it
    /// every port of a pod is open to them
    #[arg(
        long,
        env = "PORT_RULES",
        value_name = "MODE",
        default_value = "enforce"
    )]
    pub port_rules: PortRules,

    /// Where workloads may go, in namespaces whose label isobar.dev/outbound-traffic-policy does not
    /// say: anywhere, or to services and workloads of the mesh only. Where it is not given a MeshConfig
    /// says so, and else it is anywhere
    #[arg(long, env = "OUTBOUND_TRAFFIC_POLICY", value_name = "MODE")]
    pub outbound_traffic_policy: Option<OutboundTraffic>,

    /// Have node proxies let a waypoint in to the workloads behind it by a policy of their own: whoever
    /// else calls such a workload directly then needs an ALLOW policy too
    #[arg(long, env = "PILOT_AUTO_ALLOW_WAYPOINT_POLICY")]
    pub auto_allow_waypoint_policy: bool,

    /// Image of the waypoints' Deployments
    #[arg(long, default_value = "isobar/waypoint")]
    pub waypoint_image: String,

    /// What to log: a level, or TARGET=LEVEL, separated by commas
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log_level: String,

    /// `text` or `json`
    #[arg(long, env = "LOG_FORMAT", default_value = "text")]
    pub log_format: String,
}

impl Config {
    /// Namespace of this control plane itself.
    pub(crate) fn own_namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or(&self.root_namespace)
    }

    /// The discovery selectors, as text.
    pub(crate) fn selectors(&self) -> Option<&str> {
        let text = self.discovery_selectors.as_deref().map(str::trim);
        text.filter(|text| !text.is_empty())
    }

    /// The ConfigMap of the MeshConfig.
    pub(crate) fn mesh_config(&self) -> ObjectRef {
        let revision = Revision::of(self);
        mesh_config_of(self.own_namespace(), revision.own_name())
    }
}

/// A name of the trust domain; an empty one, as an environment may have, says nothing.
fn trust_domain(text: &str) -> Result<String, String> {
    match text.trim() {
        name if name.is_empty() || is_trust_domain(name) => Ok(name.to_owned()),
        _ => Err(
            "no trust domain: lower-case letters, digits, \".\", \"-\", \"_\", at most 255"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_the_trust_domain_is_judged_before_anything_starts() {
        let read = |alias: &str| {
            let flag = format!("--trust-domain-alias={alias}");
            Config::try_parse_from(["isobard", "--kubernetes", "--state-dir=/state", &flag])
        };
        let found = read("old.example, a-b_c").unwrap().trust_domain_alias;
        assert_eq!(found, ["old.example", "a-b_c"]);
        for wrong in ["Old.Example", "a,b/c", "spiffe://a"] {
            let error = read(wrong).map(drop).unwrap_err().to_string();
            assert!(error.contains("no trust domain"), "{error}");
        }
    }
}

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Ports that some pods open to callers from outside the mesh.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewaySpec {
    /// Labels of the pods, of any namespace.
    pub selector: BTreeMap<String, String>,
    /// The ports.
    pub servers: Vec<Server>,
}

/// A port, and the hosts that are shown there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Server {
    /// The port.
    pub port: ServerPort,
    /// Address to listen on.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub bind: String,
    /// Hosts, each with the namespace its rules may come from: `ns/host`, `./host`, `*/host`.
    pub hosts: Vec<String>,
    /// How TLS ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServerTls>,
    /// Means nothing anywhere.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub default_endpoint: String,
    /// Name for logs.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
}

/// The port of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerPort {
    /// Port of the Service in front of the pods.
    pub number: u32,
    /// `HTTP`, `HTTPS`, `HTTP2`, `GRPC`, `TLS`, `TCP`.
    pub protocol: String,
    /// Name.
    pub name: String,
    /// Means nothing any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u32>,
}

/// How TLS of a server ends.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerTls {
    /// Sends callers to https.
    pub https_redirect: bool,
    /// Whether and how TLS ends here.
    pub mode: ServerTlsMode,
    /// A file in the pods.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub server_certificate: String,
    /// A file in the pods.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub private_key: String,
    /// A file in the pods.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ca_certificates: String,
    /// A file in the pods.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ca_crl: String,
    /// Secret in the namespace of the pods.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub credential_name: String,
    /// Several of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub credential_names: Vec<String>,
    /// Secret with the authority of callers.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ca_cert_credential_name: String,
    /// Files in the pods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tls_certificates: Vec<Value>,
    /// Names that callers' certificates may have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<String>,
    /// Hashes of keys that callers may have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verify_certificate_spki: Vec<String>,
    /// Hashes of certificates that callers may have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verify_certificate_hash: Vec<String>,
    /// Oldest version.
    pub min_protocol_version: TlsVersion,
    /// Newest version.
    pub max_protocol_version: TlsVersion,
    /// Suites of TLS 1.2.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cipher_suites: Vec<String>,
}

/// Whether and how TLS ends at a gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ServerTlsMode {
    /// It is passed on by its server name.
    #[default]
    Passthrough,
    /// It ends, callers need no certificate.
    Simple,
    /// It ends, callers need a certificate.
    Mutual,
    /// It is passed on to the service of that name, without rules.
    AutoPassthrough,
    /// It ends, callers need a certificate of the mesh.
    IstioMutual,
    /// It ends, callers may have a certificate.
    OptionalMutual,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TlsVersion {
    /// Whatever is usual.
    #[default]
    #[serde(rename = "TLS_AUTO")]
    Auto,
    /// 1.0.
    #[serde(rename = "TLSV1_0")]
    V1_0,
    /// 1.1.
    #[serde(rename = "TLSV1_1")]
    V1_1,
    /// 1.2.
    #[serde(rename = "TLSV1_2")]
    V1_2,
    /// 1.3.
    #[serde(rename = "TLSV1_3")]
    V1_3,
}

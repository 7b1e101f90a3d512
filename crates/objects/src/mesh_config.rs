//! Istio's MeshConfig, from the key `mesh` of a ConfigMap: what of it is honoured, and what is not.

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::kinds::{Kind, ObjectRef};
use crate::mesh_lines::LineEncoding;
use crate::mesh_paths::PathNormalization;
use crate::selectors;
use crate::strict::{self, Strict, UnknownField};

/// Name of the ConfigMap, with the revision after it where there is one.
const NAME: &str = "istio";

/// Key of the ConfigMap that holds it, as YAML.
pub const MESH_KEY: &str = "mesh";

/// What is honoured of a MeshConfig. Absent fields say nothing.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshConfig {
    /// Trust domain; it is not taken from here, and has to be that of the control plane.
    pub trust_domain: Option<String>,
    /// Other names of the trust domain.
    pub trust_domain_aliases: Vec<String>,
    /// Root namespace; as the trust domain.
    pub root_namespace: Option<String>,
    /// Which namespaces count, one of these; all without any.
    pub discovery_selectors: Vec<LabelSelector>,
    /// Where workloads may go.
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    /// Who may see which ServiceEntries.
    pub service_entry_visibility: Option<EntryVisibilities>,
    /// Where waypoints' lines go; nowhere where it is empty.
    pub access_log_file: Option<String>,
    /// What is in a line, in Envoy's words.
    pub access_log_format: Option<String>,
    /// How lines are written.
    pub access_log_encoding: Option<LineEncoding>,
    /// How far paths are normalised.
    pub path_normalization: PathNormalization,
    /// Unless it says no, there are spans where the rest says where they go.
    pub enable_tracing: Option<bool>,
    /// Parts outside the mesh that it may use; each is looked at by itself.
    pub extension_providers: Value,
    /// Which of those are used for what.
    pub default_providers: Value,
    /// Settings of proxies.
    pub default_config: Value,
}

/// Where workloads may go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutboundTrafficPolicy {
    /// To services of the mesh, or anywhere; anywhere where it is absent.
    pub mode: Option<OutboundMode>,
}

/// Words for where workloads may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundMode {
    /// Anywhere.
    AllowAny,
    /// To services and workloads of the mesh only.
    RegistryOnly,
}

/// Who may see ServiceEntries, by their namespaces.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EntryVisibilities {
    /// Where no policy is about the namespace.
    pub default_visibility: EntryVisibility,
    /// The first whose rules all take the namespace counts.
    pub policies: Vec<EntryPolicy>,
}

/// Who may see the ServiceEntries of some namespaces.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EntryPolicy {
    /// Who.
    pub visibility: EntryVisibility,
    /// Of which namespaces; of all without any rule.
    pub matching_rules: Vec<EntryRule>,
}

/// Which namespaces; one that says nothing takes none.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EntryRule {
    /// By labels.
    pub namespace_selector: Option<LabelSelector>,
}

/// Who may see a ServiceEntry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EntryVisibility {
    /// Everybody.
    #[default]
    #[serde(alias = "UNSPECIFIED")]
    Public,
    /// Its own namespace.
    Namespace,
    /// Nobody.
    None,
}

impl EntryVisibilities {
    /// Who may see ServiceEntries of a namespace with these labels.
    #[must_use]
    pub fn of(&self, labels: &std::collections::BTreeMap<String, String>) -> EntryVisibility {
        let takes = |rule: &EntryRule| {
            let selector = rule.namespace_selector.as_ref();
            selector.is_some_and(|selector| selectors::selects(selector, labels))
        };
        let mut all = self.policies.iter();
        let first = all.find(|policy| policy.matching_rules.iter().all(takes));
        first.map_or(self.default_visibility, |policy| policy.visibility)
    }
}

/// Fields that change nothing that this mesh does, whatever they say: parts of Istio that are not here.
const WITHOUT_MEANING: &[&str] = &[
    "configSources",
    "defaultProviders",
    "enablePrometheusMerge",
    "ingressClass",
    "ingressControllerMode",
    "ingressSelector",
    "ingressService",
    "mixerCheckServer",
    "mixerReportServer",
];
/// Fields of `defaultConfig` of which the same is true: Istio's own installation writes them.
const PROXY_WITHOUT_MEANING: &[&str] = &["discoveryAddress", "image", "proxyMetadata"];

/// Fields that are honoured.
const HONOURED: &[&str] = &[
    "accessLogEncoding",
    "accessLogFile",
    "accessLogFormat",
    "discoverySelectors",
    "enableTracing",
    // Each of them that is not: as in `MeshConfig::read_traces`.
    "extensionProviders",
    "outboundTrafficPolicy",
    "pathNormalization",
    "rootNamespace",
    "serviceEntryVisibility",
    "trustDomain",
    "trustDomainAliases",
];

/// Of these, those that narrow something.
const NARROWING: &[&str] = &[
    "discoverySelectors",
    "pathNormalization",
    "serviceEntryVisibility",
];

/// What a field is that is not honoured.
pub(crate) const NOT_HONOURED: &str = "a setting for the whole mesh";

/// A MeshConfig, and what of it is not honoured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReadMeshConfig {
    /// What is honoured.
    pub config: MeshConfig,
    /// Fields that are not, as paths in it.
    pub ignored: Vec<String>,
    /// Fields that nobody knows where one that is misspelt would open something.
    pub(crate) unknown: Vec<UnknownField>,
}

/// True for a ConfigMap that may be read as one: by Istio's name for it, and with the key.
pub(crate) fn is_one(name: &str, value: &Value) -> bool {
    let of_istio = name == NAME || name.starts_with("istio-");
    of_istio
        && value
            .get("data")
            .is_some_and(|data| data.get(MESH_KEY).is_some())
}

/// What stands for one that is not valid and was not seen before: whoever wrote it may have meant that
/// nobody goes anywhere else, and where there is a word of paths, that no policy is passed by another
/// spelling of one.
pub(crate) fn closed(value: &Value) -> Option<ConfigMap> {
    let metadata = ObjectMeta::deserialize(value.get("metadata")?).ok()?;
    let name = metadata.name.as_deref().unwrap_or_default();
    let written = value.get("data").and_then(|data| data.get(MESH_KEY));
    let written = written.and_then(Value::as_str).unwrap_or_default();
    let mut text = "outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n".to_owned();
    if written.contains("pathNormalization") {
        text.push_str("pathNormalization: {normalization: DECODE_AND_MERGE_SLASHES}\n");
    }
    is_one(name, value).then(|| ConfigMap {
        data: Some([(MESH_KEY.to_owned(), text)].into()),
        metadata,
        ..ConfigMap::default()
    })
}

/// The ConfigMap of the control plane whose name, where it has one, is `revision`.
#[must_use]
pub fn mesh_config_of(namespace: &str, revision: Option<&str>) -> ObjectRef {
    let name = revision.map_or(NAME.to_owned(), |revision| format!("{NAME}-{revision}"));
    ObjectRef::new(Kind::ConfigMap, namespace, &name)
}

impl MeshConfig {
    /// Reads the one of a ConfigMap; `None` without the key.
    ///
    /// # Errors
    /// A sentence, when the text is no MeshConfig.
    pub fn read(map: &ConfigMap) -> Result<Option<ReadMeshConfig>, String> {
        let text = map.data.as_ref().and_then(|data| data.get(MESH_KEY));
        let Some(text) = text.filter(|text| !text.trim().is_empty()) else {
            return Ok(None);
        };
        let value: Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        let fields = match without_nulls(value) {
            Value::Object(fields) => fields,
            Value::Null => return Ok(None),
            _ => return Err("not a map of fields".to_owned()),
        };
        let ignored = ignored(&fields);
        let value = Value::Object(fields);
        let unknown = unknown(&value);
        let config = Self::deserialize(value).map_err(|error| error.to_string())?;
        if let Some(alias) = config
            .trust_domain_aliases
            .iter()
            .find(|one| !is_trust_domain(one))
        {
            return Err(format!(
                "trustDomainAliases: {alias:?} is no trust domain: lower-case letters, digits, \".\", \"-\", \"_\""
            ));
        }
        Ok(Some(ReadMeshConfig {
            config,
            ignored,
            unknown,
        }))
    }
}

/// Fields that say `null` say nothing (protobuf's JSON mapping): templates write them.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let said = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(
                said.map(|(name, value)| (name, without_nulls(value)))
                    .collect(),
            )
        }
        Value::Array(values) => Value::Array(values.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

fn ignored(fields: &Map<String, Value>) -> Vec<String> {
    let mut all = Vec::new();
    for (name, value) in fields {
        let known = HONOURED.contains(&name.as_str()) || WITHOUT_MEANING.contains(&name.as_str());
        match (name.as_str(), value) {
            ("defaultConfig", Value::Object(proxy)) => {
                let told = proxy.keys();
                let told = told.filter(|name| {
                    *name != "tracing" && !PROXY_WITHOUT_MEANING.contains(&name.as_str())
                });
                all.extend(told.map(|name| format!("defaultConfig.{name}")));
            }
            ("outboundTrafficPolicy", Value::Object(policy)) => {
                let told = policy.keys().filter(|name| *name != "mode");
                all.extend(told.map(|name| format!("outboundTrafficPolicy.{name}")));
            }
            _ if known => {}
            _ => all.push(name.clone()),
        }
    }
    all
}

/// Fields that no type has, within those that say who counts, who sees what, and what policies see: a
/// selector without the condition that was meant takes everything.
fn unknown(value: &Value) -> Vec<UnknownField> {
    let strict = Strict::default();
    // What has another type is told by whoever reads the same for good.
    let _read: Option<MeshConfig> = strict::from_value(value, &strict);
    let (mut unknown, _) = strict.into_parts();
    let narrows = |path: &str| NARROWING.iter().any(|field| path.starts_with(field));
    unknown.retain(|field| narrows(&field.path) && field.path != field.name);
    unknown
}

/// True for what a trust domain may be called.
#[must_use]
pub fn is_trust_domain(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    !text.is_empty() && text.len() <= 255 && text.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn read(text: &str) -> Result<Option<ReadMeshConfig>, String> {
        let map = ConfigMap {
            data: Some(BTreeMap::from([(MESH_KEY.to_owned(), text.to_owned())])),
            ..ConfigMap::default()
        };
        MeshConfig::read(&map)
    }

    #[test]
    fn what_istio_itself_writes_says_nothing_that_is_not_honoured() {
        let text = "
defaultConfig:
  discoveryAddress: istiod.istio-system.svc:15012
defaultProviders: {metrics: [prometheus]}
enablePrometheusMerge: true
rootNamespace: istio-system
trustDomain: cluster.local
trustDomainAliases: [old.example]
outboundTrafficPolicy: {mode: REGISTRY_ONLY}
discoverySelectors:
- matchLabels: {mesh: 'yes'}
";
        let found = read(text).unwrap().unwrap();
        assert!(found.ignored.is_empty(), "{:?}", found.ignored);
        let config = found.config;
        assert_eq!(config.trust_domain_aliases, ["old.example"]);
        assert_eq!(config.discovery_selectors.len(), 1);
        let mode = config.outbound_traffic_policy.unwrap().mode;
        assert_eq!(mode, Some(OutboundMode::RegistryOnly));
        assert_eq!(read("").unwrap(), None);
        assert_eq!(MeshConfig::read(&ConfigMap::default()).unwrap(), None);
    }

    #[test]
    fn what_is_not_honoured_is_named_by_its_field() {
        let text = "
accessLogFile: /dev/stdout
meshMTLS: {}
extensionProviders: [{name: x}]
defaultConfig: {holdApplicationUntilProxyStarts: true, proxyMetadata: {}}
outboundTrafficPolicy: {tls: {}}
pathNormalization: {normalization: MERGE_SLASHES}
pathNormalisation: {}
";
        let mut ignored = read(text).unwrap().unwrap().ignored;
        ignored.sort();
        let expect = [
            "defaultConfig.holdApplicationUntilProxyStarts",
            "meshMTLS",
            "outboundTrafficPolicy.tls",
            "pathNormalisation",
        ];
        assert_eq!(ignored, expect);
    }

    #[test]
    fn fields_that_would_open_something_are_not_overlooked() {
        let text = "
discoverySelectors: [{matchLabel: {a: b}}, {matchExpressions: [{key: a, operator: In, value: [b]}]}]
discoverySelectorz: []
pathNormalization: {normalisation: MERGE_SLASHES}
serviceEntryVisibility:
  defaultVisibilty: NONE
  policies:
  - {visibility: NONE, matchingRules: [{namespaceSelecter: {}}], matchRules: []}
";
        let found = read(text).unwrap().unwrap();
        let mut unknown: Vec<_> = found.unknown.iter().map(|one| one.path.as_str()).collect();
        unknown.sort_unstable();
        let expect = [
            "discoverySelectors[0].matchLabel",
            "discoverySelectors[1].matchExpressions[0].value",
            "pathNormalization.normalisation",
            "serviceEntryVisibility.defaultVisibilty",
            "serviceEntryVisibility.policies[0].matchRules",
            "serviceEntryVisibility.policies[0].matchingRules[0].namespaceSelecter",
        ];
        assert_eq!(unknown, expect);
        assert_eq!(found.ignored, ["discoverySelectorz"]);
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        for (text, why) in [
            ("- a", "not a map"),
            ("outboundTrafficPolicy: {mode: SOMEWHERE}", "SOMEWHERE"),
            ("trustDomainAliases: [Old.Example]", "Old.Example"),
            ("trustDomainAliases: old", "sequence"),
            (
                "pathNormalization: {normalization: MERGE_SLASH}",
                "pathNormalization.normalization: \"MERGE_SLASH\" is none of NONE, BASE",
            ),
            ("pathNormalization: MERGE_SLASHES", "MERGE_SLASHES"),
            ("a: [", ""),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn paths_are_normalised_as_far_as_it_says() {
        use isobar_route::path::Normalization;

        let of = |text: &str| {
            let found = read(text).unwrap().unwrap();
            assert!(found.ignored.is_empty() && found.unknown.is_empty());
            found.config.path_normalization.normalization.0
        };
        for (word, expect) in [
            ("{}", Normalization::Base),
            ("{normalization: DEFAULT}", Normalization::Base),
            ("{normalization: null}", Normalization::Base),
            ("null", Normalization::Base),
            ("{normalization: NONE}", Normalization::None),
            (
                "{normalization: MERGE_SLASHES}",
                Normalization::MergeSlashes,
            ),
        ] {
            assert_eq!(of(&format!("pathNormalization: {word}")), expect);
        }
        assert_eq!(of("trustDomainAliases: []"), Normalization::Base);
        let closed = |mesh: &str| {
            let value = serde_json::json!({
                "metadata": {"name": "istio"}, "data": {"mesh": mesh}});
            let found = MeshConfig::read(&closed(&value).unwrap()).unwrap();
            found.unwrap().config.path_normalization.normalization.0
        };
        let strictest = Normalization::DecodeAndMergeSlashes;
        assert_eq!(closed("pathNormalization: {normalization: X}"), strictest);
        assert_eq!(closed("outboundTrafficPolicy: X"), Normalization::Base);
    }

    #[test]
    fn the_first_policy_about_a_namespace_says_who_sees_its_entries() {
        let text = "
serviceEntryVisibility:
  defaultVisibility: NAMESPACE
  policies:
  - visibility: NONE
    matchingRules: [{}]
  - visibility: PUBLIC
    matchingRules: [{namespaceSelector: {matchLabels: {team: platform}}}]
  - visibility: NONE
    matchingRules: [{namespaceSelector: {matchLabels: {mesh: none}}}]
";
        let found = read(text).unwrap().unwrap().config;
        let visible = found.service_entry_visibility.unwrap();
        for (label, expect) in [
            (("team", "platform"), EntryVisibility::Public),
            (("mesh", "none"), EntryVisibility::None),
            (("a", "b"), EntryVisibility::Namespace),
        ] {
            let labels = BTreeMap::from([(label.0.to_owned(), label.1.to_owned())]);
            assert_eq!(visible.of(&labels), expect, "{label:?}");
        }
    }
}

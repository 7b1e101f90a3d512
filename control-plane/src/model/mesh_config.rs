//! Settings that Istio's MeshConfig has, and what is told about it. What the control plane was started with
//! counts before it.

use std::borrow::Cow;

use isobar_objects::{MeshConfig, ObjectRef, ObjectSet, OutboundMode};

use super::settings::{OutboundTraffic, Settings};
use super::verdict::{Severity, Verdict};

const CONDITION: &str = "Accepted";

impl Settings {
    /// The settings in force, with what the MeshConfig among the objects says.
    pub(crate) fn in_force(&self, set: &ObjectSet) -> Cow<'_, Self> {
        let Some(mesh) = found(set, &self.mesh_config) else {
            return Cow::Borrowed(self);
        };
        let mut all = self.clone();
        all.lines = mesh.lines();
        all.paths = mesh.path_normalization.normalization.0;
        all.traces = mesh.traces();
        if all.trust_domain_aliases.is_empty() {
            let aliases = mesh.trust_domain_aliases.iter();
            all.trust_domain_aliases = aliases.map(|one| one.as_str().into()).collect();
        }
        let mode = mesh.outbound_traffic_policy.and_then(|policy| policy.mode);
        if let Some(mode) = mode.filter(|_| !all.given.outbound) {
            all.outbound = outbound(mode);
        }
        all.entry_visibilities = mesh.service_entry_visibility;
        Cow::Owned(all)
    }
}

/// The MeshConfig among the objects.
pub(crate) fn found(set: &ObjectSet, of: &ObjectRef) -> Option<MeshConfig> {
    let map = set.config_maps.get(&of.namespace, &of.name)?;
    // One that cannot be read was told when it came, and is not in the set.
    Some(MeshConfig::read(map).ok()??.config)
}

const fn outbound(mode: OutboundMode) -> OutboundTraffic {
    match mode {
        OutboundMode::AllowAny => OutboundTraffic::AllowAny,
        OutboundMode::RegistryOnly => OutboundTraffic::RegistryOnly,
    }
}

/// What of it does not count, and why; `own` is what the control plane was started with.
pub(super) fn tell(set: &ObjectSet, own: &Settings, verdicts: &mut Vec<Verdict>) {
    let Some(mesh) = found(set, &own.mesh_config) else {
        return;
    };
    let mut told = Vec::new();
    let mut fixed = |field: &str, asked: &Option<String>, ours: &str, way: &str| {
        if let Some(asked) = asked.as_deref().filter(|asked| *asked != ours) {
            told.push(format!(
                "{field}: {asked} is not taken from here, it stays {ours}: {way}"
            ));
        }
    };
    let way = "install the mesh with the value global.trustDomain, and this one as an alias while it changes";
    fixed("trustDomain", &mesh.trust_domain, &own.trust_domain, way);
    let way = "it is the namespace that the mesh is installed in";
    fixed(
        "rootNamespace",
        &mesh.root_namespace,
        &own.root_namespace,
        way,
    );
    let given = [
        (
            "trustDomainAliases",
            "trustDomainAliases",
            !own.trust_domain_aliases.is_empty() && !mesh.trust_domain_aliases.is_empty(),
        ),
        (
            "outboundTrafficPolicy.mode",
            "outboundTrafficPolicy",
            own.given.outbound
                && mesh
                    .outbound_traffic_policy
                    .and_then(|policy| policy.mode)
                    .is_some_and(|mode| outbound(mode) != own.outbound),
        ),
        (
            "discoverySelectors",
            "discoverySelectors",
            own.given.selectors && !mesh.discovery_selectors.is_empty(),
        ),
    ];
    for (field, value, _) in given.into_iter().filter(|(.., is_given)| *is_given) {
        told.push(format!(
            "{field} does not count: the chart's value {value}, or the flag, does"
        ));
    }
    let object = own.mesh_config.clone();
    verdicts.push(match told.is_empty() {
        true => {
            let text = "what is honoured of it is in force";
            Verdict::holds(object, CONDITION, CONDITION, text)
        }
        false => Verdict::fails(object, CONDITION, "PartiallyInForce", told.join("; "))
            .severity(Severity::Warning),
    });
}

#[cfg(test)]
mod tests {
    use super::super::golden_tests::{gateway, namespace, objects, settings};
    use super::super::{KeptKeys, Plan, plan};
    use super::*;

    fn mesh(text: &str) -> String {
        let lines: Vec<String> = text.lines().map(|line| format!("    {line}")).collect();
        format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\n\
             data:\n  mesh: |\n{}\n",
            lines.join("\n")
        )
    }

    fn planned(settings: &Settings, text: &str) -> Plan {
        let entry = "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
                     metadata: {name: e, namespace: shop}\nspec: {hosts: [a.example], \
                     resolution: DNS, ports: [{number: 443, name: tls, protocol: TLS}]}\n";
        let yaml = format!("{}{entry}{}", namespace("team: shop"), mesh(text));
        plan(&objects(&yaml), settings, &KeptKeys::default())
    }

    fn told(plan: &Plan) -> (bool, String) {
        let one = plan
            .verdicts
            .iter()
            .find(|one| &*one.object.kind == "ConfigMap");
        let one = one.unwrap();
        (one.holds, one.message.clone())
    }

    #[test]
    fn waypoints_are_told_how_far_paths_are_normalised() {
        use isobar_proto::isobar::v1::PathNormalization;

        for (text, expect) in [
            ("{}", PathNormalization::Base),
            (
                "pathNormalization: {normalization: NONE}",
                PathNormalization::None,
            ),
            (
                "pathNormalization: {normalization: MERGE_SLASHES}",
                PathNormalization::MergeSlashes,
            ),
            (
                "pathNormalization: {normalization: DECODE_AND_MERGE_SLASHES}",
                PathNormalization::DecodeAndMergeSlashes,
            ),
        ] {
            let yaml = namespace("") + &gateway("wp", "") + &mesh(text);
            let plan = plan(&objects(&yaml), &settings(), &KeptKeys::default());
            let told = plan.waypoints[0].waypoint.path_normalization();
            assert_eq!(told, expect, "{text}");
        }
    }

    #[test]
    fn waypoints_are_told_where_spans_go() {
        let told = |text: &str| {
            let yaml = namespace("") + &gateway("wp", "") + &mesh(text);
            let plan = plan(&objects(&yaml), &settings(), &KeptKeys::default());
            let told = plan.waypoints[0].waypoint.tracing.clone();
            told.map(|told| (told.host, told.port, told.per_million))
        };
        let providers = "extensionProviders: [{name: otel, opentelemetry: {service: otel.obs, port: 4317}}]\n\
                         defaultConfig: {tracing: {sampling: 50}}\n";
        assert_eq!(told(providers), None);
        let both = format!("{providers}defaultProviders: {{tracing: [otel]}}");
        assert_eq!(told(&both), Some(("otel.obs".into(), 4317, 500_000)));
    }

    const ALL: &str = "trustDomainAliases: [old.example]\noutboundTrafficPolicy: {mode: REGISTRY_ONLY}\n\
                       serviceEntryVisibility: {defaultVisibility: NAMESPACE}";

    #[test]
    fn what_it_says_is_in_force() {
        let plain = planned(&settings(), "{}");
        assert!(plain.outbound.is_empty());
        assert_eq!(
            told(&plain),
            (true, "what is honoured of it is in force".to_owned())
        );
        let plan = planned(&settings(), ALL);
        let names: Vec<String> = plan
            .outbound
            .iter()
            .map(isobar_state::convert::outbound_policy_name)
            .collect();
        assert_eq!(names, ["egress/", "trust/"]);
        use isobar_proto::istio::workload::service::Visibility;
        assert_eq!(plan.entries[0].visibility(), Visibility::Namespace);
        let none = "serviceEntryVisibility: {policies: [{visibility: NONE, \
                    matchingRules: [{namespaceSelector: {matchLabels: {team: shop}}}]}]}";
        assert!(planned(&settings(), none).entries.is_empty());
    }

    #[test]
    fn what_the_control_plane_was_started_with_counts_before_it_and_that_is_told() {
        let mut own = settings();
        own.given.outbound = true;
        own.trust_domain_aliases = vec!["mine.example".into()];
        let plan = planned(&own, ALL);
        assert_eq!(plan.outbound.len(), 1, "the aliases, and no REGISTRY_ONLY");
        let (holds, text) = told(&plan);
        assert!(!holds);
        for field in ["trustDomainAliases does", "outboundTrafficPolicy.mode does"] {
            assert!(text.contains(field), "{text}");
        }
        let plan = planned(
            &settings(),
            "trustDomain: other.example\nrootNamespace: root",
        );
        let (holds, text) = told(&plan);
        assert!(
            !holds && text.contains("stays cluster.local") && text.contains("rootNamespace: root")
        );
    }
}

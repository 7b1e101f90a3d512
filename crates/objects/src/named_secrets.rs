//! Secrets that Gateways and DestinationRules name, and may name: nobody has a reason to look at others.

use isobar_types::labels;

use crate::gateway_api::Gateway;
use crate::istio::{DestinationRuleSpec, ServerTls, ServerTlsMode};
use crate::kinds::{Kind, ObjectRef};
use crate::names;
use crate::object::ObjectHead;
use crate::set::ObjectSet;

/// End of the name of a Secret that only says who signs callers' certificates.
const OF_CALLERS: &str = "-cacert";

/// Type of a Secret that stands for one which nobody looked at: it is there, and is taken to be usable.
pub const UNREAD: &str = "isobar.dev/unread";

/// A Secret, and the object that names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedSecret {
    /// The Secret, whether it is there or not.
    pub secret: ObjectRef,
    /// A DestinationRule or a Gateway, of Istio's API or of the Gateway API.
    pub by: ObjectRef,
}

/// What the objects of a set name and may be told: Gateways of Istio in their own namespace, which is
/// that of their pods; those of the Gateway API, of the class that is run here, also where a
/// ReferenceGrant lets them; DestinationRules in their own namespace, where there is some Gateway that
/// could be told.
#[must_use]
pub fn named_secrets(set: &ObjectSet) -> Vec<NamedSecret> {
    let mut all = Vec::new();
    let mut add = |by: ObjectRef, namespace: &str, name: &str| {
        // Whatever is no name is no Secret, and asks a server for something else.
        if names::is_object_name(name) && names::is_label(namespace) {
            let secret = ObjectRef::new(Kind::Secret, namespace, name);
            all.push(NamedSecret { secret, by });
        }
    };
    for gateway in set.istio_gateways.iter() {
        let servers = gateway.spec.servers.iter();
        for tls in servers.filter_map(|server| server.tls.as_ref()) {
            for name in tls.secrets() {
                add(gateway.reference(), gateway.namespace(), &name);
            }
        }
    }
    let of_class = |class: &str| class == labels::GATEWAY_CLASS;
    let gateways = set.gateways.iter();
    for gateway in gateways.filter(|one| of_class(&one.spec.gateway_class_name)) {
        let listeners = gateway.spec.listeners.iter();
        for named in listeners.flat_map(|listener| listener.certificate_refs()) {
            let place = named.namespace.as_deref().unwrap_or(gateway.namespace());
            if named.is_secret() && may_name_secret(set, &gateway.object, place, &named.name) {
                add(gateway.reference(), place, &named.name);
            }
        }
    }
    let rules = set.destination_rules.iter();
    for rule in rules.filter(|rule| has_gateway(set, rule.namespace())) {
        for written in of_rule(&rule.spec) {
            add(rule.reference(), rule.namespace(), secret_name(written));
            for name in authority_of_callers(written) {
                add(rule.reference(), rule.namespace(), &name);
            }
        }
    }
    all.sort_unstable();
    all.dedup();
    all
}

fn has_gateway(set: &ObjectSet, namespace: &str) -> bool {
    let mut istio = set.istio_gateways.in_namespace(namespace);
    let mut others = set.gateways.in_namespace(namespace);
    istio.next().is_some() || others.next().is_some()
}

/// What a rule names, in whatever mode: a name is not written without need.
fn of_rule(spec: &DestinationRuleSpec) -> impl Iterator<Item = &str> {
    let subsets = spec.subsets.iter().map(|one| &one.traffic_policy);
    let policies = subsets.chain([&spec.traffic_policy]).flatten();
    let all = policies.flat_map(|policy| {
        let ports = policy.port_level_settings.iter();
        let ports = ports.filter_map(|port| port.tls.as_ref());
        ports.chain(policy.tls.as_ref())
    });
    let names = all.map(|tls| tls.credential_name.as_str());
    names.filter(|name| !name.is_empty())
}

/// Whether a Gateway may use a Secret: one of its own namespace, or where a ReferenceGrant lets it.
#[must_use]
pub fn may_name_secret(set: &ObjectSet, gateway: &Gateway, place: &str, name: &str) -> bool {
    if place == gateway.namespace() {
        return true;
    }
    let mut grants = set.reference_grants.in_namespace(place);
    grants.any(|grant| {
        let mut from = grant.spec.from.iter();
        let from = from.any(|from| {
            from.group == Kind::Gateway.group()
                && from.kind == Kind::Gateway.as_str()
                && from.namespace == gateway.namespace()
        });
        let mut to = grant.spec.to.iter();
        from && to.any(|to| {
            let any = to.name.as_deref().is_none_or(|only| only == name);
            to.group.is_empty() && to.kind == Kind::Secret.as_str() && any
        })
    })
}

/// The name of a Secret as Istio's objects may write it.
#[must_use]
pub fn secret_name(written: &str) -> &str {
    written.strip_prefix("kubernetes://").unwrap_or(written)
}

/// Where the authority of callers is looked for, given how it or the server's own credential is written:
/// the first of the two Secrets that is there counts.
#[must_use]
pub fn authority_of_callers(written: &str) -> [String; 2] {
    let bare = secret_name(written).trim_end_matches(OF_CALLERS);
    [format!("{bare}{OF_CALLERS}"), bare.to_owned()]
}

impl ServerTls {
    /// Names of the credentials that are shown to callers, as written.
    pub fn shown(&self) -> impl Iterator<Item = &str> {
        let all = std::iter::once(&self.credential_name).chain(&self.credential_names);
        all.map(String::as_str).filter(|name| !name.is_empty())
    }

    /// How the authority of callers is written, where they are asked for a certificate; of the mode
    /// of the mesh's own certificates there is none.
    #[must_use]
    pub fn authority(&self) -> Option<&str> {
        if !matches!(
            self.mode,
            ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual
        ) {
            return None;
        }
        Some(match self.ca_cert_credential_name.as_str() {
            "" => self.shown().next().unwrap_or_default(),
            name => name,
        })
    }

    /// Every Secret that may count for it.
    fn secrets(&self) -> Vec<String> {
        if !self.ends_here() {
            return Vec::new();
        }
        let own = self.shown().map(|name| secret_name(name).to_owned());
        let callers = self.authority().into_iter().flat_map(authority_of_callers);
        own.chain(callers).collect()
    }

    const fn ends_here(&self) -> bool {
        matches!(
            self.mode,
            ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual
        )
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::read::read_text;

    fn named(text: &str) -> Vec<String> {
        let read = read_text(Path::new("test.yaml"), text);
        let errors = read.findings.iter().filter(|one| one.is_error());
        assert_eq!(errors.count(), 0, "{:?}", read.findings);
        let set = ObjectSet::of(read.objects.into_iter().map(|read| read.object));
        let all = named_secrets(&set).into_iter();
        all.map(|one| format!("{}/{}", one.secret.namespace, one.secret.name))
            .collect()
    }

    #[test]
    fn a_gateway_of_istio_names_secrets_of_its_namespace_and_may_have_an_authority_beside() {
        let servers = [
            "{mode: SIMPLE, credentialName: 'kubernetes://page'}",
            "{mode: MUTUAL, credentialName: shop}",
            "{mode: SIMPLE, credentialName: other/page}",
            "{mode: SIMPLE, credentialName: 'a,metadata.namespace=b'}",
            "{mode: PASSTHROUGH, credentialName: passed}",
        ];
        let servers = servers.map(|tls| {
            format!(
                "  - {{port: {{number: 443, protocol: HTTPS}}, hosts: [a.example], tls: {tls}}}\n"
            )
        });
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: edge}}\n\
             spec:\n  selector: {{a: b}}\n  servers:\n{}",
            servers.concat()
        );
        assert_eq!(named(&text), ["edge/page", "edge/shop", "edge/shop-cacert"]);
    }

    #[test]
    fn another_namespace_has_to_let_a_gateway_name_its_secrets() {
        let gateway = |class: &str| {
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: g, namespace: edge}}\n\
                 spec:\n  gatewayClassName: {class}\n  listeners:\n  - name: https\n    port: 443\n    protocol: HTTPS\n    \
                 tls: {{certificateRefs: [{{name: own}}, {{name: page, namespace: web}}, {{name: c, kind: ConfigMap}}]}}\n"
            )
        };
        let grant = |name: &str| {
            format!(
                "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\n\
                 metadata: {{name: keys, namespace: web}}\nspec:\n  \
                 from: [{{group: gateway.networking.k8s.io, kind: Gateway, namespace: edge}}]\n  \
                 to: [{{group: '', kind: Secret, name: {name}}}]\n"
            )
        };
        let own = gateway(labels::GATEWAY_CLASS);
        assert_eq!(named(&own), ["edge/own"]);
        assert_eq!(named(&format!("{own}{}", grant("other"))), ["edge/own"]);
        let both = ["edge/own", "web/page"];
        assert_eq!(named(&format!("{own}{}", grant("page"))), both);
        // Of another's class nothing is looked at.
        assert!(named(&gateway("istio")).is_empty());
    }

    #[test]
    fn a_rule_names_secrets_of_its_namespace_where_somebody_could_be_told() {
        let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {name: r, namespace: shop}\nspec:\n  host: a.example\n  trafficPolicy:\n    \
             tls: {mode: MUTUAL, credentialName: own}\n";
        assert!(named(rule).is_empty());
        let waypoint = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
             metadata: {name: w, namespace: shop}\nspec:\n  gatewayClassName: isobar-waypoint\n  \
             listeners: [{name: mesh, port: 15008, protocol: HBONE}]\n";
        let both = format!("{rule}{waypoint}");
        assert_eq!(named(&both), ["shop/own", "shop/own-cacert"]);
    }
}

use isobar_proto::istio::security as wire;
use isobar_proto::istio::security::string_match::MatchType;
use prost::Message;

use crate::model::golden_tests::{gateway, namespace, objects, planned, pod, reasons, settings};
use crate::model::{KeptKeys, Plan, PortRules, plan};

mod bounds;
mod doors;
mod oracle;
mod others;

const AMBIENT: &str = "istio.io/dataplane-mode: ambient";
const MINE: &str = "NetworkPolicy shop/p";

fn netpol(name: &str, select: &str, ingress: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: {name}, namespace: shop}}\n\
         spec: {{podSelector: {{{select}}}, policyTypes: [Ingress], ingress: {ingress}}}\n"
    )
}

/// `cart-1` (10.244.1.70) and `web-1` (10.244.1.237) in the mesh's namespace `shop`; an empty
/// namespace `front`.
fn scenery() -> String {
    format!(
        "{}{}{}---\napiVersion: v1\nkind: Namespace\n\
         metadata: {{name: front, labels: {{tier: front}}}}\n",
        namespace(AMBIENT),
        pod("cart-1", "cart", "app: cart", true),
        pod("web-1", "web", "app: web", true),
    )
}

fn with(policies: &str) -> Plan {
    planned(&format!("{}{policies}", scenery()))
}

fn converted(plan: &Plan) -> Vec<&wire::Authorization> {
    plan.authorizations
        .iter()
        .filter(|policy| policy.name.starts_with("converted_network_policy_"))
        .collect()
}

fn keys<'p>(plan: &'p Plan, pod: &str) -> &'p [String] {
    let found = plan.workloads.iter().find(|w| w.wire.name == pod).unwrap();
    &found.wire.authorization_policies
}

/// A rule in one line: `|` between matches, `&` between clauses.
fn text(rule: &wire::Rule) -> String {
    let clauses = rule.clauses.iter().map(|clause| {
        let matches: Vec<String> = clause.matches.iter().map(one).collect();
        matches.join(" | ")
    });
    clauses.collect::<Vec<_>>().join(" & ")
}

fn one(m: &wire::Match) -> String {
    let words = |list: &[wire::StringMatch]| -> Vec<String> {
        list.iter()
            .map(|word| match &word.match_type {
                Some(MatchType::Exact(text)) => text.clone(),
                Some(MatchType::Presence(())) => "*".to_owned(),
                other => panic!("{other:?}"),
            })
            .collect()
    };
    let nets = |list: &[wire::Address]| -> Vec<String> {
        list.iter()
            .map(|a| {
                let bytes: Vec<String> = a.address.iter().map(ToString::to_string).collect();
                format!("{}/{}", bytes.join("."), a.length)
            })
            .collect()
    };
    let numbers = |list: &[u32]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    [
        ("id=", words(&m.principals)),
        ("id!=", words(&m.not_principals)),
        ("ns!=", words(&m.not_namespaces)),
        ("ip=", nets(&m.source_ips)),
        ("ip!=", nets(&m.not_source_ips)),
        ("port=", numbers(&m.destination_ports)),
        ("port!=", numbers(&m.not_destination_ports)),
    ]
    .into_iter()
    .filter(|(_, list)| !list.is_empty())
    .map(|(name, list)| format!("{name}{}", list.join(",")))
    .collect::<Vec<_>>()
    .join(" ")
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn every_shape_of_a_rule() {
    const CART: &str = "matchLabels: {app: cart}";
    for (ingress, expect) in [
        // No rule: nobody is let in.
        ("[]", Some("id=*")),
        // Neither sources nor ports: everybody is.
        ("[{}]", None),
        ("[{}, {ports: [{port: 80}]}]", None),
        // Ports only; 15008 is the door and no port behind it.
        (
            "[{ports: [{port: 8080}, {port: 15008}]}]",
            Some("id=* & port!=8080"),
        ),
        ("[{ports: [{port: 15008}]}]", Some("id=*")),
        (
            "[{ports: [{port: 80}]}, {ports: [{port: 15008}]}]",
            Some("id=* & port!=80"),
        ),
        ("[{ports: [{protocol: TCP}]}]", None),
        ("[{ports: [{port: 53, protocol: UDP}]}]", Some("id=*")),
        (
            "[{ports: [{port: 53, protocol: UDP}, {port: 53}]}]",
            Some("id=* & port!=53"),
        ),
        (
            "[{ports: [{port: 80, endPort: 82}]}]",
            Some("id=* & port!=80,81,82"),
        ),
        (
            "[{ports: [{port: 3, endPort: 65535}]}]",
            Some("id=* & port=1,2"),
        ),
        (
            "[{ports: [{port: web}, {port: none}]}]",
            Some("id=* & port!=9000"),
        ),
        // Sources only.
        (
            "[{from: [{namespaceSelector: {matchLabels: {tier: front}}}]}]",
            Some("id=* & ns!=front"),
        ),
        (
            "[{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}}]}]",
            Some("id=* & ns!=shop"),
        ),
        ("[{from: [{podSelector: {}}]}]", Some("id=* & ns!=shop")),
        ("[{from: [{namespaceSelector: {}}]}]", None),
        (
            "[{from: [{podSelector: {matchLabels: {app: web}}}]}]",
            Some("id=* & ip!=10.244.1.WEB/32"),
        ),
        // A selector that takes nobody lets nobody in.
        (
            "[{from: [{podSelector: {matchLabels: {app: none}}}]}]",
            Some("id=*"),
        ),
        (
            "[{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}]",
            Some("id=* & ip!=10.0.0.0/8"),
        ),
        (
            "[{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}]",
            Some("id=* & ip!=10.0.0.0/8 | ip=10.1.0.0/16"),
        ),
        // Both: not from them, or not to these.
        (
            "[{from: [{namespaceSelector: {matchLabels: {tier: front}}}], ports: [{port: 80}]}]",
            Some("id=* & ns!=front | port!=80"),
        ),
        // Several sources are one list; what is taken out of a block stands for itself.
        (
            "[{from: [{namespaceSelector: {matchLabels: {tier: front}}}, \
               {podSelector: {matchLabels: {app: web}}}, {ipBlock: {cidr: 10.0.0.0/8}}, \
               {ipBlock: {cidr: 11.0.0.0/8, except: [11.1.0.0/16]}}], ports: [{port: 80}]}]",
            Some(
                "id=* & ns!=front ip!=10.244.1.WEB/32,10.0.0.0/8 | port!=80 \
                 & ip!=11.0.0.0/8 | ip=11.1.0.0/16 | port!=80",
            ),
        ),
        // Every rule has its clause.
        (
            "[{from: [{podSelector: {}}], ports: [{port: 80}]}, {ports: [{port: 81}]}]",
            Some("id=* & ns!=shop | port!=80 & port!=81"),
        ),
    ] {
        let plan = with(&netpol("p", CART, ingress));
        let web = plan.workloads.iter().find(|w| w.wire.name == "web-1");
        let digit = web.unwrap().wire.addresses[0][3].to_string();
        let expect = expect.map(|text| text.replace("WEB", &digit));
        let found = converted(&plan);
        let texts: Vec<String> = found.iter().map(|p| text(&p.rules[0])).collect();
        assert_eq!(texts, expect.into_iter().collect::<Vec<_>>(), "{ingress}");
        let key = found.first().map(|p| format!("shop/{}", p.name));
        assert_eq!(keys(&plan, "cart-1"), key.as_slice(), "{ingress}");
        for policy in found {
            assert_eq!(
                (policy.action(), policy.rules.len()),
                (wire::Action::Deny, 1)
            );
            assert!(!policy.dry_run);
            let mut matches = policy.rules[0].clauses.iter().flat_map(|c| &c.matches);
            assert!(matches.all(|m| *m != wire::Match::default()), "{ingress}");
        }
        assert!(keys(&plan, "web-1").is_empty());
    }
}

#[test]
fn policies_of_a_pod_add_up_in_one_deny() {
    let all = format!(
        "{}{}{}",
        netpol("door", "", "[{ports: [{port: 15008}]}]"),
        netpol(
            "app",
            "matchLabels: {app: cart}",
            "[{ports: [{port: web}]}]"
        ),
        netpol("web", "matchLabels: {app: web}", "[{}]"),
    );
    let plan = with(&all);
    let found = converted(&plan);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].name, "converted_network_policy_app+door,web=9000");
    assert_eq!(text(&found[0].rules[0]), "id=* & port!=9000");
    assert_eq!(
        keys(&plan, "cart-1"),
        ["shop/converted_network_policy_app+door,web=9000"]
    );
    // Another policy lets everybody into the other pod.
    assert!(keys(&plan, "web-1").is_empty());
}

#[test]
fn the_pods_waypoints_pass_and_apply_it_themselves() {
    const WP: &str = "cluster.local/ns/shop/sa/wp";
    let uses = "app: cart, istio.io/use-waypoint: wp";
    let service = "---\napiVersion: v1\nkind: Service\n\
         metadata: {name: cart, namespace: shop, labels: {istio.io/use-waypoint: wp2}}\n\
         spec: {selector: {app: cart}, ports: [{port: 80}]}\n";
    let all = ", labels: {istio.io/waypoint-for: all}";
    let policy = netpol("p", "", "[{ports: [{port: 80}, {port: 15008}]}]");
    for (labels, rest, name, first) in [
        ("app: cart", String::new(), "p", "id=*".to_owned()),
        (
            uses,
            gateway("wp", all),
            "p@shop.wp",
            format!("id=* id!={WP}"),
        ),
        (
            uses,
            format!("{}{}{service}", gateway("wp", all), gateway("wp2", "")),
            "p@shop.wp+shop.wp2",
            format!("id=* id!={WP},{WP}2"),
        ),
        // One that does not exist passes nobody.
        (uses, String::new(), "p", "id=*".to_owned()),
    ] {
        let one = pod("cart-1", "cart", labels, true);
        let plan = planned(&format!("{}{one}{policy}{rest}", namespace(AMBIENT)));
        let found = converted(&plan);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!(found[0].name, format!("converted_network_policy_{name}"));
        assert_eq!(text(&found[0].rules[0]), format!("{first} & port!=80"));
    }
}

#[test]
fn only_pods_of_the_mesh_have_it() {
    let policy = netpol("p", "", "[{ports: [{port: 80}, {port: 15008}]}]");
    let one = pod("cart-1", "cart", "app: cart", true);
    let plain = planned(&format!("{}{one}{policy}", namespace("")));
    assert!(converted(&plain).is_empty());
    assert!(reasons(&plain, MINE).is_empty());
    // Captured already, whatever the labels say now.
    let marked = one.replace(
        "uid: u-cart-1",
        "uid: u-cart-1, annotations: {ambient.istio.io/redirection: enabled}",
    );
    let captured = planned(&format!("{}{marked}{policy}", namespace("")));
    assert_eq!(keys(&captured, "cart-1").len(), 1);
    // Egress is the caller's matter.
    let egress = policy.replace("[Ingress], ingress", "[Egress], egress");
    assert!(converted(&with(&egress)).is_empty());
}

#[test]
fn the_mode_is_the_namespaces_or_everybodys() {
    let policy = netpol("p", "", "[{ports: [{port: 80}, {port: 15008}]}]");
    let of = |default: PortRules, label: &str| {
        let labels = format!("{AMBIENT}{label}");
        let one = pod("cart-1", "cart", "app: cart", true);
        let set = objects(&format!("{}{one}{policy}", namespace(&labels)));
        let mut settings = settings();
        settings.port_rules = default;
        plan(&set, &settings, &KeptKeys::default())
    };
    for (default, label, reason, enforced) in [
        (PortRules::Enforce, "", "Enforced", Some(true)),
        (PortRules::Enforce, "off", "NotEnforced", None),
        (PortRules::Enforce, "audit", "Audited", Some(false)),
        (PortRules::Enforce, "nonsense", "Enforced", Some(true)),
        (PortRules::Off, "", "NotEnforced", None),
        (PortRules::Off, "enforce", "Enforced", Some(true)),
        (PortRules::Audit, "", "Audited", Some(false)),
    ] {
        let label = if label.is_empty() {
            String::new()
        } else {
            format!(", isobar.dev/port-rules: \"{label}\"")
        };
        let plan = of(default, &label);
        assert_eq!(reasons(&plan, MINE), [reason], "{default:?}{label}");
        let found = converted(&plan);
        let seen = found.first().map(|policy| !policy.dry_run);
        assert_eq!(seen, enforced, "{default:?}{label}");
    }
    let plan = of(PortRules::Enforce, ", isobar.dev/port-rules: nonsense");
    assert_eq!(reasons(&plan, "Namespace shop"), ["UnsupportedValue"]);
}

#[test]
fn an_audit_is_nothing_to_a_proxy_that_does_not_know_it() {
    let labels = format!("{AMBIENT}, isobar.dev/port-rules: audit");
    let plan = planned(&format!(
        "{}{}{}",
        namespace(&labels),
        pod("cart-1", "cart", "app: cart", true),
        netpol("p", "", "[{ports: [{port: 80}, {port: 15008}]}]"),
    ));
    let policy = converted(&plan)[0];
    // A DENY without rules never matches, also where dry runs are not known.
    assert!(policy.rules.is_empty() && policy.dry_run);
    let config = policy.extensions[0].config.as_ref().unwrap();
    assert_eq!(config.type_url, isobar_proto::type_url::AUDITED_RULES);
    let audited = isobar_proto::isobar::v1::AuditedRules::decode(&config.value[..]).unwrap();
    assert_eq!(text(&audited.rules[0]), "id=* & port!=80");
}

#[test]
fn what_is_odd_is_told_and_closed() {
    const WIDE: &str =
        "[{ports: [{port: 80}, {port: 15008}]}, {ports: [{port: 20000, endPort: 60000}]}]";
    for (ingress, told, expect) in [
        (
            "[{ports: [{port: 80}]}]",
            &["DoorShut", "Enforced"][..],
            "id=* & port!=80",
        ),
        ("[]", &["Enforced"], "id=*"),
        ("[{ports: [{port: 15008}]}]", &["OnlyTunnelPort"], "id=*"),
        (WIDE, &["TooManyPorts"], "id=* & port!=80"),
        (
            "[{ports: [{port: 80}, {port: 15008}]}]",
            &["Enforced"],
            "id=* & port!=80",
        ),
    ] {
        let plan = with(&netpol("p", "matchLabels: {app: cart}", ingress));
        assert_eq!(reasons(&plan, MINE), told, "{ingress}");
        assert_eq!(text(&converted(&plan)[0].rules[0]), expect, "{ingress}");
    }
}

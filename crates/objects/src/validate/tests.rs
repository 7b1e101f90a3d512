mod routes;
mod service_entry;
mod shapes;
mod unseen;

use std::path::Path;

use crate::finding::{Finding, Severity};
use crate::read::read_text;
use crate::set::{ObjectSet, Origin};
use crate::{Extent, validate_set};

const SERVICE: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: svc}\nspec: {ports: [{port: 80}]}\n";

fn findings(text: &str) -> Vec<Finding> {
    read_text(Path::new("a.yaml"), text).findings
}

fn lines(text: &str) -> Vec<String> {
    findings(text).iter().map(ToString::to_string).collect()
}

/// A VirtualService whose only HTTP rule has these fields (flow style).
fn route(rule: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v}}\n\
         spec:\n  hosts: [svc]\n  http:\n  - {rule}\n"
    )
}

/// The same around a forward, for matches and the like.
fn with_route(rest: &str) -> String {
    route(&format!(
        "{{route: [{{destination: {{host: svc}}}}], {rest}}}"
    ))
}

fn spec(api: &str, kind: &str, spec: &str) -> String {
    format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: x}}\nspec: {spec}\n")
}

fn policy(text: &str) -> String {
    spec("security.istio.io/v1", "AuthorizationPolicy", text)
}

fn rule(text: &str) -> String {
    spec("networking.istio.io/v1", "DestinationRule", text)
}

#[test]
fn each_kind_of_bad_input_names_file_object_and_field() {
    let subject = "error: a.yaml";
    for (text, expected) in [
        (
            "a: [1\n".to_owned(),
            vec![format!("{subject}:1: not valid YAML: unclosed bracket")],
        ),
        (
            route("{rotue: []}"),
            vec![
                format!(
                    "{subject}:7: VirtualService default/v: spec.http[0].rotue: unknown field \"rotue\" (did you mean route?)"
                ),
                format!(
                    "{subject}:7: VirtualService default/v: spec.http[0]: needs one of route, "
                ),
            ],
        ),
        (
            "kind: VirtualServce\napiVersion: networking.istio.io/v1\nmetadata: {name: v}\n"
                .to_owned(),
            vec![format!(
                "{subject}:1: VirtualServce default/v: kind: unknown kind VirtualServce of apiVersion networking.istio.io/v1 (did you mean VirtualService?)"
            )],
        ),
        (
            route("{route: [{destination: {host: svc}, weight: -1}]}"),
            vec![format!(
                "{subject}:7: VirtualService default/v: spec.http[0].route[0].weight: weight -1 is negative"
            )],
        ),
        (
            with_route("match: [{uri: {regex: \"(a\"}}]"),
            vec![format!(
                "{subject}:7: VirtualService default/v: spec.http[0].match[0].uri.regex: invalid regular expression \"(a\""
            )],
        ),
        (
            route("{route: [{destination: {host: svc}}], timeout: 5}"),
            vec![format!(
                "{subject}:7: VirtualService default/v: spec.http[0].timeout: invalid type: integer `5`, expected a string (put the value in quotes)"
            )],
        ),
    ] {
        let found = lines(&text);
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (line, start) in found.iter().zip(&expected) {
            assert!(line.starts_with(start.as_str()), "{line}\nnot\n{start}");
        }
    }
}

#[test]
fn a_broken_document_leaves_the_others() {
    let text = format!(
        "{SERVICE}---\nb: [\n---\n{}",
        route("{redirect: {uri: /x}}")
    );
    let read = read_text(Path::new("a.yaml"), &text);
    assert_eq!(read.objects.len(), 2);
    assert_eq!(read.findings.len(), 1);
    assert!(read.findings[0].line.is_some_and(|line| line >= 6));
}

/// Fields with errors of each text.
fn assert_errors(cases: &[(String, &[&str])]) {
    for (text, expected) in cases {
        let found = findings(text);
        let fields: Vec<&str> = found
            .iter()
            .filter(|finding| finding.is_error())
            .map(|finding| finding.field.as_str())
            .collect();
        assert_eq!(fields, *expected, "{text}\n{found:#?}");
    }
}

#[test]
fn virtual_services() {
    let two = |a: i32, b: i32| {
        route(&format!(
            "{{route: [{{destination: {{host: a}}, weight: {a}}}, {{destination: {{host: b}}, weight: {b}}}]}}"
        ))
    };
    assert_errors(&[
        (two(80, 20), &[]),
        (two(1, 2), &[]),
        (two(0, 0), &["spec.http[0].route"]),
        (route("{route: [{destination: {host: svc}}]}"), &[]),
        (
            route("{route: [{destination: {}}]}"),
            &["spec.http[0].route[0].destination.host"],
        ),
        (
            route("{route: [{destination: {host: \"*.x\", port: {number: 0}}}]}"),
            &[
                "spec.http[0].route[0].destination.host",
                "spec.http[0].route[0].destination.port.number",
            ],
        ),
        (with_route("redirect: {uri: /}"), &["spec.http[0]"]),
        (with_route("timeout: 1.5s"), &[]),
        (with_route("timeout: 5us"), &["spec.http[0].timeout"]),
        (with_route("timeout: soon"), &["spec.http[0].timeout"]),
        (
            with_route("match: [{headers: {\"x y\": {exact: a}}}]"),
            &["spec.http[0].match[0].headers[x y]"],
        ),
        (
            with_route("match: [{headers: {x: {}}, uri: {prefix: /a}}]"),
            &[],
        ),
        (
            with_route("match: [{uri: {prefix: /a, exact: /b}}]"),
            &["spec.http[0].match[0].uri"],
        ),
        (
            with_route("match: [{uri: {}}]"),
            &["spec.http[0].match[0].uri"],
        ),
        (with_route("match: [{uri: {regex: \"[a&&b]\"}}]"), &[]),
        (
            with_route("match: [{uri: {regex: \"(?=a)\"}}]"),
            &["spec.http[0].match[0].uri.regex"],
        ),
    ]);
}

#[test]
fn what_virtual_services_do_on_the_way() {
    assert_errors(&[
        (
            with_route("retries: {attempts: -1}"),
            &["spec.http[0].retries.attempts"],
        ),
        (
            with_route("retries: {attempts: 2, retryOn: \"5xx,gateway-eror\"}"),
            &["spec.http[0].retries.retryOn"],
        ),
        (
            with_route("fault: {delay: {fixedDelay: 1s, percentage: {value: 101}}}"),
            &["spec.http[0].fault.delay.percentage.value"],
        ),
        (
            with_route("fault: {abort: {}}"),
            &["spec.http[0].fault.abort"],
        ),
        (
            with_route("fault: {abort: {httpStatus: 99}}"),
            &["spec.http[0].fault.abort.httpStatus"],
        ),
        (
            with_route("headers: {request: {set: {\"a b\": c}, remove: [\"\"]}}"),
            &[
                "spec.http[0].headers.request.set[a b]",
                "spec.http[0].headers.request.remove[0]",
            ],
        ),
        (
            route("{directResponse: {status: 42}}"),
            &["spec.http[0].directResponse.status"],
        ),
        (
            spec(
                "networking.istio.io/v1",
                "VirtualService",
                "{hosts: [a, a, \"b_\"], tcp: [{route: []}]}",
            ),
            &["spec.hosts[2]", "spec.hosts[1]", "spec.tcp[0].route"],
        ),
        (
            spec(
                "networking.istio.io/v1alpha3",
                "VirtualService",
                "{hosts: [\"*\"]}",
            ),
            &["spec.hosts[0]", "spec"],
        ),
    ]);
}

#[test]
fn a_rule_behind_one_that_takes_everything_is_worth_a_warning() {
    let text = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v}\nspec:\n  \
                hosts: [svc]\n  http:\n  - route: [{destination: {host: svc}}]\n  \
                - route: [{destination: {host: svc}}]\n";
    let found = findings(text);
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].severity, &*found[0].field, found[0].line),
        (Severity::Warning, "spec.http[1]", Some(8))
    );
}

#[test]
fn destination_rules() {
    assert_errors(&[
        (
            rule("{host: svc, subsets: [{name: v1, labels: {version: v1}}]}"),
            &[],
        ),
        (rule("{}"), &["spec.host"]),
        (
            rule("{host: svc, subsets: [{name: v1}, {name: v1}, {name: \"\"}]}"),
            &["spec.subsets[2].name", "spec.subsets[1].name"],
        ),
        (
            rule("{host: svc, trafficPolicy: {loadBalancer: {simple: FASTEST}}}"),
            &["spec.trafficPolicy.loadBalancer.simple"],
        ),
        (
            rule("{host: svc, trafficPolicy: {connectionPool: {tcp: {maxConnections: -1}}}}"),
            &["spec.trafficPolicy.connectionPool.tcp.maxConnections"],
        ),
        (
            rule("{host: svc, subsets: [{name: a, labels: {v: \"a b\"}}]}"),
            &["spec.subsets[0].labels[v]"],
        ),
    ]);
}

#[test]
fn authorization_policies() {
    let from = |source: &str| policy(&format!("{{rules: [{{from: [{{source: {source}}}]}}]}}"));
    let to = |operation: &str| {
        policy(&format!(
            "{{rules: [{{to: [{{operation: {operation}}}]}}]}}"
        ))
    };
    let when = |condition: &str| policy(&format!("{{rules: [{{when: [{condition}]}}]}}"));
    assert_errors(&[
        (policy("{}"), &[]),
        (policy("{rules: [{}]}"), &[]),
        (from("{principals: [cluster.local/ns/a/sa/b]}"), &[]),
        (
            from("{principals: [\"spiffe://cluster.local/ns/a/sa/b\"]}"),
            &["spec.rules[0].from[0].source.principals[0]"],
        ),
        (from("{}"), &["spec.rules[0].from[0].source"]),
        (from("{ipBlocks: [10.0.0.0/8, \"::1\"]}"), &[]),
        (
            from("{ipBlocks: [10.0.0/8]}"),
            &["spec.rules[0].from[0].source.ipBlocks[0]"],
        ),
        (
            from("{serviceAccounts: [a/b/c, ok]}"),
            &["spec.rules[0].from[0].source.serviceAccounts[0]"],
        ),
        (
            to("{ports: [\"80\", \"99999\"]}"),
            &["spec.rules[0].to[0].operation.ports[1]"],
        ),
        (to("{paths: [\"/a/{*}/b\", \"/a*\"]}"), &[]),
        (
            to("{paths: [\"/a{*}\"]}"),
            &["spec.rules[0].to[0].operation.paths[0]"],
        ),
        (when("{key: source.ip, values: [1.2.3.4]}"), &[]),
        (when("{key: \"request.headers[x]\", values: [a]}"), &[]),
        (
            when("{key: sorce.ip, values: [a]}"),
            &["spec.rules[0].when[0].key"],
        ),
        (when("{key: source.ip}"), &["spec.rules[0].when[0]"]),
        (
            when("{key: destination.port, values: [http]}"),
            &["spec.rules[0].when[0].values[0]"],
        ),
        (policy("{action: DENNY}"), &["spec.action"]),
        (
            policy(
                "{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, group: \"\", name: s}]}",
            ),
            &["spec.selector"],
        ),
        (
            policy("{targetRefs: [{kind: Pod, group: \"\", name: s}]}"),
            &["spec.targetRefs[0].kind"],
        ),
    ]);
}

#[test]
fn peer_authentications_and_network_policies() {
    let network = |text: &str| spec("networking.k8s.io/v1", "NetworkPolicy", text);
    let peer = |text: &str| spec("security.istio.io/v1beta1", "PeerAuthentication", text);
    assert_errors(&[
        (peer("{mtls: {mode: STRICT}}"), &[]),
        (peer("{mtls: {mode: STRICTLY}}"), &["spec.mtls.mode"]),
        (
            peer("{portLevelMtls: {8080: {mode: STRICT}}}"),
            &["spec.portLevelMtls"],
        ),
        (
            peer("{selector: {matchLabels: {a: b}}, portLevelMtls: {\"http\": {mode: STRICT}}}"),
            &["spec.portLevelMtls.http"],
        ),
        (
            network(
                "{podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}",
            ),
            &[],
        ),
        (
            network("{podSelector: {}, ingress: [{from: [{}]}]}"),
            &["spec.ingress[0].from[0]"],
        ),
        (
            network(
                "{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/9]}}]}]}",
            ),
            &["spec.egress[0].to[0].ipBlock.except[0]"],
        ),
        (
            network("{podSelector: {}, ingress: [{ports: [{port: http, endPort: 90}]}]}"),
            &["spec.ingress[0].ports[0].endPort"],
        ),
    ]);
}

#[test]
fn the_other_kinds() {
    let gateway = |text: &str| spec("gateway.networking.k8s.io/v1", "Gateway", text);
    assert_errors(&[
        (
            gateway(
                "{gatewayClassName: isobar-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}",
            ),
            &[],
        ),
        (
            gateway("{gatewayClassName: isobar-waypoint}"),
            &["spec.listeners"],
        ),
        (SERVICE.to_owned(), &[]),
        (
            spec(
                "v1",
                "Service",
                "{ports: [{port: 80}, {port: 80, name: b}]}",
            ),
            &["spec.ports[0].name", "spec.ports[1].port"],
        ),
        (
            spec(
                "apps/v1",
                "Deployment",
                "{selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: c}}, spec: {containers: [{name: c}]}}}",
            ),
            &["spec.selector"],
        ),
        (
            spec(
                "v1",
                "Pod",
                "{containers: [{name: c, image: nginx, prots: []}]}",
            ),
            &["spec.containers[0].prots"],
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: A}\n".to_owned(),
            &["metadata.name"],
        ),
        ("apiVersion: v1\nkind: Pod\n".to_owned(), &["metadata.name"]),
        (
            "kind: Pod\nmetadata: {name: a}\n".to_owned(),
            &["apiVersion"],
        ),
        (
            "apiVersion: v2\nkind: Pod\nmetadata: {name: a}\n".to_owned(),
            &["apiVersion"],
        ),
        ("just words\n".to_owned(), &[""]),
    ]);
}

#[test]
fn known_kinds_that_do_nothing_are_told_apart() {
    let severity = |api: &str, kind: &str| {
        let found = findings(&spec(api, kind, "{}"));
        assert_eq!(found.len(), 1);
        found[0].severity
    };
    assert_eq!(severity("v1", "ConfigMap"), Severity::Warning);
    assert_eq!(
        severity("networking.k8s.io/v1", "Ingress"),
        Severity::Warning
    );
    assert_eq!(
        severity("gateway.networking.k8s.io/v1", "UDPRoute"),
        Severity::Unsupported
    );
    assert_eq!(
        severity("networking.istio.io/v1", "WorkloadGroup"),
        Severity::Unsupported
    );
    assert_eq!(
        severity("networking.istio.io/v1", "Whatever"),
        Severity::Error
    );
    assert_eq!(severity("example.com/v1", "Thing"), Severity::Error);
}

#[test]
fn lists_are_taken_apart() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  \
                metadata: {name: a}\n- apiVersion: v1\n  kind: Service\n  metadata: {name: s}\n  \
                spec:\n    ports:\n    - port: 0\n";
    let read = read_text(Path::new("a.yaml"), text);
    assert_eq!(read.objects.len(), 1);
    assert_eq!(read.findings.len(), 1);
    assert_eq!(read.findings[0].field, "spec.ports[0].port");
    assert_eq!(read.findings[0].line, Some(12));
}

#[test]
fn sets_are_looked_at_as_a_whole() {
    let texts = [
        SERVICE.to_owned(),
        rule("{host: svc, subsets: [{name: v1}]}"),
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v}\nspec: \
         {hosts: [svc], http: [{route: [{destination: {host: svc, subset: v2, port: {number: 81}}}, \
         {destination: {host: scv}, weight: 1}, \
         {destination: {host: svc.default, subset: v1, port: {number: 80}}}]}]}\n"
            .to_owned(),
        policy("{targetRefs: [{kind: Service, group: \"\", name: gone}]}"),
    ];
    let mut set = ObjectSet::default();
    for text in &texts {
        for read in read_text(Path::new("a.yaml"), text).objects {
            set.insert(read.object, Origin::nowhere());
        }
    }
    let found = validate_set(&set, Extent::Mesh);
    let fields: Vec<&str> = found.iter().map(|finding| &*finding.field).collect();
    assert_eq!(
        fields,
        [
            "spec.http[0].route[0].destination.subset",
            "spec.http[0].route[0].destination.port.number",
            "spec.http[0].route[1].destination.host",
            "spec.targetRefs[0].name",
        ]
    );
    assert_eq!(found[0].hint.as_deref(), Some("did you mean v1?"));
    assert!(
        found
            .iter()
            .all(|finding| finding.severity == Severity::Warning)
    );
    assert!(found[3].message.contains("does not exist"));
    let in_folder = validate_set(&set, Extent::Folder);
    assert!(in_folder[3].message.contains("is not in this folder"));
}

#[test]
fn names_have_the_lengths_that_kubernetes_allows() {
    let errors = |kind: &str, api: &str, length: usize, spec: &str| -> Vec<String> {
        let name = "a".repeat(length);
        let text = format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: {name}}}\n{spec}\n");
        let read = read_text(Path::new("a.yaml"), &text);
        let errors = read.findings.into_iter().filter(Finding::is_error);
        errors.map(|finding| finding.message).collect()
    };
    let pod = "spec: {containers: [{name: c, image: i}]}";
    assert!(errors("Pod", "v1", 253, pod).is_empty());
    let long = errors("Pod", "v1", 254, pod);
    assert!(long[0].contains("longer than 253 characters"), "{long:?}");
    let service = "spec: {ports: [{port: 80}]}";
    assert!(errors("Service", "v1", 63, service).is_empty());
    for (kind, spec) in [("Service", service), ("Namespace", "")] {
        let long = errors(kind, "v1", 64, spec);
        assert!(long[0].contains("longer than 63 characters"), "{long:?}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_reading_panic(text in ".{0,400}") {
        let _ = read_text(Path::new("a.yaml"), &text);
        let _ = read_text(Path::new("a.json"), &text);
    }

    #[test]
    fn no_damage_to_a_real_object_makes_reading_panic(
        at in 0usize..400,
        junk in "[\\PC\n\t :{}\\[\\]*&!|>-]{0,8}",
    ) {
        let mut text = with_route("timeout: 1s, match: [{uri: {regex: a+}}]");
        let mut at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        text.insert_str(at, &junk);
        let _ = read_text(Path::new("a.yaml"), &text);
    }
}

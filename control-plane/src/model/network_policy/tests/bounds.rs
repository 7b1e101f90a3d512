//! However much one namespace writes, what comes of it is bounded, and the policies say what does not count.

use super::*;
use crate::model::network_policy::classes::{MAX_CLASS, MAX_NAMESPACE, MAX_PEERS, short};

/// Rules for a network each, with 4,000 ports that take about 8 KB.
fn long_rules(count: usize) -> String {
    let rule = |at| {
        let ports = "ports: [{port: 15008}, {port: 1000, endPort: 4999}]";
        format!("{{from: [{{ipBlock: {{cidr: 10.{at}.0.0/16}}}}], {ports}}}")
    };
    let rules: Vec<String> = (0..count).map(rule).collect();
    format!("[{}]", rules.join(", "))
}

fn bytes(plan: &Plan) -> Vec<usize> {
    let found = converted(plan);
    found.iter().map(|policy| policy.encoded_len()).collect()
}

#[test]
fn rules_for_the_same_callers_are_written_as_one() {
    let web = "{podSelector: {matchLabels: {app: web}}}";
    // The same pod, by another selector.
    let same = "{podSelector: {matchExpressions: [{key: app, operator: In, values: [web, none]}]}}";
    let rule = |from, ports: &str| format!("{{from: [{from}], ports: [{{port: 15008}}, {ports}]}}");
    let all = format!(
        "[{}, {{ports: [{{port: 15008}}, {{port: 7}}]}}, {}]",
        rule(web, "{port: 80}"),
        rule(same, "{port: 81, endPort: 82}")
    );
    let plan = with(&netpol("p", "matchLabels: {app: cart}", &all));
    let written = text(&converted(&plan)[0].rules[0]);
    let clauses: Vec<&str> = written.split(" & ").collect();
    assert!(clauses[1].ends_with(" | port!=80,81,82"), "{written}");
    assert_eq!((clauses.len(), clauses[2]), (3, "port!=7"), "{written}");
    // Together they would name too many ports for one list.
    let half = |start| format!("{{port: {start}, endPort: {}}}", start + 4000);
    let all = format!("[{}, {}]", rule(web, &half(1)), rule(same, &half(20000)));
    let plan = with(&netpol("p", "matchLabels: {app: cart}", &all));
    assert_eq!(reasons(&plan, MINE), ["Enforced"]);
    assert_eq!(converted(&plan)[0].rules[0].clauses.len(), 3);
}

#[test]
fn what_is_too_long_for_a_pod_opens_nothing_and_is_told() {
    let cart = "matchLabels: {app: cart}";
    let plan = with(&netpol("p", cart, &long_rules(100)));
    assert_eq!(reasons(&plan, MINE), ["Enforced"]);
    assert_eq!(converted(&plan)[0].rules[0].clauses.len(), 101);
    let plan = with(&netpol("p", cart, &long_rules(200)));
    assert_eq!(reasons(&plan, MINE), ["TooManyPeers"]);
    let clauses = converted(&plan)[0].rules[0].clauses.len();
    assert!((101..190).contains(&clauses), "{clauses}");
    let bytes = bytes(&plan)[0];
    assert!(bytes < MAX_CLASS + (16 << 10), "{bytes}");
    // What is short still finds its place.
    let short = netpol("z", cart, "[{ports: [{port: 15008}, {port: 80}]}]");
    let plan = with(&format!("{}{short}", netpol("p", cart, &long_rules(200))));
    assert_eq!(reasons(&plan, "NetworkPolicy shop/z"), ["Enforced"]);
    assert!(text(&converted(&plan)[0].rules[0]).ends_with(" & port!=80"));
}

#[test]
fn what_is_too_long_for_a_namespace_opens_nothing_and_is_told() {
    let apps: Vec<String> = (0..7).map(|at| format!("a{at}")).collect();
    let pods: String = apps
        .iter()
        .map(|app| pod(app, app, &format!("app: {app}"), true))
        .collect();
    let policies: String = apps
        .iter()
        .map(|app| {
            netpol(
                app,
                &format!("matchLabels: {{app: {app}}}"),
                &long_rules(100),
            )
        })
        .collect();
    let plan = planned(&format!("{}{pods}{policies}", namespace(AMBIENT)));
    let told = |app: &str| reasons(&plan, &format!("NetworkPolicy shop/{app}"));
    assert_eq!(
        (told("a0"), told("a6")),
        (vec!["Enforced"], vec!["TooManyPeers"])
    );
    let bytes = bytes(&plan);
    assert_eq!(bytes.len(), 7, "each still refuses");
    let sum: usize = bytes.iter().sum();
    assert!(sum < MAX_NAMESPACE + (64 << 10), "{bytes:?}");
}

#[test]
fn policies_beyond_what_a_namespace_may_name_open_nothing() {
    let ports: Vec<String> = (0..MAX_PEERS)
        .map(|at| format!("{{port: {}}}", 20000 + at % 8))
        .collect();
    let long = |ports: &[String]| format!("[{{ports: [{}]}}]", ports.join(", "));
    let door = netpol(
        "a",
        "matchLabels: {app: cart}",
        "[{ports: [{port: 15008}]}]",
    );
    let plan = |ports: &[String]| {
        let mine = netpol("p", "matchLabels: {app: cart}", &long(ports));
        let last = netpol("z", "matchLabels: {app: cart}", "[{ports: [{port: 80}]}]");
        with(&format!("{door}{mine}{last}"))
    };
    let fits = plan(&ports[2..]);
    assert_eq!(reasons(&fits, MINE), ["Enforced"]);
    assert!(text(&converted(&fits)[0].rules[0]).contains("20007"));
    let beyond = plan(&ports);
    assert_eq!(reasons(&beyond, MINE), ["TooManyPeers"]);
    assert_eq!(text(&converted(&beyond)[0].rules[0]), "id=* & port!=80");
}

#[test]
fn a_policy_may_shut_more_doors_than_are_told() {
    let rule =
        |at| format!("{{from: [{{ipBlock: {{cidr: 10.{at}.0.0/16}}}}], ports: [{{port: 80}}]}}");
    let rules: Vec<String> = (0..100).map(rule).collect();
    let all = netpol(
        "p",
        "matchLabels: {app: cart}",
        &format!("[{}]", rules.join(", ")),
    );
    let yaml = format!("{}{all}", scenery());
    let told = planned(&yaml);
    assert_eq!(told.remedies[0].doors.len(), 64);
    let mut objects = objects(&yaml);
    let object = isobar_objects::Object::from(told.remedies[0].after.clone());
    objects.insert(object, isobar_objects::Origin::nowhere());
    let after = plan(&objects, &settings(), &KeptKeys::default());
    assert_eq!(after.remedies, []);
}

#[test]
fn pods_of_too_many_sorts_are_not_all_looked_at() {
    let mut yaml = namespace(AMBIENT);
    let rules: Vec<String> = (1..201)
        .map(|at| format!("{{ports: [{{port: {at}}}]}}"))
        .collect();
    let rules = format!("[{}]", rules.join(", "));
    for at in 0..40 {
        let app = format!("a{at}");
        yaml.push_str(&pod(&app, &app, &format!("app: {app}"), true));
        let others = format!("matchExpressions: [{{key: app, operator: NotIn, values: [{app}]}}]");
        yaml.push_str(&netpol(&app, &others, &rules));
    }
    let plan = planned(&yaml);
    assert_eq!(reasons(&plan, "Namespace shop"), ["TooManyPeers"]);
    assert_eq!(converted(&plan).len(), 40, "each is written all the same");
}

#[test]
fn names_are_short_and_tell_apart() {
    assert_eq!(short("a+b".to_owned()), "a+b");
    let (one, other) = ("x".repeat(9000) + "1", "x".repeat(9000) + "2");
    assert_ne!(short(one.clone()), short(other));
    assert!(short(one).len() < 500);
}

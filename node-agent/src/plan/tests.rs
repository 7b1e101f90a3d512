use super::*;

fn goldens(name: &str, wishes: &Wishes, capture: Capture) {
    let rules = plan_rules(wishes, capture);
    insta::assert_snapshot!(format!("{name}.nft"), table_text(&rules));
    insta::assert_snapshot!(
        format!("{name}.iptables"),
        restore_text(&rules, IptablesFamily::V4, &Jumps::default())
    );
    insta::assert_snapshot!(
        format!("{name}.ip6tables"),
        restore_text(&rules, IptablesFamily::V6, &Jumps::default())
    );
}

#[test]
fn an_ordinary_pod() {
    let wishes = Wishes {
        probes: [8080, 9090].into(),
        ..Wishes::default()
    };
    goldens("ordinary", &wishes, Capture::On);
}

#[test]
fn without_names_and_inbound() {
    let wishes = Wishes {
        dns: false,
        inbound: false,
        reroute: Vec::new(),
        probes: [8080].into(),
    };
    goldens("outbound-only", &wishes, Capture::On);
}

#[test]
fn guests_behind_interfaces_come_before_everything_that_is_captured() {
    let wishes = Wishes {
        reroute: vec!["vnet0".to_owned(), "vnet1".to_owned()],
        ..Wishes::default()
    };
    goldens("reroute", &wishes, Capture::On);
}

#[test]
fn a_pod_that_leaves_keeps_what_carries_its_connections() {
    goldens("leaving", &Wishes::default(), Capture::Off);
}

#[test]
fn only_the_capture_of_new_connections_differs_between_stages() {
    let wishes = Wishes::default();
    let (on, off) = (
        plan_rules(&wishes, Capture::On),
        plan_rules(&wishes, Capture::Off),
    );
    for (a, b) in on.chains.iter().zip(&off.chains) {
        assert_eq!((a.table, a.hook), (b.table, b.hook));
        assert_eq!(a.rules == b.rules, a.table != Table::Nat);
        assert!(!b.rules.is_empty(), "an empty chain ends tracking");
    }
}

#[test]
fn jumps_are_not_doubled() {
    let rules = plan_rules(&Wishes::default(), Capture::On);
    let all = Jumps(rules.chains.iter().map(|c| (c.table, c.hook)).collect());
    assert!(!restore_text(&rules, IptablesFamily::V4, &all).contains("-I "));
}

#[test]
fn the_nodes_own_table() {
    let probed = ["10.244.1.2:8080", "10.244.1.3:80", "[fd00::2]:8080"];
    let probed = probed.map(|to| to.parse().unwrap());
    insta::assert_snapshot!("node.nft", probe_table(&probed));
    let iptables = probe_text(&probed, IptablesFamily::V4, true);
    insta::assert_snapshot!("node.iptables", iptables);
}

use super::*;

fn goldens(name: &str, wishes: &Wishes, capture: Capture) {
    let rules = plan_rules(wishes, capture);
    insta::assert_snapshot!(format!("{name}.nft"), table_text(&rules));
    insta::assert_snapshot!(
        format!("{name}.iptables"),
        restore_text(&rules, IptablesFamily::V4, &Found::new())
    );
    insta::assert_snapshot!(
        format!("{name}.ip6tables"),
        restore_text(&rules, IptablesFamily::V6, &Found::new())
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
        match a.table {
            Table::Raw => assert_eq!(a.rules, b.rules),
            // What cannot be captured is no matter once nothing is.
            Table::Mangle => assert!(a.rules.starts_with(&b.rules), "{a:?}"),
            Table::Nat => assert_ne!(a.rules, b.rules),
        }
        assert!(!b.rules.is_empty(), "an empty chain ends tracking");
    }
}

/// A table `nat` as it is listed after our rules were written, with more rules in the chain OUTPUT.
fn saved(before: &str, after: &str) -> Found {
    let text = format!(
        "# Generated\n*nat\n:PREROUTING ACCEPT [1:2]\n:OUTPUT ACCEPT [3:4]\n:THEIRS - [0:0]\n\
         :ISOBAR_OUTPUT - [0:0]\n:ISOBAR_PREROUTING - [0:0]\n\
         -A PREROUTING -j ISOBAR_PREROUTING\n{before}-A OUTPUT -j ISOBAR_OUTPUT\n{after}\
         -A ISOBAR_OUTPUT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n"
    );
    Found::from([(Table::Nat, Held::read(&text))])
}

/// The part of a restore that is about the table `nat`.
fn restored(found: &Found) -> String {
    let rules = plan_rules(&Wishes::default(), Capture::On);
    let text = restore_text(&rules, IptablesFamily::V4, found);
    text[text.find("*nat").unwrap()..].to_owned()
}

#[test]
fn jumps_are_not_doubled() {
    let found = saved("", "-A OUTPUT -p udp -j ACCEPT\n");
    let text = restored(&found);
    assert!(!text.contains("-I ") && !text.contains("-D "), "{text}");
    // What others do behind our jump is theirs.
    let listing = |found: &Found| found[&Table::Nat].listing.clone();
    assert_eq!(listing(&found), listing(&saved("", "")));
}

#[test]
fn a_rule_before_our_jump_is_damage_and_the_jump_goes_first_again() {
    let theirs = "-A OUTPUT -p tcp -j ACCEPT\n";
    let found = saved(theirs, "");
    assert!(found[&Table::Nat].listing.contains(theirs), "{found:?}");
    assert_ne!(
        found[&Table::Nat].listing,
        saved("", "").remove(&Table::Nat).unwrap().listing
    );
    let text = restored(&found);
    let moved = "-D OUTPUT -j ISOBAR_OUTPUT\n-I PREROUTING 1 -j ISOBAR_PREROUTING\n";
    assert!(text.contains(moved), "{text}");
    assert!(text.contains("-I OUTPUT 1 -j ISOBAR_OUTPUT\n"), "{text}");
    assert!(!text.contains("OUTPUT -p tcp -j ACCEPT"), "theirs: {text}");
}

#[test]
fn whatever_else_leads_to_our_chains_goes() {
    for (before, after) in [
        ("", "-A OUTPUT -j ISOBAR_OUTPUT\n"),
        ("", "-A OUTPUT -p tcp -g ISOBAR_OUTPUT\n"),
        (
            "-A THEIRS -m comment --comment \"a b\" -j ISOBAR_PREROUTING\n",
            "",
        ),
    ] {
        let text = restored(&saved(before, after));
        let gone = format!(
            "-D{}",
            format!("{before}{after}").strip_prefix("-A").unwrap()
        );
        assert!(text.contains(&gone), "{gone} in {text}");
        assert_eq!(text.matches("-I ").count(), 2, "{text}");
    }
}

#[test]
fn removing_takes_ours_and_leaves_what_is_not() {
    let found = saved("-A OUTPUT -p tcp -j ACCEPT\n", "");
    assert_eq!(
        removal_text(&found, |_| true),
        "*nat\n-D PREROUTING -j ISOBAR_PREROUTING\n-D OUTPUT -j ISOBAR_OUTPUT\n\
         -F ISOBAR_OUTPUT\n-X ISOBAR_OUTPUT\n-F ISOBAR_PREROUTING\n-X ISOBAR_PREROUTING\nCOMMIT\n"
    );
    // A name that only begins or ends like ours is another's, and so is a comment.
    let others = Held::read(
        "*nat\n:ISOBAR_OUTPUT2 - [0:0]\n-A OUTPUT -m comment --comment ISOBAR_OUTPUT -j ACCEPT\n",
    );
    assert_eq!(others, Held::default());
    assert_eq!(removal_text(&[(Table::Nat, others)].into(), |_| true), "");
}

#[test]
fn the_nodes_own_table() {
    let probed = ["10.244.1.2:8080", "10.244.1.3:80", "[fd00::2]:8080"];
    let probed = probed.map(|to| to.parse().unwrap());
    insta::assert_snapshot!("node.nft", probe_table(&probed));
    let iptables = probe_text(&probed, IptablesFamily::V4, true);
    insta::assert_snapshot!("node.iptables", iptables);
}

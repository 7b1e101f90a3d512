use futures_util::FutureExt as _;
use isobar_proto::envoy::service::discovery::v3::Resource;

use super::*;

fn asked(on_demand: &OnDemand, names: &[&str]) -> bool {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    on_demand.ask(&names).now_or_never().is_some()
}

fn sent(on_demand: &OnDemand) -> Wanted {
    on_demand.wanted().now_or_never().unwrap_or_default()
}

fn wanted(subscribe: &[&str], unsubscribe: &[&str]) -> Wanted {
    let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Wanted {
        subscribe: all(subscribe),
        unsubscribe: all(unsubscribe),
    }
}

fn told(on_demand: &OnDemand, resources: &[(&str, &[&str])], removed: &[&str]) {
    let resources = resources.iter().map(|(name, aliases)| Resource {
        name: (*name).to_owned(),
        aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
        ..Resource::default()
    });
    on_demand.take(&DeltaDiscoveryResponse {
        resources: resources.collect(),
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryResponse::default()
    });
}

#[test]
fn a_name_is_asked_for_once_and_remembered() {
    let on_demand = OnDemand::default();
    assert!(!asked(&on_demand, &["/10.0.0.1", "/10.0.0.2"]));
    assert!(!asked(&on_demand, &["/10.0.0.1"]));
    assert_eq!(sent(&on_demand), wanted(&["/10.0.0.1", "/10.0.0.2"], &[]));
    assert_eq!(sent(&on_demand), Wanted::default());
    told(&on_demand, &[("c//Pod/ns/a", &["/10.0.0.1"])], &[]);
    assert!(on_demand.is_answered("/10.0.0.1"));
    assert!(!on_demand.is_answered("/10.0.0.2"));
    assert!(!asked(&on_demand, &["/10.0.0.1", "/10.0.0.2"]));
    told(&on_demand, &[], &["/10.0.0.2"]);
    assert!(asked(&on_demand, &["/10.0.0.1", "/10.0.0.2"]));
    assert_eq!(sent(&on_demand), Wanted::default());
    // What nobody asked for is not remembered.
    told(&on_demand, &[("ns/host", &["/10.0.0.3"])], &["other"]);
    assert!(!on_demand.is_answered("/10.0.0.3"));
    assert!(!on_demand.is_answered("other"));
}

#[test]
fn what_is_removed_is_asked_for_again_by_its_other_names() {
    let on_demand = OnDemand::default();
    asked(&on_demand, &["/10.0.0.1", "ns/host"]);
    sent(&on_demand);
    told(&on_demand, &[("a", &["/10.0.0.1"]), ("ns/host", &[])], &[]);
    told(&on_demand, &[], &["a", "ns/host"]);
    // The server has told about the one name, and says nothing about the other.
    assert!(asked(&on_demand, &["ns/host"]));
    assert!(!asked(&on_demand, &["/10.0.0.1"]));
    assert_eq!(sent(&on_demand), wanted(&["/10.0.0.1"], &[]));
}

#[test]
fn a_name_without_a_resource_comes_to_have_one() {
    let on_demand = OnDemand::default();
    asked(&on_demand, &["/10.0.0.1"]);
    told(&on_demand, &[], &["/10.0.0.1"]);
    told(&on_demand, &[("a", &["/10.0.0.1"])], &[]);
    assert!(on_demand.is_answered("/10.0.0.1"));
    assert!(on_demand.on_new_stream().is_empty());
}

#[test]
fn a_new_stream_is_told_what_has_no_resource() {
    let on_demand = OnDemand::default();
    asked(&on_demand, &["waits", "absent", "there"]);
    told(&on_demand, &[("there", &[])], &["absent"]);
    let mut again = on_demand.on_new_stream();
    again.sort_unstable();
    assert_eq!(again, ["absent", "waits"]);
    assert_eq!(sent(&on_demand), Wanted::default());
}

#[test]
fn names_that_lead_nowhere_are_forgotten_before_there_are_too_many() {
    let on_demand = OnDemand::default();
    let name = |n: usize| format!("/10.1.{}.{}", n / 256, n % 256);
    for n in 0..MOST_EMPTY {
        asked(&on_demand, &[&name(n)]);
    }
    let more = on_demand.ask(&["one more".to_owned()]).now_or_never();
    assert_eq!(more, Some(Err(TooManyAsked)));
    sent(&on_demand);
    told(&on_demand, &[], &[&name(0), &name(1), &name(2)]);
    // Asked about lately, so it stays.
    assert!(on_demand.is_answered(&name(0)));
    assert!(!asked(&on_demand, &["x"]));
    assert_eq!(sent(&on_demand), wanted(&["x"], &[&name(1)]));
    assert!(!asked(&on_demand, &["y"]));
    assert!(on_demand.is_answered(&name(0)));
    assert!(!on_demand.is_answered(&name(2)));
    assert_eq!(on_demand.on_new_stream().len(), MOST_EMPTY);
    // A service that is removed takes no more room either.
    told(&on_demand, &[("x", &[]), ("y", &[])], &[]);
    asked(&on_demand, &["p", "q"]);
    told(&on_demand, &[], &["x", "y"]);
    assert!(on_demand.on_new_stream().len() <= MOST_EMPTY);
}

#[tokio::test]
async fn whoever_waits_is_woken_and_so_is_the_stream() {
    let on_demand = OnDemand::default();
    let names = ["a".to_owned()];
    let asking = on_demand.ask(&names);
    let answering = async {
        assert_eq!(on_demand.wanted().await, wanted(&["a"], &[]));
        told(&on_demand, &[], &["a"]);
    };
    let (asked, ()) = tokio::join!(asking, answering);
    assert_eq!(asked, Ok(()));
}

//! Addresses asked for one by one, on the wire.

use super::*;
use crate::OnDemand;

fn named(mut resource: Resource, aliases: &[&str]) -> Resource {
    resource.aliases = aliases.iter().map(|alias| (*alias).to_owned()).collect();
    resource
}

#[tokio::test]
async fn names_are_asked_for_when_somebody_needs_them() {
    let on_demand = OnDemand::default();
    let asked = on_demand.clone();
    let mut s = setup_with(vec![], |client| client.on_demand(asked)).await;
    let mut stream = s.server.stream().await;
    let first = first_requests(&mut stream, 2).await;
    // Policies are few, and all are needed.
    assert!(first[AUTHORIZATION].resource_names_subscribe.is_empty());
    assert_eq!(first[ADDRESS].resource_names_subscribe, ["*"]);
    assert_eq!(first[ADDRESS].resource_names_unsubscribe, ["*"]);
    stream.send(AUTHORIZATION, "n1", vec![]).await;
    stream.request().await;
    stream.send(ADDRESS, "n2", vec![]).await;
    stream.request().await;
    patiently("readiness", s.status.synced()).await;

    let names = ["/10.0.0.1".to_owned(), "/10.9.9.9".to_owned()];
    let asking = on_demand.ask(&names);
    let answering = async {
        let request = stream.request().await;
        assert_eq!(request.type_url, ADDRESS);
        assert_eq!(request.resource_names_subscribe, names);
        assert!(request.response_nonce.is_empty());
        let found = vec![named(pod("a"), &["/10.0.0.1"])];
        stream.send_with(ADDRESS, "n3", found, &["/10.9.9.9"]).await;
        assert_eq!(stream.request().await.response_nonce, "n3");
        stream
    };
    let (answered, stream) =
        patiently("an answer", async { tokio::join!(asking, answering) }).await;
    assert_eq!(answered, Ok(()));
    assert!(s.store.load().workload_by_uid(&uid("a")).is_some());

    // A new stream goes on with what is held and what was asked for.
    drop(stream);
    let mut stream = s.server.stream().await;
    let first = first_requests(&mut stream, 2).await;
    let held = &first[ADDRESS].initial_resource_versions;
    let expect = [
        (uid("a"), format!("v-{}", uid("a"))),
        ("/10.9.9.9".to_owned(), String::new()),
    ];
    assert_eq!(*held, BTreeMap::from(expect));
}

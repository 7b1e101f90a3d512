//! Who calls, and who answers: accounts, labels and identities.

use isobar_proto::isobar::v1 as proto;
use isobar_proto::istio::workload::AppProtocol;
use isobar_waypoint::target;

use crate::bed::*;

#[test]
fn a_waypoint_of_one_account_serves_its_pods_only() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let mut client = bed.client("client").await;
        for (account, status) in [("server", 200), ("somebody", 503), ("", 200)] {
            bed.describe(account);
            assert_eq!(client.get("/").await.status, status, "{account}");
        }
    });
}

#[test]
fn routes_by_the_caller_use_what_is_known_of_it() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        bed.backend("b", "v2").await;
        bed.tables(|t| {
            t.upsert_destination_rule(&subsets()).unwrap();
            let mut mine = forward("mine", vec![to("v1", 0)]);
            mine.matches = vec![proto::HttpMatch {
                source_labels: [("version".to_owned(), "blue".to_owned())].into(),
                source_namespace: "default".into(),
                ..Default::default()
            }];
            let rest = forward("rest", vec![to("v2", 0)]);
            t.upsert_virtual_service(&virtual_service(vec![mine, rest]))
                .unwrap();
        });
        let mut client = bed.client("client").await;
        assert!(client.get("/").await.body.starts_with("b "));
        // The labels come later; the open connection sees them with its next request.
        bed.tables(|t| {
            t.upsert_labels(&proto::WorkloadLabels {
                uid: "client".into(),
                labels: [("version".to_owned(), "blue".to_owned())].into(),
            });
        });
        assert!(client.get("/").await.body.starts_with("a "));
        // The same address with another identity is not that workload: identity only, after a wait.
        let mut other = bed.client("other").await;
        assert!(other.get("/").await.body.starts_with("b "));
    });
}

#[test]
fn endpoints_of_the_mesh_are_reached_as_the_waypoint_and_must_be_who_they_are() {
    run(|first| async move {
        drop(first);
        let listener = tokio::net::TcpListener::bind("127.0.1.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let bed = Bed::over_hbone(port);
        let application = bed.backend("a", "v1").await;
        node_proxy(&bed, listener, "server", application).await;
        let mut client = bed.client("client").await;
        for _ in 0..3 {
            assert_eq!(client.get("/in").await.body, "a /in 0");
        }
        // Another pod's proxy at the endpoint's address gets nothing.
        let impostor = tokio::net::TcpListener::bind(("127.0.1.2", port))
            .await
            .unwrap();
        let other = bed.backend("b", "v1").await;
        node_proxy(&bed, impostor, "somebody", other).await;
        bed.remove_backend("a");
        let answer = client.get("/in").await;
        assert_eq!(answer.status, 503);
        for _ in 0..3 {
            bed.line().await;
        }
        let line = bed.line().await;
        assert!(line.contains(" 503 UF,URX "), "{line}");
    });
}

#[test]
fn a_tunnel_that_is_earlier_than_its_binding_waits_for_it() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        bed.unbind();
        let world = &bed.worker.world;
        let find = |authority| target::resolve_in_time(world, authority, "default");
        // The first is asked before the second is begun.
        let bind = async { bed.publish_mesh(AppProtocol::Unknown) };
        let (found, ()) = tokio::join!(find(VIP), bind);
        assert!(found.is_ok(), "{found:?}");
        // What stays unknown is refused after a moment.
        assert_eq!(find("10.9.9.9:80").await.unwrap_err().status, 404);
    });
}

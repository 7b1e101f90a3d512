//! What happens to requests that wait for their answer when they may not go on.

use isobar_proto::istio::security;
use proto::authorization::Action;

use super::*;

fn policy(action: Action, rules: Vec<proto::AuthorizationRule>) -> proto::Authorization {
    proto::Authorization {
        namespace: "default".into(),
        name: "wall".into(),
        action: action.into(),
        services: vec![service_ref()],
        rules,
        ..Default::default()
    }
}

fn deny_all() -> proto::Authorization {
    policy(Action::Deny, vec![proto::AuthorizationRule::default()])
}

/// Runs a test with a request that waits for the only endpoint.
fn waiting<F: Future<Output = ()>>(
    test: impl FnOnce(Rc<Bed>, tokio::task::JoinHandle<Answer>) -> F,
) {
    run(
        &["a"],
        |_, _| Reply::Held,
        |bed| async move {
            let one = bed.begin();
            bed.settle().await;
            assert_eq!(bed.asked(), 1);
            assert!(!one.is_finished());
            test(bed, one).await;
        },
    );
}

#[test]
fn a_policy_takes_back_what_was_permitted() {
    waiting(|bed, one| async move {
        let allow = policy(Action::Allow, vec![proto::AuthorizationRule::default()]);
        bed.mesh.tables(|t| t.upsert_policy(&allow));
        bed.settle().await;
        assert!(!one.is_finished(), "it is permitted still");
        bed.mesh.tables(|t| t.upsert_policy(&deny_all()));
        let answer = one.await.unwrap();
        assert_eq!(answer.status, 403);
        let line = bed.line().await;
        let told = " 403 RBAC rbac_access_denied_matched_policy[ns[default]-policy[wall]";
        assert!(line.contains(told), "{line}");
        assert!(line.contains("\"policy withdrawn\""), "{line}");
        bed.settle().await;
        assert!(bed.worker.live.is_empty());
    });
}

#[test]
fn a_policy_of_the_endpoint_takes_it_back_as_well() {
    waiting(|bed, one| async move {
        let principal = "cluster.local/ns/default/sa/caller".to_owned();
        let matches = security::Match {
            principals: vec![security::StringMatch {
                match_type: Some(security::string_match::MatchType::Exact(principal)),
            }],
            ..Default::default()
        };
        let clause = security::Clause {
            matches: vec![matches],
        };
        bed.mesh.policy(&security::Authorization {
            name: "pods".into(),
            namespace: "default".into(),
            scope: security::Scope::Namespace.into(),
            action: security::Action::Deny.into(),
            rules: vec![security::Rule {
                clauses: vec![clause],
            }],
            ..Default::default()
        });
        assert_eq!(one.await.unwrap().status, 403);
        let line = bed.line().await;
        assert!(line.contains("policy[pods]"), "{line}");
        assert!(line.contains("\"policy withdrawn\""), "{line}");
        // A new one does not go there.
        assert_eq!(bed.get().await.status, 403);
        assert_eq!(bed.asked(), 1);
    });
}

#[test]
fn what_leaves_this_waypoint_may_end_within_a_while() {
    waiting(|bed, one| async move {
        let elsewhere = wire::Service {
            waypoint: Some(by_name("other.default.svc.cluster.local")),
            ..service()
        };
        let since = Instant::now();
        bed.mesh.service(elsewhere);
        bed.settle().await;
        assert!(!one.is_finished(), "it has a moment");
        let answer = one.await.unwrap();
        assert_eq!(answer.status, 503);
        let took = since.elapsed();
        let stay = crate::session::STAY;
        assert!(
            took >= stay && took < stay + Duration::from_secs(1),
            "{took:?}"
        );
        let line = bed.line().await;
        assert!(line.contains("not_served_any_more"), "{line}");
        assert!(line.contains("does not use the waypoint"), "{line}");
    });
}

#[test]
fn what_comes_back_in_time_goes_on() {
    waiting(|bed, one| async move {
        let elsewhere = wire::Service {
            waypoint: Some(by_name("other.default.svc.cluster.local")),
            ..service()
        };
        bed.mesh.service(elsewhere);
        bed.settle().await;
        bed.mesh.service(service());
        tokio::time::sleep(crate::session::STAY * 2).await;
        assert!(!one.is_finished());
        bed.script.released.add_permits(1);
        assert_eq!(one.await.unwrap().status, 200);
    });
}

#[test]
fn an_end_of_the_waypoint_is_told() {
    waiting(|bed, one| async move {
        bed.worker.live.end_all();
        assert_eq!(one.await.unwrap().status, 503);
        let line = bed.line().await;
        assert!(line.contains("waypoint_drained"), "{line}");
        assert!(line.contains("\"waypoint drained\""), "{line}");
    });
}

#[test]
fn all_that_is_on_its_way_is_counted() {
    waiting(|bed, one| async move {
        let live = &bed.worker.live;
        assert_eq!(live.len(), 1);
        let others = [bed.begin(), bed.begin()];
        bed.settle().await;
        assert_eq!(live.len(), 3);
        bed.script.released.add_permits(3);
        one.await.unwrap();
        for one in others {
            assert_eq!(one.await.unwrap().status, 200);
        }
        bed.settle().await;
        assert_eq!((live.len(), live.is_empty()), (0, true));
        // Their places are taken again, each by one.
        let again = [bed.begin(), bed.begin()];
        bed.settle().await;
        assert_eq!((live.len(), live.is_empty()), (2, false));
        bed.mesh.tables(|t| t.upsert_policy(&deny_all()));
        for one in again {
            assert_eq!(one.await.unwrap().status, 403);
        }
        bed.settle().await;
        assert!(live.is_empty());
    });
}

use super::*;
use crate::invalid::Instead;
use crate::istio::Action;

fn policy(action: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: wall}}\nspec: {{action: {action}, rules: [{{}}]}}\n"
    )
}

#[tokio::test]
async fn a_policy_that_was_never_valid_refuses_until_it_is() {
    let mut bench = Bench::new(&[("wall.yaml", &policy("ALLOWED"))]);
    let reference = ObjectRef::new(Kind::AuthorizationPolicy, "default", "wall");
    let action = |now: &Published| {
        let policy = now.objects.authorization_policies.get("default", "wall");
        policy.map(|policy| policy.spec.action)
    };
    let now = bench.now();
    assert_eq!(action(&now), Some(Action::Deny));
    assert_eq!(now.invalid[&reference].instead, Instead::Refusal);
    assert_eq!(errors(&now).len(), 1);

    bench.write("wall.yaml", &policy("ALLOW"));
    let good = bench.until(|now| action(now) == Some(Action::Allow)).await;
    assert!(good.invalid.is_empty());
    bench.write("wall.yaml", &policy("ALLOWED"));
    let bad = bench.until(|now| !now.invalid.is_empty()).await;
    assert_eq!(action(&bad), Some(Action::Allow), "the last good one");
    assert_eq!(bad.invalid[&reference].instead, Instead::LastGood);
}

#[test]
fn a_route_whose_authoriser_was_never_valid_answers_with_a_refusal() {
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\n\
                 spec:\n  parentRefs: [{group: '', kind: Service, name: cart}]\n  \
                 rules: [{filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, \
                 backendRef: {name: a, port: 80}, http: {path: check}}}]}]\n";
    let now = Bench::new(&[("route.yaml", route)]).now();
    let reference = ObjectRef::new(Kind::HttpRoute, "default", "r");
    assert_eq!(now.invalid[&reference].instead, Instead::Refusal);
    let stands = now.objects.http_routes.get("default", "r").unwrap();
    assert_eq!(stands.spec.parent_refs[0].name, "cart");
    assert!(stands.spec.rules[0].backend_refs.is_empty());
    let told = errors(&now);
    assert_eq!(told.len(), 1, "{told:?}");
}

fn wall(now: &Published, namespace: &str) -> Vec<Action> {
    let all = now.objects.authorization_policies.iter();
    let here = all.filter(|policy| policy.metadata.namespace.as_deref() == Some(namespace));
    here.map(|policy| policy.spec.action).collect()
}

#[test]
fn a_policy_whose_head_cannot_be_read_refuses_what_can_be_known() {
    let of = |head: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {head}\nspec: {{selector: {{matchLabels: {{app: cart}}}}, rules: [{{}}]}}\n"
        )
    };
    for (head, namespace) in [
        ("{name: wall, namespace: shop, labels: 7}", "shop"),
        ("{name: wall, namespace: 7}", "7"),
        ("{name: 7, namespace: shop}", "shop"),
        ("{name: The_Wall, namespace: shop}", "shop"),
        ("{namespace: shop}", "shop"),
        ("[wall]", "default"),
        ("wall", "default"),
    ] {
        let now = Bench::new(&[("wall.yaml", &of(head))]).now();
        assert_eq!(wall(&now, namespace), [Action::Deny], "{head}");
        assert_eq!(errors(&now).len(), 1, "{head}: {:?}", errors(&now));
        let instead: Vec<_> = now.invalid.values().map(|one| one.instead).collect();
        assert_eq!(instead, [Instead::Refusal], "{head}");
        assert!(now.invalid.values().all(|one| !one.message.is_empty()));
    }
    // Two of one file are two.
    let both = format!("{}---\n{}", of("wall"), of("{namespace: default}"));
    let now = Bench::new(&[("wall.yaml", &both)]).now();
    assert_eq!(wall(&now, "default"), [Action::Deny, Action::Deny]);
}

#[tokio::test]
async fn a_policy_that_loses_its_name_stays_as_it_was() {
    let mut bench = Bench::new(&[("wall.yaml", &policy("ALLOW"))]);
    assert_eq!(wall(&bench.now(), "default"), [Action::Allow]);
    let nameless = policy("ALLOW").replace("{name: wall}", "wall");
    bench.write("wall.yaml", &nameless);
    let now = bench.until(|now| !errors(now).is_empty()).await;
    assert_eq!(wall(&now, "default"), [Action::Allow], "the last good one");
    bench.write("wall.yaml", &policy("DENY"));
    let now = bench.until(|now| errors(now).is_empty()).await;
    assert_eq!(wall(&now, "default"), [Action::Deny]);
}

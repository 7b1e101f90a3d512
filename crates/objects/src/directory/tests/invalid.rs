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

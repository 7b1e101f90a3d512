//! Other control planes that have what names nobody, as this one does: each would write the same
//! waypoints and statuses anew after the other. Nothing in a cluster forbids two of them (they have
//! leases of their own), so each says so.

use std::sync::Arc;

use isobar_objects::{Finding, Kind, ObjectHead, ObjectRef, ObjectSet, Published};
use isobar_runtime::Scope;
use isobar_types::NamespacedName;
use k8s_openapi::api::apps::v1::Deployment;
use tokio::sync::watch;

use crate::config::Config;
use crate::process::NAME;
use crate::revision::Revision;

/// Label and value of every control plane's Deployment, whoever installed it.
const CONTROL_PLANE: (&str, &str) = ("app.kubernetes.io/name", "isobard");

/// The Deployments of such control planes, as they come and go; never any for a control plane that
/// has only what names it.
pub(crate) fn follow(
    scope: &Scope,
    config: &Config,
    mut objects: watch::Receiver<Arc<Published>>,
) -> watch::Receiver<Arc<Vec<ObjectRef>>> {
    let (sender, found) = watch::channel(Arc::default());
    let revision = Revision::of(config);
    if !revision.is_default() {
        return found;
    }
    let own = NamespacedName {
        namespace: config.own_namespace().into(),
        name: revision.suffixed(NAME).into(),
    };
    let life = scope.lifetime();
    scope.spawn("rivals", async move {
        loop {
            let published = objects.borrow_and_update().clone();
            let now = rivals(&published.objects, &own);
            for one in now.iter().filter(|one| !sender.borrow().contains(one)) {
                tracing::warn!(%one, "{}", text());
            }
            sender.send_if_modified(|before| {
                let changed = **before != now;
                if changed {
                    *before = Arc::new(now);
                }
                changed
            });
            tokio::select! {
                () = life.stopped() => return,
                changed = objects.changed() => if changed.is_err() { return },
            }
        }
    });
    found
}

/// What there is to say about one.
pub(crate) fn finding(rival: &ObjectRef) -> Finding {
    // Anybody who may make a Deployment can make one that says so.
    Finding::warning("", text()).about(rival)
}

const fn text() -> &'static str {
    "looks like another control plane that has what names nobody: if it is one, both write the same \
     waypoints and statuses, over and over. Uninstall one of the two, or give it a name (value revision) \
     and no tag \"default\""
}

/// Those of other control planes.
fn rivals(set: &ObjectSet, own: &NamespacedName) -> Vec<ObjectRef> {
    let others = set.deployments.iter().filter(|one| {
        let is_own = one.namespace() == &*own.namespace && one.name() == &*own.name;
        !is_own && one.label(CONTROL_PLANE.0) == Some(CONTROL_PLANE.1) && revision(one).is_default()
    });
    others
        .map(|one| ObjectRef::new(Kind::Deployment, one.namespace(), one.name()))
        .collect()
}

/// What the control plane of a Deployment is called, as its arguments say.
fn revision(deployment: &Deployment) -> Revision {
    let pods = deployment
        .spec
        .as_ref()
        .and_then(|s| s.template.spec.as_ref());
    let containers = pods.into_iter().flat_map(|pods| &pods.containers);
    let arguments: Vec<&String> = containers
        .flat_map(|one| one.args.iter().flatten())
        .collect();
    let given = |name: &str| -> Vec<String> {
        let all = arguments.iter();
        let all = all.filter_map(|one| one.strip_prefix(name)?.strip_prefix('='));
        all.map(str::to_owned).collect()
    };
    let name = given("--revision").pop().unwrap_or_default();
    Revision::new(&name, &given("--revision-tag"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::golden_tests::objects;

    fn deployment(namespace: &str, name: &str, label: &str, arguments: &str) -> String {
        format!(
            "---\napiVersion: apps/v1\nkind: Deployment\n\
             metadata: {{name: {name}, namespace: {namespace}, labels: {{app.kubernetes.io/name: {label}}}}}\n\
             spec:\n  selector: {{matchLabels: {{app: a}}}}\n  template:\n    metadata: {{labels: {{app: a}}}}\n    \
             spec: {{containers: [{{name: c, image: i, args: [{arguments}]}}]}}\n"
        )
    }

    #[test]
    fn who_has_what_names_nobody_is_a_rival() {
        let all = [
            deployment("istio-system", "isobard", "isobard", "--kubernetes"),
            deployment("mesh-b", "isobard", "isobard", "--kubernetes"),
            deployment(
                "mesh-c",
                "isobard-x",
                "isobard",
                "--revision=x, --revision-tag=default",
            ),
            deployment(
                "mesh-d",
                "isobard-y",
                "isobard",
                "--revision=y, --revision-tag=stable",
            ),
            deployment("mesh-e", "isobard", "isobard", "--revision=default"),
            deployment("shop", "isobard", "something-else", "--kubernetes"),
        ];
        let own = NamespacedName {
            namespace: "istio-system".into(),
            name: "isobard".into(),
        };
        let found = rivals(&objects(&all.concat()), &own);
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "Deployment mesh-b/isobard",
                "Deployment mesh-c/isobard-x",
                "Deployment mesh-e/isobard"
            ]
        );
    }
}

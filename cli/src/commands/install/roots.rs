//! Roots of another mesh, which this one would put its own in place of.

use anyhow::bail;
use isobar_kubernetes::Installer;
use serde_json::{Value, json};

use super::place::Place;
use super::report::label;
use super::{CONTROL_PLANE, SECRET};

/// Where pods of every mesh of this kind find its roots, in each namespace.
const MAP: &str = "istio-ca-root-cert";
/// Where a control plane that leaves that one to another mesh puts its own.
const OWN_MAP: &str = "isobar-ca-root-cert";
/// The roots in it.
const FILE: &str = "root-cert.pem";
/// Where Istio's control plane is if nobody says otherwise.
const ISTIOS: &str = "istio-system";
/// What keeps a control plane from writing roots of its own into [`MAP`].
const LEAVES_THEM: [&str; 2] = ["--ca-dir=", "--waypoints-only"];

/// Ends where the control plane in `wanted` would put a root of its own in place of those of another
/// mesh, whose pods would then refuse all others. Only what stands in a control plane's namespace ends
/// it: whoever may write in some other one could else keep everybody from installing. Those come back
/// as a note.
pub(super) async fn refuse_others(
    installer: &Installer,
    place: &Place,
    wanted: &[Value],
) -> anyhow::Result<Option<String>> {
    if !wanted.iter().any(distributes) {
        return Ok(None);
    }
    let maps = installer
        .list("v1", "ConfigMap", "istio.io/config=true")
        .await?;
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": SECRET, "namespace": place.namespace },
    });
    // Without the right to look there is no telling: then others' roots are taken for other ones.
    let own = installer.get(&secret).await.ok().flatten();
    let own = own.as_ref().and_then(authority).unwrap_or_default();
    let others = maps.iter().filter(|map| is_others(map, &own));
    let (masters, rest): (Vec<&Value>, Vec<&Value>) = others.partition(|map| {
        let namespace = map["metadata"]["namespace"].as_str();
        namespace == Some(&place.namespace) || namespace == Some(ISTIOS)
    });
    if let Some(map) = masters.first() {
        let map = label(map);
        bail!(
            "{map} has the roots of another mesh, and this one would put its own there and into every other \
             namespace. Let both have the same intermediate (--set control-plane.ca.secret=NAME, a secret as \
             Istio's cacerts), or leave its roots and nodes alone (--set control-plane.waypointsOnly=true). \
             If that mesh is gone, delete its maps first: kubectl delete configmap {MAP} -n NAMESPACE"
        );
    }
    Ok(match &rest[..] {
        [] => None,
        [first, rest @ ..] => Some(format!(
            "{}{} was not written by this mesh, and will get its roots",
            label(first),
            match rest.len() {
                0 => String::new(),
                more => format!(", like {more} more of the name,"),
            }
        )),
    })
}

/// True for a control plane that writes [`MAP`] with a root of its own.
fn distributes(object: &Value) -> bool {
    let containers = object["spec"]["template"]["spec"]["containers"].as_array();
    let args = containers.into_iter().flatten();
    let mut args = args.filter_map(|one| one["args"].as_array()).flatten();
    object["kind"] == "Deployment"
        && !args.any(|arg| {
            let arg = arg.as_str().unwrap_or_default();
            LEAVES_THEM.iter().any(|one| arg.starts_with(one))
        })
}

/// True for a map of roots that are not `own`, and that no control plane of ours has written.
fn is_others(map: &Value, own: &str) -> bool {
    let roots = map["data"][FILE].as_str().unwrap_or_default().trim();
    let is_same = !own.is_empty() && roots.contains(own);
    map["metadata"]["name"] == MAP
        && !roots.is_empty()
        && !is_same
        && !written_by(map, CONTROL_PLANE)
}

/// True for a map of roots, of whichever name, that only our control plane has written.
pub(super) fn is_only_ours(map: &Value) -> bool {
    let is_of_roots = [MAP, OWN_MAP]
        .iter()
        .any(|name| map["metadata"]["name"] == *name);
    is_of_roots && managers(map).all(|one| one == CONTROL_PLANE)
}

fn written_by(map: &Value, manager: &str) -> bool {
    managers(map).any(|one| one == manager)
}

fn managers(map: &Value) -> impl Iterator<Item = &str> {
    let entries = map["metadata"]["managedFields"].as_array();
    let entries = entries.into_iter().flatten();
    entries.filter_map(|one| one["manager"].as_str())
}

/// The certificate in the secret of an authority.
fn authority(secret: &Value) -> Option<String> {
    use base64::Engine as _;
    let text = secret["data"]["ca-cert.pem"].as_str()?;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text)
        .ok()?;
    Some(String::from_utf8(bytes).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_others_unless_we_wrote_them_or_have_the_same() {
        let map = |manager: &str, roots: &str| {
            json!({
                "metadata": { "name": MAP, "managedFields": [{ "manager": manager }] },
                "data": { FILE: roots },
            })
        };
        assert!(is_others(&map("pilot-discovery", "theirs\n"), "ours"));
        assert!(is_others(&map("pilot-discovery", "theirs"), ""));
        assert!(!is_others(&map("pilot-discovery", "old\nours\n"), "ours"));
        assert!(!is_others(&map("isobar", "theirs"), "ours"));
        assert!(!is_others(&map("pilot-discovery", ""), "ours"));
        assert!(is_only_ours(&map("isobar", "ours")));
        assert!(!is_only_ours(&map("pilot-discovery", "ours")));
        let mut both = map("isobar", "ours");
        both["metadata"]["managedFields"] =
            json!([{ "manager": "isobar" }, { "manager": "kubectl" }]);
        assert!(!is_only_ours(&both));
        let mut beside = map("isobar", "ours");
        beside["metadata"]["name"] = OWN_MAP.into();
        assert!(is_only_ours(&beside));
        beside["metadata"]["name"] = "kube-root-ca.crt".into();
        assert!(!is_only_ours(&beside));
    }

    #[test]
    fn with_an_intermediate_or_waypoints_alone_nothing_is_in_the_way() {
        let rendered = |set: &str| {
            let mut values = isobar_chart::Values::default();
            values.set(set).unwrap();
            let chart = isobar_chart::Chart::named("control-plane").unwrap();
            let all = crate::commands::manifest::render(&chart, "mesh", &values).unwrap();
            all.iter().any(|one| distributes(&one.value))
        };
        assert!(rendered("global.tag=x"));
        assert!(!rendered("control-plane.ca.secret=cacerts"));
        assert!(!rendered("control-plane.waypointsOnly=true"));
    }
}

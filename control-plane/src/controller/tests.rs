use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use isobar_objects::{OverlayWriter, Published};
use serde_json::json;

use super::*;
use crate::model::golden_tests::{objects, settings};
use crate::model::{KeptKeys, plan};

const NAMESPACE: &str = "---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: wp}}
";

fn gateway(name: &str) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}, namespace: shop}}
spec:
  gatewayClassName: isobar-waypoint
  listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]
"
    )
}

fn service(name: &str, labels: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}
spec: {{clusterIP: 10.96.0.9, selector: {{app: x}}, ports: [{{name: http, port: 80}}]}}
"
    )
}

/// Follows the plan that these objects lead to; gives the names of the files that are there then.
async fn follow(controller: &mut Controller, dir: &Path, yaml: &str) -> BTreeSet<String> {
    let set = objects(yaml);
    let plan = plan(&set, &settings(), &KeptKeys::default());
    let published = Arc::new(Published {
        objects: Arc::new(set),
        synced: true,
        ..Published::default()
    });
    let plan = Arc::new(plan);
    assert!(controller.follow(&Planned { published, plan }).await);
    let entries = std::fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("service."))
        .collect()
}

fn controller(dir: &Path) -> Controller {
    let writer = Arc::new(OverlayWriter::new(dir).unwrap());
    let earlier = Earlier::InFolder(dir.to_owned());
    let pods = WaypointPods {
        image: "image".to_owned(),
        control_plane: None,
        ..WaypointPods::default()
    };
    Controller::new(writer, earlier, watch::channel(true).1, pods)
}

#[tokio::test]
async fn what_a_deleted_waypoint_was_made_of_goes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut first = controller(dir);
    let both = format!("{NAMESPACE}{}{}", gateway("wp"), gateway("gone"));
    let files = follow(&mut first, dir, &both).await;
    assert!(files.contains("service.shop.gone.json"), "{files:?}");
    // Its Service is still among the objects, because it is written.
    let managed = "gateway.istio.io/managed: istio.io-mesh-controller, \
                   gateway.networking.k8s.io/gateway-name: gone";
    let without = format!("{NAMESPACE}{}{}", gateway("wp"), service("gone", managed));
    let mut later = controller(dir);
    for controller in [&mut first, &mut later] {
        let files = follow(controller, dir, &without).await;
        assert_eq!(files, BTreeSet::from(["service.shop.wp.json".to_owned()]));
    }
}

#[tokio::test]
async fn a_name_that_somebody_else_takes_over_keeps_nothing_of_ours_but_the_patch() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut first = controller(dir);
    let both = format!("{NAMESPACE}{}{}", gateway("wp"), gateway("taken"));
    follow(&mut first, dir, &both).await;
    let taken = format!(
        "{NAMESPACE}{}{}{}",
        gateway("wp"),
        gateway("taken"),
        service("taken", "app: x")
    );
    let taken = taken.replace(
        "labels: {app: x}",
        "labels: {app: x, istio.io/use-waypoint: wp}",
    );
    let expect = ["service.shop.taken.patch.json", "service.shop.wp.json"];
    let mut later = controller(dir);
    for controller in [&mut first, &mut later] {
        let files = follow(controller, dir, &taken).await;
        assert_eq!(files, BTreeSet::from(expect.map(str::to_owned)));
    }
}

#[tokio::test]
async fn what_is_kept_is_neither_written_nor_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut controller = controller(dir);
    let yaml = format!("{NAMESPACE}{}", gateway("wp"));
    follow(&mut controller, dir, &yaml).await;
    let before = std::fs::read(dir.join("service.shop.wp.json")).unwrap();
    let mut written = controller.written.take().unwrap();
    let service = ObjectRef::new(Kind::Service, "shop", "wp");
    let kept = BTreeSet::from([service.clone()]);
    assert!(
        controller
            .bring(&mut written, &BTreeMap::new(), &kept)
            .await
    );
    assert!(written[&service].object.is_some());
    assert_eq!(
        std::fs::read(dir.join("service.shop.wp.json")).unwrap(),
        before
    );
    // A patch onto it is written beside it.
    let patch = serde_json::json!({ "metadata": { "annotations": { "a": "b" } } });
    let patched = Wanted {
        object: None,
        patch: Some(patch),
    };
    let wanted = BTreeMap::from([(service.clone(), patched)]);
    assert!(controller.bring(&mut written, &wanted, &kept).await);
    assert!(written[&service].object.is_some() && written[&service].patch.is_some());
    assert!(dir.join("service.shop.wp.json").exists());
    assert!(
        controller
            .bring(&mut written, &BTreeMap::new(), &BTreeSet::new())
            .await
    );
    assert!(!dir.join("service.shop.wp.json").exists());
}

/// An API server that takes nothing.
#[derive(Debug)]
struct Refuses;

impl Refuses {
    fn answer(object: &ObjectRef) -> Result<(), WriteError> {
        Err(WriteError::Rejected {
            object: object.clone(),
            message: "forbidden".to_owned(),
        })
    }
}

#[async_trait::async_trait]
impl ObjectWriter for Refuses {
    async fn apply(&self, object: &Object) -> Result<(), WriteError> {
        Self::answer(&object.reference())
    }

    async fn patch(&self, object: &ObjectRef, _: &Value) -> Result<(), WriteError> {
        Self::answer(object)
    }

    async fn delete(&self, object: &ObjectRef) -> Result<(), WriteError> {
        Self::answer(object)
    }
}

#[tokio::test]
async fn a_final_answer_about_a_patch_is_told_and_not_hurried() {
    let dir = tempfile::tempdir().unwrap();
    let mut controller = controller(dir.path());
    controller.writer = Arc::new(Refuses);
    let patched = ObjectRef::new(Kind::Service, "shop", "cart");
    let gone = ObjectRef::new(Kind::Service, "shop", "old");
    let want = Wanted {
        object: None,
        patch: Some(json!({ "status": {} })),
    };
    let wanted = BTreeMap::from([(patched.clone(), want.clone())]);
    let mut written = BTreeMap::from([(gone.clone(), want)]);
    let kept = BTreeSet::new();
    let done = controller.bring(&mut written, &wanted, &kept);
    assert!(done.await, "nothing to try again at once");
    let told = controller.rejected.borrow().clone();
    assert_eq!(
        told.into_keys().collect::<Vec<_>>(),
        [patched.clone(), gone.clone()]
    );
    assert!(
        written.contains_key(&gone) && !written.contains_key(&patched),
        "later again"
    );
}

//! The GatewayClass of waypoints: made again when somebody deletes it.

use std::sync::Arc;
use std::time::Duration;

use isobar_objects::gateway_api::GatewayClass;
use isobar_objects::{Object, ObjectSet, ObjectWriter, Published};
use isobar_runtime::{Lifetime, Scope};
use isobar_types::labels;
use tokio::sync::watch;

/// For whoever deletes everything to come to an end.
const AFTER: Duration = Duration::from_secs(1);
/// Pause after a failed write.
const LATER: Duration = Duration::from_secs(15);

/// Keeps the class while `leads` is true: one that was there and is gone is made again as it was. One
/// that was never there nobody wants.
pub(crate) fn keep(
    scope: &Scope,
    objects: watch::Receiver<Arc<Published>>,
    leads: watch::Receiver<bool>,
    writer: Arc<dyn ObjectWriter>,
) {
    let keeper = Keeper {
        objects,
        leads,
        writer,
        seen: None,
    };
    scope.spawn("classes", keeper.run(scope.lifetime()));
}

struct Keeper {
    objects: watch::Receiver<Arc<Published>>,
    leads: watch::Receiver<bool>,
    writer: Arc<dyn ObjectWriter>,
    seen: Option<GatewayClass>,
}

impl Keeper {
    async fn run(mut self, life: Lifetime) {
        loop {
            let missing = self.look();
            tokio::select! {
                () = life.draining() => return,
                changed = self.objects.changed(), if missing.is_none() => if changed.is_err() { return },
                Ok(()) = self.leads.changed() => {}
                () = tokio::time::sleep(AFTER), if missing.is_some() => {
                    if self.look().is_some() && !self.make(missing).await {
                        tokio::time::sleep(LATER).await;
                    }
                }
            }
        }
    }

    /// The class that has to be made.
    fn look(&mut self) -> Option<GatewayClass> {
        let published = self.objects.borrow_and_update().clone();
        if !published.synced {
            return None;
        }
        if let Some(there) = class(&published.objects) {
            let is_ours = there.spec.controller_name == labels::ROUTE_CONTROLLER;
            self.seen = is_ours.then(|| there.clone());
            return None;
        }
        self.seen.clone().filter(|_| *self.leads.borrow())
    }

    async fn make(&self, missing: Option<GatewayClass>) -> bool {
        let Some(mut class) = missing else {
            return true;
        };
        class.status = None;
        match self.writer.apply(&Object::from(class)).await {
            Ok(()) => {
                tracing::info!(
                    class = labels::WAYPOINT_CLASS,
                    "the GatewayClass was deleted, and is there again"
                );
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the GatewayClass was deleted, and cannot be made again");
                false
            }
        }
    }
}

fn class(set: &ObjectSet) -> Option<&GatewayClass> {
    let held = set.gateway_classes.get("", labels::WAYPOINT_CLASS)?;
    Some(&held.object)
}

#[cfg(test)]
mod tests {
    use isobar_objects::OverlayWriter;

    use super::*;
    use crate::model::golden_tests::objects;

    fn published(yaml: &str) -> Arc<Published> {
        Arc::new(Published {
            objects: Arc::new(objects(yaml)),
            synced: true,
            ..Published::default()
        })
    }

    fn text(controller: &str) -> String {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\n\
             metadata: {{name: isobar-waypoint, labels: {{a: b}}}}\nspec: {{controllerName: {controller}}}\n"
        )
    }

    /// What the folder of the writer has after the class was there, and then was not.
    async fn after_deletion(controller: &str, leads: bool) -> usize {
        let folder = tempfile::tempdir().unwrap();
        let writer = Arc::new(OverlayWriter::new(folder.path()).unwrap());
        let (sender, objects) = watch::channel(published(&text(controller)));
        let (_leads, leads) = watch::channel(leads);
        let mut keeper = Keeper {
            objects,
            leads,
            writer,
            seen: None,
        };
        assert!(keeper.look().is_none());
        sender.send_replace(published(""));
        let missing = keeper.look();
        assert!(keeper.make(missing).await);
        std::fs::read_dir(folder.path()).unwrap().count()
    }

    #[tokio::test]
    async fn only_our_own_class_is_made_again_and_only_by_the_one_who_leads() {
        assert_eq!(after_deletion(labels::ROUTE_CONTROLLER, true).await, 1);
        assert_eq!(after_deletion(labels::ROUTE_CONTROLLER, false).await, 0);
        assert_eq!(after_deletion("example.org/other", true).await, 0);
    }
}

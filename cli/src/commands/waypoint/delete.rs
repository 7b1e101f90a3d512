use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use isobar_objects::{Kind, ObjectHead, ObjectRef, ObjectSet, Origin};
use isobar_types::labels;
use serde_json::{Value, json};

use super::bound::{self, Bindings, bound};
use super::tables::waypoints;
use super::{Place, place_of};
use crate::output::{Format, complain, print, print_value};

/// Longest time for proxies to learn of an unbinding before the waypoint goes.
const UNBIND: Duration = Duration::from_secs(10);

impl Place {
    /// Deletes what can be deleted and says why the others stay.
    pub(super) async fn delete(
        &self,
        namespace: &str,
        names: &[String],
        all: bool,
        force: bool,
    ) -> anyhow::Result<ExitCode> {
        let names: Vec<String> = if all {
            let objects = self.objects.now();
            let found = waypoints(&objects, Some(namespace), None);
            found
                .iter()
                .map(|gateway| gateway.name().to_owned())
                .collect()
        } else {
            names.to_vec()
        };
        let (mut deleted, mut kept) = (Vec::new(), Vec::new());
        for name in &names {
            let full = format!("{namespace}/{name}");
            match self.delete_one(namespace, name, force).await {
                Ok(()) => {
                    self.say(&format!("waypoint {full} deleted"))?;
                    deleted.push(full);
                }
                Err(error) => {
                    complain(&error);
                    kept.push(json!({ "waypoint": full, "why": format!("{error:#}") }));
                }
            }
        }
        if names.is_empty() && self.format == Format::Table {
            print(&format!("no waypoints in namespace {namespace}\n"))?;
        }
        if self.format != Format::Table {
            print_value(&json!({ "deleted": deleted, "kept": kept }), self.format)?;
        }
        Ok(if kept.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    async fn delete_one(&self, namespace: &str, name: &str, force: bool) -> anyhow::Result<()> {
        if self.objects.now().gateways.get(namespace, name).is_none() {
            bail!(self.no_waypoint(&format!("{namespace}/{name}")));
        }
        let gateway = ObjectRef::new(Kind::Gateway, namespace, name);
        let found = Bindings::of(&self.objects, namespace, name);
        if let Some(held) = self.objects.users.gateways.get(namespace, name) {
            // It stays, so nothing is refused, whoever else names it.
            self.unbind(namespace, name, &found, true).await?;
            self.objects.writer.remove(&gateway)?;
            bail!(
                "the Gateway of waypoint {namespace}/{name} is in {}; delete it there",
                place_of(&held.origin)
            );
        }
        if !found.yours.is_empty() && !force {
            bail!(still_named(namespace, name, &found.yours));
        }
        self.unbind(namespace, name, &found, force).await?;
        Ok(self.objects.writer.remove(&gateway)?)
    }

    /// Takes back the labels this command wrote, and waits until every proxy knows: nothing is
    /// refused on the way. A label in a file of the user's is the user's to remove.
    async fn unbind(
        &self,
        namespace: &str,
        name: &str,
        found: &Bindings,
        force: bool,
    ) -> anyhow::Result<()> {
        let before = self.sync().await.ok();
        for reference in &found.ours {
            self.objects.writer.remove(reference)?;
            self.say(&format!("{reference} unbound"))?;
        }
        let ours_left = |objects: &ObjectSet| {
            let mut left = bound(objects, namespace, name);
            left.retain(|(one, _)| !found.yours.iter().any(|(yours, _)| yours == one));
            left
        };
        let gone = |objects: &ObjectSet| ours_left(objects).is_empty();
        if !self.objects.become_so(UNBIND, gone).await && !force {
            // The label came into a file of the user's meanwhile.
            let left = ours_left(&self.objects.now());
            bail!(still_named(namespace, name, &left));
        }
        let Some(before) = before else {
            return Ok(());
        };
        let newer = before["revision"]
            .as_u64()
            .filter(|_| !found.ours.is_empty());
        let gateway = format!("{namespace}/{name}");
        let late = self
            .settle(UNBIND, |sync| behind(sync, newer, &gateway))
            .await;
        if !late.is_empty() && !force {
            bail!(
                "not every proxy has confirmed within {UNBIND:?} that waypoint {gateway} is out of \
                 use: {}; the waypoint stays: try again, or say --force and their traffic is refused",
                late.join(", ")
            );
        }
        Ok(())
    }
}

fn still_named(namespace: &str, name: &str, by: &[(ObjectRef, Origin)]) -> String {
    format!(
        "these name waypoint {namespace}/{name} by themselves: {}; remove the label {} there first, \
         or say --force and their traffic is refused",
        bound::text(by),
        labels::USE_WAYPOINT
    )
}

/// Who has not confirmed what is in force: everybody while there is nothing newer than `than`.
/// The waypoint `gateway` itself, which goes, need not.
fn behind(sync: &Value, than: Option<u64>, gateway: &str) -> Vec<String> {
    if than.is_some() && sync["revision"].as_u64() <= than {
        return vec!["the control plane".to_owned()];
    }
    let clients = sync["clients"].as_array().into_iter().flatten();
    clients
        .filter(|client| client["gateway"] != gateway)
        .filter(|client| {
            let mut types = client["types"].as_object().into_iter().flatten();
            types.any(|(_, state)| state["status"] == "STALE")
        })
        .map(crate::commands::status::name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_confirms_but_the_one_that_goes() {
        let sync = |status: &str| {
            json!({"revision": 7, "clients": [{"pod": "p", "namespace": "n", "gateway": "hello/w",
                "types": {"Address": {"status": status}}}]})
        };
        assert!(behind(&sync("SYNCED"), Some(6), "").is_empty());
        assert!(behind(&sync("NOT SENT"), None, "").is_empty());
        assert_eq!(behind(&sync("STALE"), Some(6), ""), ["p.n"]);
        assert!(behind(&sync("STALE"), Some(6), "hello/w").is_empty());
        assert_eq!(behind(&sync("SYNCED"), Some(7), ""), ["the control plane"]);
    }
}

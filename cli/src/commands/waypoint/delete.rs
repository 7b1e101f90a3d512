use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use isobar_objects::{Kind, ObjectHead, ObjectRef, ObjectSet, Origin};
use isobar_types::labels;
use serde_json::json;

use super::bound::{self, Bindings, bound};
use super::readiness::Label;
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
            self.objects.writer.delete(&gateway).await?;
            bail!(
                "the Gateway of waypoint {namespace}/{name} is in {}; delete it there",
                place_of(&held.origin)
            );
        }
        if !found.yours.is_empty() && !force {
            bail!(still_named(namespace, name, &found.yours));
        }
        self.unbind(namespace, name, &found, force).await?;
        Ok(self.objects.writer.delete(&gateway).await?)
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
        for reference in &found.ours {
            self.objects.writer.delete(reference).await?;
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
        if force {
            return Ok(());
        }
        let away: Vec<Label> = found
            .ours
            .iter()
            .map(|object| Label {
                object: object.clone(),
                key: labels::USE_WAYPOINT,
                value: name.to_owned(),
                there: false,
            })
            .collect();
        let gateway = format!("{namespace}/{name}");
        self.in_force(&away, &gateway, UNBIND).await.or(|why| {
            format!(
                "not every proxy has confirmed within {UNBIND:?} that waypoint {gateway} is out of \
                 use: {why}; the waypoint stays: try again, or say --force and their traffic is \
                 refused"
            )
        })
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

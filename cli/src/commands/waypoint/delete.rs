use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use isobar_objects::{Kind, ObjectHead, ObjectRef, ObjectSet};
use isobar_types::{NamespacedName, labels};
use serde_json::json;

use super::bound::{self, Bindings, Naming, bound};
use super::readiness::Label;
use super::tables::waypoints;
use super::{Place, place_of};
use crate::output::{Format, complain, print, print_value};

/// Longest time for proxies to learn of an unbinding before the waypoint goes.
const UNBIND: Duration = Duration::from_secs(10);

/// What becomes of the traffic of a waypoint that is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Afterwards {
    /// Policies hold and nothing else is refused, or the waypoint stays.
    AsBefore,
    /// It goes on without the waypoint's policies.
    Unguarded,
    /// It may be refused.
    Refused,
}

impl Afterwards {
    /// As the flags say.
    pub(super) const fn asked(force: bool, unbind: bool) -> Self {
        match (force, unbind) {
            (true, _) => Self::Refused,
            (false, true) => Self::Unguarded,
            (false, false) => Self::AsBefore,
        }
    }
}

impl Place {
    /// Deletes what can be deleted and says why the others stay.
    pub(super) async fn delete(
        &self,
        namespace: &str,
        names: &[String],
        all: bool,
        after: Afterwards,
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
            match self.delete_one(namespace, name, after).await {
                Ok(()) => deleted.push(full),
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

    async fn delete_one(
        &self,
        namespace: &str,
        name: &str,
        after: Afterwards,
    ) -> anyhow::Result<()> {
        let objects = self.objects.now();
        let found = Bindings::of(&self.objects, namespace, name);
        if objects.gateways.get(namespace, name).is_none() {
            return self.release(namespace, name, &found, after).await;
        }
        let guards = self.guards(&objects, namespace, name);
        if !guards.is_empty() && after == Afterwards::AsBefore {
            bail!(guarded(namespace, name, &guards));
        }
        // Past the waypoint its policies hold for nobody.
        let stays_bound = !guards.is_empty() && after == Afterwards::Refused;
        let gateway = ObjectRef::new(Kind::Gateway, namespace, name);
        if let Some(held) = self.objects.users.gateways.get(namespace, name) {
            // It stays, so nothing is refused, whoever else names it.
            if !stays_bound {
                self.unbind(namespace, name, &found, true).await?;
            }
            self.objects.writer.delete(&gateway).await?;
            bail!(
                "the Gateway of waypoint {namespace}/{name} is in {}; delete it there",
                place_of(&held.origin)
            );
        }
        let is_forced = after == Afterwards::Refused;
        if !found.yours.is_empty() && !is_forced {
            bail!(still_named(namespace, name, &found.yours));
        }
        if stays_bound {
            for reference in &found.ours {
                self.say(&format!(
                    "{reference} stays bound: its traffic is refused from now on"
                ))?;
            }
        } else {
            self.unbind(namespace, name, &found, is_forced).await?;
        }
        self.objects.writer.delete(&gateway).await?;
        self.say(&format!("waypoint {namespace}/{name} deleted"))
    }

    /// Unbinds what is bound to a waypoint that is gone.
    async fn release(
        &self,
        namespace: &str,
        name: &str,
        found: &Bindings,
        after: Afterwards,
    ) -> anyhow::Result<()> {
        if found.ours.is_empty() && found.yours.is_empty() {
            bail!(self.no_waypoint(&format!("{namespace}/{name}")));
        }
        if found.is_second() {
            bail!(
                "there is no waypoint {namespace}/{name} any more, but these still name it as their \
                 second one, and the first one takes all their calls: {}; remove the label {} there",
                bound::text(&found.yours),
                labels::USE_WAYPOINT_CANARY
            );
        }
        if after != Afterwards::Unguarded {
            let ours: Vec<_> = found.ours.iter().map(ToString::to_string).collect();
            let yours = bound::text(&found.yours);
            let all: Vec<String> = ours
                .into_iter()
                .chain((!yours.is_empty()).then_some(yours))
                .collect();
            bail!(
                "there is no waypoint {namespace}/{name} any more, and the traffic of what is bound to \
                 it is refused: {}; --unbind lets it go on without a waypoint",
                all.join(", ")
            );
        }
        self.unbind(namespace, name, found, false).await?;
        if !found.yours.is_empty() {
            bail!(still_named(namespace, name, &found.yours));
        }
        Ok(())
    }

    /// Policies that would hold for nobody without the waypoint.
    fn guards(&self, objects: &ObjectSet, namespace: &str, name: &str) -> Vec<ObjectRef> {
        let waypoint = NamespacedName {
            namespace: namespace.into(),
            name: name.into(),
        };
        isobar_explain::guards(objects, &waypoint, &self.root)
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
            left.retain(|one| !found.yours.iter().any(|yours| yours.object == one.object));
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

fn guarded(namespace: &str, name: &str, by: &[ObjectRef]) -> String {
    let by: Vec<_> = by.iter().map(ToString::to_string).collect();
    format!(
        "waypoint {namespace}/{name} enforces {}, which nobody would without it; delete that first, or \
         say --unbind and traffic goes on without it, or --force and what is bound to the waypoint \
         stays bound: its traffic is refused then",
        by.join(", ")
    )
}

fn still_named(namespace: &str, name: &str, by: &[Naming]) -> String {
    let mut keys: Vec<&str> = by.iter().map(Naming::key).collect();
    keys.sort_unstable();
    keys.dedup();
    let effect = match keys[..] {
        [labels::USE_WAYPOINT_CANARY] => "the first waypoint takes all their calls",
        _ => "their traffic is refused",
    };
    format!(
        "these name waypoint {namespace}/{name} by themselves: {}; remove the label {} there first, \
         or say --force and {effect}",
        bound::text(by),
        keys.join(", ")
    )
}

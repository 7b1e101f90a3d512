//! From published objects to a served catalog: plans, compares, publishes.

mod changeover;
mod served;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use isobar_objects::Published;
use isobar_runtime::Lifetime;
use tokio::sync::watch;

use crate::ca::Roster;
use crate::metrics::Metrics;
use crate::model::{
    Front, Fronts, Kept, KeptKeys, Outcome, Patch, Plan, Settings, invalid, plan_during, relations,
};
use crate::xds::catalog::Catalog;
use crate::xds::clients::Clients;
use crate::xds::kind::Kind;
pub(crate) use changeover::Changeover;
use served::Press;

/// Changes that come together are planned together: after the first, this long.
const DEBOUNCE: Duration = Duration::from_millis(10);

/// A plan that was made of everything is brought up to date for so long; the next change then plans
/// everything again, so that no mistake in that can last.
const WHOLE: Duration = Duration::from_secs(300);

/// A plan and the objects it was made from.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    /// Objects and what is wrong with them.
    pub(crate) published: Arc<Published>,
    /// What follows from them, without what proxies are told: that is in the catalog.
    pub(crate) plan: Arc<Plan>,
}

/// Makes plans and publishes what follows.
pub(crate) struct Engine {
    /// Settings of the mesh.
    pub(crate) settings: Settings,
    /// For discovery sessions.
    pub(crate) catalogs: watch::Sender<Arc<Catalog>>,
    /// For the certificate authority.
    pub(crate) rosters: watch::Sender<Arc<Roster>>,
    /// For the controller and the debug pages.
    pub(crate) plans: watch::Sender<Option<Planned>>,
    /// Counters.
    pub(crate) metrics: Metrics,
    /// Label keys served before.
    pub(crate) kept_keys: KeptKeys,
    /// Who has confirmed what.
    pub(crate) clients: Clients,
    /// Bindings to waypoints that change.
    pub(crate) changeover: Changeover,
}

impl Engine {
    /// Follows `source` until `life` ends. Nothing is published before the source is complete.
    pub(crate) async fn run(mut self, mut source: watch::Receiver<Arc<Published>>, life: Lifetime) {
        let mut kept = None;
        loop {
            let published = source.borrow_and_update().clone();
            if published.synced {
                kept = Some(self.publish(published, kept.take()));
            }
            tokio::select! {
                () = life.stopped() => return,
                changed = source.changed() => if changed.is_err() { return },
                // The same objects, and another plan.
                () = step(&mut self.changeover, &self.clients) => kept = None,
            }
            tokio::time::sleep(DEBOUNCE).await;
        }
    }

    /// Publishes what follows from `published`, and keeps what is needed to do it again for less.
    fn publish(&mut self, published: Arc<Published>, kept: Option<Kept>) -> Kept {
        let started = Instant::now();
        let objects = published.objects.len();
        // What is told about an object that is not valid is no change of the objects in force.
        let is_as_told = self.plans.borrow().as_ref().is_some_and(|planned| {
            Arc::ptr_eq(&planned.published.invalid, &published.invalid)
                || planned.published.invalid == published.invalid
        });
        let is_still = !self.changeover.is_active();
        let recent = kept.filter(|kept| is_as_told && is_still && kept.age() < WHOLE);
        let patch = recent.and_then(|mut kept| {
            let patch = kept.patch(&published.objects, &self.settings)?;
            Some((kept, patch))
        });
        let is_patch = patch.is_some();
        let kept = match patch {
            Some((kept, patch)) => {
                self.patch(&patch, published, &kept);
                kept
            }
            None => self.plan(published),
        };
        let took = started.elapsed();
        self.metrics.planned(took, is_patch);
        tracing::debug!(
            revision = self.catalogs.borrow().revision,
            objects,
            patched = is_patch,
            micros = took.as_micros(),
            "planned",
        );
        kept
    }

    /// Only pods have changed, and they touch nothing else.
    fn patch(&mut self, patch: &Patch, published: Arc<Published>, kept: &Kept) {
        self.rosters.send_if_modified(|current| {
            let mut roster = (**current).clone();
            for pod in &patch.pods {
                let (namespace, name) = (&pod.key.namespace, &pod.key.name);
                match &pod.record {
                    Some(record) => roster.insert(namespace, name, record.clone()),
                    None => roster.remove(namespace, name),
                }
            }
            let changed = **current != roster;
            if changed {
                *current = Arc::new(roster);
            }
            changed
        });
        for pod in &patch.pods {
            match &pod.workload {
                Outcome::Same => {}
                Outcome::Put(one) => {
                    let front = Front::of_workload(&one.wire);
                    self.changeover.put(&pod.uid, Some(front));
                }
                Outcome::Gone => self.changeover.put(&pod.uid, None),
            }
        }
        let previous = self.catalogs.borrow().clone();
        let press = Press(&self.metrics);
        if let Some(catalog) = served::patched(patch, &previous, &self.kept_keys, &press) {
            self.count(&catalog);
            self.catalogs.send_replace(Arc::new(catalog));
        }
        // Whoever looks sees the objects as they are; whoever waits for a plan has no new one.
        self.plans.send_if_modified(|current| {
            *current = Some(Planned {
                published,
                plan: kept.plan().clone(),
            });
            patch.others
        });
    }

    /// Plans everything.
    fn plan(&mut self, published: Arc<Published>) -> Kept {
        let mut plan = self.planned(&published);
        if self.changeover.notice(&mut plan, Instant::now()) {
            // Two of them are much for memory.
            drop(plan);
            plan = self.planned(&published);
            plan.fronts = Fronts::new();
        }
        invalid::tell(
            &published.invalid,
            &self.settings,
            &mut plan.verdicts,
            &mut plan.routes,
        );
        for waypoint in &plan.waypoints {
            self.kept_keys
                .insert(waypoint.key.clone(), waypoint.label_keys.clone());
        }
        let any_waypoint = !plan.waypoints.is_empty();
        let relations = relations(&plan.workloads, any_waypoint, &published.objects);
        let previous = self.catalogs.borrow().clone();
        let mut catalog = served::catalog(&mut plan, &previous, &Press(&self.metrics));
        catalog.changing = self.changeover.len();
        self.changeover.published(catalog.revision, Instant::now());
        drop(previous);
        self.count(&catalog);
        let roster = Arc::new(std::mem::take(&mut plan.roster));
        self.rosters.send_if_modified(|current| {
            let changed = **current != *roster;
            if changed {
                *current = roster;
            }
            changed
        });
        self.catalogs.send_replace(Arc::new(catalog));
        // It is in the catalog now, as the workloads are.
        let standings = std::mem::take(&mut plan.standings);
        plan.entries = Vec::new();
        plan.authorizations = Vec::new();
        plan.outbound = Vec::new();
        plan.waypoints = Vec::new();
        let plan = Arc::new(plan);
        let kept = Kept::of(
            published.objects.clone(),
            plan.clone(),
            relations,
            standings,
        );
        self.plans.send_replace(Some(Planned { published, plan }));
        kept
    }

    fn planned(&self, published: &Published) -> Plan {
        let (objects, handovers) = (&published.objects, self.changeover.handovers());
        plan_during(objects, &self.settings, &self.kept_keys, handovers)
    }

    fn count(&self, catalog: &Catalog) {
        let sizes = [
            (Kind::Address, catalog.addresses.len()),
            (Kind::Authorization, catalog.authorizations.len()),
        ];
        for (kind, size) in sizes {
            self.metrics.resources(kind.label(), size);
        }
    }
}

/// Ends when a binding that changes has taken its next step; never while none changes.
async fn step(changeover: &mut Changeover, clients: &Clients) {
    while let Some(deadline) = changeover.deadline() {
        if changeover.advance(clients, Instant::now()) {
            return;
        }
        tokio::select! {
            () = clients.progress() => {}
            () = tokio::time::sleep_until(deadline.into()) => {}
        }
    }
    std::future::pending().await
}

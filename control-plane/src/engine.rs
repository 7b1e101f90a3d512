//! From published objects to a served catalog: plans, compares, publishes.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use isobar_objects::Published;
use isobar_proto::istio::workload::{Address, address};
use isobar_runtime::Lifetime;
use isobar_types::Str;
use tokio::sync::watch;

use crate::ca::Roster;
use crate::metrics::Metrics;
use crate::model::{KeptKeys, Plan, Settings, plan};
use crate::xds::catalog::{Catalog, Instance, Resource, Resources, WaypointResources, share};
use crate::xds::kind::Kind;

/// Changes that come together are planned together: after the first, this long.
const DEBOUNCE: Duration = Duration::from_millis(10);

/// Order inside an Address response: what others refer to first.
const WAYPOINT_SERVICE: u8 = 0;
const WAYPOINT_POD: u8 = 1;
const SERVICE: u8 = 2;
const WORKLOAD: u8 = 3;

/// A plan and the objects it was made from.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    /// Objects and what is wrong with them.
    pub(crate) published: Arc<Published>,
    /// What follows from them.
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
}

impl Engine {
    /// Follows `source` until `life` ends. Nothing is published before the source is complete.
    pub(crate) async fn run(mut self, mut source: watch::Receiver<Arc<Published>>, life: Lifetime) {
        loop {
            let published = source.borrow_and_update().clone();
            if published.synced {
                self.publish(published);
            }
            tokio::select! {
                () = life.stopped() => return,
                changed = source.changed() => if changed.is_err() { return },
            }
            tokio::time::sleep(DEBOUNCE).await;
        }
    }

    fn publish(&mut self, published: Arc<Published>) {
        let started = Instant::now();
        let plan = plan(&published.objects, &self.settings, &self.kept_keys);
        for waypoint in &plan.waypoints {
            self.kept_keys
                .insert(waypoint.key.clone(), waypoint.label_keys.clone());
        }
        let previous = self.catalogs.borrow().clone();
        let catalog = catalog(&plan, &previous);
        let took = started.elapsed();
        self.metrics.planned(took);
        self.metrics
            .resources(Kind::Address.label(), catalog.addresses.len());
        self.metrics
            .resources(Kind::Authorization.label(), catalog.authorizations.len());
        tracing::debug!(
            revision = catalog.revision,
            objects = published.objects.len(),
            micros = took.as_micros(),
            "planned",
        );
        let roster = Arc::new(plan.roster.clone());
        self.rosters.send_if_modified(|current| {
            let changed = **current != *roster;
            if changed {
                *current = roster;
            }
            changed
        });
        self.catalogs.send_replace(Arc::new(catalog));
        self.plans.send_replace(Some(Planned {
            published,
            plan: Arc::new(plan),
        }));
    }
}

/// Serialises a plan; what did not change is shared with `previous`.
pub(crate) fn catalog(plan: &Plan, previous: &Catalog) -> Catalog {
    let authorizations = plan
        .authorizations
        .iter()
        .map(|policy| {
            let name = format!("{}/{}", policy.namespace, policy.name);
            Resource::new(Kind::Authorization, &name, policy)
        })
        .collect();
    let outbound = plan.outbound.iter().map(|policy| {
        let name = isobar_state::convert::outbound_policy_name(policy);
        Resource::new(Kind::OutboundPolicy, &name, policy)
    });
    let none = WaypointResources::default();
    let waypoints = plan
        .waypoints
        .iter()
        .map(|waypoint| {
            let key: Str = waypoint.key.to_string().into();
            let before = previous.waypoints.get(&key).unwrap_or(&none);
            let kinds = waypoint_resources(waypoint, before);
            (key, kinds)
        })
        .collect();
    let instances = plan
        .instances
        .iter()
        .map(|instance| {
            let gateway = Instance {
                gateway: instance.gateway.to_string().into(),
                identity: instance.identity.clone(),
                uid: instance.uid.clone(),
            };
            (instance.pod.to_string().into(), gateway)
        })
        .collect();
    Catalog {
        revision: previous.revision + 1,
        addresses: share(&previous.addresses, addresses(plan)),
        authorizations: share(&previous.authorizations, authorizations),
        outbound: share(&previous.outbound, outbound.collect()),
        waypoints,
        instances,
        names: OnceLock::new(),
    }
}

fn addresses(plan: &Plan) -> Vec<Resource> {
    let services = plan.services.iter().map(|service| {
        let name = format!("{}/{}", service.wire.namespace, service.wire.hostname);
        let message = Address {
            r#type: Some(address::Type::Service(service.wire.clone())),
        };
        Resource {
            rank: if service.is_waypoint {
                WAYPOINT_SERVICE
            } else {
                SERVICE
            },
            ..Resource::new(Kind::Address, &name, &message)
        }
    });
    let entries = plan.entries.iter().map(|service| {
        let name = format!("{}/{}", service.namespace, service.hostname);
        let message = Address {
            r#type: Some(address::Type::Service(service.clone())),
        };
        Resource {
            rank: SERVICE,
            ..Resource::new(Kind::Address, &name, &message)
        }
    });
    let workloads = plan.workloads.iter().map(|workload| {
        let message = Address {
            r#type: Some(address::Type::Workload(workload.wire.clone())),
        };
        let needs = workload.wire.authorization_policies.iter();
        Resource {
            rank: if workload.instance_of.is_some() {
                WAYPOINT_POD
            } else {
                WORKLOAD
            },
            needs: needs.map(|key| key.as_str().into()).collect(),
            ..Resource::new(Kind::Address, &workload.wire.uid, &message)
        }
    });
    services.chain(entries).chain(workloads).collect()
}

fn waypoint_resources(
    waypoint: &crate::model::WaypointPlan,
    before: &WaypointResources,
) -> WaypointResources {
    let key = |namespace: &str, name: &str| format!("{namespace}/{name}");
    let mut kinds: WaypointResources = Default::default();
    let mut put = |kind: Kind, fresh: Vec<Resource>| {
        let shared: Arc<Resources> = share(&before[kind.index()], fresh);
        kinds[kind.index()] = shared;
    };
    let own = Resource::new(
        Kind::Waypoint,
        &waypoint.key.to_string(),
        &waypoint.waypoint,
    );
    put(Kind::Waypoint, vec![own]);
    let policies = waypoint.authorizations.iter().map(|policy| {
        let name = key(&policy.namespace, &policy.name);
        Resource::new(Kind::WaypointAuthorization, &name, policy)
    });
    put(Kind::WaypointAuthorization, policies.collect());
    let rates = waypoint.rate_limits.iter().map(|limits| {
        let name = key(&limits.namespace, &limits.name);
        Resource::new(Kind::RateLimitPolicy, &name, limits)
    });
    put(Kind::RateLimitPolicy, rates.collect());
    let labels = waypoint
        .labels
        .iter()
        .map(|labels| Resource::new(Kind::WorkloadLabels, &labels.uid, labels));
    put(Kind::WorkloadLabels, labels.collect());
    let rules = waypoint.rules.iter().map(|rule| {
        let name = key(&rule.namespace, &rule.name);
        Resource::new(Kind::DestinationRule, &name, rule)
    });
    put(Kind::DestinationRule, rules.collect());
    let routes = waypoint.routes.iter().map(|route| {
        let name = key(&route.namespace, &route.name);
        Resource::new(Kind::VirtualService, &name, route)
    });
    put(Kind::VirtualService, routes.collect());
    kinds
}

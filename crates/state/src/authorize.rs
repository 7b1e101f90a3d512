use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use isobar_types::{Identity, NamespacedName, Reason, converted};

use crate::gateway::{any_member, gateway_name, has_identity};
use crate::policy::{Action, Authorization, Clause, Match, Rule, ServiceAccountMatch, TextMatch};
use crate::policy_group::{Caller, Class, PolicyGroup};
use crate::snapshot::{Snapshot, Traversal};
use crate::workload::{GatewayAddress, Workload};

/// Who wants in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// From the client certificate; `None` for plaintext.
    pub identity: Option<Identity>,
    /// Address of the TCP peer.
    pub ip: IpAddr,
}

/// Proof that a connection was authorised: only [`authorize`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    version: u64,
    allowed_by: Option<NamespacedName>,
    dry_runs: Vec<DryRun>,
    missing: Vec<NamespacedName>,
}

impl Permit {
    /// Snapshot version the decision was made on.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// The ALLOW policy that matched; `None` if there is no ALLOW policy at all.
    #[must_use]
    pub const fn allowed_by(&self) -> Option<&NamespacedName> {
        self.allowed_by.as_ref()
    }

    /// What policies that are not enforced would have done.
    #[must_use]
    pub fn dry_runs(&self) -> &[DryRun] {
        &self.dry_runs
    }

    /// Policies the workload lists that have not arrived: skipped, worth a warning.
    #[must_use]
    pub fn missing(&self) -> &[NamespacedName] {
        &self.missing
    }
}

/// A connection that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Denied {
    /// For metrics and logs.
    pub reason: Reason,
    /// The DENY policy that matched; `None` if no ALLOW policy did, or for a bypassed waypoint.
    pub policy: Option<NamespacedName>,
    /// Names what is wrong; the texts of policy denials are Istio's, people search for them.
    pub detail: String,
    /// What policies that are not enforced would have done.
    pub dry_runs: Vec<DryRun>,
}

/// What a policy that is not enforced would have done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DryRun {
    /// The policy; `None`: ALLOW policies in dry run exist, and none matched.
    pub policy: Option<NamespacedName>,
    /// What it would have said.
    pub action: Action,
}

impl DryRun {
    /// The reason it would have refused with, if it would have.
    #[must_use]
    pub fn refusal(&self) -> Option<Reason> {
        let refuses = match self.action {
            Action::Deny => true,
            Action::Allow => self.policy.is_none(),
        };
        refuses.then_some(Reason::PolicyDenied)
    }
}

/// Decides whether `peer` may connect to `dst` (the address that will really be dialled) at the
/// local `workload`: any matching DENY refuses; then the workload's waypoint must have been passed;
/// then, if an enforced ALLOW exists, one must match.
///
/// # Errors
/// [`Denied`] with the policy, or with what is bypassed.
pub fn authorize(
    snapshot: &Snapshot,
    peer: &Peer,
    workload: &Workload,
    dst: SocketAddr,
) -> Result<Permit, Denied> {
    let attributes = Attributes::new(peer, dst);
    let policies = Applicable::to(snapshot, workload);
    let first = |class| policies.first(class, attributes.caller(), |p| attributes.matches(p));
    let mut dry_runs = Vec::new();
    if let Some(hit) = first((Action::Deny, true)) {
        dry_runs.push(DryRun {
            policy: Some(hit.key.clone()),
            action: Action::Deny,
        });
    }
    if let Some(policy) = first((Action::Deny, false)) {
        return Err(explicit(snapshot, peer, workload, policy, dry_runs));
    }
    if let Err(detail) = came_through_waypoint(snapshot, peer, workload) {
        return Err(Denied {
            reason: Reason::WaypointBypassed,
            policy: None,
            detail,
            dry_runs,
        });
    }
    if policies.has((Action::Allow, true)) {
        dry_runs.push(DryRun {
            policy: first((Action::Allow, true)).map(|p| p.key.clone()),
            action: Action::Allow,
        });
    }
    let hit = first((Action::Allow, false));
    if hit.is_none() && policies.has((Action::Allow, false)) {
        return Err(Denied {
            reason: Reason::PolicyDenied,
            policy: None,
            detail: "allow policies exist, but none allowed".to_owned(),
            dry_runs,
        });
    }
    Ok(Permit {
        version: snapshot.version(),
        allowed_by: hit.map(|p| p.key.clone()),
        dry_runs,
        missing: policies.missing,
    })
}

/// The refusal by a DENY. One that stands for a waypoint tells what it stands for.
fn explicit(
    snapshot: &Snapshot,
    peer: &Peer,
    workload: &Workload,
    policy: &Authorization,
    dry_runs: Vec<DryRun>,
) -> Denied {
    let text = format!("explicitly denied by: {}", policy.key);
    let (reason, detail) = if policy.key.name.starts_with(converted::WAYPOINT) {
        let bypassed = came_through_waypoint(snapshot, peer, workload).err();
        (Reason::WaypointBypassed, bypassed.unwrap_or(text))
    } else if peer.identity.is_none() && wants_identity(policy) {
        (Reason::PlaintextRefused, text)
    } else {
        (Reason::PolicyDenied, text)
    };
    Denied {
        reason,
        policy: Some(policy.key.clone()),
        detail,
        dry_runs,
    }
}

/// Decides at `waypoint` whether a DENY on `workload` speaks against `peer`, who calls through that
/// waypoint. The node proxy at `workload` asks the same policies, but about the waypoint, which is
/// all it sees: a DENY on a caller would be skipped. A match that spares this waypoint by name is
/// about the way to the workload and stays with the node proxy, except where it stands for
/// NetworkPolicies, which spare the waypoint because it applies them itself: to callers without an
/// identity too, as a network plugin sees nobody but the waypoint. ALLOW policies are the node proxy's
/// alone.
///
/// # Errors
/// [`Denied`] with the policy.
pub fn authorize_through(
    snapshot: &Snapshot,
    waypoint: &Identity,
    peer: &Peer,
    workload: &Workload,
    dst: SocketAddr,
) -> Result<(), Denied> {
    let denying = (Action::Deny, false);
    let policies = Applicable::to(snapshot, workload);
    if !policies.has(denying) {
        return Ok(());
    }
    let everything = Attributes {
        only_at: peer.identity.is_none().then(|| waypoint.principal()),
        ..Attributes::new(peer, dst)
    };
    let of_callers = Attributes {
        way: Some((waypoint, waypoint.principal())),
        ..Attributes::new(peer, dst)
    };
    let speaks = |policy: &Authorization| {
        if policy.key.name.starts_with(converted::NETWORK_POLICY) {
            everything.matches(policy)
        } else {
            of_callers.matches(policy)
        }
    };
    match policies.first(denying, everything.caller(), speaks) {
        None => Ok(()),
        Some(policy) => Err(Denied {
            reason: Reason::PolicyDenied,
            policy: Some(policy.key.clone()),
            detail: format!("explicitly denied by: {}", policy.key),
            dry_runs: Vec::new(),
        }),
    }
}

/// Policies of the workload's namespace, global ones, and those the workload lists.
struct Applicable<'a> {
    groups: [Option<&'a PolicyGroup>; 2],
    listed: Vec<&'a Authorization>,
    /// Listed ones that are not there.
    missing: Vec<NamespacedName>,
}

impl<'a> Applicable<'a> {
    fn to(snapshot: &'a Snapshot, workload: &Workload) -> Self {
        let namespace = snapshot.namespace_policies.value(&workload.namespace);
        let mut all = Self {
            groups: [namespace.map(Arc::as_ref), Some(&snapshot.global_policies)],
            listed: Vec::new(),
            missing: Vec::new(),
        };
        for key in &workload.authorization_policies {
            match snapshot.authorization(key) {
                Some(policy) => all.listed.push(policy),
                None => all.missing.push(key.clone()),
            }
        }
        all
    }

    fn listed(&self, class: Class) -> impl Iterator<Item = &'a Authorization> {
        let listed = self.listed.iter().copied();
        listed.filter(move |policy| (policy.action, policy.dry_run) == class)
    }

    fn has(&self, class: Class) -> bool {
        let groups = self.groups.iter().flatten();
        groups.copied().any(|group| group.has(class)) || self.listed(class).next().is_some()
    }

    /// The first of a class that hits.
    fn first(
        &self,
        class: Class,
        caller: Caller<'_>,
        hits: impl Fn(&Authorization) -> bool,
    ) -> Option<&'a Authorization> {
        let mut groups = self.groups.iter().flatten().copied();
        groups
            .find_map(|group| group.first(class, caller, &hits))
            .or_else(|| self.listed(class).find(|policy| hits(policy)))
    }
}

/// True for a policy of the kind "no plaintext": it denies whoever has no principal.
fn wants_identity(policy: &Authorization) -> bool {
    let clauses = policy.rules.iter().flat_map(|r| &r.clauses);
    clauses
        .flat_map(|c| &c.matches)
        .any(|m| m.not_principals.contains(&TextMatch::Presence))
}

/// A workload bound to a waypoint takes traffic from its waypoints only: its own, and those of the
/// services it belongs to. The waypoint's own workloads are bound to nothing.
fn came_through_waypoint(
    snapshot: &Snapshot,
    peer: &Peer,
    workload: &Workload,
) -> Result<(), String> {
    let Some(own) = &workload.waypoint else {
        return Ok(());
    };
    if snapshot.traversal == Traversal::Trusted || workload.also_direct {
        return Ok(());
    }
    let namespace = &*workload.namespace;
    let waypoints = || accepted_waypoints(snapshot, workload);
    let is_member = |gateway: &GatewayAddress| {
        any_member(snapshot, gateway, namespace, |w| w.uid == workload.uid)
    };
    if waypoints().any(is_member) {
        return Ok(());
    }
    if let Some(identity) = &peer.identity
        && waypoints().any(|gateway| has_identity(snapshot, gateway, namespace, identity))
    {
        return Ok(());
    }
    let who = peer.identity.as_ref().map_or_else(
        || format!("a plaintext client at {}", peer.ip),
        |identity| format!("{identity} at {}", peer.ip),
    );
    Err(format!(
        "workload {} is bound to waypoint {} and takes traffic from it only; this came directly \
         from {who}",
        workload.display_name(),
        gateway_name(own)
    ))
}

fn accepted_waypoints<'a>(
    snapshot: &'a Snapshot,
    workload: &'a Workload,
) -> impl Iterator<Item = &'a GatewayAddress> {
    let services = workload
        .services
        .keys()
        .filter_map(|key| snapshot.service(key));
    let of_services = services.flat_map(|service| service.accepted_waypoints());
    workload.accepted_waypoints().chain(of_services)
}

/// What policies may look at.
struct Attributes<'a> {
    identity: Option<&'a Identity>,
    principal: Option<String>,
    source: IpAddr,
    destination: SocketAddr,
    /// The waypoint that is passed, and its principal: matches that spare it never hit.
    way: Option<(&'a Identity, String)>,
    /// Principal of the waypoint by which alone a caller without an identity came: a match that asks
    /// for any identity, and spares that waypoint, hits it as well.
    only_at: Option<String>,
}

impl<'a> Attributes<'a> {
    fn new(peer: &'a Peer, destination: SocketAddr) -> Self {
        let ip = destination.ip().to_canonical();
        Self {
            identity: peer.identity.as_ref(),
            principal: peer.identity.as_ref().map(Identity::principal),
            source: peer.ip.to_canonical(),
            destination: SocketAddr::new(ip, destination.port()),
            way: None,
            only_at: None,
        }
    }

    /// What policies are found by.
    fn caller(&self) -> Caller<'_> {
        Caller {
            identity: self.identity,
            principal: self.principal.as_deref(),
            port: self.destination.port(),
        }
    }

    fn matches(&self, policy: &Authorization) -> bool {
        policy.rules.iter().any(|rule| self.rule(rule))
    }

    fn rule(&self, rule: &Rule) -> bool {
        rule.clauses.iter().all(|clause| self.clause(clause))
    }

    fn clause(&self, clause: &Clause) -> bool {
        clause.matches.is_empty() || clause.matches.iter().any(|m| self.one(m))
    }

    fn one(&self, m: &Match) -> bool {
        // An empty match stands for conditions that could not be expressed: it must never hit.
        if m.is_empty() || self.spares_the_way(m) {
            return false;
        }
        let namespace = self.identity.map_or("", |i| &*i.namespace);
        let port = self.destination.port();
        let principal = |t: &TextMatch| self.principal.as_deref().is_some_and(|p| t.matches(p));
        let is_somebody = self.came_by(m);
        let one_of = |t: &TextMatch| principal(t) || is_somebody && *t == TextMatch::Presence;
        let from = self.source;
        let to = self.destination.ip();
        group(&m.destination_ips, &m.not_destination_ips, |n| {
            n.contains(&to)
        }) && group(&m.source_ips, &m.not_source_ips, |n| n.contains(&from))
            && group(&m.destination_ports, &m.not_destination_ports, |p| {
                *p == port
            })
            && group(&m.service_accounts, &m.not_service_accounts, |a| {
                self.account(a)
            })
            && (m.principals.is_empty() || m.principals.iter().any(one_of))
            && !m.not_principals.iter().any(principal)
            && group(&m.namespaces, &m.not_namespaces, |t| t.matches(namespace))
    }

    /// True if the match names the waypoint that is passed among those it does not hit.
    fn spares_the_way(&self, m: &Match) -> bool {
        let Some((waypoint, principal)) = &self.way else {
            return false;
        };
        let named = |t: &TextMatch| matches!(t, TextMatch::Exact(text) if **text == **principal);
        let mut accounts = m.not_service_accounts.iter();
        m.not_principals.iter().any(named) || accounts.any(|a| is_account(waypoint, a))
    }

    /// True if the match spares the waypoint that a caller without an identity came by.
    fn came_by(&self, m: &Match) -> bool {
        self.only_at.as_deref().is_some_and(|principal| {
            let named = |t: &TextMatch| matches!(t, TextMatch::Exact(text) if **text == *principal);
            m.not_principals.iter().any(named)
        })
    }

    fn account(&self, want: &ServiceAccountMatch) -> bool {
        self.identity.is_some_and(|i| is_account(i, want))
    }
}

fn is_account(identity: &Identity, want: &ServiceAccountMatch) -> bool {
    identity.namespace == want.namespace && identity.service_account == want.service_account
}

fn group<T>(positive: &[T], negative: &[T], hit: impl Fn(&T) -> bool) -> bool {
    (positive.is_empty() || positive.iter().any(&hit)) && !negative.iter().any(&hit)
}

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::finding::Finding;
use crate::istio::VirtualService;
use crate::kinds::ObjectRef;
use crate::object::ObjectHead;
use crate::set::ObjectSet;
use crate::validate::host_claims;

/// Hosts routed in one namespace, and by whom.
pub(crate) type Claims = BTreeMap<(String, String), ObjectRef>;

/// A VirtualService that wants to be in force.
pub(crate) struct Contender<'a> {
    pub(crate) object: &'a VirtualService,
    /// Place of its file and document among all: earlier wins.
    pub(crate) order: usize,
}

/// Who gets its hosts, and what the others are told.
#[derive(Default)]
pub(crate) struct Settled {
    pub(crate) claims: Claims,
    pub(crate) refused: Vec<(ObjectRef, Finding)>,
}

/// Gives every host of a namespace to one VirtualService: to the one that has it already, else to
/// the older, else to the earlier file.
pub(crate) fn settle(
    mut contenders: Vec<Contender<'_>>,
    before: &Claims,
    set: &ObjectSet,
) -> Settled {
    let wanted = |object: &VirtualService| -> Vec<(usize, (String, String))> {
        let claims = host_claims(object, set).into_iter();
        claims
            .map(|claim| (claim.index, (object.namespace().to_owned(), claim.host)))
            .collect()
    };
    let holds_all = |contender: &Contender<'_>| {
        let reference = contender.object.reference();
        let hosts = wanted(contender.object);
        hosts
            .iter()
            .all(|(_, host)| before.get(host) == Some(&reference))
    };
    contenders.sort_by_cached_key(|contender| {
        (
            !holds_all(contender),
            contender.object.created(),
            contender.order,
        )
    });
    let mut settled = Settled::default();
    for contender in contenders {
        let reference = contender.object.reference();
        let hosts = wanted(contender.object);
        let taken = hosts.iter().find_map(|(index, host)| {
            let owner = settled
                .claims
                .get(host)
                .filter(|owner| **owner != reference)?;
            Some((*index, &host.1, owner.clone()))
        });
        if let Some((index, host, owner)) = taken {
            let finding = Finding::error(
                format!("spec.hosts[{index}]"),
                format!("duplicate host: {host} is already routed by {owner}"),
            );
            let finding = finding.with_hint("put the rules into one VirtualService");
            settled.refused.push((reference, finding));
        } else {
            let hosts = hosts.into_iter().map(|(_, host)| (host, reference.clone()));
            settled.claims.extend(hosts);
        }
    }
    settled
}

/// Claims the hosts of a version that was in force before, if all are free.
pub(crate) fn reclaim(object: &VirtualService, claims: &mut Claims, set: &ObjectSet) -> bool {
    let reference = object.reference();
    let namespace = object.namespace();
    let hosts = host_claims(object, set).into_iter();
    let hosts: Vec<_> = hosts
        .map(|claim| (namespace.to_owned(), claim.host))
        .collect();
    let free = hosts
        .iter()
        .all(|host| claims.get(host).is_none_or(|owner| *owner == reference));
    if free {
        claims.extend(hosts.into_iter().map(|host| (host, reference.clone())));
    }
    free
}

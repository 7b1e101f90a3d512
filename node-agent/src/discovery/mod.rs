//! Pods that ran before anybody wrote their sandboxes down, found by their processes.
//!
//! Every runtime puts a pod's processes into a control group that carries the pod's uid, so `/proc`
//! tells which network namespace is whose. Nothing is taken on trust: a namespace counts only if
//! one of the pod's addresses is in it.

mod scan;
mod uid;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use isobar_net::NetNs;
use isobar_objects::{ObjectHead as _, Pod, Published, pods};
use tokio::time::Instant;

use crate::board::PodView;
use crate::desire::{NodeDefaults, desire, is_annotated, runtime_uid};
use crate::pod::machine::Goal;
use crate::sandbox::Sandbox;

pub use scan::{Found, scan};
pub use uid::{key, uid_in_cgroup, uid_in_mounts};

/// Between two looks at `/proc` while a pod is missing.
const MISSING: Duration = Duration::from_secs(1);
/// Between two looks while none is: a pod may have got a new sandbox that nobody wrote down.
const CALM: Duration = Duration::from_secs(10);

/// Namespace, name and uid: a pod that says it has another one's uid is still another pod.
type Id = (String, String, String);

/// What was found, and when it was last looked for.
#[derive(Debug)]
pub struct Discovery {
    proc: PathBuf,
    found: BTreeMap<Id, (Sandbox, NetNs)>,
    looked: Option<Instant>,
    /// Pods that were looked for in vain, to tell once.
    in_vain: BTreeSet<Id>,
    /// The last look at `/proc` failed.
    is_blind: bool,
}

impl Discovery {
    /// Looks at the processes below `proc`, which must be the host's.
    #[must_use]
    pub const fn new(proc: PathBuf) -> Self {
        Self {
            proc,
            found: BTreeMap::new(),
            looked: None,
            in_vain: BTreeSet::new(),
            is_blind: false,
        }
    }

    /// The namespace of a sandbox that was found here.
    #[must_use]
    pub fn held(&self, sandbox: &Sandbox) -> Option<NetNs> {
        let (known, netns) = self.found.get(&id(sandbox))?;
        (known == sandbox).then(|| netns.clone())
    }

    /// Adds the sandboxes of pods that nobody wrote down and that belong to the mesh, or did.
    pub async fn complete(
        &mut self,
        published: &Published,
        sandboxes: &mut Vec<Sandbox>,
        node: &NodeDefaults,
    ) {
        let recorded: BTreeSet<String> = sandboxes.iter().map(|one| one.uid.clone()).collect();
        let wanted: Vec<Sandbox> = published
            .objects
            .pods
            .iter()
            .filter_map(|pod| candidate(pod))
            .filter(|pod| !recorded.contains(&pod.uid))
            .filter(|pod| self.found.contains_key(&id(pod)) || concerned(published, pod, node))
            .collect();
        let ids: BTreeSet<Id> = wanted.iter().map(id).collect();
        self.found.retain(|known, _| ids.contains(known));
        if self.is_due(&wanted) {
            self.look(&wanted).await;
        }
        sandboxes.extend(self.found.values().map(|(sandbox, _)| sandbox.clone()));
    }

    fn is_due(&self, wanted: &[Sandbox]) -> bool {
        let missing = wanted
            .iter()
            .any(|pod| !self.found.contains_key(&id(pod)) && !self.in_vain.contains(&id(pod)));
        let pause = if missing { MISSING } else { CALM };
        !wanted.is_empty() && self.looked.is_none_or(|at| at.elapsed() >= pause)
    }

    async fn look(&mut self, wanted: &[Sandbox]) {
        let proc = self.proc.clone();
        let all = tokio::task::spawn_blocking(move || scan(&proc)).await;
        self.looked = Some(Instant::now());
        let all = match all.map_err(std::io::Error::other).flatten() {
            Ok(all) => all,
            Err(error) => {
                if !std::mem::replace(&mut self.is_blind, true) {
                    tracing::warn!(proc = %self.proc.display(), %error,
                        "processes cannot be looked through: pods without a record are not found");
                }
                return;
            }
        };
        self.is_blind = false;
        for pod in wanted {
            self.settle(pod, belonging(&all, pod));
        }
        let ids: BTreeSet<Id> = wanted.iter().map(id).collect();
        self.in_vain.retain(|known| ids.contains(known));
    }

    /// Keeps what was found of one pod, or that nothing was.
    fn settle(&mut self, pod: &Sandbox, found: Option<&Found>) {
        let Some(found) = found else {
            if self.in_vain.insert(id(pod)) {
                tracing::warn!(
                    namespace = pod.namespace,
                    pod = pod.name,
                    uid = pod.uid,
                    "no process of the pod was found: it cannot be looked into"
                );
            }
            self.found.remove(&id(pod));
            return;
        };
        self.in_vain.remove(&id(pod));
        let known = self.found.get(&id(pod));
        if known.is_none_or(|(_, netns)| netns.id() != found.netns.id()) {
            tracing::info!(namespace = pod.namespace, pod = pod.name, uid = pod.uid,
                netns = ?found.netns, "pod found by its processes");
            let sandbox = Sandbox {
                netns: found.path.clone(),
                ..pod.clone()
            };
            self.found.insert(id(pod), (sandbox, found.netns.clone()));
        }
    }
}

fn id(pod: &Sandbox) -> Id {
    (pod.namespace.clone(), pod.name.clone(), pod.uid.clone())
}

/// The pod, as far as its object tells, if it has a network of its own.
fn candidate(pod: &Pod) -> Option<Sandbox> {
    let ips = pods::addresses(pod);
    if pods::uses_host_network(pod) || pods::is_finished(pod) || ips.is_empty() {
        return None;
    }
    let uid = runtime_uid(pod);
    Some(Sandbox {
        uid: (!uid.is_empty()).then(|| uid.to_owned())?,
        namespace: pod.namespace().to_owned(),
        name: pod.name().to_owned(),
        service_account: pods::service_account(pod).to_owned(),
        netns: PathBuf::new(),
        ips,
        container_id: String::new(),
        network: String::new(),
    })
}

fn concerned(published: &Published, pod: &Sandbox, node: &NodeDefaults) -> bool {
    let wish = desire(published, pod, node);
    wish.is_ok_and(|wish| wish.goal == Goal::Enrolled) || is_annotated(published, pod)
}

/// What was found under the pod's uid and has one of its addresses.
fn belonging<'a>(all: &'a [Found], pod: &Sandbox) -> Option<&'a Found> {
    let wanted = key(&pod.uid);
    all.iter()
        .filter(|found| found.uid == wanted)
        .find(|found| has_address(&found.netns, &pod.ips))
}

fn has_address(netns: &NetNs, ips: &[IpAddr]) -> bool {
    let listed = netns.enter(nix::ifaddrs::getifaddrs);
    let Ok(Ok(listed)) = listed else { return false };
    let addresses = listed.filter_map(|one| one.address);
    addresses
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|at| IpAddr::V4(at.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|at| IpAddr::V6(at.ip())))
        })
        .any(|address| ips.contains(&address))
}

/// The namespaces of pods that an agent found before, by what it observed of them. Blocks.
#[must_use]
pub fn again(views: Vec<PodView>, proc: &Path) -> Vec<(Sandbox, NetNs)> {
    if views.is_empty() {
        return Vec::new();
    }
    let all = scan(proc).unwrap_or_default();
    let find = |view: PodView| {
        let found = all.iter().find(|found| found.netns.inode() == view.netns)?;
        let sandbox = Sandbox {
            uid: view.uid,
            namespace: view.namespace,
            name: view.name,
            service_account: String::new(),
            netns: found.path.clone(),
            ips: view.ips,
            container_id: String::new(),
            network: String::new(),
        };
        Some((sandbox, found.netns.clone()))
    };
    views.into_iter().filter_map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const UID: &str = "27b0e5f1-9a3c-4c56-8d1e-0123456789ab";

    fn pod(namespace: &str, uid: &str, annotations: &serde_json::Value) -> Sandbox {
        let pod = json!({"metadata": {"namespace": namespace, "name": "cart", "uid": uid,
                "annotations": annotations},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
            "status": {"podIP": "10.0.0.2"}});
        candidate(&serde_json::from_value(pod).unwrap()).unwrap()
    }

    #[test]
    fn nobody_takes_another_ones_place_by_naming_its_uid() {
        let victim = pod("shop", UID, &json!({}));
        let annotation = json!({"kubernetes.io/config.hash": UID});
        let own = "ffffffff-9a3c-4c56-8d1e-0123456789ab";
        assert_eq!(pod("evil", own, &annotation).uid, own);
        // Even one that gets so far is looked for, and lost, as itself.
        let impostor = pod("evil", UID, &json!({}));
        let mut discovery = Discovery::new("/proc".into());
        let found = Found::of(UID, NetNs::current().unwrap());
        discovery.settle(&victim, Some(&found));
        discovery.settle(&impostor, None);
        let sandbox = Sandbox {
            netns: found.path,
            ..victim
        };
        assert!(discovery.held(&sandbox).is_some());
        assert!(discovery.held(&impostor).is_none());
    }
}

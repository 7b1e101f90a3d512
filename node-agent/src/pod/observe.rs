use std::sync::Arc;

use isobar_net::NetNs;
use isobar_types::ports;

use super::machine::Rules;
use crate::backend::{Backend, BackendError, Canon, kernel};
use crate::netlink::{self, Connection};
use crate::plan::{Capture, Wishes};

/// What is so inside a pod's namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Observation {
    /// Rules and routes.
    pub(super) rules: Rules,
    /// Live connections that the rules carry.
    pub(super) carried: usize,
}

/// Looks into one pod's namespace. Remembers the last answer as long as the kernel says that
/// nothing was changed since, because listing rules means starting a program.
#[derive(Debug)]
pub(super) struct Observer {
    netns: NetNs,
    canon: Arc<Canon>,
    last: Option<(u32, Wishes, Rules)>,
}

impl Observer {
    pub(super) fn new(netns: NetNs, canon: Arc<Canon>) -> Self {
        Self {
            netns,
            canon,
            last: None,
        }
    }

    /// Blocks.
    pub(super) fn look(&mut self, wishes: &Wishes) -> Result<Observation, BackendError> {
        let backend = self.canon.backend();
        // Asked before the listing: a change in between is then seen the next time.
        let generation = self.inside(netlink::rules_generation)?.ok();
        let known = self.last.as_ref().filter(|(at, of, _)| {
            backend == Backend::Nft && Some(*at) == generation && of == wishes
        });
        let rules = match known {
            Some((_, _, rules)) => *rules,
            None => {
                let listing = self.inside(|| backend.list())??;
                let rules = self.compare(listing.as_deref(), wishes)?;
                self.last = generation.map(|at| (at, wishes.clone(), rules));
                rules
            }
        };
        let whole = matches!(rules, Rules::Off | Rules::On);
        let routed = !whole
            || self
                .inside(netlink::has_routes)?
                .map_err(kernel("reading the policy route"))?;
        let carried = if rules == Rules::Absent {
            0
        } else {
            self.inside(netlink::connections)?
                .map_err(kernel("listing connections"))?
                .iter()
                .filter(|connection| is_carried(connection))
                .count()
        };
        Ok(Observation {
            rules: if routed { rules } else { Rules::Damaged },
            carried,
        })
    }

    /// True if any rule of ours is there. Blocks.
    pub(super) fn has_rules(&self) -> Result<bool, BackendError> {
        let backend = self.canon.backend();
        Ok(self.inside(|| backend.list())??.is_some())
    }

    /// Runs `work` inside the pod's namespace.
    pub(super) fn inside<T>(&self, work: impl FnOnce() -> T) -> Result<T, BackendError> {
        self.netns
            .enter(work)
            .map_err(kernel("entering the pod's namespace"))
    }

    fn compare(&self, listing: Option<&str>, wishes: &Wishes) -> Result<Rules, BackendError> {
        let Some(listing) = listing else {
            return Ok(Rules::Absent);
        };
        Ok(if listing == &*self.canon.listing(wishes, Capture::On)? {
            Rules::On
        } else if listing == &*self.canon.listing(wishes, Capture::Off)? {
            Rules::Off
        } else {
            Rules::Damaged
        })
    }
}

/// A connection that would break without the rules: captured, or from the proxy to the application.
/// Tunnels between proxies are none, they end by themselves once nothing runs in them.
fn is_carried(connection: &Connection) -> bool {
    let port = connection.local.port();
    let captured = port == ports::OUTBOUND || port == ports::INBOUND_PLAINTEXT;
    let marked = connection.mark & ports::MARK_MASK == ports::PACKET_MARK;
    let tunnel = port == ports::HBONE || connection.remote.port() == ports::HBONE;
    (captured || marked) && !tunnel
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnels_do_not_hold_a_pod_back() {
        let carried = |local: &str, remote: &str, mark| {
            is_carried(&Connection {
                local: local.parse().unwrap(),
                remote: remote.parse().unwrap(),
                mark,
            })
        };
        assert!(carried("127.0.0.1:15001", "10.0.0.2:40000", 0x539));
        assert!(carried("10.0.0.2:15006", "10.0.0.9:40000", 0));
        assert!(carried("10.0.0.9:40000", "10.0.0.2:8080", 0x539));
        assert!(!carried("10.0.0.2:40001", "10.0.0.9:15008", 0x539));
        assert!(!carried("10.0.0.2:15008", "10.0.0.9:40002", 0x539));
        assert!(!carried("10.0.0.2:40003", "10.0.0.9:80", 0));
    }
}

//! Which TCP ports of a pod an ingress rule opens inside the tunnel.

use isobar_types::ports;
use k8s_openapi::api::networking::v1::NetworkPolicyPort;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::model::pods::PodFacts;

/// Most port numbers written into one policy, counted in the shorter of its two forms (the ports
/// that are open, or those that are not). A range beyond it is not expanded.
pub(super) const MAX_PORTS: usize = 4096;

/// TCP ports as sorted ranges that neither overlap nor touch; ends included. The tunnel's own port
/// never counts: behind a tunnel there is no other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ports(Vec<(u16, u16)>);

/// How a policy says "any other port than these".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Others {
    /// Every port is open: there is no other.
    None,
    /// Every port is closed: whatever the port is, it is another.
    All,
    /// All but these.
    Not(Vec<u32>),
    /// Just these.
    Only(Vec<u32>),
    /// It takes more than [`MAX_PORTS`] numbers, namely so many.
    TooMany(usize),
}

impl Ports {
    /// Every port.
    pub(super) fn all() -> Self {
        Self::of([(1, u16::MAX)])
    }

    /// The ports that a rule's list opens on `pod`; a rule without a list opens all of them.
    /// Entries for UDP and SCTP, names the pod does not have and numbers that are no port open
    /// nothing.
    pub(super) fn opened(list: Option<&[NetworkPolicyPort]>, pod: &PodFacts<'_>) -> Self {
        match list {
            None | Some([]) => Self::all(),
            Some(list) => Self::of(list.iter().filter_map(|port| range(port, Some(pod)))),
        }
    }

    /// The ports that a rule's list opens on every pod; `None` if it has names, which mean something else
    /// on each.
    pub(super) fn fixed(list: Option<&[NetworkPolicyPort]>) -> Option<Self> {
        let named = |port: &NetworkPolicyPort| matches!(port.port, Some(IntOrString::String(_)));
        match list {
            None | Some([]) => Some(Self::all()),
            Some(list) if list.iter().any(named) => None,
            Some(list) => Some(Self::of(list.iter().filter_map(|port| range(port, None)))),
        }
    }

    /// The ports of all.
    pub(super) fn union<'p>(all: impl Iterator<Item = &'p Self>) -> Self {
        Self::of(all.flat_map(|ports| ports.0.iter().copied()))
    }

    /// True for every port.
    pub(super) fn is_all(&self) -> bool {
        self.complement().0.is_empty()
    }

    /// How many numbers they take, if that is more than [`MAX_PORTS`].
    pub(super) fn excess(&self) -> Option<usize> {
        let open = self.count();
        // The tunnel's own port is neither open nor closed.
        let closed = usize::from(u16::MAX) - 1 - open;
        Some(open.min(closed)).filter(|numbers| *numbers > MAX_PORTS)
    }

    fn of(ranges: impl IntoIterator<Item = (u16, u16)>) -> Self {
        let hole = ports::HBONE;
        let mut pieces: Vec<(u32, u32)> = Vec::new();
        for (start, end) in ranges {
            let (start, end, hole) = (u32::from(start), u32::from(end), u32::from(hole));
            pieces.push((start, end.min(hole - 1)));
            pieces.push((start.max(hole + 1), end));
        }
        pieces.retain(|(start, end)| start <= end);
        pieces.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::new();
        for (start, end) in pieces {
            match merged.last_mut() {
                Some(last) if start <= last.1 + 1 => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        let narrow = |port: u32| u16::try_from(port).unwrap_or(u16::MAX);
        Self(
            merged
                .into_iter()
                .map(|(start, end)| (narrow(start), narrow(end)))
                .collect(),
        )
    }

    /// The ports that are not in here.
    fn complement(&self) -> Self {
        let mut next = 1_u32;
        let mut gaps = Vec::new();
        for (start, end) in &self.0 {
            if let Some(before) = start.checked_sub(1)
                && next <= u32::from(before)
            {
                gaps.push((u16::try_from(next).unwrap_or(u16::MAX), before));
            }
            next = u32::from(*end) + 1;
        }
        if let Ok(next) = u16::try_from(next) {
            gaps.push((next, u16::MAX));
        }
        Self::of(gaps)
    }

    fn count(&self) -> usize {
        self.0
            .iter()
            .map(|(start, end)| usize::from(*end - *start) + 1)
            .sum()
    }

    fn numbers(&self) -> Vec<u32> {
        self.0
            .iter()
            .flat_map(|(start, end)| *start..=*end)
            .map(u32::from)
            .collect()
    }

    /// How to say "any other port"; in the form that takes fewer numbers.
    pub(super) fn others(&self) -> Others {
        let rest = self.complement();
        let (open, closed) = (self.count(), rest.count());
        match (open, closed) {
            (_, 0) => Others::None,
            (0, _) => Others::All,
            _ if open.min(closed) > MAX_PORTS => Others::TooMany(open.min(closed)),
            _ if open <= closed => Others::Not(self.numbers()),
            _ => Others::Only(rest.numbers()),
        }
    }
}

/// Only TCP is carried in tunnels.
pub(super) fn is_tcp(port: &NetworkPolicyPort) -> bool {
    port.protocol.as_deref().is_none_or(|word| word == "TCP")
}

/// True if the entry opens the tunnel's own port on every pod.
pub(super) fn opens_tunnel(port: &NetworkPolicyPort) -> bool {
    let hbone = i32::from(ports::HBONE);
    is_tcp(port)
        && match &port.port {
            None => true,
            Some(IntOrString::Int(start)) => {
                (*start..=port.end_port.unwrap_or(*start)).contains(&hbone)
            }
            Some(IntOrString::String(_)) => false,
        }
}

/// True if a rule's list lets TCP through to a port of `pod`, whatever it is there; a name means
/// nothing at what is no pod.
pub(super) fn opens(
    list: Option<&[NetworkPolicyPort]>,
    number: u16,
    pod: Option<&PodFacts<'_>>,
) -> bool {
    match list {
        None | Some([]) => true,
        Some(list) => list
            .iter()
            .filter_map(|port| range(port, pod))
            .any(|(start, end)| (start..=end).contains(&number)),
    }
}

fn range(port: &NetworkPolicyPort, pod: Option<&PodFacts<'_>>) -> Option<(u16, u16)> {
    if !is_tcp(port) {
        return None;
    }
    let number = |value: i32| u16::try_from(value).ok().filter(|port| *port != 0);
    match (&port.port, port.end_port) {
        (None, _) => Some((1, u16::MAX)),
        (Some(IntOrString::Int(start)), None) => number(*start).map(|port| (port, port)),
        (Some(IntOrString::Int(start)), Some(end)) => {
            Some((number(*start)?, number(end)?)).filter(|(start, end)| start <= end)
        }
        (Some(IntOrString::String(name)), _) => pod?.named_port(name).map(|port| (port, port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn others(ranges: &[(u16, u16)]) -> Others {
        Ports::of(ranges.iter().copied()).others()
    }

    #[test]
    fn the_shorter_form_is_written() {
        assert_eq!(others(&[]), Others::All);
        assert_eq!(others(&[(1, u16::MAX)]), Others::None);
        assert_eq!(others(&[(8080, 8080)]), Others::Not(vec![8080]));
        assert_eq!(others(&[(3, u16::MAX)]), Others::Only(vec![1, 2]));
        assert_eq!(others(&[(1, 65533)]), Others::Only(vec![65534, 65535]));
        assert_eq!(others(&[(10, 12), (11, 13), (14, 14)]), {
            Others::Not(vec![10, 11, 12, 13, 14])
        });
    }

    #[test]
    fn the_tunnels_port_is_no_port_behind_it() {
        assert_eq!(others(&[(15008, 15008)]), Others::All);
        assert_eq!(others(&[(15007, 15009)]), Others::Not(vec![15007, 15009]));
        assert_eq!(others(&[(1, 15007), (15009, u16::MAX)]), Others::None);
    }

    #[test]
    fn what_takes_too_many_numbers_is_told() {
        let edge = u16::try_from(MAX_PORTS).unwrap();
        assert!(matches!(others(&[(1, edge)]), Others::Not(list) if list.len() == MAX_PORTS));
        assert_eq!(others(&[(1, edge + 1)]), Others::TooMany(MAX_PORTS + 1));
        assert!(matches!(others(&[(edge + 1, u16::MAX)]), Others::Only(_)));
        assert!(matches!(
            others(&[(20000, u16::MAX)]),
            Others::TooMany(19998)
        ));
    }
}

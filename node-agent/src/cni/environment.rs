//! What the runtime tells in the plugin's environment.

use std::path::PathBuf;

use super::{CniError, Code};

/// Longest name of an interface that Linux knows.
const INTERFACE_MAX: usize = 15;
/// Longest identifier of a container that is taken.
const CONTAINER_MAX: usize = 256;

/// What is asked of the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Attach a container.
    Add,
    /// Is it attached as it was left?
    Check,
    /// Detach it.
    Del,
    /// Forget what is not attached any more.
    Gc,
    /// Can containers be attached?
    Status,
    /// Which versions are spoken?
    Version,
}

/// Which pod the runtime attaches; from `CNI_ARGS`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid; empty where the runtime does not tell.
    pub uid: String,
}

/// The variables `CNI_…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub verb: Verb,
    /// `CNI_CONTAINERID`; empty for verbs that are about no container.
    pub container_id: String,
    /// `CNI_NETNS`; empty if the namespace is gone.
    pub netns: PathBuf,
    /// The pod, if a kubelet asks.
    pub pod: Option<PodName>,
}

impl Environment {
    /// Reads what `variable` gives.
    ///
    /// # Errors
    /// When something that the verb needs is missing or malformed.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, CniError> {
        let of = |name: &str| variable(name).unwrap_or_default();
        let wrong = |name: &str, value: &str| {
            CniError::new(Code::Environment, format!("{name} is {value:?}"), "")
        };
        let command = of("CNI_COMMAND");
        let verb = match &*command {
            "ADD" => Verb::Add,
            "CHECK" => Verb::Check,
            "DEL" => Verb::Del,
            "GC" => Verb::Gc,
            "STATUS" => Verb::Status,
            "VERSION" => Verb::Version,
            _ => return Err(wrong("CNI_COMMAND", &command)),
        };
        let (container_id, interface, netns) =
            (of("CNI_CONTAINERID"), of("CNI_IFNAME"), of("CNI_NETNS"));
        if matches!(verb, Verb::Add | Verb::Check | Verb::Del) {
            if !is_container(&container_id) {
                return Err(wrong("CNI_CONTAINERID", &container_id));
            }
            if !is_interface(&interface) {
                return Err(wrong("CNI_IFNAME", &interface));
            }
            if netns.is_empty() && verb != Verb::Del {
                return Err(wrong("CNI_NETNS", &netns));
            }
        }
        Ok(Self {
            verb,
            container_id,
            netns: netns.into(),
            pod: pod(&of("CNI_ARGS")),
        })
    }
}

fn is_container(id: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    id.len() <= CONTAINER_MAX
        && id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.chars().all(plain)
}

fn is_interface(name: &str) -> bool {
    let forbidden = |c: char| matches!(c, '/' | ':') || c.is_whitespace();
    (1..=INTERFACE_MAX).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name.contains(forbidden)
}

/// `KEY=VALUE;KEY=VALUE`; keys of others are left alone.
fn pod(arguments: &str) -> Option<PodName> {
    let find = |key: &str| {
        let pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
        let mut values = pairs.filter(|(name, _)| *name == key);
        values.next().map(|(_, value)| value.to_owned())
    };
    let (namespace, name) = (find("K8S_POD_NAMESPACE")?, find("K8S_POD_NAME")?);
    if namespace.is_empty() || name.is_empty() {
        return None;
    }
    Some(PodName {
        namespace,
        name,
        uid: find("K8S_POD_UID").unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Environment, CniError> {
        Environment::read(|name| {
            let found = pairs.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_pod_is_read_from_the_arguments() {
        let found = read(&[
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/var/run/netns/x"),
            (
                "CNI_ARGS",
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart;K8S_POD_UID=u1",
            ),
        ])
        .unwrap();
        let pod = found.pod.unwrap();
        assert_eq!(
            (&*pod.namespace, &*pod.name, &*pod.uid),
            ("shop", "cart", "u1")
        );
        assert_eq!(super::pod("K8S_POD_NAME=cart"), None);
    }

    #[test]
    fn what_the_verb_needs_must_be_there_and_well_formed() {
        let with = |verb, id, interface, netns| {
            read(&[
                ("CNI_COMMAND", verb),
                ("CNI_CONTAINERID", id),
                ("CNI_IFNAME", interface),
                ("CNI_NETNS", netns),
            ])
            .map_err(|error| error.code)
        };
        assert!(with("ADD", "c1", "eth0", "/n").is_ok());
        assert!(with("DEL", "c1", "eth0", "").is_ok());
        assert!(with("GC", "", "", "").is_ok());
        for wrong in [
            with("ADD", "", "eth0", "/n"),
            with("ADD", "../c", "eth0", "/n"),
            with("ADD", "c1", "a/b", "/n"),
            with("ADD", "c1", "an-interface-of-16", "/n"),
            with("CHECK", "c1", "eth0", ""),
            with("add", "c1", "eth0", "/n"),
        ] {
            assert_eq!(wrong, Err(Code::Environment));
        }
    }
}

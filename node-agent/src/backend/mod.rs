//! Writing and reading rules in the namespace the calling thread stands in.
//!
//! Whether rules are as planned is not decided by understanding what a tool prints: the plan is
//! written once into an empty namespace and listed there, and a pod is as planned if its listing is
//! the same text ([`Canon`]).

mod canon;
mod iptables;
mod nft;
mod tool;

use std::fmt;
use std::net::SocketAddr;

use isobar_net::NetNs;

use crate::netlink;
use crate::plan::{Capture, RuleSet, Wishes, plan_rules, probe_table};

pub use canon::Canon;
pub use tool::ToolError;

/// Which tool writes the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Choice {
    /// nftables where it works, else iptables.
    Auto,
    /// nftables or nothing.
    Nft,
    /// iptables or nothing.
    Iptables,
}

/// The tool that writes the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    /// `nft`, one table of the family `inet`.
    Nft,
    /// `iptables-restore` and `ip6tables-restore`.
    Iptables,
}

/// Why rules could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The tool failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The kernel refused.
    #[error("{doing}: {error}")]
    Kernel {
        /// What was being done.
        doing: &'static str,
        /// What it said.
        error: std::io::Error,
    },
    /// No tool works here.
    #[error("neither nft nor iptables works here: nft: {nft}; iptables: {iptables}")]
    None {
        /// Why nft does not.
        nft: String,
        /// Why iptables does not.
        iptables: String,
    },
}

impl Backend {
    /// Tries in an empty namespace whether a tool can write every rule that a plan may hold.
    ///
    /// # Errors
    /// When what is asked for does not work.
    pub fn choose(choice: Choice, scratch: &NetNs) -> Result<Self, BackendError> {
        let nft = || trial(Self::Nft, scratch);
        let iptables = || trial(Self::Iptables, scratch);
        match choice {
            Choice::Nft => nft().map(|()| Self::Nft),
            Choice::Iptables => iptables().map(|()| Self::Iptables),
            Choice::Auto => nft().map(|()| Self::Nft).or_else(|nft| {
                iptables()
                    .map(|()| Self::Iptables)
                    .map_err(|iptables| BackendError::None {
                        nft: nft.to_string(),
                        iptables: iptables.to_string(),
                    })
            }),
        }
    }

    /// The tool that this one is not.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Nft => Self::Iptables,
            Self::Iptables => Self::Nft,
        }
    }

    /// Makes our rules exactly these, in one step per table.
    ///
    /// # Errors
    /// When the tool fails; the rules are then what they were.
    pub fn write(self, rules: &RuleSet) -> Result<(), BackendError> {
        match self {
            Self::Nft => nft::write(rules)?,
            Self::Iptables => iptables::write(rules)?,
        }
        Ok(())
    }

    /// Our rules as the tool lists them, without counters; `None` without any.
    ///
    /// # Errors
    /// When the tool fails.
    pub fn list(self) -> Result<Option<String>, BackendError> {
        Ok(match self {
            Self::Nft => nft::list()?,
            Self::Iptables => iptables::list()?,
        })
    }

    /// Removes our rules; without any it does nothing.
    ///
    /// # Errors
    /// When the tool fails.
    pub fn remove(self) -> Result<(), BackendError> {
        match self {
            Self::Nft => nft::remove()?,
            Self::Iptables => iptables::remove()?,
        }
        Ok(())
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nft => "nft",
            Self::Iptables => "iptables",
        })
    }
}

/// The node's rules about probes, in the namespace of the calling thread.
#[derive(Debug, Clone, Copy)]
pub struct NodeRules(Backend);

impl NodeRules {
    /// With this tool.
    #[must_use]
    pub const fn new(backend: Backend) -> Self {
        Self(backend)
    }

    /// With the other tool, which an earlier agent may have used.
    #[must_use]
    pub const fn other(self) -> Self {
        Self(self.0.other())
    }

    /// Makes them let probes to exactly these ports of pods through.
    ///
    /// # Errors
    /// When the tool fails.
    pub fn write(self, probed: &[SocketAddr]) -> Result<(), BackendError> {
        match self.0 {
            Backend::Nft => nft::run(&probe_table(probed))?,
            Backend::Iptables => iptables::write_probes(probed)?,
        }
        Ok(())
    }

    /// The rules as the tool lists them; `None` without any.
    ///
    /// # Errors
    /// When the tool fails.
    pub fn list(self) -> Result<Option<String>, BackendError> {
        self.0.list()
    }

    /// Removes them.
    ///
    /// # Errors
    /// When the tool fails.
    pub fn remove(self) -> Result<(), BackendError> {
        match self.0 {
            Backend::Nft => nft::remove()?,
            Backend::Iptables => iptables::remove_probes()?,
        }
        Ok(())
    }
}

/// Takes rules over that an earlier agent wrote with the other tool: writes them with this one first,
/// so that nothing gets past meanwhile and captured connections keep their translation. True if
/// there were any.
pub(crate) fn take_over(ours: Backend, wishes: &Wishes) -> Result<bool, BackendError> {
    // A tool that does not work here has left nothing that anybody could find.
    if !matches!(ours.other().list(), Ok(Some(_))) {
        return Ok(false);
    }
    add_routes()?;
    ours.write(&plan_rules(wishes, Capture::On))?;
    ours.other().remove()?;
    Ok(true)
}

/// Adds the policy route of the namespace the calling thread stands in.
pub(crate) fn add_routes() -> Result<(), BackendError> {
    netlink::add_routes().map_err(kernel("adding the policy route"))
}

/// Removes it.
pub(crate) fn remove_routes() -> Result<(), BackendError> {
    netlink::remove_routes().map_err(kernel("removing the policy route"))
}

pub(crate) fn kernel(doing: &'static str) -> impl FnOnce(std::io::Error) -> BackendError {
    move |error| BackendError::Kernel { doing, error }
}

fn trial(backend: Backend, scratch: &NetNs) -> Result<(), BackendError> {
    let everything = Wishes {
        reroute: vec!["probe0".to_owned()],
        probes: [1].into(),
        ..Wishes::default()
    };
    scratch
        .enter(|| {
            backend.write(&plan_rules(&everything, Capture::On))?;
            backend.list()?;
            backend.remove()?;
            let node = NodeRules::new(backend);
            node.write(&[SocketAddr::from(([10, 0, 0, 1], 1))])?;
            node.remove()
        })
        .map_err(kernel("entering an empty namespace"))?
}

//! One served pod: what all its connections share.

use std::sync::{Arc, OnceLock};

use isobar_hbone::Admission;
use isobar_net::{DialOptions, NetNs};
use isobar_state::{Snapshot, Workload};
use isobar_types::Reason;
use tokio::sync::watch;

use super::World;
use super::connections::Connections;
use super::ejections::PodEjections;
use super::ledger::Ending;
use super::together::Together;
use crate::zds::PodInfo;

/// How far the end of a pod has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Takes connections.
    Running,
    /// Takes no new ones; those open run on.
    Draining,
    /// Everything ends now, for this reason.
    Cut(Reason),
}

/// A served pod, shared by all workers.
#[derive(Debug)]
pub struct Pod {
    /// Who it is.
    pub info: PodInfo,
    /// Its network namespace; none in dedicated mode, where it is our own.
    pub netns: Option<NetNs>,
    /// The pod of this process itself: takes HBONE only, with default sockets.
    pub own: bool,
    /// Its open connections.
    pub connections: Arc<Connections>,
    /// Endpoints that its calls leave out.
    pub ejections: Arc<PodEjections>,
    /// Whether one worker takes all that its application opens.
    pub(super) together: Together,
    admission: OnceLock<Admission>,
    stage: watch::Receiver<Stage>,
}

impl Pod {
    /// A pod and the handle that ends it. The handle's `closed()` resolves when nothing of the pod
    /// is left.
    #[must_use]
    pub fn new(info: PodInfo, netns: Option<NetNs>) -> (Self, watch::Sender<Stage>) {
        let (sender, stage) = watch::channel(Stage::Running);
        let pod = Self {
            info,
            netns,
            own: false,
            connections: Arc::default(),
            ejections: Arc::default(),
            together: Together::default(),
            admission: OnceLock::new(),
            stage,
        };
        (pod, sender)
    }

    /// As [`Pod::new`], for the pod of this process itself.
    #[must_use]
    pub fn of_process(info: PodInfo) -> (Self, watch::Sender<Stage>) {
        let (pod, stage) = Self::new(info, None);
        (Self { own: true, ..pod }, stage)
    }

    /// The workload of this pod, if the mesh knows it.
    #[must_use]
    pub fn workload<'a>(&self, snapshot: &'a Snapshot, node: &str) -> Option<&'a Arc<Workload>> {
        let PodInfo {
            name,
            namespace,
            service_account,
        } = &self.info;
        snapshot.local_workload(node, namespace, name, service_account)
    }

    /// What callers of this pod may have open: identities are counted for each pod, since one
    /// waypoint may well call all pods of a node; handshakes for the process.
    pub(super) fn admission(&self, world: &World) -> Admission {
        let own = self.admission.get_or_init(|| world.admission.sibling());
        own.clone()
    }

    /// `namespace/name`.
    #[must_use]
    pub fn display_name(&self) -> String {
        format!("{}/{}", self.info.namespace, self.info.name)
    }

    /// True while new connections are taken.
    #[must_use]
    pub fn is_running(&self) -> bool {
        *self.stage.borrow() == Stage::Running
    }

    /// Resolves when no new connection is taken.
    pub async fn draining(&self) {
        // An error means that the handle is gone, which is the end.
        let _ = self
            .stage
            .clone()
            .wait_for(|stage| *stage != Stage::Running)
            .await;
    }

    /// Resolves when open connections have to end, with the reason.
    ///
    /// # Cancel safety
    /// May be dropped and called again at any time.
    pub async fn cut(&self) -> Reason {
        let mut stage = self.stage.clone();
        match stage.wait_for(|stage| matches!(stage, Stage::Cut(_))).await {
            Ok(stage) => match *stage {
                Stage::Cut(reason) => reason,
                Stage::Running | Stage::Draining => Reason::Drained,
            },
            Err(_) => Reason::Drained,
        }
    }

    /// As [`Pod::cut`], as the ending of a connection.
    pub async fn cut_ending(&self) -> Ending {
        let reason = self.cut().await;
        let text = match reason {
            Reason::WorkloadRemoved => "connection closed because the workload was removed",
            _ => "connection closed due to connection drain",
        };
        Ending::failed(reason, text)
    }

    /// How to connect from this pod.
    #[must_use]
    pub fn dial_options(&self, world: &World) -> DialOptions {
        DialOptions {
            netns: self.netns.clone(),
            mark: world.config.packet_mark.filter(|_| !self.own),
            keepalive: world.keepalive(),
            ..DialOptions::default()
        }
    }
}

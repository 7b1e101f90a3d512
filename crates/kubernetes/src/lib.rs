//! Objects from and to a Kubernetes API server.
//!
//! * [`Cluster`]: where it is and who we are there, from `KUBECONFIG` or from inside a pod.
//! * [`KubernetesSource`]: the objects of the mesh, watched; the parser and the rules are those of
//!   files, in `isobar-objects`.
//! * [`KubernetesWriter`]: writes back by server-side apply.
//! * [`Installer`]: puts whole objects of any kind there, and removes them.
//! * [`Events`]: tells people what happened to an object.
//! * [`election`]: which of several replicas writes.
//! * [`Cluster::page`]: what a pod's own pages say, through the server.
//! * [`LastValid`]: what counts of objects that are not valid now, over restarts.
//! * [`TokenReviews`], [`keep_authority`], [`refresh_authority`], [`RootMaps`]: what a certificate
//!   authority needs of it.
//! * [`Webhook`]: being asked before objects are stored.

#![forbid(unsafe_code)]

mod beside;
mod cluster;
mod config_maps;
pub mod election;
mod events;
mod extras;
mod install;
mod last_valid;
mod named;
mod pages;
mod ports;
mod presence;
mod review;
mod roots;
mod rounds;
mod secret;
mod source;
mod strangers;
mod watch;
mod webhook;
mod wire;
mod writer;

pub use cluster::{Cluster, ConnectError};
pub use config_maps::{ConfigMapError, Texts};
pub use events::{EventWriter, Events, Note, Pace};
pub use extras::{Extra, ExtraError, ExtraRef};
pub use install::{Applying, InstallError, Installer};
pub use last_valid::{KeepError, Known, LastValid, Record, Versions, read_version};
pub use named::Names;
pub use pages::{PageError, RunningPod};
pub use presence::Presence;
pub use review::{ReviewError, ReviewedPod, ReviewedToken, TokenReviews};
pub use roots::RootMaps;
pub use secret::{SecretError, await_authority, keep_authority, refresh_authority};
pub use source::{KubernetesSource, SourceOptions};
pub use webhook::{Webhook, WebhookAddress, WebhookOptions};
pub use writer::KubernetesWriter;

//! Where objects come from and are written to, who reviews tokens, and whose authority signs:
//! directories and files, or a Kubernetes API server.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use isobar_kubernetes::election::{Candidate, Timing};
use isobar_kubernetes::{
    Cluster, KubernetesSource, KubernetesWriter, LastValid, RootMaps, SourceOptions,
    await_authority, keep_authority,
};
use isobar_objects::{
    DirectoryOptions, DirectorySource, ObjectRef, ObjectSource, ObjectWriter, OverlayWriter,
    Published, STRANGERS,
};
use isobar_runtime::Scope;
use isobar_tls::ca::Authority;
use isobar_types::Str;
use tokio::sync::watch;

use crate::auth::{ClusterReviewer, JwksReviewer, TokenReviewer};
use crate::authority::{Authorities, of_files};
use crate::config::Config;
use crate::controller::{Earlier, OWN_ROOTS};
use crate::last_valid::{self, Keeper};
use crate::reach::Reach;
use crate::revision::Revision;
use crate::rivals;

/// Directory below the overlay root that belongs to this process.
const OVERLAY: &str = "control-plane";
/// File in the state directory that keeps the last good version of every object.
const LAST_GOOD: &str = "last-good-objects.json";
/// Who we are to the API server's record of who wrote which field.
pub(crate) const MANAGER: &str = "isobar";
/// The lease of the replica that writes; beside other control planes with the revision after it.
const LEASE: &str = "isobar-control-plane";
/// How long a start waits for the leader to put a missing secret back, which looks every 20 s or so
/// (`authority::SECRET`). The chart's startup probe gives 60 s.
const PUT_BACK: Duration = Duration::from_secs(40);

/// What a control plane stands in.
pub(crate) struct Surroundings {
    pub(crate) source: Box<dyn ObjectSource>,
    /// What counts of the source.
    pub(crate) objects: watch::Receiver<Arc<Published>>,
    pub(crate) writer: Arc<dyn ObjectWriter>,
    /// How to find what earlier lives of this process wrote.
    pub(crate) earlier: Earlier,
    /// True while this replica is the one that writes.
    pub(crate) leads: watch::Receiver<bool>,
    /// Deployments of other control planes that have what is this one's.
    pub(crate) rivals: watch::Receiver<Arc<Vec<ObjectRef>>>,
    pub(crate) reviewer: Arc<dyn TokenReviewer>,
    pub(crate) authorities: Arc<Authorities>,
    /// The API server, if there is one.
    pub(crate) cluster: Option<Cluster>,
}

impl Surroundings {
    /// Reads the configuration; nothing is watched before the source runs.
    ///
    /// # Errors
    /// When a directory, a file or the API server cannot be used.
    pub(crate) async fn find(
        scope: &Scope,
        election: &Scope,
        config: &Config,
        state: &Path,
    ) -> Result<Self> {
        if config.kubernetes {
            in_a_cluster(scope, election, config, state).await
        } else {
            in_folders(scope, config, state)
        }
    }
}

fn in_folders(scope: &Scope, config: &Config, state: &Path) -> Result<Surroundings> {
    let (Some(overlay), Some(keys)) = (&config.overlay, &config.token_keys) else {
        bail!("--overlay and --token-keys are needed with --objects");
    };
    let options = DirectoryOptions {
        last_good: Some(state.join(LAST_GOOD)),
        ..DirectoryOptions::new(config.objects.clone(), config.overlay.clone())
    };
    let source = DirectorySource::open(options).context("watching the objects")?;
    let own = overlay.join(OVERLAY);
    let trust_domain: Str = config.trust_domain.as_str().into();
    let issuer = config.token_issuer.clone();
    let objects = narrowed(scope, config, &source)?;
    Ok(Surroundings {
        source: Box::new(source),
        objects,
        writer: Arc::new(OverlayWriter::new(&own)?),
        earlier: Earlier::InFolder(own),
        // There is one writer of a folder.
        leads: watch::channel(true).1,
        rivals: watch::channel(Arc::default()).1,
        reviewer: Arc::new(JwksReviewer::new(keys.clone(), issuer, trust_domain)),
        authorities: authorities(scope, config, state)?,
        cluster: None,
    })
}

async fn in_a_cluster(
    scope: &Scope,
    election: &Scope,
    config: &Config,
    state: &Path,
) -> Result<Surroundings> {
    if config.waypoints_only {
        allow_waypoints_only(config)?;
    }
    let cluster = Cluster::infer().await?;
    let own = config.own_namespace();
    if config.ca_dir.is_none() {
        let make = || -> Result<()> { Ok(Authority::load_or_create(state).map(drop)?) };
        let lease = Revision::of(config).suffixed(LEASE);
        await_authority(&cluster, (own, &lease), Timing::default(), PUT_BACK).await?;
        keep_authority(&cluster, own, state, make)
            .await
            .context("the authority's secret")?;
    }
    let authorities = authorities(scope, config, state)?;
    let (reach, revision) = (Reach::of(config)?, Revision::of(config));
    let kept = revision.suffixed(last_valid::NAME);
    let kept = LastValid::named(cluster.clone(), own, &kept, MANAGER);
    let mut source = KubernetesSource::new(cluster.clone(), SourceOptions::default())
        .with_last_valid(kept.clone())
        .with_object(config.mesh_config())
        .with_secrets(move |objects| reach.secrets(objects));
    if !config.waypoints_only {
        // What another control plane honours is not ours to complain of.
        source = source.with_strangers(STRANGERS);
    }
    let (lease, timing) = (revision.suffixed(LEASE), Timing::default());
    let candidate = Candidate::new(cluster.clone(), own, &lease, &replica(), timing);
    let leads = candidate.leads();
    election.spawn("candidate", candidate.run(election.lifetime()));
    if config.ca_dir.is_none() {
        let followed = Arc::clone(&authorities).follow_secret(
            cluster.clone(),
            own.to_owned(),
            state.to_owned(),
            leads.clone(),
            scope.lifetime(),
        );
        scope.spawn("authority", followed);
    }
    let mut maps = RootMaps::new(cluster.clone(), MANAGER, authorities.roots());
    if config.waypoints_only {
        maps = maps.named(OWN_ROOTS);
    }
    let keeper = Keeper::new(kept, &config.root_namespace, leads.clone());
    let (sender, objects) = watch::channel(Arc::default());
    let narrowed = narrowed(scope, config, &source)?;
    scope.spawn("last valid", keeper.run(narrowed, sender, scope.lifetime()));
    scope.spawn(
        "roots",
        maps.run(objects.clone(), leads.clone(), scope.lifetime()),
    );
    let trust_domain: Str = config.trust_domain.as_str().into();
    Ok(Surroundings {
        rivals: rivals::follow(scope, config, source.subscribe()),
        source: Box::new(source),
        objects,
        writer: Arc::new(
            KubernetesWriter::new(cluster.clone(), MANAGER).telling_as(&revision.suffixed(MANAGER)),
        ),
        earlier: Earlier::OfClasses(config.waypoint_class.clone(), revision),
        leads,
        reviewer: Arc::new(ClusterReviewer::new(cluster.clone(), trust_domain)),
        authorities,
        cluster: Some(cluster),
    })
}

/// What counts of the source, as it changes.
fn narrowed(
    scope: &Scope,
    config: &Config,
    source: &impl ObjectSource,
) -> Result<watch::Receiver<Arc<Published>>> {
    let (reach, objects) = (Reach::of(config)?, source.subscribe());
    let (sender, narrowed) = watch::channel(Arc::default());
    scope.spawn("reach", reach.follow(objects, sender, scope.lifetime()));
    Ok(narrowed)
}

/// Beside another control plane nothing of its own may be taken over.
fn allow_waypoints_only(config: &Config) -> Result<()> {
    if config.own_namespace() == config.root_namespace {
        bail!(
            "--waypoints-only needs a namespace of its own: {} is the one of Istio's control plane \
             (--namespace, --root-namespace)",
            config.root_namespace
        );
    }
    let istios = isobar_types::labels::ISTIO_WAYPOINT_CLASS;
    if config.waypoint_class.iter().any(|class| class == istios) {
        bail!("--waypoints-only cannot have the class {istios}: it is Istio's");
    }
    Ok(())
}

/// A name that no other replica has: that of the pod, and another one each life.
fn replica() -> String {
    let pod = std::env::var("POD_NAME").unwrap_or_else(|_| "isobard".to_owned());
    format!("{pod}-{:08x}", rand::random::<u32>())
}

/// The authority, and its roots in the state directory where clients look for them.
fn authorities(scope: &Scope, config: &Config, state: &Path) -> Result<Arc<Authorities>> {
    std::fs::create_dir_all(state).with_context(|| state.display().to_string())?;
    let Some(dir) = &config.ca_dir else {
        let authority = Authority::load_or_create(state)?;
        return Ok(Arc::new(Authorities::new(authority)));
    };
    let authorities = Arc::new(Authorities::new(of_files(dir, state)?));
    let followed = Arc::clone(&authorities);
    let followed = followed.follow_files(dir.clone(), state.to_owned(), scope.lifetime());
    scope.spawn("authority", followed);
    Ok(authorities)
}

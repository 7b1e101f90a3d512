//! What both ends of our tunnels are made with: certificates, HTTP/2 parameters, what peers are told
//! of a workload.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use isobar_hbone::{Baggage, Certificates, Http2, Pool, PoolOptions, Timeouts, WorkloadType};
use isobar_state::{self as state, Workload};
use isobar_tls::WorkloadCertificate;
use isobar_types::{Identity, Str};
use isobar_xds::CertSource;

use super::{Pod, World};

/// For a certificate that is not in hand yet.
const CERTIFICATE_WAIT: Duration = Duration::from_secs(10);

/// What the peer is told of a workload.
pub(super) fn describe(workload: &Workload) -> Baggage {
    let some = |text: &Str| (!text.is_empty()).then(|| text.to_string());
    Baggage {
        cluster: some(&workload.cluster_id),
        namespace: some(&workload.namespace),
        workload_type: Some(match workload.workload_type {
            state::WorkloadType::Deployment => WorkloadType::Deployment,
            state::WorkloadType::CronJob => WorkloadType::CronJob,
            state::WorkloadType::Pod => WorkloadType::Pod,
            state::WorkloadType::Job => WorkloadType::Job,
        }),
        workload: some(&workload.workload_name),
        service: some(&workload.canonical_name),
        revision: some(&workload.canonical_revision),
        region: some(&workload.locality.region),
        zone: some(&workload.locality.zone),
    }
}

/// The tunnels of a pod from one worker.
pub(super) fn pool(world: &World, pod: &Pod) -> Pool {
    let options = PoolOptions {
        dial: pod.dial_options(world),
        http2: http2(world),
        timeouts: Timeouts {
            idle: world.config.http2.pool_release,
            ..Timeouts::default()
        },
    };
    Pool::new(options, Rc::new(InTime(world.certificates.clone())))
}

/// HTTP/2 parameters as configured.
pub(super) fn http2(world: &World) -> Http2 {
    let config = &world.config.http2;
    Http2 {
        stream_window: config.stream_window,
        connection_window: config.connection_window,
        frame_size: config.frame_size,
        streams_per_tunnel: config.pool_streams.into(),
    }
}

/// Certificates, waited for at most [`CERTIFICATE_WAIT`].
struct InTime(Arc<dyn CertSource>);

type Fetched = Result<Arc<WorkloadCertificate>, String>;

impl Certificates for InTime {
    fn fetch<'a>(&'a self, identity: &'a Identity) -> Pin<Box<dyn Future<Output = Fetched> + 'a>> {
        Box::pin(certificate(&*self.0, identity))
    }
}

/// A certificate, if it comes in time.
pub(super) async fn certificate(source: &dyn CertSource, identity: &Identity) -> Fetched {
    match tokio::time::timeout(CERTIFICATE_WAIT, source.fetch(identity)).await {
        Ok(Ok(certificate)) => Ok(certificate),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("none within {CERTIFICATE_WAIT:?}")),
    }
}

//! Counters that requests of one worker used lately. Putting 25 labels together and looking four
//! families up costs more than counting; most requests have the labels of one before them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use isobar_state::{Service, Workload};
use isobar_types::Identity;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

use super::{Metrics, Request};

/// So many are remembered; then all are forgotten.
const MOST: usize = 1024;
/// Stands for a request without a gRPC status.
const NO_GRPC_STATUS: u8 = u8::MAX;

/// What labels are made from, by place in memory: an entry holds what its places are of, so that
/// nothing else can come there.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    source: usize,
    service: usize,
    workload: usize,
    identity: Option<Identity>,
    grpc: bool,
    grpc_status: u8,
    code: u16,
    flags: &'static str,
}

struct Entry {
    counters: Counters,
    _source: Option<Arc<Workload>>,
    _service: Option<Arc<Service>>,
    _workload: Option<Arc<Workload>>,
}

/// The counters of one set of labels.
#[derive(Clone)]
pub(super) struct Counters {
    pub(super) requests: Counter,
    pub(super) duration: Histogram,
    pub(super) request_bytes: Histogram,
    pub(super) response_bytes: Histogram,
}

/// Counters used lately on one worker.
#[derive(Default)]
pub struct Recent(RefCell<HashMap<Key, Entry, RandomState>>);

impl Recent {
    /// Forgets everything; what it held of older states is freed. Call it now and then.
    pub fn forget(&self) {
        self.0.borrow_mut().clear();
    }

    pub(super) fn with(
        &self,
        metrics: &Metrics,
        request: &Request<'_>,
        count: impl FnOnce(&Counters),
    ) {
        let Some(key) = key(request) else {
            return count(&metrics.counters(request));
        };
        let mut entries = self.0.borrow_mut();
        if entries.len() >= MOST && !entries.contains_key(&key) {
            entries.clear();
        }
        let entry = entries.entry(key).or_insert_with(|| Entry {
            counters: metrics.counters(request),
            _source: request.caller.and_then(|c| c.workload.clone()),
            _service: request.service.cloned(),
            _workload: request.workload.cloned(),
        });
        count(&entry.counters);
    }
}

/// `None` for what is rare: flags put together, a gRPC status that is none.
fn key(request: &Request<'_>) -> Option<Key> {
    let grpc_status = match request.grpc_status {
        None => NO_GRPC_STATUS,
        Some(text) => text.parse().ok().filter(|code: &u8| {
            *code < NO_GRPC_STATUS && (text.len() == 1 || !text.starts_with(['0', '+']))
        })?,
    };
    let std::borrow::Cow::Borrowed(flags) = *request.flags else {
        return None;
    };
    let source = request.caller.and_then(|c| c.workload.as_ref());
    let identity = match request.caller {
        Some(caller) => caller.caller.identity.as_ref(),
        None => request.peer,
    };
    Some(Key {
        source: place(source),
        service: place(request.service),
        workload: place(request.workload),
        identity: identity.cloned(),
        grpc: request.grpc,
        grpc_status,
        code: request.code,
        flags,
    })
}

fn place<T>(of: Option<&Arc<T>>) -> usize {
    of.map_or(0, |arc| Arc::as_ptr(arc).addr())
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::time::Duration;

    use isobar_telemetry::Registry;

    use super::*;

    #[test]
    fn what_is_remembered_counts_as_what_is_not() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry);
        let recent = Recent::default();
        let identity = Identity::new("cluster.local", "default", "client");
        let (plain, rare) = (Cow::Borrowed("-"), Cow::Owned("DI,URX".to_owned()));
        let cases = [
            (Some(&identity), 200, None, &plain),
            (Some(&identity), 200, Some("0"), &plain),
            (Some(&identity), 200, Some("00"), &plain),
            (Some(&identity), 503, None, &plain),
            (None, 200, None, &plain),
            (Some(&identity), 200, None, &rare),
        ];
        for _ in 0..3 {
            for (peer, code, grpc_status, flags) in cases {
                let request = Request {
                    caller: None,
                    peer,
                    service: None,
                    workload: None,
                    grpc: grpc_status.is_some(),
                    grpc_status,
                    code,
                    flags,
                    duration: Duration::from_millis(1),
                    request_bytes: 10,
                    response_bytes: 10,
                };
                metrics.request(&request, &recent);
            }
        }
        let text = registry.encode();
        let counted = text
            .lines()
            .filter(|l| l.starts_with("istio_requests_total"));
        let counted: Vec<_> = counted.collect();
        assert_eq!(counted.len(), cases.len(), "{counted:#?}");
        assert!(
            counted.iter().all(|line| line.ends_with(" 3")),
            "{counted:#?}"
        );
        assert_eq!(recent.0.borrow().len(), 4);
        recent.forget();
        assert!(recent.0.borrow().is_empty());
    }
}

use std::cell::Cell;

use isobar_proto::isobar::v1 as wire;
use isobar_types::Reason;
use proptest::prelude::*;
use wire::outbound_policy::Kind;

use super::*;
use crate::outbound::{NextHop, OutboundCall, route};
use crate::testing::{at, host, ip, of_service, of_workload, pod, serves, service, uid};
use crate::{Refusal, Snapshot};

const SECOND: Duration = Duration::from_secs(1);

fn rule() -> OutlierRule {
    OutlierRule {
        failures: NonZeroU32::new(3).unwrap(),
        interval: SECOND * 10,
        base_ejection: SECOND * 30,
        max_ejected_percent: 50,
        min_healthy_percent: 0,
    }
}

/// Service `shop/cart` with endpoints `cart-0` … at 10.0.1.0 …, and a caller `front`.
fn world(endpoints: u8, rule: &OutlierRule) -> Snapshot {
    let mut draft = Snapshot::default().draft();
    for n in 0..endpoints {
        let pod = pod("shop", &format!("cart-{n}"), &format!("10.0.1.{n}"));
        let pod = serves(pod, "shop", "cart", &[(80, 8080)]);
        draft.upsert_address(&of_workload(pod)).unwrap();
    }
    let front = of_workload(pod("shop", "front", "10.0.0.2"));
    draft.upsert_address(&front).unwrap();
    let cart = of_service(service("shop", "cart", "10.96.0.1", &[(80, 8080)]));
    draft.upsert_address(&cart).unwrap();
    let limits = wire::ConnectionLimits {
        namespace: "shop".to_owned(),
        hostname: host("shop", "cart"),
        outliers: Some(wire::connection_limits::Outliers {
            failures: rule.failures.get(),
            interval: rule.interval.try_into().ok(),
            base_ejection: rule.base_ejection.try_into().ok(),
            max_ejected_percent: rule.max_ejected_percent,
            min_healthy_percent: rule.min_healthy_percent,
        }),
        ..wire::ConnectionLimits::default()
    };
    let kind = Some(Kind::Limits(limits));
    let policy = wire::OutboundPolicy { kind };
    draft.upsert_outbound_policy(&policy).unwrap();
    draft.finish()
}

/// One caller and its clock.
#[derive(Debug)]
struct Caller {
    snapshot: Snapshot,
    rule: OutlierRule,
    outliers: Outliers,
    now: Cell<Instant>,
}

impl Ejections for Caller {
    fn ejected(&self, service: &NamespacedHostname) -> Vec<Place> {
        self.outliers.of(service, self.now.get())
    }
}

impl Caller {
    fn new(endpoints: u8, rule: OutlierRule) -> Self {
        Self {
            snapshot: world(endpoints, &rule),
            rule,
            outliers: Outliers::default(),
            now: Cell::new(Instant::now()),
        }
    }

    fn service(&self) -> NamespacedHostname {
        let host = host("shop", "cart");
        self.snapshot.services_by_hostname(&host)[0].key.clone()
    }

    fn wait(&self, time: Duration) {
        self.now.set(self.now.get() + time);
    }

    fn fails(&mut self, endpoint: u8) -> Failure {
        let service = self.service();
        let count = {
            let all = self.snapshot.services_by_hostname(&service.hostname);
            self.snapshot.endpoint_count(&all[0])
        };
        let uid = uid("shop", &format!("cart-{endpoint}"));
        let workload = self.snapshot.workload_by_uid(&uid).unwrap().clone();
        let now = self.now.get();
        self.outliers
            .failed(&service, &workload, &self.rule, count, now)
    }

    fn works(&mut self, endpoint: u8) {
        let uid = uid("shop", &format!("cart-{endpoint}"));
        let workload = self.snapshot.workload_by_uid(&uid).unwrap().clone();
        let (service, now) = (self.service(), self.now.get());
        self.outliers
            .succeeded(&service, &workload, &self.rule, now);
    }

    /// Fails as often as takes an endpoint out.
    fn breaks(&mut self, endpoint: u8) -> Failure {
        let mut last = Failure::Counted;
        for _ in 0..self.rule.failures.get() {
            assert_eq!(last, Failure::Counted);
            last = self.fails(endpoint);
        }
        last
    }

    fn call(&self, dice: u64) -> Result<NextHop, Refusal> {
        let source = self.snapshot.workload_by_uid(&uid("shop", "front"));
        let call = OutboundCall {
            source: source.unwrap(),
            source_ip: ip("10.0.0.2"),
            destination: at("10.96.0.1:80"),
            network: "",
            crosses_networks: false,
            ejections: Some(self),
        };
        route(&self.snapshot, &call, dice)
    }

    /// The last numbers of the endpoints that calls reach.
    fn reached(&self) -> Vec<u8> {
        let mut all: Vec<_> = (0..64)
            .filter_map(|dice| match self.call(dice).ok()? {
                NextHop::Tunnel { to, .. } => match to.ip() {
                    IpAddr::V4(ip) => Some(ip.octets()[3]),
                    IpAddr::V6(_) => None,
                },
                _ => None,
            })
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

#[test]
fn failures_in_a_row_take_an_endpoint_out_for_a_while() {
    let mut caller = Caller::new(2, rule());
    assert_eq!(caller.reached(), [0, 1]);
    for _ in 0..2 {
        assert_eq!(caller.fails(0), Failure::Counted);
        assert_eq!(caller.fails(0), Failure::Counted);
        // In a row only.
        caller.works(0);
    }
    assert_eq!(caller.reached(), [0, 1]);
    assert_eq!(caller.breaks(0), Failure::Ejected(SECOND * 30));
    assert_eq!(caller.reached(), [1]);
    // One that was on its way does not make it longer.
    assert_eq!(caller.breaks(0), Failure::Counted);
    caller.wait(SECOND * 30 - Duration::from_nanos(1));
    assert_eq!(caller.reached(), [1]);
    caller.wait(Duration::from_nanos(1));
    assert_eq!(caller.reached(), [0, 1]);
}

#[test]
fn each_time_is_longer_and_good_behaviour_makes_it_shorter() {
    let mut caller = Caller::new(2, rule());
    for times in [1, 2, 3] {
        assert_eq!(caller.breaks(0), Failure::Ejected(SECOND * 30 * times));
        caller.wait(SECOND * 30 * times);
    }
    caller.wait(SECOND * 19);
    // Three times, less one for the one whole interval, and one more.
    assert_eq!(caller.breaks(0), Failure::Ejected(SECOND * 90));
    caller.wait(SECOND * 90 + SECOND * 30);
    assert_eq!(caller.breaks(0), Failure::Ejected(SECOND * 30));
    let mut last = SECOND * 30;
    for _ in 0..12 {
        caller.wait(last);
        let Failure::Ejected(time) = caller.breaks(0) else {
            panic!("not out")
        };
        assert_eq!(time, LONGEST.min(last + SECOND * 30));
        last = time;
    }
    let long = OutlierRule {
        base_ejection: LONGEST * 2,
        ..rule()
    };
    let mut caller = Caller::new(2, long);
    assert_eq!(caller.breaks(0), Failure::Ejected(LONGEST * 2));
    caller.wait(LONGEST * 2);
    assert_eq!(caller.breaks(0), Failure::Ejected(LONGEST * 2));
}

#[test]
fn no_more_are_out_than_may_be() {
    for (endpoints, percent, out) in [(4, 50, 2), (4, 49, 1), (4, 24, 0), (3, 100, 3), (3, 0, 0)] {
        let limited = OutlierRule {
            max_ejected_percent: percent,
            ..rule()
        };
        let mut caller = Caller::new(endpoints, limited);
        let ejected = (0..endpoints).filter(|n| matches!(caller.breaks(*n), Failure::Ejected(_)));
        assert_eq!(ejected.count(), out, "{endpoints} {percent}");
        let left = usize::from(endpoints) - out;
        assert_eq!(caller.reached().len(), left, "{endpoints} {percent}");
    }
}

#[test]
fn with_nothing_left_calls_are_refused_and_told_why() {
    let all = OutlierRule {
        max_ejected_percent: 100,
        ..rule()
    };
    let mut caller = Caller::new(2, all);
    caller.breaks(0);
    caller.breaks(1);
    let refusal = caller.call(0).unwrap_err();
    assert_eq!(refusal.reason, Reason::NoHealthyUpstream);
    assert!(refusal.detail.contains("2 out after failed"), "{refusal}");
}

#[test]
fn with_too_few_left_nothing_is_left_out() {
    let careful = OutlierRule {
        max_ejected_percent: 100,
        min_healthy_percent: 50,
        ..rule()
    };
    let mut caller = Caller::new(4, careful);
    caller.breaks(0);
    caller.breaks(1);
    assert_eq!(caller.reached(), [2, 3]);
    caller.breaks(2);
    assert_eq!(caller.reached(), [0, 1, 2, 3]);
}

#[test]
fn a_pod_that_comes_back_elsewhere_starts_anew() {
    let mut caller = Caller::new(2, rule());
    caller.breaks(0);
    let mut draft = caller.snapshot.draft();
    let again = serves(
        pod("shop", "cart-0", "10.0.1.9"),
        "shop",
        "cart",
        &[(80, 8080)],
    );
    draft.upsert_address(&of_workload(again)).unwrap();
    caller.snapshot = draft.finish();
    assert_eq!(caller.reached(), [1, 9]);
}

#[test]
fn nobody_counts_where_no_rule_is() {
    let mut caller = Caller::new(2, rule());
    caller.breaks(0);
    let mut draft = caller.snapshot.draft();
    let name = format!("limits/shop/{}", host("shop", "cart"));
    assert!(draft.remove_outbound_policy(&name));
    caller.snapshot = draft.finish();
    assert_eq!(caller.reached(), [0, 1]);
}

#[test]
fn what_is_out_is_listed() {
    let mut caller = Caller::new(2, rule());
    assert!(caller.outliers.all(caller.now.get()).is_empty());
    caller.breaks(1);
    let all = caller.outliers.all(caller.now.get());
    let [one] = &all[..] else { panic!("{all:?}") };
    assert_eq!(one.service, caller.service());
    assert_eq!(*one.place.uid, *uid("shop", "cart-1"));
    assert_eq!((one.until - caller.now.get(), one.times), (SECOND * 30, 1));
    caller.wait(SECOND * 30);
    assert!(caller.outliers.all(caller.now.get()).is_empty());
}

#[test]
fn little_is_remembered() {
    let mut caller = Caller::new(2, rule());
    let workload = caller.snapshot.workload_by_uid(&uid("shop", "cart-0"));
    let workload = workload.unwrap().clone();
    for n in 0..3 * REMEMBERED {
        let service = NamespacedHostname {
            namespace: "shop".into(),
            hostname: format!("s{n}").into(),
        };
        let now = caller.now.get();
        caller
            .outliers
            .failed(&service, &workload, &caller.rule, 1, now);
    }
    assert!(caller.outliers.services.len() <= REMEMBERED);
    let mut caller = Caller::new(9, rule());
    let key = caller.service();
    for endpoint in 0..9 {
        let uid = uid("shop", &format!("cart-{endpoint}"));
        let workload = caller.snapshot.workload_by_uid(&uid).unwrap().clone();
        let now = caller.now.get();
        caller
            .outliers
            .failed(&key, &workload, &caller.rule, 2, now);
    }
    assert!(caller.outliers.services[&key].len() <= 3);
    caller.works(8);
    caller.works(7);
    caller.works(6);
    assert!(caller.outliers.services.is_empty());
}

proptest! {
    /// Whatever happens, no more are out than may be, and a call finds what is in.
    #[test]
    fn the_bound_holds(
        percent in 0..=100_u32,
        steps in proptest::collection::vec((0..6_u8, any::<bool>(), 0..40_u64), 1..200),
    ) {
        let rule = OutlierRule {
            failures: NonZeroU32::MIN,
            max_ejected_percent: percent,
            ..rule()
        };
        let mut caller = Caller::new(6, rule);
        for (endpoint, works, seconds) in steps {
            caller.wait(SECOND * u32::try_from(seconds).unwrap());
            if works { caller.works(endpoint) } else { caller.fails(endpoint); }
            let out = caller.ejected(&caller.service()).len();
            prop_assert!(out * 100 <= 6 * percent as usize);
            prop_assert_eq!(caller.reached().len(), 6 - out);
        }
    }
}

//! Endpoints that do not take connections are left out for a while: `outlierDetection` of
//! DestinationRules at L4. The rules are those of Envoy for connections whose content it does not
//! look at.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use isobar_types::{NamespacedHostname, Str};

use crate::balance::usable;
use crate::service::Service;
use crate::snapshot::Snapshot;
use crate::workload::Workload;

/// No endpoint is out for longer, unless the rule's base time itself is.
const LONGEST: Duration = Duration::from_secs(300);
/// Services remembered before those without an endpoint that is out are forgotten.
const REMEMBERED: usize = 1024;

/// When an endpoint is taken out, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutlierRule {
    /// Failed connections in a row.
    pub failures: NonZeroU32,
    /// An endpoint that stayed in for so long is out a step shorter next time.
    pub interval: Duration,
    /// Time out, times how often it was.
    pub base_ejection: Duration,
    /// Most endpoints that may be out at once, in percent of all.
    pub max_ejected_percent: u32,
    /// With fewer endpoints in than this, in percent of all, nothing is out.
    pub min_healthy_percent: u32,
}

/// Says which endpoints are to be left out of a choice.
pub trait Ejections: fmt::Debug {
    /// The endpoints of a service that are out. Mostly none.
    fn ejected(&self, service: &NamespacedHostname) -> Vec<Place>;
}

/// An endpoint by what makes it the same one: a pod that comes back under its name with another
/// address starts anew.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// Uid of the workload.
    pub uid: Str,
    /// Its first address.
    pub address: Option<IpAddr>,
}

impl From<&Workload> for Place {
    fn from(workload: &Workload) -> Self {
        Self {
            uid: workload.uid.clone(),
            address: workload.addresses.first().copied(),
        }
    }
}

impl Place {
    fn is(&self, workload: &Workload) -> bool {
        self.uid == workload.uid && self.address == workload.addresses.first().copied()
    }
}

/// What one more failure led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Not enough of them yet, or the endpoint is out already.
    Counted,
    /// The endpoint is out for so long.
    Ejected(Duration),
    /// It would be, were not as many out as may be.
    Spared,
}

/// Failures and ejections as one caller sees them.
#[derive(Debug, Default)]
pub struct Outliers {
    services: HashMap<NamespacedHostname, HashMap<Place, Record>>,
}

#[derive(Debug, Default)]
struct Record {
    /// In a row.
    failures: u32,
    /// How often it was out, less what it has made good.
    times: u32,
    until: Option<Instant>,
}

/// An endpoint that is out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ejected {
    /// The service it is out of.
    pub service: NamespacedHostname,
    /// The endpoint.
    pub place: Place,
    /// Until then.
    pub until: Instant,
    /// How often it was, less what it has made good.
    pub times: u32,
}

impl Record {
    fn is_out(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Times out that still count, one less for each interval since it came back.
    fn standing(&self, rule: &OutlierRule, now: Instant) -> u32 {
        let Some(until) = self.until else { return 0 };
        let good = now.saturating_duration_since(until).as_millis();
        let steps = good / rule.interval.as_millis().max(1);
        self.times
            .saturating_sub(u32::try_from(steps).unwrap_or(u32::MAX))
    }
}

impl Outliers {
    /// A connection to an endpoint of `service`, which has `endpoints` of them, could not be made.
    pub fn failed(
        &mut self,
        service: &NamespacedHostname,
        endpoint: &Workload,
        rule: &OutlierRule,
        endpoints: usize,
        now: Instant,
    ) -> Failure {
        if self.services.len() >= REMEMBERED && !self.services.contains_key(service) {
            self.services
                .retain(|_, places| places.values().any(|record| record.is_out(now)));
        }
        let places = self.services.entry(service.clone()).or_default();
        let place = Place::from(endpoint);
        if places.len() > endpoints && !places.contains_key(&place) {
            // More than there are: some have gone.
            places.retain(|_, record| record.is_out(now));
        }
        let out = places.values().filter(|record| record.is_out(now)).count();
        let record = places.entry(place).or_default();
        if record.is_out(now) {
            return Failure::Counted;
        }
        record.failures = record.failures.saturating_add(1);
        if record.failures < rule.failures.get() {
            return Failure::Counted;
        }
        record.failures = 0;
        let most = endpoints.saturating_mul(rule.max_ejected_percent as usize);
        if (out + 1).saturating_mul(100) > most {
            return Failure::Spared;
        }
        record.times = record.standing(rule, now).saturating_add(1);
        let time = rule
            .base_ejection
            .saturating_mul(record.times)
            .min(LONGEST.max(rule.base_ejection));
        record.until = now.checked_add(time);
        Failure::Ejected(time)
    }

    /// A connection to an endpoint of `service` was made.
    pub fn succeeded(
        &mut self,
        service: &NamespacedHostname,
        endpoint: &Workload,
        rule: &OutlierRule,
        now: Instant,
    ) {
        let Some(places) = self.services.get_mut(service) else {
            return;
        };
        let place = Place::from(endpoint);
        let Some(record) = places.get_mut(&place) else {
            return;
        };
        record.failures = 0;
        if !record.is_out(now) && record.standing(rule, now) == 0 {
            places.remove(&place);
        }
        if places.is_empty() {
            self.services.remove(service);
        }
    }

    /// The endpoints of a service that are out.
    #[must_use]
    pub fn of(&self, service: &NamespacedHostname, now: Instant) -> Vec<Place> {
        let places = self.services.get(service).into_iter().flatten();
        places
            .filter(|(_, record)| record.is_out(now))
            .map(|(place, _)| place.clone())
            .collect()
    }

    /// Every endpoint that is out.
    #[must_use]
    pub fn all(&self, now: Instant) -> Vec<Ejected> {
        let records = self.services.iter().flat_map(|(service, places)| {
            places
                .iter()
                .map(move |(place, record)| (service, place, record))
        });
        let out = records.filter_map(|(service, place, record)| {
            Some(Ejected {
                service: service.clone(),
                place: place.clone(),
                until: record.until.filter(|until| now < *until)?,
                times: record.times,
            })
        });
        out.collect()
    }
}

impl Snapshot {
    /// Endpoints of a service that ejections are counted against.
    #[must_use]
    pub fn endpoint_count(&self, service: &Service) -> usize {
        let all = self.endpoints(&service.key);
        all.filter(|endpoint| usable(service, endpoint)).count()
    }
}

/// The endpoints that a choice has to leave out.
#[derive(Debug, Default)]
pub(crate) struct Avoided(Vec<Place>);

impl Avoided {
    /// What `ejections` say about `service`, unless too few would remain.
    pub(crate) fn of(
        snapshot: &Snapshot,
        service: &Service,
        ejections: Option<&dyn Ejections>,
    ) -> Self {
        let Some(ejections) = ejections else {
            return Self::default();
        };
        let rule = snapshot.limits(&service.key).and_then(|l| l.outliers);
        let Some(rule) = rule else {
            return Self::default();
        };
        let out = ejections.ejected(&service.key);
        if out.is_empty() {
            return Self::default();
        }
        let all = snapshot.endpoint_count(service);
        let within = all.saturating_sub(out.len());
        if within * 100 < all.saturating_mul(rule.min_healthy_percent as usize) {
            return Self::default();
        }
        Self(out)
    }

    /// Those, and `more`.
    pub(crate) fn and(mut self, more: &[Place]) -> Self {
        self.0.extend_from_slice(more);
        self
    }

    #[cfg(test)]
    pub(crate) fn all_of(places: &[Place]) -> Self {
        Self(places.to_vec())
    }

    pub(crate) fn contains(&self, workload: &Workload) -> bool {
        self.0.iter().any(|place| place.is(workload))
    }
}

#[cfg(test)]
mod tests;

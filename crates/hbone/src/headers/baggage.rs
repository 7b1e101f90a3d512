use std::fmt;

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue};

use super::{BAGGAGE, TEXT, value};

/// What one proxy says about a workload, for the other's telemetry. Unauthenticated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Baggage {
    /// Cluster id.
    pub cluster: Option<String>,
    /// Namespace.
    pub namespace: Option<String>,
    /// Kind of owner: `deployment`, `cronjob`, `pod` or `job`.
    pub workload_type: Option<WorkloadType>,
    /// Owner's name.
    pub workload: Option<String>,
    /// Canonical service name.
    pub service: Option<String>,
    /// Canonical revision.
    pub revision: Option<String>,
    /// Region.
    pub region: Option<String>,
    /// Zone.
    pub zone: Option<String>,
}

/// Kinds of owner that baggage knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkloadType {
    /// A Deployment.
    Deployment,
    /// A CronJob.
    CronJob,
    /// A bare pod.
    Pod,
    /// A Job.
    Job,
}

impl WorkloadType {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Deployment, "deployment"),
        (Self::CronJob, "cronjob"),
        (Self::Pod, "pod"),
        (Self::Job, "job"),
    ];

    /// As written in keys.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(kind, _)| *kind == self)
            .map_or("pod", |(_, text)| text)
    }

    /// The member that holds the name of such an owner.
    const fn key(self) -> &'static str {
        match self {
            Self::Deployment => "k8s.deployment.name",
            Self::CronJob => "k8s.cronjob.name",
            Self::Pod => "k8s.pod.name",
            Self::Job => "k8s.job.name",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(_, name)| *name == text)
            .map(|(kind, _)| *kind)
    }
}

/// Longest text that is read, in bytes, and most members of it: what is longer than W3C Baggage asks
/// everybody to pass on (§3.3.2: 64 members, 8192 bytes) tells nothing.
const MOST_TEXT: usize = 8192;
const MOST_MEMBERS: usize = 64;
/// Longest value that is taken, in bytes: that of a name in Kubernetes.
const MOST_VALUE: usize = 253;

impl Baggage {
    /// Reads a header value; unknown keys, and values that are empty or longer than any name, are
    /// ignored (as Istio's ztunnel does with the first two). A text of more than 8192 bytes tells
    /// nothing, members behind the 64th are not read.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut found = Self::default();
        if text.len() > MOST_TEXT {
            return found;
        }
        for member in text.split(',').take(MOST_MEMBERS) {
            let mut parts = member.split('=');
            let (Some(key), Some(value)) = (parts.next(), parts.next()) else {
                continue;
            };
            let (key, value) = (key.trim(), value.trim());
            if value.is_empty() || value.len() > MOST_VALUE {
                continue;
            }
            found.set(key, value);
        }
        found
    }

    fn set(&mut self, key: &str, value: &str) {
        let slot = match key {
            "k8s.cluster.name" => &mut self.cluster,
            "k8s.namespace.name" => &mut self.namespace,
            "service.name" => &mut self.service,
            "service.version" => &mut self.revision,
            "cloud.region" => &mut self.region,
            "cloud.availability_zone" => &mut self.zone,
            _ => {
                let kind = key
                    .strip_prefix("k8s.")
                    .and_then(|rest| rest.strip_suffix(".name"))
                    .and_then(WorkloadType::parse);
                if kind.is_none() {
                    return;
                }
                self.workload_type = kind;
                &mut self.workload
            }
        };
        *slot = Some(value.to_owned());
    }

    pub(crate) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        BaggageValue::received(headers).map(|value| value.read())
    }
}

/// Baggage as the value of its header: written once and sent often, read when somebody asks. Cheap to
/// clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaggageValue(HeaderValue);

impl BaggageValue {
    /// `None` where a name is one that no header can carry: it is telemetry, to be left out.
    #[must_use]
    pub fn of(baggage: &Baggage) -> Option<Self> {
        let text = &mut BytesMut::with_capacity(TEXT);
        match value("baggage", text, baggage) {
            Ok(value) => Some(Self(value)),
            Err(error) => {
                tracing::debug!(%error, "baggage is left out");
                None
            }
        }
    }

    /// What it says; nothing where it is not ASCII.
    #[must_use]
    pub fn read(&self) -> Baggage {
        self.0.to_str().map(Baggage::parse).unwrap_or_default()
    }

    /// All `baggage` lines together; one that is not ASCII discards the whole.
    pub(super) fn received(headers: &HeaderMap) -> Option<Self> {
        let mut lines = headers.get_all(BAGGAGE).iter();
        let first = lines.next()?;
        if lines.next().is_none() {
            return first.to_str().is_ok().then(|| Self(first.clone()));
        }
        let all = headers.get_all(BAGGAGE).iter().map(HeaderValue::to_str);
        let all: Vec<&str> = all.collect::<Result<_, _>>().ok()?;
        HeaderValue::try_from(all.join(",")).ok().map(Self)
    }

    pub(crate) fn value(&self) -> HeaderValue {
        self.0.clone()
    }
}

impl fmt::Display for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workload_type = self.workload_type.unwrap_or(WorkloadType::Pod);
        let members = [
            ("k8s.cluster.name", &self.cluster),
            ("k8s.namespace.name", &self.namespace),
            (workload_type.key(), &self.workload),
            ("service.name", &self.service),
            ("service.version", &self.revision),
            ("cloud.region", &self.region),
            ("cloud.availability_zone", &self.zone),
        ];
        let mut first = true;
        for (key, value) in members {
            let Some(value) = value.as_deref().filter(|value| !value.is_empty()) else {
                continue;
            };
            if !first {
                f.write_str(",")?;
            }
            first = false;
            f.write_str(key)?;
            f.write_str("=")?;
            f.write_str(value)?;
        }
        Ok(())
    }
}

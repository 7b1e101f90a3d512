//! Everything there is to say about a set of objects, each with a code, a place and a way out: what is
//! wrong in their text, what the control plane would write into their statuses, what NetworkPolicies
//! shut, and what is not as the objects ask.

use std::collections::BTreeSet;
use std::path::PathBuf;

use isobar_control_plane::{
    Missing, Severity as Weight, Started, Told, Verdict, imagined, passed_by, shut_doors_by,
    told_by, verdicts_by,
};
use isobar_objects::enrolment::{Enrolment, EnrolmentRules, decide};
use isobar_objects::{
    Code, Finding, Kind, Namespace, Object, ObjectHead, ObjectRef, ObjectSet, Origin, Pod,
    Published, Secret, Severity, UNREAD, named_secrets,
};
use isobar_types::labels;

use crate::left_out;

/// How much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gravity {
    /// Not in force as written, or traffic is refused.
    Error,
    /// In force, but not in every detail as written, or perhaps not as meant.
    Warning,
}

impl Gravity {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// One thing to say. Ordered by gravity, then by code.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diagnosis {
    /// How much it matters.
    pub gravity: Gravity,
    /// What sort.
    pub code: Code,
    /// About what; `None` when the text could not be read that far, or it is about the mesh.
    pub object: Option<ObjectRef>,
    /// Path of the field; may be empty.
    pub field: String,
    /// A sentence.
    pub message: String,
    /// What to do.
    pub fix: String,
    /// File and line, for objects that came from one.
    pub place: Option<(PathBuf, Option<u32>)>,
    /// Its object asks for it not to be told.
    pub kept_back: bool,
}

/// Annotation with codes, separated by commas, that are not to be told of an object; `*` is all of them.
/// Istio's own codes mean nothing here.
const SUPPRESS: &str = "galley.istio.io/analyze-suppress";

/// Pods that a sentence names.
const PODS_NAMED: usize = 3;

/// Condition of a pod in which its node agent says whether it carries its traffic.
const REDIRECTED: &str = "isobar.dev/Redirected";

impl Diagnosis {
    /// One with the field and the way out that its code has.
    #[must_use]
    pub fn new(gravity: Gravity, code: Code, object: Option<ObjectRef>, message: String) -> Self {
        let entry = code.entry();
        Self {
            gravity,
            code,
            object,
            field: entry.field.to_owned(),
            message,
            fix: entry.mend.to_owned(),
            place: None,
            kept_back: false,
        }
    }
}

/// Whether the objects are those of a mesh that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lives {
    /// They are: what their statuses say counts.
    Yes,
    /// They are files: as if everything they ask for ran.
    No,
}

/// Says everything about what a source published, errors first, as a control plane has it that was
/// started so. `root` is the namespace of the mesh's own parts.
#[must_use]
pub fn diagnose(
    published: &Published,
    lives: Lives,
    root: &str,
    started: &Started,
) -> Vec<Diagnosis> {
    let set = match lives {
        Lives::Yes => with_unread(&published.objects),
        Lives::No => imagined(&published.objects),
    };
    let mut all: Vec<Diagnosis> = published.findings.iter().map(of_text).collect();
    let unheard: BTreeSet<&ObjectRef> = published
        .findings
        .iter()
        .filter(|finding| finding.severity == Severity::Unsupported)
        .filter_map(|finding| finding.object.as_ref())
        .collect();
    let told_in_text = |verdict: &Verdict| {
        verdict.reason == "UnsupportedValue" && unheard.contains(&verdict.object)
    };
    let (counting, not_counting) = left_out::counting(started, set.clone());
    // Doors are told one by one, with what they lack.
    let judged = verdicts_by(started, &counting).into_iter();
    let is_door = |v: &Verdict| ["DoorShut", "ProbesShut"].contains(&v.reason);
    let judged = judged.filter(|v| !is_door(v) && !told_in_text(v));
    all.extend(judged.filter_map(of_verdict));
    all.extend(doors(started, &counting));
    all.extend(unserved(&counting, &told_by(started, &counting)));
    all.extend(passed(started, &counting));
    all.extend(left_out::told(started, &set, not_counting));
    let rules = EnrolmentRules {
        system_namespace: root.to_owned(),
        ..started.enrolment().clone()
    };
    all.extend(enrolment(&set, lives, &rules));
    for one in &mut all {
        one.kept_back = asks_for_silence(&published.objects, one);
    }
    let mut known = BTreeSet::new();
    all.retain(|one| known.insert(one.clone()));
    all.sort();
    all
}

fn asks_for_silence(set: &ObjectSet, one: &Diagnosis) -> bool {
    let object = one.object.as_ref().and_then(|object| set.object(object));
    let annotations = object.and_then(|object| object.head().annotations.clone());
    let codes = annotations.and_then(|mut all| all.remove(SUPPRESS));
    let mine = one.code.to_string();
    let mut codes = codes.iter().flat_map(|codes| codes.split(','));
    codes.any(|code| code.trim() == "*" || code.trim().eq_ignore_ascii_case(&mine))
}

/// Nobody asks a cluster for keys to diagnose it: whether Secrets can be used is for the control plane
/// to say.
fn with_unread(objects: &ObjectSet) -> ObjectSet {
    let mut set = objects.clone();
    if objects.secrets.is_empty() {
        for named in named_secrets(objects) {
            let mut secret = Secret {
                type_: Some(UNREAD.to_owned()),
                ..Secret::default()
            };
            secret.metadata.namespace = Some(named.secret.namespace.to_string());
            secret.metadata.name = Some(named.secret.name.to_string());
            set.insert(Object::from(secret), Origin::nowhere());
        }
    }
    set
}

fn of_text(finding: &Finding) -> Diagnosis {
    let gravity = match finding.severity {
        Severity::Error => Gravity::Error,
        Severity::Unsupported | Severity::Warning => Gravity::Warning,
    };
    let message = finding.message.clone();
    let said = Diagnosis::new(gravity, finding.code, finding.object.clone(), message);
    let file = finding
        .file
        .as_ref()
        .filter(|file| !file.as_os_str().is_empty());
    Diagnosis {
        field: finding.field.clone(),
        fix: finding.hint.clone().unwrap_or(said.fix),
        place: file.map(|file| (file.to_path_buf(), finding.line)),
        ..said
    }
}

fn of_verdict(verdict: Verdict) -> Option<Diagnosis> {
    let gravity = match (verdict.severity, verdict.holds) {
        (Weight::Error, _) => Gravity::Error,
        (Weight::Warning, _) | (Weight::Info, false) => Gravity::Warning,
        (Weight::Info, true) => return None,
    };
    let code = Code::of_reason(verdict.reason);
    let (object, mut message) = (Some(verdict.object), verdict.message);
    let field = field_in(&message);
    if code == Code::OTHER {
        message = format!("{}: {message}", verdict.reason);
    }
    let said = Diagnosis::new(gravity, code, object, message);
    Some(match field {
        Some(field) => Diagnosis { field, ..said },
        None => said,
    })
}

/// The first path of a field that a sentence names.
fn field_in(message: &str) -> Option<String> {
    let mut words = message.split([' ', ',', ';', ':']);
    let path = words.find(|word| word.starts_with("spec.") && word.len() > 5)?;
    Some(path.trim_end_matches('.').to_owned())
}

fn doors(started: &Started, set: &ObjectSet) -> Vec<Diagnosis> {
    let remedies = shut_doors_by(started, set);
    let each = remedies.iter().flat_map(|remedy| {
        let policy = remedy.before.as_ref().unwrap_or(&remedy.after);
        let is_new = remedy.before.is_none();
        let reference = ObjectRef::new(Kind::NetworkPolicy, policy.namespace(), policy.name());
        remedy.doors.iter().map(move |door| {
            let pods: Vec<&str> = door.pods.iter().map(String::as_str).collect();
            let (pods, missing) = (pods.join(", "), door.missing);
            let (code, what) = match missing {
                Missing::Port(_) => (
                    Code::DOOR_SHUT,
                    format!("port {missing} is shut for {pods}"),
                ),
                Missing::Source(_) => (
                    Code::PROBES_SHUT,
                    format!("{missing} is not let in to {pods}"),
                ),
            };
            let message = format!("{what}: {}", door.consequence);
            let said = Diagnosis::new(Gravity::Warning, code, Some(reference.clone()), message);
            Diagnosis {
                field: door.field.clone(),
                fix: match is_new {
                    true => format!("{}; it is a policy of its own", said.fix),
                    false => said.fix,
                },
                ..said
            }
        })
    });
    each.collect()
}

/// Waypoints with policies that do not hold for whoever calls the pods behind them from outside the mesh.
fn passed(started: &Started, set: &ObjectSet) -> Vec<Diagnosis> {
    let found = passed_by(started, set).into_iter();
    let each = found.map(|(gateway, pods)| {
        let named: Vec<&str> = pods.iter().take(PODS_NAMED).map(String::as_str).collect();
        let more = match pods.len() - named.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let message = format!(
            "its policies hold for callers in the mesh: others reach {}{more} past it, which no node proxy \
             keeps",
            named.join(", ")
        );
        Diagnosis::new(Gravity::Warning, Code::PAST_WAYPOINT, Some(gateway), message)
    });
    each.collect()
}

/// VirtualServices that no waypoint was told.
fn unserved(set: &ObjectSet, told: &Told) -> Vec<Diagnosis> {
    let served: BTreeSet<(&str, &str)> = told
        .waypoints
        .values()
        .flat_map(|waypoint| &waypoint.virtual_services)
        .map(|routes| (routes.namespace.as_str(), routes.name.as_str()))
        .collect();
    let routes = set.virtual_services.iter().filter(|held| {
        let spec = &held.object.spec;
        spec.applies_to_mesh()
            && !spec.hosts.is_empty()
            && !served.contains(&(held.namespace(), held.name()))
    });
    let text = |held: &str| format!("no waypoint serves {held}: nobody applies these rules");
    let say = |object: ObjectRef, hosts: &[String]| {
        Diagnosis::new(
            Gravity::Warning,
            Code::ROUTES_WITHOUT_WAYPOINT,
            Some(object),
            text(&hosts.join(", ")),
        )
    };
    routes
        .map(|held| say(held.reference(), &held.object.spec.hosts))
        .collect()
}

fn enrolment(set: &ObjectSet, lives: Lives, rules: &EnrolmentRules) -> Vec<Diagnosis> {
    let mut all = Vec::new();
    let mut warn = |code, object: ObjectRef, message: String| {
        all.push(Diagnosis::new(
            Gravity::Warning,
            code,
            Some(object),
            message,
        ));
    };
    for namespace in set.namespaces.iter() {
        if let Some(value) = odd_mode(namespace.labels()) {
            warn(Code::MODE_NOT_KNOWN, namespace.reference(), value);
        }
        if asks_for_both(&namespace.object) {
            let text = "labelled for the mesh and for sidecars; pods with a sidecar stay out";
            warn(Code::SIDECAR, namespace.reference(), text.to_owned());
        }
    }
    for pod in set.pods.iter() {
        if let Some(value) = odd_mode(pod.labels()) {
            warn(Code::MODE_NOT_KNOWN, pod.reference(), value);
        }
        let namespace = set.namespaces.get("", pod.namespace());
        let decided = decide(&pod.object, namespace.map(|held| &held.object), rules);
        if decided.is_enrolled() && pod.annotation(labels::BYPASS_INBOUND) == Some("true") {
            let text = "callers reach it past its node proxy, and past every policy of the mesh";
            warn(Code::BYPASS, pod.reference(), text.to_owned());
        }
        if lives == Lives::Yes
            && let Some((code, text)) = not_as_asked(&pod.object, decided)
        {
            warn(code, pod.reference(), text);
        }
    }
    all
}

/// The value of a label for the mesh, if it is none that counts.
fn odd_mode(labels: &std::collections::BTreeMap<String, String>) -> Option<String> {
    let value = labels.get(labels::DATAPLANE_MODE)?;
    let known = [labels::MODE_AMBIENT, labels::MODE_NONE].contains(&value.as_str());
    (!known).then(|| format!("{value:?} is neither ambient nor none: it counts as no label"))
}

fn asks_for_both(namespace: &Namespace) -> bool {
    let label = |key: &str| namespace.labels().get(key).map(String::as_str);
    label(labels::DATAPLANE_MODE) == Some(labels::MODE_AMBIENT)
        && label("istio-injection") == Some("enabled")
}

/// What a running pod's annotation says against its labels.
fn not_as_asked(pod: &Pod, decided: Enrolment) -> Option<(Code, String)> {
    let status = pod.status.as_ref()?;
    if status.phase.as_deref() != Some("Running") || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let redirected = pod.annotation(labels::REDIRECTION) == Some("enabled");
    match (decided.is_enrolled(), redirected) {
        (true, false) => {
            let text = format!("{decided}, and nobody says that its traffic is redirected");
            Some((Code::NOT_REDIRECTED, text))
        }
        (false, true) => Some((
            Code::STILL_REDIRECTED,
            format!("its traffic is redirected, but {decided}"),
        )),
        // The annotation stays while no node proxy listens, so that callers keep to tunnels.
        (true, true) => {
            let mut conditions = status.conditions.iter().flatten();
            let said = conditions.find(|one| one.type_ == REDIRECTED && one.status == "False")?;
            let usual = || "its node agent says that nobody takes its connections".to_owned();
            Some((
                Code::NOT_REDIRECTED,
                said.message.clone().unwrap_or_else(usual),
            ))
        }
        (false, false) => None,
    }
}

#[cfg(test)]
#[path = "diagnosis_tests.rs"]
mod tests;

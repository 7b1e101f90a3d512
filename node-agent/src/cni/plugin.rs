//! The verbs of the CNI plugin.

use std::io;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::config::{NetworkConfig, VALID, addresses};
use super::environment::{Environment, PodName, Verb};
use super::question::{Answer, Matter, Outcome, Question, VERSION, ask};
use super::{CniError, Code, VERSIONS};
use crate::faults::crash_point;
use crate::sandbox::{self, Sandbox};

/// Between two tries to reach the agent.
const PAUSE: Duration = Duration::from_millis(200);
/// Longest that STATUS and CHECK wait.
const PROMPTLY: Duration = Duration::from_secs(5);

/// Does what is asked; returns what belongs on standard output. Blocks.
///
/// # Errors
/// What the runtime shall be told.
pub fn run(environment: &Environment, input: &[u8]) -> Result<Option<String>, CniError> {
    if environment.verb == Verb::Version {
        return Ok(Some(version(input)));
    }
    let config = NetworkConfig::parse(input)?;
    match environment.verb {
        Verb::Add => add(environment, &config).map(Some),
        Verb::Check => check(environment, &config).map(|()| None),
        Verb::Del => del(environment, &config).map(|()| None),
        Verb::Gc => gc(&config).map(|()| None),
        Verb::Status => status(&config).map(|()| None),
        Verb::Version => Ok(None),
    }
}

fn version(input: &[u8]) -> String {
    json!({
        "cniVersion": NetworkConfig::version_of(input),
        "supportedVersions": VERSIONS,
    })
    .to_string()
}

/// Lets the pod start once it may. Its network is as the plugins before made it: what they answered
/// is the answer.
fn add(environment: &Environment, config: &NetworkConfig) -> Result<String, CniError> {
    let previous = config.previous.as_ref().ok_or_else(no_previous)?;
    let result = previous.to_string();
    let Some(pod) = concerned(environment, config)? else {
        return Ok(result);
    };
    let record = Sandbox {
        uid: pod.uid.clone(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        // The agent takes it from the pod's object.
        service_account: String::new(),
        netns: environment.netns.clone(),
        ips: addresses(previous),
        container_id: environment.container_id.clone(),
        network: config.name.clone(),
    };
    crash_point("before", "record");
    sandbox::record(&config.settings.pods(), &record).map_err(|error| {
        // Without the folder the agent never ran here: whatever the pod is, nobody can say it.
        let code = match error.kind() {
            io::ErrorKind::NotFound => Code::TryAgain,
            _ => Code::Io,
        };
        CniError::new(
            code,
            "the pod cannot be written down for the node agent",
            &error,
        )
    })?;
    crash_point("after", "record");
    let answer = insist(config, &record)?;
    crash_point("after", "answer");
    match answer.outcome {
        Outcome::Enrolled | Outcome::Plain => Ok(result),
        _ => Err(CniError::new(
            Code::TryAgain,
            format!("pod {}/{} may not start yet", pod.namespace, pod.name),
            &answer.why,
        )),
    }
}

/// Asks until there is an answer or the time is over: an agent that is replaced is away for a
/// moment.
fn insist(config: &NetworkConfig, record: &Sandbox) -> Result<Answer, CniError> {
    let end = Instant::now() + config.settings.wait();
    loop {
        let question = Question {
            version: VERSION,
            matter: Matter::Start,
            uid: record.uid.clone(),
            container_id: record.container_id.clone(),
            limit: millis(end.saturating_duration_since(Instant::now())),
        };
        match ask(&config.settings.socket(), &question, end) {
            Ok(answer) => return Ok(answer),
            Err(_) if Instant::now() + PAUSE < end => std::thread::sleep(PAUSE),
            Err(error) => return Err(away(config, &error)),
        }
    }
}

fn check(environment: &Environment, config: &NetworkConfig) -> Result<(), CniError> {
    config.previous.as_ref().ok_or_else(no_previous)?;
    let Some(pod) = concerned(environment, config)? else {
        return Ok(());
    };
    let question = Question {
        version: VERSION,
        matter: Matter::Check,
        uid: pod.uid.clone(),
        container_id: environment.container_id.clone(),
        limit: millis(PROMPTLY),
    };
    let answer = ask(
        &config.settings.socket(),
        &question,
        Instant::now() + PROMPTLY,
    )
    .map_err(|error| away(config, &error))?;
    let (code, message) = match answer.outcome {
        Outcome::Enrolled | Outcome::Plain | Outcome::Available => return Ok(()),
        Outcome::NotRedirected => (Code::NotRedirected, "is not redirected"),
        Outcome::Unknown => (Code::UnknownContainer, "is not known to the node agent"),
        Outcome::NotYet => (Code::TryAgain, "cannot be checked yet"),
    };
    let message = format!("pod {}/{} {message}", pod.namespace, pod.name);
    Err(CniError::new(code, message, &answer.why))
}

/// Forgets the container; the agent sees that its record is gone. What is gone already is no error,
/// and another container of the same pod stays.
fn del(environment: &Environment, config: &NetworkConfig) -> Result<(), CniError> {
    let id = &environment.container_id;
    erase(config, |record| record.container_id == *id)
}

/// Forgets the network's containers that the runtime does not list. A runtime that lists nothing has
/// none; one that does not list says nothing about any.
fn gc(config: &NetworkConfig) -> Result<(), CniError> {
    let valid = config.valid.as_ref().ok_or_else(|| {
        let message = format!("{VALID} is missing: nobody says which containers are left");
        CniError::new(Code::Config, message, "")
    })?;
    erase(config, |record| {
        // Those without a container are not the plugin's.
        !record.container_id.is_empty()
            && record.network == config.name
            && !valid.contains(&record.container_id)
    })
}

fn erase(config: &NetworkConfig, gone: impl Fn(&Sandbox) -> bool) -> Result<(), CniError> {
    sandbox::erase(&config.settings.pods(), gone)
        .map(drop)
        .map_err(|error| CniError::new(Code::Io, "the pod's record cannot be removed", &error))
}

fn status(config: &NetworkConfig) -> Result<(), CniError> {
    let question = Question {
        version: VERSION,
        matter: Matter::Status,
        uid: String::new(),
        container_id: String::new(),
        limit: millis(PROMPTLY),
    };
    let unavailable = |why: String| {
        let message = "the node agent of the mesh does not answer; no pod can start on this node";
        Err(CniError::new(Code::Unavailable, message, &why))
    };
    match ask(
        &config.settings.socket(),
        &question,
        Instant::now() + PROMPTLY,
    ) {
        Ok(answer) if answer.outcome == Outcome::Available => Ok(()),
        Ok(answer) => unavailable(answer.why),
        Err(error) => unavailable(error.to_string()),
    }
}

/// The pod, if the agent has a say about it.
fn concerned<'a>(
    environment: &'a Environment,
    config: &NetworkConfig,
) -> Result<Option<&'a PodName>, CniError> {
    let Some(pod) = &environment.pod else {
        return Ok(None);
    };
    if config.settings.leaves_alone(&pod.namespace, &pod.name) {
        return Ok(None);
    }
    if pod.uid.is_empty() {
        let message = "CNI_ARGS has no K8S_POD_UID: the container runtime is too old for the mesh";
        return Err(CniError::new(Code::Environment, message, ""));
    }
    Ok(Some(pod))
}

fn away(config: &NetworkConfig, error: &io::Error) -> CniError {
    let message = "the node agent of the mesh does not answer";
    let socket = config.settings.socket();
    CniError::new(
        Code::TryAgain,
        message,
        &format!("{}: {error}", socket.display()),
    )
}

fn no_previous() -> CniError {
    let message = "prevResult is missing: the plugin belongs behind one that makes an interface";
    CniError::new(Code::Config, message, "")
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The line for the runtime's log about a failure.
#[must_use]
pub fn log_line(environment: Option<&Environment>, error: &CniError) -> Value {
    let pod = environment.and_then(|environment| environment.pod.as_ref());
    json!({
        "plugin": super::PLUGIN,
        "verb": environment.map(|environment| format!("{:?}", environment.verb)),
        "pod": pod.map(|pod| format!("{}/{}", pod.namespace, pod.name)),
        "error": error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Records that are left after GC, and how it ended.
    fn collected(config: &Value) -> (Vec<String>, Result<(), CniError>) {
        let dir = tempfile::tempdir().unwrap();
        let record = |uid: &str, network: &str| Sandbox {
            uid: uid.to_owned(),
            namespace: "shop".to_owned(),
            name: uid.to_owned(),
            service_account: String::new(),
            netns: "/proc/1/ns/net".into(),
            ips: Vec::new(),
            container_id: format!("container-of-{uid}"),
            network: network.to_owned(),
        };
        let write = |folder: &Path| {
            std::fs::create_dir(folder).unwrap();
            for (uid, network) in [("a", "net"), ("b", "net"), ("c", "other")] {
                sandbox::record(folder, &record(uid, network)).unwrap();
            }
        };
        let mut config = config.clone();
        config["cniVersion"] = json!("1.1.0");
        config["name"] = json!("net");
        config["runDir"] = json!(dir.path());
        let config = NetworkConfig::parse(config.to_string().as_bytes()).unwrap();
        write(&config.settings.pods());
        let done = gc(&config);
        let (left, _) = sandbox::read_all(&config.settings.pods()).unwrap();
        let mut left: Vec<String> = left.into_iter().map(|record| record.uid).collect();
        left.sort();
        (left, done)
    }

    #[test]
    fn garbage_is_what_a_list_leaves_out_not_what_nobody_lists() {
        let of = |containers: Value| collected(&json!({ VALID: containers }));
        let one = json!([{"containerID": "container-of-a", "ifname": "eth0"}]);
        assert_eq!(of(one).0, ["a", "c"]);
        let (left, done) = of(json!([]));
        assert_eq!((left, done), (vec!["c".to_owned()], Ok(())));
        for silent in [json!({}), json!({ VALID: null })] {
            let (left, done) = collected(&silent);
            assert_eq!(left, ["a", "b", "c"]);
            assert_eq!(done.unwrap_err().code, Code::Config);
        }
    }
}

//! What a scenario file holds.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

/// One configuration of a waypoint and the requests sent to it. Each request is a scenario.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Configuration {
    /// Unique; together with a request's name it names a scenario.
    pub(crate) name: String,
    /// Endpoints; by default `v1` and `v2` of `svc`, and `other` of `other`.
    #[serde(default = "default_backends")]
    pub(crate) backends: Vec<Backend>,
    /// Ports of every service by name; the name declares the protocol.
    #[serde(default = "default_ports")]
    pub(crate) ports: BTreeMap<String, u16>,
    /// Callers besides `client`.
    #[serde(default)]
    pub(crate) callers: BTreeMap<String, Caller>,
    /// HTTP rules of a VirtualService `vs` for host `svc`.
    #[serde(default)]
    pub(crate) http: Vec<Value>,
    /// Spec of a DestinationRule for host `svc`; by default subsets `v1` and `v2`.
    #[serde(default)]
    pub(crate) rule: Option<Value>,
    /// Rules of an AuthorizationPolicy on service `svc`, with its action.
    #[serde(default)]
    pub(crate) policies: Vec<Value>,
    /// Any other objects; namespace and version are filled in.
    #[serde(default)]
    pub(crate) objects: Vec<Value>,
    /// The requests.
    pub(crate) cases: Vec<Case>,
}

impl Default for Configuration {
    fn default() -> Self {
        Self {
            name: String::new(),
            backends: default_backends(),
            ports: default_ports(),
            callers: BTreeMap::new(),
            http: Vec::new(),
            rule: None,
            policies: Vec::new(),
            objects: Vec::new(),
            cases: Vec::new(),
        }
    }
}

impl Case {
    /// A request in the short form.
    pub(crate) fn from_line(line: &str) -> Self {
        Written::Short(line.to_owned()).into()
    }
}

impl Configuration {
    /// The service port a request is for; by default the lowest.
    pub(crate) fn port_of(&self, case: &Case) -> u16 {
        let lowest = self.ports.values().min().copied();
        case.port.or(lowest).unwrap_or(80)
    }
}

/// Pods that run the same.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Backend {
    /// Name; also the body of its answers.
    pub(crate) name: String,
    /// The service it is an endpoint of (label `app`).
    #[serde(default = "default_service")]
    pub(crate) service: String,
    /// Labels besides `app`; by default `version: NAME`.
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    /// How many.
    #[serde(default = "one")]
    pub(crate) count: usize,
    /// Nothing listens there.
    #[serde(default)]
    pub(crate) refuses: bool,
    /// Not ready.
    #[serde(default)]
    pub(crate) unready: bool,
    /// What it answers where the request does not say.
    #[serde(default)]
    pub(crate) answer: Option<Answer>,
}

/// A calling pod; its name is also its account.
#[derive(Debug, Clone, Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Caller {
    /// By default that of the services.
    #[serde(default)]
    pub(crate) namespace: Option<String>,
    /// Its labels.
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
}

/// A request, in short (`GET /path`) or in full.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "Written")]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) host: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    pub(crate) protocol: Protocol,
    pub(crate) caller: String,
    pub(crate) port: Option<u16>,
    pub(crate) answers: Vec<Answer>,
    pub(crate) within_ms: Option<u64>,
    pub(crate) repeat: usize,
    pub(crate) settle: usize,
    pub(crate) at_once: bool,
    pub(crate) same: bool,
    pub(crate) copies: usize,
    pub(crate) status: Option<u16>,
    pub(crate) raw: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Short(String),
    Full(Box<Full>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Full {
    #[serde(default)]
    name: Option<String>,
    /// `METHOD /path`.
    #[serde(default, rename = "do")]
    what: Option<String>,
    #[serde(default)]
    host: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, Values>,
    #[serde(default)]
    body: String,
    #[serde(default)]
    protocol: Protocol,
    #[serde(default)]
    caller: Option<String>,
    #[serde(default)]
    port: Option<u16>,
    /// What the back ends answer to this request, try by try; the last holds on.
    #[serde(default)]
    answers: Vec<Answer>,
    /// Both sides are to be on the same side of this limit, in milliseconds.
    #[serde(default)]
    within_ms: Option<u64>,
    /// Sent so often; what counts then is which answers and back ends came never, at times, always.
    #[serde(default = "one")]
    repeat: usize,
    /// Sent so often before anything counts.
    #[serde(default)]
    settle: usize,
    /// Repetitions run beside each other.
    #[serde(default)]
    at_once: bool,
    /// What counts of repetitions is whether all answers are the same, not which.
    #[serde(default)]
    same: bool,
    /// So many copies come to mirrors; they are waited for, and the order of arrival does not count.
    #[serde(default)]
    copies: usize,
    /// The status that both are to give.
    #[serde(default)]
    status: Option<u16>,
    /// The bytes to send instead of a well-formed HTTP/1.1 request.
    #[serde(default)]
    raw: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    One(String),
    Many(Vec<String>),
}

/// The protocol a caller speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    #[default]
    Http1,
    Http2,
}

/// What a back end does with one try.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Option<String>,
    pub(crate) trailers: BTreeMap<String, String>,
    pub(crate) delay_ms: u64,
    /// The connection ends (HTTP/2: the stream is reset) without an answer.
    pub(crate) reset: bool,
    /// The body breaks off after its first part.
    pub(crate) cut: bool,
}

impl Default for Answer {
    fn default() -> Self {
        Self {
            status: 200,
            headers: BTreeMap::new(),
            body: None,
            trailers: BTreeMap::new(),
            delay_ms: 0,
            reset: false,
            cut: false,
        }
    }
}

impl From<Written> for Case {
    fn from(written: Written) -> Self {
        let full = match written {
            Written::Short(text) => Full {
                what: Some(text),
                ..Full::default()
            },
            Written::Full(full) => *full,
        };
        let what = full.what.unwrap_or_else(|| "GET /".to_owned());
        let (method, target) = what.split_once(' ').unwrap_or((&what, "/"));
        let mut headers = Vec::new();
        for (name, values) in full.headers {
            match values {
                Values::One(value) => headers.push((name, value)),
                Values::Many(values) => {
                    headers.extend(values.into_iter().map(|value| (name.clone(), value)));
                }
            }
        }
        Self {
            name: full.name.unwrap_or_else(|| name_of(&what, &headers)),
            method: method.to_owned(),
            target: target.to_owned(),
            host: full.host.unwrap_or_else(default_service),
            headers,
            body: full.body,
            protocol: full.protocol,
            caller: full.caller.unwrap_or_else(|| "client".to_owned()),
            port: full.port,
            answers: full.answers,
            within_ms: full.within_ms,
            repeat: full.repeat,
            settle: full.settle,
            at_once: full.at_once,
            same: full.same,
            copies: full.copies,
            status: full.status,
            raw: full.raw,
        }
    }
}

impl Default for Full {
    fn default() -> Self {
        Self {
            name: None,
            what: None,
            host: None,
            headers: BTreeMap::new(),
            body: String::new(),
            protocol: Protocol::default(),
            caller: None,
            port: None,
            answers: Vec::new(),
            within_ms: None,
            repeat: 1,
            settle: 0,
            at_once: false,
            same: false,
            copies: 0,
            status: None,
            raw: None,
        }
    }
}

fn name_of(what: &str, headers: &[(String, String)]) -> String {
    let mut name = what.to_owned();
    for (key, value) in headers {
        name.push_str(&format!(" {key}={value}"));
    }
    name
}

fn default_backends() -> Vec<Backend> {
    ["v1", "v2", "other"]
        .map(|name| Backend {
            name: name.to_owned(),
            service: if name == "other" { "other" } else { "svc" }.to_owned(),
            labels: BTreeMap::new(),
            count: 1,
            refuses: false,
            unready: false,
            answer: None,
        })
        .into()
}

fn default_ports() -> BTreeMap<String, u16> {
    BTreeMap::from([("http".to_owned(), 80)])
}

fn default_service() -> String {
    "svc".to_owned()
}

const fn one() -> usize {
    1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    configurations: Vec<Configuration>,
}

/// Reads every scenario file of a folder, in the order of names.
pub(crate) fn read(folder: &Path) -> Vec<Configuration> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    let mut all = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let file: File = serde_saphyr::from_str(&text)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap();
        all.extend(file.configurations.into_iter().map(|mut one| {
            one.name = format!("{stem}/{}", one.name);
            number_duplicates(&mut one.cases);
            one
        }));
    }
    all
}

/// Two requests of one configuration may look alike; their names do not.
fn number_duplicates(cases: &mut [Case]) {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for case in cases {
        let count = seen.entry(case.name.clone()).or_default();
        *count += 1;
        if *count > 1 {
            case.name = format!("{} #{count}", case.name);
        }
    }
}

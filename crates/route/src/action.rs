use std::borrow::Cow;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use isobar_types::{NamespacedHostname, Str};

use crate::header_text::{Facts, HeaderText};
use crate::own_filters::OwnFilters;
pub use crate::rewrite::Rewrite;
use crate::rewrite::with_prefix;
use crate::text::TextMatch;

/// What a rule does with a request that matched it.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Sends it to one of these.
    Forward(Vec<Weighted>),
    /// Answers with a redirect.
    Redirect(Redirect),
    /// Answers with a fixed reply.
    Direct(DirectResponse),
}

/// One destination and its share.
#[derive(Debug, Clone, PartialEq)]
pub struct Weighted {
    /// Where to.
    pub target: Target,
    /// Share relative to the sum of all; 0 gets none.
    pub weight: u32,
    /// Header edits for this destination only.
    pub request: HeaderEdits,
    /// Edits of the reply's headers.
    pub response: HeaderEdits,
    /// What else is done for this destination only; most have nothing.
    pub own: Option<Box<OwnFilters>>,
}

/// A destination that gets copies of requests; nobody waits for its answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Mirror {
    /// Where to.
    pub target: Target,
    /// Share of requests that are copied, above 0 to 100.
    pub percentage: f64,
}

impl Mirror {
    /// True if this request is copied, by dice.
    #[must_use]
    pub fn takes(&self, dice: u64) -> bool {
        hits(self.percentage, dice)
    }
}

/// A service, optionally a subset of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The service; `None` where the host names none that this waypoint knows.
    pub service: Option<NamespacedHostname>,
    /// Subset name of a DestinationRule.
    pub subset: Option<Str>,
    /// Service port as written; 0 where none is: see [`Target::port_of`].
    pub port: u16,
    /// The host as the user wrote it.
    pub host: Str,
    /// Nothing is sent there; requests are answered with this status.
    pub refuse: Option<u16>,
}

impl Target {
    /// The service port that is meant: as written, else the service's only one, else the one the call
    /// came for. `ports` are the service's.
    #[must_use]
    pub fn port_of(&self, mut ports: impl Iterator<Item = u16>, asked: u16) -> u16 {
        if self.port != 0 {
            return self.port;
        }
        match (ports.next(), ports.next()) {
            (Some(only), None) => only,
            _ => asked,
        }
    }
}

/// Picks by weight: `dice` is a uniformly random number. The place in the list with what is there;
/// `None` if no weight is above 0.
#[must_use]
pub fn choose(destinations: &[Weighted], dice: u64) -> Option<(usize, &Weighted)> {
    let total: u64 = destinations.iter().map(|d| u64::from(d.weight)).sum();
    let mut left = dice.checked_rem(total)?;
    destinations.iter().enumerate().find(|(_, destination)| {
        let weight = u64::from(destination.weight);
        let here = left < weight;
        left = left.saturating_sub(weight);
        here
    })
}

/// Header operations: removals first, then replacements, then additions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// Names to remove.
    pub remove: Vec<HeaderName>,
    /// Names to give exactly this value.
    pub set: Vec<(HeaderName, HeaderText)>,
    /// Lines to add.
    pub add: Vec<(HeaderName, HeaderText)>,
    /// A new authority, where `host` or `:authority` was set.
    pub authority: Option<String>,
}

impl HeaderEdits {
    /// Applies several to a message's headers, one after the other. All values are made before any is
    /// written, of what no edit removes; one of which nothing is known is not written.
    pub fn apply(all: &[&Self], headers: &mut HeaderMap, facts: &dyn Facts) {
        let mut left = None;
        if all.iter().any(|edits| edits.is_made()) {
            let left = left.insert(headers.clone());
            for name in all.iter().flat_map(|edits| &edits.remove) {
                left.remove(name);
            }
        }
        for edits in all {
            for name in &edits.remove {
                headers.remove(name);
            }
            let known = |text: &HeaderText| match (&left, text) {
                (_, HeaderText::Plain(value)) => Some(value.clone()),
                (Some(left), text) => text.value(facts, left),
                (None, HeaderText::Made(_)) => None,
            };
            for (name, text) in &edits.set {
                if let Some(value) = known(text) {
                    headers.insert(name, value);
                }
            }
            for (name, text) in &edits.add {
                if let Some(value) = known(text) {
                    headers.append(name, value);
                }
            }
        }
    }

    /// True if it says something of this field.
    #[must_use]
    pub fn names(&self, name: &HeaderName) -> bool {
        let mut written = self.set.iter().chain(&self.add);
        self.remove.contains(name) || written.any(|(own, _)| own == name)
    }

    /// True if a value of it has to be made.
    #[must_use]
    pub fn is_made(&self) -> bool {
        let mut all = self.set.iter().chain(&self.add);
        all.any(|(_, text)| matches!(text, HeaderText::Made(_)))
    }
}

/// A redirect reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// New path; a query in it replaces the request's.
    pub uri: Option<String>,
    /// New authority.
    pub authority: Option<String>,
    /// New scheme.
    pub scheme: Option<String>,
    /// New port.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub code: u16,
    /// Takes the place of the matched prefix; only without `uri`.
    pub prefix_rewrite: Option<String>,
    /// The port the request came for stands in the location.
    pub port_from_request: bool,
}

/// What a redirect starts from.
#[derive(Debug, Clone, Copy)]
pub struct RedirectFrom<'a> {
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Normalised authority.
    pub authority: &'a str,
    /// Normalised path.
    pub path: &'a str,
    /// Query without the question mark.
    pub query: Option<&'a str>,
    /// The service port the request came for.
    pub port: u16,
    /// The URI match that took the request.
    pub matched: Option<&'a TextMatch>,
}

impl Redirect {
    /// The value of `location`.
    #[must_use]
    pub fn location(&self, from: &RedirectFrom<'_>) -> String {
        let to_scheme = self.scheme.as_deref().unwrap_or(from.scheme);
        let (host, mut port) = match &self.authority {
            Some(authority) => (authority.as_str(), None),
            None => crate::path::split_port(from.authority),
        };
        let derived = self.port_from_request.then_some(from.port);
        let own_port = self.port.or(derived).map(|port| port.to_string());
        // Another scheme has another usual port; a port of its own stays.
        if to_scheme != from.scheme && port.is_some_and(|p| is_usual(from.scheme, p)) {
            port = None;
        }
        if let Some(own) = &own_port {
            port = (!is_usual(to_scheme, own)).then_some(own.as_str());
        }
        let mut out = format!("{to_scheme}://{host}");
        if let Some(port) = port {
            out.push(':');
            out.push_str(port);
        }
        let new_path = self.path(from);
        out.push_str(&new_path);
        if let Some(query) = from.query.filter(|_| !new_path.contains('?')) {
            out.push('?');
            out.push_str(query);
        }
        out
    }

    fn path<'a>(&'a self, from: &RedirectFrom<'a>) -> Cow<'a, str> {
        if let Some(uri) = &self.uri {
            return Cow::Borrowed(uri);
        }
        let prefix = self.prefix_rewrite.as_deref();
        let changed = prefix.map(|new| with_prefix(new, from.path, from.matched));
        changed.map_or(Cow::Borrowed(from.path), Cow::Owned)
    }
}

fn is_usual(scheme: &str, port: &str) -> bool {
    matches!((scheme, port), ("http", "80") | ("https", "443"))
}

/// A fixed reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectResponse {
    /// HTTP status, 200 to 599.
    pub status: u16,
    /// Body.
    pub body: Vec<u8>,
}

/// Injected faults. Percentages are 0 to 100.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Fault {
    /// Share of requests delayed, and by how much.
    pub delay: Option<(f64, Duration)>,
    /// Share of requests aborted, with which status.
    pub abort: Option<(f64, AbortWith)>,
}

/// How an aborted request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortWith {
    /// HTTP status.
    Http(u16),
    /// gRPC status.
    Grpc(u16),
}

impl Fault {
    /// The delay for this request, by dice.
    #[must_use]
    pub fn delay(&self, dice: u64) -> Option<Duration> {
        self.delay
            .and_then(|(percentage, by)| hits(percentage, dice).then_some(by))
    }

    /// The abort for this request, by dice.
    #[must_use]
    pub fn abort(&self, dice: u64) -> Option<AbortWith> {
        self.abort
            .and_then(|(percentage, with)| hits(percentage, dice).then_some(with))
    }
}

/// Percentages are honoured to a millionth, as Envoy does.
fn hits(percentage: f64, dice: u64) -> bool {
    let drawn = u32::try_from(dice % 1_000_000).unwrap_or(0);
    f64::from(drawn) < percentage * 10_000.0
}

/// Cross-origin rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    /// Origins served; one must match.
    pub origins: Vec<TextMatch>,
    /// Joined list for `access-control-allow-methods`.
    pub methods: Option<HeaderValue>,
    /// Joined list for `access-control-allow-headers`.
    pub headers: Option<HeaderValue>,
    /// Joined list for `access-control-expose-headers`.
    pub expose: Option<HeaderValue>,
    /// Seconds a browser may keep the answer.
    pub max_age: Option<u64>,
    /// Allows credentials.
    pub credentials: bool,
    /// Preflights of origins that are not allowed are answered without leave, not passed on.
    pub answers_unmatched: bool,
}

/// What cross-origin rules say about one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preflight {
    /// Not a cross-origin request of an allowed origin: go on without additions.
    None,
    /// Answer 200 with these headers.
    Answer(HeaderMap),
    /// Go on and put these headers on the reply.
    Decorate(HeaderMap),
}

impl Cors {
    /// Looks at one request. A preflight of an origin that is not allowed is forwarded, as in Istio,
    /// unless the rule says otherwise.
    #[must_use]
    pub fn check(&self, method: &Method, request: &HeaderMap) -> Preflight {
        let Some(origin) = request.get(header::ORIGIN) else {
            return Preflight::None;
        };
        let preflight = *method == Method::OPTIONS
            && request.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if !self.origins.iter().any(|o| o.matches(origin.as_bytes())) {
            return if preflight && self.answers_unmatched {
                Preflight::Answer(HeaderMap::new())
            } else {
                Preflight::None
            };
        }
        let mut out = HeaderMap::new();
        out.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if self.credentials {
            let yes = HeaderValue::from_static("true");
            out.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
        let mut put = |name: HeaderName, value: &Option<HeaderValue>| {
            if let Some(value) = value {
                out.insert(name, value.clone());
            }
        };
        if preflight {
            put(header::ACCESS_CONTROL_ALLOW_METHODS, &self.methods);
            put(header::ACCESS_CONTROL_ALLOW_HEADERS, &self.headers);
            put(
                header::ACCESS_CONTROL_MAX_AGE,
                &self.max_age.map(HeaderValue::from),
            );
            return Preflight::Answer(out);
        }
        put(header::ACCESS_CONTROL_EXPOSE_HEADERS, &self.expose);
        Preflight::Decorate(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weighted(weights: &[u32]) -> Vec<Weighted> {
        weights
            .iter()
            .enumerate()
            .map(|(at, weight)| Weighted {
                target: Target {
                    service: None,
                    subset: None,
                    port: 0,
                    host: at.to_string().into(),
                    refuse: None,
                },
                weight: *weight,
                request: HeaderEdits::default(),
                response: HeaderEdits::default(),
                own: None,
            })
            .collect()
    }

    #[test]
    fn weights_are_exact_over_a_full_round_of_dice() {
        let all = weighted(&[80, 0, 20]);
        let count = |host: &str| {
            (0..100)
                .filter(|dice| &*choose(&all, *dice).unwrap().1.target.host == host)
                .count()
        };
        assert_eq!((count("0"), count("1"), count("2")), (80, 0, 20));
        assert!(choose(&weighted(&[0, 0]), 7).is_none());
        assert!(choose(&[], 7).is_none());
    }

    #[test]
    fn a_port_that_is_not_written_is_the_only_one_or_the_one_asked_for() {
        let mut target = weighted(&[1]).remove(0).target;
        let port = |target: &Target, ports: &[u16]| target.port_of(ports.iter().copied(), 80);
        assert_eq!(port(&target, &[9080]), 9080);
        assert_eq!(port(&target, &[80, 9080]), 80);
        assert_eq!(port(&target, &[]), 80);
        target.port = 7;
        assert_eq!(port(&target, &[9080]), 7);
    }

    #[test]
    fn redirects_keep_what_is_not_said() {
        let mut to = Redirect {
            uri: None,
            authority: None,
            scheme: Some("https".into()),
            port: None,
            code: 301,
            prefix_rewrite: None,
            port_from_request: false,
        };
        let prefix = TextMatch::Prefix("/p".into());
        let from = RedirectFrom {
            scheme: "http",
            authority: "a.b:8080",
            path: "/p/x",
            query: Some("q=1"),
            port: 9080,
            matched: Some(&prefix),
        };
        let place = |to: &Redirect| to.location(&from);
        assert_eq!(place(&to), "https://a.b:8080/p/x?q=1");
        let usual = RedirectFrom {
            authority: "a.b:80",
            ..from
        };
        assert_eq!(to.location(&usual), "https://a.b/p/x?q=1");
        to.port = Some(443);
        to.uri = Some("/n?z".into());
        assert_eq!(place(&to), "https://a.b/n?z");
        to.scheme = None;
        to.authority = Some("c".into());
        to.port = None;
        assert_eq!(place(&to), "http://c/n?z");
        to.uri = None;
        to.prefix_rewrite = Some("/new".into());
        assert_eq!(place(&to), "http://c/new/x?q=1");
        to.port_from_request = true;
        assert_eq!(place(&to), "http://c:9080/new/x?q=1");
    }

    #[test]
    fn unmatched_preflights_are_passed_on_or_answered_without_leave() {
        let mut cors = Cors {
            origins: vec![TextMatch::Exact("http://a".into())],
            methods: None,
            headers: None,
            expose: None,
            max_age: None,
            credentials: false,
            answers_unmatched: false,
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, HeaderValue::from_static("http://b"));
        let get = HeaderValue::from_static("GET");
        headers.insert(header::ACCESS_CONTROL_REQUEST_METHOD, get);
        assert_eq!(cors.check(&Method::OPTIONS, &headers), Preflight::None);
        cors.answers_unmatched = true;
        let bare = Preflight::Answer(HeaderMap::new());
        assert_eq!(cors.check(&Method::OPTIONS, &headers), bare);
        assert_eq!(cors.check(&Method::GET, &headers), Preflight::None);
    }

    #[test]
    fn faults_hit_their_share() {
        let fault = Fault {
            delay: Some((100.0, Duration::from_secs(1))),
            abort: Some((0.01, AbortWith::Http(503))),
        };
        assert!(
            (0..1_000_000)
                .step_by(999)
                .all(|d| fault.delay(d).is_some())
        );
        let hits = (0..1_000_000).filter(|d| fault.abort(*d).is_some()).count();
        assert_eq!(hits, 100);
    }

    #[test]
    fn header_edits_remove_set_add() {
        let mut headers = HeaderMap::new();
        headers.insert("a", HeaderValue::from_static("1"));
        headers.insert("b", HeaderValue::from_static("1"));
        let edits = HeaderEdits {
            remove: vec![HeaderName::from_static("a")],
            set: vec![(
                HeaderName::from_static("b"),
                HeaderValue::from_static("2").into(),
            )],
            add: vec![(
                HeaderName::from_static("b"),
                HeaderValue::from_static("3").into(),
            )],
            authority: None,
        };
        HeaderEdits::apply(&[&edits], &mut headers, &());
        let b: Vec<_> = headers.get_all("b").iter().collect();
        assert_eq!(b, ["2", "3"]);
        assert!(!headers.contains_key("a"));
    }

    #[test]
    fn delays_take_their_share() {
        let second = Duration::from_secs(1);
        let fault = Fault {
            delay: Some((50.0, second)),
            abort: None,
        };
        assert_eq!(fault.delay(0), Some(second));
        assert_eq!(fault.delay(500_000), None);
    }

    #[test]
    fn edits_say_whether_a_value_has_to_be_made() {
        let text = |text: &str| HeaderText::compile(text).unwrap();
        let name = || HeaderName::from_static("a");
        let edits = |set: &str, add: &str| HeaderEdits {
            set: vec![(name(), text(set))],
            add: vec![(name(), text(add))],
            ..HeaderEdits::default()
        };
        assert!(!HeaderEdits::default().is_made() && !edits("1", "100%%").is_made());
        assert!(edits("%PROTOCOL%", "1").is_made() && edits("1", "%PROTOCOL%").is_made());
    }
}

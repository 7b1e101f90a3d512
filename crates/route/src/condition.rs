//! One rule of an AuthorizationPolicy, compiled.
//!
//! Every part knows two answers: what certainly holds and what might. An ALLOW takes only what
//! certainly holds, a DENY also what might; so whatever is not understood makes a policy stricter.

use std::net::{IpAddr, SocketAddr};

use http::HeaderName;
use ipnet::IpNet;
use isobar_proto::isobar::v1 as proto;

use crate::authorization::Subject;
use crate::tcp::parse_block;
use crate::text::ValueMatch;

/// Which way to lean where a value is ambiguous or an attribute cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lean {
    /// Only what certainly holds (ALLOW).
    Certain,
    /// Also what might hold (DENY).
    Possible,
}

impl Lean {
    const fn unknown(self) -> bool {
        matches!(self, Self::Possible)
    }

    const fn flipped(self) -> Self {
        match self {
            Self::Certain => Self::Possible,
            Self::Possible => Self::Certain,
        }
    }
}

/// A compiled rule: `from` AND `to` AND `when`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    from: Vec<Vec<Test>>,
    to: Vec<Vec<Test>>,
    when: Vec<Test>,
}

/// Values wanted and unwanted of one attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Test {
    attribute: Attribute,
    wanted: Vec<Value>,
    unwanted: Vec<Value>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Text(ValueMatch),
    Template(Vec<String>),
    Account { namespace: String, name: String },
    Net(IpNet),
    Port(u16),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Attribute {
    Principal,
    Namespace,
    ServiceAccount,
    TrustDomain,
    SourceIp,
    /// The client that the last proxy before the caller says it speaks for, else the caller.
    RemoteIp,
    DestinationIp,
    DestinationPort,
    Host,
    Method,
    Path,
    Header(HeaderName),
    ServerName,
    /// Something this proxy cannot know.
    Unknown,
}

impl Rule {
    /// Compiles a rule of a policy in `namespace`.
    ///
    /// # Errors
    /// A sentence, when a value means nothing; the policy's targets are then refused.
    pub(crate) fn compile(
        from: &proto::AuthorizationRule,
        namespace: &str,
    ) -> Result<Self, String> {
        Ok(Self {
            from: collect(&from.from, |s| compile_source(s, namespace))?,
            to: collect(&from.to, compile_operation)?,
            when: collect(&from.when, |c| compile_condition(c, namespace))?,
        })
    }

    pub(crate) fn holds(&self, subject: &Subject<'_>, lean: Lean) -> bool {
        let all = |tests: &[Test]| tests.iter().all(|t| t.holds(subject, lean));
        let any = |groups: &[Vec<Test>]| groups.is_empty() || groups.iter().any(|g| all(g));
        any(&self.from) && any(&self.to) && all(&self.when)
    }
}

fn collect<A, B>(items: &[A], each: impl Fn(&A) -> Result<B, String>) -> Result<Vec<B>, String> {
    items.iter().map(each).collect()
}

fn compile_source(from: &proto::AuthorizationSource, namespace: &str) -> Result<Vec<Test>, String> {
    let account = |m: &proto::ValueMatch| account_value(m, namespace);
    let net = |text: &String| net_value(text);
    let mut tests = Vec::new();
    let t = &mut tests;
    push(
        t,
        Attribute::Principal,
        &from.principals,
        &from.not_principals,
        principal_value,
    )?;
    push(
        t,
        Attribute::Namespace,
        &from.namespaces,
        &from.not_namespaces,
        text_value,
    )?;
    push(
        t,
        Attribute::ServiceAccount,
        &from.service_accounts,
        &from.not_service_accounts,
        account,
    )?;
    push(
        t,
        Attribute::SourceIp,
        &from.ip_blocks,
        &from.not_ip_blocks,
        net,
    )?;
    push(
        t,
        Attribute::RemoteIp,
        &from.remote_ip_blocks,
        &from.not_remote_ip_blocks,
        net,
    )?;
    push(
        t,
        Attribute::TrustDomain,
        &from.trust_domains,
        &from.not_trust_domains,
        text_value,
    )?;
    Ok(tests)
}

fn compile_operation(from: &proto::AuthorizationOperation) -> Result<Vec<Test>, String> {
    let port = |n: &u32| port_value(*n);
    let mut tests = Vec::new();
    let t = &mut tests;
    push(t, Attribute::Host, &from.hosts, &from.not_hosts, text_value)?;
    push(
        t,
        Attribute::DestinationPort,
        &from.ports,
        &from.not_ports,
        port,
    )?;
    push(
        t,
        Attribute::Method,
        &from.methods,
        &from.not_methods,
        text_value,
    )?;
    push(t, Attribute::Path, &from.paths, &from.not_paths, path_value)?;
    Ok(tests)
}

fn compile_condition(
    from: &proto::AuthorizationCondition,
    namespace: &str,
) -> Result<Test, String> {
    let attribute = Attribute::parse(&from.key);
    let value = |m: &proto::ValueMatch| match &attribute {
        Attribute::Principal => principal_value(m),
        Attribute::ServiceAccount => account_value(m, namespace),
        Attribute::SourceIp | Attribute::RemoteIp | Attribute::DestinationIp => {
            net_value(exact(m)?)
        }
        Attribute::DestinationPort => {
            let text = exact(m)?;
            port_value(
                text.parse()
                    .map_err(|_| format!("{text:?} is not a port"))?,
            )
        }
        Attribute::Path => path_value(m),
        _ => text_value(m),
    };
    Ok(Test {
        wanted: collect(&from.values, value)?,
        unwanted: collect(&from.not_values, value)?,
        attribute,
    })
}

impl Attribute {
    fn parse(key: &str) -> Self {
        if let Some(name) = key
            .strip_prefix("request.headers[")
            .and_then(|rest| rest.strip_suffix(']'))
        {
            return match HeaderName::from_bytes(name.as_bytes()) {
                // HTTP/2 has no such field, and in HTTP/1.1 a target in absolute form overrules it.
                Ok(http::header::HOST) => Self::Host,
                Ok(name) => Self::Header(name),
                Err(_) => Self::Unknown,
            };
        }
        match key {
            "source.principal" => Self::Principal,
            "source.namespace" => Self::Namespace,
            "source.serviceAccount" => Self::ServiceAccount,
            "source.trustDomain" => Self::TrustDomain,
            "source.ip" => Self::SourceIp,
            "remote.ip" => Self::RemoteIp,
            "destination.ip" => Self::DestinationIp,
            "destination.port" => Self::DestinationPort,
            "connection.sni" => Self::ServerName,
            // JWT claims, filter metadata: nothing here can vouch for them.
            _ => Self::Unknown,
        }
    }
}

fn push<A>(
    tests: &mut Vec<Test>,
    attribute: Attribute,
    wanted: &[A],
    unwanted: &[A],
    value: impl Fn(&A) -> Result<Value, String>,
) -> Result<(), String> {
    if wanted.is_empty() && unwanted.is_empty() {
        return Ok(());
    }
    tests.push(Test {
        attribute,
        wanted: collect(wanted, &value)?,
        unwanted: collect(unwanted, &value)?,
    });
    Ok(())
}

fn text_value(from: &proto::ValueMatch) -> Result<Value, String> {
    ValueMatch::compile(from)
        .map(Value::Text)
        .ok_or_else(|| "a value match of no known type".to_owned())
}

fn exact(from: &proto::ValueMatch) -> Result<&String, String> {
    match &from.match_type {
        Some(proto::value_match::MatchType::Exact(text)) => Ok(text),
        other => Err(format!("{other:?} where only an exact value has a meaning")),
    }
}

/// Principals are written without the scheme; with it they mean the same.
fn principal_value(from: &proto::ValueMatch) -> Result<Value, String> {
    let plain = |text: String| {
        text.strip_prefix("spiffe://")
            .map(str::to_owned)
            .unwrap_or(text)
    };
    Ok(Value::Text(match text_value(from)? {
        Value::Text(ValueMatch::Exact(text)) => ValueMatch::Exact(plain(text)),
        Value::Text(ValueMatch::Prefix(text)) => ValueMatch::Prefix(plain(text)),
        Value::Text(other) => other,
        other => return Ok(other),
    }))
}

/// `NAMESPACE/ACCOUNT`, or `ACCOUNT` of the policy's own namespace.
fn account_value(from: &proto::ValueMatch, namespace: &str) -> Result<Value, String> {
    let text = exact(from)?;
    let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
    if name.is_empty() || name.contains('/') {
        return Err(format!("{text:?} is not a service account"));
    }
    Ok(Value::Account {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

fn net_value(text: &String) -> Result<Value, String> {
    parse_block(text)
        .map(Value::Net)
        .ok_or_else(|| format!("{text:?} is not an address or address range"))
}

fn port_value(number: u32) -> Result<Value, String> {
    u16::try_from(number)
        .map(Value::Port)
        .map_err(|_| format!("{number} is not a port"))
}

fn path_value(from: &proto::ValueMatch) -> Result<Value, String> {
    Ok(match text_value(from)? {
        Value::Text(ValueMatch::Exact(text)) if text.contains("{*") => {
            Value::Template(template(&text)?)
        }
        Value::Text(ValueMatch::Prefix(text)) if text.contains("{*") => {
            return Err(format!("{text:?}* mixes a path template with a star"));
        }
        other => other,
    })
}

fn template(text: &str) -> Result<Vec<String>, String> {
    let segments: Vec<String> = text.split('/').map(str::to_owned).collect();
    let odd = |s: &&String| s.contains(['{', '}', '*']) && *s != "{*}" && *s != "{**}";
    match segments.iter().find(odd) {
        Some(segment) => Err(format!("{segment:?} in the path template {text:?}")),
        None => Ok(segments),
    }
}

impl Test {
    fn holds(&self, subject: &Subject<'_>, lean: Lean) -> bool {
        (self.wanted.is_empty() || self.any(&self.wanted, subject, lean))
            && (self.unwanted.is_empty() || !self.any(&self.unwanted, subject, lean.flipped()))
    }

    fn any(&self, values: &[Value], subject: &Subject<'_>, lean: Lean) -> bool {
        let call = subject.http;
        let text = |value: &str| values.iter().any(|v| v.text(value.as_bytes()));
        let folded = |value: &str| values.iter().any(|v| v.folded(value.as_bytes()));
        match &self.attribute {
            Attribute::Unknown => lean.unknown(),
            Attribute::Principal => subject.principal().is_some_and(text),
            Attribute::Namespace => subject.identity().is_some_and(|id| text(&id.namespace)),
            Attribute::TrustDomain => subject.identity().is_some_and(|id| text(&id.trust_domain)),
            Attribute::ServiceAccount => subject.identity().is_some_and(|id| {
                values
                    .iter()
                    .any(|v| v.account(&id.namespace, &id.service_account))
            }),
            Attribute::SourceIp => values.iter().any(|v| v.net(subject.caller.ip)),
            Attribute::RemoteIp => {
                remote_ip(subject).map_or(lean.unknown(), |ip| values.iter().any(|v| v.net(ip)))
            }
            Attribute::DestinationIp => values.iter().any(|v| v.net(subject.destination.ip())),
            Attribute::DestinationPort => {
                let port = subject.destination.port();
                values.contains(&Value::Port(port))
            }
            Attribute::ServerName => subject.sni.map_or(lean.unknown(), folded),
            Attribute::Method => call.map_or(lean.unknown(), |c| text(c.method.as_str())),
            Attribute::Path => call.map_or(lean.unknown(), |c| text(c.path)),
            // With and without its port: a rule for a host means the host on any port. Authorities are
            // seen without the default port, which a rule may name all the same.
            Attribute::Host => call.map_or(lean.unknown(), |c| {
                let (host, port) = crate::path::split_port(c.authority);
                folded(c.authority)
                    || folded(host)
                    || (port.is_none() && folded(&format!("{host}:80")))
            }),
            Attribute::Header(name) => call.map_or(lean.unknown(), |c| {
                header_holds(c.headers, name, values, lean)
            }),
        }
    }
}

/// The last address of the last `x-forwarded-for`, as in Envoy without trusted hops; without that
/// header the caller's. `None` if it is no address.
fn remote_ip(subject: &Subject<'_>) -> Option<IpAddr> {
    let headers = subject.http.map(|call| call.headers);
    let lines = headers.map(|headers| headers.get_all("x-forwarded-for"));
    let Some(line) = lines.and_then(|lines| lines.iter().next_back()) else {
        return Some(subject.caller.ip);
    };
    let last = line.to_str().ok()?.rsplit(',').next()?.trim();
    let with_port = || last.parse::<SocketAddr>().ok().map(|address| address.ip());
    last.parse().ok().or_else(with_port)
}

/// Certain: every line as a whole. Possible: any line, or any comma-separated part of one.
fn header_holds(
    headers: &http::HeaderMap,
    name: &HeaderName,
    values: &[Value],
    lean: Lean,
) -> bool {
    // A field that is there and empty is there.
    let there = values.contains(&Value::Text(ValueMatch::Present));
    let is = |bytes: &[u8]| there || values.iter().any(|v| v.text(bytes));
    let mut lines = headers
        .get_all(name)
        .iter()
        .map(http::HeaderValue::as_bytes)
        .peekable();
    match lean {
        Lean::Certain => lines.peek().is_some() && lines.all(is),
        Lean::Possible => lines
            .any(|line| is(line) || line.split(|b| *b == b',').any(|part| is(part.trim_ascii()))),
    }
}

impl Value {
    fn text(&self, value: &[u8]) -> bool {
        match self {
            Self::Text(m) => m.matches(value),
            Self::Template(segments) => std::str::from_utf8(value)
                .is_ok_and(|path| template_matches(segments, &path.split('/').collect::<Vec<_>>())),
            _ => false,
        }
    }

    fn folded(&self, value: &[u8]) -> bool {
        matches!(self, Self::Text(m) if m.matches_ignoring_case(value))
    }

    fn account(&self, namespace: &str, account: &str) -> bool {
        matches!(self, Self::Account { namespace: n, name: a } if n == namespace && a == account)
    }

    fn net(&self, ip: IpAddr) -> bool {
        matches!(self, Self::Net(net) if net.contains(&ip.to_canonical()))
    }
}

/// `{*}` stands for one segment that is not empty, `{**}` for any text: one segment at least, as it stands
/// between slashes. Greedy with one point to come back to, so the time is the product of the lengths at most.
fn template_matches(template: &[String], path: &[&str]) -> bool {
    let (mut t, mut p) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while p < path.len() {
        let segment = template.get(t).map(String::as_str);
        if segment == Some("{**}") {
            back = Some((t, p + 1));
            t += 1;
            p += 1;
        } else if segment.is_some_and(|s| {
            if s == "{*}" {
                !path[p].is_empty()
            } else {
                s == path[p]
            }
        }) {
            t += 1;
            p += 1;
        } else if let Some((star, from)) = back {
            back = Some((star, from + 1));
            t = star + 1;
            p = from + 1;
        } else {
            return false;
        }
    }
    t == template.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_match_whole_segments() {
        let yes = |pattern: &str, path: &str| {
            let segments = template(pattern).unwrap();
            template_matches(&segments, &path.split('/').collect::<Vec<_>>())
        };
        assert!(yes("/a/{*}/c", "/a/b/c"));
        assert!(!yes("/a/{*}/c", "/a//c"));
        assert!(!yes("/a/{*}", "/a/b/c"));
        assert!(yes("/a/{**}", "/a/b/c"));
        assert!(yes("/a/{**}", "/a/"));
        assert!(yes("/a/{**}/c", "/a//c"));
        for (pattern, path) in [("/a/{**}", "/a"), ("/a/{**}/c", "/a/c"), ("/{**}/c", "/c")] {
            assert!(!yes(pattern, path), "{pattern} {path}");
        }
        assert!(yes("/{**}/z", "/a/z/b/z"));
        assert!(!yes("/{**}/z", "/a/z/b"));
        assert!(yes("/{**}/x/{*}", "/x/x/y"));
        // What was matched before the stars is not matched again.
        assert!(yes("/a/{**}/c", "/a/a/c"));
        assert!(yes("{**}/x", "/x"));
        assert!(yes("/{**}/{**}", "/a/b"));
        assert!(!yes("/{**}/{**}", "/a"));
        assert!(template("/a{*}").is_err());
        assert!(template("/{*}b/c").is_err());
    }
}

//! What header values may be made of, as a request and its reply show it.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::Instant;

use ::http::{HeaderMap, Version};
use isobar_route::{Fact, Facts, Field, PlainFact, Taken};

use super::exchange::{Exchange, moment};
use super::standing::Asked;
use crate::session::Session;

/// Form of times where none is written.
const TIME: &str = "%Y-%m-%dT%H:%M:%S%.3fZ";

/// What is known before a request goes on.
pub(super) struct OfRequest<'a> {
    pub(super) session: &'a Session,
    pub(super) asked: &'a Asked,
    pub(super) start: Instant,
    pub(super) taken: Option<&'a Taken>,
}

impl<'a> OfRequest<'a> {
    pub(super) const fn new(
        session: &'a Session,
        asked: &'a Asked,
        start: Instant,
        taken: Option<&'a Taken>,
    ) -> Self {
        Self {
            session,
            asked,
            start,
            taken,
        }
    }
}

/// What is known when a reply goes back, and the request's headers as they were sent on, if they were.
pub(super) struct OfReply<'a>(pub(super) &'a Exchange, pub(super) Option<&'a HeaderMap>);

impl Facts for OfRequest<'_> {
    fn fact(&self, fact: &Fact, headers: &HeaderMap) -> Option<String> {
        match fact {
            Fact::Request(first, other) => either(first, other.as_ref(), |f| {
                of_request(f, self.asked, headers)
            }),
            Fact::Reply(..) => None,
            Fact::StartTime(form) => time(moment(self.start), form.as_deref()),
            Fact::Plain(PlainFact::Route) => {
                Some(self.taken.map_or_else(|| "default".to_owned(), Taken::name))
            }
            Fact::Plain(fact) => of_connection(*fact, self.session, self.asked),
        }
    }
}

impl Facts for OfReply<'_> {
    fn fact(&self, fact: &Fact, headers: &HeaderMap) -> Option<String> {
        let exchange = self.0;
        let asked = exchange.asked.as_deref();
        match fact {
            Fact::Request(first, other) => {
                let asked = asked?;
                let headers = self.1.unwrap_or(&asked.headers);
                let of = |field: &Field| of_request(field, asked, headers);
                either(first, other.as_ref(), of)
            }
            Fact::Reply(first, other) => either(first, other.as_ref(), |field| match field {
                Field::Header(name) => text(headers, name),
                Field::Status => Some(exchange.code.to_string()),
                _ => None,
            }),
            Fact::StartTime(form) => time(moment(exchange.started), form.as_deref()),
            Fact::Plain(fact) => match fact {
                PlainFact::Route => Some(exchange.route.to_string()),
                PlainFact::Cluster => Some(exchange.cluster.to_string()),
                PlainFact::Status => Some(exchange.code.to_string()),
                PlainFact::Details => Some(exchange.detail.clone().into_owned()),
                PlainFact::Flags => Some(exchange.flags().into_owned()),
                PlainFact::Endpoint => Some(exchange.endpoint.as_ref()?.address.to_string()),
                PlainFact::EndpointIp => Some(exchange.endpoint.as_ref()?.address.ip().to_string()),
                fact => of_connection(*fact, exchange.session(), asked?),
            },
        }
    }
}

fn either(
    first: &Field,
    other: Option<&Field>,
    of: impl Fn(&Field) -> Option<String>,
) -> Option<String> {
    of(first).or_else(|| of(other?))
}

/// The first line of a header, as with Envoy: others of its name may have been added by whoever was in between.
fn text(headers: &HeaderMap, name: &::http::HeaderName) -> Option<String> {
    let first = std::str::from_utf8(headers.get(name)?.as_bytes());
    first.ok().map(str::to_owned)
}

fn of_request(field: &Field, asked: &Asked, headers: &HeaderMap) -> Option<String> {
    let clean = &asked.clean;
    Some(match field {
        Field::Header(name) => return text(headers, name),
        Field::Method => asked.method.to_string(),
        Field::Path { query: false } => clean.path.clone(),
        Field::Path { query: true } => match &clean.query {
            Some(query) => format!("{}?{query}", clean.path),
            None => clean.path.clone(),
        },
        Field::Authority => clean.authority.clone(),
        Field::Scheme => clean.scheme.to_owned(),
        Field::Status => return None,
    })
}

fn of_connection(fact: PlainFact, session: &Session, asked: &Asked) -> Option<String> {
    let caller = session.peer.address;
    let called = session.addressed.destination;
    let own = &session.worker.world.own;
    Some(match fact {
        PlainFact::Caller => caller.to_string(),
        PlainFact::CallerIp => caller.ip().to_string(),
        PlainFact::CallerPort => caller.port().to_string(),
        PlainFact::CallerIdentity => session.peer.identity.as_ref()?.to_string(),
        PlainFact::Called => called.to_string(),
        PlainFact::CalledIp => called.ip().to_string(),
        PlainFact::CalledPort => called.port().to_string(),
        PlainFact::OwnIdentity => own.identity.to_string(),
        PlainFact::Hostname => own.pod.to_string(),
        PlainFact::Protocol => protocol(asked.version).into_owned(),
        PlainFact::RequestId => text(&asked.headers, &super::sanitise::REQUEST_ID)?,
        PlainFact::Route
        | PlainFact::Endpoint
        | PlainFact::EndpointIp
        | PlainFact::Cluster
        | PlainFact::Status
        | PlainFact::Details
        | PlainFact::Flags => return None,
    })
}

fn protocol(version: Version) -> Cow<'static, str> {
    match version {
        Version::HTTP_2 => "HTTP/2".into(),
        other => format!("{other:?}").into(),
    }
}

/// `None` for a form that means no time.
fn time(at: jiff::Timestamp, form: Option<&str>) -> Option<String> {
    let mut text = String::new();
    write!(text, "{}", at.strftime(form.unwrap_or(TIME))).ok()?;
    Some(text)
}

//! Lines in a form of the user's.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;

use ::http::HeaderValue;
use isobar_route::{Fact, Field, LogFact, LogForm, Piece, PlainFact};
use isobar_types::Identity;
use serde_json::{Map, Value};

use super::{HttpLine, TcpLine, clean, version};
use crate::http::REQUEST_ID;
use crate::world::Own;

/// Form of times where none is written.
const TIME: &str = "%Y-%m-%dT%H:%M:%S%.3fZ";

/// What lines can tell.
pub(super) trait Told {
    /// `None` where it is not known.
    fn told(&self, fact: &LogFact) -> Option<String>;
}

/// A line in this form.
pub(super) fn line(form: &LogForm, told: &dyn Told) -> String {
    match form {
        LogForm::Text(pieces) => text(pieces, told),
        LogForm::Json(fields) => {
            let fields = fields.iter();
            let fields = fields.map(|(name, pieces)| (name.clone(), value(pieces, told)));
            Value::Object(fields.collect::<Map<_, _>>()).to_string()
        }
    }
}

/// A caller must not be able to end a line, or a quoted part of it.
fn text(pieces: &[Piece<LogFact>], told: &dyn Told) -> String {
    let mut line = String::with_capacity(256);
    for piece in pieces {
        match piece {
            Piece::Text(own) => line.push_str(own),
            Piece::Fact(fact, most) => match known(fact, *most, told) {
                Some(known) => line.push_str(&clean(&known)),
                None => line.push('-'),
            },
        }
    }
    line
}

/// A number for what is one by itself, nothing for what is not known.
fn value(pieces: &[Piece<LogFact>], told: &dyn Told) -> Value {
    if let [Piece::Fact(fact, most)] = pieces {
        let Some(known) = known(fact, *most, told) else {
            return Value::Null;
        };
        return match is_number(fact).then(|| known.parse::<u64>()) {
            Some(Ok(number)) => number.into(),
            _ => known.into(),
        };
    }
    let parts = pieces.iter().map(|piece| match piece {
        Piece::Text(own) => own.clone(),
        Piece::Fact(fact, most) => known(fact, *most, told).unwrap_or_else(|| "-".to_owned()),
    });
    Value::String(parts.collect())
}

fn known(fact: &LogFact, most: Option<usize>, told: &dyn Told) -> Option<String> {
    let mut known = told.told(fact).filter(|known| !known.is_empty())?;
    let most = most.unwrap_or(usize::MAX).min(known.len());
    known.truncate(known.floor_char_boundary(most));
    Some(known)
}

const fn is_number(fact: &LogFact) -> bool {
    matches!(
        fact,
        LogFact::Received
            | LogFact::Sent
            | LogFact::Duration
            | LogFact::EndpointTime
            | LogFact::Message(Fact::Plain(PlainFact::Status))
    )
}

impl Told for HttpLine<'_> {
    fn told(&self, fact: &LogFact) -> Option<String> {
        Some(match fact {
            LogFact::Received => self.bytes_received.to_string(),
            LogFact::Sent => self.bytes_sent.to_string(),
            LogFact::Duration => self.duration.as_millis().to_string(),
            LogFact::EndpointTime => self.upstream_time?.as_millis().to_string(),
            LogFact::Failure => self.failure.to_owned(),
            LogFact::Nothing => return None,
            LogFact::Message(fact) => match fact {
                Fact::Request(first, other) => {
                    return self
                        .of_request(first)
                        .or_else(|| self.of_request(other.as_ref()?));
                }
                Fact::Reply(..) => return None,
                Fact::StartTime(form) => return time(self.start, form.as_deref()),
                Fact::Plain(fact) => return self.plain(*fact),
            },
        })
    }
}

impl HttpLine<'_> {
    /// What is known of headers where they were none of a request.
    fn few(&self, name: &str) -> Option<&HeaderValue> {
        match name {
            "x-forwarded-for" => self.request.forwarded_for.as_ref(),
            "user-agent" => self.request.user_agent.as_ref(),
            _ => None,
        }
    }

    pub(super) fn request_id(&self) -> Option<&HeaderValue> {
        self.headers?.get(&REQUEST_ID)
    }

    fn of_request(&self, field: &Field) -> Option<String> {
        let request = self.request;
        Some(match field {
            Field::Method => request.method.to_string(),
            Field::Path { query: true } => request.path.clone(),
            Field::Path { query: false } => {
                let path = request.path.split_once('?');
                path.map_or(&*request.path, |(path, _)| path).to_owned()
            }
            Field::Authority => request.authority.clone(),
            Field::Scheme | Field::Status => return None,
            Field::Header(name) => {
                let value = match self.headers {
                    Some(headers) => headers.get(name),
                    None => self.few(name.as_str()),
                };
                String::from_utf8_lossy(value?.as_bytes()).into_owned()
            }
        })
    }

    fn plain(&self, fact: PlainFact) -> Option<String> {
        Some(match fact {
            PlainFact::Protocol => version(self.request.version).to_owned(),
            PlainFact::RequestId => {
                let id = self.request_id()?;
                String::from_utf8_lossy(id.as_bytes()).into_owned()
            }
            PlainFact::Route => self.route.to_string(),
            PlainFact::Status => self.code.to_string(),
            PlainFact::Details => self.detail.to_owned(),
            other => return self.ends().told(other),
        })
    }

    fn ends(&self) -> Ends<'_> {
        Ends {
            caller: self.caller,
            own: self.own,
            remote: self.remote,
            local: self.local,
            endpoint: self.upstream,
            cluster: self.cluster,
            flags: self.flags,
        }
    }
}

impl Told for TcpLine<'_> {
    fn told(&self, fact: &LogFact) -> Option<String> {
        Some(match fact {
            LogFact::Received => self.bytes_received.to_string(),
            LogFact::Sent => self.bytes_sent.to_string(),
            LogFact::Duration => self.duration.as_millis().to_string(),
            LogFact::Failure => self.detail.to_owned(),
            LogFact::Message(Fact::StartTime(form)) => return time(self.start, form.as_deref()),
            LogFact::Message(Fact::Plain(fact)) => return self.plain(*fact),
            LogFact::EndpointTime | LogFact::Nothing | LogFact::Message(_) => return None,
        })
    }
}

impl TcpLine<'_> {
    fn plain(&self, fact: PlainFact) -> Option<String> {
        match fact {
            PlainFact::Status => Some("0".to_owned()),
            other => self.ends().told(other),
        }
    }

    fn ends(&self) -> Ends<'_> {
        Ends {
            caller: self.caller,
            own: self.own,
            remote: self.remote,
            local: self.local,
            endpoint: self.upstream,
            cluster: &self.cluster,
            flags: self.flags,
        }
    }
}

/// Who spoke to whom through whom: what lines of both kinds tell in the same way.
struct Ends<'a> {
    caller: Option<&'a Identity>,
    own: &'a Own,
    remote: SocketAddr,
    local: SocketAddr,
    endpoint: Option<SocketAddr>,
    cluster: &'a dyn fmt::Display,
    flags: &'a str,
}

impl Ends<'_> {
    /// `None` also for what only requests have.
    fn told(&self, fact: PlainFact) -> Option<String> {
        Some(match fact {
            PlainFact::Caller => self.remote.to_string(),
            PlainFact::CallerIp => self.remote.ip().to_string(),
            PlainFact::CallerPort => self.remote.port().to_string(),
            PlainFact::CallerIdentity => self.caller?.to_string(),
            PlainFact::Called => self.local.to_string(),
            PlainFact::CalledIp => self.local.ip().to_string(),
            PlainFact::CalledPort => self.local.port().to_string(),
            PlainFact::OwnIdentity => self.own.identity.to_string(),
            PlainFact::Hostname => self.own.pod.to_string(),
            PlainFact::Endpoint => self.endpoint?.to_string(),
            PlainFact::EndpointIp => self.endpoint?.ip().to_string(),
            PlainFact::Cluster => self.cluster.to_string(),
            PlainFact::Flags => self.flags.to_owned(),
            PlainFact::Protocol
            | PlainFact::RequestId
            | PlainFact::Route
            | PlainFact::Status
            | PlainFact::Details => return None,
        })
    }
}

/// `None` for a form that means no time.
fn time(at: jiff::Timestamp, form: Option<&str>) -> Option<String> {
    let mut text = String::new();
    write!(text, "{}", at.strftime(form.unwrap_or(TIME))).ok()?;
    Some(text)
}

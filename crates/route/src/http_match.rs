use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use http::HeaderName;
use isobar_types::NamespacedHostname;

use crate::call::{Caller, HttpCall};
use crate::finder::Place;
use crate::table::Tables;
use crate::text::TextMatch;
use crate::virtual_service::{HeaderKey, HttpMatch, HttpRoute, VirtualService};

/// Which rule takes a request.
#[derive(Debug, Clone, PartialEq)]
pub enum HttpDecision {
    /// No `VirtualService` with HTTP rules names the service: it goes to the service itself.
    Default,
    /// This rule.
    Taken(Taken),
    /// Rules exist and none matches: 404, flag `NR`.
    NoRoute,
}

/// A rule that took a request. Keeps its object alive, so it outlives the tables.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    virtual_service: Arc<VirtualService>,
    place: Place,
}

impl Taken {
    /// The object.
    #[must_use]
    pub fn virtual_service(&self) -> &VirtualService {
        &self.virtual_service
    }

    /// The rule.
    #[must_use]
    pub fn route(&self) -> &HttpRoute {
        &self.virtual_service.http[self.place.route]
    }

    /// The match block that held; `None` for a rule without any.
    #[must_use]
    pub fn block(&self) -> Option<&HttpMatch> {
        self.place.block.map(|at| &self.route().matches[at])
    }

    /// Name for logs: `RULE.MATCH`, as far as they are named; otherwise the place, `http[2]`.
    #[must_use]
    pub fn name(&self) -> String {
        let mut name = String::new();
        self.put_name(&mut name);
        name
    }

    /// Writes [`Self::name`] at the end of `out`.
    pub fn put_name(&self, out: &mut String) {
        let rule = &self.route().name;
        let block = self.block().map_or("", |block| block.name.as_str());
        out.push_str(rule);
        if !rule.is_empty() && !block.is_empty() {
            out.push('.');
        }
        out.push_str(block);
        if rule.is_empty() && block.is_empty() {
            let own = &self.virtual_service.name;
            // Nearly every line of a log has one: formatting them as a whole costs several times as much.
            for part in [&*own.namespace, "/", &*own.name, "/http["] {
                out.push_str(part);
            }
            let _ = write!(out, "{}]", self.place.route);
        }
    }
}

/// Finds the first rule that matches. The oldest object's rules come first (then by name), all rules
/// of one object before those of the next.
#[must_use]
pub fn match_http(
    tables: &Tables,
    service: &NamespacedHostname,
    call: &HttpCall<'_>,
    caller: &Caller,
) -> HttpDecision {
    let mut any = false;
    for object in tables.virtual_services_of(service) {
        any |= !object.http.is_empty();
        if let Some(place) = object.finder.first(&object.http, call, caller) {
            return HttpDecision::Taken(Taken {
                virtual_service: object.clone(),
                place,
            });
        }
    }
    if any {
        HttpDecision::NoRoute
    } else {
        HttpDecision::Default
    }
}

impl HttpMatch {
    /// True if every part holds.
    #[must_use]
    pub fn holds(&self, call: &HttpCall<'_>, caller: &Caller) -> bool {
        self.port_and_source(call, caller) && self.line(call) && self.fields(call)
    }

    fn port_and_source(&self, call: &HttpCall<'_>, caller: &Caller) -> bool {
        (self.port == 0 || self.port == call.destination.port())
            && (self.source_namespace.is_empty()
                || caller.namespace() == Some(self.source_namespace.as_str()))
            && caller.has_labels(&self.source_labels)
    }

    fn line(&self, call: &HttpCall<'_>) -> bool {
        let uri = self.uri.as_ref().is_none_or(|uri| {
            if self.ignore_uri_case {
                uri.matches_ignoring_case(call.path.as_bytes())
            } else {
                uri.matches(call.path.as_bytes())
            }
        });
        let is = |wanted: &Option<TextMatch>, value: &str| {
            wanted.as_ref().is_none_or(|m| m.matches(value.as_bytes()))
        };
        uri && is(&self.method, call.method.as_str())
            && is(&self.scheme, call.scheme)
            && self
                .authority
                .as_ref()
                .is_none_or(|m| m.matches(call.written_authority.as_bytes()))
    }

    fn fields(&self, call: &HttpCall<'_>) -> bool {
        self.headers
            .iter()
            .all(|(key, wanted)| value(key, call).is_some_and(|value| wanted.matches(&value)))
            && self.without_headers.iter().all(|(key, unwanted)| {
                // A missing header counts as empty, unless its mere presence is the question.
                match value(key, call) {
                    Some(value) => !unwanted.matches(&value),
                    None => *unwanted == TextMatch::Present || !unwanted.matches(b""),
                }
            })
            && self.query.iter().all(|(name, wanted)| {
                query_value(call.query, name).is_some_and(|value| wanted.matches(value.as_bytes()))
            })
    }
}

/// The value as routing sees it: several lines of one header joined by commas (as Envoy does).
pub(crate) fn header_value<'a>(name: &HeaderName, call: &HttpCall<'a>) -> Option<Cow<'a, [u8]>> {
    let mut values = call.headers.get_all(name).iter();
    let first = values.next()?.as_bytes();
    let mut joined = Cow::Borrowed(first);
    for value in values {
        let owned = joined.to_mut();
        owned.push(b',');
        owned.extend_from_slice(value.as_bytes());
    }
    Some(joined)
}

fn value<'a>(key: &HeaderKey, call: &HttpCall<'a>) -> Option<Cow<'a, [u8]>> {
    let text = match key {
        HeaderKey::Method => call.method.as_str(),
        HeaderKey::Path => call.path,
        HeaderKey::Authority => call.written_authority,
        HeaderKey::Scheme => call.scheme,
        HeaderKey::Name(name) => return header_value(name, call),
    };
    Some(Cow::Borrowed(text.as_bytes()))
}

/// First value of a parameter, as written in the query; a name without `=` has the empty value.
pub(crate) fn query_value<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    query?
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find_map(|(key, value)| (key == name).then_some(value))
}

#[cfg(test)]
pub(crate) mod tests;

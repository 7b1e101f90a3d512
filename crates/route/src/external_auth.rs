//! Authorisers of rules: what they are shown of a request, and what their answer means.

mod ruling;

use http::header::{AUTHORIZATION, HeaderName};
use http::{HeaderMap, HeaderValue};
use isobar_proto::isobar::v1 as proto;

use crate::action::Target;
use crate::virtual_service::{FieldError, compile_target};

pub use ruling::{Change, Granted, Refused, Ruling};

/// Most bytes of a body that an authoriser can be shown (Gateway API, `forwardBody.maxSize`).
const LARGEST_BODY: u32 = 0xffff;

/// Somebody outside the waypoint who decides about the requests of a rule or destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalAuth {
    /// Where it is.
    pub target: Target,
    /// How it is asked.
    pub protocol: AuthProtocol,
    /// Most bytes of a body that is shown; 0: none is. A longer one is refused.
    pub max_body: usize,
}

/// How an authoriser is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthProtocol {
    /// Envoy's `envoy.service.auth.v3.Authorization/Check`.
    Grpc {
        /// Headers that are shown; empty: all.
        headers: Vec<HeaderName>,
    },
    /// A request with the same method and host.
    Http {
        /// Stands before the request's path; without a slash at its end.
        path: String,
        /// Headers that are shown besides the credentials.
        headers: Vec<HeaderName>,
        /// Headers of the answer that the request goes on with; empty: all that are about it.
        answer_headers: Vec<HeaderName>,
    },
}

impl ExternalAuth {
    pub(crate) fn compile_all(
        from: &[proto::ExternalAuth],
        field: &str,
    ) -> Result<Vec<Self>, FieldError> {
        let all = from.iter().enumerate();
        all.map(|(at, one)| Self::compile(one).map_err(|e| e.under(&format!("{field}[{at}]"))))
            .collect()
    }

    fn compile(from: &proto::ExternalAuth) -> Result<Self, FieldError> {
        use proto::external_auth::Protocol;
        let to = from.destination.clone().unwrap_or_default();
        let protocol = match &from.protocol {
            Some(Protocol::Grpc(grpc)) => AuthProtocol::Grpc {
                headers: names(&grpc.headers, "grpc.headers")?,
            },
            Some(Protocol::Http(http)) => AuthProtocol::Http {
                path: prefix(&http.path)?,
                headers: names(&http.headers, "http.headers")?,
                answer_headers: names(&http.answer_headers, "http.answerHeaders")?,
            },
            None => return Err(FieldError::new("protocol", "neither grpc nor http")),
        };
        if from.max_body > LARGEST_BODY {
            let problem = format!("{} is more than {LARGEST_BODY}", from.max_body);
            return Err(FieldError::new("maxBody", problem));
        }
        Ok(Self {
            target: compile_target(&to)?,
            protocol,
            max_body: usize::try_from(from.max_body).unwrap_or_default(),
        })
    }

    /// The headers that it is shown.
    #[must_use]
    pub fn shown(&self, headers: &HeaderMap) -> HeaderMap {
        let (named, always) = match &self.protocol {
            AuthProtocol::Grpc { headers: named } if named.is_empty() => return headers.clone(),
            AuthProtocol::Grpc { headers: named } => (named, None),
            AuthProtocol::Http { headers: named, .. } => (named, Some(AUTHORIZATION)),
        };
        let is_shown = |name: &HeaderName| named.contains(name) || always.as_ref() == Some(name);
        let lines = headers.iter().filter(|(name, _)| is_shown(name));
        let mut shown = HeaderMap::new();
        for (name, value) in lines {
            shown.append(name.clone(), HeaderValue::clone(value));
        }
        shown
    }
}

fn names(from: &[String], field: &str) -> Result<Vec<HeaderName>, FieldError> {
    let all = from.iter().enumerate().map(|(at, name)| {
        HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
            let problem = format!("{name:?} is not a header name");
            FieldError::new(&format!("{field}[{at}]"), problem)
        })
    });
    all.collect()
}

/// The query of a request stays behind its own path, so that a prefix may have none.
fn prefix(path: &str) -> Result<String, FieldError> {
    let is_path = path.is_empty() || (path.starts_with('/') && !path.contains(['?', '#']));
    if !is_path {
        let problem = format!("{path:?} is not an absolute path");
        return Err(FieldError::new("http.path", problem));
    }
    Ok(path.trim_end_matches('/').to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn over_http(change: impl FnOnce(&mut proto::external_auth::Http)) -> ExternalAuth {
        let mut http = proto::external_auth::Http::default();
        change(&mut http);
        let from = proto::ExternalAuth {
            protocol: Some(proto::external_auth::Protocol::Http(http)),
            ..Default::default()
        };
        ExternalAuth::compile(&from).unwrap()
    }

    fn over_grpc(headers: &[&str]) -> ExternalAuth {
        let grpc = proto::external_auth::Grpc {
            headers: headers.iter().map(ToString::to_string).collect(),
        };
        let from = proto::ExternalAuth {
            protocol: Some(proto::external_auth::Protocol::Grpc(grpc)),
            ..Default::default()
        };
        ExternalAuth::compile(&from).unwrap()
    }

    #[test]
    fn an_authoriser_is_shown_what_its_rule_says() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("authorization", "t"), ("x-a", "1"), ("x-b", "2")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        headers.append("x-a", HeaderValue::from_static("3"));
        let shown = |rule: &ExternalAuth| {
            let shown = rule.shown(&headers);
            let all = shown.iter().map(|(n, v)| format!("{n}={v:?}"));
            all.collect::<Vec<_>>().join(" ").replace('"', "")
        };
        assert_eq!(shown(&over_http(|_| {})), "authorization=t");
        let some = over_http(|http| http.headers = vec!["X-A".into()]);
        assert_eq!(shown(&some), "authorization=t x-a=1 x-a=3");
        assert_eq!(shown(&over_grpc(&["x-b"])), "x-b=2");
        let all = "authorization=t x-a=1 x-a=3 x-b=2";
        assert_eq!(shown(&over_grpc(&[])), all);
    }

    #[test]
    fn what_cannot_be_asked_is_told_by_field() {
        let told = |from: &proto::ExternalAuth| {
            let error = ExternalAuth::compile(from).unwrap_err();
            error.of("VirtualService", "a", "b").field
        };
        let mut from = proto::ExternalAuth::default();
        assert_eq!(told(&from), "protocol");
        let http = |path: &str, header: &str| {
            Some(proto::external_auth::Protocol::Http(
                proto::external_auth::Http {
                    path: path.into(),
                    headers: vec![header.into()],
                    answer_headers: Vec::new(),
                },
            ))
        };
        from.protocol = http("auth", "x");
        assert_eq!(told(&from), "http.path");
        from.protocol = http("/auth?x", "x");
        assert_eq!(told(&from), "http.path");
        from.protocol = http("/auth/", "a b");
        assert_eq!(told(&from), "http.headers[0]");
        from.protocol = http("/auth/", "x");
        let made = ExternalAuth::compile(&from).unwrap();
        assert!(matches!(made.protocol, AuthProtocol::Http { path, .. } if path == "/auth"));
        from.max_body = LARGEST_BODY + 1;
        assert_eq!(told(&from), "maxBody");
    }
}

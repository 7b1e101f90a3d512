//! What the answer of an authoriser means.

use http::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, DATE, EXPECT, HOST, HeaderName,
    SERVER, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue};
use isobar_proto::envoy::service::auth::v3 as proto;
use proto::check_response::HttpResponse;
use proto::header_value_option::AppendAction;

use super::{AuthProtocol, ExternalAuth};

/// Status of refusals that name none.
const FORBIDDEN: u16 = 403;
/// An answer over HTTP names there what is to be removed from the request (Envoy's name).
const TO_REMOVE: &str = "x-envoy-auth-headers-to-remove";
/// About a connection or the frame of a message: nobody outside has a say in them.
const OF_THE_HOP: [HeaderName; 8] = [
    CONNECTION,
    CONTENT_LENGTH,
    EXPECT,
    HOST,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];
/// About the authoriser's own answer, not about the request.
const OF_THE_ANSWER: [HeaderName; 5] = [CONTENT_ENCODING, CONTENT_TYPE, DATE, SERVER, SET_COOKIE];

/// What an authoriser says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ruling {
    /// The request goes on, changed like this.
    Pass(Box<Granted>),
    /// The caller gets this answer.
    Refuse(Box<Refused>),
    /// No ruling, for that reason: the request does not go on.
    Unclear(String),
}

/// What a request that may go on is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Granted {
    /// Changes of the request's headers, in order.
    request: Vec<Change>,
    /// Taken away after that.
    remove: Vec<HeaderName>,
    /// Changes of the headers of the answer that the caller gets.
    pub response: Vec<Change>,
    set_query: Vec<(String, String)>,
    remove_query: Vec<String>,
}

/// The answer for a request that may not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// HTTP status, 200 to 599.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Vec<u8>,
}

/// One change of a message's headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    name: HeaderName,
    value: HeaderValue,
    how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// Joins what is there with a comma; does nothing where there is nothing.
    Join,
    Add,
    AddIfAbsent,
    Overwrite,
    OverwriteIfThere,
}

impl Change {
    /// Makes it.
    pub fn apply(&self, headers: &mut HeaderMap) {
        let (name, value) = (&self.name, &self.value);
        match (self.how, headers.get(name)) {
            (How::Join, Some(have)) => {
                let joined = [have.as_bytes(), value.as_bytes()].join(&b","[..]);
                if let Ok(joined) = HeaderValue::from_bytes(&joined) {
                    headers.insert(name, joined);
                }
            }
            (How::Add, _) | (How::AddIfAbsent, None) => {
                headers.append(name, value.clone());
            }
            (How::Overwrite, _) | (How::OverwriteIfThere, Some(_)) => {
                headers.insert(name, value.clone());
            }
            (How::Join | How::OverwriteIfThere, None) | (How::AddIfAbsent, Some(_)) => {}
        }
    }
}

impl Granted {
    /// Changes the headers of a request.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for change in &self.request {
            change.apply(headers);
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }

    /// The query that the request goes on with.
    #[must_use]
    pub fn query(&self, query: Option<String>) -> Option<String> {
        if self.set_query.is_empty() && self.remove_query.is_empty() {
            return query;
        }
        let named = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
        let is_changed = |pair: &&str| {
            let name = named(pair);
            self.remove_query.contains(&name) || self.set_query.iter().any(|(n, _)| *n == name)
        };
        let query = query.unwrap_or_default();
        let stay = query.split('&').filter(|pair| !pair.is_empty());
        let stay = stay.filter(|pair| !is_changed(pair)).map(str::to_owned);
        let set = self.set_query.iter().filter(|(name, _)| {
            // Set, then removed.
            !self.remove_query.contains(name)
        });
        let set = set.map(|(name, value)| format!("{name}={value}"));
        let all: Vec<String> = stay.chain(set).collect();
        (!all.is_empty()).then(|| all.join("&"))
    }
}

impl Ruling {
    /// Of an answer over gRPC. Code 0 lets the request on, any other refuses it.
    #[must_use]
    pub fn of_grpc(answer: proto::CheckResponse) -> Self {
        let code = answer.status.map_or(0, |status| status.code);
        match (code, answer.http_response) {
            (0, Some(HttpResponse::OkResponse(ok))) => Self::Pass(Box::new(Granted {
                request: changes(&ok.headers),
                remove: removed(ok.headers_to_remove.iter().map(String::as_str)),
                response: added(&ok.response_headers_to_add),
                set_query: (ok.query_parameters_to_set.into_iter())
                    .map(|pair| (pair.key, pair.value))
                    .collect(),
                remove_query: ok.query_parameters_to_remove,
            })),
            (0, _) => Self::Pass(Box::default()),
            (_, Some(HttpResponse::DeniedResponse(denied))) => {
                let mut headers = HeaderMap::new();
                for change in added(&denied.headers) {
                    change.apply(&mut headers);
                }
                let status = denied.status.map_or(0, |status| status.code);
                Self::Refuse(Box::new(Refused {
                    status: u16::try_from(status)
                        .ok()
                        .filter(|status| (200..600).contains(status))
                        .unwrap_or(FORBIDDEN),
                    headers,
                    body: denied.body.into_bytes(),
                }))
            }
            _ => Self::Refuse(Box::new(Refused {
                status: FORBIDDEN,
                headers: HeaderMap::new(),
                body: Vec::new(),
            })),
        }
    }

    /// Of an answer over HTTP. 200 lets the request on; what is wrong with the authoriser is no answer
    /// for the caller; any other status is.
    #[must_use]
    pub fn of_http(rule: &ExternalAuth, status: u16, headers: &HeaderMap, body: Vec<u8>) -> Self {
        match status {
            200 => {
                let AuthProtocol::Http { answer_headers, .. } = &rule.protocol else {
                    return Self::Unclear("answered over HTTP, asked over gRPC".to_owned());
                };
                Self::Pass(Box::new(granted(answer_headers, headers)))
            }
            500..=599 => Self::Unclear(format!("status {status}")),
            _ => {
                let mut told = headers.clone();
                for name in OF_THE_HOP.iter().chain(&[DATE, SERVER]) {
                    told.remove(name);
                }
                Self::Refuse(Box::new(Refused {
                    status,
                    headers: told,
                    body,
                }))
            }
        }
    }
}

fn granted(named: &[HeaderName], answer: &HeaderMap) -> Granted {
    let is_given = |name: &HeaderName| {
        if named.is_empty() {
            !OF_THE_ANSWER.contains(name) && !name.as_str().starts_with("x-envoy-")
        } else {
            named.contains(name)
        }
    };
    let mut request = Vec::new();
    for name in answer.keys() {
        if OF_THE_HOP.contains(name) || !is_given(name) {
            continue;
        }
        // All of the caller's lines go, whatever the number of those that take their place.
        let mut how = How::Overwrite;
        for value in answer.get_all(name) {
            request.push(Change {
                name: name.clone(),
                value: value.clone(),
                how: std::mem::replace(&mut how, How::Add),
            });
        }
    }
    let lists = answer.get_all(TO_REMOVE).iter();
    let lists = lists.filter_map(|list| list.to_str().ok());
    Granted {
        request,
        remove: removed(lists.flat_map(|list| list.split(',').map(str::trim))),
        ..Granted::default()
    }
}

/// What cannot be a header's name, or is not for an authoriser to say, is left out.
fn removed<'a>(names: impl Iterator<Item = &'a str>) -> Vec<HeaderName> {
    let names = names.filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok());
    names.filter(|name| !OF_THE_HOP.contains(name)).collect()
}

fn changes(from: &[proto::HeaderValueOption]) -> Vec<Change> {
    let all = from.iter().filter_map(|option| {
        let header = option.header.as_ref()?;
        let value = match header.raw_value.as_slice() {
            [] => header.value.as_bytes(),
            raw => raw,
        };
        let name = HeaderName::from_bytes(header.key.as_bytes()).ok()?;
        if OF_THE_HOP.contains(&name) {
            return None;
        }
        Some(Change {
            name,
            value: HeaderValue::from_bytes(value).ok()?,
            how: match (option.append, option.append_action()) {
                (Some(true), _) => How::Join,
                (Some(false), _) | (None, AppendAction::OverwriteIfExistsOrAdd) => How::Overwrite,
                (None, AppendAction::AppendIfExistsOrAdd) => How::Add,
                (None, AppendAction::AddIfAbsent) => How::AddIfAbsent,
                (None, AppendAction::OverwriteIfExists) => How::OverwriteIfThere,
            },
        })
    });
    all.collect()
}

/// The same for messages to callers, where several lines stay several.
fn added(from: &[proto::HeaderValueOption]) -> Vec<Change> {
    let mut all = changes(from);
    for change in all.iter_mut().filter(|change| change.how == How::Join) {
        change.how = How::Add;
    }
    all
}

#[cfg(test)]
mod tests {
    use isobar_proto::google::rpc::Status;

    use super::super::tests::over_http;
    use super::*;

    fn option(name: &str, value: &str, append: Option<bool>) -> proto::HeaderValueOption {
        proto::HeaderValueOption {
            header: Some(proto::HeaderValue {
                key: name.into(),
                value: value.into(),
                raw_value: Vec::new(),
            }),
            append,
            append_action: AppendAction::OverwriteIfExistsOrAdd.into(),
        }
    }

    fn said(code: i32, response: Option<HttpResponse>) -> Ruling {
        Ruling::of_grpc(proto::CheckResponse {
            status: Some(Status {
                code,
                ..Default::default()
            }),
            http_response: response,
        })
    }

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut all = HeaderMap::new();
        for (name, value) in lines {
            all.append(*name, HeaderValue::from_static(value));
        }
        all
    }

    #[test]
    fn code_0_lets_on_and_any_other_refuses() {
        assert_eq!(said(0, None), Ruling::Pass(Box::default()));
        assert_eq!(
            Ruling::of_grpc(proto::CheckResponse::default()),
            Ruling::Pass(Box::default())
        );
        let denied = |status, body: &str| {
            HttpResponse::DeniedResponse(proto::DeniedHttpResponse {
                status: Some(proto::HttpStatus { code: status }),
                headers: vec![option("x-why", "no", None)],
                body: body.into(),
            })
        };
        let refused = |ruling| match ruling {
            Ruling::Refuse(refused) => *refused,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(said(7, None)).status, 403);
        let told = refused(said(16, Some(denied(401, "who?"))));
        assert_eq!((told.status, &told.body[..]), (401, &b"who?"[..]));
        assert_eq!(told.headers["x-why"], "no");
        // A refusal stays one, whatever comes with it.
        for odd in [0, 99, 600, -1] {
            assert_eq!(refused(said(7, Some(denied(odd, "")))).status, 403, "{odd}");
        }
        let ok = HttpResponse::OkResponse(proto::OkHttpResponse::default());
        assert_eq!(refused(said(7, Some(ok))).status, 403);
    }

    #[test]
    fn what_is_granted_changes_the_request() {
        let action = |name: &str, action: AppendAction| proto::HeaderValueOption {
            append_action: action.into(),
            ..option(name, "new", None)
        };
        let ok = proto::OkHttpResponse {
            headers: vec![
                option("x-user", "ann", Some(false)),
                option("x-joined", "b", Some(true)),
                option("x-not-there", "b", Some(true)),
                action("x-more", AppendAction::AppendIfExistsOrAdd),
                action("x-old", AppendAction::AddIfAbsent),
                action("x-fresh", AppendAction::AddIfAbsent),
                action("x-gone", AppendAction::OverwriteIfExists),
                option("host", "evil", None),
                option(":path", "/evil", None),
                option("content-length", "7", None),
            ],
            headers_to_remove: vec!["Authorization".into(), "host".into(), "a b".into()],
            response_headers_to_add: vec![option("x-seen", "1", Some(true))],
            query_parameters_to_set: vec![proto::QueryParameter {
                key: "b".into(),
                value: "9".into(),
            }],
            query_parameters_to_remove: vec!["token".into()],
        };
        let Ruling::Pass(granted) = said(0, Some(HttpResponse::OkResponse(ok))) else {
            panic!("it lets on");
        };
        let mut all = headers(&[
            ("host", "svc"),
            ("authorization", "t"),
            ("x-user", "eve"),
            ("x-joined", "a"),
            ("x-more", "old"),
            ("x-old", "old"),
            ("content-length", "3"),
        ]);
        granted.apply(&mut all);
        let wanted = [
            ("host", "svc"),
            ("x-user", "ann"),
            ("x-joined", "a,b"),
            ("x-more", "old"),
            ("x-more", "new"),
            ("x-old", "old"),
            ("x-fresh", "new"),
            ("content-length", "3"),
        ];
        assert_eq!(all, headers(&wanted));
        let query = |text: &str| granted.query(Some(text.to_owned()));
        assert_eq!(query("a=1&token=x&b=2").as_deref(), Some("a=1&b=9"));
        assert_eq!(granted.query(None).as_deref(), Some("b=9"));
        let mut reply = headers(&[("x-seen", "0")]);
        for change in &granted.response {
            change.apply(&mut reply);
        }
        assert_eq!(reply, headers(&[("x-seen", "0"), ("x-seen", "1")]));
    }

    #[test]
    fn over_http_200_lets_on_and_what_is_wrong_with_the_authoriser_is_no_answer() {
        let rule = over_http(|_| {});
        let answer = headers(&[
            ("x-user", "ann"),
            ("host", "evil"),
            ("content-type", "text/html"),
            ("transfer-encoding", "chunked"),
            ("x-envoy-auth-headers-to-remove", "x-secret, authorization"),
        ]);
        let Ruling::Pass(granted) = Ruling::of_http(&rule, 200, &answer, Vec::new()) else {
            panic!("it lets on");
        };
        let mut all = headers(&[("x-user", "eve"), ("x-user", "bob"), ("x-secret", "1")]);
        granted.apply(&mut all);
        assert_eq!(all, headers(&[("x-user", "ann")]));
        let named = over_http(|http| http.answer_headers = vec!["X-Other".into()]);
        let Ruling::Pass(granted) = Ruling::of_http(&named, 200, &answer, Vec::new()) else {
            panic!("it lets on");
        };
        let mut all = headers(&[("x-user", "eve")]);
        granted.apply(&mut all);
        assert_eq!(all["x-user"], "eve");
        for wrong in [500, 503, 599] {
            let ruling = Ruling::of_http(&rule, wrong, &answer, b"x".to_vec());
            assert!(matches!(ruling, Ruling::Unclear(_)), "{wrong}");
        }
        for status in [201, 204, 302, 401, 404] {
            let Ruling::Refuse(told) = Ruling::of_http(&rule, status, &answer, b"x".to_vec())
            else {
                panic!("{status} lets on");
            };
            assert_eq!((told.status, &told.body[..]), (status, &b"x"[..]));
            assert_eq!(told.headers["x-user"], "ann");
            assert!(!told.headers.contains_key("host"));
            assert!(!told.headers.contains_key("transfer-encoding"));
        }
    }
}

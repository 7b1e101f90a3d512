//! Filters of Gateway API rules.

use isobar_objects::gateway_api::{
    CorsFilter, ExternalAuthFilter, HeaderModifier, PathModifier, RequestMirror, RequestRedirect,
    RouteFilter, UrlRewrite,
};
use isobar_proto::isobar::v1 as wire;
use wire::string_match::MatchType;

use super::convert::{Reader, Unnamed, escaped, text};

/// Seconds a browser may keep the answer to a preflight where nothing is said.
const PREFLIGHT_AGE: u32 = 5;
/// Status of a redirect where nothing is said.
const FOUND: u32 = 302;
/// What `*` stands for where credentials make browsers take it literally.
const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
];

/// What filters come to.
#[derive(Debug, Default)]
pub(super) struct Filtered {
    pub(super) headers: Option<wire::Headers>,
    pub(super) mirrors: Vec<wire::Mirror>,
    pub(super) redirect: Option<wire::HttpRedirect>,
    pub(super) rewrite: Option<wire::HttpRewrite>,
    pub(super) cors: Option<wire::Cors>,
    pub(super) external_auth: Vec<wire::ExternalAuth>,
    pub(super) rate_limits: Vec<wire::RateLimitPolicy>,
    /// One of them cannot be honoured, and none may be skipped.
    pub(super) refused: bool,
}

/// Reads filters; notes what cannot be honoured.
pub(super) fn filtered(filters: &[RouteFilter], reader: &mut Reader<'_>) -> Filtered {
    let mut out = Filtered::default();
    for filter in filters {
        if !one(filter, reader, &mut out) {
            out.refused = true;
            let message = format!("filter {} is not supported", filter.kind);
            reader.refuse("UnsupportedValue", message);
        }
    }
    if out.redirect.is_some() && out.rewrite.is_some() {
        out.refused = true;
        let message = "RequestRedirect and URLRewrite in one rule".to_owned();
        reader.refuse("IncompatibleFilters", message);
    }
    out
}

/// False for what we do not know.
fn one(filter: &RouteFilter, reader: &mut Reader<'_>, out: &mut Filtered) -> bool {
    let modifiers = [
        &filter.request_header_modifier,
        &filter.response_header_modifier,
    ];
    match (&*filter.kind, modifiers) {
        ("RequestHeaderModifier", [Some(edits), _]) => {
            let headers = out.headers.get_or_insert_default();
            headers.request = Some(operations(edits));
        }
        ("ResponseHeaderModifier", [_, Some(edits)]) => {
            let headers = out.headers.get_or_insert_default();
            headers.response = Some(operations(edits));
        }
        _ => return other(filter, reader, out),
    }
    true
}

fn other(filter: &RouteFilter, reader: &mut Reader<'_>, out: &mut Filtered) -> bool {
    match &*filter.kind {
        "RequestMirror" => {
            let Some(from) = &filter.request_mirror else {
                return false;
            };
            let destination = reader.destination(&from.backend_ref);
            // A copy that can go nowhere is no reason to refuse the request.
            if destination.refuse == 0 {
                out.mirrors.push(wire::Mirror {
                    destination: Some(destination),
                    percentage: share(from),
                });
            }
        }
        "RequestRedirect" => out.redirect = filter.request_redirect.as_ref().map(redirect),
        "URLRewrite" => out.rewrite = filter.url_rewrite.as_ref().map(rewrite),
        "CORS" => out.cors = filter.cors.as_ref().map(cors),
        "ExternalAuth" => {
            let Some(made) = filter
                .external_auth
                .as_ref()
                .and_then(|from| external_auth(from, reader))
            else {
                return false;
            };
            // Without its authoriser nobody is let on; the destination has told why.
            out.refused |= made.destination.as_ref().is_some_and(|to| to.refuse != 0);
            out.external_auth.push(made);
        }
        "ExtensionRef" => {
            let Some(from) = &filter.extension_ref else {
                return false;
            };
            match reader.limits(from) {
                Ok(limits) => out.rate_limits.push(limits),
                Err(Unnamed::Unknown) => return false,
                // Without its limits nothing passes; that it is not there is told.
                Err(Unnamed::Missing) => out.refused = true,
            }
        }
        _ => return false,
    }
    true
}

/// `None` for a protocol that we do not know.
fn external_auth(from: &ExternalAuthFilter, reader: &mut Reader<'_>) -> Option<wire::ExternalAuth> {
    use wire::external_auth::{Grpc, Http, Protocol};
    let protocol = match &*from.protocol {
        "GRPC" => Protocol::Grpc(Grpc {
            headers: from.grpc.clone().unwrap_or_default().allowed_headers,
        }),
        "HTTP" => {
            let http = from.http.clone().unwrap_or_default();
            Protocol::Http(Http {
                path: http.path.unwrap_or_default(),
                headers: http.allowed_headers,
                answer_headers: http.allowed_response_headers,
            })
        }
        _ => return None,
    };
    let body = from.forward_body.unwrap_or_default();
    Some(wire::ExternalAuth {
        destination: Some(reader.destination(&from.backend_ref)),
        protocol: Some(protocol),
        max_body: body.max_size.unwrap_or_default().into(),
    })
}

fn operations(from: &HeaderModifier) -> wire::HeaderOperations {
    let pairs = |from: &[isobar_objects::gateway_api::NamedValue]| {
        let pairs = from.iter();
        // The Gateway API's values are plain: what looks like a substitution is none.
        let plain = |value: &str| value.replace('%', "%%");
        pairs.map(|p| (p.name.clone(), plain(&p.value))).collect()
    };
    wire::HeaderOperations {
        set: pairs(&from.set),
        add: pairs(&from.add),
        remove: from.remove.clone(),
    }
}

fn share(from: &RequestMirror) -> f64 {
    match (&from.fraction, from.percent) {
        (Some(of), _) => {
            let whole = of.denominator.unwrap_or(100).max(1);
            (f64::from(of.numerator) * 100.0 / f64::from(whole)).clamp(0.0, 100.0)
        }
        (None, Some(percent)) => f64::from(percent),
        (None, None) => 100.0,
    }
}

/// The port of a redirect is the one written, else the usual one of a new scheme, else the one that
/// the request came for.
fn redirect(from: &RequestRedirect) -> wire::HttpRedirect {
    let scheme = from.scheme.clone().unwrap_or_default();
    let usual = match &*scheme {
        "https" => 443,
        "http" => 80,
        _ => 0,
    };
    let port = from.port.map_or(usual, u32::from);
    let path = from.path.as_ref();
    let (uri, prefix_rewrite) = match path {
        Some(path) if path.replaces_prefix() => (
            String::new(),
            path.replace_prefix_match.clone().unwrap_or_default(),
        ),
        Some(path) => (
            path.replace_full_path.clone().unwrap_or_default(),
            String::new(),
        ),
        None => (String::new(), String::new()),
    };
    wire::HttpRedirect {
        uri,
        authority: from.hostname.clone().unwrap_or_default(),
        scheme,
        port,
        code: from.status_code.map_or(FOUND, u32::from),
        prefix_rewrite,
        port_from_request: port == 0 && from.hostname.is_some(),
    }
}

fn rewrite(from: &UrlRewrite) -> wire::HttpRewrite {
    let mut out = wire::HttpRewrite {
        authority: from.hostname.clone().unwrap_or_default(),
        ..wire::HttpRewrite::default()
    };
    match &from.path {
        Some(path) if path.replaces_prefix() => out.uri = new_prefix(path),
        Some(path) => {
            // Whatever the match says about the path, all of it goes.
            "^.*$".clone_into(&mut out.regex);
            let new = path.replace_full_path.as_deref().unwrap_or_default();
            out.regex_rewrite = new.replace('\\', "\\\\");
        }
        None => {}
    }
    out
}

/// An empty replacement takes the matched elements away.
fn new_prefix(path: &PathModifier) -> String {
    let new = path.replace_prefix_match.as_deref().unwrap_or_default();
    if new.is_empty() { "/" } else { new }.to_owned()
}

fn cors(from: &CorsFilter) -> wire::Cors {
    let credentials = from.allow_credentials == Some(true);
    let any_method = from.allow_methods.iter().any(|m| m == "*");
    let allow_methods = if any_method && credentials {
        METHODS.map(str::to_owned).into()
    } else {
        from.allow_methods.clone()
    };
    wire::Cors {
        allow_origins: from.allow_origins.iter().map(|o| origin(o)).collect(),
        allow_methods,
        allow_headers: from.allow_headers.clone(),
        expose_headers: from.expose_headers.clone(),
        max_age: Some(prost_types::Duration {
            seconds: from.max_age.unwrap_or(PREFLIGHT_AGE).into(),
            nanos: 0,
        }),
        allow_credentials: credentials,
        answer_unmatched_preflights: true,
    }
}

fn origin(from: &str) -> wire::StringMatch {
    if from == "*" {
        return text(MatchType::Present(true));
    }
    if !from.contains('*') {
        return text(MatchType::Exact(from.to_owned()));
    }
    let parts: Vec<String> = from.split('*').map(escaped).collect();
    text(MatchType::Regex(parts.join(".*")))
}

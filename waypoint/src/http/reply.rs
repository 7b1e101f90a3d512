//! Answers of the waypoint itself, with Envoy's texts.

use ::http::header::{CONTENT_TYPE, DATE, LOCATION, SERVER};
use ::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use bytes::Bytes;
use isobar_route::Refused;
use isobar_types::Reason;

use super::body::ReplyBody;
use super::exchange::Exchange;
use super::standing::Ending;

/// Told to whom a waypoint that ends cannot serve any longer.
pub(super) const DRAINED: &str = "the waypoint is shutting down";
/// Value of `server` on every response.
pub(super) const SERVER_NAME: HeaderValue = HeaderValue::from_static("isobar");

/// Failure of what a policy written later forbids.
pub(super) const POLICY_WITHDRAWN: &str = "policy withdrawn";
/// Detail of what another waypoint serves by now.
pub(super) const NOT_SERVED: &str = "not_served_any_more";
pub(super) const NOT_SERVED_BODY: &str = "not served by this waypoint any more";

/// A local answer in the making.
pub(super) struct Local {
    pub(super) status: StatusCode,
    pub(super) reason: Reason,
    /// Response code detail for the log.
    pub(super) detail: String,
    /// Transport failure for the log and the body.
    pub(super) failure: String,
    pub(super) body: Bytes,
    /// Boxed: refusals are rare and handed around by value.
    pub(super) headers: Box<HeaderMap>,
}

impl Local {
    pub(super) fn new(
        status: StatusCode,
        reason: Reason,
        detail: &str,
        body: &'static str,
    ) -> Self {
        Self {
            status,
            reason,
            detail: detail.to_owned(),
            failure: String::new(),
            body: Bytes::from_static(body.as_bytes()),
            headers: Box::default(),
        }
    }

    pub(super) fn no_route() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            Reason::NoRoute,
            "route_not_found",
            "",
        )
    }

    /// The same in TLS.
    pub(super) fn moved(to: HeaderValue) -> Self {
        let status = StatusCode::MOVED_PERMANENTLY;
        let mut local = Self::new(status, Reason::Complete, "https_redirect", "");
        local.headers.insert(LOCATION, to);
        local
    }

    /// The host has a listener of its own on that port, and the handshake was another's.
    pub(super) fn misdirected() -> Self {
        let status = StatusCode::MISDIRECTED_REQUEST;
        Self::new(status, Reason::NoRoute, "misdirected_request", "")
    }

    /// The waypoint that stands before the destination cannot be reached.
    pub(super) fn no_waypoint(reason: Reason, why: String) -> Self {
        let mut local = Self::no_endpoint(why);
        local.reason = reason;
        local
    }

    pub(super) fn no_cluster(why: String) -> Self {
        let mut local = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Reason::NoCluster,
            "cluster_not_found",
            "",
        );
        local.failure = why;
        local
    }

    /// The route names a destination that is not there, or not for it.
    pub(super) fn refused(status: u16, host: &str) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut local = Self::new(status, Reason::NoCluster, "destination_not_resolved", "");
        local.failure = format!("the destination {host:?} is not for this route");
        local
    }

    pub(super) fn no_endpoint(why: String) -> Self {
        let mut local = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Reason::NoHealthyUpstream,
            "no_healthy_upstream",
            "no healthy upstream",
        );
        local.failure = why;
        local
    }

    pub(super) fn denied(detail: String) -> Self {
        let mut local = Self::new(
            StatusCode::FORBIDDEN,
            Reason::PolicyDenied,
            "",
            "RBAC: access denied",
        );
        local.detail = detail;
        local
    }

    /// What changed while the endpoint was being asked.
    pub(super) fn ending(ending: &Ending) -> Self {
        let mut local = match ending {
            Ending::Policy(why) => Self::denied(why.clone()),
            Ending::Moved(gone) => return Self::not_served(gone.reason, gone.detail.clone()),
            Ending::Drained => {
                let mut local = Self::denied(ending.detail().to_owned());
                local.status = StatusCode::SERVICE_UNAVAILABLE;
                local.body = Bytes::from_static(DRAINED.as_bytes());
                local
            }
        };
        local.reason = ending.reason();
        ending.failure().clone_into(&mut local.failure);
        local
    }

    /// The target left this waypoint after the tunnel was opened: to be tried again on another.
    pub(super) fn not_served(reason: Reason, why: String) -> Self {
        let mut local = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            reason,
            NOT_SERVED,
            NOT_SERVED_BODY,
        );
        local.failure = why;
        local
    }

    pub(super) fn bad_request(detail: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Reason::BadRequest, detail, "")
    }

    /// The caller went away in the middle of its request.
    pub(super) fn caller_gone() -> Self {
        let mut local = Self::bad_request("downstream_remote_disconnect");
        local.reason = Reason::DownstreamReset;
        local
    }

    pub(super) fn timeout() -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            Reason::UpstreamTimeout,
            "response_timeout",
            "upstream request timeout",
        )
    }

    /// One try took longer than it may, and there is no other.
    pub(super) fn try_timeout() -> Self {
        let mut local = Self::timeout();
        "upstream_per_try_timeout".clone_into(&mut local.detail);
        local
    }

    /// The endpoint could not be reached, or went away; `again`: not for the first time.
    pub(super) fn upstream(reason: Reason, failure: String, again: bool) -> Self {
        let what = match reason {
            Reason::UpstreamReset => "connection termination",
            Reason::UpstreamProtocol => "protocol error",
            Reason::UpstreamConnectTimeout => "connection timeout",
            _ => "remote connection failure",
        };
        let which = if again {
            "retried and the latest reset reason"
        } else {
            "reset reason"
        };
        let body =
            format!("upstream connect error or disconnect/reset before headers. {which}: {what}");
        let mut local = Self::new(StatusCode::SERVICE_UNAVAILABLE, reason, "", "");
        local.detail = format!(
            "upstream_reset_before_response_started{{{}}}",
            what.replace(' ', "_")
        );
        local.failure = failure;
        local.body = body.into();
        local
    }

    /// A limit of the destination is reached.
    pub(super) fn overflow() -> Self {
        let body = "upstream connect error or disconnect/reset before headers. \
                    reset reason: overflow";
        let mut local = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Reason::Overload,
            "upstream_reset_before_response_started{overflow}",
            body,
        );
        let yes = HeaderValue::from_static("true");
        local.headers.insert("x-envoy-overloaded", yes);
        local
    }

    /// An authoriser refuses the request, with an answer of its own.
    pub(super) fn refused_outside(refused: Refused) -> Self {
        let status = StatusCode::from_u16(refused.status).unwrap_or(StatusCode::FORBIDDEN);
        let reason = Reason::ExternallyRefused;
        let mut local = Self::new(status, reason, "ext_authz_denied", "");
        local.body = refused.body.into();
        *local.headers = refused.headers;
        local
    }

    /// An authoriser did not say; nobody is let on by that. `why` is for the log alone.
    pub(super) fn not_ruled(why: String) -> Self {
        let reason = Reason::AuthoriserFailed;
        let mut local = Self::new(StatusCode::FORBIDDEN, reason, "ext_authz_error", "");
        local.failure = why;
        local
    }

    /// An authoriser is to see the body, and it is longer than what it may be shown.
    pub(super) fn body_too_long() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            Reason::BodyTooLong,
            "request_payload_too_large",
            "Payload Too Large",
        )
    }

    /// An authoriser is to see the body, and it did not arrive in time.
    pub(super) fn body_too_slow() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            Reason::BadRequest,
            "request_overall_timeout",
            "request timeout",
        )
    }

    /// All bodies that are shown to authorisers take what memory they may together.
    pub(super) fn no_room() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Reason::Overload,
            "overload",
            "overloaded",
        )
    }

    /// A rate limit has no room for the request; `which` names it for the log.
    pub(super) fn rate_limited(which: String, headers: HeaderMap) -> Self {
        let mut local = Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            Reason::RateLimited,
            "local_rate_limited",
            "local_rate_limited",
        );
        local.failure = which;
        *local.headers = headers;
        local
    }

    /// Finishes the exchange's record and builds the response. A gRPC caller gets its status in
    /// trailers-only form.
    pub(super) fn respond(self, mut exchange: Box<Exchange>) -> Response<ReplyBody> {
        exchange.reason = self.reason;
        exchange.answered = true;
        exchange.detail = self.detail.into();
        exchange.failure = self.failure;
        let mut headers = *self.headers;
        headers.insert(SERVER, SERVER_NAME);
        headers.remove(DATE);
        let (status, body) = if exchange.request.grpc {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            // A fault may ask for a status that no HTTP status stands for.
            let status = headers.entry("grpc-status");
            status.or_insert_with(|| HeaderValue::from(grpc_status(self.status)));
            exchange.note_grpc_status(&headers);
            let text = String::from_utf8_lossy(&self.body).into_owned();
            if let Ok(message) = HeaderValue::from_str(&text)
                && !text.is_empty()
            {
                headers.insert("grpc-message", message);
            }
            exchange.code = StatusCode::OK.as_u16();
            exchange.edit(&mut headers);
            (StatusCode::OK, Bytes::new())
        } else {
            exchange.code = self.status.as_u16();
            exchange.edit(&mut headers);
            if !self.body.is_empty() && !headers.contains_key(CONTENT_TYPE) {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            }
            (self.status, self.body)
        };
        exchange.tell(&mut headers);
        exchange.code = status.as_u16();
        exchange.response_head = head_size(&headers);
        let mut response = Response::new(ReplyBody::local(body, exchange));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
}

/// Envoy's mapping of local answers for gRPC callers.
pub(super) const fn grpc_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        200 => 0,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// Bytes of a head's fields, about as they were on the wire.
pub(super) fn head_size(headers: &HeaderMap) -> usize {
    headers
        .iter()
        .map(|(name, value)| field_size(name, value))
        .sum()
}

/// The same of one field.
pub(super) fn field_size(name: &HeaderName, value: &HeaderValue) -> usize {
    name.as_str().len() + value.len() + 4
}

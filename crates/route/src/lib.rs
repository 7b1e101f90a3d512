//! What a waypoint does with a request or connection: which route, which destination, allowed or not.
//!
//! Everything here is a pure function over compiled [`Tables`]: chance comes in as `dice`, time and
//! sockets stay outside. The waypoint, the control plane's validation, the command line and the
//! fuzzers call the same code.
//!
//! * [`Tables`] / [`Draft`]: the compiled form of the `isobar.v1` resources, and how it changes.
//! * [`match_http`], [`match_tcp`]: which rule takes it; [`HttpRoute`] and friends: what the rule does.
//! * [`authorize_http`], [`authorize_tcp`]: DENY before ALLOW, stricter where not understood;
//!   [`observe_http`], [`observe_tcp`]: audits and dry runs.
//! * [`ExternalAuth`]: what an authoriser is shown, and [`Ruling`]: what its answer means.
//! * [`RateLimits`]: which requests count under which key, and what a bucket says.
//! * [`path`]: the one normalised view of path and host that policy, routing and log share;
//!   [`fields`]: the same for header fields.
//! * [`unsupported`]: fields of a `VirtualService` that are accepted but not honoured.

#![forbid(unsafe_code)]

mod action;
mod authorization;
mod call;
mod condition;
mod destination_rule;
mod external_auth;
pub mod fields;
mod finder;
mod hash;
mod header_text;
mod http_match;
mod listener;
mod locality;
mod log_form;
mod observation;
mod own_filters;
pub mod path;
mod pattern;
mod rate_limit;
mod retry;
mod rewrite;
mod session;
mod table;
mod tcp;
mod text;
mod tls;
mod traces;
mod traffic;
mod unsupported;
mod virtual_service;

pub use action::{
    AbortWith, Action, Cors, DirectResponse, Fault, HeaderEdits, Mirror, Preflight, Redirect,
    RedirectFrom, Rewrite, Target, Weighted, choose,
};
pub use authorization::{Denied, MatchedRule, Permit, Policy, authorize_http, authorize_tcp};
pub use call::{Caller, HttpCall, Labels, TcpCall};
pub use destination_rule::Subset;
pub use external_auth::{AuthProtocol, Change, ExternalAuth, Granted, Refused, Ruling};
pub use hash::{HashCookie, HashKey, mix, score};
pub use header_text::{Fact, Facts, Field, HeaderText, Piece, PlainFact};
pub use http_match::{HttpDecision, Taken, match_http};
pub use listener::{Listener, ListenerProtocol, ListenerTls, VirtualHost};
pub use locality::{LocalityRules, Place, Preference};
pub use log_form::{JSON_LINE, Lines, LogFact, LogForm};
pub use observation::{Observed, Outcome, observe_http, observe_tcp};
pub use own_filters::OwnFilters;
pub use pattern::{Pattern, PatternError};
pub use rate_limit::{RateLimit, RateLimits, Room};
pub use retry::{Retries, TryFailure};
pub use session::{Session, SessionRules};
pub use table::{Draft, ResourceError, Tables, WaypointInfo};
pub use tcp::{L4Match, TcpDecision, TcpRoute, match_tcp};
pub use text::{TextMatch, ValueMatch};
pub use tls::{Origination, TlsRules};
pub use traces::Tracing;
pub use traffic::{
    Balancing, Keepalive, LoadBalancer, OutlierRules, PoolRules, ProxyVersion, RetryBudget, Speak,
    Traffic, TrafficRules, Warmup,
};
pub use unsupported::unsupported;
pub use virtual_service::{HttpMatch, HttpRoute, VirtualService};

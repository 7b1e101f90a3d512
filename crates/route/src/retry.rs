use std::time::Duration;

use http::{HeaderMap, HeaderName, StatusCode};
use isobar_proto::isobar::v1 as proto;

use crate::virtual_service::{FieldError, duration};

const RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// First wait between tries where the user says nothing (Envoy's default).
const BACKOFF: Duration = Duration::from_millis(25);
/// Waits grow to so many times the first.
const LONGEST: u32 = 10;
/// Tries after the first where the user says nothing (Istio's default).
const ATTEMPTS: u32 = 2;

/// What `retryOn` may ask for, and the bit that stands for it. Words without a bit are known and
/// never hold here: `retriable-headers` has no list of headers in a `VirtualService`, and nothing
/// is sent over HTTP/3.
const WORDS: [(&str, u16); 16] = [
    ("5xx", Conditions::SERVER_ERROR),
    ("gateway-error", Conditions::GATEWAY_ERROR),
    ("reset", Conditions::RESET),
    ("reset-before-request", Conditions::BEFORE_REQUEST),
    ("connect-failure", Conditions::CONNECT),
    ("refused-stream", Conditions::REFUSED),
    ("retriable-4xx", Conditions::CONFLICT),
    ("retriable-status-codes", Conditions::CODES),
    ("envoy-ratelimited", Conditions::RATE_LIMITED),
    ("cancelled", 1 << (GRPC_SHIFT + 1)),
    ("deadline-exceeded", 1 << (GRPC_SHIFT + 2)),
    ("internal", 1 << (GRPC_SHIFT + 3)),
    ("resource-exhausted", 1 << (GRPC_SHIFT + 4)),
    ("unavailable", 1 << (GRPC_SHIFT + 5)),
    ("retriable-headers", 0),
    ("http3-post-connect-failure", 0),
];
const GRPC_SHIFT: u16 = 9;

/// The conditions of a retry policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Conditions(u16);

impl Conditions {
    const SERVER_ERROR: u16 = 1;
    const GATEWAY_ERROR: u16 = 1 << 1;
    const RESET: u16 = 1 << 2;
    const BEFORE_REQUEST: u16 = 1 << 3;
    const CONNECT: u16 = 1 << 4;
    const REFUSED: u16 = 1 << 5;
    const CONFLICT: u16 = 1 << 6;
    const CODES: u16 = 1 << 7;
    const RATE_LIMITED: u16 = 1 << 8;
    const CANCELLED: u16 = 1 << (GRPC_SHIFT + 1);
    const UNAVAILABLE: u16 = 1 << (GRPC_SHIFT + 5);
    const GRPC: u16 = 0b11_111 << (GRPC_SHIFT + 1);

    const fn has(self, any: u16) -> bool {
        self.0 & any != 0
    }
}

/// How often and when a request is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retries {
    /// Tries after the first; 0 turns retries off.
    pub attempts: u32,
    /// Deadline of one try.
    pub per_try: Option<Duration>,
    /// A retry prefers endpoints that were not tried before.
    pub other_hosts: bool,
    /// Later tries may leave the locality that is preferred.
    pub remote_localities: bool,
    conditions: Conditions,
    codes: Vec<u16>,
    backoff: Duration,
}

/// How a try failed that has no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TryFailure {
    /// No connection stands, or it ended before anything of the request had left.
    BeforeRequest,
    /// The endpoint refused the stream unseen (HTTP/2 `REFUSED_STREAM`, or a GOAWAY before it).
    Refused,
    /// The connection or stream ended before the response began, or one try took too long.
    Reset,
    /// A limit of this proxy: never tried again.
    Overflow,
}

/// Istio's policy for routes that say nothing: only what cannot have reached the application, or
/// says so.
static DEFAULT: Retries = Retries {
    attempts: ATTEMPTS,
    per_try: None,
    other_hosts: true,
    remote_localities: false,
    conditions: Conditions(
        Conditions::CONNECT
            | Conditions::REFUSED
            | Conditions::UNAVAILABLE
            | Conditions::CANCELLED
            | Conditions::CODES,
    ),
    codes: Vec::new(),
    backoff: BACKOFF,
};

impl Default for Retries {
    fn default() -> Self {
        DEFAULT.clone()
    }
}

impl Retries {
    /// What holds for routes that say nothing about retries.
    #[must_use]
    pub fn of_mesh() -> &'static Self {
        &DEFAULT
    }

    pub(crate) fn compile(from: &proto::Retries) -> Result<Self, FieldError> {
        let mut rules = Self {
            attempts: u32::try_from(from.attempts).unwrap_or(0),
            per_try: duration(from.per_try_timeout.as_ref(), "retries.perTryTimeout")?,
            other_hosts: !from.same_hosts,
            remote_localities: from.remote_localities,
            conditions: DEFAULT.conditions,
            codes: Vec::new(),
            backoff: duration(from.backoff.as_ref(), "retries.backoff")?.unwrap_or(BACKOFF),
        };
        let mut words = words(&from.retry_on).peekable();
        if words.peek().is_some() {
            rules.conditions = Conditions::default();
        }
        for word in words {
            if let Some((_, bit)) = WORDS.iter().find(|(known, _)| *known == word) {
                rules.conditions.0 |= bit;
            } else if let Some(code) = status_code(word) {
                rules.conditions.0 |= Conditions::CODES;
                rules.codes.push(code);
            } else {
                let problem = format!("{word:?} is no condition");
                return Err(FieldError::new("retries.retryOn", problem));
            }
        }
        Ok(rules)
    }

    /// True if a response of this head asks for another try.
    #[must_use]
    pub fn wants_other_than(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        if self.attempts == 0 {
            return false;
        }
        let (code, on) = (status.as_u16(), self.conditions);
        if headers.contains_key(&RATE_LIMITED) {
            return on.has(Conditions::RATE_LIMITED);
        }
        (status.is_server_error() && on.has(Conditions::SERVER_ERROR))
            || (matches!(code, 502..=504) && on.has(Conditions::GATEWAY_ERROR))
            || (code == 409 && on.has(Conditions::CONFLICT))
            || (on.has(Conditions::CODES) && self.codes.contains(&code))
            || (on.has(Conditions::GRPC) && self.wants_other_than_grpc(headers))
    }

    /// gRPC says its status in the head only if there is nothing else to say.
    fn wants_other_than_grpc(&self, headers: &HeaderMap) -> bool {
        let status = headers.get(&GRPC_STATUS).and_then(|v| v.to_str().ok());
        let word = match status {
            Some("1") => "cancelled",
            Some("4") => "deadline-exceeded",
            Some("8") => "resource-exhausted",
            Some("13") => "internal",
            Some("14") => "unavailable",
            _ => return false,
        };
        let bit = WORDS.iter().find(|(known, _)| *known == word);
        bit.is_some_and(|(_, bit)| self.conditions.has(*bit))
    }

    /// True if a try that failed like this asks for another.
    #[must_use]
    pub fn wants_after(&self, failure: TryFailure) -> bool {
        // A reset would become a 503 for the caller.
        let any = Conditions::RESET | Conditions::SERVER_ERROR | Conditions::GATEWAY_ERROR;
        let on = match failure {
            TryFailure::BeforeRequest => any | Conditions::CONNECT | Conditions::BEFORE_REQUEST,
            TryFailure::Refused => any | Conditions::REFUSED,
            TryFailure::Reset => any,
            TryFailure::Overflow => 0,
        };
        self.attempts > 0 && self.conditions.has(on)
    }

    /// True if a try that has sent some of the body may be followed by another, so that the body has
    /// to be kept. What failed before anything was sent has not touched it.
    #[must_use]
    pub fn may_resend(&self, h2: bool, grpc: bool) -> bool {
        let always = Conditions::SERVER_ERROR
            | Conditions::GATEWAY_ERROR
            | Conditions::RESET
            | Conditions::CONFLICT
            | Conditions::RATE_LIMITED;
        let on = self.conditions;
        self.attempts > 0
            && (on.has(always)
                || !self.codes.is_empty()
                || (h2 && on.has(Conditions::REFUSED))
                || (grpc && on.has(Conditions::GRPC)))
    }

    /// Wait before the retry of this number (from 0): by chance, up to a limit that doubles with
    /// each until it is ten times the first.
    #[must_use]
    pub fn wait(&self, retry: u32, dice: u32) -> Duration {
        let limit = self
            .backoff
            .saturating_mul(1 << retry.min(4))
            .min(self.backoff.saturating_mul(LONGEST));
        limit.mul_f64(f64::from(dice) / f64::from(u32::MAX))
    }
}

/// The words and numbers of a `retryOn`.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|w| !w.is_empty())
}

fn status_code(word: &str) -> Option<u16> {
    let code = word.parse().ok()?;
    (100..=599).contains(&code).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(on: &str) -> Retries {
        Retries::compile(&proto::Retries {
            attempts: 2,
            retry_on: on.into(),
            ..Default::default()
        })
        .unwrap()
    }

    fn answer(on: &str, code: u16, headers: &[(&'static str, &'static str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        rules(on).wants_other_than(StatusCode::from_u16(code).unwrap(), &map)
    }

    #[test]
    fn words_hold_for_the_codes_they_name() {
        for (on, yes, no) in [
            ("5xx", &[500, 503, 599][..], &[200, 404, 409][..]),
            ("gateway-error", &[502, 503, 504], &[500, 501, 505]),
            ("retriable-4xx", &[409], &[400, 404, 429, 503]),
            ("503,429", &[503, 429], &[500, 502]),
            ("retriable-status-codes", &[], &[500, 503]),
            ("connect-failure,reset", &[], &[500, 503]),
            ("retriable-headers", &[], &[500]),
            ("", &[], &[500, 503]),
        ] {
            for code in yes {
                assert!(answer(on, *code, &[]), "{on} {code}");
            }
            for code in no {
                assert!(!answer(on, *code, &[]), "{on} {code}");
            }
        }
    }

    #[test]
    fn grpc_words_look_at_the_status_in_the_head() {
        for (word, status) in [
            ("cancelled", "1"),
            ("deadline-exceeded", "4"),
            ("resource-exhausted", "8"),
            ("internal", "13"),
            ("unavailable", "14"),
        ] {
            for other in ["0", "1", "4", "8", "13", "14"] {
                let asked = answer(word, 200, &[("grpc-status", other)]);
                assert_eq!(asked, other == status, "{word} {other}");
            }
        }
        assert!(answer("", 200, &[("grpc-status", "14")]));
        assert!(!answer("", 200, &[("grpc-status", "13")]));
        assert!(!answer("unavailable", 200, &[]));
    }

    #[test]
    fn rate_limited_answers_are_left_alone_unless_asked_for() {
        let limited = [("x-envoy-ratelimited", "true")];
        assert!(!answer("5xx,429", 429, &limited));
        assert!(answer("envoy-ratelimited", 429, &limited));
        assert!(!answer("envoy-ratelimited", 429, &[]));
    }

    #[test]
    fn failures_hold_for_the_words_that_name_them() {
        use TryFailure::*;
        for (on, holds) in [
            ("", &[BeforeRequest, Refused][..]),
            ("connect-failure", &[BeforeRequest]),
            ("reset-before-request", &[BeforeRequest]),
            ("refused-stream", &[Refused]),
            ("reset", &[BeforeRequest, Refused, Reset]),
            ("5xx", &[BeforeRequest, Refused, Reset]),
            ("gateway-error", &[BeforeRequest, Refused, Reset]),
            ("503", &[]),
        ] {
            for failure in [BeforeRequest, Refused, Reset, Overflow] {
                let asked = rules(on).wants_after(failure);
                assert_eq!(asked, holds.contains(&failure), "{on} {failure:?}");
            }
        }
        let off = Retries {
            attempts: 0,
            ..rules("5xx")
        };
        assert!(!off.wants_after(Reset));
        assert!(!off.wants_other_than(StatusCode::BAD_GATEWAY, &HeaderMap::new()));
    }

    #[test]
    fn bodies_are_kept_where_they_may_be_sent_again() {
        let default = Retries::of_mesh();
        assert!(!default.may_resend(false, false));
        assert!(default.may_resend(true, false) && default.may_resend(false, true));
        for on in ["5xx", "gateway-error", "reset", "retriable-4xx", "503"] {
            assert!(rules(on).may_resend(false, false), "{on}");
        }
        for on in [
            "connect-failure",
            "reset-before-request",
            "retriable-headers",
        ] {
            assert!(!rules(on).may_resend(true, true), "{on}");
        }
        let off = Retries {
            attempts: 0,
            ..rules("5xx")
        };
        assert!(!off.may_resend(true, true));
    }

    #[test]
    fn waits_double_up_to_ten_times_the_first() {
        let rules = rules("5xx");
        let longest: Vec<u128> = (0..7)
            .map(|retry| rules.wait(retry, u32::MAX).as_millis())
            .collect();
        assert_eq!(longest, [25, 50, 100, 200, 250, 250, 250]);
        assert_eq!(rules.wait(3, 0), Duration::ZERO);
        let written = Retries::compile(&proto::Retries {
            attempts: 2,
            backoff: Some(prost_types::Duration {
                seconds: 0,
                nanos: 7_000_000,
            }),
            ..Default::default()
        })
        .unwrap();
        let longest = [0, 1, 9].map(|retry| written.wait(retry, u32::MAX).as_millis());
        assert_eq!(longest, [7, 14, 70]);
    }

    #[test]
    fn other_hosts_are_tried_unless_the_same_will_do() {
        assert!(rules("").other_hosts);
        let same = proto::Retries {
            same_hosts: true,
            ..Default::default()
        };
        assert!(!Retries::compile(&same).unwrap().other_hosts);
    }

    #[test]
    fn words_that_never_hold_here_take_the_default_away() {
        for on in ["retriable-headers", "http3-post-connect-failure"] {
            assert!(!rules(on).wants_after(TryFailure::BeforeRequest), "{on}");
        }
    }

    #[test]
    fn an_unknown_word_is_an_error() {
        let from = proto::Retries {
            attempts: 1,
            retry_on: "5xx,sometimes".into(),
            ..Default::default()
        };
        assert!(Retries::compile(&from).is_err());
        assert_eq!(*Retries::of_mesh(), Retries::default());
    }
}

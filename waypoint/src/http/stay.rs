//! Callers that stay with their endpoint, by a rule's session.

use ::http::HeaderMap;
use isobar_route::{HttpRoute, Session, SessionRules, Weighted};

use super::exchange::Exchange;
use super::standing::Asked;

/// What a rule says of sessions, and which one a request shows.
pub(super) struct Stay<'a> {
    rules: Option<&'a SessionRules>,
    pub(super) shown: Option<Session>,
    now: u64,
}

impl<'a> Stay<'a> {
    pub(super) fn of(route: Option<&'a HttpRoute>, asked: &Asked) -> Self {
        let rules = route.and_then(|route| route.session.as_ref());
        let now = rules.map_or(0, |_| jiff::Timestamp::now().as_second());
        let now = u64::try_from(now).unwrap_or_default();
        Self {
            shown: rules.and_then(|rules| rules.shown(&asked.headers, now)),
            rules,
            now,
        }
    }

    /// Tells a caller its session, where that is not the one it showed or has more time now.
    pub(super) fn tell(
        &self,
        chosen: Option<&Weighted>,
        exchange: &Exchange,
        headers: &mut HeaderMap,
    ) {
        let (Some(rules), Some(chosen), Some(endpoint)) = (self.rules, chosen, &exchange.endpoint)
        else {
            return;
        };
        let at = Session::endpoint(&endpoint.workload.uid);
        let to = Session::destination(&chosen.target);
        let same = |shown: Session| (shown.endpoint, shown.destination) == (at, to);
        let goes_on = self.shown.filter(|shown| same(*shown));
        // One that ends when it is idle is told again: this very answer gives it more time.
        if goes_on.is_none() || rules.idle.is_some() {
            let (name, value) = rules.give(goes_on, (at, to), self.now);
            headers.append(name, value);
        }
    }
}

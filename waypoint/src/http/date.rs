//! The value of `date`, made once a second.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use ::http::HeaderValue;
use jiff::Timestamp;

thread_local! {
    static LAST: RefCell<(i64, HeaderValue)> =
        const { RefCell::new((i64::MIN, HeaderValue::from_static(""))) };
}

/// The time of day as HTTP writes it (RFC 9110 §5.6.7).
pub(super) fn now() -> HeaderValue {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let second = since.map_or(0, |since| since.as_secs());
    at(i64::try_from(second).unwrap_or(0))
}

fn at(now: i64) -> HeaderValue {
    LAST.with_borrow_mut(|(second, value)| {
        if now != *second
            && let Ok(moment) = Timestamp::from_second(now)
            && let Ok(text) =
                HeaderValue::try_from(moment.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string())
        {
            (*second, *value) = (now, text);
        }
        value.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_as_http_writes_it_and_moves_on() {
        assert_eq!(at(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(at(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(at(784_111_778), "Sun, 06 Nov 1994 08:49:38 GMT");
    }
}

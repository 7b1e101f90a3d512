//! The value of `date`, made once a second.

use std::cell::RefCell;

use ::http::HeaderValue;
use jiff::Timestamp;

thread_local! {
    static LAST: RefCell<(i64, HeaderValue)> =
        const { RefCell::new((i64::MIN, HeaderValue::from_static(""))) };
}

/// The time of day as HTTP writes it (RFC 9110 §5.6.7).
pub(super) fn now() -> HeaderValue {
    at(Timestamp::now())
}

fn at(now: Timestamp) -> HeaderValue {
    LAST.with_borrow_mut(|(second, value)| {
        if now.as_second() != *second
            && let Ok(text) =
                HeaderValue::try_from(now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string())
        {
            (*second, *value) = (now.as_second(), text);
        }
        value.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_as_http_writes_it_and_moves_on() {
        let then = |second| at(Timestamp::from_second(second).unwrap());
        assert_eq!(then(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(then(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(then(784_111_778), "Sun, 06 Nov 1994 08:49:38 GMT");
    }
}

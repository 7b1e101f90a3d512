//! Numbers in lower-case hexadecimal digits, as in headers of traces.

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Reads lower-case digits only, all of them.
pub(crate) fn number(digits: &[u8]) -> Option<u128> {
    if digits.is_empty() || digits.len() > 32 {
        return None;
    }
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

/// Fills `text` with the last digits of `number`.
pub(crate) fn write(text: &mut [u8], mut number: u128) {
    for digit in text.iter_mut().rev() {
        *digit = DIGITS[(number & 0xf) as usize];
        number >>= 4;
    }
}

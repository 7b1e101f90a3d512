//! Numbers in lower-case hexadecimal digits, as in headers of traces.

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Reads 1 to 32 lower-case digits, and nothing else.
#[must_use]
pub fn number(digits: &[u8]) -> Option<u128> {
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
pub fn write(text: &mut [u8], mut number: u128) {
    for digit in text.iter_mut().rev() {
        *digit = DIGITS[(number & 0xf) as usize];
        number >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_the_same_and_nothing_else_is_read() {
        let mut text = [0; 32];
        write(&mut text, u128::MAX - 0xab);
        assert_eq!(number(&text), Some(u128::MAX - 0xab));
        for wrong in ["", "AB", "0x1", "g", "123456789012345678901234567890123"] {
            assert_eq!(number(wrong.as_bytes()), None, "{wrong}");
        }
    }
}

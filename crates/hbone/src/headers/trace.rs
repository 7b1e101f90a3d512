use std::fmt;

use isobar_types::hex;

/// A context without its numbers.
const BLANK: &[u8; 55] = b"00-00000000000000000000000000000000-0000000000000000-00";

/// W3C trace context of one application connection: `00-TRACE-SPAN-FLAGS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// Trace id, never zero.
    pub trace: u128,
    /// Span id, never zero.
    pub span: u64,
    /// Flags; bit 0 is "sampled".
    pub flags: u8,
}

impl TraceParent {
    /// Context with the given random ids; not sampled.
    #[must_use]
    pub const fn new(trace: u128, span: u64) -> Self {
        Self {
            trace,
            span,
            flags: 0,
        }
    }

    /// Reads exactly `00-<32 hex>-<16 hex>-<2 hex>`, lower case, ids not zero.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let dashes = bytes.len() == BLANK.len()
            && bytes.get(35) == Some(&b'-')
            && bytes.get(52) == Some(&b'-');
        if !dashes || !bytes.starts_with(b"00-") {
            return None;
        }
        let found = Self {
            trace: hex::number(bytes.get(3..35)?)?,
            span: u64::try_from(hex::number(bytes.get(36..52)?)?).ok()?,
            flags: u8::try_from(hex::number(bytes.get(53..)?)?).ok()?,
        };
        (found.trace != 0 && found.span != 0).then_some(found)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = *BLANK;
        hex::write(&mut text[3..35], self.trace);
        hex::write(&mut text[36..52], u128::from(self.span));
        hex::write(&mut text[53..], u128::from(self.flags));
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

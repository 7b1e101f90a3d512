use std::fmt;

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
        let mut parts = text.split('-');
        let (version, trace, span, flags) =
            (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let hex = |part: &str, digits: usize| {
            part.len() == digits
                && part
                    .bytes()
                    .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let shaped = parts.next().is_none()
            && version == "00"
            && hex(trace, 32)
            && hex(span, 16)
            && hex(flags, 2);
        if !shaped {
            return None;
        }
        let found = Self {
            trace: u128::from_str_radix(trace, 16).ok()?,
            span: u64::from_str_radix(span, 16).ok()?,
            flags: u8::from_str_radix(flags, 16).ok()?,
        };
        (found.trace != 0 && found.span != 0).then_some(found)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            self.trace, self.span, self.flags
        )
    }
}

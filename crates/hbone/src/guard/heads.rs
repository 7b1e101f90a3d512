/// Bytes of an HTTP/2 frame header.
const HEAD: usize = 9;

/// Type of a DATA frame, as on the wire (RFC 9113 §6.1).
pub(super) const DATA: u8 = 0;
/// Payload of a DATA frame below which it costs more to keep than it carries, in bytes: what the HTTP/2
/// library counts a frame up to.
const SMALL: usize = 256;

/// What an HTTP/2 frame header says (RFC 9113 §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHead {
    /// Payload bytes.
    pub length: usize,
    /// Frame type as on the wire.
    pub kind: u8,
    /// Flags of the type.
    pub flags: u8,
}

impl FrameHead {
    /// True of DATA that is mostly overhead: the HTTP/2 library counts what such frames lack to 256 bytes.
    pub const fn is_small_data(self) -> bool {
        self.kind == DATA && self.length < SMALL
    }
}

/// Finds frame headers in a byte stream, however it is cut; payloads are skipped, not looked at.
#[derive(Debug, Clone)]
pub struct FrameHeads {
    /// Bytes before the next header.
    skip: usize,
    partial: [u8; HEAD],
    have: usize,
}

impl FrameHeads {
    /// `preface` bytes come before the first frame.
    pub const fn new(preface: usize) -> Self {
        Self {
            skip: preface,
            partial: [0; HEAD],
            have: 0,
        }
    }

    /// Calls `pass` with each header that is complete now; false stops there. Returns how many
    /// bytes come before the header that was stopped at, all of them if none was. (Of a header cut
    /// in two the first half may have gone before.)
    pub fn walk(&mut self, bytes: &[u8], mut pass: impl FnMut(FrameHead) -> bool) -> usize {
        let mut at = 0;
        loop {
            let skipped = self.skip.min(bytes.len() - at);
            self.skip -= skipped;
            at += skipped;
            if at == bytes.len() {
                return at;
            }
            let start = at;
            let taken = (HEAD - self.have).min(bytes.len() - at);
            self.partial[self.have..self.have + taken].copy_from_slice(&bytes[at..at + taken]);
            self.have += taken;
            at += taken;
            if self.have < HEAD {
                return at;
            }
            self.have = 0;
            let [a, b, c, kind, flags, ..] = self.partial;
            let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            self.skip = length;
            if !pass(FrameHead {
                length,
                kind,
                flags,
            }) {
                return start;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Vec<u8> {
        let mut bytes = b"PRI".to_vec();
        for (length, kind) in [(0_u8, 4_u8), (5, 0), (20, 1), (0, 6)] {
            bytes.extend([0, 0, length, kind, 1, 0, 0, 0, 3]);
            // Payloads that look like anything.
            bytes.extend((0..length).map(|i| i % 3));
        }
        bytes
    }

    #[test]
    fn headers_are_found_however_the_stream_is_cut() {
        let bytes = frames();
        for size in 1..bytes.len() {
            let mut heads = FrameHeads::new(3);
            let mut found = Vec::new();
            for piece in bytes.chunks(size) {
                let passed = heads.walk(piece, |head| {
                    found.push((head.length, head.kind));
                    true
                });
                assert_eq!(passed, piece.len());
            }
            assert_eq!(found, [(0, 4), (5, 0), (20, 1), (0, 6)], "{size}");
        }
    }

    #[test]
    fn what_comes_before_a_stop_is_told() {
        let bytes = frames();
        let mut heads = FrameHeads::new(3);
        assert_eq!(heads.walk(&bytes, |head| head.kind != 1), 3 + 9 + 9 + 5);
    }
}

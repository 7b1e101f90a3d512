use std::time::{Duration, Instant};

use super::heads::{DATA, FrameHead};
use super::{Guard, Misuse};

/// Control frames a connection may get in each second before they count as misuse.
const CONTROLS: u32 = 100;
const SECOND: Duration = Duration::from_secs(1);
/// Compressed bytes of one header block. A CONNECT with the longest baggage taken has half of it.
const HEADER_BLOCK: usize = 16 * 1024;
/// Frames that one stream honestly needs: two header blocks and one reset, and as much again.
const PER_STREAM: u64 = 6;
/// Bytes sent that entitle the peer to one WINDOW_UPDATE: two for a DATA frame of one byte.
const PER_WINDOW_UPDATE: u64 = 5;

const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What it costs to take a frame, where that is not for its bytes: a small DATA frame is one.
pub(super) const fn weight(head: FrameHead) -> u32 {
    match head.kind {
        DATA => head.is_small_data() as u32,
        // A task of its own, and what it answers.
        HEADERS => 16,
        // Something is sent for it.
        WINDOW_UPDATE => 4,
        PING | CONTINUATION => 2,
        PRIORITY | 10.. => 1,
        RST_STREAM | 4..=7 => 8,
    }
}

/// Which end we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

/// Counts what a peer sends besides data.
#[derive(Debug)]
pub(super) struct Meter {
    role: Role,
    second: Instant,
    controls: u32,
    block: usize,
    /// Frames seen that streams opened entitle to.
    stream_frames: u64,
    window_updates: u64,
}

impl Meter {
    pub(super) fn new(role: Role, now: Instant) -> Self {
        Self {
            role,
            second: now,
            controls: 0,
            block: 0,
            stream_frames: 0,
            window_updates: 0,
        }
    }

    /// Judges one frame by its header; false once the guard has tripped.
    pub(super) fn pass(&mut self, head: FrameHead, guard: &Guard) -> bool {
        match head.kind {
            DATA if head.length > 0 || head.flags & END_STREAM != 0 => return true,
            HEADERS | CONTINUATION => self.header_block(head, guard),
            RST_STREAM => self.entitled(guard),
            WINDOW_UPDATE => {
                self.window_updates += 1;
                if self.window_updates > guard.sent.get() / PER_WINDOW_UPDATE {
                    self.control(guard);
                }
            }
            PRIORITY => guard.misuse(Misuse::Priority),
            // SETTINGS, PUSH_PROMISE, PING, GOAWAY; and DATA that says nothing.
            DATA | 4..=7 => self.control(guard),
            _ => guard.misuse(Misuse::UnknownFrame),
        }
        !guard.is_tripped()
    }

    fn header_block(&mut self, head: FrameHead, guard: &Guard) {
        if head.kind == HEADERS {
            self.block = 0;
            match self.role {
                Role::Server => guard.stream_opened(),
                Role::Client => self.entitled(guard),
            }
        } else if head.length == 0 {
            self.control(guard);
        }
        self.block += head.length;
        if self.block > HEADER_BLOCK {
            guard.misuse(Misuse::HeaderBlock);
        }
        if head.flags & END_HEADERS != 0 {
            self.block = 0;
        }
    }

    /// A frame that streams entitle to, up to a number.
    fn entitled(&mut self, guard: &Guard) {
        self.stream_frames += 1;
        if self.stream_frames > guard.opened.get() * PER_STREAM {
            self.control(guard);
        }
    }

    fn control(&mut self, guard: &Guard) {
        let now = Instant::now();
        if now.saturating_duration_since(self.second) >= SECOND {
            self.second = now;
            self.controls = 0;
        }
        self.controls += 1;
        if self.controls > CONTROLS {
            guard.misuse(Misuse::ControlFlood);
        }
    }
}

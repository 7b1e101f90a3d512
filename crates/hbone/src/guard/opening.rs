use std::time::Instant;

use super::Guard;
use super::heads::FrameHeads;
use super::meter::{Meter, Role};
use super::watch::PREFACE;

/// How many of the bytes that a new caller begins with reach the HTTP/2 library when they come in pieces of
/// `piece` bytes: all, or what comes before the frame with which it has asked too much. (Of that frame's
/// header the part that came in an earlier piece has gone before.)
#[must_use]
pub fn taken_of_opening(bytes: &[u8], piece: usize) -> usize {
    let guard = Guard::new(None);
    let mut heads = FrameHeads::new(PREFACE);
    let mut meter = Meter::new(Role::Server, Instant::now());
    let mut taken = 0;
    for piece in bytes.chunks(piece.max(1)) {
        taken += heads.walk(piece, |head| meter.pass(head, &guard));
        if guard.is_tripped() {
            break;
        }
    }
    taken
}

//! What HTTP/1.1 is the same for towards callers and endpoints: where bodies end, fields, and how a message
//! goes out.

mod chunks;
mod fields;
mod intake;
mod outgoing;

use std::io;

pub(crate) use fields::{
    Phrase, announced, digits, into_map, length, lists, says_close, write_fields,
};
pub(crate) use intake::{Framing, Intake};
pub(crate) use outgoing::{Broken, Coding, Outgoing, room};

/// Bytes that are read at once at most for a caller that may have many answers on its connection: what a tunnel
/// carries in one frame. A body waits for its reader in whole pieces, some of them at several places on the way,
/// so that larger ones are memory that a caller who does not read has us hold.
pub(crate) const PIECE: usize = 16_000;
/// The same for a caller whose connection carries one answer at a time: nearly what the allocator keeps at hand.
pub(crate) const LARGE: usize = 2 * PIECE;
/// Fields of a head.
pub(crate) const FIELDS: usize = 100;

/// Why a message was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream's own error.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// The peer ended the connection.
    #[error("the connection ended before the message was complete")]
    Incomplete,
    /// The head is none.
    #[error("the head of the message is malformed")]
    Head(#[from] httparse::Error),
    /// Something else is not as HTTP/1.1 has it.
    #[error("the message is malformed: {0}")]
    Malformed(&'static str),
}

impl Error {
    /// True if the peer does not speak HTTP/1.1 as it should.
    pub(crate) const fn is_protocol(&self) -> bool {
        matches!(self, Self::Head(_) | Self::Malformed(_))
    }
}

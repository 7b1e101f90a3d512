use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf as _, Bytes, BytesMut};

/// Smallest and largest read from an endpoint, in bytes. A connection starts small and grows while
/// its reads come back full: many idle or chatty connections must not hold large buffers.
const READ_MIN: usize = 4 * 1024;
const READ_MAX: usize = 256 * 1024;

/// Bytes on their way from one endpoint to the other.
#[derive(Debug)]
pub struct Batch {
    chunks: VecDeque<Bytes>,
    bytes: usize,
    spare: BytesMut,
    read: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            chunks: VecDeque::new(),
            bytes: 0,
            spare: BytesMut::new(),
            read: READ_MIN,
        }
    }
}

impl Batch {
    /// Adds a chunk at the end; an empty one is forgotten.
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.bytes += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    /// True when nothing is on its way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Bytes on their way.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes at most `most` bytes from the front, without copying.
    pub fn take(&mut self, most: usize) -> Option<Bytes> {
        let front = self.chunks.front_mut()?;
        let piece = if front.len() <= most {
            self.chunks.pop_front()?
        } else {
            front.split_to(most)
        };
        self.bytes -= piece.len();
        Some(piece)
    }

    /// The front chunks as slices for a gathered write; returns how many were filled in.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
            *slice = IoSlice::new(chunk);
            filled += 1;
        }
        filled
    }

    /// Forgets `bytes` from the front: they are written.
    pub fn advance(&mut self, mut bytes: usize) {
        self.bytes -= bytes;
        while bytes > 0 {
            let Some(front) = self.chunks.front_mut() else {
                return;
            };
            if front.len() > bytes {
                front.advance(bytes);
                return;
            }
            bytes -= front.len();
            self.chunks.pop_front();
        }
    }

    /// Runs one read into a buffer of the size this connection has earned; `read` appends to the
    /// buffer and says how many bytes, at most the given size.
    pub fn fill<E>(
        &mut self,
        read: impl FnOnce(&mut BytesMut, usize) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let size = self.read;
        // Takes the old allocation again if all that was cut from it has been written.
        self.spare.reserve(size);
        let bytes = read(&mut self.spare, size)?;
        let chunk = self.spare.split_to(bytes).freeze();
        self.push(chunk);
        if bytes >= size {
            self.read = (size * 2).min(READ_MAX);
        } else if bytes < size / 4 {
            self.read = (size / 2).max(READ_MIN);
        }
        Ok(bytes)
    }

    /// Gives the read buffer back while there is nothing to read.
    pub fn rest(&mut self) {
        self.spare = BytesMut::new();
    }
}

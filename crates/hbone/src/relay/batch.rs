use std::cell::Cell;
use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf as _, Bytes, BytesMut};

use crate::settings::{DATA_MAX, TOGETHER};

/// Smallest and largest read from an endpoint, in bytes. A connection starts small and grows while
/// its reads come back full: many idle or chatty connections must not hold large buffers. The
/// largest is cut into full frames without a rest.
const READ_MIN: usize = 4 * 1024;
const READ_MAX: usize = 4 * TOGETHER * DATA_MAX;
/// Size of reads from which on a stream is called bulk.
const BULK: usize = TOGETHER * DATA_MAX;
/// Largest chunk that is copied to join another to it.
const JOIN_MAX: usize = 4 * 1024;
/// What all reads of a thread may take above the smallest: one bulk stream gets the largest reads,
/// many share what still fits into a core's cache.
const BUDGET: usize = 1024 * 1024;

thread_local! {
    /// Taken from [`BUDGET`].
    static GROWN: Cell<usize> = const { Cell::new(0) };
}

/// Vain looks for something to read after which a connection counts as idle.
const RESTS: u8 = 8;

/// Size of the next read, in bytes.
#[derive(Debug)]
struct ReadSize(usize);

impl ReadSize {
    fn grow(&mut self) {
        let more = self.0.min(READ_MAX - self.0);
        if GROWN.get() + more <= BUDGET {
            GROWN.set(GROWN.get() + more);
            self.0 += more;
        }
    }

    fn shrink(&mut self) {
        let less = (self.0 / 2).min(self.0 - READ_MIN);
        self.0 -= less;
        GROWN.set(GROWN.get() - less);
    }
}

impl Default for ReadSize {
    fn default() -> Self {
        Self(READ_MIN)
    }
}

impl Drop for ReadSize {
    fn drop(&mut self) {
        GROWN.set(GROWN.get() - (self.0 - READ_MIN));
    }
}

/// Bytes on their way from one endpoint to the other.
#[derive(Debug, Default)]
pub struct Batch {
    /// Empty when nothing is on its way. Apart from the others, as there is mostly one chunk, for
    /// which no room need be found, nor kept with every stream that once carried something.
    front: Bytes,
    more: VecDeque<Bytes>,
    bytes: usize,
    spare: BytesMut,
    read: ReadSize,
    /// Looks for something to read since there last was something.
    rests: u8,
}

impl Batch {
    /// Adds a chunk at the end; an empty one is forgotten.
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.bytes += chunk.len();
            self.push_back(chunk);
        }
    }

    fn push_back(&mut self, chunk: Bytes) {
        if self.front.is_empty() {
            self.front = chunk;
        } else {
            self.more.push_back(chunk);
        }
    }

    fn pop_front(&mut self) -> Bytes {
        std::mem::replace(&mut self.front, self.more.pop_front().unwrap_or_default())
    }

    /// Adds bytes at the end, in one chunk with those that were added so before.
    pub fn push_joined(&mut self, bytes: &[u8]) {
        let last = self.more.pop_back();
        let last = last.unwrap_or_else(|| std::mem::take(&mut self.front));
        // Fails when the chunk shares its memory; small ones are then copied once, large ones stay.
        let mut joined = match last.try_into_mut() {
            Ok(last) => last,
            Err(last) if last.len() < JOIN_MAX => BytesMut::from(&last[..]),
            Err(last) => {
                self.push_back(last);
                BytesMut::new()
            }
        };
        joined.extend_from_slice(bytes);
        self.bytes += bytes.len();
        self.push_back(joined.freeze());
    }

    /// True when nothing is on its way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.front.is_empty()
    }

    /// Bytes on their way.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes at most `most` bytes from the front, without copying.
    pub fn take(&mut self, most: usize) -> Option<Bytes> {
        if self.is_empty() {
            return None;
        }
        let piece = if self.front.len() <= most {
            self.pop_front()
        } else {
            self.front.split_to(most)
        };
        self.bytes -= piece.len();
        Some(piece)
    }

    /// The one chunk there is, if it is one.
    pub(super) fn only(&self) -> Option<&[u8]> {
        (self.more.is_empty() && !self.is_empty()).then_some(&*self.front)
    }

    /// The front chunks as slices for a gathered write; returns how many were filled in.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        let front = (!self.is_empty()).then_some(&self.front);
        for (slice, chunk) in slices.iter_mut().zip(front.into_iter().chain(&self.more)) {
            *slice = IoSlice::new(chunk);
            filled += 1;
        }
        filled
    }

    /// Forgets `bytes` from the front: they are written.
    pub fn advance(&mut self, mut bytes: usize) {
        self.bytes -= bytes;
        while bytes > 0 && !self.is_empty() {
            if self.front.len() > bytes {
                self.front.advance(bytes);
                return;
            }
            bytes -= self.pop_front().len();
        }
    }

    /// Runs one read into a buffer of the size this connection has earned; `read` appends to the
    /// buffer and says how many bytes, at most the given size.
    pub fn fill<E>(
        &mut self,
        read: impl FnOnce(&mut BytesMut, usize) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let size = self.read.0;
        // Takes the old allocation again if all that was cut from it has been written.
        self.spare.reserve(size);
        let bytes = read(&mut self.spare, size)?;
        let chunk = self.spare.split_to(bytes).freeze();
        self.push(chunk);
        self.rests = 0;
        if bytes >= size {
            self.read.grow();
        } else if bytes < size / 4 {
            self.read.shrink();
        }
        Ok(bytes)
    }

    /// True while reads come back so full that the stream is worth a way of its own.
    pub(super) const fn is_bulk(&self) -> bool {
        self.read.0 >= BULK
    }

    /// Gives back the read buffer and what its size takes from others: something else reads now.
    pub(super) fn shrink(&mut self) {
        self.spare = BytesMut::new();
        self.read = ReadSize::default();
    }

    /// Gives the read buffer back while there is nothing to read, and in the end what its size
    /// takes from others.
    pub fn rest(&mut self) {
        self.spare = BytesMut::new();
        if self.more.is_empty() {
            self.more = VecDeque::new();
        }
        self.rests = self.rests.saturating_add(1);
        if self.rests >= RESTS {
            self.read = ReadSize::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(batch: &Batch) -> usize {
        batch.slices(&mut [IoSlice::new(&[]); 8])
    }

    fn full(batch: &mut Batch) -> usize {
        let mut asked = 0;
        let read = |buffer: &mut BytesMut, most: usize| {
            asked = most;
            buffer.resize(most, 0);
            Ok::<_, ()>(most)
        };
        batch.fill(read).unwrap();
        batch.advance(batch.bytes());
        asked
    }

    #[test]
    fn a_lone_stream_earns_large_reads_and_gives_them_back() {
        let mut batch = Batch::default();
        let sizes: Vec<_> = (0..8).map(|_| full(&mut batch)).collect();
        assert_eq!((sizes[0], sizes[1]), (READ_MIN, 2 * READ_MIN));
        assert_eq!(sizes[7], READ_MAX);
        for _ in 0..8 {
            batch.fill(|_, _| Ok::<_, ()>(0)).unwrap();
        }
        assert_eq!(full(&mut batch), READ_MIN);
        drop(batch);
        assert_eq!(GROWN.get(), 0);
    }

    #[test]
    fn an_idle_stream_gives_its_share_back() {
        let mut batch = Batch::default();
        for _ in 0..8 {
            full(&mut batch);
        }
        for _ in 1..RESTS {
            batch.rest();
        }
        assert_eq!(full(&mut batch), READ_MAX);
        for _ in 0..RESTS {
            batch.rest();
        }
        assert_eq!(GROWN.get(), 0);
        assert_eq!(full(&mut batch), READ_MIN);
    }

    #[test]
    fn many_streams_share_the_budget() {
        let mut all: Vec<_> = (0..256).map(|_| Batch::default()).collect();
        for batch in &mut all {
            for _ in 0..8 {
                full(batch);
            }
        }
        assert!(GROWN.get() <= BUDGET);
        drop(all);
        assert_eq!(GROWN.get(), 0);
    }

    #[test]
    fn single_bytes_are_joined() {
        let mut batch = Batch::default();
        let shared = Bytes::from(vec![7; 100]);
        batch.push(shared.clone());
        for n in 0..50_000_u32 {
            batch.push_joined(&[n as u8]);
        }
        assert_eq!((batch.bytes(), chunks(&batch)), (50_100, 1));
        assert_eq!(batch.take(100), Some(shared));
        assert_eq!(batch.only().map(<[u8]>::len), Some(50_000));
        batch.push(Bytes::from_static(&[0; 8192]));
        batch.push_joined(b"x");
        assert_eq!((chunks(&batch), batch.only()), (3, None));
    }
}

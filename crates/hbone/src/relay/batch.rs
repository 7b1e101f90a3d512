use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf as _, Bytes, BytesMut};

use crate::settings::{DATA_MAX, TOGETHER};

/// Sizes of reads from an endpoint, in bytes. A connection starts with the first and takes the next
/// while its reads come back full: many idle or chatty connections must not hold large buffers. But for
/// the first they are cut into full frames without a rest.
const READS: [usize; 4] = [4 * 1024, DATA_MAX, BULK, 4 * BULK];
/// Size of reads from which on a stream is called bulk: what leaves at once.
const BULK: usize = TOGETHER * DATA_MAX;
/// Largest chunk that is copied to join another to it.
const JOIN_MAX: usize = 4 * 1024;
/// What all reads of a thread may take above the smallest. Each read has the kernel tell the sender of
/// the room that it made, so many streams get reads of [`BULK`], too; larger ones are for few, as
/// together they would not fit into a core's cache.
const BUDGET: usize = 8 * 1024 * 1024;
const BUDGET_LARGEST: usize = 1024 * 1024;

thread_local! {
    /// Taken from the budgets.
    static GROWN: Cell<usize> = const { Cell::new(0) };
    static SMALL: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// The smallest read, by a buffer of the thread's own: to copy some hundred bytes costs less than memory
/// for the thousands that might have come.
fn fill_small<E>(read: impl FnOnce(&mut BytesMut, usize) -> Result<usize, E>) -> Result<Bytes, E> {
    SMALL.with_borrow_mut(|buffer| {
        buffer.clear();
        buffer.reserve(READS[0]);
        read(buffer, READS[0])?;
        Ok(Bytes::copy_from_slice(buffer))
    })
}

/// Vain looks for something to read after which a connection counts as idle.
const RESTS: u8 = 8;

/// Size of the next read: its place among [`READS`].
#[derive(Debug, Default)]
struct ReadSize(usize);

impl ReadSize {
    const fn bytes(&self) -> usize {
        READS[self.0]
    }

    fn grow(&mut self) {
        let Some(next) = READS.get(self.0 + 1) else {
            return;
        };
        let grown = GROWN.get() + next - self.bytes();
        let budget = if *next > BULK { BUDGET_LARGEST } else { BUDGET };
        if grown <= budget {
            GROWN.set(grown);
            self.0 += 1;
        }
    }

    fn shrink(&mut self) {
        let before = self.bytes();
        self.0 = self.0.saturating_sub(1);
        GROWN.set(GROWN.get() - (before - self.bytes()));
    }
}

impl Drop for ReadSize {
    fn drop(&mut self) {
        GROWN.set(GROWN.get() - (self.bytes() - READS[0]));
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
        let size = self.read.bytes();
        let chunk = if size == READS[0] {
            fill_small(read)?
        } else {
            // Takes the old allocation again if all that was cut from it has been written.
            self.spare.reserve(size);
            let bytes = read(&mut self.spare, size)?;
            self.spare.split_to(bytes).freeze()
        };
        let bytes = chunk.len();
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
        self.read.bytes() >= BULK
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
        assert_eq!((sizes[0], sizes[1]), (READS[0], READS[1]));
        assert_eq!(sizes[7], READS[3]);
        for _ in 0..8 {
            batch.fill(|_, _| Ok::<_, ()>(0)).unwrap();
        }
        assert_eq!(full(&mut batch), READS[0]);
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
        assert_eq!(full(&mut batch), READS[3]);
        for _ in 0..RESTS {
            batch.rest();
        }
        assert_eq!(GROWN.get(), 0);
        assert_eq!(full(&mut batch), READS[0]);
    }

    #[test]
    fn as_many_streams_as_a_tunnel_carries_read_what_leaves_at_once() {
        let mut all: Vec<_> = (0..100).map(|_| Batch::default()).collect();
        for batch in &mut all {
            for _ in 0..8 {
                full(batch);
            }
        }
        let reads: Vec<_> = all.iter_mut().map(full).collect();
        assert!(reads.iter().all(|read| *read >= BULK), "{reads:?}");
        let largest = reads.iter().filter(|read| **read > BULK).count();
        assert!((1..10).contains(&largest), "{largest}");
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

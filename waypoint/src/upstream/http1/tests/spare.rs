use std::collections::VecDeque;
use std::io;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::*;

/// An endpoint that gives what a test says, read by read, and notes how much it might have given.
#[derive(Default)]
struct Scripted {
    reads: VecDeque<Vec<u8>>,
    offered: Rc<RefCell<Vec<usize>>>,
}

impl AsyncRead for Scripted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(read) = self.reads.pop_front() else {
            return Poll::Pending;
        };
        self.offered.borrow_mut().push(room.remaining());
        room.put_slice(&read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Scripted {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn the_end_of_a_body_is_read_with_room_to_spare() {
    for more in ["", "H"] {
        run(async |mut bed| {
            let head = "HTTP/1.1 200 OK\r\ncontent-length: 20000\r\n\r\n";
            let end = "e".repeat(20_000 - PIECE) + more;
            let reads = [head.to_owned(), "b".repeat(PIECE), end];
            let offered = Rc::<RefCell<Vec<usize>>>::default();
            let stream = Scripted {
                reads: reads.map(String::into_bytes).into(),
                offered: offered.clone(),
            };
            let line = Line::begin(Box::new(stream), &bed.idle, &bed.scope);
            let request = Request::get("/").body(none()).unwrap();
            let response = line.send(request, TERMS).await.unwrap();
            let (body, _) = read(response.into_body()).await.unwrap();
            assert_eq!(body.len(), 20_000);
            // A read that fills its room leaves open whether there is more.
            let last = offered.borrow().last().copied().unwrap();
            assert!(last > 20_000 - PIECE, "room for {last}");
            assert_eq!(bed.kept().await, more.is_empty(), "{more:?}");
        });
    }
}

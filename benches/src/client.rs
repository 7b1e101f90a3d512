use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use isobar_runtime::LocalScope;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::server::head_end;

/// Kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Bytes as fast as they go, to the sink.
    Bulk,
    /// Requests on connections that are kept.
    Requests,
    /// Connections with one request each.
    Connections,
    /// Requests at a fixed rate, on connections that are kept.
    Paced,
    /// Connections with one request each, then kept open and silent.
    Idle,
}

impl Kind {
    /// As the command line says it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bulk => "bulk",
            Self::Requests => "requests",
            Self::Connections => "connections",
            Self::Paced => "paced",
            Self::Idle => "idle",
        }
    }
}

/// One load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) kind: Kind,
    pub(crate) to: SocketAddr,
    pub(crate) connections: usize,
    pub(crate) length: Duration,
    /// Requests a second of all connections together, for [`Kind::Paced`].
    pub(crate) rate: u32,
    /// Connect through the SOCKS5 proxy here.
    pub(crate) socks: Option<SocketAddr>,
}

/// What a load measured.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Bytes, requests or connections.
    pub(crate) units: u64,
    /// How long it took, in seconds.
    pub(crate) seconds: f64,
    /// Median latency in microseconds; 0 for bulk.
    pub(crate) p50_us: u64,
    /// 99th percentile of the latency in microseconds; 0 for bulk.
    pub(crate) p99_us: u64,
    /// Longest latency in microseconds; 0 for bulk.
    pub(crate) max_us: u64,
    /// Units that failed.
    pub(crate) failed: u64,
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: server\r\nuser-agent: bench\r\n\r\n";

impl Load {
    pub(crate) async fn run(self) -> Result<Measured> {
        let scope = LocalScope::new("load");
        let latencies = Rc::new(RefCell::new(Vec::new()));
        let totals = Rc::new(RefCell::new(Measured::default()));
        let start = Instant::now();
        for index in 0..self.connections {
            let (latencies, totals) = (Rc::clone(&latencies), Rc::clone(&totals));
            scope.spawn("one", async move {
                let result = match self.kind {
                    Kind::Bulk => self.bulk(&totals).await,
                    Kind::Requests => self.requests(&totals, &latencies).await,
                    Kind::Connections => self.open(&totals, &latencies).await,
                    Kind::Paced => self.paced(index, &totals, &latencies).await,
                    Kind::Idle => self.idle(index, &totals).await,
                };
                if result.is_err() {
                    totals.borrow_mut().failed += 1;
                }
            });
        }
        scope.shutdown(self.length + Duration::from_secs(30)).await;
        let mut measured = *totals.borrow();
        measured.seconds = start.elapsed().as_secs_f64();
        let mut sorted = std::mem::take(&mut *latencies.borrow_mut());
        sorted.sort_unstable();
        measured.p50_us = percentile(&sorted, 50);
        measured.p99_us = percentile(&sorted, 99);
        measured.max_us = sorted.last().copied().unwrap_or_default();
        Ok(measured)
    }

    async fn connect(&self) -> Result<TcpStream> {
        let Some(socks) = self.socks else {
            return Ok(TcpStream::connect(self.to).await?);
        };
        let SocketAddr::V4(to) = self.to else {
            bail!("{} is no address of IPv4", self.to)
        };
        let mut stream = TcpStream::connect(socks).await?;
        // RFC 1928: version, no authentication; CONNECT to an address.
        stream.write_all(&[5, 1, 0]).await?;
        let mut method = [0; 2];
        stream.read_exact(&mut method).await?;
        let mut request = vec![5, 1, 0, 1];
        request.extend(to.ip().octets());
        request.extend(to.port().to_be_bytes());
        stream.write_all(&request).await?;
        let mut reply = [0; 10];
        stream.read_exact(&mut reply).await?;
        ensure!(method == [5, 0] && reply[1] == 0, "{method:?} {reply:?}");
        Ok(stream)
    }

    async fn bulk(&self, totals: &RefCell<Measured>) -> Result<()> {
        let mut stream = self.connect().await?;
        let block = vec![0x5a; 256 * 1024];
        let until = Instant::now() + self.length;
        let mut sent = 0;
        while Instant::now() < until {
            stream.write_all(&block).await?;
            sent += block.len() as u64;
        }
        stream.shutdown().await?;
        ensure!(
            stream.read_u8().await? == b'!',
            "the sink did not see the end"
        );
        totals.borrow_mut().units += sent;
        Ok(())
    }

    async fn requests(
        &self,
        totals: &RefCell<Measured>,
        latencies: &RefCell<Vec<u64>>,
    ) -> Result<()> {
        let mut stream = self.connect().await?;
        stream.set_nodelay(true)?;
        let mut seen = Vec::with_capacity(4096);
        let until = Instant::now() + self.length;
        while Instant::now() < until {
            let start = Instant::now();
            exchange(&mut stream, &mut seen).await?;
            latencies.borrow_mut().push(micros(start));
            totals.borrow_mut().units += 1;
        }
        Ok(())
    }

    /// One request every so often. A request that is late because the one before it was slow
    /// counts from the time it was due.
    async fn paced(
        &self,
        index: usize,
        totals: &RefCell<Measured>,
        latencies: &RefCell<Vec<u64>>,
    ) -> Result<()> {
        let mut stream = self.connect().await?;
        stream.set_nodelay(true)?;
        let mut seen = Vec::with_capacity(4096);
        exchange(&mut stream, &mut seen).await?;
        let share = Duration::from_secs(1) / self.rate.max(1);
        let period = share * u32::try_from(self.connections)?;
        let mut due = Instant::now() + share * u32::try_from(index)?;
        let until = Instant::now() + self.length;
        while due < until {
            let late = Instant::now() > due;
            if !late {
                tokio::time::sleep_until(due.into()).await;
            }
            let start = if late { due } else { Instant::now() };
            exchange(&mut stream, &mut seen).await?;
            latencies.borrow_mut().push(micros(start));
            totals.borrow_mut().units += 1;
            due += period;
        }
        Ok(())
    }

    /// Tells on standard output when every connection is open, and holds them.
    async fn idle(&self, index: usize, totals: &RefCell<Measured>) -> Result<()> {
        // One after another in waves: a burst of thousands would overflow the listen queue.
        tokio::time::sleep(Duration::from_micros(500) * u32::try_from(index)?).await;
        let mut stream = self.connect().await?;
        exchange(&mut stream, &mut Vec::new()).await?;
        totals.borrow_mut().units += 1;
        if totals.borrow().units == self.connections as u64 {
            println!("open");
        }
        tokio::time::sleep(self.length).await;
        Ok(())
    }

    async fn open(&self, totals: &RefCell<Measured>, latencies: &RefCell<Vec<u64>>) -> Result<()> {
        let until = Instant::now() + self.length;
        let mut seen = Vec::with_capacity(4096);
        while Instant::now() < until {
            let start = Instant::now();
            let mut stream = self.connect().await?;
            stream.set_nodelay(true)?;
            seen.clear();
            exchange(&mut stream, &mut seen).await?;
            latencies.borrow_mut().push(micros(start));
            totals.borrow_mut().units += 1;
        }
        Ok(())
    }
}

/// One request and its whole reply.
async fn exchange(stream: &mut TcpStream, seen: &mut Vec<u8>) -> Result<()> {
    stream.write_all(REQUEST).await?;
    loop {
        if let Some(end) = head_end(seen) {
            let length = content_length(&seen[..end]).context("no content-length")?;
            ensure!(seen.starts_with(b"HTTP/1.1 200"), "not a 200");
            if seen.len() >= end + length {
                seen.drain(..end + length);
                return Ok(());
            }
        }
        ensure!(stream.read_buf(seen).await? > 0, "the connection ended");
    }
}

pub(crate) fn content_length(head: &[u8]) -> Option<usize> {
    std::str::from_utf8(head)
        .ok()?
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
}

pub(crate) fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

pub(crate) fn percentile(sorted: &[u64], percent: usize) -> u64 {
    sorted
        .get(sorted.len() * percent / 100)
        .copied()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_sorted_values() {
        let values: Vec<_> = (0..100).collect();
        assert_eq!((percentile(&values, 50), percentile(&values, 99)), (50, 99));
        assert_eq!(percentile(&[], 50), 0);
    }

    #[test]
    fn heads_and_lengths() {
        let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        let end = head_end(reply).unwrap();
        assert_eq!(&reply[end..], b"abc");
        assert_eq!(content_length(&reply[..end]), Some(3));
    }
}

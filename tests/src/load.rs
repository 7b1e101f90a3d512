use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, bail};
use isobar_runtime::Scope;

use crate::caller::{Caller, Connection};

/// How the requests of a load share connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadKind {
    /// One connection for all of them; it is never opened again, so a cut shows.
    KeepAlive,
    /// One connection, and another one after a response that asks to close it.
    Reused,
    /// One connection each.
    NewConnections,
}

/// What became of a load's requests.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Requests answered with 200.
    pub good: u64,
    /// What went wrong, with the number of the request.
    pub bad: Vec<String>,
    /// Bodies of the good ones, in order.
    pub bodies: Vec<String>,
}

/// Requests at a steady rate until told to stop.
#[derive(Debug)]
pub struct Load {
    scope: Scope,
    tally: Arc<Mutex<Tally>>,
}

impl Load {
    /// Starts `per_second` GET requests a second.
    #[must_use]
    pub fn start(
        caller: Caller,
        to: SocketAddr,
        host: &str,
        path: &str,
        kind: LoadKind,
        per_second: u32,
    ) -> Self {
        let scope = Scope::new("load");
        let tally = Arc::new(Mutex::new(Tally::default()));
        let (host, path) = (host.to_owned(), path.to_owned());
        let life = scope.lifetime();
        let counted = Arc::clone(&tally);
        scope.spawn("requests", async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / per_second.max(1));
            let mut kept = None;
            let mut number = 0_u64;
            loop {
                tokio::select! {
                    () = life.draining() => return,
                    _ = ticks.tick() => {}
                }
                number += 1;
                let outcome = one(&caller, to, &host, &path, kind, &mut kept).await;
                let mut tally = counted.lock().expect("no holder panics");
                match outcome {
                    Ok(body) => {
                        tally.good += 1;
                        tally.bodies.push(body);
                    }
                    Err(error) => tally.bad.push(format!("request {number}: {error:#}")),
                }
            }
        });
        Self { scope, tally }
    }

    /// Number of requests answered so far.
    #[must_use]
    pub fn answered(&self) -> u64 {
        let tally = self.tally.lock().expect("no holder panics");
        tally.good + tally.bad.len() as u64
    }

    /// Waits until `more` further requests have been answered, well or not.
    ///
    /// # Errors
    /// When that takes more than 20 s.
    pub async fn progress(&self, more: u64) -> Result<()> {
        let wanted = self.answered() + more;
        crate::wait::eventually("the load goes on", async || {
            if self.answered() < wanted {
                bail!("{} of {wanted}", self.answered());
            }
            Ok(())
        })
        .await
    }

    /// Ends the load after the request under way and returns what became of it.
    pub async fn stop(self) -> Tally {
        self.scope.shutdown(Duration::from_secs(15)).await;
        let tally = self.tally.lock().expect("no holder panics");
        tally.clone()
    }
}

async fn one(
    caller: &Caller,
    to: SocketAddr,
    host: &str,
    path: &str,
    kind: LoadKind,
    kept: &mut Option<Connection>,
) -> Result<String> {
    let reply = match kind {
        LoadKind::NewConnections => caller.http(to).await?.get(host, path).await?,
        LoadKind::KeepAlive | LoadKind::Reused => {
            if kept.is_none() {
                *kept = Some(caller.http(to).await?);
            }
            match kept {
                Some(connection) => connection.get(host, path).await?,
                None => bail!("no connection"),
            }
        }
    };
    let closes = reply
        .headers
        .get("connection")
        .is_some_and(|v| v == "close");
    if kind == LoadKind::Reused && closes {
        *kept = None;
    }
    if reply.status != 200 {
        bail!("status {} {}", reply.status, reply.body);
    }
    Ok(reply.body)
}

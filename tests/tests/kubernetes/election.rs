//! Who writes.

use std::time::Duration;

use anyhow::{Result, ensure};
use isobar_kubernetes::election::{Candidate, Timing};
use isobar_runtime::Scope;
use isobar_tests::{ApiServer, eventually, eventually_within};
use tokio::sync::watch::Receiver;
use tokio::time::Instant;

use crate::definitions::define;
use crate::isobard::Isobard;
use crate::run;

/// About a tenth of the usual.
const FAST: Timing = Timing {
    lease: Duration::from_millis(1500),
    renew: Duration::from_millis(1000),
    retry: Duration::from_millis(200),
};

fn stand(server: &ApiServer, scope: &Scope, name: &str) -> Receiver<bool> {
    let candidate = Candidate::new(server.cluster(), "shop", "isobar-writer", name, FAST);
    let leads = candidate.leads();
    scope.spawn("candidate", candidate.run(scope.lifetime()));
    leads
}

async fn until(leads: &mut Receiver<bool>, want: bool) -> Result<()> {
    tokio::time::timeout(
        Duration::from_secs(20),
        leads.wait_for(|leads| *leads == want),
    )
    .await??;
    Ok(())
}

#[test]
fn one_leads_and_another_takes_over() {
    run(async |server| {
        server.namespace("shop").await?;
        let (one, two) = (Scope::new("one"), Scope::new("two"));
        let mut first = stand(server, &one, "one");
        until(&mut first, true).await?;
        let mut second = stand(server, &two, "two");
        let waited = tokio::time::timeout(FAST.lease * 2, second.wait_for(|leads| *leads));
        ensure!(waited.await.is_err(), "two led at once");
        ensure!(*first.borrow());

        // Given back on a polite end: the other need not wait for the lease to run out.
        one.shutdown(Duration::from_secs(5)).await;
        until(&mut second, true).await?;

        // Not given back by one that dies: the lease has to run out.
        let three = Scope::new("three");
        let mut third = stand(server, &three, "three");
        let died = Instant::now();
        drop(two);
        until(&mut third, true).await?;
        ensure!(died.elapsed() >= FAST.renew, "{:?}", died.elapsed());
        three.shutdown(Duration::from_secs(5)).await;
        Ok(())
    });
}

#[test]
fn a_control_plane_that_is_told_to_end_leaves_the_lead_to_another() {
    run(async |server| {
        server.namespace("istio-system").await?;
        define(server).await?;
        let leads = |one: &Isobard| one.said().lines().any(|line| line.contains("leads=true"));
        let first = Isobard::start(server, "first", &[]).await?;
        eventually("the first leads", async || {
            ensure!(leads(&first), "{}", first.said());
            Ok(())
        })
        .await?;
        let second = Isobard::start(server, "second", &[]).await?;
        first.end().await?;
        // It looks every 2 s; a lease that is not given back lasts for 10 s.
        let limit = Duration::from_secs(5);
        let ((), took) = eventually_within("the second leads", limit, async || {
            ensure!(leads(&second), "{}", second.said());
            Ok(())
        })
        .await?;
        println!("another leads after {took:?}");
        Ok(())
    });
}

#[test]
fn who_cannot_renew_stops_leading() {
    run(async |server| {
        server.namespace("shop").await?;
        let scope = Scope::new("one");
        let mut leads = stand(server, &scope, "one");
        until(&mut leads, true).await?;
        server.pause();
        let away = Instant::now();
        until(&mut leads, false).await?;
        ensure!(away.elapsed() < FAST.lease, "{:?}", away.elapsed());
        server.resume().await?;
        until(&mut leads, true).await?;
        scope.shutdown(Duration::from_secs(5)).await;
        Ok(())
    });
}

//! What a waypoint does about slow, failing and crowded applications, and the failures it makes itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use futures_util::future::join_all;
use isobar_tests::{Answer, Load, LoadKind, eventually};

use super::{PORT, Scene, from, routes, rule, with_status};
use crate::fixture::run;

const TIMEOUT: &str = "  http:
  - match: [{uri: {prefix: /slow}}]
    timeout: 500ms
    route: [{destination: {host: app}}]
  - route: [{destination: {host: app}}]
";

#[test]
fn s069_a_request_that_takes_too_long_gets_504() {
    run(async {
        let routes = routes(TIMEOUT);
        let scene = Scene::start(&["v1"], &[("routes.yaml", &routes)]).await?;
        let app = scene
            .app("v1", |r| match r.path.as_str() {
                "/slow" => Answer::Held,
                _ => Answer::Status(200),
            })
            .await?;
        scene.ready("/", 200).await?;
        let asked = Instant::now();
        let reply = scene.get("/slow").await?;
        let took = asked.elapsed();
        ensure!(reply.status == 504, "{reply:?}");
        ensure!(took >= Duration::from_millis(495), "after {took:?}");
        scene.logged("/slow", " UT ", 1).await?;
        app.stop().await;
        scene.mesh.down()
    });
}

const RETRIES: &str = "  http:
  - match: [{uri: {prefix: /none}}]
    retries: {attempts: 0}
    route: [{destination: {host: app}}]
  - retries: {attempts: 3, retryOn: 5xx, perTryTimeout: 5s}
    route: [{destination: {host: app}}]
";

#[test]
fn s070_a_failure_is_tried_again_elsewhere() {
    run(async {
        let (rule, routes) = (
            rule("{loadBalancer: {simple: ROUND_ROBIN}}"),
            routes(RETRIES),
        );
        let files = [("rule.yaml", &*rule), ("routes.yaml", &*routes)];
        let scene = Scene::start(&["v1", "v2"], &files).await?;
        // Both applications together fail twice for each path, then succeed.
        let failures = Arc::new(std::sync::Mutex::new(std::collections::BTreeMap::new()));
        let tries = Arc::new(std::sync::Mutex::new(Vec::new()));
        let mut apps = Vec::new();
        for version in ["v1", "v2"] {
            let (failures, tries) = (Arc::clone(&failures), Arc::clone(&tries));
            let app = scene
                .app(version, move |r| {
                    if r.path == "/" {
                        return Answer::Status(200);
                    }
                    tries.lock().unwrap().push((r.path.clone(), version));
                    let mut failures = failures.lock().unwrap();
                    let before = failures.entry(r.path.clone()).or_insert(0);
                    *before += 1;
                    Answer::Status(if *before <= 2 { 503 } else { 200 })
                })
                .await?;
            apps.push(app);
        }
        scene.ready("/", 200).await?;
        for number in 0..10 {
            let path = format!("/try/{number}");
            let reply = scene.get(&path).await?;
            ensure!(reply.status == 200, "{reply:?}");
            let tries = tries.lock().unwrap().clone();
            let tries: Vec<_> = tries.iter().filter(|t| t.0 == path).map(|t| t.1).collect();
            ensure!(tries.len() == 3, "{tries:?}");
            ensure!(tries[0] != tries[1], "the same pod twice: {tries:?}");
        }
        let reply = scene.get("/none").await?;
        ensure!(reply.status == 503, "{reply:?}");
        let none = tries
            .lock()
            .unwrap()
            .iter()
            .filter(|t| t.0 == "/none")
            .count();
        ensure!(none == 1, "{none} tries");
        scene.mesh.down()
    });
}

#[test]
fn s071_more_than_a_destination_takes_is_turned_away() {
    run(async {
        let rule = rule(
            "{connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}}",
        );
        let scene = Scene::start(&["v1"], &[("rule.yaml", &rule)]).await?;
        let app = scene
            .app("v1", |r| match r.path.as_str() {
                "/held" => Answer::Held,
                _ => Answer::Status(200),
            })
            .await?;
        scene.ready("/", 200).await?;
        // One under way, one waiting, one too many: whichever comes last is refused at once.
        let refused = AtomicUsize::new(0);
        let one = || async {
            let reply = scene.get("/held").await?;
            if reply.status == 503 {
                refused.fetch_add(1, Ordering::SeqCst);
            }
            anyhow::Ok(reply)
        };
        let releasing = async {
            eventually("one request is refused", async || {
                ensure!(refused.load(Ordering::SeqCst) == 1, "none yet");
                Ok(())
            })
            .await?;
            app.release();
            anyhow::Ok(())
        };
        let three = join_all([one(), one(), one()]);
        let (replies, released) = tokio::join!(three, releasing);
        released?;
        let mut statuses = Vec::new();
        for reply in replies {
            let reply = reply?;
            if reply.status == 503 {
                let told = reply.headers.get("x-envoy-overloaded");
                ensure!(told.is_some(), "{reply:?}");
            }
            statuses.push(reply.status);
        }
        statuses.sort_unstable();
        ensure!(statuses == [200, 200, 503], "{statuses:?}");
        scene.logged("/held", " UO ", 1).await?;
        scene.mesh.down()
    });
}

const FAULTS: &str = "  http:
  - match: [{uri: {prefix: /abort}}]
    fault: {abort: {httpStatus: 503, percentage: {value: 10}}}
    route: [{destination: {host: app}}]
  - match: [{uri: {prefix: /delay}}]
    fault: {delay: {fixedDelay: 20ms, percentage: {value: 50}}}
    route: [{destination: {host: app}}]
  - route: [{destination: {host: app}}]
";

#[test]
fn s074_faults_are_made_without_the_application() {
    run(async {
        let routes = routes(FAULTS);
        let scene = Scene::start(&["v1"], &[("routes.yaml", &routes)]).await?;
        let app = scene.app("v1", |_| Answer::Status(200)).await?;
        scene.ready("/", 200).await?;
        // Three points are 6.3 standard deviations here, 4.6 for the half below.
        let counts = scene.tally("/abort", 4000, 8).await?;
        let aborted = with_status(&counts, 503);
        ensure!((280..=520).contains(&aborted), "{counts:?}");
        let of = |path: &str| app.arrived().iter().filter(|r| r.path == path).count();
        let reached = of("/abort");
        ensure!(reached + aborted == 4000, "{reached} reached, {counts:?}");
        scene.logged("/abort", " FI ", aborted).await?;

        let counts = scene.tally("/delay", 6000, 24).await?;
        ensure!(from(&counts, "v1") == 6000, "{counts:?}");
        let delayed = eventually("every request is in the log", async || {
            let log = scene.mesh.log("shop/waypoint").await?;
            let lines: Vec<_> = log.lines().filter(|l| l.contains(" /delay ")).collect();
            ensure!(lines.len() == 6000, "{} lines", lines.len());
            Ok(lines.iter().filter(|l| l.contains(" DI ")).count())
        })
        .await?;
        ensure!((2820..=3180).contains(&delayed), "{delayed} of 6000");
        scene.mesh.down()
    });
}

#[test]
fn s059_a_failing_endpoint_is_left_out_for_a_while() {
    run(async {
        let rule = rule(
            "{loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: {consecutive5xxErrors: 5, \
             interval: 1s, baseEjectionTime: 2s, maxEjectionPercent: 50}}",
        );
        let routes = routes(
            "  http:\n  - retries: {attempts: 0}\n    route: [{destination: {host: app}}]\n",
        );
        let files = [("rule.yaml", &*rule), ("routes.yaml", &*routes)];
        let scene = Scene::start(&["v1", "v2"], &files).await?;
        let good = scene.app("v2", |_| Answer::Status(200)).await?;
        let failing = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let told = Arc::clone(&failing);
        let bad = scene
            .app("v1", move |_| {
                let status = if told.load(Ordering::SeqCst) {
                    500
                } else {
                    200
                };
                Answer::Status(status)
            })
            .await?;
        scene.ready("/", 200).await?;
        let counts = scene.tally("/even", 100, 1).await?;
        ensure!(from(&counts, "v1") == 50, "turns: {counts:?}");

        failing.store(true, Ordering::SeqCst);
        let failures = AtomicUsize::new(0);
        eventually("v1 is out", async || {
            let before = bad.count();
            for _ in 0..20 {
                let failed = scene.get("/fail").await?.status == 500;
                failures.fetch_add(usize::from(failed), Ordering::SeqCst);
            }
            ensure!(bad.count() == before, "v1 is still asked");
            Ok(())
        })
        .await?;
        let failures = failures.load(Ordering::SeqCst);
        ensure!(failures == 5, "{failures} failures before it was out");
        failing.store(false, Ordering::SeqCst);
        let (asked, others) = (bad.count(), good.count());
        eventually("v1 is back", async || {
            let reply = scene.get("/back").await?;
            ensure!(reply.status == 200, "{reply:?}");
            ensure!(bad.count() > asked, "not asked yet");
            Ok(())
        })
        .await?;
        ensure!(good.count() > others, "v2 did not stand in");
        scene.mesh.down()
    });
}

const MIRROR: &str = "  http:
  - match: [{uri: {prefix: /copy}}]
    route: [{destination: {host: app, subset: v1}}]
    mirror: {host: app, subset: v2}
  - route: [{destination: {host: app, subset: v1}}]
";

#[test]
fn s075_a_shadow_gets_copies_and_changes_nothing() {
    run(async {
        let (rule, routes) = (rule("{}"), routes(MIRROR));
        let files = [("rule.yaml", &*rule), ("routes.yaml", &*routes)];
        let scene = Scene::start(&["v1", "v2"], &files).await?;
        let _app = scene.app("v1", |_| Answer::Status(200)).await?;
        let shadow = scene
            .app("v2", |r| match r.path.as_str() {
                "/copy/held" => Answer::Held,
                _ => Answer::Status(500),
            })
            .await?;
        scene.ready("/", 200).await?;
        for number in 0..20 {
            let reply = scene.get(&format!("/copy/{number}")).await?;
            ensure!(reply.status == 200 && reply.body == "v1", "{reply:?}");
        }
        eventually("all copies have come", async || {
            let arrived = shadow.arrived();
            ensure!(arrived.len() == 20, "{} copies", arrived.len());
            let named = arrived.iter().all(|r| r.field("host").contains("-shadow"));
            ensure!(named, "{arrived:?}");
            Ok(())
        })
        .await?;
        // Neither a shadow that never answers nor one that is gone holds anybody up.
        for _ in 0..5 {
            let reply = scene.get("/copy/held").await?;
            ensure!(reply.status == 200 && reply.body == "v1", "{reply:?}");
        }
        shadow.stop().await;
        for _ in 0..5 {
            let reply = scene.get("/copy/gone").await?;
            ensure!(reply.status == 200 && reply.body == "v1", "{reply:?}");
        }
        scene.mesh.down()
    });
}

/// The policy of Service `app`: ten requests an hour for each caller. The second limit only shows
/// that both are in force.
const LIMIT: &str = "\
apiVersion: isobar.dev/v1
kind: RateLimitPolicy
metadata: {name: app, namespace: shop}
spec:
  targetRefs: [{group: \"\", kind: Service, name: app}]
  limits:
  - name: each-caller
    match: [{uri: {prefix: /limited}}]
    requests: 10
    per: 1h
    by: [{caller: identity}]
  - name: told
    match: [{uri: {prefix: /told}}]
    requests: 100000
    per: 1h
";

#[test]
fn s079_a_caller_gets_what_he_may_and_then_429() {
    run(async {
        let other = crate::fixture::other("shop");
        let files = [("limit.yaml", LIMIT), ("other.yaml", &*other)];
        let scene = Scene::start(&["v1"], &files).await?;
        let app = scene.app("v1", |_| Answer::Status(200)).await?;
        scene.mesh.settled("shop/other", "enrolled").await?;
        scene.ready("/", 200).await?;
        eventually("the limits are in force", async || {
            let reply = scene.get("/told").await?;
            ensure!(reply.headers.contains_key("x-ratelimit-limit"), "{reply:?}");
            Ok(())
        })
        .await?;
        let others = scene.mesh.caller("shop/other").await?;
        for caller in [&scene.caller, &others] {
            let before = app.count();
            let mut statuses = Vec::new();
            for _ in 0..15 {
                let reply = caller
                    .request(scene.to(PORT), "GET", "app", "/limited", &[])
                    .await?;
                if reply.status == 429 {
                    let after = reply.headers.get("retry-after");
                    ensure!(after.is_some(), "{reply:?}");
                }
                statuses.push(reply.status);
            }
            ensure!(statuses[..10].iter().all(|s| *s == 200), "{statuses:?}");
            ensure!(statuses[10..].iter().all(|s| *s == 429), "{statuses:?}");
            ensure!(app.count() - before == 10, "{} reached", app.count());
        }
        scene.logged("/limited", " RL ", 10).await?;
        scene.mesh.down()
    });
}

#[test]
fn s073_an_endpoint_that_goes_is_made_up_for_by_the_default_retries() {
    run(async {
        let rule = rule(
            "{outlierDetection: {consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 1s}}",
        );
        let versions = ["v1", "v2", "v3"];
        let scene = Scene::start(&versions, &[("rule.yaml", &rule)]).await?;
        let mut apps = scene.apps(&versions).await?;
        scene.ready("/", 200).await?;
        let load = |kind, rate| {
            let (caller, to) = (scene.caller.clone(), scene.to(PORT));
            Load::start(caller, to, "app", "/", kind, rate)
        };
        let kept = load(LoadKind::KeepAlive, 200);
        let fresh = load(LoadKind::NewConnections, 50);
        for version in versions.iter().cycle().take(6) {
            apps.remove(0).stop().await;
            kept.progress(60).await?;
            apps.push(scene.app(version, |_| Answer::Status(200)).await?);
            kept.progress(60).await?;
        }
        for load in [kept, fresh] {
            let tally = load.stop().await;
            // What an endpoint had in its hands when it went is not tried again: it may have been done.
            ensure!(tally.bad.len() <= 6, "{:?}", tally.bad);
            let in_hand = |bad: &String| bad.contains("connection termination");
            ensure!(tally.bad.iter().all(in_hand), "{:?}", tally.bad);
        }
        scene.mesh.down()
    });
}

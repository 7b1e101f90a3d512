use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;

use super::rig::{Rig, headers, key, local};
use crate::{Connect, Http2, PoolOptions, Stage, Timeouts, TunnelError, TunnelKey};

async fn hold(connect: Connect) {
    let mut stream = connect.accept(None).unwrap();
    // Ends when the client does.
    let _ = stream.read(&mut [0; 1]).await;
}

fn few_streams(streams_per_tunnel: usize) -> PoolOptions {
    let http2 = Http2 {
        streams_per_tunnel,
        ..Http2::default()
    };
    PoolOptions {
        http2,
        ..PoolOptions::default()
    }
}

#[tokio::test]
async fn a_first_wave_shares_one_tunnel() {
    local(async {
        let rig = Rig::new();
        let address = rig.serve(hold).await;
        let (key, headers) = (key(address), headers());
        let mut opens = Vec::new();
        for _ in 0..20 {
            opens.push(rig.pool.open(&key, &headers));
        }
        let streams = join_all(opens).await;
        assert!(streams.iter().all(Result::is_ok));
        assert_eq!(
            (
                *rig.accepted.borrow(),
                rig.pool.tunnels(),
                rig.pool.streams()
            ),
            (1, 1, 20)
        );
        drop(streams);
        assert_eq!(rig.pool.streams(), 0);
        drop(rig.pool.open(&key, &headers).await.unwrap());
        assert_eq!(*rig.accepted.borrow(), 1, "an idle tunnel is used again");
    })
    .await;
}

/// Runs futures together, in one task.
async fn join_all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(|cx| {
        let mut pending = false;
        for (future, output) in &mut futures {
            if output.is_none() {
                match future.as_mut().poll(cx) {
                    std::task::Poll::Ready(found) => *output = Some(found),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending {
            std::task::Poll::Pending
        } else {
            std::task::Poll::Ready(())
        }
    })
    .await;
    futures
        .into_iter()
        .filter_map(|(_, output)| output)
        .collect()
}

/// The address of a pod that is gone may be another's of the same account at once.
#[tokio::test]
async fn the_next_workload_at_an_address_gets_a_tunnel_of_its_own() {
    local(async {
        let rig = Rig::with(few_streams(4));
        let address = rig.serve(hold).await;
        let headers = headers();
        let gone = key(address);
        let next = TunnelKey {
            workload: "cart-2".into(),
            ..gone.clone()
        };
        let mut held = Vec::new();
        for key in [&gone, &gone, &next] {
            held.push(rig.pool.open(key, &headers).await.unwrap());
        }
        assert_eq!((rig.pool.tunnels(), rig.pool.streams()), (2, 3));
    })
    .await;
}

#[tokio::test]
async fn beyond_the_limit_a_second_tunnel_opens_and_slots_come_back() {
    local(async {
        let rig = Rig::with(few_streams(4));
        let address = rig.serve(hold).await;
        let (key, headers) = (key(address), headers());
        let mut opens = Vec::new();
        for _ in 0..10 {
            opens.push(rig.pool.open(&key, &headers));
        }
        let mut streams: Vec<_> = join_all(opens)
            .await
            .into_iter()
            .map(Result::unwrap)
            .collect();
        assert_eq!((rig.pool.tunnels(), rig.pool.streams()), (3, 10));
        for _ in 0..5 {
            streams.remove(0);
            streams.push(rig.pool.open(&key, &headers).await.unwrap());
        }
        assert_eq!(*rig.accepted.borrow(), 3, "streams that ended made room");
    })
    .await;
}

#[tokio::test]
async fn check_32_beyond_a_hundred_streams_a_second_tunnel_opens() {
    local(async {
        let rig = Rig::new();
        let address = rig.serve(hold).await;
        let (key, headers) = (key(address), headers());
        let mut opens = Vec::new();
        for _ in 0..101 {
            opens.push(rig.pool.open(&key, &headers));
        }
        let streams = join_all(opens).await;
        assert!(streams.iter().all(Result::is_ok));
        assert_eq!((rig.pool.tunnels(), rig.pool.streams()), (2, 101));
    })
    .await;
}

/// A server that allows `streams` at a time and answers each with 200.
async fn serve_at_most(tls: isobar_tls::ServerTls, tcp: tokio::net::TcpStream, streams: u32) {
    let Ok((io, _)) = tls.accept(tcp).await else {
        return;
    };
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(streams);
    let mut connection = builder.handshake::<_, Bytes>(io).await.unwrap();
    let mut held = Vec::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let send = respond
            .send_response(http::Response::new(()), false)
            .unwrap();
        held.push((request.into_body(), send));
    }
}

#[tokio::test]
async fn check_33_the_peers_own_limit_stalls_nobody() {
    local(async {
        let rig = Rig::new();
        let tls = rig.server_tls("cart");
        let address = rig
            .raw(move |tcp| serve_at_most(tls.clone(), tcp, 10))
            .await;
        let (key, headers) = (key(address), headers());
        let mut opens = Vec::new();
        for _ in 0..25 {
            opens.push(rig.pool.open(&key, &headers));
        }
        let streams = join_all(opens).await;
        assert!(
            streams.iter().all(Result::is_ok),
            "nobody stalls at the peer's limit"
        );
        assert_eq!(rig.pool.tunnels(), 3);
    })
    .await;
}

#[tokio::test]
async fn a_failed_dial_is_told_to_all_who_wait() {
    local(async {
        let options = PoolOptions {
            timeouts: super::rig::short(),
            ..PoolOptions::default()
        };
        let rig = Rig::with(options);
        let address = rig
            .raw(|tcp| async move {
                // Never answers.
                let _open = tcp;
                std::future::pending::<()>().await;
            })
            .await;
        let (key, headers) = (key(address), headers());
        let mut opens = Vec::new();
        for _ in 0..50 {
            opens.push(rig.pool.open(&key, &headers));
        }
        let results = tokio::time::timeout(Duration::from_secs(5), join_all(opens))
            .await
            .unwrap();
        assert!(results.iter().all(Result::is_err));
        assert_eq!(*rig.accepted.borrow(), 1, "one dial for all of them");
        assert_eq!(rig.pool.tunnels(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_that_never_settles_fails_for_all_at_once() {
    local(async {
        let limit = Duration::from_millis(200);
        let timeouts = Timeouts {
            settings: limit,
            ..Timeouts::default()
        };
        let rig = Rig::with(PoolOptions {
            timeouts,
            ..PoolOptions::default()
        });
        let tls = rig.server_tls("cart");
        let address = rig
            .raw(move |tcp| {
                let tls = tls.clone();
                async move {
                    let _open = tls.accept(tcp).await;
                    std::future::pending::<()>().await;
                }
            })
            .await;
        let (key, headers) = (key(address), headers());
        let mut opens = Vec::new();
        for _ in 0..20 {
            opens.push(rig.pool.open(&key, &headers));
        }
        let results = tokio::time::timeout(Duration::from_secs(5), join_all(opens))
            .await
            .unwrap();
        for result in results {
            let error = result.unwrap_err();
            assert!(
                matches!(
                    error,
                    TunnelError::Timeout {
                        stage: Stage::Settings,
                        ..
                    }
                ),
                "{error}"
            );
        }
        assert_eq!(*rig.accepted.borrow(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_take_the_dial_with_it() {
    local(async {
        let rig = Rig::new();
        let go = Rc::new(Notify::new());
        let tls = rig.server_tls("cart");
        let gate = Rc::clone(&go);
        let address = rig
            .raw(move |tcp| {
                let (tls, gate) = (tls.clone(), Rc::clone(&gate));
                async move {
                    gate.notified().await;
                    serve_at_most(tls, tcp, 100).await;
                }
            })
            .await;
        let (key, headers) = (key(address), headers());
        let second = rig.pool.open(&key, &headers);
        let accepted = Rc::clone(&rig.accepted);
        tokio::select! {
            _ = rig.pool.open(&key, &headers) => panic!("the server waits"),
            () = rig.until(|_| *accepted.borrow() == 1) => {}
        }
        go.notify_one();
        second.await.unwrap();
        assert_eq!(*rig.accepted.borrow(), 1);
    })
    .await;
}

#[tokio::test]
async fn an_idle_tunnel_closes() {
    local(async {
        let tick = Duration::from_millis(5);
        let timeouts = Timeouts {
            ping_interval: tick,
            idle: 4 * tick,
            ..Timeouts::default()
        };
        let rig = Rig::with(PoolOptions {
            timeouts,
            ..PoolOptions::default()
        });
        let address = rig.serve(hold).await;
        let stream = rig.pool.open(&key(address), &headers()).await.unwrap();
        tokio::time::sleep(8 * tick).await;
        assert_eq!(rig.pool.tunnels(), 1, "it is in use");
        drop(stream);
        rig.until(|rig| rig.pool.tunnels() == 0).await;
        rig.until(|rig| rig.ends.borrow().len() == 1).await;
        assert!(rig.ends.borrow()[0].is_ok(), "it ends politely");
    })
    .await;
}

#[tokio::test]
async fn check_36_a_drained_server_says_goodbye_and_streams_go_on() {
    local(async {
        let rig = Rig::new();
        let address = rig
            .serve(|connect: Connect| async move {
                let stream = connect.accept(None).unwrap();
                let (mut read, mut write) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            })
            .await;
        let (key, headers) = (key(address), headers());
        let mut old = rig.pool.open(&key, &headers).await.unwrap();
        rig.life.drain();
        // The goodbye is noticed at the latest by the next request, which goes to a new tunnel;
        // the drained server greets it with another goodbye, which is told as it is.
        let mut again = 0;
        while *rig.accepted.borrow() < 2 {
            // Either outcome is right while the server drains.
            let _ = rig.pool.open(&key, &headers).await;
            again += 1;
            assert!(again < 100);
        }
        old.write_all(b"still").await.unwrap();
        old.read_exact(&mut [0; 5]).await.unwrap();
        old.shutdown().await.unwrap();
        assert_eq!(old.read(&mut [0; 1]).await.unwrap(), 0);
        drop(old);
        // The other connections ended at once, as clients do that want nothing there.
        let all = *rig.accepted.borrow();
        rig.until(|rig| rig.ends.borrow().len() == all).await;
        assert!(
            rig.ends.borrow().iter().any(Result::is_ok),
            "{:?}",
            rig.ends
        );
    })
    .await;
}

#[tokio::test]
async fn check_36_after_a_goodbye_the_next_request_takes_a_new_tunnel() {
    local(async {
        let rig = Rig::new();
        let tls = rig.server_tls("cart");
        let bye = Rc::new(Notify::new());
        let told = Rc::clone(&bye);
        // Only the first connection says goodbye.
        let first = Rc::new(std::cell::Cell::new(true));
        let address = rig
            .raw(move |tcp| {
                let (tls, told) = (tls.clone(), Rc::clone(&told));
                let is_first = first.replace(false);
                async move {
                    let (io, _) = tls.accept(tcp).await.unwrap();
                    let mut connection = h2::server::handshake(io).await.unwrap();
                    let mut held = Vec::new();
                    loop {
                        tokio::select! {
                            accepted = connection.accept() => {
                                let Some(Ok((request, mut respond))) = accepted else { return };
                                let send = respond
                                    .send_response(http::Response::new(()), false)
                                    .unwrap();
                                held.push((request, send));
                            }
                            () = told.notified(), if is_first => connection.graceful_shutdown(),
                        }
                    }
                }
            })
            .await;
        let (key, headers) = (key(address), headers());
        let held = rig.pool.open(&key, &headers).await.unwrap();
        bye.notify_one();
        for _ in 0..20 {
            rig.pool.open(&key, &headers).await.unwrap();
            if *rig.accepted.borrow() == 2 {
                break;
            }
        }
        assert_eq!(*rig.accepted.borrow(), 2);
        drop(held);
    })
    .await;
}

/// Takes the connection and ends it in order before it has said anything.
async fn goodbye(tls: isobar_tls::ServerTls, tcp: tokio::net::TcpStream) {
    if let Ok((mut io, _)) = tls.accept(tcp).await {
        // It may be gone already.
        let _ = io.shutdown().await;
        let _ = io.read_to_end(&mut Vec::new()).await;
    }
}

#[tokio::test]
async fn who_waits_for_a_tunnel_that_says_goodbye_takes_the_next() {
    local(async {
        for (goodbyes, expect) in [(1, true), (3, true), (usize::MAX, false)] {
            let rig = Rig::new();
            let tls = rig.server_tls("cart");
            let seen = Rc::new(std::cell::Cell::new(0));
            let count = Rc::clone(&seen);
            let address = rig
                .raw(move |tcp| {
                    count.set(count.get() + 1);
                    let (tls, leaves) = (tls.clone(), count.get() <= goodbyes);
                    async move {
                        if leaves {
                            goodbye(tls, tcp).await;
                        } else {
                            serve_at_most(tls, tcp, 200).await;
                        }
                    }
                })
                .await;
            let (key, headers) = (key(address), headers());
            let opens: Vec<_> = (0..50).map(|_| rig.pool.open(&key, &headers)).collect();
            let streams = join_all(opens).await;
            let good = streams.iter().filter(|one| one.is_ok()).count();
            assert_eq!(good == 50, expect, "{goodbyes} goodbyes: {good}");
            if !expect {
                assert_eq!(good, 0);
                let dials = seen.get();
                assert!((4..=16).contains(&dials), "{dials} dials");
            }
        }
    })
    .await;
}

//! The end of a process, alone and with a successor; and the end of its descriptors.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use isobar_runtime::Scope;
use isobar_tls::client_config;
use isobar_types::Identity;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::http;
use crate::process::{Node, Process};
use crate::rig::{LIMIT, Place, VIP};
use crate::stage::{echoes, form, greeted, progress};

/// Time to drain in these tests.
const DRAIN: Duration = Duration::from_secs(3);
/// Replacements in one run; in its long form.
const REPLACEMENTS: [usize; 2] = [3, 20];
/// Connections opened at once when the old process is told to end.
const BURST: usize = 200;
/// Idle pods beside the two; in the long form.
const PODS: [usize; 2] = [40, 198];
/// Between two new connections; in the long form.
const PACE: [Duration; 2] = [Duration::from_millis(8), Duration::from_millis(2)];
/// Clients that find no descriptor; in the long form.
const CROWD: [usize; 2] = [600, 2000];

const SETTINGS: [(&str, &str); 1] = [("CONNECTION_TERMINATION_DEADLINE", "3s")];

/// Connections of every length up to the time to drain, opened without a pause.
struct Load {
    opened: AtomicUsize,
    failed: std::sync::Mutex<Vec<String>>,
}

impl Load {
    /// One connection to the service that lives for `life`, asking all the while.
    async fn one(&self, node: &Node, life: Duration) {
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        let started = Instant::now();
        let exchange = async {
            let mut tcp = node.client.connect(&format!("{VIP}:80")).await?;
            let mut greeting = [0; 9];
            tcp.read_exact(&mut greeting).await?;
            loop {
                tcp.write_all(b"ping").await?;
                let mut echo = [0; 4];
                tcp.read_exact(&mut echo).await?;
                let Some(left) = life.checked_sub(started.elapsed()) else {
                    break;
                };
                tokio::time::sleep(left.min(Duration::from_millis(100))).await;
            }
            tcp.shutdown().await?;
            let mut rest = Vec::new();
            tcp.read_to_end(&mut rest).await
        };
        let failure = match tokio::time::timeout(2 * LIMIT, exchange).await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        let age = started.elapsed();
        let text = format!("{number}: {failure} after {age:?} of {life:?}");
        self.failed.lock().unwrap().push(text);
    }
}

/// Opens connections at a steady pace until dropped.
fn generate(node: &Arc<Node>, load: &Arc<Load>) -> Scope {
    let generator = Scope::new("load");
    let (opener, opened) = (node.clone(), load.clone());
    let longest = u64::try_from((DRAIN - Duration::from_secs(1)).as_millis()).unwrap();
    generator.spawn("open", async move {
        let connections = Scope::new("connections");
        let mut pace = tokio::time::interval(form(PACE));
        for number in 0_u64.. {
            pace.tick().await;
            // Most are short; the rest spread over the time to drain.
            let life = if number % 4 == 0 {
                number * 37 % longest
            } else {
                0
            };
            let (node, load) = (opener.clone(), opened.clone());
            connections.spawn("one", async move {
                load.one(&node, Duration::from_millis(life)).await;
            });
        }
    });
    generator
}

/// Replacements under load: nothing new is refused, nothing that ends in time is cut, and
/// what is cut ends in order.
pub(crate) async fn replace() {
    let node = Arc::new(Node::new().await);
    let load = Arc::new(Load {
        opened: AtomicUsize::new(0),
        failed: std::sync::Mutex::default(),
    });
    let mut current = node
        .serving(Place::new("zt0", "10.0.0.11"), &SETTINGS)
        .await;
    let generator = generate(&node, &load);
    let mut cut = 0;
    let bursts = Scope::new("bursts");
    let replacements = form(REPLACEMENTS);
    for round in 1..=replacements {
        progress("R-01", round, replacements);
        let name: &'static str = format!("zt{round}").leak();
        // Open for longer than the drain: through a tunnel, and in plaintext.
        let mut long = greeted(&node.client, "10.0.0.2:").await;
        let mut plain = greeted(&node.outsider, "10.0.0.4:").await;
        let next = node
            .serving(
                Place::new(name, &format!("10.0.0.{}", 20 + round)),
                &SETTINGS,
            )
            .await;
        for pod in [&node.client, &node.server] {
            assert_eq!(
                migrates(pod),
                "1",
                "queued connections move to the successor"
            );
        }
        let told = Instant::now();
        // Aimed at the moment at which the old listeners close.
        for number in 0..BURST {
            if number == BURST / 4 {
                current.signal(Signal::SIGTERM);
            }
            let (node, load) = (node.clone(), load.clone());
            bursts.spawn("one", async move { load.one(&node, Duration::ZERO).await });
        }
        for tcp in [&mut long, &mut plain] {
            assert_eq!(until_the_end(tcp).await, 0, "an orderly end, no reset");
        }
        let lasted = told.elapsed();
        assert!(lasted >= DRAIN - Duration::from_millis(100), "{lasted:?}");
        assert!(current.ended(LIMIT).await.success());
        let lines = current.lines_with("reason=\"drained\"");
        assert!(lines.len() >= 3, "one line for each side: {lines:?}");
        cut += lines.len();
        current = next;
    }
    let opened = load.opened.load(Ordering::Relaxed);
    // What is still open ends by itself now.
    tokio::time::sleep(DRAIN).await;
    let failed = load.failed.lock().unwrap().clone();
    println!(
        "R-01, R-02, R-03: {opened} connections opened over {replacements} replacements: {} lost; {cut} ends of longer ones told in order",
        failed.len()
    );
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(opened > form([500, 30_000]), "{opened}");
    drop((generator, bursts));
}

fn migrates(pod: &Place) -> String {
    let read = || std::fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req");
    pod.netns.enter(read).unwrap().unwrap().trim().to_owned()
}

/// Killed, the process takes nothing with it but its connections: what is redirected is refused, not
/// let past; its successor takes connections again soon.
pub(crate) async fn crash() {
    let node = Node::new().await;
    let idle = form(PODS);
    let pods: Vec<_> = (0..idle)
        .map(|n| Place::new(format!("p{n}").leak(), &format!("10.0.0.{}", 50 + n)))
        .collect();
    let mut first = node.serving(Place::new("zt", "10.0.0.11"), &[]).await;
    node.outsider.echo(&node.apps, 8080);
    let answer = node.client.ask("10.0.0.4:8080", "past").await;
    assert_eq!(answer, "10.0.0.2:past");
    let mut open = greeted(&node.client, "10.0.0.2:").await;
    first.signal(Signal::SIGKILL);
    first.ended(LIMIT).await;
    let ended = tokio::time::timeout(LIMIT, open.read_u8()).await;
    assert!(ended.unwrap().is_err());
    // Captured, and nobody there: neither plaintext nor anything else gets by.
    for to in ["10.0.0.3:8080", "10.0.0.4:8080"] {
        assert!(node.client.connect(to).await.is_err(), "{to}");
    }
    let started = Instant::now();
    let second = node.start(Place::new("zt2", "10.0.0.12"), &[]);
    let agent = node.agent.accept().await;
    for (number, pod) in pods.iter().enumerate() {
        agent.add(&format!("u{number}"), pod).await.unwrap();
    }
    agent.add("u-client", &node.client).await.unwrap();
    agent.add("u-server", &node.server).await.unwrap();
    agent.snapshot().await;
    let answer = node.client.ask("10.0.0.3:8080", "back").await;
    assert_eq!(answer, "10.0.0.2:back");
    let took = started.elapsed();
    println!(
        "R-22: nothing got past; {} pods served {took:?} after the start",
        idle + 2
    );
    assert!(took < Duration::from_secs(10), "{took:?}");
    drop(second);
}

/// Asks until the peer ends the connection; how long after that it was reset, if so.
async fn until_the_end(tcp: &mut TcpStream) -> usize {
    let mut buffer = [0; 64];
    let read = tokio::time::timeout(2 * LIMIT, tcp.read(&mut buffer)).await;
    read.expect("an end").expect("an orderly end")
}

/// SIGTERM with open streams: GOAWAY, no new connection, open streams go on, the deadline ends them,
/// and the process; without streams the process does not wait.
pub(crate) async fn terminate() {
    let node = Node::new().await;
    let mut process = node.serving(Place::new("zt", "10.0.0.11"), &SETTINGS).await;
    let mut open = greeted(&node.client, "10.0.0.2:").await;
    let mut peer = Peer::connect(&node).await;
    let mut stream = peer.stream("10.0.0.3:8080").await.unwrap();
    let told = Instant::now();
    process.signal(Signal::SIGTERM);
    // GOAWAY: the peer's next request is not taken, while its open stream is answered.
    let refused = async {
        while peer.stream("10.0.0.3:8080").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DRAIN, refused)
        .await
        .expect("a goodbye");
    let reason = peer.goodbye().await;
    assert_eq!(reason, Some(h2::Reason::NO_ERROR));
    // Each worker's listener closes on its own.
    let closed = async { while node.outsider.connect("10.0.0.3:15008").await.is_ok() {} };
    tokio::time::timeout(DRAIN, closed)
        .await
        .expect("no new connection is taken");
    let ready = http::get(&process.place, "10.0.0.11:15021", "/healthz/ready").await;
    assert!(ready.unwrap().body.contains("draining"));
    stream.0.send_data("again".into(), false).unwrap();
    assert_eq!(stream.read(5).await, b"again");
    echoes(&mut open).await;
    assert!(!process.has_ended());
    // The deadline ends what is left, in order.
    assert!(stream.ends_in_order().await);
    assert_eq!(until_the_end(&mut open).await, 0);
    let status = process.ended(LIMIT).await;
    let took = told.elapsed();
    assert!(status.success(), "{status}");
    assert!(
        took >= DRAIN && took < DRAIN + Duration::from_secs(10),
        "{took:?}"
    );
    assert!(!process.lines_with("reason=\"drained\"").is_empty());

    let settings = [("CONNECTION_TERMINATION_DEADLINE", "1h")];
    let mut idle = node
        .serving(Place::new("zt2", "10.0.0.12"), &settings)
        .await;
    let answer = node.client.ask("10.0.0.3:8080", "once").await;
    assert_eq!(answer, "10.0.0.2:once");
    idle.signal(Signal::SIGTERM);
    assert!(idle.ended(LIMIT).await.success());
}

/// A peer's proxy, by hand.
struct Peer {
    send: h2::client::SendRequest<bytes::Bytes>,
    ended: tokio::sync::oneshot::Receiver<Option<h2::Reason>>,
    _scope: Scope,
}

struct Stream(h2::SendStream<bytes::Bytes>, h2::RecvStream);

impl Peer {
    async fn connect(node: &Node) -> Self {
        let identity = |name| Identity::new("cluster.local", "ns", name);
        let ttl = Duration::from_secs(3600);
        let own = node
            .authority
            .issue_workload(&identity("peer"), ttl)
            .unwrap();
        let tls = client_config(&own, &[identity("server")]).unwrap();
        let tcp = node.outsider.connect("10.0.0.3:15008").await.unwrap();
        let (io, _) = tls.connect(tcp).await.unwrap();
        let (send, connection) = h2::client::handshake(io).await.unwrap();
        let (told, ended) = tokio::sync::oneshot::channel();
        let scope = Scope::new("peer");
        scope.spawn("connection", async move {
            let reason = match connection.await {
                Ok(()) => Some(h2::Reason::NO_ERROR),
                Err(error) => error.reason(),
            };
            // The test may have seen enough.
            let _ = told.send(reason);
        });
        Self {
            send,
            ended,
            _scope: scope,
        }
    }

    async fn stream(&mut self, authority: &str) -> Result<Stream, h2::Error> {
        let mut ready = self.send.clone().ready().await?;
        let request = ::http::Request::connect(authority).body(()).unwrap();
        let (response, send) = ready.send_request(request, false)?;
        let response = response.await?;
        assert_eq!(response.status(), 200);
        let mut stream = Stream(send, response.into_body());
        assert_eq!(stream.read(9).await, b"10.0.0.4:");
        Ok(stream)
    }

    /// What a refused request says about the connection's end.
    async fn goodbye(&mut self) -> Option<h2::Reason> {
        match self.send.clone().ready().await {
            Err(error) if error.is_go_away() => error.reason(),
            Err(_) | Ok(_) => match self.ended.try_recv() {
                Ok(reason) => reason,
                // Told to go, and not gone: nothing was wrong.
                Err(_) => Some(h2::Reason::NO_ERROR),
            },
        }
    }
}

impl Stream {
    async fn read(&mut self, len: usize) -> Vec<u8> {
        let mut got = Vec::new();
        while got.len() < len {
            let chunk = tokio::time::timeout(LIMIT, self.1.data()).await.unwrap();
            let chunk = chunk.unwrap().unwrap();
            self.1.flow_control().release_capacity(chunk.len()).unwrap();
            got.extend(chunk);
        }
        got
    }

    async fn ends_in_order(&mut self) -> bool {
        loop {
            let ended = tokio::time::timeout(2 * LIMIT, self.1.data());
            match ended.await.unwrap() {
                None => return true,
                // The frame that ends the stream is empty.
                Some(Ok(chunk)) if chunk.is_empty() => {}
                Some(_) => return false,
            }
        }
    }
}

/// With descriptors used up: open connections, admin and readiness go on, the process neither spins
/// nor floods its log, and takes connections again once some are free.
pub(crate) async fn descriptors() {
    let node = Node::new().await;
    let place = Place::new("zt", "10.0.0.11");
    let wrapper = ["sh", "-c", "ulimit -n 256; exec \"$0\""];
    let settings = [("ZTUNNEL_WORKER_THREADS", "1")];
    let process = node.start_under(place, &settings, &wrapper);
    node.announce().await;
    process.becomes_ready().await;
    let mut open = greeted(&node.client, "10.0.0.2:").await;
    let mut crowd = Vec::new();
    for _ in 0..form(CROWD) {
        // The kernel takes them into its queue. One may meet the port of a connection that the proxy
        // has made from the outsider's address: it then goes without.
        let connect = node.outsider.connect("10.0.0.3:8080");
        if let Ok(Ok(tcp)) = tokio::time::timeout(Duration::from_secs(1), connect).await {
            crowd.push(tcp);
        }
    }
    assert!(crowd.len() > form(CROWD) * 5 / 6, "{}", crowd.len());
    crate::stage::until("it says so", || {
        !process.lines_with("descriptors are used up").is_empty()
    })
    .await;
    let (cpu, since) = (cpu_time(&process), Instant::now());
    for _ in 0..20 {
        echoes(&mut open).await;
        let ready = http::get(&process.place, "10.0.0.11:15021", "/healthz/ready").await;
        assert_eq!(ready.expect("readiness").status, 200);
        let dump = http::get(&process.place, "127.0.0.1:15000", "/logging").await;
        assert_eq!(dump.expect("admin").status, 405);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let elapsed = since.elapsed();
    let share = (cpu_time(&process) - cpu).as_secs_f64() / elapsed.as_secs_f64();
    let lines = process.lines_with("descriptors are used up").len();
    println!(
        "R-11: 256 descriptors, {} clients: {:.1} % of a core, {lines} lines in {elapsed:.1?}",
        crowd.len(),
        share * 100.0
    );
    assert!(share < 0.05, "{share}");
    assert!(
        lines <= 2 + usize::try_from(elapsed.as_secs()).unwrap() * 2,
        "{lines}"
    );
    drop(crowd);
    let free = Instant::now();
    let answer = node.outsider.ask("10.0.0.3:8080", "room").await;
    assert_eq!(answer, "10.0.0.4:room");
    println!("R-11: accepting again after {:?}", free.elapsed());
    echoes(&mut open).await;
}

/// Time on a processor so far.
fn cpu_time(process: &Process) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

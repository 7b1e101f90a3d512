//! Honest callers beside each attack: two windows without it, then one with it, again and again. The
//! server has a processor of its own; callers and attacker share another.
//!
//! Each round is one comparison of an attacked window with a quiet one, and of two quiet ones. The medians
//! of both over the rounds are what the attack costs, and what the machine makes of nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use isobar_tls::{WorkloadCertificate, client_config};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, gettid};
use tokio::net::{TcpSocket, TcpStream};

use super::bed::{Bed, ECHO, HOLD, Mode, NEVER_ANSWER, NEVER_READ, SEND_FOR_EVER, dial, id};
use super::wire::*;

/// Rounds for each attack.
const ROUNDS: usize = 7;
/// Time of a window.
const WINDOW: Duration = Duration::from_secs(1);
/// Honest connections, each of an identity of its own; one after another asks.
const CALLERS: usize = 20;
/// Between two questions.
const PACE: Duration = Duration::from_millis(1);
/// Connections of an attacker at a time.
const WIDTH: usize = 4;
/// An attacker that cannot write for so long opens another connection.
const STUCK: Duration = Duration::from_millis(100);
/// The p99 of honest callers may grow to so much, and by as much more as two quiet windows differ.
const MOST: f64 = 1.5;

/// What an attacker sends on each of its connections after the handshake, if anything.
struct Attack {
    name: &'static str,
    opening: Vec<u8>,
    /// Sent without end, with the number of the wave.
    wave: Option<fn(u32) -> Vec<u8>>,
    /// Each connection comes from an address of its own.
    spread: bool,
}

/// The odd stream identifiers of a wave of `count` requests.
fn ids(wave: u32, count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(move |n| 1 + 2 * (wave * count + n))
}

fn attack(name: &'static str, opening: Vec<u8>, wave: fn(u32) -> Vec<u8>) -> Attack {
    Attack {
        name,
        opening,
        wave: Some(wave),
        spread: false,
    }
}

/// Connections that end with their handshake.
fn handshakes(name: &'static str, spread: bool) -> Attack {
    Attack {
        name,
        opening: Vec::new(),
        wave: None,
        spread,
    }
}

fn attacks() -> Vec<Attack> {
    let unread: Vec<u8> = (0..100)
        .flat_map(|n| connect(1 + 2 * n, SEND_FOR_EVER))
        .collect();
    let mut bomb = connect_block(HOLD);
    bomb.extend([0x40, 1, b'x']);
    let mut value = Vec::new();
    literal(&mut value, Ok(0), &[b'y'; 3000]);
    bomb.extend(&value[1..]);
    bomb.extend([0xbe; 40]);
    vec![
        attack("AT-01 rapid resets", Vec::new(), |wave| {
            let pair = |id| [connect(id, HOLD), reset(id, CANCEL)].concat();
            ids(wave, 50).flat_map(pair).collect()
        }),
        attack("AT-02 resets that we make", Vec::new(), |wave| {
            let pair = |id| [connect(id, NEVER_ANSWER), window_update(id, 0)].concat();
            ids(wave, 50).flat_map(pair).collect()
        }),
        attack(
            "AT-03 continuations",
            frame(HEADERS, 0, 1, &connect_block(HOLD)),
            |_| frame(CONTINUATION, 0, 1, &[0]).repeat(8),
        ),
        attack("AT-04 PING", Vec::new(), |_| {
            frame(PING, 0, 0, &[0; 8]).repeat(500)
        }),
        attack("AT-05 SETTINGS", Vec::new(), |_| {
            frame(SETTINGS, 0, 0, &setting(4, 70_000)).repeat(500)
        }),
        attack(
            "AT-06 header bombs",
            frame(HEADERS, END_HEADERS, 1, &bomb),
            |wave| {
                let block = [&connect_block(HOLD)[..], &[0xbe; 40]].concat();
                let bomb = |id| frame(HEADERS, END_HEADERS, id, &block);
                ids(wave + 1, 10).flat_map(bomb).collect()
            },
        ),
        attack("AT-08 tiny DATA", connect(1, NEVER_READ), |_| {
            frame(DATA, 0, 1, b"x").repeat(500)
        }),
        attack("AT-09 windows of a byte", unread, |_| {
            let byte = |n: u32| window_update(1 + 2 * n, 1);
            (0..100).flat_map(byte).collect()
        }),
        attack("AT-13 PRIORITY", Vec::new(), |_| {
            frame(PRIORITY, 0, 1, &[0, 0, 0, 9, 1]).repeat(500)
        }),
        handshakes("AT-18 handshakes", false),
        handshakes("AT-18 handshakes from everywhere", true),
    ]
}

/// The thread of an attacker, and when it is to attack. In each round it is somebody else, at an address of
/// its own: who was cut off in one round is not merely turned away in the next.
struct Attacker {
    plan: Arc<Plan>,
    thread: std::thread::JoinHandle<()>,
}

struct Plan {
    attack: Attack,
    address: SocketAddr,
    certificates: Vec<Arc<WorkloadCertificate>>,
    sources: Vec<Ipv4Addr>,
    round: AtomicUsize,
    on: AtomicBool,
    over: AtomicBool,
    /// Under way now.
    open: AtomicUsize,
    connections: AtomicU64,
}

impl Attacker {
    /// `row` tells it from those of other attacks.
    fn start(bed: &Bed, attack: Attack, row: u8) -> Self {
        let account = |round| bed.certificate(&format!("attacker{row}-{round}"));
        let rounds = 0..u8::try_from(ROUNDS).unwrap();
        let plan = Arc::new(Plan {
            attack,
            address: bed.address,
            certificates: rounds.clone().map(account).collect(),
            sources: rounds
                .map(|round| Ipv4Addr::new(127, 2, row, 1 + round))
                .collect(),
            round: AtomicUsize::new(0),
            on: AtomicBool::new(false),
            over: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            connections: AtomicU64::new(0),
        });
        let shared = Arc::clone(&plan);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let one = async || {
                while !shared.over.load(Ordering::Relaxed) {
                    if shared.on.load(Ordering::Relaxed) {
                        shared.open.fetch_add(1, Ordering::Relaxed);
                        shared.connection().await;
                        shared.open.fetch_sub(1, Ordering::Relaxed);
                        shared.connections.fetch_add(1, Ordering::Relaxed);
                    } else {
                        tokio::time::sleep(PACE).await;
                    }
                }
            };
            runtime.block_on(async {
                let all: [_; WIDTH] = std::array::from_fn(|_| one());
                let [a, b, c, d] = all;
                tokio::join!(a, b, c, d)
            });
        });
        Self { plan, thread }
    }

    fn begin(&self, round: usize) {
        self.plan.round.store(round, Ordering::Relaxed);
        self.plan.on.store(true, Ordering::Relaxed);
    }

    /// Until nothing of it is under way.
    async fn end(&self) {
        self.plan.on.store(false, Ordering::Relaxed);
        while self.plan.open.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(PACE).await;
        }
        // What the server still has of it.
        tokio::time::sleep(STUCK).await;
    }

    /// Says how many connections there were.
    fn join(self) -> u64 {
        self.plan.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.plan.connections.load(Ordering::Relaxed)
    }
}

impl Plan {
    /// One connection: until it is closed or stuck, or the window ends.
    async fn connection(&self) {
        let round = self.round.load(Ordering::Relaxed);
        let config = client_config(&self.certificates[round], &[id("cart")]).unwrap();
        let tcp = if self.attack.spread {
            dial(self.address).await
        } else {
            from(self.sources[round], self.address).await
        };
        let Ok(tcp) = tcp else {
            return;
        };
        let Ok((io, _)) = config.connect(tcp).await else {
            return;
        };
        let Some(wave) = self.attack.wave else {
            return;
        };
        let mut raw = Raw::new(io);
        let hello = frame(SETTINGS, 0, 0, &[]);
        let mut next = [PREFACE, &hello, &self.attack.opening].concat();
        for number in 0.. {
            if raw.push(&next, STUCK).await < next.len() || !self.on.load(Ordering::Relaxed) {
                return;
            }
            next = wave(number);
        }
    }
}

async fn from(source: Ipv4Addr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    socket.connect(to).await
}

/// Asks in turn on all connections for one window; p99 and median of the answers' times.
async fn window(callers: &mut [Raw]) -> [Duration; 2] {
    let mut times = Vec::new();
    let mut due = Instant::now();
    let until = due + WINDOW;
    for caller in (0..callers.len()).cycle() {
        due += PACE;
        // What is late because the one before it was counts from when it was due.
        let mut start = due;
        if let Some(rest) = due.checked_duration_since(Instant::now()) {
            // Not the runtime's sleep, which knows only whole milliseconds. Nothing else runs on it.
            std::thread::sleep(rest);
            start = Instant::now();
        }
        if start > until {
            break;
        }
        let caller = &mut callers[caller];
        assert!(caller.send(&frame(DATA, 0, 1, b"x")).await);
        answer(caller).await;
        times.push(start.elapsed());
    }
    times.sort();
    [99, 50].map(|percent| times[times.len() * percent / 100])
}

fn median<T: PartialOrd + Copy>(mut all: Vec<T>) -> T {
    all.sort_by(|a, b| a.partial_cmp(b).unwrap());
    all[all.len() / 2]
}

/// Waits for the echo; answers the server's PINGs meanwhile, or it would take the caller for dead.
pub(super) async fn answer(caller: &mut Raw) {
    loop {
        let frame = caller.next().await.expect("an honest caller was cut off");
        match frame.kind {
            DATA => return,
            PING if frame.flags & ACK == 0 => {
                let pong = super::wire::frame(PING, ACK, 0, &frame.payload);
                assert!(caller.send(&pong).await);
            }
            RST_STREAM | GOAWAY => panic!("an honest caller was turned away: {frame:?}"),
            _ => {}
        }
    }
}

/// Server and others on processors of their own, where there are two.
fn separate(bed: &Bed) {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return;
    }
    for thread in bed.threads() {
        keep(thread, 0);
        first(thread);
    }
    // The calling thread. It goes before the attacker's, which inherits the processor but not that: what
    // the server does is measured, not who of the two gets to ask.
    keep(0, 1);
    first(gettid().as_raw());
}

/// `thread` goes before all others on its processor: whatever else runs on the machine would be most of
/// a 99th percentile, and more of it where the processor has no time to spare. Only root may have it so.
fn first(thread: i32) {
    let _ = Command::new("chrt")
        .args(["--reset-on-fork", "--fifo", "--pid", "1"])
        .arg(thread.to_string())
        .status();
}

fn keep(thread: i32, processor: usize) {
    let mut own = CpuSet::new();
    own.set(processor).unwrap();
    sched_setaffinity(Pid::from_raw(thread), &own).unwrap();
}

#[tokio::test]
async fn at_honest_callers_beside_each_attack() {
    if form([true, false]) {
        // It takes four minutes of a machine that does nothing else.
        return;
    }
    let mut bed = Bed::new(Mode::Usual).await;
    separate(&bed);
    let mut callers = Vec::new();
    for n in 0..CALLERS {
        let mut raw = bed.raw_of(&format!("honest{n}")).await;
        assert!(raw.send(&connect(1, ECHO)).await);
        callers.push(raw);
    }
    let mut slower = Vec::new();
    for (row, attack) in (0..).zip(attacks()) {
        let name = attack.name;
        // Inherits the processor of this thread.
        let attacker = Attacker::start(&bed, attack, row);
        let (mut quiet, mut slow, mut usual) = (Vec::new(), Vec::new(), Vec::new());
        let (mut ratios, mut noise) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let [first, _] = window(&mut callers).await;
            let [second, typical] = window(&mut callers).await;
            attacker.begin(round);
            let [beside, half] = window(&mut callers).await;
            attacker.end().await;
            bed.forget();
            quiet.push(second);
            slow.push(beside);
            usual.push([typical, half]);
            noise.push(first.as_secs_f64() / second.as_secs_f64());
            ratios.push(beside.as_secs_f64() / second.as_secs_f64());
        }
        let connections = attacker.join();
        assert!(connections > 0, "{name}: nobody attacked");
        let (ratio, noise) = (median(ratios), median(noise));
        let most = MOST * noise.max(1.0 / noise);
        let mark = if ratio > most { " (slower)" } else { "" };
        let (quiet, slow, [typical, half]) = (median(quiet), median(slow), median(usual));
        println!(
            "{name}: p99 {ratio:.2} times that without, of quiet windows {noise:.2}; {slow:?} for {quiet:?}, median {half:?} for {typical:?}; {connections} connections{mark}"
        );
        if ratio > most {
            slower.push(name);
        }
    }
    assert!(slower.is_empty(), "{slower:?}");
    drop(callers);
    bed.all_back().await;
}

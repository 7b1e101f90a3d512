//! Honest callers beside each attack: a window without it, then one with it, again and again. The
//! server has a processor of its own; callers and attacker share another.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use isobar_tls::{WorkloadCertificate, client_config};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, gettid};
use tokio::net::TcpStream;

use super::bed::{Bed, ECHO, HOLD, Mode, NEVER_ANSWER, NEVER_READ, SEND_FOR_EVER, dial, id};
use super::wire::*;

/// Pairs of windows for each attack.
const PAIRS: u32 = 7;
/// Time of a window.
const WINDOW: Duration = Duration::from_millis(500);
/// Honest connections, each of an identity of its own; one after another asks.
const CALLERS: usize = 16;
/// Between two questions.
const PACE: Duration = Duration::from_millis(2);
/// Connections of an attacker at a time.
const WIDTH: usize = 4;
/// An attacker that cannot write for so long opens another connection.
const STUCK: Duration = Duration::from_millis(100);
/// The p99 of honest callers may grow to so much: beyond it the row is marked. A failure it is only
/// together with the next figure.
const MOST: f64 = 1.5;
/// Longer than what the machine itself makes of one answer in a hundred now and then. Without an attack
/// that is 0.2 to 1 ms.
const LONG: Duration = Duration::from_millis(2);

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

/// The thread of an attacker, and when it is to attack.
struct Attacker {
    on: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
    connections: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Attacker {
    fn start(bed: &Bed, attack: Attack) -> Self {
        let (address, certificate) = (bed.address, bed.certificate("attacker"));
        let (on, over) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let connections = Arc::<AtomicU64>::default();
        let (active, ended, count) = (on.clone(), over.clone(), connections.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let one = async || {
                while !ended.load(Ordering::Relaxed) {
                    if active.load(Ordering::Relaxed) {
                        connection(address, &certificate, &attack, &active).await;
                        count.fetch_add(1, Ordering::Relaxed);
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
        Self {
            on,
            over,
            connections,
            thread,
        }
    }
}

/// One connection of an attacker: until it is closed or stuck, or the window ends.
async fn connection(
    address: std::net::SocketAddr,
    certificate: &WorkloadCertificate,
    attack: &Attack,
    active: &AtomicBool,
) {
    let config = client_config(certificate, &[id("cart")]).unwrap();
    let tcp = if attack.spread {
        dial(address).await
    } else {
        TcpStream::connect(address).await
    };
    let Ok(tcp) = tcp else {
        return;
    };
    let Ok((io, _)) = config.connect(tcp).await else {
        return;
    };
    let Some(wave) = attack.wave else {
        return;
    };
    let mut raw = Raw::new(io);
    let hello = frame(SETTINGS, 0, 0, &[]);
    let mut next = [PREFACE, &hello, &attack.opening].concat();
    for number in 0.. {
        if raw.push(&next, STUCK).await < next.len() || !active.load(Ordering::Relaxed) {
            return;
        }
        next = wave(number);
    }
}

/// Asks in turn on all connections for one window; the answers' times.
async fn window(callers: &mut [Raw]) -> Vec<Duration> {
    let mut times = Vec::new();
    let until = Instant::now() + WINDOW;
    let mut due = Instant::now();
    for caller in (0..callers.len()).cycle() {
        due += PACE;
        // What is late because the one before it was counts from when it was due.
        let late = Instant::now() > due;
        if !late {
            tokio::time::sleep_until(due.into()).await;
        }
        let start = if late { due } else { Instant::now() };
        if start > until {
            break;
        }
        let caller = &mut callers[caller];
        assert!(caller.send(&frame(DATA, 0, 1, b"x")).await);
        answer(caller).await;
        times.push(start.elapsed());
    }
    times
}

fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() * 99 / 100]
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
        // It takes a minute and a half of a machine that does nothing else.
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
    for attack in attacks() {
        let name = attack.name;
        // Inherits the processor of this thread.
        let attacker = Attacker::start(&bed, attack);
        let (mut quiet, mut beside) = (Vec::new(), Vec::new());
        for _ in 0..PAIRS {
            quiet.extend(window(&mut callers).await);
            attacker.on.store(true, Ordering::Relaxed);
            beside.extend(window(&mut callers).await);
            attacker.on.store(false, Ordering::Relaxed);
            tokio::time::sleep(STUCK).await;
            bed.forget();
        }
        attacker.over.store(true, Ordering::Relaxed);
        attacker.thread.join().unwrap();
        let connections = attacker.connections.load(Ordering::Relaxed);
        assert!(connections > 0, "{name}: nobody attacked");
        // Of all windows together: in one of half a second it is the third slowest answer.
        let (quiet, beside) = (p99(quiet), p99(beside));
        let ratio = beside.as_secs_f64() / quiet.as_secs_f64();
        let mark = if ratio > MOST { " (slower)" } else { "" };
        println!(
            "{name}: p99 {beside:?} beside {connections} connections, {quiet:?} without: {ratio:.2}{mark}"
        );
        if ratio > MOST && beside > LONG {
            slower.push(name);
        }
    }
    assert!(slower.is_empty(), "{slower:?}");
    drop(callers);
    bed.all_back().await;
}

use std::str::FromStr as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name as DnsName, RData, Record, RecordType};
use tokio::net::UdpSocket;

use super::turns::OF_ONE;
use super::*;

type Zone = Arc<Mutex<HashMap<&'static str, (Vec<IpAddr>, u32)>>>;

/// A name server on loopback; counts what it is asked.
async fn server(zone: Zone) -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = socket.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let serve = async move {
        let mut buffer = [0; 512];
        loop {
            let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            let query = Message::from_vec(&buffer[..len]).unwrap();
            let answer = answer(&query, &zone).to_vec().unwrap();
            // A guess comes first.
            let mut guess = answer.clone();
            guess[0] ^= 1;
            socket.send_to(&guess, from).await.unwrap();
            socket.send_to(&answer, from).await.unwrap();
        }
    };
    drop(tokio::task::spawn_local(serve));
    (at, asked)
}

fn answer(query: &Message, zone: &Zone) -> Message {
    let question = &query.queries[0];
    let name = question.name().to_ascii();
    let zone = zone.lock().unwrap();
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.add_queries(query.queries.iter().cloned());
    let Some((addresses, ttl)) = zone.get(name.trim_end_matches('.')) else {
        message.metadata.response_code = ResponseCode::NXDomain;
        return message;
    };
    let alias = DnsName::from_str("real.example.").unwrap();
    let data = RData::CNAME(CNAME(alias.clone()));
    message.add_answer(Record::from_rdata(question.name().clone(), *ttl, data));
    for ip in addresses {
        let data = match (ip, question.query_type()) {
            (IpAddr::V4(ip), RecordType::A) => RData::A(A(*ip)),
            (IpAddr::V6(ip), RecordType::AAAA) => RData::AAAA(AAAA(*ip)),
            _ => continue,
        };
        message.add_answer(Record::from_rdata(alias.clone(), 3600, data));
    }
    message
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

fn ips(all: &[&str]) -> Vec<IpAddr> {
    all.iter().map(|ip| ip.parse().unwrap()).collect()
}

#[test]
fn an_answer_counts_for_its_ttl_and_the_last_good_one_stays() {
    run(async {
        let zone: Zone = Arc::default();
        let put = |all: &[&str]| zone.lock().unwrap().insert("a.example", (ips(all), 30));
        put(&["192.0.2.2", "192.0.2.1"]);
        let (at, asked) = server(Arc::clone(&zone)).await;
        let names = Names::new(vec![at], false);
        assert_eq!(names.now("a.example"), Known::Not);
        // Many ask at once, the server hears one.
        let many = (0..5).map(|_| names.ask("a.example"));
        for addresses in futures_util::future::join_all(many).await {
            assert_eq!(*addresses, *ips(&["192.0.2.1", "192.0.2.2"]));
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        let first: Arc<[IpAddr]> = ips(&["192.0.2.1", "192.0.2.2"]).into();
        assert_eq!(names.now("a.example"), Known::Fresh(first.clone()));

        put(&["192.0.2.3"]);
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(29)).await;
        assert_eq!(names.now("a.example"), Known::Fresh(first.clone()));
        // The alias's TTL is the shorter one.
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(names.now("a.example"), Known::Due(first));
        tokio::time::resume();
        let second: Arc<[IpAddr]> = ips(&["192.0.2.3"]).into();
        assert_eq!(names.ask("a.example").await, second);

        // Gone: what was known stays, and is not asked for at every call.
        zone.lock().unwrap().clear();
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(3000)).await;
        assert_eq!(names.now("a.example"), Known::Not);
        tokio::time::resume();
        assert_eq!(names.ask("a.example").await, second);
        assert_eq!(names.now("a.example"), Known::Fresh(second));
        let before = asked.load(Ordering::SeqCst);
        names.ask("a.example").await;
        assert_eq!(asked.load(Ordering::SeqCst), before);
    });
}

#[test]
fn the_other_family_counts_where_there_is_none_of_the_own() {
    run(async {
        let zone: Zone = Arc::default();
        let all = (ips(&["2001:db8::1"]), 0);
        zone.lock().unwrap().insert("six.example", all);
        let both = (ips(&["2001:db8::2", "192.0.2.9"]), 0);
        zone.lock().unwrap().insert("both.example", both);
        let (at, _) = server(zone).await;
        for (v6, name, expect) in [
            (false, "six.example", "2001:db8::1"),
            (false, "both.example", "192.0.2.9"),
            (true, "both.example", "2001:db8::2"),
        ] {
            let names = Names::new(vec![at], v6);
            assert_eq!(*names.ask(name).await, *ips(&[expect]), "{name} {v6}");
        }
        let none = Names::new(vec![at], false).ask("none.example").await;
        assert!(none.is_empty());
        assert!(Names::new(Vec::new(), false).ask("a").await.is_empty());
    });
}

#[test]
fn hosts_that_callers_name_are_not_on_this_machine() {
    let names = Names::new(Vec::new(), false);
    for (ip, taken) in [
        ("127.0.0.1", false),
        ("::1", false),
        ("::ffff:127.0.0.1", false),
        ("169.254.169.254", false),
        ("fe80::1", false),
        ("0.0.0.0", false),
        ("::", false),
        ("224.0.0.1", false),
        ("255.255.255.255", false),
        ("100.100.100.200", false),
        ("168.63.129.16", false),
        ("fd00:ec2::254", false),
        ("64:ff9b::7f00:1", false),
        ("64:ff9b::a9fe:a9fe", false),
        ("64:ff9b::c000:201", true),
        ("192.0.2.1", true),
        ("10.0.0.1", true),
        ("2001:db8::1", true),
    ] {
        assert_eq!(names.takes(ip.parse().unwrap()), taken, "{ip}");
    }
}

#[test]
fn of_names_of_callers_so_many_are_asked_for_at_once() {
    run(async {
        // It never answers.
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let names = Names::new(vec![silent.local_addr().unwrap()], false);
        tokio::time::pause();
        let ask = |name: String, caller: &'static str| {
            let names = names.of_callers().clone();
            tokio::task::spawn_local(async move { names.ask_for(&name, caller).await })
        };
        let callers = ["a", "b", "c", "d"];
        let mut asking: Vec<_> = (0..OF_ONE)
            .map(|n| ask(format!("{n}.example"), callers[0]))
            .collect();
        let turns = async || {
            // Not all of them have their first turn at once.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        };
        turns().await;
        let of_callers = names.of_callers();
        let began = Instant::now();
        assert!(!of_callers.undertake("more.example", "a"));
        assert!(of_callers.ask_for("more.example", "a").await.is_empty());
        assert!(of_callers.entry("more.example").is_none());
        // Others have their turns still, until there are enough in all.
        for (at, caller) in callers.into_iter().enumerate().skip(1) {
            asking.extend((0..OF_ONE).map(|n| ask(format!("{at}-{n}.example"), caller)));
        }
        turns().await;
        assert!(!of_callers.undertake("more.example", "e"));
        assert!(of_callers.ask_for("more.example", "e").await.is_empty());
        assert_eq!(began, Instant::now(), "it waited");
        assert!(of_callers.entry("more.example").is_none());
        assert!(names.undertake("own.example", "e"));
        for one in asking {
            assert!(one.await.unwrap().is_empty());
        }
        assert!(of_callers.undertake("more.example", "a"));
    });
}

#[test]
fn names_of_callers_take_no_place_of_others() {
    run(async {
        let zone: Zone = Arc::default();
        let put = |name| {
            zone.lock()
                .unwrap()
                .insert(name, (ips(&["192.0.2.1"]), 300))
        };
        put("own.example");
        put("called.example");
        let (at, _) = server(Arc::clone(&zone)).await;
        let names = Names::new(vec![at], false);
        names.ask("own.example").await;
        let callers = names.of_callers();
        callers.ask("called.example").await;
        for n in 0..MOST + 10 {
            drop(callers.make(&format!("{n}.example")));
            let entry = callers.entry(&format!("{n}.example")).unwrap();
            *entry.answer.lock().unwrap() = Some(Answer {
                addresses: Arc::default(),
                until: Instant::now() + AGAIN,
                used: Instant::now(),
            });
        }
        assert_eq!(callers.0.known.lock().unwrap().len(), MOST);
        let known: Arc<[IpAddr]> = ips(&["192.0.2.1"]).into();
        assert_eq!(names.now("own.example"), Known::Fresh(known.clone()));
        // Names without an address go first.
        assert_eq!(callers.now("called.example"), Known::Fresh(known));
    });
}

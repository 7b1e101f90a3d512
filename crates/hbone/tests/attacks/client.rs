//! The other process as a client, for what tunnels cost there.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use isobar_hbone::{
    Authority as Target, Certificates, ConnectHeaders, Pool, PoolOptions, TunnelKey,
};
use isobar_tls::WorkloadCertificate;
use isobar_tls::ca::Authority;
use isobar_types::Identity;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::bed::id;
use super::wire::HOLD;

struct One(Arc<WorkloadCertificate>);

type Fetched = Result<Arc<WorkloadCertificate>, String>;

impl Certificates for One {
    fn fetch<'a>(&'a self, _: &'a Identity) -> Pin<Box<dyn Future<Output = Fetched> + 'a>> {
        Box::pin(async { Ok(Arc::clone(&self.0)) })
    }
}

/// Opens what its input asks for, and holds all of it until the input closes.
pub(crate) async fn hold(folder: &Path) {
    let authority = Authority::load_or_create(folder).unwrap();
    let day = Duration::from_secs(24 * 3600);
    let certificate = authority.issue_workload(&id("front"), day).unwrap();
    let pool = Pool::new(PoolOptions::default(), Rc::new(One(Arc::new(certificate))));
    let target = SocketAddr::from((Ipv4Addr::new(10, 0, 0, 1), HOLD));
    let headers = ConnectHeaders::new(Target::Address(target));
    let mut held = Vec::new();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let words: Vec<_> = line.split(' ').collect();
        for n in 0..words[1].parse::<u8>().unwrap() {
            let key = TunnelKey {
                source: id("front"),
                expect: vec![id("cart")],
                to: words[0].parse().unwrap(),
                // Callers of different addresses never share a tunnel.
                from: IpAddr::from([10, 1, 1, n]),
                workload: "".into(),
            };
            for _ in 0..words[2].parse::<usize>().unwrap() {
                held.push(Box::pin(pool.open(&key, &headers)).await.unwrap());
            }
        }
        println!("\n@held {} {}", pool.tunnels(), held.len());
    }
}

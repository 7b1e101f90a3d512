use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use isobar_runtime::{LifetimeOwner, LocalScope};
use isobar_tls::ca::Authority;
use isobar_tls::{ServerTls, WorkloadCertificate, server_config};
use isobar_types::Identity;
use tokio::net::{TcpListener, TcpStream};

use crate::{
    Authority as Target, Certificates, Connect, ConnectHeaders, Pool, PoolOptions, ServeError,
    ServerOptions, Timeouts, TunnelKey, serve,
};

const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) fn id(account: &str) -> Identity {
    Identity::new("cluster.local", "shop", account)
}

/// Runs a test body where `!Send` tasks can be spawned.
pub(super) async fn local<F: Future>(body: F) -> F::Output {
    tokio::task::LocalSet::new().run_until(Box::pin(body)).await
}

/// Certificates that are at hand.
struct AtHand(Authority);

impl Certificates for AtHand {
    fn fetch<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> Pin<Box<dyn Future<Output = Result<Arc<WorkloadCertificate>, String>> + 'a>> {
        Box::pin(async move {
            if &*identity.service_account == "nobody" {
                return Err("the authority is away".to_owned());
            }
            self.0
                .issue_workload(identity, DAY)
                .map(Arc::new)
                .map_err(|e| e.to_string())
        })
    }
}

/// One mesh in a test: an authority, a pool, a server.
pub(super) struct Rig {
    pub(super) pool: Pool,
    pub(super) scope: LocalScope,
    pub(super) life: LifetimeOwner,
    /// How each connection ended that a server of this rig has served.
    pub(super) ends: Rc<RefCell<Vec<Result<(), ServeError>>>>,
    pub(super) accepted: Rc<RefCell<usize>>,
    certificates: Rc<AtHand>,
}

pub(super) fn short() -> Timeouts {
    let limit = Duration::from_millis(200);
    Timeouts {
        tls: limit,
        settings: limit,
        connect: limit,
        ..Timeouts::default()
    }
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(PoolOptions::default())
    }

    pub(super) fn with(options: PoolOptions) -> Self {
        let certificates = Rc::new(AtHand(Authority::generate("test").unwrap()));
        Self {
            pool: Pool::new(options, Rc::clone(&certificates) as Rc<dyn Certificates>),
            scope: LocalScope::new("rig"),
            life: LifetimeOwner::new(),
            ends: Rc::default(),
            accepted: Rc::default(),
            certificates,
        }
    }

    pub(super) fn server_tls(&self, account: &str) -> ServerTls {
        server_config(
            &self
                .certificates
                .0
                .issue_workload(&id(account), DAY)
                .unwrap(),
        )
    }

    /// A certificate that ends soon.
    pub(super) fn brief(&self, account: &str, ttl: Duration) -> WorkloadCertificate {
        let authority = &self.certificates.0;
        authority.issue_workload(&id(account), ttl).unwrap()
    }

    pub(super) async fn certificate(&self, account: &str) -> Arc<WorkloadCertificate> {
        self.certificates.fetch(&id(account)).await.unwrap()
    }

    pub(super) async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// Serves every connection with `handle`.
    pub(super) async fn serve<H, F>(&self, handle: H) -> SocketAddr
    where
        H: Fn(Connect) -> F + Clone + 'static,
        F: Future<Output = ()> + 'static,
    {
        let (listener, address) = Self::listener().await;
        let tls = self.server_tls("cart");
        let life = self.life.lifetime();
        let (ends, accepted) = (Rc::clone(&self.ends), Rc::clone(&self.accepted));
        self.scope.spawn("server", async move {
            let connections = LocalScope::new("connections");
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                *accepted.borrow_mut() += 1;
                let (tls, life, handle) = (tls.clone(), life.clone(), handle.clone());
                let ends = Rc::clone(&ends);
                connections.spawn("connection", async move {
                    let end = serve(tcp, &tls, &ServerOptions::default(), &life, handle).await;
                    ends.borrow_mut().push(end);
                });
            }
        });
        address
    }

    /// Accepts TCP connections and hands them to `handle`, without any TLS.
    pub(super) async fn raw<H, F>(&self, handle: H) -> SocketAddr
    where
        H: Fn(TcpStream) -> F + 'static,
        F: Future<Output = ()> + 'static,
    {
        let (listener, address) = Self::listener().await;
        let accepted = Rc::clone(&self.accepted);
        self.scope.spawn("raw server", async move {
            let connections = LocalScope::new("connections");
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                *accepted.borrow_mut() += 1;
                connections.spawn("connection", handle(tcp));
            }
        });
        address
    }

    /// Waits until `done` is true; every step lets other tasks run first.
    pub(super) async fn until(&self, mut done: impl FnMut(&Self) -> bool) {
        let poll = async {
            while !done(self) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), poll)
            .await
            .expect("it never came true");
    }
}

pub(super) fn key(to: SocketAddr) -> TunnelKey {
    TunnelKey {
        source: id("front"),
        expect: vec![id("cart")],
        to,
        from: IpAddr::V4(Ipv4Addr::LOCALHOST),
        workload: "cart-1".into(),
    }
}

pub(super) fn headers() -> ConnectHeaders {
    ConnectHeaders::new(Target::parse("10.0.0.1:80").unwrap())
}

//! Plain traffic from outside the mesh.

use isobar_waypoint::{listener, plaintext};
use tokio::net::TcpStream;

use crate::bed::*;

/// Opens a port for the service.
fn door(bed: &Bed, authority: &str) -> std::net::SocketAddr {
    let listener = listener::listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
    let at = listener.local_addr().unwrap();
    let accept = plaintext::accept(bed.worker.clone(), listener, authority.to_owned());
    bed.scope.spawn("plain", accept);
    at
}

#[test]
fn plain_callers_have_an_address_and_no_identity() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let at = door(&bed, &format!("{HOST}:8080"));
        let tcp = TcpStream::connect(at).await.unwrap();
        let mut client = bed.client_over(tcp).await;
        assert_eq!(client.get("/").await.body, "a / 0");
        let metrics = bed.registry.encode();
        assert!(
            metrics.contains("source_principal=\"unknown\""),
            "{metrics}"
        );
        assert!(metrics.contains("source_workload=\"unknown\""), "{metrics}");
        // Whoever is at that address of the mesh is not the caller: it has shown no certificate.
        bed.tables(|t| t.upsert_policy(&allow_account("client")));
        assert_eq!(client.get("/").await.status, 403);
        let mut known = bed.client("client").await;
        assert_eq!(known.get("/").await.status, 200);
    });
}

#[test]
fn a_plain_port_is_for_what_the_waypoint_serves() {
    run(|bed| async move {
        bed.backend("a", "v1").await;
        let mut clients = Vec::new();
        for authority in [format!("{HOST}:8080"), format!("{HOST}:81")] {
            let tcp = TcpStream::connect(door(&bed, &authority)).await.unwrap();
            clients.push(bed.client_over(tcp).await);
        }
        let get = || http::Request::get("/").header("host", "svc");
        let get = || get().body(http_body_util::Full::default()).unwrap();
        assert_eq!(clients[0].send(get()).await.unwrap().status, 200);
        assert!(clients[1].send(get()).await.is_err(), "no such port");
        bed.unbind();
        assert_eq!(clients[0].send(get()).await.unwrap().status, 503);
    });
}

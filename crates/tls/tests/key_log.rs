//! `SSLKEYLOGFILE` is read once per process, so the handshake runs in a process of its own.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests; a failure is the test's"
)]

use std::process::Command;
use std::time::Duration;

use isobar_tls::ca::Authority;
use isobar_tls::{client_config, server_config};
use isobar_types::Identity;

#[test]
fn session_secrets_go_where_the_variable_says() {
    if std::env::var_os("SSLKEYLOGFILE").is_some() {
        return handshake();
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "session_secrets_go_where_the_variable_says"])
        .env("SSLKEYLOGFILE", &path)
        .status()
        .unwrap();
    assert!(status.success());
    let log = std::fs::read_to_string(path).unwrap();
    for label in ["CLIENT_TRAFFIC_SECRET_0 ", "SERVER_TRAFFIC_SECRET_0 "] {
        assert!(log.contains(label), "{log}");
    }
}

fn handshake() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let authority = Authority::generate("test").unwrap();
        let cart = Identity::new("cluster.local", "shop", "cart");
        let certificate = authority
            .issue_workload(&cart, Duration::from_secs(60))
            .unwrap();
        let (a, b) = tokio::io::duplex(65536);
        let client = client_config(&certificate, &[cart]).unwrap();
        let server = server_config(&certificate);
        let (client, server) = tokio::join!(client.connect(a), server.accept(b));
        client.unwrap();
        server.unwrap();
    });
}

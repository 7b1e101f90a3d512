//! Gateways whose certificates an API server keeps.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isobar_lab::Target;
use isobar_tests::yaml::{documents, namespace};
use isobar_tests::{Caller, Mesh, eventually, scratch};
use isobar_tls::ca::Authority;
use isobar_tls::outwards::{self, Within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::fixture::{ambient, run, server};

const FRONT: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front, namespace: edge}
spec:
  gatewayClassName: isobar
  listeners:
  - name: own
    port: 443
    protocol: HTTPS
    hostname: own.example
    tls: {certificateRefs: [{name: page}]}
    allowedRoutes: {namespaces: {from: All}}
  - name: foreign
    port: 443
    protocol: HTTPS
    hostname: foreign.example
    tls: {certificateRefs: [{name: page, namespace: keys}]}
    allowedRoutes: {namespaces: {from: All}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: page, namespace: shop}
spec:
  parentRefs: [{name: front, namespace: edge}]
  rules: [{backendRefs: [{name: server, port: 80}]}]
";

const GRANT: &str = "\
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: front, namespace: keys}
spec:
  from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: edge}]
  to: [{group: '', kind: Secret, name: page}]
";

/// Somebody beside a gateway, who trusts one authority.
struct Edge {
    mesh: Mesh,
    beside: Caller,
    front: SocketAddr,
    files: tempfile::TempDir,
}

impl Edge {
    async fn start() -> Result<Self> {
        let home = documents([namespace("edge", &[]), namespace("keys", &[])]);
        let shop = documents([ambient("shop"), server("shop", &[])]);
        let files = [
            ("edge.yaml", &*home),
            ("shop.yaml", &shop),
            ("front.yaml", FRONT),
        ];
        let mesh = Mesh::start(&files).await?;
        mesh.settled("shop/server", "enrolled").await?;
        let front = eventually("the Gateway has a Service", async || {
            mesh.service_ip("edge/front").await
        })
        .await?;
        let node = mesh.lab().netns(Target::Node("node-1".into())).await?;
        Ok(Self {
            beside: Caller::inside(node)?,
            front: (front, 443).into(),
            files: scratch()?,
            mesh,
        })
    }

    /// `kubectl create secret tls` for a new certificate.
    fn secret(&self, authority: &Authority, place: &str, more: &[&str]) -> Result<String> {
        let names = ["own.example".to_owned(), "foreign.example".to_owned()];
        let issued = authority.issue_server(&names, Duration::from_secs(86_400))?;
        let write = |name: &str, text: &str| -> Result<PathBuf> {
            let path = self.files.path().join(name);
            std::fs::write(&path, text)?;
            Ok(path)
        };
        let (chain, key) = (issued.chain.clone(), issued.key.to_pem()?);
        let shown = |path: &Path| path.display().to_string();
        let (chain, key) = (write("tls.crt", &chain)?, write("tls.key", &key)?);
        let (chain, key) = (shown(&chain), shown(&key));
        let create = ["create", "secret", "tls", "page", "-n", place];
        let named = ["--cert", &chain, "--key", &key];
        self.mesh.kubectl(&[&create[..], &named, more].concat())
    }

    fn replace(&self, authority: &Authority, place: &str) -> Result<()> {
        let text = self.secret(authority, place, &["--dry-run=client", "-o", "yaml"])?;
        let path = self.files.path().join("secret.yaml");
        std::fs::write(&path, text)?;
        let path = path.display().to_string();
        self.mesh.kubectl(&["replace", "-f", &path]).map(drop)
    }

    /// One request over TLS, the certificate verified by `authority`.
    async fn asks(&self, authority: &Authority, host: &str) -> Result<()> {
        let none: [&str; 0] = [];
        let client = outwards::client_config(authority.roots(), &none, None)?;
        let tcp = self.beside.connect(self.front).await?;
        let opened = client.connect(tcp, host, Within::Http1);
        let mut stream = tokio::time::timeout(Duration::from_secs(5), opened).await??;
        let request = format!("GET /ip HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut reply = Vec::new();
        let read = stream.read_to_end(&mut reply);
        // Whoever closes without a last word has still answered.
        let _ = tokio::time::timeout(Duration::from_secs(5), read).await?;
        let reply = String::from_utf8_lossy(&reply);
        ensure!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        Ok(())
    }

    async fn is_there(&self, authority: &Authority, host: &str) -> Result<()> {
        let what = format!("{host} is there");
        eventually(&what, async || self.asks(authority, host).await).await
    }

    /// Waits until a listener's ResolvedRefs has this reason.
    async fn resolved(&self, listener: &str, reason: &str) -> Result<()> {
        let path = format!(
            "jsonpath={{.status.listeners[?(@.name==\"{listener}\")]\
             .conditions[?(@.type==\"ResolvedRefs\")].reason}}"
        );
        let get = ["get", "gateways.gateway.networking.k8s.io", "front"];
        let args = [&get[..], &["-n", "edge", "-o", &path]].concat();
        eventually(&format!("{listener} says {reason}"), async || {
            let found = self.mesh.kubectl(&args)?;
            ensure!(found.trim() == reason, "{found:?}");
            Ok(())
        })
        .await
    }
}

#[test]
fn a_gateway_shows_certificates_of_an_api_server() {
    run(async {
        let (old, new) = (Authority::generate("old")?, Authority::generate("new")?);
        let edge = Edge::start().await?;
        edge.resolved("own", "InvalidCertificateRef").await?;
        edge.secret(&old, "edge", &[])?;
        edge.is_there(&old, "own.example").await?;
        edge.resolved("own", "ResolvedRefs").await?;

        edge.replace(&new, "edge")?;
        let mut is_new = false;
        for _ in 0..400 {
            // One of the two, never a failed handshake.
            is_new = edge.asks(&new, "own.example").await.is_ok();
            if is_new {
                break;
            }
            if edge.asks(&old, "own.example").await.is_err() {
                let neither = edge.asks(&new, "own.example").await;
                neither.context("neither is shown")?;
            }
        }
        ensure!(is_new, "the new certificate was never shown");

        edge.secret(&new, "keys", &[])?;
        edge.resolved("foreign", "RefNotPermitted").await?;
        ensure!(edge.asks(&new, "foreign.example").await.is_err());
        edge.mesh.apply("grant.yaml", GRANT)?;
        edge.is_there(&new, "foreign.example").await?;
        edge.mesh.delete("grant.yaml")?;
        edge.resolved("foreign", "RefNotPermitted").await?;
        eventually("foreign.example is closed", async || {
            ensure!(edge.asks(&new, "foreign.example").await.is_err());
            Ok(())
        })
        .await?;

        edge.asks(&new, "own.example").await?;
        edge.mesh
            .kubectl(&["delete", "secret", "page", "-n", "edge"])?;
        edge.resolved("own", "InvalidCertificateRef").await?;
        eventually("own.example is closed", async || {
            ensure!(edge.asks(&new, "own.example").await.is_err());
            Ok(())
        })
        .await?;
        edge.mesh.down()
    });
}

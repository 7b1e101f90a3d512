//! Who gets whose certificate and configuration: asked over the wire, as a pod would ask.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use isobar_lab::{PodStatus, Target};
use isobar_net::NetNs;
use isobar_proto::type_url;
use isobar_runtime::Scope;
use isobar_tests::{Mesh, eventually};
use isobar_tls::token::{BoundObject, Claims, Issuer, KubernetesClaims};
use isobar_xds::{
    AdsClient, AdsConfig, CaClient, CaConfig, CertError, Rejected, Requester, ResourceHandler,
    Roots, Store, Token,
};

use crate::fixture::{ambient, client, run, server, shop};

const CONTROL_PLANE: &str = "https://172.30.0.1:15012";
/// Issuer of the lab's own tokens.
const LAB: &str = "https://isobar.lab";

/// Asks from inside a network namespace: on a thread that stays there, with a runtime of its own.
fn inside<T: Send>(netns: &NetNs, ask: impl AsyncFnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            netns.enter(|| -> Result<T> {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                Ok(runtime.block_on(ask()))
            })
        });
        asking.join().expect("the asking thread does not panic")?
    })
}

/// Someone who holds a token and asks for certificates.
struct Asker {
    netns: NetNs,
    roots: Roots,
}

impl Asker {
    async fn of(mesh: &Mesh, at: Target) -> Result<Self> {
        Ok(Self {
            netns: NetNs::from_fd(mesh.lab().netns(at).await?)?,
            roots: Roots::File(mesh.lab().paths().root_cert()),
        })
    }

    /// Asks as Istio's proxies do: `impersonate` names the wanted identity in the request.
    fn certificate(
        &self,
        token: Option<String>,
        wanted: &str,
        impersonate: bool,
    ) -> Result<Result<String, CertError>> {
        let ca = CaClient::new(CaConfig {
            address: CONTROL_PLANE.to_owned(),
            roots: self.roots.clone(),
            alt_hostname: None,
            token: token.map(Token::Literal),
            cluster_id: "Kubernetes".to_owned(),
            headers: Vec::new(),
            ttl: Duration::from_secs(3600),
            impersonate,
        });
        let wanted = wanted.parse()?;
        inside(&self.netns, async || {
            let got = ca.request(&wanted).await?;
            Ok(got.identity().to_string())
        })
    }
}

/// Signs tokens that the lab's control plane trusts: its key is added to the lab's keys.
fn issuer(mesh: &Mesh) -> Result<Issuer> {
    let issuer = Issuer::generate(LAB)?;
    let path = mesh.lab().paths().token_keys();
    let mut keys: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
    let own: serde_json::Value = serde_json::from_str(&issuer.jwks())?;
    let list = keys["keys"].as_array_mut().context("no list of keys")?;
    list.extend(own["keys"].as_array().context("no key")?.iter().cloned());
    let draft = path.with_extension("new");
    std::fs::write(&draft, keys.to_string())?;
    std::fs::rename(draft, path)?;
    Ok(issuer)
}

fn claims(pod: &PodStatus, account: &str) -> Result<Claims> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let now = i64::try_from(now.as_secs())?;
    let object = |name: &str, uid: &str| BoundObject {
        name: name.to_owned(),
        uid: uid.to_owned(),
    };
    Ok(Claims {
        iss: LAB.to_owned(),
        sub: format!("system:serviceaccount:{}:{account}", pod.namespace),
        aud: vec!["istio-ca".to_owned()],
        exp: now + 600,
        iat: Some(now),
        nbf: Some(now),
        kubernetes: Some(KubernetesClaims {
            namespace: pod.namespace.clone(),
            serviceaccount: object(account, ""),
            pod: Some(object(&pod.name, &pod.uid)),
            node: Some(object(&pod.node, "")),
        }),
    })
}

fn spiffe(account: &str) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/{account}")
}

/// A refusal that says why; anything else is an error.
fn refused(what: &str, answer: Result<String, CertError>, why: &str) -> Result<()> {
    match answer {
        Err(error @ CertError::Refused { .. }) => {
            let text = error.to_string();
            ensure!(text.contains(why), "{what}: {text:?} does not say {why:?}");
            Ok(())
        }
        other => anyhow::bail!("{what}: not refused: {other:?}"),
    }
}

#[test]
fn certificates_go_only_to_whom_they_name() {
    run(async {
        let mesh = shop(&[]).await?.mesh;
        let issuer = issuer(&mesh)?;
        let pod = mesh.pod("shop/client").await?;
        let asker = Asker::of(&mesh, Target::pod("shop/client")).await?;
        let good = claims(&pod, "client")?;
        let sign = |claims: &Claims| issuer.issue(claims).map(Some).map_err(anyhow::Error::from);
        let own = spiffe("client");

        // The same way of asking succeeds for its own, so the refusals below are about the rest.
        let answer = asker.certificate(sign(&good)?, &own, false)?;
        ensure!(answer.as_ref().is_ok_and(|id| *id == own), "{answer:?}");

        let answer = asker.certificate(sign(&good)?, &spiffe("server"), true)?;
        refused("another account's", answer, "only ask for its own")?;
        let foreign = "spiffe://elsewhere.example/ns/shop/sa/client";
        let answer = asker.certificate(sign(&good)?, foreign, true)?;
        refused("a foreign trust domain's", answer, "trust domain")?;

        let mut wrong = good.clone();
        wrong.aud = vec!["kubernetes".to_owned()];
        refused(
            "a token for others",
            asker.certificate(sign(&wrong)?, &own, false)?,
            r#"not for ["istio-ca"]"#,
        )?;
        let mut old = good.clone();
        (old.exp, old.iat, old.nbf) = (good.exp - 3600, None, None);
        refused(
            "an old token",
            asker.certificate(sign(&old)?, &own, false)?,
            "expired",
        )?;
        refused("no token", asker.certificate(None, &own, false)?, "token")?;
        let stranger = Issuer::generate(LAB)?.issue(&good)?;
        refused(
            "a key of its own",
            asker.certificate(Some(stranger), &own, false)?,
            "",
        )?;
        let mut dead = good;
        if let Some(pod) = dead.kubernetes.as_mut().and_then(|k| k.pod.as_mut()) {
            pod.uid = "another".to_owned();
        }
        refused(
            "a pod that was",
            asker.certificate(sign(&dead)?, &own, false)?,
            "UID",
        )?;
        mesh.down()
    });
}

#[test]
fn a_node_proxy_asks_only_for_pods_of_its_node() {
    run(async {
        let mesh = shop(&[]).await?.mesh;
        let token = mesh.lab().paths().node("node-1").join("token");
        let token = || std::fs::read_to_string(&token).map(Some);
        let asker = Asker::of(&mesh, Target::node("node-1")).await?;
        let own = spiffe("client");
        let answer = asker.certificate(token()?, &own, true)?;
        ensure!(answer.as_ref().is_ok_and(|id| *id == own), "{answer:?}");
        // The server runs on node-2.
        let answer = asker.certificate(token()?, &spiffe("server"), true)?;
        refused("another node's", answer, "no pod of account")?;
        mesh.down()
    });
}

/// Names of the resources of one type that were sent.
#[derive(Clone)]
struct Names(&'static str, Arc<Mutex<BTreeSet<String>>>);

impl ResourceHandler for Names {
    fn type_url(&self) -> &'static str {
        self.0
    }

    fn apply(
        &mut self,
        updates: &[isobar_proto::envoy::service::discovery::v3::Resource],
        _removed: &[String],
    ) -> Vec<Rejected> {
        let mut names = self.1.lock().expect("no test panics with it");
        names.extend(updates.iter().map(|resource| resource.name.clone()));
        Vec::new()
    }
}

fn route(name: &str) -> String {
    format!(
        "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: route-of-{name}
  namespace: shop
spec:
  hosts: [{name}]
  http:
  - route:
    - destination:
        host: {name}
"
    )
}

#[test]
fn a_waypoint_gets_its_own_configuration_whatever_it_says_it_is() {
    run(async {
        let mesh = Mesh::start(&[
            ("ns.yaml", &ambient("shop")),
            ("client.yaml", &client("shop")),
            ("server.yaml", &server("shop", &[])),
            ("vs-client.yaml", &route("client")),
            ("vs-server.yaml", &route("server")),
            (
                "service.yaml",
                &isobar_tests::yaml::service("shop", "client", "client", 80, false),
            ),
        ])
        .await?;
        for account in ["client", "server"] {
            let args = ["waypoint", "apply", "-n", "shop", "--service-account"];
            mesh.isobar(&[&args[..], &[account, "--wait"]].concat())
                .await?;
        }
        eventually("each waypoint has its own route only", async || {
            for (own, other) in [("client", "server"), ("server", "client")] {
                let names = discover(&mesh, own, other).await?;
                ensure!(
                    names.iter().any(|n| n.contains(&format!("route-of-{own}"))),
                    "{own} lacks its own route: {names:?}"
                );
                ensure!(
                    !names
                        .iter()
                        .any(|n| n.contains(&format!("route-of-{other}"))),
                    "{own} got {other}'s route by saying it was {other}: {names:?}"
                );
            }
            Ok(())
        })
        .await?;
        mesh.down()
    });
}

/// What the waypoint of account `own` is sent when it says that it is the one of `other`.
async fn discover(mesh: &Mesh, own: &str, other: &str) -> Result<BTreeSet<String>> {
    let waypoint = |account: &str| format!("shop/{account}-waypoint");
    let pod = mesh.pod(&waypoint(own)).await?;
    let claimed = mesh.pod(&waypoint(other)).await?;
    let ip = claimed.ip.context("the waypoint has no address")?;
    let netns = mesh
        .lab()
        .netns(Target::pod(format!("{}/{}", pod.namespace, pod.name)))
        .await?;
    let metadata = serde_json::json!({
        "NAMESPACE": "shop",
        "SERVICE_ACCOUNT": format!("{other}-waypoint"),
        "GATEWAY_NAME": format!("{other}-waypoint"),
    });
    let config = AdsConfig {
        address: CONTROL_PLANE.to_owned(),
        roots: Roots::File(mesh.lab().paths().root_cert()),
        alt_hostname: None,
        token: Some(Token::File(
            mesh.lab().paths().waypoint(&pod.uid).join("token"),
        )),
        cluster_id: "Kubernetes".to_owned(),
        headers: Vec::new(),
        node_id: format!("waypoint~{ip}~{}.shop~shop.svc.cluster.local", claimed.name),
        metadata: metadata.as_object().cloned().unwrap_or_default(),
    };
    let names = Names(type_url::VIRTUAL_SERVICE, Arc::default());
    let handler = names.clone();
    inside(&NetNs::from_fd(netns)?, async move || {
        let client = AdsClient::new(config, Store::default(), vec![Box::new(handler)]);
        let status = client.status();
        let scope = Scope::new("discovery");
        scope.spawn("discovery", client.run(scope.lifetime()));
        let synced = tokio::time::timeout(Duration::from_secs(10), status.synced()).await;
        scope.shutdown(Duration::from_secs(1)).await;
        synced.context("no answer from the control plane")
    })??;
    let names = names.1.lock().expect("no test panics with it");
    Ok(names.clone())
}

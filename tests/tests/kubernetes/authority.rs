//! What the certificate authority needs of an API server.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isobar_kubernetes::election::{Candidate, Timing};
use isobar_kubernetes::{
    KubernetesSource, ReviewError, RootMaps, SecretError, SourceOptions, TokenReviews,
    await_authority, keep_authority, refresh_authority,
};
use isobar_objects::{Kind, ObjectSource as _};
use isobar_runtime::Scope;
use isobar_tests::eventually;
use isobar_tls::ca::Authority;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use tokio::sync::watch;

use crate::run;

#[test]
fn a_bound_token_tells_account_and_pod() {
    run(async |server| {
        server.namespace("shop").await?;
        server
            .apply(
                "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop},
                  spec: {nodeName: node-1, containers: [{name: c, image: i}]}}",
            )
            .await?;
        let uid = [
            "get",
            "pod",
            "a",
            "-n",
            "shop",
            "-o",
            "jsonpath={.metadata.uid}",
        ];
        let uid = server.kubectl(&uid).await?;
        let token = async |audience: &str| {
            let bound = ["create", "token", "default", "-n", "shop"];
            let to = ["--bound-object-kind=Pod", "--bound-object-name=a"];
            let audience = format!("--audience={audience}");
            let args = [&bound[..], &to[..], &[&*audience]].concat();
            Ok::<_, anyhow::Error>(server.kubectl(&args).await?.trim().to_owned())
        };
        let reviews = TokenReviews::new(server.cluster(), "istio-ca");
        let good = token("istio-ca").await?;
        let reviewed = reviews.review(&good).await?;
        ensure!((&*reviewed.namespace, &*reviewed.account) == ("shop", "default"));
        let pod = reviewed.pod.context("bound to a pod")?;
        ensure!((&*pod.name, &*pod.uid) == ("a", &*uid));

        for wrong in [&*token("somebody-else").await?, "nonsense", "admin-token"] {
            let refused = reviews.review(wrong).await;
            ensure!(
                matches!(refused, Err(ReviewError::Invalid(_))),
                "{refused:?}"
            );
        }
        // A token dies with its pod.
        server
            .kubectl(&["delete", "pod", "a", "-n", "shop", "--force"])
            .await?;
        eventually("the token is refused", async || {
            ensure!(reviews.review(&good).await.is_err());
            Ok(())
        })
        .await?;
        server.pause();
        let refused = reviews.review(&good).await;
        ensure!(
            matches!(refused, Err(ReviewError::Unavailable(_))),
            "{refused:?}"
        );
        Ok(())
    });
}

async fn kept(cluster: &isobar_kubernetes::Cluster, dir: &Path) -> Result<String> {
    let make = || -> Result<()> { Ok(Authority::load_or_create(dir).map(drop)?) };
    keep_authority(cluster, "istio-system", dir, make).await?;
    Ok(Authority::load_or_create(dir)?.roots().to_owned())
}

#[test]
fn a_secret_that_is_gone_is_put_back_and_makes_no_second_root() {
    run(async |server| {
        server.namespace("istio-system").await?;
        let (one, two) = (server.folder().join("one"), server.folder().join("two"));
        let cluster = server.cluster();
        let roots = kept(&cluster, &one).await?;
        let scope = Scope::new("test");
        let timing = Timing {
            lease: Duration::from_secs(4),
            renew: Duration::from_secs(3),
            retry: Duration::from_millis(500),
        };
        let leader = Candidate::new(server.cluster(), "istio-system", "lead", "one", timing);
        let mut leads = leader.leads();
        scope.spawn("leader", leader.run(scope.lifetime()));
        leads.wait_for(|leads| *leads).await?;
        let gone = ["delete", "secret", "istio-ca-secret", "-n", "istio-system"];
        server.kubectl(&gone).await?;

        // Who starts now waits for it while somebody leads, and says so in the end.
        let place = ("istio-system", "lead");
        let short = Duration::from_millis(100);
        let said = await_authority(&cluster, place, timing, short).await;
        ensure!(
            matches!(said, Err(SecretError::Withheld { .. })),
            "{said:?}"
        );
        let no = || anyhow::Ok(false);
        refresh_authority(&cluster, "istio-system", &one, false, no).await?;
        let said = await_authority(&cluster, place, timing, short).await;
        ensure!(said.is_err(), "only the leader puts it back");
        refresh_authority(&cluster, "istio-system", &one, true, no).await?;
        await_authority(&cluster, place, timing, Duration::ZERO).await?;
        ensure!(kept(&cluster, &two).await? == roots);

        // Where nobody leads nobody is waited for.
        server.kubectl(&gone).await?;
        scope.shutdown(Duration::from_secs(5)).await;
        await_authority(&cluster, place, timing, Duration::ZERO).await?;

        // Half a secret leaves the files as they are.
        let half = "{apiVersion: v1, kind: Secret, metadata: {name: istio-ca-secret, namespace: istio-system},
            stringData: {ca-key.pem: another}}";
        server.apply(half).await?;
        let key = std::fs::read(one.join("ca-key.pem"))?;
        let said = refresh_authority(&cluster, "istio-system", &one, true, no).await;
        ensure!(said.is_err_and(|error| error.to_string().contains("ca-cert.pem")));
        ensure!(std::fs::read(one.join("ca-key.pem"))? == key);
        Ok(())
    });
}

#[test]
fn replicas_share_one_authority_and_its_roots_reach_every_namespace() {
    run(async |server| {
        for name in ["istio-system", "shop"] {
            server.namespace(name).await?;
        }
        let dirs = ["one", "two"].map(|name| server.folder().join(name));
        let cluster = server.cluster();
        // Both start at once: one of them makes it, the other takes it.
        let (one, two) = tokio::join!(kept(&cluster, &dirs[0]), kept(&cluster, &dirs[1]));
        let roots = one?;
        ensure!(roots == two?);

        let scope = Scope::new("test");
        let options = SourceOptions {
            kinds: vec![Kind::Namespace],
            ..SourceOptions::default()
        };
        let source = KubernetesSource::new(server.cluster(), options);
        let objects = source.subscribe();
        scope.spawn("source", Box::new(source).run(scope.lifetime()));
        let (lead, leads) = watch::channel(false);
        let (trust, trusted) = watch::channel(Arc::from(&*roots));
        let maps = RootMaps::new(server.cluster(), "isobar", trusted);
        scope.spawn("maps", maps.run(objects.clone(), leads, scope.lifetime()));
        let map = async |namespace: &str| {
            let maps: Api<ConfigMap> = Api::namespaced(server.cluster().client(), namespace);
            let map = maps.get_opt("istio-ca-root-cert").await?;
            Ok::<_, anyhow::Error>(map.and_then(|map| map.data?.remove("root-cert.pem")))
        };
        objects.clone().wait_for(|objects| objects.synced).await?;
        ensure!(map("shop").await?.is_none(), "only the leader writes");
        lead.send_replace(true);
        server.namespace("later").await?;
        for namespace in ["shop", "later"] {
            eventually("the roots are there", async || {
                ensure!(map(namespace).await? == Some(roots.clone()));
                Ok(())
            })
            .await?;
        }
        ensure!(map("kube-public").await?.is_none());

        // Others take force everywhere.
        trust.send_replace(Arc::from("others"));
        for namespace in ["shop", "later"] {
            eventually("the new roots are there", async || {
                ensure!(map(namespace).await?.as_deref() == Some("others"));
                Ok(())
            })
            .await?;
        }
        scope.shutdown(Duration::from_secs(1)).await;
        Ok(())
    });
}

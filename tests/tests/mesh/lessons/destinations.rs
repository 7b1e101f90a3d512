//! Which of a destination's endpoints: by hash, by distance.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use isobar_tests::eventually;

use super::{PORT, Scene, from, rule};
use crate::fixture::run;

/// A node in a zone.
fn node(number: u8, zone: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: node-{number}, labels: \
         {{topology.kubernetes.io/region: r, topology.kubernetes.io/zone: {zone}}}}}\n"
    )
}

#[test]
fn s059_a_key_keeps_its_endpoint() {
    run(async {
        let rule = rule("{loadBalancer: {consistentHash: {httpHeaderName: x-user}}}");
        let versions = ["v1", "v2", "v3"];
        let scene = Scene::start(&versions, &[("rule.yaml", &rule)]).await?;
        let _apps = scene.apps(&versions).await?;
        scene.ready("/", 200).await?;
        let of = async |user: &str| -> Result<String> {
            let sent = [("x-user", user)];
            let to = scene.to(PORT);
            let reply = scene.caller.request(to, "GET", "app", "/", &sent).await?;
            ensure!(reply.status == 200, "{reply:?}");
            Ok(reply.body)
        };
        let mut used = BTreeSet::new();
        for user in 0..20 {
            let user = format!("user-{user}");
            let first = of(&user).await?;
            for _ in 0..5 {
                let again = of(&user).await?;
                ensure!(again == first, "{user}: {first}, then {again}");
            }
            used.insert(first);
        }
        ensure!(used.len() == 3, "twenty keys at {used:?}");
        scene.mesh.down()
    });
}

#[test]
fn s076_traffic_stays_in_the_callers_zone_while_it_can() {
    run(async {
        // The client is on node-1 with v2; v1 and v3 are on node-2, and so may be the waypoint.
        let rule = rule(
            "{loadBalancer: {localityLbSetting: {enabled: true}}, \
             outlierDetection: {consecutive5xxErrors: 5, interval: 1s, baseEjectionTime: 30s}}",
        );
        let (near, far) = (node(1, "near"), node(2, "far"));
        let files = [
            ("rule.yaml", &*rule),
            ("near.yaml", &*near),
            ("far.yaml", &*far),
        ];
        let scene = Scene::start(&["v1", "v2", "v3"], &files).await?;
        let _apps = scene.apps(&["v1", "v2", "v3"]).await?;
        eventually("only the own zone is asked", async || {
            let counts = scene.tally("/near", 60, 2).await?;
            ensure!(from(&counts, "v2") == 60, "{counts:?}");
            Ok(())
        })
        .await?;
        let gone = super::pod("v2", 1).replace("version: v2}", "version: v2, gone: \"true\"}");
        let gone = gone.replace("app: app,", "app: other,");
        let text = std::fs::read_to_string(scene.mesh.objects().join("app.yaml"))?;
        let with = super::pod("v2", 1);
        ensure!(text.contains(with.trim_end()), "no pod v2 in {text}");
        scene
            .mesh
            .apply("app.yaml", &text.replace(with.trim_end(), gone.trim_end()))?;
        eventually("the other zone stands in", async || {
            let counts = scene.tally("/far", 60, 2).await?;
            let (v1, v3) = (from(&counts, "v1"), from(&counts, "v3"));
            ensure!(v1 + v3 == 60 && v1 > 0 && v3 > 0, "{counts:?}");
            Ok(())
        })
        .await?;
        scene.mesh.apply("app.yaml", &text)?;
        eventually("the own zone is preferred again", async || {
            let counts = scene.tally("/back", 60, 2).await?;
            ensure!(from(&counts, "v2") == 60, "{counts:?}");
            Ok(())
        })
        .await?;
        scene.mesh.down()
    });
}

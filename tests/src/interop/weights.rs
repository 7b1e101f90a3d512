//! A Service whose endpoints run as two accounts, each with a waypoint: calls are shared by weight.

use anyhow::Result;

use super::call::calls_read;
use super::matrix::{Matrix, Scenario};
use super::policy::authorization;
use super::scenery::{AMBIENT, HTTPBIN, NODES, PORTS, ROUTES, Scene};
use crate::yaml::{Pod, documents, namespace, service, service_account};

const NS: &str = "weights";

const WEIGHTS: Scenario = Scenario {
    id: "weights_share",
    what: "a Service with three endpoints of one account and one of another, a waypoint each: 200 calls are shared 3 to 1; the second waypoint answers 403 so that it is known by it",
};

const CALLS: usize = 200;
/// Of 200 calls 150 ± 6.1 go to the first; this is five times that far, a false alarm in a million.
const NEAR: std::ops::RangeInclusive<usize> = 120..=180;
const REFUSE: &str = "  targetRefs:\n  - group: gateway.networking.k8s.io\n    kind: Gateway\n    name: b-waypoint\n  action: DENY\n  rules:\n  - {}\n";

/// A Service of this name with four pods on `node`.
fn shared(name: &str, node: &str) -> String {
    let mut all = vec![service(NS, name, name, PORTS[0], false)];
    for (number, account) in [(1, "a"), (2, "a"), (3, "a"), (4, "b")] {
        let pod = Pod {
            namespace: NS,
            name: &format!("{name}-{number}"),
            account,
            node,
            image: HTTPBIN,
            port: Some(PORTS[0]),
            labels: &[("group", name)],
        };
        all.push(pod.yaml());
    }
    documents(all).replace(
        &format!("  selector:\n    app: {name}\n"),
        &format!("  selector:\n    group: {name}\n"),
    )
}

pub(super) async fn all(scene: &Scene, matrix: &mut Matrix) -> Result<()> {
    let mut objects = vec![
        namespace(NS, &[AMBIENT]),
        service_account(NS, "a", &[]),
        service_account(NS, "b", &[]),
    ];
    let servers = NODES.map(|(word, node)| (format!("{word}-server"), node));
    objects.extend(servers.iter().map(|(name, node)| shared(name, node)));
    scene.mesh.apply("weights.yaml", &documents(objects))?;
    for (name, _) in &servers {
        for number in 1..=4 {
            let pod = format!("{NS}/{name}-{number}");
            scene.mesh.settled(&pod, "enrolled").await?;
        }
    }
    for account in ["a", "b"] {
        let apply = ["waypoint", "apply", "-n", NS, "--service-account", account];
        let all = [&apply[..], &["--for", "all", "--wait"]].concat();
        scene.mesh.isobar(&all).await?;
    }
    scene
        .mesh
        .apply("weights-policy.yaml", &authorization(NS, "mark", REFUSE))?;
    for route in &ROUTES {
        let client = scene.client(route).await?;
        let to = scene.by_service(NS, route, PORTS[0]).await?;
        let expected = format!(
            "{CALLS} calls, {} to {} of them 200, the others 403",
            NEAR.start(),
            NEAR.end()
        );
        let observe = async || {
            let read = |reply: &crate::Reply| reply.status.to_string();
            Ok(calls_read(&client, to, "/ip", CALLS, read).await)
        };
        matrix
            .judge(WEIGHTS, route.direction, &expected, observe, near)
            .await;
    }
    Ok(())
}

/// True for `n× 200, m× 403` with all calls and a fitting share.
fn near(seen: &str) -> bool {
    let mut counts = [0, 0];
    for part in seen.split(", ") {
        match part.split_once("× ") {
            Some((count, "200")) => counts[0] = count.parse().unwrap_or(0),
            Some((count, "403")) => counts[1] = count.parse().unwrap_or(0),
            _ => return false,
        }
    }
    counts[0] + counts[1] == CALLS && NEAR.contains(&counts[0])
}

#[cfg(test)]
mod tests {
    use super::near;

    #[test]
    fn only_a_fitting_share_of_all_calls_passes() {
        assert!(near("152× 200, 48× 403"));
        for wrong in [
            "200× 200",
            "100× 200, 100× 403",
            "152× 200, 47× 403",
            "151× 200, 48× 403, 1× closed",
            "an error",
        ] {
            assert!(!near(wrong), "{wrong}");
        }
    }
}

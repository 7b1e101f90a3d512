//! Deployments become pods, with the names Kubernetes would give them, where no Kubernetes does it.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use xxhash_rust::xxh64::xxh64;

/// Letters and digits of generated names: no vowels, nothing that looks like something else.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// Longest beginning of a generated name; five random characters follow.
const LONGEST_BASE: usize = 58;
/// Label with the hash of the template a pod was made from.
const TEMPLATE_HASH: &str = "pod-template-hash";

/// The pods a Deployment asks for.
#[must_use]
pub fn pods_of(deployment: &Deployment) -> Vec<Pod> {
    let Some(spec) = &deployment.spec else {
        return Vec::new();
    };
    let template = serde_json::to_vec(&spec.template).expect("templates have string keys only");
    let hash = word(xxh64(&template, 0), 10);
    let replicas = spec.replicas.unwrap_or(1).max(0);
    (0..replicas)
        .map(|index| pod(deployment, &hash, index))
        .collect()
}

fn pod(deployment: &Deployment, hash: &str, index: i32) -> Pod {
    let head = &deployment.metadata;
    let name = head.name.as_deref().unwrap_or_default();
    let set = format!("{name}-{hash}");
    let suffix = word(xxh64(format!("{set}/{index}").as_bytes(), 1), 5);
    let template = deployment
        .spec
        .as_ref()
        .map(|spec| spec.template.clone())
        .unwrap_or_default();
    let from = template.metadata.unwrap_or_default();
    let mut labels = from.labels.unwrap_or_default();
    labels.insert(TEMPLATE_HASH.to_owned(), hash.to_owned());
    Pod {
        metadata: ObjectMeta {
            name: Some(format!("{}{suffix}", cut(&format!("{set}-")))),
            generate_name: Some(format!("{set}-")),
            namespace: head.namespace.clone(),
            labels: Some(labels),
            annotations: from.annotations,
            owner_references: Some(vec![OwnerReference {
                api_version: "apps/v1".to_owned(),
                kind: "ReplicaSet".to_owned(),
                uid: uid_from(&[
                    "ReplicaSet",
                    head.namespace.as_deref().unwrap_or_default(),
                    &set,
                ]),
                name: set,
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// As much of a generated name as Kubernetes keeps before the random part: all of it fits into a
/// label then.
fn cut(base: &str) -> &str {
    base.get(..LONGEST_BASE).unwrap_or(base)
}

/// The Deployment a pod was made from: the name of its ReplicaSet without the template's hash.
#[must_use]
pub fn deployment_of(pod: &Pod) -> Option<String> {
    let hash = pod.metadata.labels.as_ref()?.get(TEMPLATE_HASH)?;
    let owners = pod.metadata.owner_references.as_ref()?;
    let set = owners.iter().find(|owner| owner.kind == "ReplicaSet")?;
    set.name
        .strip_suffix(hash.as_str())?
        .strip_suffix('-')
        .map(str::to_owned)
}

/// A uid that follows from `parts`.
#[must_use]
pub fn uid_from(parts: &[&str]) -> String {
    let text = parts.join("\0");
    let (a, b) = (xxh64(text.as_bytes(), 2), xxh64(text.as_bytes(), 3));
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        a >> 32,
        (a >> 16) & 0xffff,
        a & 0xfff,
        b >> 52,
        b & 0xffff_ffff_ffff
    )
}

fn word(mut hash: u64, length: usize) -> String {
    let mut text = String::with_capacity(length);
    for _ in 0..length {
        let index = usize::try_from(hash % 27).expect("below 27");
        text.push(char::from(ALPHABET[index]));
        hash /= 27;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment(image: &str, replicas: i32) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "c", "image": image}]}}}
        }))
        .unwrap()
    }

    fn names(pods: &[Pod]) -> Vec<String> {
        pods.iter()
            .filter_map(|p| p.metadata.name.clone())
            .collect()
    }

    #[test]
    fn names_are_stable_and_follow_the_template() {
        let two = pods_of(&deployment("nginx", 2));
        let three = pods_of(&deployment("nginx", 3));
        assert_eq!(names(&two), names(&three)[..2]);
        let other = pods_of(&deployment("nginx:alpine", 2));
        assert_ne!(names(&two)[0], names(&other)[0]);
        assert!(pods_of(&deployment("nginx", 0)).is_empty());
        assert_eq!(deployment_of(&two[0]).as_deref(), Some("web"));
        let owner = &two[0].metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!(owner.kind, "ReplicaSet");
        assert!(names(&two)[0].starts_with(&owner.name));
    }

    #[test]
    fn a_long_name_is_cut_so_that_the_pods_fits_into_a_label() {
        let mut long = deployment("nginx", 2);
        let name = "w".repeat(60);
        long.metadata.name = Some(name.clone());
        let pods = pods_of(&long);
        let [one, two] = &names(&pods)[..] else {
            panic!("{pods:?}")
        };
        assert_eq!((one.len(), two.len()), (63, 63));
        assert_ne!(one, two);
        assert_eq!(deployment_of(&pods[0]).as_deref(), Some(&*name));
    }

    #[test]
    fn uids_look_like_uids() {
        let one = uid_from(&["a", "b"]);
        assert_eq!(one.len(), 36);
        assert_eq!(one, uid_from(&["a", "b"]));
        assert_ne!(one, uid_from(&["ab", ""]));
    }
}

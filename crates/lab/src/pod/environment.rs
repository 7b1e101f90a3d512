use isobar_objects::{ObjectHead, pods};
use isobar_types::ports;
use k8s_openapi::api::core::v1::{Container, EnvVarSource, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::PodPlan;

/// Environment of a container; an error names what the lab cannot give.
pub(super) fn of(container: &Container, plan: &PodPlan) -> Result<Vec<(String, String)>, String> {
    let name = &container.name;
    if container.env_from.iter().flatten().next().is_some() {
        return Err(format!(
            "container {name}: envFrom is not supported by the lab; write the variables as `env`"
        ));
    }
    let mut env = vec![
        ("HOSTNAME".to_owned(), plan.pod.name().to_owned()),
        (
            "HOME".to_owned(),
            std::env::var("HOME").unwrap_or_else(|_| "/".to_owned()),
        ),
        ("LANG".to_owned(), "C.UTF-8".to_owned()),
    ];
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) => expand(value, &env),
            (None, None) => String::new(),
            (None, Some(source)) => from_source(source, plan)
                .map_err(|why| format!("container {name}, variable {}: {why}", variable.name))?,
        };
        env.push((variable.name.clone(), value));
    }
    Ok(env)
}

fn from_source(source: &EnvVarSource, plan: &PodPlan) -> Result<String, String> {
    if let Some(field) = &source.field_ref {
        return from_field(&field.field_path, plan);
    }
    let optional = |flag: Option<bool>| flag.unwrap_or(false);
    let may_be_absent = source
        .config_map_key_ref
        .as_ref()
        .is_some_and(|key| optional(key.optional))
        || source
            .secret_key_ref
            .as_ref()
            .is_some_and(|key| optional(key.optional));
    if may_be_absent {
        return Ok(String::new());
    }
    Err("only fieldRef is supported by the lab; write a plain `value`".to_owned())
}

fn from_field(path: &str, plan: &PodPlan) -> Result<String, String> {
    let pod = &plan.pod;
    let keyed = |prefix: &str| {
        path.strip_prefix(prefix)?
            .strip_prefix("['")?
            .strip_suffix("']")
    };
    if let Some(key) = keyed("metadata.labels") {
        return Ok(pod.label(key).unwrap_or_default().to_owned());
    }
    if let Some(key) = keyed("metadata.annotations") {
        return Ok(pod.annotation(key).unwrap_or_default().to_owned());
    }
    Ok(match path {
        "metadata.name" => pod.name().to_owned(),
        "metadata.namespace" => pod.namespace().to_owned(),
        "metadata.uid" => plan.uid.clone(),
        "spec.nodeName" => plan.node.plan.name.clone(),
        "spec.serviceAccountName" => pods::service_account(pod).to_owned(),
        "status.podIP" => plan.ip.to_string(),
        "status.podIPs" => {
            let all: Vec<String> = plan.addresses().iter().map(ToString::to_string).collect();
            all.join(",")
        }
        "status.hostIP" | "status.hostIPs" => plan.node.plan.address().to_string(),
        other => return Err(format!("there is no field {other:?}")),
    })
}

/// Replaces `$(NAME)` by the variable's value; `$$` is one dollar, unknown names stay.
pub(super) fn expand(text: &str, env: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        if let Some(after) = tail.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let named = tail
            .strip_prefix('(')
            .and_then(|inner| inner.split_once(')'))
            .and_then(|(name, after)| {
                let (_, value) = env.iter().rev().find(|(key, _)| key == name)?;
                Some((value, after))
            });
        match named {
            Some((value, after)) => {
                out.push_str(value);
                rest = after;
            }
            None => {
                out.push('$');
                rest = tail;
            }
        }
    }
    out.push_str(rest);
    out
}

/// How a waypoint shows that it is ready, where its pod does not say.
pub(super) fn waypoint_readiness() -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some("/healthz/ready".to_owned()),
            port: IntOrString::Int(i32::from(ports::READINESS)),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(1),
        ..Probe::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_expand_as_in_kubernetes() {
        let env = [("A", "1"), ("B", "2"), ("A", "3")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        for (text, expected) in [
            ("$(A)-$(B)", "3-2"),
            ("$$(A)", "$(A)"),
            ("$(NONE)", "$(NONE)"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
        ] {
            assert_eq!(expand(text, &env), expected, "{text}");
        }
    }
}

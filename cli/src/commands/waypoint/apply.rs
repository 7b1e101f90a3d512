use std::time::Duration;

use anyhow::bail;
use isobar_objects::gateway_api::{Gateway, GatewaySpec, Listener};
use isobar_objects::{
    Deployment, Kind, Object, ObjectHead, ObjectRef, ObjectSet, Origin, Service, ServiceAccount,
};
use isobar_types::{labels, ports};
use serde_json::json;

use super::tables::{is_waypoint, unready};
use super::{Place, place_of};
use crate::arguments::{Apply, Traffic, waypoint_name};
use crate::output::{Format, print_value};

impl Place {
    pub(super) async fn apply(&self, apply: &Apply) -> anyhow::Result<()> {
        let name = &name_of(apply)?;
        let objects = self.objects.now();
        self.check(&objects, apply, name)?;
        let full = format!("{}/{name}", apply.namespace);
        if let Some(origin) = of_the_user(&self.objects.users, apply, name)? {
            let place = place_of(&origin);
            self.say(&format!(
                "waypoint {full} is in {place}; it stays as it is there"
            ))?;
        } else {
            self.objects.writer.put(&gateway(apply, name).into())?;
            self.say(&format!("waypoint {full} applied"))?;
        }
        let bound = self.bind(&objects, apply, name)?;
        for reference in &bound {
            self.say(&format!("{reference} uses waypoint {name}"))?;
        }
        if apply.wait {
            self.wait(&apply.namespace, name, apply.timeout).await?;
            self.say(&format!("waypoint {full} is ready"))?;
        }
        if self.format != Format::Table {
            let bound: Vec<String> = bound.iter().map(ToString::to_string).collect();
            let result = json!({ "waypoint": full, "bound": bound, "waited": apply.wait });
            print_value(&result, self.format)?;
        }
        Ok(())
    }

    /// Writes the labels that are asked for.
    fn bind(
        &self,
        objects: &ObjectSet,
        apply: &Apply,
        name: &str,
    ) -> anyhow::Result<Vec<ObjectRef>> {
        let writer = &self.objects.writer;
        let label = json!({ "metadata": { "labels": { labels::USE_WAYPOINT: name } } });
        let mut bound = Vec::new();
        if apply.enroll_namespace {
            let namespace = ObjectRef::new(Kind::Namespace, "", &apply.namespace);
            writer.merge(&namespace, &label)?;
            bound.push(namespace);
        }
        if let Some(account) = &apply.service_account {
            let reference = ObjectRef::new(Kind::ServiceAccount, &apply.namespace, account);
            let known = &objects.service_accounts;
            if known.get(&apply.namespace, account).is_none() {
                writer.put(&service_account(&apply.namespace, account, name)?)?;
            } else {
                writer.merge(&reference, &label)?;
            }
            bound.push(reference);
        }
        Ok(bound)
    }

    /// What would surprise later.
    fn check(&self, objects: &ObjectSet, apply: &Apply, name: &str) -> anyhow::Result<()> {
        let Some(namespace) = objects.namespaces.get("", &apply.namespace) else {
            bail!(
                "there is no namespace {}; namespaces are: {}",
                apply.namespace,
                objects
                    .namespaces
                    .iter()
                    .map(|n| n.name())
                    .collect::<Vec<_>>()
                    .join(", ")
            );
        };
        let taken = taken(objects, &apply.namespace, name);
        if !taken.is_empty() {
            bail!(
                "a waypoint called {name} would need objects that are somebody else's: {}; \
                 choose another name with --name",
                taken.join(", ")
            );
        }
        let account = apply.service_account.as_deref();
        if let Some(account) = account.filter(|one| !is_used(objects, &apply.namespace, one)) {
            anstream::eprintln!(
                "warning: no pod runs as service account {}/{account}",
                apply.namespace
            );
        }
        let account =
            account.and_then(|account| objects.service_accounts.get(&apply.namespace, account));
        let asked = [
            apply
                .enroll_namespace
                .then(|| (namespace.reference(), namespace.label(labels::USE_WAYPOINT))),
            account.map(|one| (one.reference(), one.label(labels::USE_WAYPOINT))),
        ];
        for (object, bound) in asked.into_iter().flatten() {
            if let Some(other) = bound.filter(|other| *other != name && !apply.overwrite) {
                bail!("{object} uses waypoint {other} already; --overwrite binds it to {name}");
            }
        }
        if isobar_objects::enrolment::mode(&namespace.object) != Some(labels::MODE_AMBIENT) {
            anstream::eprintln!(
                "warning: namespace {} is not in the mesh: label it {}={}",
                apply.namespace,
                labels::DATAPLANE_MODE,
                labels::MODE_AMBIENT
            );
        }
        Ok(())
    }

    async fn wait(&self, namespace: &str, name: &str, limit: Duration) -> anyhow::Result<()> {
        let ready = |objects: &ObjectSet| {
            let gateway = objects.gateways.get(namespace, name);
            gateway.is_some_and(|gateway| gateway.is_programmed())
        };
        if self.objects.become_so(limit, ready).await {
            return Ok(());
        }
        let objects = self.objects.now();
        let gateway = objects.gateways.get(namespace, name);
        let why = gateway.map_or_else(String::new, |gateway| unready(gateway));
        bail!(
            "waypoint {namespace}/{name} is not ready after {limit:?}{why}; \
             `isobar waypoint status --lab {lab} -n {namespace} {name}` and \
             `isobar lab status --lab {lab}` tell more",
            lab = self.lab.name()
        )
    }
}

/// The name asked for; otherwise one that is not the account's, which is taken by the account.
fn name_of(apply: &Apply) -> anyhow::Result<String> {
    Ok(match (&apply.name, &apply.service_account) {
        (Some(name), _) => name.clone(),
        (None, Some(account)) => waypoint_name(&format!("{account}-waypoint")).map_err(|why| {
            anyhow::anyhow!("{account}-waypoint cannot be one: {why}; give --name")
        })?,
        (None, None) => "waypoint".to_owned(),
    })
}

fn is_used(objects: &ObjectSet, namespace: &str, account: &str) -> bool {
    let mut pods = objects.pods.in_namespace(namespace);
    pods.any(|pod| isobar_objects::pods::service_account(pod) == account)
}

/// Where a file of the user's holds the Gateway, if one does: that one counts, and is not changed.
fn of_the_user(users: &ObjectSet, apply: &Apply, name: &str) -> anyhow::Result<Option<Origin>> {
    let Some(held) = users.gateways.get(&apply.namespace, name) else {
        return Ok(None);
    };
    let place = place_of(&held.origin);
    if !is_waypoint(held) {
        bail!(
            "Gateway {}/{name} in {place} is of class {}, no waypoint; choose another name with \
             --name",
            apply.namespace,
            held.spec.gateway_class_name
        );
    }
    let says = held.label(labels::WAYPOINT_FOR).unwrap_or("service");
    if let Some(asked) = apply.traffic.filter(|asked| asked.as_str() != says) {
        bail!(
            "waypoint {}/{name} is in {place} and is for {says}: write {}={} there instead",
            apply.namespace,
            labels::WAYPOINT_FOR,
            asked.as_str()
        );
    }
    Ok(Some(held.origin.clone()))
}

/// Objects of others by the names that the waypoint's own would have.
fn taken(objects: &ObjectSet, namespace: &str, name: &str) -> Vec<String> {
    fn of<T: ObjectHead>(objects: &ObjectSet, namespace: &str, name: &str) -> Option<String> {
        let held = T::map(objects).get(namespace, name)?;
        let own = held.label(labels::GATEWAY_NAME) == Some(name);
        (!own).then(|| held.reference().to_string())
    }
    [
        of::<Service>(objects, namespace, name),
        of::<ServiceAccount>(objects, namespace, name),
        of::<Deployment>(objects, namespace, name),
    ]
    .into_iter()
    .flatten()
    .collect()
}

pub(super) fn gateway(apply: &Apply, name: &str) -> Gateway {
    let spec = GatewaySpec {
        gateway_class_name: labels::WAYPOINT_CLASS.to_owned(),
        listeners: vec![Listener {
            name: "mesh".to_owned(),
            port: i32::from(ports::HBONE),
            protocol: "HBONE".to_owned(),
            ..Listener::default()
        }],
        ..GatewaySpec::default()
    };
    let mut gateway = Gateway::new(&apply.namespace, name, spec);
    let traffic = match (apply.traffic, &apply.service_account) {
        (Some(traffic), _) => traffic,
        // An account's waypoint guards its pods by whatever address they are called.
        (None, Some(_)) => Traffic::All,
        (None, None) => Traffic::Service,
    };
    let all = gateway.head_mut().labels.get_or_insert_default();
    all.insert(labels::WAYPOINT_FOR.to_owned(), traffic.as_str().to_owned());
    if let Some(account) = &apply.service_account {
        let all = gateway.head_mut().annotations.get_or_insert_default();
        all.insert(labels::FOR_SERVICE_ACCOUNT.to_owned(), account.clone());
    }
    gateway
}

fn service_account(namespace: &str, account: &str, waypoint: &str) -> anyhow::Result<Object> {
    let object: ServiceAccount = serde_json::from_value(json!({
        "metadata": {
            "namespace": namespace,
            "name": account,
            "labels": { labels::USE_WAYPOINT: waypoint },
        }
    }))?;
    Ok(object.into())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use clap::Parser;

    pub(in crate::commands::waypoint) fn apply(line: &str) -> Apply {
        let parsed = crate::arguments::Isobar::parse_from(line.split(' '));
        match parsed.command {
            crate::arguments::Command::Waypoint(crate::arguments::Waypoint::Apply(apply)) => apply,
            _ => panic!("another command"),
        }
    }

    pub(in crate::commands::waypoint) fn account(namespace: &str, name: &str, to: &str) -> Object {
        service_account(namespace, name, to).unwrap()
    }

    #[test]
    fn a_gateway_says_what_was_asked() {
        let apply = apply("isobar waypoint apply -n shop --service-account cart --for all");
        let object: Object = gateway(&apply, "cart").into();
        insta::assert_snapshot!(serde_json::to_string_pretty(&object.to_value().unwrap()).unwrap());
    }

    #[test]
    fn a_gateway_in_a_file_is_not_written_over() {
        let line = "isobar waypoint apply -n shop --name cart";
        let own = gateway(&apply(&format!("{line} --for all")), "cart");
        let users = ObjectSet::of([Object::from(own.clone())]);
        let found = |more: &str| of_the_user(&users, &apply(&format!("{line}{more}")), "cart");
        assert!(found("").unwrap().is_some());
        assert!(found(" --for all").unwrap().is_some());
        let error = found(" --for service").unwrap_err().to_string();
        assert!(error.contains("istio.io/waypoint-for=service"), "{error}");
        assert!(
            of_the_user(&users, &apply(line), "other")
                .unwrap()
                .is_none()
        );

        let mut ingress = own;
        ingress.spec.gateway_class_name = "nginx".to_owned();
        let users = ObjectSet::of([Object::from(ingress)]);
        let error = of_the_user(&users, &apply(line), "cart").unwrap_err();
        assert!(error.to_string().contains("nginx"), "{error}");
    }

    #[test]
    fn a_name_made_from_an_account_may_not_do() {
        for account in ["a.b", &"x".repeat(60)] {
            let line = format!("isobar waypoint apply --service-account {account}");
            let error = name_of(&apply(&line)).unwrap_err().to_string();
            assert!(error.contains("--name"), "{error}");
            assert!(name_of(&apply(&(line + " --name own"))).is_ok());
        }
    }

    #[test]
    fn names_of_others_are_not_taken() {
        let apply = apply("isobar waypoint apply -n shop --service-account cart");
        assert_eq!(name_of(&apply).unwrap(), "cart-waypoint");
        let objects = ObjectSet::of([account("shop", "cart", "cart-waypoint")]);
        assert_eq!(
            taken(&objects, "shop", "cart"),
            ["ServiceAccount shop/cart"]
        );
        assert!(taken(&objects, "shop", "cart-waypoint").is_empty());
        assert!(taken(&objects, "other", "cart").is_empty());
    }
}

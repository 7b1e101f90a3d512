use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::bail;
use isobar_objects::gateway_api::{Gateway, GatewaySpec, Listener};
use isobar_objects::{
    Deployment, Kind, Object, ObjectHead, ObjectRef, ObjectSet, Origin, Service, ServiceAccount,
};
use isobar_types::{labels, ports};
use serde_json::{Value, json};

use super::bound::{binding, bound, is_bound, text, warn_of_apart};
use super::readiness::Label;
use super::tables::is_waypoint;
use super::{Place, place_of};
use crate::arguments::{Apply, Traffic, waypoint_name};
use crate::output::{Format, print_value};

impl Place {
    /// Deploys the waypoint, binds what is asked for once the waypoint can take its traffic, and
    /// waits until that is in force: in this order no request is lost.
    pub(super) async fn apply(&self, apply: &Apply) -> anyhow::Result<()> {
        let name = &name_of(apply)?;
        let objects = self.objects.now();
        self.check(&objects, apply, name)?;
        if apply.enroll_namespace && apply.overwrite {
            warn_of_apart(&objects, &apply.namespace, name);
        }
        let full = format!("{}/{name}", apply.namespace);
        let mut expected = Vec::new();
        if let Some(origin) = of_the_user(&self.objects.users, apply, name)? {
            let place = place_of(&origin);
            self.say(&format!(
                "waypoint {full} is in {place}; it stays as it is there"
            ))?;
        } else {
            let held = objects.gateways.get(&apply.namespace, name);
            if let Some(held) = held.filter(|_| !apply.overwrite) {
                narrows(&objects, apply, held)?;
            }
            let gateway = gateway(apply, name, held.map(|held| &held.object));
            expected.extend(label_of(&gateway, labels::WAYPOINT_FOR));
            self.objects.writer.apply(&gateway.into()).await?;
            self.say(&format!("waypoint {full} applied"))?;
        }
        let start = Instant::now();
        let left = || apply.timeout.saturating_sub(start.elapsed());
        let wanted = bindings(apply);
        let (known, fresh): (Vec<_>, Vec<_>) = wanted
            .iter()
            .partition(|object| is_bound(&objects, object, name));
        if apply.wait || !fresh.is_empty() {
            self.usable(&apply.namespace, name, left())
                .await
                .or(|why| self.is_late(apply, name, !fresh.is_empty(), why))?;
        }
        for object in &fresh {
            self.bind(&objects, object, name).await?;
            self.say(&format!("{object} uses waypoint {name}"))?;
        }
        for object in &known {
            self.say(&format!("{object} uses waypoint {name} already"))?;
        }
        if apply.wait {
            expected.extend(wanted.iter().map(|object| Label {
                object: object.clone(),
                key: labels::USE_WAYPOINT,
                value: name.clone(),
                there: true,
            }));
            self.in_force(&expected, "", left())
                .await
                .or(|why| self.is_unconfirmed(apply, name, why))?;
            self.say(&format!("waypoint {full} is ready"))?;
        }
        if self.format != Format::Table {
            let bound: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            let result = json!({ "waypoint": full, "bound": bound, "waited": apply.wait });
            print_value(&result, self.format)?;
        }
        Ok(())
    }

    /// Writes the label onto a namespace or an account; an account that does not exist is made.
    async fn bind(
        &self,
        objects: &ObjectSet,
        object: &ObjectRef,
        name: &str,
    ) -> anyhow::Result<()> {
        let writer = &self.objects.writer;
        if objects.contains(object) {
            writer
                .patch(object, &binding(objects, object, name))
                .await?;
        } else {
            let account = service_account(&object.namespace, &object.name, name)?;
            writer.apply(&account).await?;
        }
        Ok(())
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
        for (service, others) in
            account.map_or_else(Vec::new, |one| shared(objects, &apply.namespace, one))
        {
            anstream::eprintln!(
                "warning: {service} has pods of other accounts too ({}). Once one account of a Service \
                 uses a waypoint and another does not, traffic to the Service is refused: give each \
                 one a waypoint (isobar waypoint apply -n {} --service-account {})",
                others.join(", "),
                apply.namespace,
                others[0]
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
            let is_free = apply.overwrite || is_bound(objects, &object, name);
            if let Some(other) = bound.filter(|_| !is_free) {
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

    fn is_late(&self, apply: &Apply, name: &str, unbound: bool, why: &str) -> String {
        let (namespace, flags) = (&apply.namespace, self.mesh.flags());
        let limit = apply.timeout;
        let effect = if unbound {
            ", so nothing is bound to it and traffic goes on as before"
        } else {
            ""
        };
        format!(
            "waypoint {namespace}/{name} is not ready after {limit:?}: {why}{effect}; \
             `isobar waypoint status{flags} -n {namespace} {name}` and {} tell more; then run the \
             same command again",
            self.mesh.look()
        )
    }

    fn is_unconfirmed(&self, apply: &Apply, name: &str, why: &str) -> String {
        let (namespace, flags) = (&apply.namespace, self.mesh.flags());
        let limit = apply.timeout;
        format!(
            "waypoint {namespace}/{name} is ready, but after {limit:?} not every proxy has \
             confirmed that it is in use: {why}; `isobar status{flags}` tells more; until \
             they do, their traffic may go as before"
        )
    }
}

/// What is to be bound.
fn bindings(apply: &Apply) -> Vec<ObjectRef> {
    let namespace = apply
        .enroll_namespace
        .then(|| ObjectRef::new(Kind::Namespace, "", &apply.namespace));
    let account = apply
        .service_account
        .as_ref()
        .map(|account| ObjectRef::new(Kind::ServiceAccount, &apply.namespace, account));
    namespace.into_iter().chain(account).collect()
}

fn label_of(gateway: &Gateway, key: &'static str) -> Option<Label> {
    Some(Label {
        object: gateway.reference(),
        key,
        value: gateway.label(key)?.to_owned(),
        there: true,
    })
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

/// Services that lead to pods of `account` and to pods of accounts without a waypoint, with those accounts.
fn shared(objects: &ObjectSet, namespace: &str, account: &str) -> Vec<(ObjectRef, Vec<String>)> {
    let is_bound = |other: &str| {
        let held = objects.service_accounts.get(namespace, other);
        held.is_some_and(|held| held.label(labels::USE_WAYPOINT).is_some())
    };
    let services = objects.services.in_namespace(namespace);
    let with_others = services.filter_map(|service| {
        let selector = service.spec.as_ref()?.selector.as_ref()?;
        let pods = objects.pods.in_namespace(namespace).filter(|pod| {
            let mut wanted = selector.iter();
            !selector.is_empty() && wanted.all(|(key, value)| pod.label(key) == Some(value))
        });
        let accounts: BTreeSet<&str> = pods
            .map(|pod| isobar_objects::pods::service_account(pod))
            .collect();
        let others = accounts
            .iter()
            .filter(|one| **one != account && !is_bound(one));
        let others: Vec<String> = others.map(|one| (*one).to_owned()).collect();
        // A Service's own label decides before the accounts of its pods.
        let decided = service.label(labels::USE_WAYPOINT).is_some();
        let refused = accounts.contains(account) && !decided && !others.is_empty();
        refused.then(|| (service.reference(), others))
    });
    with_others.collect()
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

/// Refuses a change by which a waypoint in use would no longer take what it takes: that is refused,
/// as a waypoint that is named may not be passed by.
fn narrows(objects: &ObjectSet, apply: &Apply, held: &Gateway) -> anyhow::Result<()> {
    let users = bound(objects, held.namespace(), held.name());
    if users.is_empty() {
        return Ok(());
    }
    let full = format!("{}/{}", held.namespace(), held.name());
    let before = held.label(labels::WAYPOINT_FOR).unwrap_or("service");
    if let Some(asked) = apply.traffic.map(Traffic::as_str)
        && asked != before
        && asked != "all"
        && before != "none"
    {
        bail!(
            "waypoint {full} takes {before} traffic for {}; with --for {asked} part of that would \
             be refused or pass it by: --overwrite does it",
            text(&users)
        );
    }
    let before = held.annotation(labels::FOR_SERVICE_ACCOUNT);
    if let (Some(before), Some(asked)) = (before, &apply.service_account)
        && before != asked
    {
        bail!(
            "waypoint {full} is that of service account {before}, whose traffic would be refused: \
             choose another name with --name; --overwrite gives it to {asked}"
        );
    }
    Ok(())
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

/// The Gateway that is asked for; what was not asked stays as `held` has it.
pub(super) fn gateway(apply: &Apply, name: &str, held: Option<&Gateway>) -> Gateway {
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
    let before = held.and_then(|held| held.label(labels::WAYPOINT_FOR));
    let traffic = match (apply.traffic, before, &apply.service_account) {
        (Some(traffic), ..) => traffic.as_str(),
        (None, Some(before), _) => before,
        // An account's waypoint guards its pods by whatever address they are called.
        (None, None, Some(_)) => Traffic::All.as_str(),
        (None, None, None) => Traffic::Service.as_str(),
    };
    let all = gateway.head_mut().labels.get_or_insert_default();
    all.insert(labels::WAYPOINT_FOR.to_owned(), traffic.to_owned());
    let before = held.and_then(|held| held.annotation(labels::FOR_SERVICE_ACCOUNT));
    if let Some(account) = apply.service_account.as_deref().or(before) {
        let all = gateway.head_mut().annotations.get_or_insert_default();
        all.insert(labels::FOR_SERVICE_ACCOUNT.to_owned(), account.to_owned());
    }
    gateway
}

/// What would be written where nothing is yet: the Gateway, and what names it.
pub(super) fn generated(apply: &Apply) -> anyhow::Result<Vec<Value>> {
    let name = name_of(apply)?;
    if apply.wait || apply.overwrite {
        bail!("generate writes nothing: leave --wait and --overwrite out");
    }
    let gateway = Object::from(gateway(apply, &name, None));
    let mut objects = vec![gateway.to_value()?];
    for bound in bindings(apply) {
        let mut object = json!({
            "apiVersion": "v1",
            "kind": bound.kind.to_string(),
            "metadata": { "name": bound.name.to_string(), "labels": { labels::USE_WAYPOINT: name } },
        });
        if !bound.namespace.is_empty() {
            object["metadata"]["namespace"] = json!(bound.namespace.to_string());
        }
        objects.push(object);
    }
    Ok(objects)
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
        let object: Object = gateway(&apply, "cart", None).into();
        insta::assert_snapshot!(serde_json::to_string_pretty(&object.to_value().unwrap()).unwrap());
    }

    #[test]
    fn what_would_be_written_is_printed() {
        let line = "isobar waypoint apply -n shop --service-account cart";
        let objects = generated(&apply(line)).unwrap();
        let [gateway, account] = &objects[..] else {
            panic!("two objects");
        };
        assert_eq!(gateway["metadata"]["name"], "cart-waypoint");
        assert_eq!(gateway["spec"]["gatewayClassName"], labels::WAYPOINT_CLASS);
        assert_eq!(
            account["metadata"]["labels"][labels::USE_WAYPOINT],
            "cart-waypoint"
        );
        assert_eq!(account["metadata"]["namespace"], "shop");
        let line = "isobar waypoint apply -n shop --enroll-namespace";
        let objects = generated(&apply(line)).unwrap();
        assert_eq!(objects[1]["kind"], "Namespace");
        assert!(objects[1]["metadata"].get("namespace").is_none());
        assert!(generated(&apply(&format!("{line} --wait"))).is_err());
    }

    #[test]
    fn a_gateway_in_a_file_is_not_written_over() {
        let line = "isobar waypoint apply -n shop --name cart";
        let own = gateway(&apply(&format!("{line} --for all")), "cart", None);
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

    #[test]
    fn a_service_of_several_accounts_is_told() {
        let pod = |name: &str| {
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "name": name, "namespace": "shop", "labels": { "app": "web" } },
                "spec": { "serviceAccountName": name, "containers": [] },
            });
            serde_json::from_value::<isobar_objects::Pod>(pod).unwrap()
        };
        let service = |own: &str| {
            let service = json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": { "name": "web", "namespace": "shop", "labels": { labels::USE_WAYPOINT: own } },
                "spec": { "selector": { "app": "web" } },
            });
            let mut service: Service = serde_json::from_value(service).unwrap();
            if own.is_empty() {
                service.metadata.labels = None;
            }
            service
        };
        let told = |objects: &[Object]| {
            let set = ObjectSet::of(objects.iter().cloned());
            shared(&set, "shop", "a")
                .into_iter()
                .map(|(_, others)| others)
                .collect::<Vec<_>>()
        };
        let (a, b) = (pod("a"), pod("b"));
        let all = [a.clone().into(), b.into(), service("").into()];
        assert_eq!(told(&all), [["b"]]);
        assert!(told(&[a.into(), service("").into()]).is_empty());
        let bound = account("shop", "b", "b-waypoint");
        assert!(told(&[&all[..], &[bound]].concat()).is_empty());
        let labelled = [all[0].clone(), all[1].clone(), service("w").into()];
        assert!(told(&labelled).is_empty());
    }

    #[test]
    fn what_is_not_asked_again_stays() {
        let line = "isobar waypoint apply -n shop --name w";
        let held = gateway(&apply(&format!("{line} --service-account cart")), "w", None);
        let again = gateway(
            &apply(&format!("{line} --enroll-namespace")),
            "w",
            Some(&held),
        );
        assert_eq!(again, held);
        let other = gateway(&apply(&format!("{line} --for service")), "w", Some(&held));
        assert_eq!(other.label(labels::WAYPOINT_FOR), Some("service"));
    }

    #[test]
    fn a_waypoint_in_use_is_not_narrowed_by_the_way() {
        let line = "isobar waypoint apply -n shop --name w";
        let of_cart = apply(&format!("{line} --service-account cart"));
        let held = gateway(&of_cart, "w", None);
        let used = ObjectSet::of([account("shop", "cart", "w"), held.clone().into()]);
        let check = |objects: &ObjectSet, more: &str| {
            narrows(objects, &apply(&format!("{line}{more}")), &held)
        };
        let error = check(&used, " --for service").unwrap_err().to_string();
        assert!(error.contains("--overwrite") && error.contains("ServiceAccount shop/cart"));
        let error = check(&used, " --service-account stock")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("cart") && error.contains("--name"),
            "{error}"
        );
        assert!(check(&used, " --service-account cart --for all").is_ok());
        assert!(check(&used, " --enroll-namespace").is_ok());
        assert!(check(&ObjectSet::default(), " --for service").is_ok());
    }
}

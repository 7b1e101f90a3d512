//! What charts give to accounts, one verb on one resource at a time.

use anyhow::{Result, ensure};
use isobar_chart::{Chart, Manifest, Release, Values};
use isobar_kubernetes::Cluster;
use isobar_tests::eventually;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};

use super::{Deed, HOME};

/// One verb on one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Right {
    pub(super) group: String,
    pub(super) resource: String,
    pub(super) verb: String,
    name: Option<String>,
}

/// An account, the roles that its chart gives it, and what is done with them.
pub(super) struct Account {
    pub(super) name: &'static str,
    pub(super) roles: Vec<Manifest>,
    pub(super) deeds: Vec<Deed>,
}

/// What a chart makes with these values.
fn rendered(chart: &str, values: &Values) -> Result<Vec<Manifest>> {
    let release = Release {
        name: chart.to_owned(),
        namespace: HOME.to_owned(),
    };
    Ok(Chart::named(chart)?.render(&release, values)?)
}

/// Accounts, roles and bindings of everything that is installed with these values.
pub(super) fn all_roles(values: &Values) -> Result<String> {
    let mut text = String::new();
    for chart in ["control-plane", "node"] {
        let rendered = rendered(chart, values)?;
        let rights = rendered.iter().filter(|one| is_about_rights(one));
        text.extend(rights.map(Manifest::printed));
    }
    Ok(text)
}

fn is_about_rights(manifest: &Manifest) -> bool {
    let kind = manifest.kind();
    kind == "ServiceAccount" || kind.contains("Role")
}

/// The account of that name, as its chart makes it with these values.
pub(super) fn account(
    (chart, name): (&str, &'static str),
    values: &Values,
    deeds: Vec<Deed>,
) -> Result<Account> {
    let all = rendered(chart, values)?.into_iter();
    let roles = all.filter(|one| one.kind().ends_with("Role") && one.name() == name);
    Ok(Account {
        name,
        roles: roles.collect(),
        deeds,
    })
}

/// Every right of a role, with the place of its rule.
pub(super) fn rights(role: &Value) -> Vec<(usize, Right)> {
    let texts = |value: &Value| -> Vec<String> {
        let texts = value.as_array().into_iter().flatten();
        texts
            .filter_map(|text| text.as_str().map(str::to_owned))
            .collect()
    };
    let mut found = Vec::new();
    for (at, rule) in role["rules"].as_array().into_iter().flatten().enumerate() {
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                for verb in texts(&rule["verbs"]) {
                    let right = Right {
                        group: group.clone(),
                        resource: resource.clone(),
                        verb,
                        name: texts(&rule["resourceNames"]).into_iter().next(),
                    };
                    found.push((at, right));
                }
            }
        }
    }
    found
}

/// The role without one right.
pub(super) fn without(role: &Value, at: usize, right: &Right) -> Value {
    let mut role = role.clone();
    let Some(rules) = role["rules"].as_array_mut() else {
        return role;
    };
    let less = |list: &Value, gone: &str| -> Value {
        let list = list.as_array().into_iter().flatten();
        list.filter(|text| text.as_str() != Some(gone))
            .cloned()
            .collect()
    };
    let mut others = rules[at].clone();
    others["resources"] = less(&rules[at]["resources"], &right.resource);
    let mut same = rules[at].clone();
    same["resources"] = json!([right.resource]);
    same["verbs"] = less(&rules[at]["verbs"], &right.verb);
    rules.remove(at);
    let is_empty = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    rules.extend(
        [(others, "resources"), (same, "verbs")]
            .into_iter()
            .filter_map(|(rule, key)| (!is_empty(&rule[key])).then_some(rule)),
    );
    role
}

/// Waits until the server has heard whether the account has the right.
pub(super) async fn in_force(account: &Cluster, right: &Right, is_granted: bool) -> Result<()> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(account.client());
    let (resource, sub) = right
        .resource
        .split_once('/')
        .unwrap_or((&right.resource, ""));
    let asked = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                group: Some(right.group.clone()),
                resource: Some(resource.to_owned()),
                subresource: Some(sub.to_owned()).filter(|sub| !sub.is_empty()),
                verb: Some(right.verb.clone()),
                name: right.name.clone(),
                namespace: Some(HOME.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    eventually("the right is in force", async || {
        let answer = reviews.create(&PostParams::default(), &asked).await?;
        let is_allowed = answer.status.is_some_and(|status| status.allowed);
        ensure!(is_allowed == is_granted, "{right:?}: {is_allowed}");
        Ok(())
    })
    .await
}

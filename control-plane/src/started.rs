//! How a control plane was started, as far as that decides what objects mean: for tools that answer for
//! one without being one.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::sync::Arc;

use anyhow::Result;
use clap::{ArgAction, CommandFactory as _, FromArgMatches as _};
use isobar_objects::enrolment::EnrolmentRules;
use isobar_objects::{ObjectRef, ObjectSet, Published};

use crate::config::Config;
use crate::model::Settings;
use crate::process;
use crate::reach::Reach;
use crate::revision::Revision;
use crate::told::settings;

/// How a control plane was started.
#[derive(Debug, Clone)]
pub struct Started {
    settings: Settings,
    reach: Reach,
    revision: Revision,
    all_names: Option<BTreeSet<String>>,
}

impl Default for Started {
    /// The one of a mesh whose installation changed nothing.
    fn default() -> Self {
        let settings = settings();
        Self {
            reach: Reach::by_mesh_config(settings.mesh_config.clone()),
            settings,
            revision: Revision::default(),
            all_names: None,
        }
    }
}

impl Started {
    /// By the arguments and the environment of its container in `namespace`. What this process has in
    /// its own environment counts for nothing.
    ///
    /// # Errors
    /// When they are none of a control plane of this version.
    pub fn by(namespace: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Self> {
        let own = Config::command();
        let known: Vec<_> = own.get_arguments().cloned().collect();
        let mut line = vec![OsString::from("isobard")];
        line.extend(arguments.iter().map(OsString::from));
        let given = |flag: &str| {
            let with_value = format!("{flag}=");
            let mut all = arguments.iter();
            all.any(|one| *one == flag || one.starts_with(&with_value))
        };
        for one in &known {
            let (Some(long), Some(variable)) = (one.get_long(), one.get_env()) else {
                continue;
            };
            let flag = format!("--{long}");
            let found = environment.iter().find(|(name, _)| variable == *name);
            let Some((_, value)) = found.filter(|_| !given(&flag)) else {
                continue;
            };
            match one.get_action() {
                ArgAction::SetTrue if is_yes(value) => line.push(flag.into()),
                ArgAction::SetTrue => {}
                _ => line.push(format!("{flag}={value}").into()),
            }
        }
        let deaf = own.mut_args(|one| one.env(None::<&'static str>));
        let matches = deaf.try_get_matches_from(line)?;
        let mut config = Config::from_arg_matches(&matches)?;
        config.namespace.get_or_insert_with(|| namespace.to_owned());
        Ok(Self {
            settings: process::settings(&config),
            reach: Reach::of(&config)?,
            revision: Revision::of(&config),
            all_names: None,
        })
    }

    /// The same in a cluster whose node agents take pods into the mesh by these rules.
    #[must_use]
    pub fn enrolling(mut self, rules: EnrolmentRules) -> Self {
        self.settings.enrolment = rules;
        self
    }

    /// The same in a cluster whose control planes are called so, this one among them.
    #[must_use]
    pub fn among(mut self, names: BTreeSet<String>) -> Self {
        self.all_names = Some(names);
        self
    }

    /// Whose pods node agents take into the mesh.
    #[must_use]
    pub const fn enrolment(&self) -> &EnrolmentRules {
        &self.settings.enrolment
    }

    /// Whether a control plane of the cluster is called so; `None` where it is not known which there are.
    #[must_use]
    pub fn knows(&self, name: &str) -> Option<bool> {
        Some(self.all_names.as_ref()?.contains(name))
    }

    /// Its name; `default` for the one without.
    #[must_use]
    pub fn name(&self) -> &str {
        self.revision.name()
    }

    /// True for the one that has what names nobody.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.revision.is_default()
    }

    /// The ConfigMap whose MeshConfig it reads.
    #[must_use]
    pub const fn mesh_config(&self) -> &ObjectRef {
        &self.settings.mesh_config
    }

    /// The namespace of what counts for the whole mesh.
    #[must_use]
    pub fn root_namespace(&self) -> &str {
        &self.settings.root_namespace
    }

    /// True if its selectors take a namespace.
    #[must_use]
    pub fn looks_at(&self, objects: &ObjectSet, namespace: &str) -> bool {
        self.reach.looks_at(objects, namespace)
    }

    /// What counts for it: objects of namespaces that it looks at, and for nobody else.
    #[must_use]
    pub fn counts(&self, published: &Arc<Published>) -> Arc<Published> {
        self.reach.narrow(published)
    }

    pub(crate) const fn settings(&self) -> &Settings {
        &self.settings
    }
}

/// As flags are read from an environment.
fn is_yes(value: &str) -> bool {
    !matches!(
        value.to_ascii_lowercase().as_str(),
        "" | "0" | "f" | "false" | "n" | "no" | "off"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{OutboundTraffic, PortRules};

    const OURS: [&str; 3] = ["--kubernetes", "--state-dir=/s", "--root-namespace=mesh"];

    #[test]
    fn arguments_and_environment_say_what_counts() {
        let more = [
            "--revision=canary",
            "--trust-domain=corp.example",
            "--revision-tag=stable",
        ];
        let environment = [
            ("OUTBOUND_TRAFFIC_POLICY", "REGISTRY_ONLY"),
            ("PORT_RULES", "audit"),
            ("TRUST_DOMAIN", "not.this"),
            ("PILOT_AUTO_ALLOW_WAYPOINT_POLICY", "true"),
            ("SOMETHING_ELSE", "1"),
        ];
        let all = [&OURS[..], &more].concat();
        let started = Started::by("mesh", &all, &environment).unwrap();
        assert_eq!((started.name(), started.is_default()), ("canary", false));
        let map = started.mesh_config();
        assert_eq!((&*map.namespace, &*map.name), ("mesh", "istio-canary"));
        let settings = started.settings();
        assert_eq!(&*settings.trust_domain, "corp.example");
        assert_eq!(settings.outbound, OutboundTraffic::RegistryOnly);
        assert_eq!(settings.port_rules, PortRules::Audit);
        assert!(settings.allow_waypoints);

        let plain = Started::by("mesh", &OURS, &[]).unwrap();
        assert!(plain.is_default());
        assert_eq!(&*plain.mesh_config().name, "istio");
        let tagged = [&OURS[..], &["--revision=a", "--revision-tag=default"]].concat();
        assert!(Started::by("mesh", &tagged, &[]).unwrap().is_default());
        assert!(Started::by("mesh", &["--of-another-version"], &[]).is_err());
    }
}

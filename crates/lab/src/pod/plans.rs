use isobar_net::NetNs;
use isobar_objects::{ObjectHead, pods};
use isobar_types::labels;
use k8s_openapi::api::core::v1::Container;

use super::{Runner, environment, grace};
use crate::container::{ContainerPlan, Restart};
use crate::error::LabError;
use crate::images::{self, ImageError};
use crate::place::Place;
use crate::probe::Plan;
use crate::tokens::Subject;

/// Why a pod cannot run as it is written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unrunnable {
    #[error("the pod has no containers")]
    NoContainers,
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("{0}")]
    Environment(String),
    #[error("container {container}: {why}")]
    Probe { container: String, why: String },
    #[error("a waypoint needs a lab with a mesh")]
    NoMesh,
    #[error(transparent)]
    Lab(#[from] LabError),
}

impl Runner {
    /// Plans of init containers and containers.
    pub(super) fn try_plans(
        &self,
        place: &Place,
    ) -> Result<(Vec<ContainerPlan>, Vec<ContainerPlan>), Unrunnable> {
        let spec = self.pod().spec.clone().unwrap_or_default();
        if spec.containers.is_empty() {
            return Err(Unrunnable::NoContainers);
        }
        let node = self.plan.node.place.netns();
        let restart = Restart::parse(spec.restart_policy.as_deref());
        let of = |container: &Container, annotation, restart| {
            self.container(container, annotation, restart, place, node)
        };
        let init = spec.init_containers.iter().flatten();
        let init = init.map(|c| of(c, None, Restart::OnFailure));
        let annotation = self.pod().annotation(labels::LAB_COMMAND);
        let containers = spec.containers.iter().enumerate().map(|(index, c)| {
            let annotation = annotation.filter(|_| index == 0);
            of(c, annotation, restart)
        });
        Ok((
            init.collect::<Result<_, _>>()?,
            containers.collect::<Result<_, _>>()?,
        ))
    }

    /// True if a waypoint runs in the pod.
    pub(super) fn runs_waypoint(&self) -> bool {
        let annotation = self.pod().annotation(labels::LAB_COMMAND);
        let containers = self.pod().spec.iter().flat_map(|spec| &spec.containers);
        containers.enumerate().any(|(index, container)| {
            images::is_waypoint(container, annotation.filter(|_| index == 0))
        })
    }

    fn container(
        &self,
        container: &Container,
        annotation: Option<&str>,
        restart: Restart,
        place: &Place,
        node: &NetNs,
    ) -> Result<ContainerPlan, Unrunnable> {
        let mut env = environment::of(container, &self.plan).map_err(Unrunnable::Environment)?;
        let program = images::program(container, annotation, &self.context.binaries, |text| {
            environment::expand(text, &env)
        })?;
        env.push(("PATH".to_owned(), self.context.path.clone()));
        let mut readiness = container.readiness_probe.clone();
        if program.waypoint {
            env.extend(self.waypoint_env()?);
            readiness.get_or_insert_with(environment::waypoint_readiness);
        }
        let probe = |probe: &Option<_>| {
            probe
                .as_ref()
                .map(|probe| Plan::of(probe, self.pod()))
                .transpose()
                .map_err(|why| Unrunnable::Probe {
                    container: container.name.clone(),
                    why,
                })
        };
        let ports = container.ports.iter().flatten();
        let tcp = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
        Ok(ContainerPlan {
            name: container.name.clone(),
            argv: program.argv,
            env,
            cwd: container.working_dir.clone(),
            place: place.clone(),
            node: node.clone(),
            ip: self.plan.ip,
            log: self.log(),
            restart,
            grace: grace(self.pod()),
            startup: probe(&container.startup_probe)?,
            readiness: probe(&readiness)?,
            liveness: probe(&container.liveness_probe)?,
            ports: tcp
                .filter_map(|port| u16::try_from(port.container_port).ok())
                .collect(),
        })
    }

    /// Environment of a waypoint: who it is, and how it proves it.
    fn waypoint_env(&self) -> Result<Vec<(String, String)>, Unrunnable> {
        let Some(mesh) = &self.context.mesh else {
            return Err(Unrunnable::NoMesh);
        };
        let pod = self.pod();
        let token = self.context.paths.waypoint(&self.plan.uid).join("token");
        let subject = Subject {
            namespace: pod.namespace().to_owned(),
            account: pods::service_account(pod).to_owned(),
            pod: pod.name().to_owned(),
            pod_uid: self.plan.uid.clone(),
            node: self.plan.node.plan.name.clone(),
        };
        mesh.tokens.write(&token, subject)?;
        let mut env = mesh.waypoint_env.clone();
        let own = [
            ("AUTH_TOKEN", token.to_string_lossy().into_owned()),
            ("POD_NAME", pod.name().to_owned()),
            ("POD_NAMESPACE", pod.namespace().to_owned()),
            ("SERVICE_ACCOUNT", pods::service_account(pod).to_owned()),
            ("INSTANCE_IP", self.plan.ip.to_string()),
            ("NODE_NAME", self.plan.node.plan.name.clone()),
            (
                "GATEWAY_NAME",
                pods::gateway(pod).unwrap_or_default().to_owned(),
            ),
        ];
        env.extend(own.map(|(key, value)| (key.to_owned(), value)));
        Ok(env)
    }
}

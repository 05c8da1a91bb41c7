//! Kubernetes objects into the rollout part of a scenario: Deployment, Service, EndpointSlice, Endpoints and Pod, as
//! `kubectl get -o yaml` or `-o json` gives them.
//!
//! What the objects do not tell is named, never guessed in silence: it stands as ASSUMED in the scenario's comments and
//! in [`Imported::open`].
//! Leaves out: StatefulSets, DaemonSets, startup probes, readiness gates, several Services of one Deployment at once.

mod hook;
mod objects;
mod service;
mod yaml;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipvs_model::segment::Endpoint;
use ipvs_model::time::Span;

use crate::diag::{Diag, Diagnostics, Severity, Source};
use crate::scenario::annotate::{Origin, Provenance};
use crate::scenario::{self, OnSigterm, Readiness, Rollout, Scenario, span_text};
use objects::{Container, Objects, PreStop, Reader, Strategy};
pub use objects::{Deployment, Service};

/// The Deployment's objects may hold more pods than a scenario can.
const REPLICAS_MAX: u32 = 1_000;

/// What to take, where the objects leave a choice.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// Name of the Deployment.
    pub deployment: Option<String>,
    /// Name of the Service.
    pub service: Option<String>,
    /// Name or number of the Service's port.
    pub port: Option<String>,
    /// The virtual address that clients call, if known from a recording.
    pub address: Option<Endpoint>,
    /// Address of the node that balances, for a NodePort.
    pub node: Option<Ipv4Addr>,
}

/// The rollout part of a scenario.
#[derive(Clone, Debug)]
pub struct Imported {
    /// `service`, `server`, `rollout`, `kube_proxy.masquerade` and `duration` are from the objects; the rest is default.
    pub scenario: Scenario,
    /// Where each value came from.
    pub notes: Provenance,
    /// What the objects do not tell, and what was taken instead.
    pub open: Vec<String>,
}

/// Reads files and takes the rollout out of them. Warnings may come with it.
///
/// # Errors
/// All mistakes in the texts; objects that are missing, ambiguous, or of a kind that is not modelled.
pub fn import(sources: Vec<Source>, ask: &Ask) -> Result<(Imported, Diagnostics), Diagnostics> {
    let mut reader = Reader::default();
    let mut objects = Objects::default();
    for (index, source) in sources.iter().enumerate() {
        match yaml::documents(&source.text, index) {
            Ok(documents) => {
                for document in &documents {
                    objects.take(document, &mut reader);
                }
            }
            Err(diag) => reader.diags.push(diag),
        }
    }
    let imported = if reader.diags.is_empty() {
        Builder::new(&objects, ask).build(&mut reader.diags)
    } else {
        None
    };
    let diags = reader.diags;
    let found = Diagnostics { sources, diags };
    match imported {
        Some(imported) if !found.has_errors() => Ok((imported, found)),
        _ => Err(found),
    }
}

struct Builder<'a> {
    objects: &'a Objects,
    ask: &'a Ask,
    scenario: Scenario,
    notes: Provenance,
    open: Vec<String>,
}

impl<'a> Builder<'a> {
    fn new(objects: &'a Objects, ask: &'a Ask) -> Self {
        Self {
            objects,
            ask,
            scenario: Scenario::default(),
            notes: Provenance::default(),
            open: Vec::new(),
        }
    }

    fn build(mut self, diags: &mut Vec<Diag>) -> Option<Imported> {
        let deployment = self.deployment(diags)?;
        let service = self.service(deployment, diags);
        let wrong = |diags: &[Diag]| diags.iter().any(|d| d.severity == Severity::Error);
        if wrong(diags) {
            return None;
        }
        if !self.objects.others.is_empty() {
            let others = self.objects.others.join(", ");
            let title =
                format!("passed over, because a rollout is taken from none of them: {others}");
            diags.push(Diag::warning("passed-over", title));
        }
        let container = service::serving(deployment, service, self.ask);
        self.rollout(deployment, container, service, diags);
        if let Some(service) = service {
            self.service_part(service, container, diags);
        } else {
            self.open("no Service was given: its address, port and affinity are not known");
        }
        self.addresses(deployment, service);
        self.duration();
        (!wrong(diags)).then_some(Imported {
            scenario: self.scenario,
            notes: self.notes,
            open: self.open,
        })
    }

    fn open(&mut self, what: impl Into<String>) {
        self.open.push(what.into());
    }

    /// A value that no object tells.
    fn assume(&mut self, path: &str, text: impl Into<String>) {
        let text = text.into();
        self.open.push(format!("`{path}`: {text}"));
        self.notes.note(path, Origin::Assumed, text);
    }

    fn read(&mut self, path: &str, text: impl Into<String>) {
        self.notes.note(path, Origin::Read, text);
    }

    fn deployment(&self, diags: &mut Vec<Diag>) -> Option<&'a Deployment> {
        let all = &self.objects.deployments;
        let named = all.iter().filter(|d| {
            self.ask
                .deployment
                .as_ref()
                .is_none_or(|name| *name == d.name.name)
        });
        let mut fitting = named.collect::<Vec<_>>();
        if fitting.len() > 1
            && let Some(service) = self.named_service()
        {
            fitting.retain(|d| service::selects(service, d));
        }
        match fitting[..] {
            [one] => Some(one),
            [] => {
                let have = all.iter().map(|d| d.name.name.as_str()).collect::<Vec<_>>();
                let title = match (&self.ask.deployment, have.is_empty()) {
                    (_, true) => "no Deployment is among the objects".to_owned(),
                    (Some(name), false) => format!("there is no Deployment {name}"),
                    (None, false) => "the Service selects none of the Deployments".to_owned(),
                };
                let help = match have.is_empty() {
                    true => "give what `kubectl get deployment NAME -o yaml` prints; StatefulSets and DaemonSets are \
                             not modelled"
                        .to_owned(),
                    false => format!("there are: {}", have.join(", ")),
                };
                diags.push(Diag::error("no-deployment", title).help(help));
                None
            }
            [first, ..] => {
                let names = fitting.iter().map(|d| d.name.name.as_str());
                let names = names.collect::<Vec<_>>().join(", ");
                let title = format!("there are {} Deployments: {names}", fitting.len());
                let diag = Diag::error("ambiguous", title)
                    .at(first.name.place, "")
                    .help("say which with --name");
                diags.push(diag);
                None
            }
        }
    }

    fn named_service(&self) -> Option<&'a Service> {
        let name = self.ask.service.as_ref()?;
        self.objects.services.iter().find(|s| s.name.name == *name)
    }

    /// `[rollout.deployment]` and what the pods do.
    fn rollout(
        &mut self,
        deployment: &Deployment,
        container: Option<&Container>,
        service: Option<&Service>,
        diags: &mut Vec<Diag>,
    ) {
        let mut rollout = scenario::Deployment::default();
        let name = &deployment.name.name;
        let path = |field: &str| format!("rollout.deployment.{field}");
        self.scenario.name = name.clone();
        self.scenario.description = format!(
            "A rollout of Deployment {}/{name}.",
            deployment.name.namespace
        );
        self.read("name", "metadata.name of the Deployment");
        self.notes.note(
            &path("start"),
            Origin::Assumed,
            "time for the tables to fill before the rollout begins",
        );
        match deployment.replicas {
            Some(0) => {
                let title =
                    format!("Deployment {name} is scaled to 0: there is nothing to roll out");
                diags.push(Diag::error("no-pods", title).at(deployment.name.place, ""));
            }
            Some(count) if count > REPLICAS_MAX => {
                let title = format!(
                    "Deployment {name} has {count} replicas; scenarios have at most {REPLICAS_MAX}"
                );
                diags.push(Diag::error("too-many-pods", title).at(deployment.name.place, ""));
            }
            Some(count) => {
                rollout.replicas = count;
                self.read(&path("replicas"), "spec.replicas");
            }
            None => {
                rollout.replicas = 1;
                self.assume(&path("replicas"), "spec.replicas is not written: the API's default, 1 (a HorizontalPodAutoscaler may have set another)");
            }
        }
        match deployment.strategy {
            Strategy::RollingUpdate { surge, unavailable } => {
                (rollout.max_surge, rollout.max_unavailable) = (surge.0, unavailable.0);
                let text = |written: bool, field: &str| match written {
                    true => format!("spec.strategy.rollingUpdate.{field}"),
                    false => format!("{field} is not written: the API's default"),
                };
                self.read(&path("max_surge"), text(surge.1, "maxSurge"));
                self.read(
                    &path("max_unavailable"),
                    text(unavailable.1, "maxUnavailable"),
                );
            }
            Strategy::Recreate(place) => {
                let diag = Diag::error("not-modelled", "strategy Recreate is not modelled")
                    .at(place, "all pods go before new ones come: requests fail meanwhile whatever the node does")
                    .help("a [rollout.scripted] of your own comes near; docs/scenario.md");
                diags.push(diag);
            }
        }
        if deployment.paused {
            let title = format!(
                "Deployment {name} is paused: nothing is rolled out until `kubectl rollout resume`"
            );
            diags.push(Diag::warning("paused", title).at(deployment.name.place, ""));
        }
        if deployment.host_network {
            let diag = Diag::error(
                "not-modelled",
                "hostNetwork is not modelled: real servers that are nodes",
            )
            .at(
                deployment.name.place,
                "this Deployment has hostNetwork: true",
            );
            diags.push(diag);
        }
        rollout.min_ready = Span::from_secs(deployment.min_ready.into());
        self.read(
            &path("min_ready"),
            "spec.minReadySeconds (0 if not written)",
        );
        match deployment.grace {
            Some(seconds) => {
                rollout.termination_grace_period = Span::from_secs(seconds.max(1).into());
                self.read(
                    &path("termination_grace_period"),
                    "spec.template.spec.terminationGracePeriodSeconds",
                );
            }
            None => self.read(
                &path("termination_grace_period"),
                "not written: the API's default, 30 s",
            ),
        }
        if service.is_none() && deployment.containers.len() > 1 {
            let count = deployment.containers.len();
            self.open(format!("which of the {count} containers serves is not known without a Service: the first is taken"));
        }
        match container {
            Some(container) => {
                rollout.readiness = self.readiness(container);
                rollout.pre_stop = self.pre_stop(container, rollout.pre_stop);
                rollout.on_sigterm = self.on_sigterm(container, rollout.on_sigterm);
            }
            None => self.open("the Deployment has no container: probe and preStop are not known"),
        }
        self.assume(
            &path("container_start"),
            format!(
                "from the creation of a pod to its container running, {}: no object tells",
                "2 to 4 s"
            ),
        );
        self.scenario.rollout = Rollout::Deployment(rollout);
    }

    fn readiness(&mut self, container: &Container) -> Readiness {
        let path = "rollout.deployment.readiness";
        if container.startup_probe {
            self.open(format!("container {} has a startup probe, which is not modelled: its time goes into `rollout.deployment.container_start`", container.name));
        }
        let Some(probe) = container.readiness else {
            self.read(path, format!("container {} has no readiness probe: it counts as ready when it runs (here: at the first probe, within 1 s)", container.name));
            return Readiness {
                initial_delay: Span::ZERO,
                period: Span::from_secs(1),
                ..Readiness::default()
            };
        };
        self.read(
            path,
            format!(
                "readinessProbe of container {}; what is not written has the API's default",
                container.name
            ),
        );
        let secs = |seconds: u32| Span::from_secs(seconds.into());
        Readiness {
            initial_delay: secs(probe.initial_delay),
            period: secs(probe.period),
            timeout: secs(probe.timeout),
            success_threshold: probe.success,
            failure_threshold: probe.failure,
        }
    }

    fn pre_stop(&mut self, container: &Container, default: Span) -> Span {
        let path = "rollout.deployment.pre_stop";
        let name = &container.name;
        match &container.pre_stop {
            PreStop::None => {
                self.read(path, format!("container {name} has no preStop hook"));
                Span::ZERO
            }
            PreStop::Sleep(seconds) => {
                self.read(path, format!("lifecycle.preStop.sleep of container {name}"));
                Span::from_secs((*seconds).into())
            }
            PreStop::Exec(hook) => {
                let rest = hook.rest.join("; ");
                match hook.sleeps {
                    Some(slept) => {
                        self.read(
                            path,
                            format!("the sleep in lifecycle.preStop.exec of container {name}"),
                        );
                        if !rest.is_empty() {
                            self.open(format!(
                                "preStop also runs `{rest}`, whose time and effect are not known"
                            ));
                        }
                        slept
                    }
                    None => {
                        self.assume(
                            path,
                            format!(
                                "preStop runs `{rest}`, whose time is not known; {} are taken",
                                span_text(default)
                            ),
                        );
                        default
                    }
                }
            }
            PreStop::Other(what) => {
                self.assume(
                    path,
                    format!(
                        "preStop is {what}, whose time is not known; {} are taken",
                        span_text(default)
                    ),
                );
                default
            }
        }
    }

    /// What a server does at SIGTERM is in no object.
    fn on_sigterm(&mut self, container: &Container, default: OnSigterm) -> OnSigterm {
        let image = match container.image.as_str() {
            "" => "its image".to_owned(),
            image => image.to_owned(),
        };
        self.assume(
            "rollout.deployment.on_sigterm",
            format!("what {image} does at SIGTERM is in no object; taken: it exits within 0.1 s and cuts its connections, as nginx does (\"drains\" for a graceful server)"),
        );
        default
    }

    /// The pods that run now.
    fn addresses(&mut self, deployment: &Deployment, service: Option<&Service>) {
        let belongs = |ready: &&objects::Ready| match ready.kind {
            "Pod" => {
                ready.name.namespace == deployment.name.namespace
                    && deployment
                        .labels
                        .iter()
                        .all(|label| ready.labels.contains(label))
            }
            _ => service.is_some_and(|s| {
                (&ready.name.namespace, &ready.name.name) == (&s.name.namespace, &s.name.name)
            }),
        };
        let given = self
            .objects
            .ready
            .iter()
            .filter(belongs)
            .collect::<Vec<_>>();
        let addresses = given.iter().flat_map(|ready| ready.addresses.iter());
        let addresses = addresses.map(|(ip, _)| *ip).collect::<BTreeSet<_>>();
        let nodes = given.iter().flat_map(|ready| &ready.addresses);
        let nodes = nodes
            .filter_map(|(_, node)| node.clone())
            .collect::<BTreeSet<_>>();
        let Some(first) = addresses.first() else {
            self.open("no EndpointSlice or Pod of the Deployment was given: the pods' addresses are made up");
            return;
        };
        self.scenario.server.old_address = *first;
        let listed = addresses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>();
        self.read(
            "server.old_address",
            format!(
                "the lowest of {} ready pods ({}); a scenario numbers its pods from it on",
                listed.len(),
                listed.join(", ")
            ),
        );
        if let Rollout::Deployment(rollout) = &self.scenario.rollout
            && rollout.replicas as usize != addresses.len()
        {
            let text = format!(
                "{} pods are ready, the Deployment asks for {}: a rollout or a failure is under way, or another Deployment shares the Service",
                addresses.len(),
                rollout.replicas
            );
            self.open(text);
        }
        if nodes.len() > 1 && service.is_some_and(|s| s.external_policy.as_deref() == Some("Local"))
        {
            let nodes = nodes.into_iter().collect::<Vec<_>>().join(", ");
            self.open(format!("externalTrafficPolicy is Local and the pods are on {nodes}: each node sends only to its own; set `rollout.deployment.replicas` to the pods of the node you ask about"));
        }
    }

    /// Long enough for the rollout and for what it leaves in the tables.
    fn duration(&mut self) {
        let Rollout::Deployment(rollout) = &self.scenario.rollout else {
            return;
        };
        let step = rollout.surge() + rollout.unavailable();
        let steps = rollout.replicas.div_ceil(step.max(1));
        let ready =
            rollout.readiness.initial_delay.0 + rollout.readiness.period.0 + rollout.min_ready.0;
        let one = Span::from_secs(5).0 + ready;
        let gone = rollout.termination_grace_period;
        let total =
            rollout.start.0 + one.saturating_mul(steps.into()) + gone.0 + Span::from_secs(240).0;
        // In whole minutes.
        let minutes = Span(total).as_secs().div_ceil(60).min(1_440);
        self.scenario.duration = Span::from_secs(minutes * 60);
        self.notes.note("duration", Origin::Derived, format!("{steps} steps of a pod each becoming ready, the last one's end, and four minutes for entries to expire"));
    }
}

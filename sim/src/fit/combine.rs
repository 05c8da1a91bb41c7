//! A recording and the objects of the cluster in one scenario: traffic and node from the one, the rollout from the other.

use ipvs_model::conntrack::SourceNat;

use super::Fitted;
use crate::engine::source_nat;
use crate::import::Imported;
use crate::scenario::annotate::{Note, Origin};
use crate::scenario::{Masquerade, Rollout, Scenario};

/// Lays the objects over what was fitted. What the recording measured stays; where the two disagree, a remark says so.
pub fn combine(mut fitted: Fitted, imported: &Imported) -> Fitted {
    let measured = |fitted: &Fitted, path: &str| {
        fitted
            .notes
            .get(path)
            .is_some_and(|note| note.origin == Origin::Measured)
    };
    let scenario = &imported.scenario;
    let running = match fitted.scenario.rollout {
        Rollout::Deployment(deployment) if measured(&fitted, "rollout.deployment.replicas") => {
            Some(deployment.replicas)
        }
        _ => None,
    };
    fitted.scenario.rollout = scenario.rollout;
    fitted.notes.take_over("rollout", &imported.notes);
    if let (Some(running), Rollout::Deployment(deployment)) = (running, scenario.rollout)
        && running != deployment.replicas
    {
        fitted.remarks.push(format!("the rules had {running} real servers with a weight, the Deployment asks for {} replicas: with externalTrafficPolicy Local a node has only its own pods", deployment.replicas));
    }
    for path in ["duration", "name"] {
        if let Some(note) = imported.notes.get(path) {
            let Note { origin, text } = note.clone();
            fitted.notes.note(path, origin, text);
        }
    }
    fitted.scenario.duration = scenario.duration;
    fitted.scenario.name.clone_from(&scenario.name);
    fitted.scenario.description = format!(
        "{} Clients and node from a recording.",
        scenario.description
    );
    let from_objects = |path: &str| imported.notes.get(path).cloned();
    // Each value of the service: the recording's word if it has one, else the object's.
    if measured(&fitted, "service.session_affinity") {
        if fitted.scenario.service.session_affinity != scenario.service.session_affinity {
            fitted.remarks.push("session affinity differs between the node's rules and the Service: the rules are taken".to_owned());
        }
    } else if let Some(note) = from_objects("service.session_affinity") {
        fitted.scenario.service.session_affinity = scenario.service.session_affinity;
        fitted
            .notes
            .note("service.session_affinity", note.origin, note.text);
    }
    if measured(&fitted, "kube_proxy.masquerade") {
        if meant(&fitted.scenario) != meant(scenario) {
            fitted.remarks.push("whose address the pods see differs between conntrack and what the Service's externalTrafficPolicy means: conntrack is taken".to_owned());
        }
    } else if let Some(note) = from_objects("kube_proxy.masquerade") {
        fitted.scenario.kube_proxy.masquerade = scenario.kube_proxy.masquerade;
        fitted.scenario.service.kind = scenario.service.kind;
        fitted.scenario.service.traffic_policy = scenario.service.traffic_policy;
        fitted
            .notes
            .note("kube_proxy.masquerade", note.origin, note.text);
    }
    if !measured(&fitted, "server.old_address")
        && let Some(note) = from_objects("server.old_address")
    {
        fitted.scenario.server.old_address = scenario.server.old_address;
        fitted
            .notes
            .note("server.old_address", note.origin, note.text);
    }
    if fitted.scenario.service.target_port != scenario.service.target_port
        && from_objects("service.target_port").is_some()
    {
        fitted.remarks.push(format!(
            "the real servers' port is {}, the Service's targetPort {}: the former is taken",
            fitted.scenario.service.target_port, scenario.service.target_port
        ));
    }
    fitted.remarks.extend(
        imported
            .open
            .iter()
            // Values have their notes; the pods are in the rules.
            .filter(|text| !text.starts_with('`') && !text.contains("addresses are made up"))
            .cloned(),
    );
    fitted
}

/// What masquerading comes to for the scenario's callers.
fn meant(scenario: &Scenario) -> Masquerade {
    if scenario.kube_proxy.masquerade != Masquerade::KubeProxy {
        return scenario.kube_proxy.masquerade;
    }
    match source_nat(scenario) {
        (_, sources) if !sources.clients.is_empty() => Masquerade::None,
        (SourceNat::Masquerade { random: true, .. }, _) => Masquerade::RandomFully,
        (SourceNat::Masquerade { random: false, .. }, _) => Masquerade::Masquerade,
        _ => Masquerade::None,
    }
}

//! Numbers into a scenario whose every value has a note.

mod clients;
mod node;
mod service;

use ipvs_model::segment::Endpoint;
use ipvs_model::time::Span;

use super::Fitted;
use super::conns::Flows;
use super::estimate::{ClientFit, Quantiles};
use super::evidence::{DeadEvidence, KeptEvidence};
use super::scan::Scan;
use crate::capture::Capture;
use crate::scenario::annotate::{Origin, Provenance};
use crate::scenario::{Deployment, Dist, Masquerade, Rollout, Scenario, span_text};

/// What the passes found.
pub(super) struct Found<'a> {
    pub capture: &'a Capture,
    pub scan: &'a Scan,
    pub service: Endpoint,
    pub flows: &'a Flows,
    pub source_nat: Option<(Masquerade, u64)>,
    pub clients: Vec<ClientFit>,
    pub dead: DeadEvidence,
    pub kept: KeptEvidence,
    pub clients_max: usize,
}

struct Draft<'a> {
    found: Found<'a>,
    scenario: Scenario,
    notes: Provenance,
    remarks: Vec<String>,
}

/// Writes the scenario.
pub(super) fn write(found: Found<'_>) -> Fitted {
    let mut draft = Draft {
        found,
        scenario: Scenario::default(),
        notes: Provenance::default(),
        remarks: Vec::new(),
    };
    draft.head();
    draft.service();
    draft.node();
    draft.server();
    draft.clients();
    draft.network();
    draft.rollout();
    let Draft {
        found,
        scenario,
        notes,
        remarks,
    } = draft;
    Fitted {
        scenario,
        notes,
        clients: found.clients,
        dead: found.dead,
        kept: found.kept,
        remarks,
    }
}

/// "12 connections", "1 connection".
fn many(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

impl Draft<'_> {
    fn note(&mut self, path: &str, origin: Origin, text: impl Into<String>) {
        self.notes.note(path, origin, text);
    }

    fn head(&mut self) {
        self.scenario.name = "fitted".to_owned();
        self.scenario.description = format!("What a recording of {} shows.", self.found.service);
        let flows = self.found.flows;
        let span = self
            .found
            .scan
            .span
            .map_or(Span::ZERO, |(first, last)| last.since(first));
        self.remarks.push(format!(
            "{} of {} seen in {} of recording, {}",
            many(flows.conns.len() as u64, "connection"),
            self.found.service,
            span_text(Span::from_secs(span.as_secs())),
            if flows.exact {
                "packet by packet"
            } else {
                "in listings of the tables"
            },
        ));
    }

    fn network(&mut self) {
        let Some(busiest) = self.found.clients.first().cloned() else {
            return;
        };
        let [to_server, to_client, service] = busiest.latencies;
        let half = |q: &Quantiles| Span(q.median.0 / 2);
        let whole = |q: &Quantiles| format!("half of {} at the node", quantiles(q));
        if let Some(q) = &to_client {
            self.scenario.network.client_node = Dist::Constant(half(q));
            self.note(
                "network.client_node",
                Origin::Measured,
                format!("SYN-ACK to ACK, {}", whole(q)),
            );
        }
        if let Some(q) = &to_server {
            self.scenario.network.node_pod = Dist::Constant(half(q));
            self.note(
                "network.node_pod",
                Origin::Measured,
                format!("SYN to SYN-ACK, {}", whole(q)),
            );
        }
        if let Some(q) = &service {
            let way = to_server.map_or(0, |q| q.median.0);
            self.scenario.server.service_time =
                Dist::Constant(Span(q.median.0.saturating_sub(way)));
            self.note(
                "server.service_time",
                Origin::Measured,
                format!(
                    "request to response at the node, {}, less the way to the pod",
                    quantiles(q)
                ),
            );
        }
    }

    fn rollout(&mut self) {
        let Found { scan, service, .. } = self.found;
        let count = scan.rules_of(service).map_or(0, |(_, rules)| {
            rules.reals.values().filter(|real| real.weight > 0).count()
        });
        let mut deployment = Deployment::default();
        self.note("rollout.deployment", Origin::Assumed, "a rollout of a Deployment with the founding case's probe and preStop. `sim fit CAPTURE --deployment FILE` takes yours");
        match u32::try_from(count) {
            Ok(count @ 1..=1_000) => {
                deployment.replicas = count;
                self.note(
                    "rollout.deployment.replicas",
                    Origin::Measured,
                    "real servers with a weight in the last rules",
                );
            }
            _ => self.note(
                "rollout.deployment.replicas",
                Origin::Assumed,
                "no rule with real servers was recorded",
            ),
        }
        self.scenario.rollout = Rollout::Deployment(deployment);
    }
}

fn quantiles(q: &Quantiles) -> String {
    if q.min == q.max {
        return format!("{} ({})", short(q.median), many(q.count as u64, "sample"));
    }
    format!(
        "{} (median of {}; {} to {}, 10 % below {}, 10 % above {})",
        short(q.median),
        many(q.count as u64, "sample"),
        short(q.min),
        short(q.max),
        short(q.low),
        short(q.high)
    )
}

/// A time with three digits or so.
fn short(span: Span) -> String {
    let unit = match span.0 {
        0..10_000_000 => 1_000,
        10_000_000..10_000_000_000 => 1_000_000,
        _ => 100_000_000,
    };
    span_text(Span((span.0 + unit / 2) / unit * unit))
}

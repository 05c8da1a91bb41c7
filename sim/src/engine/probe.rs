//! What chance a request has to meet an entry of the past, known at the moment before its port is drawn.
//!
//! With bind() to port 0 the kernel draws the start of its search (facts 6.2), so given the state of client and node the
//! chance of every port is known exactly. A probed run writes down, for every request, the ports whose IPVS entry leads
//! to a real server that takes no new connections, with their chances; a run with the same seed and one request *forced* to
//! one of these ports shows what then becomes of it. `experiment::rare` makes an estimate of both.
//!
//! A probe reads the tables and changes nothing: the run is that of the seed.

use std::collections::BTreeSet;

use super::RunResult;
use super::trace::TraceOptions;
use super::world::World;
use crate::outcome::Outcome;
use crate::scenario::{DataPlane, PortChoice, Scenario};

/// One port that a request may draw and that has a past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chance {
    /// The request's number in the run.
    pub request: u64,
    /// The port.
    pub port: u16,
    /// So many starts of the search lead to it,
    pub starts: u32,
    /// out of so many.
    pub of: u32,
}

/// What a probed run gives beside its counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probed {
    /// All chances of all counted requests, in their order.
    pub chances: Vec<Chance>,
    /// Counted requests that did draw such a port and failed.
    pub hits_failed: u64,
    /// How the forced request ended, if it did.
    pub forced: Option<Outcome>,
}

/// The probe of a run.
#[derive(Debug, Default)]
pub(super) struct Probe {
    force: Option<(u64, u16)>,
    hits: BTreeSet<u64>,
    found: Probed,
}

/// Replays a scenario with a seed, and probes it. With `force` the request of that number gets that port, which one of
/// the chances of the same seed named.
///
/// # Errors
/// Those of [`super::run`], and if ports are not drawn: with connect() the search goes on where the last one
/// ended.
pub fn run(
    scenario: &Scenario,
    seed: u64,
    force: Option<(u64, u16)>,
) -> Result<(RunResult, Probed), String> {
    if scenario.node.mode != DataPlane::Ipvs {
        return Err(
            "rare events are conditioned on IPVS entries: set node.mode to ipvs".to_owned(),
        );
    }
    if let Some(place) = scenario
        .client
        .iter()
        .position(|client| client.port_choice != PortChoice::Bind)
    {
        return Err(format!(
            "client {place} does not draw its ports: conditioning needs port_choice = \"bind\" (--port-choice bind); with \
             connect() and with a list the next port follows from the last one"
        ));
    }
    let options = TraceOptions {
        no_quiet: true,
        ..TraceOptions::default()
    };
    let mut world = World::new(scenario, seed, &options)?;
    world.probe = Some(Box::new(Probe {
        force,
        ..Probe::default()
    }));
    let (summary, trace, probe) = world.run_probed();
    let found = probe.map_or_else(Probed::default, |probe| probe.found);
    Ok((RunResult { summary, trace }, found))
}

impl World<'_> {
    /// Before a request's port is drawn: the chances, and the port that it is forced to.
    pub(super) fn before_port(&mut self, request: u64, host: u32, counted: bool) -> Option<u16> {
        self.probe.as_ref()?;
        self.pay_all();
        self.node.advance(self.now);
        let ports = if counted {
            self.ports_with_a_past(host)
        } else {
            Vec::new()
        };
        let host = self.hosts.get(host);
        let chances = ports.into_iter().filter_map(|port| {
            let (starts, of) = host.starts_leading_to(port)?;
            (starts > 0).then_some(Chance {
                request,
                port,
                starts,
                of,
            })
        });
        let chances: Vec<Chance> = chances.collect();
        let probe = self.probe.as_mut()?;
        probe.found.chances.extend(chances);
        probe
            .force
            .filter(|(forced, _)| *forced == request)
            .map(|(_, port)| port)
    }

    /// The ports of a host whose entries lead to real servers at weight 0 or deleted ones, in order.
    fn ports_with_a_past(&self, host: u32) -> Vec<u16> {
        let address = self.hosts.peek(host).address();
        let (dests, key) = (self.node.ipvs.dests(), self.key.addr);
        let entries = self.node.ipvs.table().iter();
        let past = entries.filter(|(_, entry)| {
            !entry.is_template() && entry.client().ip == address && entry.virt() == key && {
                let dest = dests.get(entry.dest());
                dest.weight == 0 || !dest.available
            }
        });
        let ports: BTreeSet<u16> = past.map(|(_, entry)| entry.client().port).collect();
        ports.into_iter().collect()
    }

    /// After a request got its port.
    pub(super) fn got_port(&mut self, request: u64, port: u16) {
        let Some(probe) = self.probe.as_mut() else {
            return;
        };
        let chances = probe.found.chances.iter().rev();
        let mut own = chances.take_while(|chance| chance.request == request);
        if own.any(|chance| chance.port == port) {
            probe.hits.insert(request);
        }
    }

    /// When a request has ended.
    pub(super) fn ended_probed(&mut self, request: u64, outcome: Outcome) {
        let Some(probe) = self.probe.as_mut() else {
            return;
        };
        if probe.hits.remove(&request) && outcome.is_failure() {
            probe.found.hits_failed += 1;
        }
        if probe.force.is_some_and(|(forced, _)| forced == request) {
            probe.found.forced = Some(outcome);
        }
    }
}

//! The rules as the log shows them over time, for captures without packets.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;

use ipvs_model::ipvs::service::{Persistence, ServiceKey};
use ipvs_model::segment::Endpoint;

use crate::capture::{Endpoints, ListedService, RuleCommand, RulesBlock, ServiceArgs, Stamp};
use crate::diff::setup::{key_of, service_of};

/// Where a real server may stand in its service's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// Listed, at weight 0.
    Drained,
    /// Listed, with a weight above 0.
    Weighted,
    /// Not listed any more.
    Deleted,
}

/// A service of the rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Service {
    persistence: Option<Persistence>,
    weights: BTreeMap<Endpoint, u32>,
    /// The list has all its real servers.
    whole: bool,
}

/// The rules of a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    services: BTreeMap<ServiceKey, Service>,
    /// Addresses that Endpoints objects list, ready or not.
    endpoints: BTreeSet<Ipv4Addr>,
    /// Of them, the ready ones.
    ready: BTreeSet<Ipv4Addr>,
}

/// All that the log has said of the rules, as far back as it may matter.
#[derive(Default)]
pub(super) struct Known {
    history: VecDeque<(Stamp, State)>,
    /// Every service that was ever listed, or that an IPVS entry belonged to.
    pub services: BTreeSet<ServiceKey>,
    /// The latest `ipvsadm --set`.
    pub timeouts: Option<(u32, u32, u32)>,
}

impl Known {
    fn change(&mut self, at: Stamp, change: impl FnOnce(&mut State)) {
        let before = self.history.back().map(|(_, state)| state);
        let mut state = before.cloned().unwrap_or_default();
        change(&mut state);
        self.services.extend(state.services.keys().copied());
        if before != Some(&state) {
            self.history.push_back((at, state));
        }
    }

    /// Takes a block of the rules log.
    pub(super) fn rules(&mut self, at: Stamp, block: &RulesBlock) {
        for (_, command) in &block.commands {
            if let RuleCommand::SetTimeouts {
                tcp_s,
                tcpfin_s,
                udp_s,
            } = command
            {
                self.timeouts = Some((*tcp_s, *tcpfin_s, *udp_s));
            }
        }
        self.change(at, |state| {
            for (_, command) in &block.commands {
                state.command(command);
            }
            if let Some(dump) = &block.dump {
                state.services.clear();
                for command in dump {
                    state.command(command);
                }
            }
            if let Some(listing) = &block.listing {
                state.listing(listing, block.complete);
            }
        });
    }

    /// Takes Endpoints objects: those of one moment together are the state.
    pub(super) fn endpoints(&mut self, at: Stamp, objects: &[Endpoints]) {
        self.change(at, |state| {
            state.endpoints.clear();
            state.ready.clear();
            for object in objects {
                let all = object.addresses.iter().chain(&object.not_ready);
                state.endpoints.extend(all);
                state.ready.extend(&object.addresses);
            }
        });
    }

    /// Forgets what was before the state in force at `at`.
    pub(super) fn forget_before(&mut self, at: Stamp) {
        while self.history.get(1).is_some_and(|(next, _)| *next <= at) {
            self.history.pop_front();
        }
    }

    /// The states that may have held between two moments. A listing shows a change some time after it happened, so the
    /// first one after the end belongs to them.
    fn between(&self, from: Stamp, to: Stamp) -> impl Iterator<Item = &State> {
        let first = self.history.iter().rposition(|(at, _)| *at <= from);
        let after = self.history.iter().position(|(at, _)| *at > to);
        let end = after.map_or(self.history.len(), |after| after + 1);
        let states = self.history.range(first.unwrap_or(0).min(end)..end);
        states.map(|(_, state)| state)
    }

    /// The places that a real server may have had between two moments; none if the log does not say.
    pub(super) fn places(
        &self,
        key: ServiceKey,
        dest: Endpoint,
        from: Stamp,
        to: Stamp,
    ) -> BTreeSet<Place> {
        let states = self
            .between(from, to)
            .filter_map(|state| state.services.get(&key));
        let place = |service: &Service| match service.weights.get(&dest) {
            Some(0) => Some(Place::Drained),
            Some(_) => Some(Place::Weighted),
            None => service.whole.then_some(Place::Deleted),
        };
        states.filter_map(place).collect()
    }

    /// The persistence of a service between two moments.
    pub(super) fn persistence(
        &self,
        key: ServiceKey,
        from: Stamp,
        to: Stamp,
    ) -> Option<Persistence> {
        let mut states = self.between(from, to);
        states.find_map(|state| state.services.get(&key)?.persistence)
    }

    /// Addresses of weighted real servers and of Endpoints at a moment, and the ready ones of Endpoints; `None` if the log
    /// lists neither.
    pub(super) fn listed(&self, at: Stamp) -> Option<(BTreeSet<Ipv4Addr>, &BTreeSet<Ipv4Addr>)> {
        let (_, state) = self.history.iter().rfind(|(then, _)| *then <= at)?;
        let weights = state
            .services
            .values()
            .flat_map(|service| &service.weights)
            .filter(|(_, weight)| **weight > 0);
        let mut listed = state.endpoints.clone();
        listed.extend(weights.map(|(dest, _)| dest.ip));
        Some((listed, &state.ready))
    }
}

impl State {
    fn listing(&mut self, listing: &[ListedService], complete: bool) {
        if complete {
            self.services.clear();
        }
        for listed in listing {
            let weights = listed.dests.iter().map(|dest| (dest.real, dest.weight));
            let service = Service {
                persistence: persistence(&listed.service),
                weights: weights.collect(),
                whole: complete,
            };
            self.services.insert(key_of(listed.service.id), service);
        }
    }

    fn command(&mut self, command: &RuleCommand) {
        match command {
            RuleCommand::AddService(args) | RuleCommand::EditService(args) => {
                let service = self.services.entry(key_of(args.id)).or_default();
                service.persistence = persistence(args);
                // Whoever sees it made sees all that is added.
                service.whole |= matches!(command, RuleCommand::AddService(_));
            }
            RuleCommand::DeleteService(id) => {
                self.services.remove(&key_of(*id));
            }
            RuleCommand::AddDest(id, dest) | RuleCommand::EditDest(id, dest) => {
                let service = self.services.entry(key_of(*id)).or_default();
                service.weights.insert(dest.real, dest.weight);
            }
            RuleCommand::DeleteDest(id, real) => {
                let service = self.services.entry(key_of(*id)).or_default();
                service.weights.remove(real);
            }
            RuleCommand::Flush => self.services.clear(),
            RuleCommand::SetTimeouts { .. } => {}
        }
    }
}

fn persistence(args: &ServiceArgs) -> Option<Persistence> {
    service_of(args).and_then(|(_, _, persistence)| persistence)
}

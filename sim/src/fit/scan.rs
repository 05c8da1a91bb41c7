//! The first pass: which services a capture knows, their rules, real servers and pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipvs_model::segment::{Endpoint, Proto};

use super::FitError;
use crate::capture::{Body, Capture, Content, RuleCommand, Stamp};

/// A real server of a service, as the rules had it last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Real {
    /// Its weight.
    pub weight: u32,
}

/// What the rules say of a service.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The scheduler's name.
    pub scheduler: String,
    /// Persistence timeout in seconds.
    pub persistent_s: Option<u32>,
    /// Its real servers, as they were last.
    pub reals: BTreeMap<Endpoint, Real>,
    /// Real servers that were drained or deleted during the recording, and when.
    pub drained: BTreeMap<Endpoint, Stamp>,
}

/// What the first pass found.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// Services by their address; TCP only.
    pub services: BTreeMap<Endpoint, Rules>,
    /// Virtual addresses that entries or SYNs point at, with how many.
    pub called: BTreeMap<Endpoint, u64>,
    /// Pods that are ready in the last Endpoints objects.
    pub endpoints: BTreeSet<Ipv4Addr>,
    /// Time of the first and the last event.
    pub span: Option<(Stamp, Stamp)>,
    /// Real servers of the table's entries, a count of entries each, by virtual address.
    pub entry_reals: BTreeMap<(Endpoint, Endpoint), u64>,
}

/// Reads the capture once.
pub fn scan(capture: &Capture) -> Result<Scan, FitError> {
    let mut found = Scan::default();
    let mut syns = BTreeMap::<Endpoint, u64>::new();
    let mut events = capture.events()?;
    while let Some(event) = events.next_event()? {
        let at = event.at;
        found.span = Some(match found.span {
            Some((first, last)) => (first.min(at), last.max(at)),
            None => (at, at),
        });
        match event.body {
            Body::Rules(block) => {
                for (_, command) in &block.commands {
                    found.command(command, at);
                }
                if let Some(dump) = &block.dump {
                    let mut fresh = Scan::default();
                    for command in dump {
                        fresh.command(command, at);
                    }
                    found.replace(fresh.services, at);
                }
                if let Some(listing) = block.listing {
                    let tcp = listing
                        .into_iter()
                        .filter(|s| s.service.id.proto == Proto::Tcp);
                    let services = tcp.map(|listed| {
                        let reals = listed.dests.iter();
                        let rules = Rules {
                            scheduler: listed.service.scheduler.clone(),
                            persistent_s: listed.service.persistent_s,
                            reals: reals.map(|d| (d.real, Real { weight: d.weight })).collect(),
                            drained: BTreeMap::new(),
                        };
                        (listed.service.id.at, rules)
                    });
                    found.replace(services.collect(), at);
                }
            }
            Body::Ipvs(table) => {
                for row in table
                    .rows
                    .iter()
                    .filter(|row| row.proto == Proto::Tcp && !row.is_template())
                {
                    *found.called.entry(row.virt).or_default() += 1;
                    *found.entry_reals.entry((row.virt, row.dest)).or_default() += 1;
                }
            }
            Body::Endpoints(objects) => {
                let ready = objects
                    .iter()
                    .flat_map(|object| object.addresses.iter().copied());
                found.endpoints = ready.collect();
            }
            Body::Packet(packet) => {
                if let Content::Segment { segment, .. } = packet.content
                    && segment.tuple.proto == Proto::Tcp
                    && segment.flags.is_plain_syn()
                {
                    *syns.entry(segment.tuple.dst).or_default() += 1;
                }
            }
            Body::Conntrack(_) | Body::ConntrackEvent(_) | Body::Sysctls(_) | Body::Pods(_) => {}
        }
    }
    // Without rules and entries, what SYNs are sent to is a service as far as anybody can tell.
    let bare = found.services.is_empty() && found.called.is_empty();
    for (at, count) in syns {
        if bare || found.services.contains_key(&at) || found.called.contains_key(&at) {
            *found.called.entry(at).or_default() += count;
        }
    }
    Ok(found)
}

impl Scan {
    /// The service to fit: the one asked for, or the one most called.
    pub fn choose(&self, asked: Option<Endpoint>) -> Result<Endpoint, FitError> {
        if let Some(service) = asked {
            if self.called.contains_key(&service) || self.services.contains_key(&service) {
                return Ok(service);
            }
            let known = self.called.keys().chain(self.services.keys());
            let known = known.collect::<BTreeSet<_>>();
            let known = known.iter().map(ToString::to_string).collect::<Vec<_>>();
            return Err(FitError::Empty(format!(
                "the capture knows no service {asked}; it has {known}",
                asked = service,
                known = if known.is_empty() {
                    "none".to_owned()
                } else {
                    known.join(", ")
                }
            )));
        }
        // The most called; of equals, the first.
        let most = self
            .called
            .iter()
            .max_by_key(|(at, count)| (**count, std::cmp::Reverse(**at)));
        most.map(|(at, _)| *at).ok_or_else(|| {
            FitError::Empty(
                "the capture shows no connection of any IPVS service: there is nothing to fit. Record while clients call the \
                 service: `sim record --service ADDRESS:PORT --packets --for 5m`"
                    .to_owned(),
            )
        })
    }

    /// The rules of a service; if it is not listed, those of one that has the same real servers in common.
    pub fn rules_of(&self, service: Endpoint) -> Option<(Endpoint, &Rules)> {
        if let Some(rules) = self.services.get(&service) {
            return Some((service, rules));
        }
        let port = self.target_port(service)?;
        let same_port = self.services.iter().filter(|(_, rules)| {
            !rules.reals.is_empty() && rules.reals.keys().all(|real| real.port == port)
        });
        // Endpoints objects tell which of them belong together.
        same_port
            .filter(|(_, rules)| {
                self.endpoints.is_empty()
                    || rules
                        .reals
                        .keys()
                        .all(|real| self.endpoints.contains(&real.ip))
            })
            .map(|(at, rules)| (*at, rules))
            .next()
    }

    /// The port of the real servers of a service's entries.
    pub fn target_port(&self, service: Endpoint) -> Option<u16> {
        let listed = self
            .services
            .get(&service)
            .and_then(|rules| rules.reals.keys().next());
        let entries = self
            .entry_reals
            .iter()
            .filter(|((virt, _), _)| *virt == service);
        let entry = entries
            .max_by_key(|(_, count)| **count)
            .map(|((_, real), _)| real);
        listed.or(entry).map(|real| real.port)
    }

    /// Whether the last rules and Endpoints know a real server, with a weight; `None` if there are no rules.
    pub fn serves(&self, service: Endpoint, real: Endpoint) -> Option<bool> {
        let (_, rules) = self.rules_of(service)?;
        Some(rules.reals.get(&real).is_some_and(|real| real.weight > 0))
    }

    fn replace(&mut self, services: BTreeMap<Endpoint, Rules>, at: Stamp) {
        for (address, mut fresh) in services {
            if let Some(before) = self.services.get(&address) {
                fresh.drained = before.drained.clone();
                for (real, had) in &before.reals {
                    let now = fresh.reals.get(real).map_or(0, |real| real.weight);
                    if had.weight > 0 && now == 0 {
                        fresh.drained.insert(*real, at);
                    }
                }
            }
            self.services.insert(address, fresh);
        }
    }

    fn command(&mut self, command: &RuleCommand, at: Stamp) {
        match command {
            RuleCommand::AddService(args) | RuleCommand::EditService(args)
                if args.id.proto == Proto::Tcp =>
            {
                let rules = self.services.entry(args.id.at).or_default();
                rules.scheduler.clone_from(&args.scheduler);
                rules.persistent_s = args.persistent_s;
            }
            RuleCommand::DeleteService(id) => {
                self.services.remove(&id.at);
            }
            RuleCommand::AddDest(id, dest) | RuleCommand::EditDest(id, dest)
                if id.proto == Proto::Tcp =>
            {
                let rules = self.services.entry(id.at).or_default();
                let had = rules.reals.insert(
                    dest.real,
                    Real {
                        weight: dest.weight,
                    },
                );
                if dest.weight == 0 && had.is_some_and(|had| had.weight > 0) {
                    rules.drained.insert(dest.real, at);
                }
            }
            RuleCommand::DeleteDest(id, real) => {
                if let Some(rules) = self.services.get_mut(&id.at)
                    && rules.reals.remove(real).is_some_and(|had| had.weight > 0)
                {
                    rules.drained.insert(*real, at);
                }
            }
            RuleCommand::Flush => self.services.clear(),
            _ => {}
        }
    }
}

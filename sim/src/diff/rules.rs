//! Rules: commands are applied, listings and dumps are compared and then taken over.

use std::collections::BTreeSet;

use ipvs_model::ipvs::service::{AdminError, ServiceKey};
use ipvs_model::ipvs::table::EntryId;
use ipvs_model::segment::{Endpoint, Tuple};

use super::ahead::Ahead;
use super::missed::{MAYBE_CHANGED, UNSPOKEN};
use super::replay::{LISTING_MAX, Replay};
use super::report::Class;
use super::setup::{key_of, service_of};
use crate::capture::ipvsadm::DestArgs;
use crate::capture::{
    Event, Forward, ListedService, ReadError, RuleCommand, RulesBlock, ServiceArgs,
};

impl Replay<'_> {
    pub(super) fn rules(&mut self, event: &Event, block: &RulesBlock) {
        self.node.advance(self.now());
        for (_, command) in &block.commands {
            self.command(command);
        }
        if let Some(dump) = &block.dump {
            let services = services_of_dump(dump);
            self.report.snapshots += 1;
            self.take_rules(None, &services, block.complete);
        }
        if let Some(listing) = &block.listing {
            self.report.snapshots += 1;
            self.take_rules(Some(event), listing, block.complete);
        }
    }

    /// Takes the state that a later block shows, ahead of its time.
    pub(super) fn rules_ahead(&mut self, block: &RulesBlock) {
        let dumped = block.dump.as_deref().map(services_of_dump);
        if let Some(services) = dumped.as_ref().or(block.listing.as_ref()) {
            self.take_rules(None, services, block.complete);
        }
    }

    /// Whether an entry's real server may have been deleted so long ago that its entries have been flushed
    /// (`ip_vs_expire_nodest_conn_flush`, a tick after the deletion): a listing showed only that it is gone, or soon will.
    pub(super) fn may_be_flushed(&self, id: EntryId, ahead: &mut Ahead) -> Result<bool, ReadError> {
        let entry = self.node.ipvs.table().get(id);
        let dest = self.node.ipvs.dests().get(entry.dest());
        if !self.sysctls.vs.expire_nodest_conn {
            return Ok(false);
        }
        let (key, addr) = (dest.service, dest.addr);
        let (now, ticks) = (self.now(), 3_000_000_000 / u64::from(self.setup.hz));
        let mut lately = self.unlisted.iter();
        if lately.any(|(k, a, at)| (*k, *a) == (key, addr) && now.since(*at).0 <= ticks) {
            return Ok(true);
        }
        let block = ahead.rules_after(self.stamp(), LISTING_MAX)?;
        Ok(dest.available
            && block.is_some_and(|(_, block)| {
                let shows = block.complete && (block.listing.is_some() || block.dump.is_some());
                shows && Self::listed_servers(block).all(|end| end != addr)
            }))
    }

    /// The real servers that a block lists.
    pub(super) fn listed_servers(block: &RulesBlock) -> impl Iterator<Item = Endpoint> + '_ {
        let listing = block.listing.iter().flatten();
        let listed = listing
            .flat_map(|service| &service.dests)
            .map(|dest| dest.real);
        let dump = block.dump.iter().flatten();
        listed.chain(dump.filter_map(|command| match command {
            RuleCommand::AddDest(_, dest) => Some(dest.real),
            _ => None,
        }))
    }

    /// Whether a block shows a service otherwise than the model has it: its real servers and their weights.
    pub(super) fn differs(&self, block: &RulesBlock, key: ServiceKey) -> bool {
        let dumped = block.dump.as_deref().map(services_of_dump);
        let Some(services) = dumped.as_ref().or(block.listing.as_ref()) else {
            return false;
        };
        if self.foreign.contains(&key.addr) {
            return false;
        }
        let Some(listed) = services.iter().find(|s| key_of(s.service.id) == key) else {
            return block.complete && self.node.ipvs.service(key).is_some();
        };
        let mine = self.node.ipvs.real_servers(key);
        let mut mine = mine
            .map(|dest| (dest.addr, dest.weight))
            .collect::<Vec<_>>();
        let listed = listed.dests.iter().map(|dest| (dest.real, dest.weight));
        let mut listed = listed.collect::<Vec<_>>();
        mine.sort_unstable();
        listed.sort_unstable();
        mine != listed
    }

    fn command(&mut self, command: &RuleCommand) {
        let now = self.now();
        let done = match command {
            RuleCommand::AddService(args) => self.add(args),
            RuleCommand::EditService(args) => match service_of(args) {
                Some((kind, flags, persistence)) => {
                    let key = key_of(args.id);
                    self.schedulers.remove(&key);
                    self.node.ipvs.edit_service(key, kind, flags, persistence)
                }
                None => self.refuse_service(args.id.at),
            },
            RuleCommand::DeleteService(id) => self.node.ipvs.delete_service(now, key_of(*id)),
            RuleCommand::AddDest(id, dest) => self.add_dest(key_of(*id), dest),
            RuleCommand::EditDest(id, dest) => self.in_every_state(key_of(*id), |ipvs, key| {
                ipvs.edit_dest(key, dest.real, dest.weight)
            }),
            RuleCommand::DeleteDest(id, real) => {
                self.in_every_state(key_of(*id), |ipvs, key| ipvs.delete_dest(now, key, *real))
            }
            RuleCommand::Flush => {
                let keys = self.keys();
                for key in keys {
                    let _ = self.node.ipvs.delete_service(now, key);
                }
                Ok(())
            }
            RuleCommand::SetTimeouts {
                tcp_s,
                tcpfin_s,
                udp_s,
            } => {
                self.node.ipvs.set_timeouts(*tcp_s, *tcpfin_s, *udp_s);
                Ok(())
            }
        };
        if done.is_err() {
            self.report
                .not_checked("ipvsadm command that the kernel would refuse, left aside");
        }
    }

    fn keys(&self) -> Vec<ServiceKey> {
        let services = self.node.ipvs.services().iter();
        services.map(|service| service.key).collect()
    }

    fn refuse_service(&mut self, at: Endpoint) -> Result<(), AdminError> {
        self.foreign.insert(at);
        self.report
            .not_checked("rule of a service with a scheduler or forwarding that is not modelled");
        Ok(())
    }

    fn add(&mut self, args: &ServiceArgs) -> Result<(), AdminError> {
        let Some((kind, flags, persistence)) = service_of(args).filter(|_| !args.one_packet) else {
            return self.refuse_service(args.id.at);
        };
        let key = key_of(args.id);
        self.add_service(key);
        self.node.ipvs.add_service(key, kind, flags, persistence)
    }

    fn add_dest(&mut self, key: ServiceKey, dest: &DestArgs) -> Result<(), AdminError> {
        if dest.forward != Forward::Masq {
            return self.refuse_service(key.addr);
        }
        self.servers.insert(dest.real);
        self.in_every_state(key, |ipvs, key| {
            ipvs.add_dest(key, dest.real, dest.weight).map(|_| ())
        })
    }

    /// Changes a service's destinations. Where its scheduler's state is not known, the change goes through all
    /// the states that are possible.
    fn in_every_state(
        &mut self,
        key: ServiceKey,
        change: impl Fn(&mut ipvs_model::ipvs::Ipvs, ServiceKey) -> Result<(), AdminError>,
    ) -> Result<(), AdminError> {
        if self.foreign.contains(&key.addr) {
            return Ok(());
        }
        let Some(states) = self.schedulers.remove(&key) else {
            return change(&mut self.node.ipvs, key);
        };
        let mut after = Vec::new();
        for state in states {
            let mut ipvs = self.node.ipvs.clone();
            ipvs.set_scheduler(key, state);
            if change(&mut ipvs, key).is_ok()
                && let Some(state) = ipvs.scheduler(key).cloned()
                && !after.contains(&state)
            {
                after.push(state);
            }
        }
        let done = change(&mut self.node.ipvs, key);
        self.schedulers.insert(key, after);
        done
    }

    /// Compares the rules with a listing, then makes them agree: between two listings nobody sees when a rule
    /// changed. Counters are compared if there is an `event` that shows them.
    fn take_rules(&mut self, event: Option<&Event>, listed: &[ListedService], complete: bool) {
        for service in listed {
            let key = key_of(service.service.id);
            if self.foreign.contains(&key.addr) {
                continue;
            }
            let masq = service.dests.iter().all(|d| d.forward == Forward::Masq);
            if !masq || service_of(&service.service).is_none() {
                let _ = self.refuse_service(key.addr);
                continue;
            }
            let known = self.node.ipvs.service(key).is_some();
            if !known {
                let _ = self.add(&service.service);
            }
            let changed = self.take_dests(key, service);
            if !known || changed {
                // Where its scheduler stands is not known.
                let states = self.node.ipvs.possible_schedulers(key);
                if states.len() > 1 {
                    self.schedulers.insert(key, states);
                }
            } else if let Some(event) = event {
                self.compare_counters(event, key, service);
            }
        }
        if complete {
            let keys = listed.iter().map(|service| key_of(service.service.id));
            let keys = keys.collect::<BTreeSet<_>>();
            for key in self.keys() {
                if !keys.contains(&key) {
                    let _ = self.node.ipvs.delete_service(self.now(), key);
                }
            }
        }
    }

    /// Makes a service's destinations those of a listing; whether anything changed.
    fn take_dests(&mut self, key: ServiceKey, listed: &ListedService) -> bool {
        let now = self.now();
        let current = self.node.ipvs.real_servers(key).collect::<Vec<_>>();
        let wanted = |addr| listed.dests.iter().find(|dest| dest.real == addr);
        let mut changed = false;
        for dest in &current {
            match wanted(dest.addr) {
                None => {
                    changed |= self.node.ipvs.delete_dest(now, key, dest.addr).is_ok();
                    self.unlisted.retain(|(_, _, at)| *at >= now - LISTING_MAX);
                    self.unlisted.push((key, dest.addr, now));
                }
                Some(listed) if listed.weight != dest.weight => {
                    changed |= self
                        .node
                        .ipvs
                        .edit_dest(key, dest.addr, listed.weight)
                        .is_ok();
                }
                Some(_) => {}
            }
        }
        // The list's head is the newest: the last line was added first.
        for dest in listed.dests.iter().rev() {
            self.servers.insert(dest.real);
            if !current.iter().any(|known| known.addr == dest.real) {
                changed |= self.node.ipvs.add_dest(key, dest.real, dest.weight).is_ok();
            }
        }
        changed
    }

    fn compare_counters(&mut self, event: &Event, key: ServiceKey, listed: &ListedService) {
        let model = self.node.ipvs.real_servers(key).collect::<Vec<_>>();
        for dest in &listed.dests {
            let Some(stats) = model.iter().find(|stats| stats.addr == dest.real) else {
                continue;
            };
            self.report.entries += 1;
            if (stats.active, stats.inactive) == (dest.active, dest.inactive) {
                continue;
            }
            if !self.listed[0] {
                self.report
                    .not_checked("counters before the first listing of entries");
                continue;
            }
            if self.is_unspoken(key) {
                self.report.not_checked(UNSPOKEN);
                continue;
            }
            if self.uncounted.contains(&(key, dest.real)) {
                self.report.not_checked(
                    "counters of a real server with connections of which no packet is seen to enter",
                );
                continue;
            }
            if self.setup.lossy {
                self.report.not_checked(MAYBE_CHANGED);
                continue;
            }
            let tuple = Tuple {
                proto: key.proto,
                src: dest.real,
                dst: key.addr,
            };
            self.diverged(
                event,
                Class::Counters,
                tuple,
                format!("{} {} -> {}", key.proto.name(), key.addr, dest.real),
                format!("ActiveConn {} InActConn {}", stats.active, stats.inactive),
                format!("ActiveConn {} InActConn {}", dest.active, dest.inactive),
                String::new(),
            );
        }
    }
}

/// A dump is commands; as a state it is services with their destinations, in the order of the kernel's list.
fn services_of_dump(dump: &[RuleCommand]) -> Vec<ListedService> {
    let mut services = Vec::<ListedService>::new();
    for command in dump {
        match command {
            RuleCommand::AddService(service) => services.push(ListedService {
                service: service.clone(),
                dests: Vec::new(),
            }),
            RuleCommand::AddDest(id, dest) => {
                let mine = services.iter_mut().find(|s| s.service.id == *id);
                if let Some(service) = mine {
                    service.dests.push(crate::capture::ListedDest {
                        real: dest.real,
                        forward: dest.forward,
                        weight: dest.weight,
                        active: 0,
                        inactive: 0,
                    });
                }
            }
            _ => {}
        }
    }
    services
}

//! Making the table agree with a listing: for captures that begin in mid-life, and after a divergence; and what a
//! scheduler whose state is not known might choose.
//!
//! Leaves out: how many connections a template controls that no listing shows.

use super::sched::Scheduler;
use super::service::{DestId, ServiceKey};
use super::state::State;
use super::table::{self, EntryId};
use super::{Ipvs, Jiffies};
use crate::segment::{Endpoint, Proto, Tuple};
use crate::time::Instant;

/// An entry as a listing shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Transport protocol.
    pub proto: Proto,
    /// Client; port 0 for a persistence template.
    pub client: Endpoint,
    /// Virtual address.
    pub virt: Endpoint,
    /// Real server.
    pub dest: Endpoint,
    /// State; `No` for templates and UDP.
    pub state: State,
    /// Template that some connection established.
    pub assured: bool,
    /// Ticks until its deadline.
    pub left_ticks: u64,
}

impl Ipvs {
    /// Enters an entry as a listing shows it. A real server that the service does not list becomes one that
    /// was deleted at weight 0.
    pub fn adopt(&mut self, now: Instant, listed: &Listed) -> EntryId {
        let key = ServiceKey {
            proto: listed.proto,
            addr: listed.virt,
        };
        let dest = self.dest_for(now, key, listed.dest);
        let flags = if listed.client.port == 0 {
            table::TEMPLATE | if listed.assured { table::ASSURED } else { 0 }
        } else {
            0
        };
        let id = self.bind(listed.proto, listed.client, listed.virt, dest, flags);
        let persistence = self.service(key).and_then(|service| service.persistence);
        if let Some(persistence) = persistence
            && flags == 0
        {
            let net = listed.client.ip.to_bits() & persistence.netmask;
            let net = Endpoint::new(net.into(), 0);
            if let Some(template) = self.table.find_template(listed.proto, net, listed.virt) {
                self.table.put_under(id, template);
            }
        }
        let timeout = match (persistence, flags & table::TEMPLATE != 0, listed.proto) {
            (Some(persistence), true, _) => {
                self.clock.ticks(u64::from(persistence.timeout_s)) as u32
            }
            (None, true, _) => listed.left_ticks as u32,
            (_, false, Proto::Udp) => self.timeouts.udp_ticks(&self.clock),
            (_, false, Proto::Tcp) => {
                self.set_state(id, listed.state);
                self.table.get(id).timeout
            }
        };
        self.table.get_mut(id).timeout = timeout;
        self.table.arm_for(&self.clock, now, id, listed.left_ticks);
        id
    }

    fn dest_for(&mut self, now: Instant, key: ServiceKey, addr: Endpoint) -> DestId {
        let is = |id: &DestId| {
            let dest = self.dests.get(*id);
            dest.addr == addr && dest.service == key
        };
        let listed = self.service(key).map_or(&[][..], |service| &service.dests);
        if let Some(id) = listed.iter().chain(self.dests.trash()).copied().find(is) {
            return id;
        }
        let id = self.dests.create(key, addr, 0);
        self.discard(now, id);
        id
    }

    /// Runs an entry's timer callback now, whatever its deadline. Entries that it controls go on without it, which no
    /// kernel does: only a listing that contradicts the table can ask for it.
    pub fn expire_entry(
        &mut self,
        now: Instant,
        id: EntryId,
        drop_conntrack: &mut impl FnMut(Jiffies, &Tuple),
    ) {
        let jiffies = self.clock.jiffies(now);
        if self.table.get(id).controls() > 0 {
            let mine = |entry: &table::Entry| entry.template() == Some(id);
            let controlled = self.table.iter().filter(|(_, entry)| mine(entry));
            let controlled = controlled.map(|(id, _)| id).collect::<Vec<_>>();
            for entry in controlled {
                self.table.release(entry);
            }
        }
        self.destroy(jiffies, id, drop_conntrack);
    }

    /// Takes an entry out without touching conntrack.
    pub fn forget(&mut self, now: Instant, id: EntryId) {
        self.expire_entry(now, id, &mut |_, _| {});
    }

    /// The scheduler of a service with its state.
    pub fn scheduler(&self, key: ServiceKey) -> Option<&Scheduler> {
        self.service(key).map(|service| &service.scheduler)
    }

    /// Puts a scheduler's state in place; false if there is no such service.
    pub fn set_scheduler(&mut self, key: ServiceKey, scheduler: Scheduler) -> bool {
        let Some(at) = self.service_at(key) else {
            return false;
        };
        self.services[at].scheduler = scheduler;
        true
    }

    /// What `scheduler` would choose for a new connection of `client`, if it stood in the service's place. Its
    /// state moves on.
    pub fn would_pick(
        &self,
        key: ServiceKey,
        scheduler: &mut Scheduler,
        client: Endpoint,
    ) -> Option<Endpoint> {
        let service = self.service(key)?;
        let picked = scheduler.pick(self.kernel, client, &service.dests, &self.dests)?;
        Some(self.dests.get(picked).addr)
    }

    /// Every state in which a service's scheduler may be after connections that nobody saw.
    pub fn possible_schedulers(&self, key: ServiceKey) -> Vec<Scheduler> {
        self.service(key).map_or_else(Vec::new, |service| {
            service.scheduler.possible(&service.dests)
        })
    }
}

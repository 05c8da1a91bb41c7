//! IPVS: virtual services, destinations, schedulers and the connection table.
//!
//! Faithful to: `ip_vs_core.c`, `ip_vs_conn.c`, `ip_vs_ctl.c`, `ip_vs_proto_tcp.c`, `ip_vs_proto_udp.c`, 3.10 to 6.19.
//! Leaves out: IPv6, SCTP, FTP, firewall marks, sync daemon, `drop_entry` and `drop_packet` defences, forwarding
//! methods other than masquerading.

mod admin;
mod adopt;
mod foreseen;
#[cfg(test)]
mod graph;
mod invariants;
mod listing;
mod packet;
pub mod reuse;
pub mod sched;
mod sched_hash;
pub mod service;
pub mod state;
pub mod table;
#[cfg(test)]
mod tests;

use core::net::Ipv4Addr;

use crate::kernel::Behaviours;
use crate::segment::{Proto, Tuple};
use crate::sysctl::VsSysctls;
use crate::time::{Clock, Instant, Jiffies, Moment};

pub use admin::{DestStats, Timeouts};
pub use adopt::Listed;
pub use listing::{ConnLine, list_connections, list_connections_ipvsadm, list_services};
pub use packet::{Inward, Outward, Rule};
use service::{Dests, Service, ServiceKey};
use state::State;
use table::{EntryId, Table};

/// How long a deleted destination is kept after it was seen without entries: 120 s
/// (`IP_VS_DEST_TRASH_PERIOD`).
const TRASH_PERIOD_S: u64 = 120;

/// The IPVS part of a node.
#[derive(Clone, Debug)]
pub struct Ipvs {
    kernel: Behaviours,
    clock: Clock,
    /// `net.ipv4.vs.*`, may be changed at any time.
    pub sysctls: VsSysctls,
    /// Sorted by key.
    services: Vec<Service>,
    dests: Dests,
    table: Table,
    timeouts: Timeouts,
    /// Since when the trash timer runs, with its tick.
    trash_timer: Option<Jiffies>,
    /// When the entries of deleted destinations are flushed.
    flush_at: Option<Jiffies>,
    /// IPVS looks at packets. Before the first service there is nothing that it could do to them.
    hooked: bool,
}

impl Ipvs {
    /// IPVS without services on a kernel.
    pub fn new(kernel: Behaviours, clock: Clock, sysctls: VsSysctls) -> Self {
        Self {
            kernel,
            clock,
            sysctls,
            services: Vec::new(),
            dests: Dests::default(),
            table: Table::new(),
            timeouts: Timeouts::default(),
            trash_timer: None,
            flush_at: None,
            hooked: true,
        }
    }

    /// The entries.
    pub const fn table(&self) -> &Table {
        &self.table
    }

    /// The destinations, listed and deleted.
    pub const fn dests(&self) -> &Dests {
        &self.dests
    }

    /// The services, sorted by protocol and address.
    pub fn services(&self) -> &[Service] {
        &self.services
    }

    /// The node's tick.
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Gives one client's ports an array of their own in the table's index: faster, not different.
    pub fn reserve(&mut self, proto: Proto, ip: Ipv4Addr, ports: (u16, u16)) {
        self.table.index_mut().reserve(proto, ip, ports);
    }

    /// The service of an address.
    pub fn service(&self, key: ServiceKey) -> Option<&Service> {
        self.service_at(key).map(|at| &self.services[at])
    }

    #[inline]
    fn service_at(&self, key: ServiceKey) -> Option<usize> {
        if let [only] = &self.services[..] {
            return (only.key == key).then_some(0);
        }
        self.services
            .binary_search_by_key(&key, |service| service.key)
            .ok()
    }

    /// The next moment at which [`Ipvs::advance`] may have something to do.
    pub fn next_timer(&self) -> Option<Instant> {
        let tick = self.due();
        (tick != Jiffies::NEVER).then(|| self.clock.instant(tick))
    }

    /// The first tick with anything to do; [`Jiffies::NEVER`] if there is none.
    #[inline]
    fn due(&self) -> Jiffies {
        let of = |timer: Option<Jiffies>| timer.unwrap_or(Jiffies::NEVER);
        let first = self.table.next_timer();
        first.min(of(self.trash_timer)).min(of(self.flush_at))
    }

    /// Runs the timers up to `now`. `drop_conntrack` is called with the tuple of each entry that goes and that
    /// had kept its conntrack: whichever conntrack entry owns that tuple is deleted (`ip_vs_conn_drop_conntrack`).
    pub fn advance(&mut self, now: Instant, drop_conntrack: &mut impl FnMut(Jiffies, &Tuple)) {
        self.advance_to(self.clock.jiffies(now), drop_conntrack);
    }

    /// [`Ipvs::advance`], up to a tick.
    #[inline]
    pub(crate) fn advance_to(
        &mut self,
        until: Jiffies,
        drop_conntrack: &mut impl FnMut(Jiffies, &Tuple),
    ) {
        if self.due() <= until {
            self.run_timers(until, drop_conntrack);
        }
    }

    #[cold]
    #[inline(never)]
    fn run_timers(&mut self, until: Jiffies, drop_conntrack: &mut impl FnMut(Jiffies, &Tuple)) {
        loop {
            let first = self.due();
            if first > until {
                return;
            }
            if self.flush_at == Some(first) {
                self.flush_at = None;
                self.flush_deleted(first, drop_conntrack);
            } else if self.trash_timer == Some(first) {
                let keep = self.clock.ticks(TRASH_PERIOD_S);
                let any_left = self.dests.sweep(first, keep);
                self.trash_timer = any_left.then(|| self.trash_tick(first));
            } else if let Some((tick, due)) = self.table.take_due(first) {
                for id in due {
                    self.expire(tick, id, drop_conntrack);
                }
            }
        }
    }

    const fn trash_tick(&self, now: Jiffies) -> Jiffies {
        let ticks = self.clock.ticks(TRASH_PERIOD_S / 2);
        self.clock.fires_after(now, ticks)
    }

    /// The timer callback of an entry (`ip_vs_conn_expire`).
    fn expire(
        &mut self,
        now: Jiffies,
        id: EntryId,
        drop_conntrack: &mut impl FnMut(Jiffies, &Tuple),
    ) {
        if self.table.get(id).controls() > 0 {
            // It controls others: sixty more seconds, and for a template every time from now on (facts 4.3).
            self.table.get_mut(id).timeout = self.clock.ticks(60) as u32;
            let now = Moment {
                at: self.clock.instant(now),
                tick: now,
            };
            self.table.arm(&self.clock, now, id);
            return;
        }
        self.destroy(now, id, drop_conntrack);
    }

    fn destroy(
        &mut self,
        now: Jiffies,
        id: EntryId,
        drop_conntrack: &mut impl FnMut(Jiffies, &Tuple),
    ) {
        self.table.release(id);
        let entry = self.table.remove(id);
        if entry.keeps_conntrack() && entry.client.port != 0 {
            drop_conntrack(now, &entry.tuple());
        }
        let dest = self.dests.get_mut(entry.dest);
        if entry.is_template() {
            dest.templates -= 1;
        } else if entry.flags & table::INACTIVE != 0 {
            dest.inactive -= 1;
        } else {
            dest.active -= 1;
        }
    }

    /// Deletes the entries of destinations that are not listed, and their templates when unused
    /// (`ip_vs_expire_nodest_conn_flush`, 5.9 and later).
    fn flush_deleted(&mut self, now: Jiffies, drop_conntrack: &mut impl FnMut(Jiffies, &Tuple)) {
        let gone = |ipvs: &Self, id: EntryId| {
            let entry = ipvs.table.get(id);
            !ipvs.dests.get(entry.dest).available && entry.controls() == 0
        };
        // Templates come after the connections that they control.
        for templates in [false, true] {
            let doomed = self
                .table
                .iter()
                .filter(|(id, entry)| entry.is_template() == templates && gone(self, *id))
                .map(|(id, _)| id)
                .collect::<Vec<_>>();
            for id in doomed {
                self.destroy(now, id, drop_conntrack);
            }
        }
    }

    #[inline]
    fn set_state(&mut self, id: EntryId, next: State) {
        if next != self.table.get(id).state {
            self.change_state(id, next);
        }
        self.table.get_mut(id).timeout = self.timeouts.ticks(&self.clock, next);
    }

    /// Another state, with what that means to the counters of the destination, and to the template.
    fn change_state(&mut self, id: EntryId, next: State) {
        let entry = self.table.get_mut(id);
        entry.state = next;
        let was_inactive = entry.flags & table::INACTIVE != 0;
        let dest = self.dests.get_mut(entry.dest);
        let active = next.is_active(self.kernel);
        if was_inactive && active {
            entry.flags &= !table::INACTIVE;
            dest.active += 1;
            dest.inactive -= 1;
        } else if !was_inactive && !active {
            entry.flags |= table::INACTIVE;
            dest.active -= 1;
            dest.inactive += 1;
        }
        if next == State::Es {
            self.assure_template(id);
        }
    }

    fn assure_template(&mut self, id: EntryId) {
        if let Some(template) = self.table.get(id).template() {
            self.table.get_mut(template).flags |= table::ASSURED;
        }
    }
}

//! Packets of a connection that are known to come, taken at once.
//!
//! Nothing is decided here: which states the packets lead through was seen before, on a connection alike. Counters and
//! timers move by the rules of every packet, at the moments at which the packets will come.

use super::Ipvs;
use super::sched::Turn;
use super::service::{DestId, ServiceKey};
use super::state::State;
use super::table::EntryId;
use crate::segment::{Endpoint, Tuple};
use crate::time::{Instant, Jiffies};

impl Ipvs {
    /// The real server of a new connection that has no entry, if nothing but the scheduler has a say in it, with its address.
    /// The tables do not know the connection until [`Node::enter_foreseen`](crate::node::Node::enter_foreseen), to whose
    /// packets nothing but the rules of every healthy connection happens.
    ///
    /// The node must track, without source NAT, have room, and have a route to every real server with a weight.
    pub fn choose_foreseen(&mut self, tuple: &Tuple) -> Option<(DestId, Endpoint)> {
        let key = ServiceKey {
            proto: tuple.proto,
            addr: tuple.dst,
        };
        let at = self.service_at(key)?;
        let persists = self.services[at].persistence.is_some();
        if !self.hooked || persists || !self.sysctls.conntrack || tuple.src.port == 20 {
            return None;
        }
        let dest = self.pick(at, tuple.src)?;
        Some((dest, self.dests.get(dest).addr))
    }

    /// Takes back what [`Ipvs::choose_foreseen`] chose: the same real server is next again. `turn` is what
    /// [`Ipvs::turn`] told before.
    pub fn unchoose(&mut self, key: ServiceKey, turn: Turn) {
        if let Some(at) = self.service_at(key) {
            self.services[at].scheduler.set_turn(turn);
        }
    }

    /// Whose turn it is at a service.
    pub fn turn(&self, key: ServiceKey) -> Option<Turn> {
        let at = self.service_at(key)?;
        Some(self.services[at].scheduler.turn())
    }

    /// Makes the entry of a connection whose real server [`Ipvs::choose_foreseen`] told, taken through states as by
    /// [`Ipvs::foresee`].
    pub fn enter_foreseen(
        &mut self,
        tuple: &Tuple,
        dest: DestId,
        steps: impl Iterator<Item = (Instant, State)>,
    ) {
        let id = self.bind(tuple.proto, tuple.src, tuple.dst, dest, 0);
        self.foresee(id, steps);
    }

    /// Takes an entry out of the table again, as if it had not been written yet. Its conntrack twin stays.
    pub(crate) fn take_back(&mut self, id: EntryId) {
        self.destroy(Jiffies(0), id, &mut |_, _| {});
    }

    /// How long an entry lives after a packet that left it in a state, in ticks.
    pub fn lifetime_in(&self, state: State) -> u64 {
        u64::from(self.timeouts.ticks(&self.clock, state))
    }

    /// Takes an entry through states, each from the moment at which a packet will lead to it. The moments are in order,
    /// none before the entry's last packet. Entries that belong to a template need every packet, and get none here.
    pub fn foresee(&mut self, id: EntryId, steps: impl Iterator<Item = (Instant, State)>) {
        if self.table.get(id).is_controlled() {
            return;
        }
        for (at, state) in steps {
            if self.table.get(id).state != state {
                self.set_state(id, state);
            }
            self.table.arm(&self.clock, self.clock.moment(at), id);
        }
    }
}

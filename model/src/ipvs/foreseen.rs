//! Packets of a connection that are known to come, taken at once.
//!
//! Nothing is decided here: which states the packets lead through was seen before, on a connection alike. Counters and
//! timers move by the rules of every packet, at the moments at which the packets will come.

use super::Ipvs;
use super::service::ServiceKey;
use super::state::State;
use super::table::EntryId;
use crate::segment::{Endpoint, Tuple};
use crate::time::Instant;

impl Ipvs {
    /// The entry of a new connection that has none, if nothing but the scheduler has a say in its real server, taken through
    /// states as by [`Ipvs::foresee`]; with the real server's address.
    pub fn enter_foreseen(
        &mut self,
        tuple: &Tuple,
        steps: impl Iterator<Item = (Instant, State)>,
    ) -> Option<(EntryId, Endpoint)> {
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
        let id = self.bind(tuple.proto, tuple.src, tuple.dst, dest, 0);
        self.foresee(id, steps);
        Some((id, self.dests.get(dest).addr))
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

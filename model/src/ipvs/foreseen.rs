//! Packets of a connection that are known to come, taken at once.
//!
//! Nothing is decided here: which states the packets lead through was seen before, on a connection alike. Counters and
//! timers move by the rules of every packet, at the moments at which the packets will come.

use super::Ipvs;
use super::state::State;
use super::table::EntryId;
use crate::time::Instant;

impl Ipvs {
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
            self.table.arm(&self.clock, at, id);
        }
    }
}

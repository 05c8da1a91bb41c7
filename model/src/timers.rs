//! Pending expiries by tick. A record moves its deadline far more often than it expires, so a deadline is only
//! filed again when the filed tick comes (or when it moves earlier); stale filings are skipped by the owner.

use std::collections::BTreeMap;

use crate::time::Jiffies;

/// Slots filed under the tick at which they may be due.
#[derive(Clone, Debug, Default)]
pub struct TickQueue {
    ticks: BTreeMap<u64, Vec<u32>>,
    spare: Vec<Vec<u32>>,
}

impl TickQueue {
    /// Files a slot under a tick.
    #[inline]
    pub fn file(&mut self, tick: Jiffies, slot: u32) {
        let spare = &mut self.spare;
        self.ticks
            .entry(tick.0)
            .or_insert_with(|| spare.pop().unwrap_or_default())
            .push(slot);
    }

    /// The earliest tick with a filing.
    #[inline]
    pub fn next(&self) -> Option<Jiffies> {
        self.ticks.first_key_value().map(|(tick, _)| Jiffies(*tick))
    }

    /// Takes the slots of the earliest tick if it is not after `now`.
    pub fn pop_due(&mut self, now: Jiffies) -> Option<(Jiffies, Vec<u32>)> {
        let first = self.ticks.first_entry()?;
        if *first.key() > now.0 {
            return None;
        }
        let (tick, slots) = first.remove_entry();
        Some((Jiffies(tick), slots))
    }

    /// Gives a popped list back, so that its memory is used again.
    pub fn recycle(&mut self, mut slots: Vec<u32>) {
        slots.clear();
        if self.spare.len() < 64 {
            self.spare.push(slots);
        }
    }
}

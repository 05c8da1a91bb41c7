//! Pending expiries by tick. A record moves its deadline far more often than it expires, so a deadline is only
//! filed again when the filed tick comes (or when it moves earlier); stale filings are skipped by the owner.

use std::collections::BTreeMap;

use crate::time::Jiffies;

/// Slots filed under the tick at which they may be due.
#[derive(Clone, Debug)]
pub struct TickQueue {
    ticks: BTreeMap<u64, Vec<u32>>,
    /// The earliest tick with a filing; [`Jiffies::NEVER`] if there is none.
    next: Jiffies,
    spare: Vec<Vec<u32>>,
}

impl Default for TickQueue {
    fn default() -> Self {
        Self {
            ticks: BTreeMap::new(),
            next: Jiffies::NEVER,
            spare: Vec::new(),
        }
    }
}

impl TickQueue {
    /// Files a slot under a tick.
    pub fn file(&mut self, tick: Jiffies, slot: u32) {
        let spare = &mut self.spare;
        self.ticks
            .entry(tick.0)
            .or_insert_with(|| spare.pop().unwrap_or_default())
            .push(slot);
        self.next = self.next.min(tick);
    }

    /// The earliest tick with a filing; [`Jiffies::NEVER`] if there is none.
    #[inline]
    pub const fn next(&self) -> Jiffies {
        self.next
    }

    /// Takes the slots of the earliest tick if it is not after `now`.
    pub fn pop_due(&mut self, now: Jiffies) -> Option<(Jiffies, Vec<u32>)> {
        if self.next > now {
            return None;
        }
        let (tick, slots) = self.ticks.pop_first()?;
        self.next = match self.ticks.first_key_value() {
            Some((tick, _)) => Jiffies(*tick),
            None => Jiffies::NEVER,
        };
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

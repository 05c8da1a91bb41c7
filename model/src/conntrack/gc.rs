//! Removal of expired entries, and what happens when the table is full.
//!
//! Faithful to: `gc_worker` of 5.15 and later (first scan a second after boot; interval: running mean of the remaining lifetimes, 1 to 60 s; above
//! 95 % of the limit it also takes closing entries once the table has been full), `early_drop`.
//! Leaves out: the pauses in a scan (10 ms, 64000/HZ expired entries), so a scan takes no time; the scan order,
//! which is that of the slots. Kernels 4.9 to 5.14 scan by other rules, before 4.9 entries have timers: for them
//! the same worker only decides how long expired entries still count. `early_drop` looks at eight hash buckets;
//! here at as many entries as eight of `nf_conntrack_buckets` hold on average, chosen by a hash of the packet's tuple.

use super::Conntrack;
use super::entry::{CtEntry, Status};
use super::index;
use crate::segment::Tuple;
use crate::sysctl::CtSysctls;
use crate::time::{Clock, Jiffies};

/// Buckets that a full table searches for a victim (`NF_CT_EVICTION_RANGE`).
const EVICTION_RANGE: u64 = 8;

/// The collector's memory between two scans.
#[derive(Clone, Debug)]
pub(super) struct Collector {
    next_run: Jiffies,
    early_drop: bool,
    /// What a recording shows that a full table gives up, if that is where it is known from.
    foretold: Option<Vec<Tuple>>,
}

impl Collector {
    /// A collector that runs for the first time a second after boot.
    pub(super) fn new(clock: Clock) -> Self {
        let hz = clock.hz();
        let delay = clock.ticks(1);
        Self {
            next_run: clock.fires(Jiffies(Clock::initial_jiffies(hz)) + delay, delay),
            early_drop: false,
            foretold: None,
        }
    }

    /// The next scan may take closing entries too.
    pub(super) const fn table_was_full(&mut self) {
        self.early_drop = true;
    }
}

/// Whether a scan above 95 % may take an entry (`gc_worker_can_early_drop`).
fn can_early_drop(entry: &CtEntry) -> bool {
    !entry.status.has(Status::ASSURED) || entry.tcp().is_some_and(|tcp| tcp.state.is_closing())
}

impl Conntrack {
    /// Runs the scans that are due. `incoming` does this by itself; a caller that only counts entries may too.
    #[inline]
    pub fn gc(&mut self, now: Jiffies, sysctls: &CtSysctls) {
        if self.collector.next_run <= now {
            self.run_scans(now, sysctls);
        }
    }

    #[cold]
    #[inline(never)]
    fn run_scans(&mut self, now: Jiffies, sysctls: &CtSysctls) {
        while self.collector.next_run <= now {
            let at = self.collector.next_run;
            let delay = self.scan(at, sysctls);
            self.collector.next_run = self.clock.fires(at + delay, delay);
        }
    }

    /// Deletes every expired entry, as reading `/proc/net/nf_conntrack` does (`ct_seq_show`).
    pub fn delete_expired(&mut self, now: Jiffies) {
        for slot in 0..self.entries.len() as u32 {
            let entry = &self.entries[slot as usize];
            if entry.status.has(Status::CONFIRMED) && entry.is_expired(now) {
                self.delete(slot);
            }
        }
    }

    /// The node's own count of its entries (`nf_conntrack_count`) at `now`: its collector has taken what makes the
    /// count so, the longest expired first, and from now on takes nothing unless it is told here.
    ///
    /// For a node that is recorded: when the collector comes depends on when its processor last slept.
    ///
    /// # Errors
    /// The number of entries here, if no number of expired ones makes the count.
    pub fn collect_to(&mut self, now: Jiffies, counted: u32) -> Result<(), u32> {
        self.collector.next_run = Jiffies(u64::MAX);
        let expired = |(_, entry): &(u32, &CtEntry)| {
            entry.status.has(Status::CONFIRMED) && entry.is_expired(now)
        };
        let expired = self.iter().filter(expired);
        let mut expired = expired
            .map(|(slot, entry)| (entry.deadline, slot))
            .collect::<Vec<_>>();
        expired.sort_unstable();
        let here = self.count();
        let collected = here.checked_sub(counted).ok_or(here)? as usize;
        let collected = expired.get(..collected).ok_or(here)?;
        for (_, slot) in collected {
            self.delete(*slot);
        }
        Ok(())
    }

    /// Which entries, by their original tuples, the table gives up the next time it is full and must make room; none
    /// if it is empty. For a node that is recorded: its hash seed decides, and nobody knows that.
    pub fn foretell_sacrifice(&mut self, victims: Vec<Tuple>) {
        self.collector.foretold = Some(victims);
    }

    /// How many of the foretold entries have not been given up.
    pub fn spared(&self) -> usize {
        self.collector.foretold.as_ref().map_or(0, Vec::len)
    }

    /// When the next scan is due.
    pub fn next_gc(&self) -> Jiffies {
        self.collector.next_run
    }

    /// One scan at `at`; ticks until the next one.
    fn scan(&mut self, at: Jiffies, sysctls: &CtSysctls) -> u64 {
        let limit = if self.collector.early_drop {
            sysctls.max / 100 * 95
        } else {
            0
        };
        let min = self.clock.ticks(1);
        let mut mean = self.clock.ticks(60) as i64;
        let mut count = 100_i64;
        let slots = if self.count() == 0 {
            0
        } else {
            self.entries.len() as u32
        };
        for slot in 0..slots {
            let entry = &self.entries[slot as usize];
            if !entry.status.has(Status::LIVE) || !entry.status.has(Status::CONFIRMED) {
                continue;
            }
            if entry.is_expired(at) {
                self.delete(slot);
                continue;
            }
            let left = at.until(entry.deadline).clamp(min, self.clock.ticks(300)) as i64;
            // Once for each direction's place in the hash table.
            for _ in 0..2 {
                count += 1;
                mean += (left - mean) / count;
            }
            if limit > 0 && self.count() >= limit && can_early_drop(&self.entries[slot as usize]) {
                self.delete(slot);
            }
        }
        self.collector.early_drop = false;
        // The scan itself counts as one tick.
        (mean as u64)
            .clamp(min, self.clock.ticks(60))
            .saturating_sub(1)
            .max(1)
    }

    /// Makes room in a full table at the cost of entries that are not assured; false if none was met.
    #[cold]
    #[inline(never)]
    pub(super) fn early_drop(&mut self, now: Jiffies, tuple: &Tuple, sysctls: &CtSysctls) -> bool {
        if let Some(foretold) = &mut self.collector.foretold {
            let victims = core::mem::take(foretold);
            for tuple in &victims {
                self.delete_tuple(now, tuple);
            }
            return !victims.is_empty();
        }
        let buckets = u64::from(sysctls.buckets.max(1));
        let slots = self.entries.len() as u64;
        if slots == 0 {
            return false;
        }
        let places = 2 * u64::from(self.count());
        let mut draw = index::hash_tuple(tuple) ^ u64::from(self.serial);
        for _ in 0..EVICTION_RANGE {
            let mut dropped = false;
            draw = mix(draw);
            let chain = places / buckets + u64::from(draw % buckets < places % buckets);
            for _ in 0..chain {
                draw = mix(draw);
                let slot = (draw % slots) as u32;
                let entry = &self.entries[slot as usize];
                if !entry.status.has(Status::LIVE) || !entry.status.has(Status::CONFIRMED) {
                    continue;
                }
                let expired = entry.is_expired(now);
                if expired || !entry.status.has(Status::ASSURED) {
                    self.delete(slot);
                    dropped |= !expired;
                }
            }
            if dropped {
                return true;
            }
        }
        false
    }
}

/// One step of a fixed sequence of well-spread numbers (splitmix64).
const fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

//! Removal of expired entries, and what happens when the table is full.
//!
//! Faithful to: `gc_worker` of 5.15 and later (first scan a second after boot; interval: running mean of the remaining lifetimes, 1 to 60 s; above
//! 95 % of the limit it also takes closing entries once the table has been full), `early_drop`.
//! Leaves out: the pauses in a scan (10 ms, 64000/HZ expired entries), so a scan takes no time; the scan order,
//! which is that of the hash: here entries that stand in chains are visited by client ports, each far from the one before, and
//! the others in the order of their slots. Kernels 4.9 to 5.14 scan by other rules, before 4.9 entries have timers: for them
//! the same worker only decides how long expired entries still count. `early_drop` looks at eight hash buckets;
//! here at as many entries as eight of `nf_conntrack_buckets` hold on average, chosen by a hash of the packet's tuple.

use super::Conntrack;
use super::entry::{CtEntry, Status};
use super::index;
use crate::index::NONE;
use crate::segment::Tuple;
use crate::sysctl::CtSysctls;
use crate::time::{Clock, Jiffies};

/// Buckets that a full table searches for a victim (`NF_CT_EVICTION_RANGE`).
const EVICTION_RANGE: u64 = 8;

/// How much of what had expired a collector took ([`Conntrack::collect_to`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collected {
    /// Nothing.
    Nothing,
    /// One or more entries, and left at least one: which ones, a count does not say.
    Part,
    /// Everything that had expired.
    All,
}

/// The deadline of the entry that is not in the table and would stand at a place.
pub type Owed<'a> = &'a mut dyn FnMut(usize) -> Option<Jiffies>;

/// The collector's memory between two scans.
#[derive(Clone, Debug)]
pub(super) struct Collector {
    next_run: Jiffies,
    last_run: Jiffies,
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
            last_run: Jiffies(0),
            early_drop: false,
            foretold: None,
        }
    }

    /// The next scan may take closing entries too.
    pub(super) const fn table_was_full(&mut self) {
        self.early_drop = true;
    }
}

/// The collector's running mean of remaining lifetimes, in ticks, which tells it when to come again.
struct Mean {
    at: Jiffies,
    bounds: (u64, u64),
    /// At most 300 s, as all that it is of: the division of words is the longest part of a visit.
    mean: i32,
    count: i32,
}

impl Mean {
    fn add(&mut self, deadline: Jiffies) {
        let (min, max) = self.bounds;
        let left = self.at.until(deadline).clamp(min, max) as i32;
        // Once for each direction's place in the hash table.
        for _ in 0..2 {
            self.count += 1;
            let off = left - self.mean;
            // Late in a long scan hardly any moves it, and a division takes long.
            if off.unsigned_abs() >= self.count.unsigned_abs() {
                self.mean += off / self.count;
            }
        }
    }
}

/// A number without a divisor in common with `count`, about 0.618 of it.
fn stride(count: usize) -> usize {
    let coprime = |step: usize| {
        let (mut a, mut b) = (step, count);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a == 1
    };
    let first = (count * 618 / 1000).max(1);
    (first..=count).find(|step| coprime(*step)).unwrap_or(1)
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
            self.run_scans(now, sysctls, None);
        }
    }

    /// The same beside entries that are not in the table, although the collector would find them there: it asks `owed` for the
    /// deadline of the one at a place ([`Conntrack::place_of`]), if one stands there.
    pub fn gc_beside(&mut self, now: Jiffies, sysctls: &CtSysctls, owed: Owed<'_>) {
        self.run_scans(now, sysctls, Some(owed));
    }

    #[cold]
    #[inline(never)]
    fn run_scans(&mut self, now: Jiffies, sysctls: &CtSysctls, mut owed: Option<Owed<'_>>) {
        while self.collector.next_run <= now {
            let at = self.collector.next_run;
            let delay = self.scan(at, sysctls, &mut owed);
            self.collector.last_run = at;
            self.collector.next_run = self.clock.fires(at + delay, delay);
        }
    }

    /// The tick of the latest scan: it took every entry whose deadline was not after it.
    pub fn last_gc(&self) -> Jiffies {
        self.collector.last_run
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
    /// count so, and from now on takes nothing unless it is told here. Entries of a lower `turn` are taken before others;
    /// of one turn, the longest expired.
    ///
    /// For a node that is recorded: when the collector comes depends on when its processor last slept.
    ///
    /// # Errors
    /// The number of entries here, if no number of expired ones makes the count.
    pub fn collect_to(
        &mut self,
        now: Jiffies,
        counted: u32,
        turn: impl Fn(&CtEntry) -> u8,
    ) -> Result<Collected, u32> {
        self.collector.next_run = Jiffies(u64::MAX);
        let expired = |(_, entry): &(u32, &CtEntry)| {
            entry.status.has(Status::CONFIRMED) && entry.is_expired(now)
        };
        let expired = self.iter().filter(expired);
        let mut expired = expired
            .map(|(slot, entry)| (turn(entry), entry.deadline, slot))
            .collect::<Vec<_>>();
        expired.sort_unstable();
        let here = self.count();
        let taken = here.checked_sub(counted).ok_or(here)? as usize;
        let collected = expired.get(..taken).ok_or(here)?;
        for (.., slot) in collected {
            self.delete(*slot);
        }
        Ok(match taken {
            0 => Collected::Nothing,
            _ if taken < expired.len() => Collected::Part,
            _ => Collected::All,
        })
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
    fn scan(&mut self, at: Jiffies, sysctls: &CtSysctls, owed: &mut Option<Owed<'_>>) -> u64 {
        let limit = if self.collector.early_drop {
            sysctls.max / 100 * 95
        } else {
            0
        };
        let min = self.clock.ticks(1);
        let mut mean = Mean {
            at,
            bounds: (min, self.clock.ticks(300)),
            mean: self.clock.ticks(60) as i32,
            count: 100,
        };
        // Those in chains have their turn with their ports.
        if self.any_unchained() {
            for slot in 0..self.entries.len() as u32 {
                if !self.entries[slot as usize].is_chained() {
                    self.visit(slot, &mut mean, limit);
                }
            }
        }
        // From boot to the first packet there are many scans, and nothing to see.
        let places = if self.count() == 0 && owed.is_none() {
            0
        } else {
            self.ports.places()
        };
        let step = stride(places);
        let mut place = 0;
        for _ in 0..places {
            let mut slot = self.ports.head(place);
            while slot != NONE {
                let next = self.entries[slot as usize].next;
                self.visit(slot, &mut mean, limit);
                slot = next;
            }
            if let Some(owed) = owed
                && let Some(deadline) = owed(place)
                && deadline > at
            {
                mean.add(deadline);
            }
            place += step;
            if place >= places {
                place -= places;
            }
        }
        self.collector.early_drop = false;
        // The scan itself counts as one tick.
        (mean.mean as u64)
            .clamp(min, self.clock.ticks(60))
            .saturating_sub(1)
            .max(1)
    }

    /// A scan comes to an entry.
    #[inline]
    fn visit(&mut self, slot: u32, mean: &mut Mean, limit: u32) {
        let entry = &self.entries[slot as usize];
        if !entry.status.has(Status::LIVE) || !entry.status.has(Status::CONFIRMED) {
            return;
        }
        if entry.is_expired(mean.at) {
            return self.delete(slot);
        }
        mean.add(entry.deadline);
        if limit > 0 && self.count() >= limit && can_early_drop(entry) {
            self.delete(slot);
        }
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

//! The connection table: entries in chains per client endpoint, newest first, with lazy deadlines.
//!
//! Faithful to: `ip_vs_conn.c` `ip_vs_conn_hash`, `ip_vs_conn_in_get`, `ip_vs_conn_out_get`, `ip_vs_ct_in_get`,
//! `ip_vs_conn_put`, `ip_vs_conn_expire_now`, 3.10 to 6.19. Look-ups never look at the timer.
//! Leaves out: reference counts of packets in flight, and one-packet scheduling.

use super::service::DestId;
use super::state::State;
use crate::index::{EndpointIndex, NONE};
use crate::segment::{Endpoint, Proto, Tuple};
use crate::time::{Clock, Instant, Jiffies, Moment};
use crate::timers::TickQueue;

/// Index of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(pub u32);

/// The entry's packets keep their conntrack (`IP_VS_CONN_F_NFCT`).
pub(super) const NFCT: u8 = 1;
/// Counted as inactive (`IP_VS_CONN_F_INACTIVE`).
pub(super) const INACTIVE: u8 = 1 << 1;
/// A persistence template (`IP_VS_CONN_F_TEMPLATE`).
pub(super) const TEMPLATE: u8 = 1 << 2;
/// A template that some connection established (`IP_VS_CTPL_S_ASSURED`).
pub(super) const ASSURED: u8 = 1 << 3;
/// A template that was invalidated: its virtual and real ports read 65535.
pub(super) const INVALID: u8 = 1 << 4;
/// Told to expire at the next tick and not seen since.
const EXPIRING: u8 = 1 << 5;
/// The slot is in use.
const LIVE: u8 = 1 << 6;

/// One entry. Compact: a table of 28,232 fits in 1.6 MB.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The tick of the timer's bucket.
    fires: Jiffies,
    /// When the timer entered its bucket.
    armed: Instant,
    /// The queue knows the slot under the tick so many before `fires`.
    early: u32,
    /// So many ticks before `fires` is the deadline.
    late: u32,
    /// Lifetime after a packet, in ticks.
    pub(super) timeout: u32,
    pub(super) dest: DestId,
    /// Of a template: how many entries it controls. Of any other: the template that controls it, or [`NONE`].
    control: u32,
    next: u32,
    pub(super) client: Endpoint,
    pub(super) virt: Endpoint,
    pub(super) proto: Proto,
    pub(super) state: State,
    pub(super) flags: u8,
    /// The level of the wheel that its bucket is in.
    level: u8,
}

const _: () = assert!(size_of::<Entry>() <= 56);

impl Entry {
    /// The client's address and port; port 0 for a template.
    pub const fn client(&self) -> Endpoint {
        self.client
    }

    /// The virtual address and port.
    pub const fn virt(&self) -> Endpoint {
        self.virt
    }

    /// Transport protocol.
    pub const fn proto(&self) -> Proto {
        self.proto
    }

    /// The real server.
    pub const fn dest(&self) -> DestId {
        self.dest
    }

    /// State.
    pub const fn state(&self) -> State {
        self.state
    }

    /// The deadline that the kernel shows; the entry goes at the wheel's next boundary after it.
    pub const fn expires(&self) -> Jiffies {
        Jiffies(self.fires.0 - self.late as u64)
    }

    /// Lifetime after a packet, in ticks.
    pub const fn timeout_ticks(&self) -> u32 {
        self.timeout
    }

    /// Whether this is a persistence template.
    pub const fn is_template(&self) -> bool {
        self.flags & TEMPLATE != 0
    }

    /// Whether a template is assured: some connection under it was established.
    pub const fn is_assured(&self) -> bool {
        self.flags & ASSURED != 0
    }

    /// Whether a template was invalidated.
    pub const fn is_invalid(&self) -> bool {
        self.flags & INVALID != 0
    }

    /// Whether the entry's packets keep their conntrack.
    pub const fn keeps_conntrack(&self) -> bool {
        self.flags & NFCT != 0
    }

    /// Whether the entry belongs to a template.
    pub const fn is_controlled(&self) -> bool {
        self.template().is_some()
    }

    /// The template that the entry belongs to.
    pub(super) const fn template(&self) -> Option<EntryId> {
        if self.flags & TEMPLATE != 0 || self.control == NONE {
            None
        } else {
            Some(EntryId(self.control))
        }
    }

    /// How many entries belong to this one.
    pub(super) const fn controls(&self) -> u32 {
        if self.flags & TEMPLATE != 0 {
            self.control
        } else {
            0
        }
    }

    /// The tick under which the queue knows the slot; never after `fires`.
    const fn filed(&self) -> Jiffies {
        Jiffies(self.fires.0 - self.early as u64)
    }

    /// Whether the entry was told to expire at the next tick.
    pub const fn is_expiring(&self) -> bool {
        self.flags & EXPIRING != 0
    }

    /// The tuple of the client's packets.
    pub const fn tuple(&self) -> Tuple {
        Tuple {
            proto: self.proto,
            src: self.client,
            dst: self.virt,
        }
    }

    const fn is_live(&self) -> bool {
        self.flags & LIVE != 0
    }

    /// The tick at which the timer will fire.
    pub const fn fires(&self) -> Jiffies {
        self.fires
    }

    /// Where the entry's timer stands among those of one tick: outer levels of the wheel run first, and in a
    /// bucket the timer that entered it last (`collect_expired_timers`, `enqueue_timer`). One packet arms a template before
    /// the connection that it makes from it (`ip_vs_sched_persist`), so of the two the connection runs first.
    const fn turn(&self) -> (u8, u64, bool) {
        (
            u8::MAX - self.level,
            u64::MAX - self.armed.0,
            self.is_template(),
        )
    }
}

/// All entries of a node.
#[derive(Clone, Debug)]
pub struct Table {
    slots: Vec<Entry>,
    free: Vec<u32>,
    index: EndpointIndex,
    timers: TickQueue,
    live: u32,
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            index: EndpointIndex::default(),
            timers: TickQueue::default(),
            live: 0,
        }
    }

    pub(super) fn index_mut(&mut self) -> &mut EndpointIndex {
        &mut self.index
    }

    /// Entries, templates included.
    pub const fn len(&self) -> u32 {
        self.live
    }

    /// Whether there is no entry.
    pub const fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// The entry of an index.
    #[inline]
    pub fn get(&self, id: EntryId) -> &Entry {
        &self.slots[id.0 as usize]
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: EntryId) -> &mut Entry {
        &mut self.slots[id.0 as usize]
    }

    /// Every live entry, in slot order: deterministic, not the kernel's.
    pub fn iter(&self) -> impl Iterator<Item = (EntryId, &Entry)> {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.is_live())
            .map(|(slot, entry)| (EntryId(slot as u32), entry))
    }

    /// Whether look-ups can find an entry: it stands in its client's chain.
    pub(super) fn is_chained(&self, id: EntryId) -> bool {
        let entry = self.get(id);
        let found = self.first(entry.proto, entry.client, |other| {
            core::ptr::eq(other, entry)
        });
        found == Some(id)
    }

    /// Whether the queue of timers will come to an entry in time.
    pub(super) fn is_filed(&self, id: EntryId) -> bool {
        let entry = self.get(id);
        self.timers.next() <= entry.filed()
    }

    /// The first entry of a client's chain that `is_it` accepts.
    #[inline(always)]
    fn first(
        &self,
        proto: Proto,
        client: Endpoint,
        is_it: impl Fn(&Entry) -> bool,
    ) -> Option<EntryId> {
        let mut slot = self.index.head(proto, client);
        while slot != NONE {
            let entry = &self.slots[slot as usize];
            if is_it(entry) {
                return Some(EntryId(slot));
            }
            slot = entry.next;
        }
        None
    }

    /// The newest entry of a client's packet to a virtual service.
    #[inline]
    pub fn find_in(&self, tuple: &Tuple) -> Option<EntryId> {
        self.first(tuple.proto, tuple.src, |entry| {
            entry.virt == tuple.dst && entry.flags & (TEMPLATE | INVALID) == 0
        })
    }

    /// The newest entry of a real server's packet. The virtual service is not part of the key (trap 14).
    #[inline]
    pub fn find_out(&self, tuple: &Tuple, addr: impl Fn(DestId) -> Endpoint) -> Option<EntryId> {
        self.first(tuple.proto, tuple.dst, |entry| {
            entry.flags & (TEMPLATE | INVALID) == 0 && addr(entry.dest) == tuple.src
        })
    }

    /// The template of a client network and virtual service.
    pub(super) fn find_template(
        &self,
        proto: Proto,
        net: Endpoint,
        virt: Endpoint,
    ) -> Option<EntryId> {
        self.first(proto, net, |entry| {
            entry.virt == virt && entry.flags & TEMPLATE != 0 && entry.flags & INVALID == 0
        })
    }

    /// A new entry at the head of its chain, with no timer until the first [`Table::arm`].
    pub(super) fn insert(
        &mut self,
        proto: Proto,
        client: Endpoint,
        virt: Endpoint,
        dest: DestId,
        flags: u8,
        timeout: u32,
    ) -> EntryId {
        let entry = Entry {
            fires: Jiffies::NEVER,
            armed: Instant::ZERO,
            early: 0,
            late: 0,
            client,
            virt,
            dest,
            timeout,
            control: if flags & TEMPLATE != 0 { 0 } else { NONE },
            next: self.index.head(proto, client),
            proto,
            state: State::No,
            flags: flags | LIVE,
            level: 0,
        };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = entry;
                slot
            }
            None => {
                self.slots.push(entry);
                self.slots.len() as u32 - 1
            }
        };
        self.index.set_head(proto, client, slot);
        self.live += 1;
        EntryId(slot)
    }

    /// Puts an entry under a template.
    pub(super) fn put_under(&mut self, id: EntryId, template: EntryId) {
        self.get_mut(id).control = template.0;
        self.get_mut(template).control += 1;
    }

    /// Takes an entry out from under its template, which may go on its own.
    pub(super) fn release(&mut self, id: EntryId) {
        if let Some(template) = self.get(id).template() {
            self.get_mut(id).control = NONE;
            self.get_mut(template).control -= 1;
        }
    }

    /// Unlinks an entry and returns what it was.
    pub(super) fn remove(&mut self, id: EntryId) -> Entry {
        let entry = *self.get(id);
        let head = self.index.head(entry.proto, entry.client);
        if head == id.0 {
            self.index.set_head(entry.proto, entry.client, entry.next);
        } else {
            let mut at = head;
            while self.slots[at as usize].next != id.0 {
                at = self.slots[at as usize].next;
            }
            self.slots[at as usize].next = entry.next;
        }
        self.get_mut(id).flags = 0;
        self.free.push(id.0);
        self.live -= 1;
        entry
    }

    /// Moves the timer to the bucket of a tick, for a deadline before it.
    #[inline(always)]
    fn enqueue(
        &mut self,
        now: Instant,
        id: EntryId,
        expires: Jiffies,
        (fires, level): (Jiffies, u8),
    ) {
        let entry = &mut self.slots[id.0 as usize];
        let filed = entry.filed();
        // Within its bucket a timer keeps its place (`__mod_timer`); one of another level is another bucket.
        if entry.fires != fires || entry.level != level {
            (entry.fires, entry.level, entry.armed) = (fires, level, now);
        }
        entry.late = (fires.0 - expires.0) as u32;
        if fires < filed {
            entry.early = 0;
            self.timers.file(fires, id.0);
        } else {
            entry.early = (fires.0 - filed.0) as u32;
        }
    }

    /// Restarts the timer with the entry's timeout (`ip_vs_conn_put`).
    #[inline(always)]
    pub(super) fn arm(&mut self, clock: &Clock, now: Moment, id: EntryId) {
        let expires = clock.deadline(now.tick, u64::from(self.get(id).timeout));
        self.restart(clock, now.at, id, expires);
    }

    /// Restarts the timer of an entry whose deadline is `left` ticks away.
    pub(super) fn arm_for(&mut self, clock: &Clock, now: Instant, id: EntryId, left: u64) {
        self.restart(clock, now, id, clock.jiffies(now) + left);
    }

    /// Restarts the timer for a deadline, in the bucket of the entry's timeout.
    #[inline(always)]
    fn restart(&mut self, clock: &Clock, now: Instant, id: EntryId, expires: Jiffies) {
        let entry = self.get_mut(id);
        let ticks = u64::from(entry.timeout);
        entry.flags &= !EXPIRING;
        let bucket = (clock.fires(expires, ticks), clock.level(ticks));
        self.enqueue(now, id, expires, bucket);
    }

    /// Makes the entry expire at the next tick, unless it is overdue already (`ip_vs_conn_expire_now`).
    pub(super) fn expire_now(&mut self, now: Moment, id: EntryId) {
        let tick = now.tick;
        let entry = self.get_mut(id);
        if entry.expires() > tick {
            entry.flags |= EXPIRING;
            // Moved to a tick that is already being served: it runs with the one that follows.
            self.enqueue(now.at, id, tick, (tick + 1, 0));
        }
    }

    /// The earliest tick at which an entry may be due; [`Jiffies::NEVER`] if there is none.
    #[inline]
    pub(super) const fn next_timer(&self) -> Jiffies {
        self.timers.next()
    }

    /// Takes the entries of the earliest tick up to `now` at which any timer fires, in the order of their turns.
    pub(super) fn take_due(&mut self, now: Jiffies) -> Option<(Jiffies, Vec<EntryId>)> {
        loop {
            let (tick, slots) = self.timers.pop_due(now)?;
            let mut due = Vec::new();
            for &slot in &slots {
                let entry = &mut self.slots[slot as usize];
                if !entry.is_live() || entry.filed() != tick {
                    continue;
                }
                entry.early = 0;
                if entry.fires <= tick {
                    entry.fires = Jiffies::NEVER;
                    due.push(EntryId(slot));
                } else {
                    self.timers.file(entry.fires, slot);
                }
            }
            self.timers.recycle(slots);
            if !due.is_empty() {
                // Packets of one nanosecond have no order of their own; their slots give them one.
                due.sort_unstable_by_key(|id| (self.slots[id.0 as usize].turn(), *id));
                return Some((tick, due));
            }
        }
    }
}

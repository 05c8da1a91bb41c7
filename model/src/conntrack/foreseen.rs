//! Packets of a connection that are known to come, taken at once: what they leave of an entry.
//!
//! Nothing is decided here. The record that a connection alike came to is moved to this one's sequence numbers:
//! every rule of the window check looks at differences of them only.

use super::entry::{Dir, Seen, Status, TcpState};
use super::table::FlagClass;
use super::{Conntrack, CtEntry, CtRef};
use crate::segment::{Endpoint, Tuple};
use crate::sysctl::CtSysctls;
use crate::time::Jiffies;

impl TcpState {
    /// The record of a connection whose sides' sequence numbers are ahead of this one's by so much, modulo 2^32.
    #[must_use]
    pub const fn moved(&self, by: [u32; 2]) -> Self {
        let mut moved = *self;
        let mut side = 0;
        while side < 2 {
            let seen = &mut moved.seen[side];
            seen.end = seen.end.wrapping_add(by[side]);
            seen.max_end = seen.max_end.wrapping_add(by[side]);
            if seen.has(Seen::MAXACK_SET) {
                seen.max_ack = seen.max_ack.wrapping_add(by[1 - side]);
            }
            side += 1;
        }
        let (own, other) = (
            by[self.last_dir as usize],
            by[self.last_dir.other() as usize],
        );
        moved.last_seq = moved.last_seq.wrapping_add(own);
        moved.last_end = moved.last_end.wrapping_add(own);
        moved.last_ack = moved.last_ack.wrapping_add(other);
        moved
    }
}

/// What the packets of a connection leave of its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreseen {
    /// The record, as if both sides' sequence numbers had begun at 0.
    tcp: TcpState,
    status: Status,
    /// Ticks from the last packet to the deadline.
    ticks: u64,
}

impl Foreseen {
    /// The deadline of an entry whose last packet was at that tick.
    pub fn deadline(&self, last: Jiffies) -> Jiffies {
        last + self.ticks
    }

    /// What was left of an entry, `isns` being the initial sequence numbers of the two directions, by a last packet at
    /// `last`. `None` if it is not at rest after an ACK that moved its deadline.
    pub fn of(entry: &CtEntry, isns: [u32; 2], last: Jiffies) -> Option<Self> {
        let tcp = entry.tcp()?;
        let settled = entry.status.has(Status::CONFIRMED)
            && entry.status.has(Status::SEEN_REPLY)
            && tcp.last_class == FlagClass::Ack
            && entry.deadline > last;
        settled.then(|| Self {
            tcp: tcp.moved(isns.map(u32::wrapping_neg)),
            status: entry.status,
            ticks: last.until(entry.deadline),
        })
    }
}

impl Conntrack {
    /// The entry of a connection whose first SYN was the last packet to make one: nothing altered its source or destination,
    /// and no answer was seen.
    pub fn latest_fresh(&self, tuple: &Tuple) -> Option<u32> {
        let entry = self.entries.get(self.latest as usize)?;
        let status = entry.status;
        let fresh = status.has(Status::LIVE)
            && status.has(Status::CONFIRMED)
            && !status.has(Status::SEEN_REPLY)
            && !status.has(Status::SRC_NAT)
            && !status.has(Status::DST_NAT);
        (fresh && entry.orig() == *tuple).then_some(self.latest)
    }

    /// Makes the entry of a connection that no table knows, from its first SYN at `now`, whose answers come from `to`, as its
    /// packets leave it, the last of them at `last`. Its record is that of a connection whose sequence numbers begin at 0,
    /// until [`Conntrack::settle`]. `None` if the table has no room.
    pub fn enter_foreseen(
        &mut self,
        now: Jiffies,
        tuple: &Tuple,
        to: Endpoint,
        foreseen: &Foreseen,
        last: Jiffies,
        sysctls: &CtSysctls,
    ) -> Option<u32> {
        let CtRef { slot, .. } = self.allocate(now, tuple, sysctls)?;
        self.entries[slot as usize].set_reply_source(to);
        self.foresee(slot, foreseen, [0; 2], last);
        let entry = self.entry(slot);
        let chain = self.chain_of(&entry.orig(), &entry.reply());
        self.link(slot, chain);
        self.latest = slot;
        Some(slot)
    }

    /// Whether any entry has a tuple, in either direction, be it expired or not.
    pub fn knows(&self, tuple: &Tuple) -> bool {
        self.owner(tuple).is_some()
    }

    /// Gives the entry that [`Conntrack::enter_foreseen`] made for a tuple its sequence numbers, if it is still there.
    pub fn settle(&mut self, tuple: &Tuple, foreseen: &Foreseen, isns: [u32; 2], last: Jiffies) {
        if let Some(CtRef { slot, .. }) = self.owner(tuple) {
            let entry = &self.entries[slot as usize];
            if entry.orig() == *tuple && entry.deadline == last + foreseen.ticks {
                self.foresee(slot, foreseen, isns, last);
            }
        }
    }

    /// Takes an entry out of the table again, as if it had not been written yet.
    pub(crate) fn take_back(&mut self, slot: u32) {
        self.delete(slot);
    }

    /// Leaves an entry as the packets to come will leave it, the last of them at `last`.
    pub fn foresee(&mut self, slot: u32, foreseen: &Foreseen, isns: [u32; 2], last: Jiffies) {
        let entry = &mut self.entries[slot as usize];
        *entry.record_mut().0 = foreseen.tcp.moved(isns);
        entry.status = foreseen.status;
        entry.deadline = last + foreseen.ticks;
    }
}

const _: () = assert!(Dir::Original as usize == 0 && Dir::Reply as usize == 1);

//! nf_conntrack and its source-port choice, as pure state machines.
//!
//! A packet goes through `incoming` (PRE_ROUTING or LOCAL_OUT), may have its entry altered by IPVS, goes through
//! `source_nat` (POST_ROUTING) and ends in `confirm`, or in `release` if it was dropped. A packet for the node
//! itself ends in `confirm` too (LOCAL_IN). A packet that the node sends (a RST, say) takes the same way.
//!
//! Two turns of the way are easy to miss; the recordings show both. A packet of the client that came out as
//! `Untracked`, and that IPVS sends on, is re-injected at LOCAL_OUT without an entry: it goes through `incoming` a
//! second time, translated, and may make an entry of its own from client to real server or continue one from
//! real server to client. With `vs.conntrack`=0 a packet that has an entry loses it (`release`) and is not looked
//! at again, neither by conntrack nor by NAT; one without an entry is re-tracked all the same.
//!
//! Faithful to: `nf_conntrack_in`, `resolve_normal_ct`, `__nf_conntrack_confirm`, `nf_conntrack_find_get`,
//! `nf_nat_setup_info`, 3.10 to 6.12, behind the gates of `kernel.rs`.
//! Leaves out: fragments, ICMP entries, expectations and helpers, zones, SCTP and the rest; races between
//! processors; the limit on the length of a hash chain. Entries of a 4.8 kernel, whose timers fire late, are
//! taken to expire on time.

use core::net::Ipv4Addr;

use crate::index::{NONE, PortArrays};
use crate::kernel::{Behaviours, Gate};
use crate::segment::{Endpoint, Proto, Segment, Tuple};
use crate::sysctl::CtSysctls;
use crate::time::{Clock, Jiffies};

mod adopt;
mod cleanup;
mod entry;
mod foreseen;
mod gc;
pub mod graph;
mod index;
mod listing;
mod nat;
mod rule;
mod table;
mod tcp;
mod udp;
mod window;

#[cfg(test)]
mod tests;

pub use adopt::ListedCt;
pub use entry::{CtEntry, Dir, Seen, Status, TcpState};
pub use foreseen::Foreseen;
pub use gc::{Collected, Owed};
pub use listing::ListingStyle;
pub use nat::SourceNat;
pub use rule::CtRule;
pub use table::{Cell, CtState, FlagClass, TRANSITIONS, next_state};
pub use tcp::{TcpEnv, TcpVerdict, flags_are_valid, tcp_new, tcp_packet, timeout_of};
pub use udp::udp_packet;

use gc::Collector;
use index::TupleIndex;

/// An entry as one packet sees it. Valid until the next call that takes a packet or deletes entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CtRef {
    /// The entry's place in the table.
    pub slot: u32,
    /// Which way the packet goes.
    pub dir: Dir,
}

/// What conntrack says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// The packet belongs to this entry.
    Tracked(CtRef, CtRule),
    /// The packet is invalid: it passes, and no rule that needs an entry applies to it.
    Untracked(CtRule),
    /// The packet is dropped.
    Dropped(CtRule),
}

/// What its entry makes of a packet.
enum Judged {
    Tracked(CtRule),
    Untracked(CtRule),
    /// The entry goes, and the packet is judged again without it.
    Reopens,
}

/// The table.
#[derive(Clone, Debug)]
pub struct Conntrack {
    clock: Clock,
    kernel: Behaviours,
    entries: Vec<CtEntry>,
    free: Vec<u32>,
    /// Chains of entries by client port, for entries both of whose tuples have that end.
    ports: PortArrays,
    /// The tuples of all others.
    tuples: TupleIndex,
    /// Masqueraded entries by their source.
    sources: TupleIndex,
    serial: u32,
    /// The slot that was confirmed last.
    latest: u32,
    rover: [u16; 2],
    collector: Collector,
}

impl Conntrack {
    /// An empty table on a node with this clock and kernel.
    pub fn new(clock: Clock, behaviours: Behaviours) -> Self {
        Self {
            clock,
            kernel: behaviours,
            entries: Vec::new(),
            free: Vec::new(),
            ports: PortArrays::default(),
            tuples: TupleIndex::default(),
            sources: TupleIndex::default(),
            serial: 0,
            latest: 0,
            rover: [0; 2],
            collector: Collector::new(clock),
        }
    }

    /// Gives one client's ports an array of their own: faster, not different. Before the table's first entry.
    pub fn reserve(&mut self, proto: Proto, ip: Ipv4Addr, ports: (u16, u16)) {
        if self.entries.is_empty() {
            self.ports.reserve(proto, ip, ports);
        }
    }

    /// Finds or makes the packet's entry and moves its state (`nf_conntrack_in`).
    pub fn incoming(&mut self, now: Jiffies, seg: &Segment, sysctls: &CtSysctls) -> Incoming {
        self.gc(now, sysctls);
        let Some(ct) = self.find(now, &seg.tuple) else {
            return self.begin(now, seg, sysctls, false);
        };
        match self.judge(now, ct, seg, sysctls) {
            Judged::Tracked(rule) => Incoming::Tracked(ct, rule),
            Judged::Untracked(rule) => Incoming::Untracked(rule),
            Judged::Reopens => {
                self.delete(ct.slot);
                self.begin(now, seg, sysctls, true)
            }
        }
    }

    /// A packet without an entry gets one. `reopened`: it has just ended the one before.
    #[inline(never)]
    fn begin(
        &mut self,
        now: Jiffies,
        seg: &Segment,
        sysctls: &CtSysctls,
        reopened: bool,
    ) -> Incoming {
        let Some(ct) = self.allocate(now, &seg.tuple, sysctls) else {
            return Incoming::Dropped(CtRule::TableFull);
        };
        match self.judge(now, ct, seg, sysctls) {
            Judged::Tracked(_) if reopened => Incoming::Tracked(ct, CtRule::Reopened),
            Judged::Tracked(_) => Incoming::Tracked(ct, self.origin_rule(ct.slot)),
            Judged::Untracked(rule) => Incoming::Untracked(rule),
            Judged::Reopens => unreachable!("a fresh entry is not finished"),
        }
    }

    /// The packet meets its entry, new or old.
    #[inline(always)]
    fn judge(&mut self, now: Jiffies, ct: CtRef, seg: &Segment, sysctls: &CtSysctls) -> Judged {
        let verdict = match seg.tuple.proto {
            Proto::Tcp => self.tcp(now, ct, seg, sysctls),
            Proto::Udp => self.udp(now, ct, sysctls),
        };
        let rule = match verdict {
            TcpVerdict::Accept { rule, timeout } => {
                self.refresh(now, ct.slot, timeout);
                rule
            }
            TcpVerdict::AcceptAndDelete(rule) => {
                self.delete(ct.slot);
                rule
            }
            TcpVerdict::Invalid { rule, timeout } => {
                if let Some(secs) = timeout {
                    let ticks = self.clock.ticks(u64::from(secs));
                    self.entries[ct.slot as usize].deadline = now + ticks;
                }
                self.release(ct);
                return Judged::Untracked(rule);
            }
            TcpVerdict::Reopen => return Judged::Reopens,
        };
        if ct.dir == Dir::Reply {
            self.entries[ct.slot as usize]
                .status
                .set(Status::SEEN_REPLY);
        }
        Judged::Tracked(rule)
    }

    /// Whether the entry is in the table, or was when this packet met it.
    #[inline]
    pub fn is_confirmed(&self, ct: CtRef) -> bool {
        self.entry(ct.slot).status.has(Status::CONFIRMED)
    }

    /// The entry in a slot. A slot that a packet's own processing emptied still shows its last tenant.
    ///
    /// # Panics
    /// If there never was such a slot.
    #[inline]
    pub fn entry(&self, slot: u32) -> &CtEntry {
        &self.entries[slot as usize]
    }

    /// IPVS chose a real server: replies will come from there (`ip_vs_update_conntrack`, towards the real server).
    ///
    /// Nothing happens unless the entry is unconfirmed and the packet goes in its original direction.
    #[inline]
    pub fn alter_reply_source(&mut self, ct: CtRef, to: Endpoint) {
        if let Some(entry) = self.alterable(ct) {
            entry.set_reply_source(to);
        }
    }

    /// IPVS rewrites the source of a real server's packet: what it gets back will go there
    /// (`ip_vs_update_conntrack`, towards the client).
    ///
    /// Nothing happens unless the entry is unconfirmed and the packet goes in its original direction.
    #[inline]
    pub fn alter_reply_destination(&mut self, ct: CtRef, to: Endpoint) {
        if let Some(entry) = self.alterable(ct) {
            entry.set_reply_destination(to);
        }
    }

    /// The packet leaves the node or reaches a socket: a new entry enters the table (`__nf_conntrack_confirm`).
    ///
    /// A datagram whose tuples another entry has may pass all the same, as a packet of that entry.
    ///
    /// # Errors
    /// `Clash` if another entry has one of the tuples, even an expired one that is not yet collected: the packet
    /// is dropped and its entry gone.
    #[inline]
    pub fn confirm(&mut self, now: Jiffies, ct: CtRef) -> Result<(), CtRule> {
        if ct.dir == Dir::Reply || self.is_confirmed(ct) {
            return Ok(());
        }
        self.insert(now, ct)
    }

    /// An unconfirmed entry enters the table.
    #[inline(never)]
    fn insert(&mut self, now: Jiffies, ct: CtRef) -> Result<(), CtRule> {
        let entry = self.entry(ct.slot);
        let (orig, reply) = (entry.orig(), entry.reply());
        let chain = self.chain_of(&orig, &reply);
        let alone = self.tuples.is_empty() && chain.is_some_and(|at| self.ports.head(at) == NONE);
        let winner = match alone {
            true => None,
            false => self.owner(&orig).or_else(|| self.owner(&reply)),
        };
        if let Some(winner) = winner {
            let merges = self.can_merge(self.entry(winner.slot), self.entry(ct.slot));
            self.release(ct);
            return if merges { Ok(()) } else { Err(CtRule::Clash) };
        }
        let entry = &mut self.entries[ct.slot as usize];
        entry.deadline = self.clock.deadline(now, entry.deadline.0);
        entry.status.set(Status::CONFIRMED);
        self.link(ct.slot, chain);
        self.latest = ct.slot;
        Ok(())
    }

    /// The packet was dropped, or IPVS took its entry away (`vs.conntrack`=0): an unconfirmed entry is freed.
    #[inline]
    pub fn release(&mut self, ct: CtRef) {
        if !self.is_confirmed(ct) {
            self.delete(ct.slot);
        }
    }

    /// Deletes the unexpired entry that has this tuple in either direction (`ip_vs_conn_drop_conntrack`).
    pub fn delete_tuple(&mut self, now: Jiffies, tuple: &Tuple) -> bool {
        let found = self.find(now, tuple);
        if let Some(ct) = found {
            self.delete(ct.slot);
        }
        found.is_some()
    }

    /// Entries in the table, with the unconfirmed and the expired but not yet collected ones (`nf_conntrack_count`).
    pub fn count(&self) -> u32 {
        (self.entries.len() - self.free.len()) as u32
    }

    /// The confirmed, unexpired entry that has this tuple; expired ones met on the way are deleted.
    #[inline]
    pub fn find(&mut self, now: Jiffies, tuple: &Tuple) -> Option<CtRef> {
        let ct = self.owner(tuple)?;
        if !self.entry(ct.slot).is_expired(now) {
            return Some(ct);
        }
        self.delete(ct.slot);
        self.find_again(now, tuple)
    }

    #[cold]
    fn find_again(&mut self, now: Jiffies, tuple: &Tuple) -> Option<CtRef> {
        self.find(now, tuple)
    }

    /// Every entry in the table, by slot: for checks and statistics. Includes unconfirmed and expired ones.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &CtEntry)> {
        self.entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.status.has(Status::LIVE))
            .map(|(slot, entry)| (slot as u32, entry))
    }

    /// Whether a packet may change over to the entry that it clashes with (`__nf_ct_resolve_clash`, since 4.7).
    fn can_merge(&self, winner: &CtEntry, loser: &CtEntry) -> bool {
        if loser.proto() != Proto::Udp {
            return false;
        }
        let won = (winner.orig(), winner.reply());
        let same = won == (loser.orig(), loser.reply());
        if self.kernel.has(Gate::NatReverseClash) {
            return same || won == (loser.reply(), loser.orig());
        }
        let nat_saw_it =
            winner.status.has(Status::SRC_NAT_DONE) || winner.status.has(Status::DST_NAT_DONE);
        same || !nat_saw_it
    }

    #[inline]
    fn alterable(&mut self, ct: CtRef) -> Option<&mut CtEntry> {
        let entry = &mut self.entries[ct.slot as usize];
        (ct.dir == Dir::Original && !entry.status.has(Status::CONFIRMED)).then_some(entry)
    }

    /// The packet function of TCP: checks the flags and begins or continues the record.
    fn tcp(&mut self, now: Jiffies, ct: CtRef, seg: &Segment, sysctls: &CtSysctls) -> TcpVerdict {
        let entry = &mut self.entries[ct.slot as usize];
        let env = TcpEnv {
            sysctls,
            kernel: self.kernel,
            hz: self.clock.hz(),
            remaining: now.until(entry.deadline),
        };
        let refused = |rule| TcpVerdict::Invalid {
            rule,
            timeout: None,
        };
        if !flags_are_valid(seg.flags) {
            return refused(CtRule::InvalidFlags);
        }
        let fresh = !entry.status.has(Status::CONFIRMED);
        let (tcp, status) = entry.record_mut();
        if fresh {
            match tcp_new(seg, &env) {
                Ok((new, _)) => *tcp = new,
                Err(rule) => return refused(rule),
            }
        }
        tcp_packet(tcp, status, ct.dir, seg, &env)
    }

    /// The packet function of UDP.
    fn udp(&mut self, now: Jiffies, ct: CtRef, sysctls: &CtSysctls) -> TcpVerdict {
        let entry = &mut self.entries[ct.slot as usize];
        let stream_from = entry.stream_from();
        let (rule, secs) = udp_packet(&mut entry.status, stream_from, now, sysctls, self.kernel);
        TcpVerdict::Accept {
            rule,
            timeout: Some(secs),
        }
    }

    /// What made a fresh entry.
    fn origin_rule(&self, slot: u32) -> CtRule {
        match self.entry(slot).tcp().map(|tcp| tcp.state) {
            None => CtRule::NewUdp,
            Some(CtState::SynSent) => CtRule::NewSyn,
            Some(_) => CtRule::NewMidStream,
        }
    }

    /// Makes an unconfirmed entry (`init_conntrack`); `None` if the table is full.
    fn allocate(&mut self, now: Jiffies, tuple: &Tuple, sysctls: &CtSysctls) -> Option<CtRef> {
        if self.count() >= sysctls.max && !self.early_drop(now, tuple, sysctls) {
            self.collector.table_was_full();
            return None;
        }
        let mut status = Status::default();
        status.set(Status::LIVE);
        self.serial = self.serial.wrapping_add(1);
        let stream_from = now + self.clock.ticks(2);
        let tuples = (*tuple, tuple.reversed());
        let slot = self.take_slot(CtEntry::new(tuples, status, self.serial, stream_from));
        Some(CtRef {
            slot,
            dir: Dir::Original,
        })
    }

    /// Gives the entry a new deadline (`__nf_ct_refresh_acct`); before confirmation, a lifetime.
    ///
    /// When entries had timers of their own (before 4.9) a deadline moved only if by a second or more.
    fn refresh(&mut self, now: Jiffies, slot: u32, timeout: Option<u32>) {
        let Some(secs) = timeout else { return };
        let ticks = self.clock.ticks(u64::from(secs));
        let hz = u64::from(self.clock.hz());
        let entry = &mut self.entries[slot as usize];
        if !entry.status.has(Status::CONFIRMED) {
            entry.deadline = Jiffies(ticks);
            return;
        }
        let deadline = now + ticks;
        let has_timer = !self.kernel.has(Gate::ConntrackGc);
        if has_timer && deadline.0.wrapping_sub(entry.deadline.0) < hz {
            return;
        }
        entry.deadline = deadline;
    }

    /// Puts an entry into a free slot, the last freed first.
    fn take_slot(&mut self, entry: CtEntry) -> u32 {
        match self.free.pop() {
            Some(slot) => {
                self.entries[slot as usize] = entry;
                slot
            }
            None => {
                self.entries.push(entry);
                (self.entries.len() - 1) as u32
            }
        }
    }

    /// Takes an entry out of the table and frees its slot. The record stays readable until the slot is reused.
    #[inline(never)]
    fn delete(&mut self, slot: u32) {
        let status = self.entry(slot).status;
        if !status.has(Status::LIVE) {
            return;
        }
        if status.has(Status::CONFIRMED) {
            self.unlink(slot);
        }
        if status.has(Status::MASQUERADED) {
            self.forget_source(slot);
        }
        self.entries[slot as usize].status.clear(Status::LIVE);
        self.free.push(slot);
    }
}

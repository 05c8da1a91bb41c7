//! Source and destination NAT: which source port a connection leaves with, and what replies undo.
//!
//! Faithful to: `nf_nat_inet_fn`, `nf_nat_setup_info`, `get_unique_tuple`, `nf_nat_l4proto_unique_tuple`,
//! `nf_nat_used_tuple_harder`, `find_appropriate_src`, `nf_nat_packet`, 4.x to 6.12 (facts 5.8).
//! Leaves out: rules with port ranges or several addresses, `--persistent`, NAT of ICMP.

use rand::Rng;

use super::entry::{Dir, Status};
use super::index::{self, TupleIndex};
use super::table::CtState;
use super::{Conntrack, CtRef, CtRule};
use crate::kernel::Gate;
use crate::segment::{Endpoint, Proto, Tuple, seq_after};
use crate::time::Jiffies;
use core::net::Ipv4Addr;

/// Ports tried in the first run of a search (`NF_NAT_MAX_ATTEMPTS`).
const MAX_ATTEMPTS: u32 = 128;
/// Attempts at the end of a run that may evict a closing entry (`NF_NAT_HARDER_THRESH`).
const HARDER_ATTEMPTS: u32 = 32;

/// What POST_ROUTING does with the first packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceNat {
    /// No nat table on the node: nothing is looked at, nothing changes.
    Inactive,
    /// A nat table without a matching rule: the port changes only if the reply tuple is taken.
    NullBinding,
    /// `MASQUERADE` to the address of the interface the packet leaves by.
    Masquerade {
        /// That address.
        ip: Ipv4Addr,
        /// `--random` or `--random-fully` (the same since 5.0; before, `--random-fully` is meant).
        random: bool,
    },
}

impl Conntrack {
    /// POST_ROUTING: maps the source of a connection's first packet; the source the packet leaves with and why.
    ///
    /// `None` leaves the packet's source as it is: NAT did not touch it (IPVS may have). The choice stands for
    /// the life of the entry. Random numbers are drawn from `rng` only if a port has to be searched.
    #[inline]
    pub fn source_nat(
        &mut self,
        now: Jiffies,
        ct: CtRef,
        policy: SourceNat,
        rng: &mut impl Rng,
    ) -> (Option<Endpoint>, CtRule) {
        const SETTLED: Status = Status::SEEN_REPLY
            .with(Status::SRC_NAT_DONE)
            .with(Status::CONFIRMED);
        let status = self.entry(ct.slot).status;
        let first = ct.dir == Dir::Original && !status.has_any(SETTLED);
        let rule = match (first, policy) {
            (false, _) | (_, SourceNat::Inactive) => CtRule::NatEstablished,
            (true, _) => self.map_source(now, ct.slot, policy, rng),
        };
        (self.post_routing_source(ct), rule)
    }

    /// PRE_ROUTING of an iptables or nftables service: the chosen backend of a new connection.
    ///
    /// Nothing happens unless the entry is new and has no destination mapping yet.
    pub fn destination_nat(&mut self, ct: CtRef, backend: Option<Endpoint>) {
        let entry = &mut self.entries[ct.slot as usize];
        let settled = entry.status.has(Status::CONFIRMED) || entry.status.has(Status::DST_NAT_DONE);
        if ct.dir == Dir::Reply || settled {
            return;
        }
        if let Some(backend) = backend
            && entry.reply().src != backend
        {
            entry.set_reply_source(backend);
            entry.status.set(Status::DST_NAT);
        }
        entry.status.set(Status::DST_NAT_DONE);
    }

    /// The destination that NAT gives a packet at PRE_ROUTING; `None` if it keeps its own.
    #[inline]
    pub fn pre_routing_destination(&self, ct: CtRef) -> Option<Endpoint> {
        let entry = self.entry(ct.slot);
        match ct.dir {
            Dir::Original if entry.status.has(Status::DST_NAT) => Some(entry.reply().src),
            Dir::Reply if entry.status.has(Status::SRC_NAT) => Some(entry.orig().src),
            _ => None,
        }
    }

    /// The source that NAT gives a packet at POST_ROUTING; `None` if it keeps its own.
    #[inline]
    pub fn post_routing_source(&self, ct: CtRef) -> Option<Endpoint> {
        let entry = self.entry(ct.slot);
        match ct.dir {
            Dir::Original if entry.status.has(Status::SRC_NAT) => Some(entry.reply().dst),
            Dir::Reply if entry.status.has(Status::DST_NAT) => Some(entry.orig().dst),
            _ => None,
        }
    }

    /// Chooses the mapping and writes it into the entry.
    #[inline(never)]
    fn map_source(
        &mut self,
        now: Jiffies,
        slot: u32,
        policy: SourceNat,
        rng: &mut impl Rng,
    ) -> CtRule {
        let current = self.entry(slot).reply().reversed();
        let (chosen, rule) = self.unique_tuple(now, slot, current, policy, rng);
        let masquerades = matches!(policy, SourceNat::Masquerade { .. });
        let entry = &mut self.entries[slot as usize];
        if chosen != current {
            entry.set_reply_source(chosen.dst);
            entry.set_reply_destination(chosen.src);
            entry.status.set(Status::SRC_NAT);
        }
        entry.status.set(Status::SRC_NAT_DONE);
        if masquerades {
            self.remember_source(slot);
        }
        rule
    }

    /// The tuple a packet leaves with (`get_unique_tuple`).
    fn unique_tuple(
        &mut self,
        now: Jiffies,
        slot: u32,
        current: Tuple,
        policy: SourceNat,
        rng: &mut impl Rng,
    ) -> (Tuple, CtRule) {
        let (ip, random) = match policy {
            SourceNat::Masquerade { ip, random } => (ip, random),
            SourceNat::Inactive | SourceNat::NullBinding => (current.src.ip, false),
        };
        let mut tuple = current;
        if !random {
            if current.src.ip == ip {
                if !self.is_taken_at_first(now, slot, &current) {
                    return (current, CtRule::NatPortKept);
                }
            } else if let Some(source) = self.mapping_of_source(slot, ip) {
                tuple.src = source;
                if !self.is_taken(now, slot, &tuple) {
                    return (tuple, CtRule::NatPortShared);
                }
            }
        }
        tuple.src = Endpoint::new(ip, current.src.port);
        if !random && !self.is_taken(now, slot, &tuple) {
            return (tuple, CtRule::NatPortKept);
        }
        self.search_port(now, slot, tuple, random, rng)
    }

    /// Looks for a free port (`nf_nat_l4proto_unique_tuple`).
    fn search_port(
        &mut self,
        now: Jiffies,
        slot: u32,
        mut tuple: Tuple,
        random: bool,
        rng: &mut impl Rng,
    ) -> (Tuple, CtRule) {
        let (min, size) = match tuple.src.port {
            0..512 => (1, 511),
            512..1024 => (600, 424),
            1024.. => (1024, 64512),
        };
        if !self.kernel.has(Gate::NatSearch128) {
            return self.search_whole_range(now, slot, tuple, (min, size), random, rng);
        }
        let mut offset = random_u16(rng);
        let mut attempts = size.min(MAX_ATTEMPTS);
        loop {
            for done in 0..attempts {
                tuple.src.port = min + (u32::from(offset) % size) as u16;
                offset = offset.wrapping_add(1);
                match self.try_port(now, slot, &tuple, attempts - done) {
                    Attempt::Free => return (tuple, CtRule::NatPortDrawn),
                    Attempt::Evicted => return (tuple, CtRule::NatEvicted),
                    Attempt::Taken => {}
                }
            }
            if attempts >= size || attempts < 16 {
                return (tuple, CtRule::NatExhausted);
            }
            attempts /= 2;
            offset = random_u16(rng);
        }
    }

    /// The search before 5.0: from a rover, or a random start, through the whole range.
    fn search_whole_range(
        &mut self,
        now: Jiffies,
        slot: u32,
        mut tuple: Tuple,
        (min, size): (u16, u32),
        random: bool,
        rng: &mut impl Rng,
    ) -> (Tuple, CtRule) {
        let rover = match tuple.proto {
            Proto::Tcp => 0,
            Proto::Udp => 1,
        };
        let mut offset = if random {
            random_u16(rng)
        } else {
            self.rover[rover]
        };
        let mut rule = CtRule::NatExhausted;
        for tried in 1..=size {
            tuple.src.port = min + (u32::from(offset) % size) as u16;
            // The last port is taken without a look.
            if tried < size && self.is_taken(now, slot, &tuple) {
                offset = offset.wrapping_add(1);
                continue;
            }
            if tried < size {
                rule = CtRule::NatPortDrawn;
            }
            break;
        }
        if !random {
            self.rover[rover] = offset;
        }
        (tuple, rule)
    }

    /// One port of a search; near the end of a run a closing entry may have to go (`nf_nat_used_tuple_harder`).
    fn try_port(&mut self, now: Jiffies, slot: u32, tuple: &Tuple, left: u32) -> Attempt {
        let harder = self.kernel.has(Gate::NatEvictsClosing) && left <= HARDER_ATTEMPTS;
        let syn_end = self
            .entry(slot)
            .tcp()
            .filter(|tcp| harder && tcp.state == CtState::SynSent)
            .map(|tcp| tcp.seen[0].end);
        let Some(syn_end) = syn_end else {
            return if self.is_taken(now, slot, tuple) {
                Attempt::Taken
            } else {
                Attempt::Free
            };
        };
        let Some(other) = self.find(now, &tuple.reversed()) else {
            return Attempt::Free;
        };
        let entry = self.entry(other.slot);
        let may_go = other.dir == Dir::Reply
            && entry.status.has(Status::SRC_NAT)
            && entry.tcp().is_some_and(|tcp| {
                tcp.state >= CtState::TimeWait && seq_after(syn_end, tcp.seen[0].end)
            });
        if !may_go {
            return Attempt::Taken;
        }
        self.delete(other.slot);
        Attempt::Evicted
    }

    /// Whether another entry already has the reply tuple of `tuple` (`nf_nat_used_tuple`); one with the same
    /// original tuple does not count.
    fn is_taken(&mut self, now: Jiffies, slot: u32, tuple: &Tuple) -> bool {
        self.find(now, &tuple.reversed())
            .is_some_and(|other| self.entry(other.slot).orig() != self.entry(slot).orig())
    }

    /// The same for a tuple that NAT would leave alone (`nf_nat_used_tuple_new`): a datagram's collision with an
    /// untranslated entry of the opposite direction is left to the insertion.
    fn is_taken_at_first(&mut self, now: Jiffies, slot: u32, tuple: &Tuple) -> bool {
        if !self.is_taken(now, slot, tuple) {
            return false;
        }
        let ours = *self.entry(slot);
        let natted = |status: Status| status.has(Status::SRC_NAT) || status.has(Status::DST_NAT);
        if tuple.proto != Proto::Udp
            || !self.kernel.has(Gate::NatReverseClash)
            || natted(ours.status)
        {
            return true;
        }
        let found = self
            .find(now, tuple)
            .or_else(|| self.find(now, &tuple.reversed()));
        let Some(other) = found else { return false };
        let other = self.entry(other.slot);
        natted(other.status) || other.orig() != ours.reply()
    }

    /// The mapping to `ip` that another flow of the same source has, the newest first (`find_appropriate_src`).
    fn mapping_of_source(&self, slot: u32, ip: Ipv4Addr) -> Option<Endpoint> {
        let orig = self.entry(slot).reply().reversed();
        self.sources
            .candidates(index::hash_source(orig.proto, orig.src))
            .map(|word| self.entry(TupleIndex::reference(word).slot))
            .filter(|entry| entry.proto() == orig.proto && entry.orig().src == orig.src)
            .filter(|entry| entry.reply().dst.ip == ip)
            .max_by_key(|entry| entry.serial)
            .map(|entry| entry.reply().dst)
    }

    fn remember_source(&mut self, slot: u32) {
        let entries = &self.entries;
        let hash_of = |word: u32| {
            let orig = entries[TupleIndex::reference(word).slot as usize].orig();
            index::hash_source(orig.proto, orig.src)
        };
        let word = source_word(slot);
        self.sources.insert(hash_of(word), word, hash_of);
        self.entries[slot as usize].status.set(Status::MASQUERADED);
    }

    pub(super) fn forget_source(&mut self, slot: u32) {
        let orig = self.entry(slot).orig();
        self.sources
            .remove(index::hash_source(orig.proto, orig.src), source_word(slot));
    }
}

/// One port of a search.
enum Attempt {
    Free,
    Evicted,
    Taken,
}

const fn source_word(slot: u32) -> u32 {
    TupleIndex::word(CtRef {
        slot,
        dir: Dir::Original,
    })
}

fn random_u16(rng: &mut impl Rng) -> u16 {
    (rng.next_u32() >> 16) as u16
}

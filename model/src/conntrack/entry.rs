//! One conntrack entry: its two tuples, what it knows of the connection, its deadline.
//!
//! Faithful to: `struct nf_conn`, `enum ip_conntrack_status`.
//! Leaves out: marks, labels, helpers, accounting, zones, offload.

use super::table::{CtState, FlagClass};
use crate::index::NONE;
use crate::segment::{Endpoint, Proto, Tuple};
use crate::time::Jiffies;

/// Whose packet it is: that of the side that began, or of the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Dir {
    /// The side whose packet made the entry.
    #[default]
    Original,
    /// The other side.
    Reply,
}

impl Dir {
    /// The opposite direction.
    pub const fn other(self) -> Self {
        match self {
            Self::Original => Self::Reply,
            Self::Reply => Self::Original,
        }
    }
}

/// A set of status bits of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status(u16);

impl Status {
    /// A packet of the reply direction was accepted: `[UNREPLIED]` is gone.
    pub const SEEN_REPLY: Self = Self(1);
    /// Worth keeping when the table is full: `[ASSURED]`.
    pub const ASSURED: Self = Self(1 << 1);
    /// In the table, and so visible to other packets.
    pub const CONFIRMED: Self = Self(1 << 2);
    /// The source of original packets is rewritten.
    pub const SRC_NAT: Self = Self(1 << 3);
    /// The destination of original packets is rewritten.
    pub const DST_NAT: Self = Self(1 << 4);
    /// Source NAT has decided.
    pub const SRC_NAT_DONE: Self = Self(1 << 5);
    /// Destination NAT has decided.
    pub const DST_NAT_DONE: Self = Self(1 << 6);
    /// Source NAT by masquerading: other flows of the source may share the mapping.
    pub const MASQUERADED: Self = Self(1 << 7);
    /// The slot holds an entry, confirmed or not.
    pub const LIVE: Self = Self(1 << 8);

    /// Whether all bits of `other` are set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any bit of `other` is set.
    pub const fn has_any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Both sets together.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Sets the bits of `other`.
    pub const fn set(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Clears the bits of `other`.
    pub const fn clear(&mut self, other: Self) {
        self.0 &= !other.0;
    }
}

/// What is known of one side's window (`struct ip_ct_tcp_state`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Highest sequence number after a segment that this side sent (`td_end`).
    pub end: u32,
    /// Highest sequence number that the other side has room for (`td_maxend`).
    pub max_end: u32,
    /// Largest window that this side advertised, scaled; 0 before its first segment (`td_maxwin`).
    pub max_window: u32,
    /// Highest acknowledgement that this side sent (`td_maxack`).
    pub max_ack: u32,
    /// Window scale, 0 to 14.
    pub scale: u8,
    /// Flags, `Seen::*`.
    pub flags: u8,
}

impl Seen {
    /// This side offered window scaling.
    pub const WINDOW_SCALE: u8 = 0x01;
    /// This side offered selective acknowledgement.
    pub const SACK_PERM: u8 = 0x02;
    /// The first FIN came from this side.
    pub const CLOSE_INIT: u8 = 0x04;
    /// Its window is unknown and therefore not enforced.
    pub const BE_LIBERAL: u8 = 0x08;
    /// Some of its data is not acknowledged.
    pub const UNACKNOWLEDGED: u8 = 0x10;
    /// `max_ack` is valid.
    pub const MAXACK_SET: u8 = 0x20;

    /// Whether a flag is set.
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// What conntrack remembers of a TCP connection (`struct ip_ct_tcp`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpState {
    /// Both sides, indexed by `Dir`.
    pub seen: [Seen; 2],
    /// Sequence number of the last ACK, or of the last ignored segment.
    pub last_seq: u32,
    /// Acknowledgement of the last ACK.
    pub last_ack: u32,
    /// End of the last ACK, or of the last ignored segment.
    pub last_end: u32,
    /// Window of the last ACK, or of the last ignored segment, unscaled.
    pub last_window: u16,
    /// The state.
    pub state: CtState,
    /// Direction of the last noted segment.
    pub last_dir: Dir,
    /// Class of the last noted segment.
    pub last_class: FlagClass,
    /// How often the last ACK was seen again; wraps at 256.
    pub retrans: u8,
    /// Window scale of the last ignored SYN.
    pub last_scale: u8,
    /// Flags of the last ignored SYN, and `TcpState::*`.
    pub last_flags: u8,
}

impl TcpState {
    /// A challenge ACK may follow an ignored SYN.
    pub const EXPECT_CHALLENGE_ACK: u8 = 0x40;
    /// Both sides sent a SYN.
    pub const SIMULTANEOUS_OPEN: u8 = 0x80;

    /// Either side's flags together.
    pub const fn flags(&self) -> u8 {
        self.seen[0].flags | self.seen[1].flags
    }
}

/// One entry of the conntrack table: 28,232 of them take 2.9 MB.
#[derive(Clone, Copy, Debug)]
pub struct CtEntry {
    /// Once confirmed: the tick from which on the entry counts as gone. Before: its lifetime in ticks.
    pub deadline: Jiffies,
    /// Number of the entry since the table was made; tells a slot's tenants apart.
    pub serial: u32,
    /// The entry that follows in the chain of the same client port.
    pub(super) next: u32,
    /// The record of TCP. UDP keeps in `seen[0].end` and `max_end` both halves of the tick from which on the conversation
    /// is a stream.
    record: TcpState,
    /// Source and destination of the original direction, then of the reply.
    ends: [Endpoint; 4],
    /// Status bits.
    pub status: Status,
    proto: Proto,
    /// Both tuples stand in the chain of a client port, and not in the hash.
    chained: bool,
}

const _: () = assert!(size_of::<CtEntry>() <= 104);

impl CtEntry {
    /// An unconfirmed entry, and for UDP from when on its conversation is a stream.
    pub(super) fn new(
        (orig, reply): (Tuple, Tuple),
        status: Status,
        serial: u32,
        stream_from: Jiffies,
    ) -> Self {
        let mut record = TcpState::default();
        if orig.proto == Proto::Udp {
            record.seen[0].end = stream_from.0 as u32;
            record.seen[0].max_end = (stream_from.0 >> 32) as u32;
        }
        Self {
            deadline: Jiffies(0),
            serial,
            next: NONE,
            record,
            ends: [orig.src, orig.dst, reply.src, reply.dst],
            status,
            proto: orig.proto,
            chained: false,
        }
    }

    /// Transport protocol.
    #[inline]
    pub const fn proto(&self) -> Proto {
        self.proto
    }

    /// Tuple of the original direction; never altered.
    #[inline]
    pub const fn orig(&self) -> Tuple {
        self.tuple(Dir::Original)
    }

    /// Tuple by which packets of the other side are recognised.
    #[inline]
    pub const fn reply(&self) -> Tuple {
        self.tuple(Dir::Reply)
    }

    /// The tuple of a direction.
    #[inline]
    pub const fn tuple(&self, dir: Dir) -> Tuple {
        let first = 2 * dir as usize;
        Tuple {
            proto: self.proto,
            src: self.ends[first],
            dst: self.ends[first + 1],
        }
    }

    /// Whose tuple this is, if it is the entry's.
    #[inline]
    pub(super) fn direction_of(&self, tuple: &Tuple) -> Option<Dir> {
        let [from, to, back, home] = &self.ends;
        if (from, to) == (&tuple.src, &tuple.dst) && self.proto == tuple.proto {
            Some(Dir::Original)
        } else if (back, home) == (&tuple.src, &tuple.dst) && self.proto == tuple.proto {
            Some(Dir::Reply)
        } else {
            None
        }
    }

    /// Replies will come from there.
    pub(super) const fn set_reply_source(&mut self, from: Endpoint) {
        self.ends[2] = from;
    }

    /// Replies will go there.
    pub(super) const fn set_reply_destination(&mut self, to: Endpoint) {
        self.ends[3] = to;
    }

    /// Whether both tuples stand in the chain of a client port.
    #[inline]
    pub(super) const fn is_chained(&self) -> bool {
        self.chained
    }

    pub(super) const fn set_chained(&mut self, chained: bool) {
        self.chained = chained;
    }

    /// The record of TCP; `None` for UDP.
    #[inline]
    pub const fn tcp(&self) -> Option<&TcpState> {
        match self.proto {
            Proto::Tcp => Some(&self.record),
            Proto::Udp => None,
        }
    }

    /// The record of an entry of TCP, and the status bits that its rules may set.
    #[inline]
    pub(super) const fn record_mut(&mut self) -> (&mut TcpState, &mut Status) {
        (&mut self.record, &mut self.status)
    }

    /// Of UDP: from when on the conversation is a stream, two seconds after the first datagram.
    pub(super) const fn stream_from(&self) -> Jiffies {
        let first = &self.record.seen[0];
        Jiffies(first.end as u64 | (first.max_end as u64) << 32)
    }

    /// Whether the entry counts as gone (`nf_ct_is_expired`). Only for confirmed entries.
    #[inline]
    pub const fn is_expired(&self, now: Jiffies) -> bool {
        self.deadline.0 <= now.0
    }
}

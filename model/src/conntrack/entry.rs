//! One conntrack entry: its two tuples, what it knows of the connection, its deadline.
//!
//! Faithful to: `struct nf_conn`, `enum ip_conntrack_status`.
//! Leaves out: marks, labels, helpers, accounting, zones, offload.

use super::table::{CtState, FlagClass};
use crate::segment::Tuple;
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

/// What is known of the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L4 {
    /// TCP.
    Tcp(TcpState),
    /// UDP: from when on the conversation is a stream.
    Udp {
        /// Two seconds after the first datagram.
        stream_from: Jiffies,
    },
}

/// One entry of the conntrack table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CtEntry {
    /// Tuple of the original direction; never altered.
    pub orig: Tuple,
    /// Tuple by which packets of the other side are recognised.
    pub reply: Tuple,
    /// Status bits.
    pub status: Status,
    /// Number of the entry since the table was made; tells a slot's tenants apart.
    pub serial: u32,
    /// Once confirmed: the tick from which on the entry counts as gone. Before: its lifetime in ticks.
    pub deadline: Jiffies,
    /// Transport.
    pub l4: L4,
}

const _: () = assert!(size_of::<CtEntry>() == 112);

impl CtEntry {
    /// The tuple of a direction.
    pub const fn tuple(&self, dir: Dir) -> &Tuple {
        match dir {
            Dir::Original => &self.orig,
            Dir::Reply => &self.reply,
        }
    }

    /// The TCP state; `None` for UDP.
    pub const fn tcp(&self) -> Option<&TcpState> {
        match &self.l4 {
            L4::Tcp(tcp) => Some(tcp),
            L4::Udp { .. } => None,
        }
    }

    /// Whether the entry counts as gone (`nf_ct_is_expired`). Only for confirmed entries.
    pub const fn is_expired(&self, now: Jiffies) -> bool {
        self.deadline.0 <= now.0
    }
}

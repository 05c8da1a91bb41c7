//! Every decision that conntrack and NAT make, by name.

use core::fmt;

/// Why conntrack did with a packet what it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum CtRule {
    /// A SYN without an entry makes one (`tcp_new`).
    NewSyn,
    /// A bare ACK without an entry is taken for a connection in progress (`tcp_new`, `tcp_loose`=1).
    NewMidStream,
    /// A datagram without an entry makes one.
    NewUdp,
    /// A SYN on a finished connection deletes its entry and makes a fresh one (facts 5.3.4).
    Reopened,
    /// The segment is in the window; the state table decides.
    InWindow,
    /// The segment is out of the window, but the entry or `tcp_be_liberal` does not mind.
    LiberalWindow,
    /// A SYN sent again before any answer: the entry keeps its deadline.
    SynRetransmitted,
    /// A SYN of the client that conntrack does not believe: noted, passed, entry unchanged.
    IgnoredSyn,
    /// A SYN-ACK outside the handshake: noted, passed, entry unchanged.
    IgnoredSynAck,
    /// An ACK of the server on a half-open entry: noted, passed, entry unchanged.
    IgnoredAck,
    /// An overly delayed segment: passed, entry unchanged.
    IgnoredDelayed,
    /// A segment that exceeds the window by less than a window: passed, its end remembered.
    IgnoredOvershot,
    /// An ACK that answers an ignored SYN in LAST_ACK (a challenge ACK): passed, entry unchanged.
    IgnoredChallengeAck,
    /// A SYN-ACK that acknowledges an ignored SYN: the entry follows the new connection.
    Resynchronised,
    /// A SYN of the server's side on a half-open entry: simultaneous open.
    SimultaneousOpen,
    /// A RST in the window closes the entry.
    RstClosed,
    /// A RST on a closing entry is always believed.
    RstWhileClosing,
    /// A RST that misses the expected number leaves an established entry established.
    RstInexact,
    /// A RST that answers a SYN or ACK that had been let through: no window check.
    RstAnswersIgnored,
    /// A RST that answers a challenge ACK that had been let through: no window check.
    RstAnswersChallenge,
    /// A RST on an entry whose peer was never heard deletes the entry at once.
    RstUnanswered,
    /// A datagram before any answer.
    UdpUnreplied,
    /// A datagram of a conversation younger than two seconds.
    UdpReplied,
    /// A datagram of a stream.
    UdpStream,
    /// Flags that no TCP sends together: no entry attached.
    InvalidFlags,
    /// A SYN-ACK, FIN or RST without an entry: no entry attached.
    InvalidNew,
    /// An ACK without an entry and `tcp_loose`=0: no entry attached.
    InvalidNotLoose,
    /// The state table forbids the segment: no entry attached.
    InvalidState,
    /// A RST below the highest acknowledged number: no entry attached.
    InvalidRst,
    /// The segment begins after the window of its receiver: no entry attached.
    InvalidSeqOver,
    /// The segment ends before the window of its receiver: no entry attached.
    InvalidSeqUnder,
    /// It acknowledges what was never sent: no entry attached.
    InvalidAckOver,
    /// It acknowledges far too little: no entry attached.
    InvalidAckUnder,
    /// An out-of-window FIN or RST that answers one of the other side: no entry attached, lifetime cut.
    InvalidShortened,
    /// The table is full and nothing could be evicted: dropped.
    TableFull,
    /// Another entry has one of the two tuples (`insert_failed`): dropped.
    Clash,
    /// The entry enters the table.
    Confirmed,
    /// NAT leaves the packet alone: not its first, or no NAT on this node.
    NatEstablished,
    /// NAT keeps the source port: the reply tuple is free.
    NatPortKept,
    /// NAT takes the port that the same source already has elsewhere.
    NatPortShared,
    /// NAT draws another source port.
    NatPortDrawn,
    /// NAT takes the port of a closing entry, which it deletes.
    NatEvicted,
    /// NAT found no free port in its attempts; the last one tried is left in place.
    NatExhausted,
}

impl CtRule {
    /// One sentence for a reader of a trace.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::NewSyn => "new conntrack entry for a SYN",
            Self::NewMidStream => "new conntrack entry for a connection picked up in mid-stream",
            Self::NewUdp => "new conntrack entry for a datagram",
            Self::Reopened => "the SYN reopened a finished connection: fresh conntrack entry",
            Self::InWindow => "in window, next state by the table",
            Self::LiberalWindow => "out of window, accepted liberally",
            Self::SynRetransmitted => "retransmitted SYN, deadline kept",
            Self::IgnoredSyn => "SYN ignored: conntrack may be out of sync",
            Self::IgnoredSynAck => "SYN-ACK ignored outside the handshake",
            Self::IgnoredAck => "ACK ignored on a half-open entry",
            Self::IgnoredDelayed => "overly delayed segment ignored",
            Self::IgnoredOvershot => "segment beyond the window ignored",
            Self::IgnoredChallengeAck => "challenge ACK ignored",
            Self::Resynchronised => "SYN-ACK to an ignored SYN: conntrack is in sync again",
            Self::SimultaneousOpen => "SYN from the other side: simultaneous open",
            Self::RstClosed => "RST closes the entry",
            Self::RstWhileClosing => "RST accepted on a closing entry",
            Self::RstInexact => "RST off the expected number: stays established",
            Self::RstAnswersIgnored => "RST answers an ignored segment",
            Self::RstAnswersChallenge => "RST answers a challenge ACK",
            Self::RstUnanswered => "RST before any reply: conntrack entry deleted",
            Self::UdpUnreplied => "datagram, unreplied",
            Self::UdpReplied => "datagram, replied",
            Self::UdpStream => "datagram of a stream",
            Self::InvalidFlags => "invalid: impossible TCP flags",
            Self::InvalidNew => "invalid: cannot begin a connection",
            Self::InvalidNotLoose => "invalid: tcp_loose=0",
            Self::InvalidState => "invalid in this conntrack state",
            Self::InvalidRst => "invalid: RST below the acknowledged data",
            Self::InvalidSeqOver => "invalid: sequence number over the window",
            Self::InvalidSeqUnder => "invalid: sequence number under the window",
            Self::InvalidAckOver => "invalid: acknowledges unseen data",
            Self::InvalidAckUnder => "invalid: overly delayed ACK",
            Self::InvalidShortened => "invalid FIN or RST in answer to another: lifetime cut",
            Self::TableFull => "conntrack table full: packet dropped",
            Self::Clash => "conntrack tuple clash: packet dropped",
            Self::Confirmed => "conntrack entry confirmed",
            Self::NatEstablished => "source NAT leaves the packet as it is mapped",
            Self::NatPortKept => "source NAT keeps the port",
            Self::NatPortShared => "source NAT reuses the port that this source already has",
            Self::NatPortDrawn => "source NAT draws another port",
            Self::NatEvicted => "source NAT evicts a closing entry for its port",
            Self::NatExhausted => "source NAT found no free port",
        }
    }
}

impl fmt::Display for CtRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.describe())
    }
}

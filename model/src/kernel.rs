//! A kernel release and the behaviours it has: the one table of gates.
//!
//! A rule that changed over time asks `Behaviours::has(Gate)`; nothing else in the model looks at a version
//! number. The table states, for each gate, the mainline release that brought it, the stable branches that
//! took it over and from which patch level, and whether RHEL 7's 3.10 has it.

use core::fmt;
use core::str::FromStr;

use crate::time::TimerEra;

mod levels;
pub mod possible;
mod release;

pub use release::{Flavour, Kernel, ParseReleaseError, Taken};

/// A mainline version or stable release: `major.minor.patch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u16, pub u16, pub u16);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.2 {
            0 => write!(f, "{}.{}", self.0, self.1),
            patch => write!(f, "{}.{}.{patch}", self.0, self.1),
        }
    }
}

/// Declares the gates and their table in one place, so that no gate can lack its row.
macro_rules! gates {
    ($( $(#[doc = $doc:literal])+ $gate:ident $name:literal
        since $since:expr, backports [$($port:expr),*], el7 $el7:literal, $source:literal; )+) => {
        /// A behaviour that some kernels have and others do not.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Gate { $( $(#[doc = $doc])+ $gate, )+ }

        /// Every gate with its history, in the order of the enum.
        pub const GATES: &[GateRow] = &[ $( GateRow {
            gate: Gate::$gate,
            name: $name,
            summary: concat!($($doc),+),
            since: $since,
            backports: &[$($port),*],
            el7: $el7,
            source: $source,
        }, )+ ];
    };
}

/// One row of the gate table.
#[derive(Clone, Copy, Debug)]
pub struct GateRow {
    /// The gate.
    pub gate: Gate,
    /// The name used in scenarios and on the command line.
    pub name: &'static str,
    /// What the behaviour is.
    pub summary: &'static str,
    /// The first mainline release that has it; `None` if only stable branches do.
    pub since: Option<Version>,
    /// Stable branches that took it over, each with its first patch level that has it.
    pub backports: &'static [Version],
    /// Whether RHEL 7's 3.10.0-1160 has it.
    pub el7: bool,
    /// Commit, and how it is known.
    pub source: &'static str,
}

const fn v(major: u16, minor: u16, patch: u16) -> Version {
    Version(major, minor, patch)
}

gates! {
    /// `net.ipv4.vs.conn_reuse_mode` exists; a SYN on a TIME_WAIT entry is rescheduled, and the weight-0 rule depends on the mode.
    ReuseMode "reuse-mode"
        since Some(v(4, 1, 0)), backports [], el7 true, "d752c3645717; read in 4.0.5, 4.1.6, el7";
    /// A SYN on a CLOSE entry is rescheduled too.
    CloseReused "close-reused"
        since Some(v(4, 6, 0)), backports [], el7 true, "read in 4.4.155 (absent), 4.6.2, el7";
    /// A rescheduling SYN is dropped when the entry uses conntrack: the client loses a second.
    ReuseDropsTracked "reuse-drops-tracked"
        since Some(v(4, 6, 0)), backports [v(4, 4, 155)], el7 true, "f719e3754ee2; first 4.4.y release unknown, present in 4.4.155";
    /// ... but only when the packet's conntrack entry is already confirmed.
    ReuseDropsConfirmed "reuse-drops-confirmed"
        since Some(v(5, 9, 0)),
        backports [v(4, 14, 194), v(4, 19, 140), v(5, 4, 59), v(5, 7, 16), v(5, 8, 2)],
        el7 false, "f0a5e4d7a594; stable announcements, 5.7.16 in its review (178 of 393, 2020-08-17); absent in 5.7.14";
    /// A packet on an entry of a deleted real server is rescheduled at once; deletion flushes entries a jiffy later (expire_nodest_conn=1).
    DeletedDestReschedules "deleted-dest-reschedules"
        since Some(v(5, 9, 0)), backports [], el7 false, "35dfb013149f, 04231e52d355; read in 5.4.214 (absent), 5.9.1";
    /// IPVS looks at packets only while there is a virtual service: with the last one gone even entries are passed by.
    HooksWithServices "hooks-with-services"
        since Some(v(5, 9, 0)), backports [], el7 false, "read in 5.7.14 (absent), 5.9.1; seen on 6.12.117";
    /// With expire_nodest_conn=1 a SYN on an entry of a weight-0 real server is rescheduled in every mode, not only when conn_reuse_mode is set.
    WeightZeroAnyMode "weight-zero-any-mode"
        since Some(v(5, 16, 0)),
        backports [v(4, 14, 257), v(4, 19, 219), v(5, 4, 163), v(5, 10, 83), v(5, 15, 6)],
        el7 false, "c95c07836fa4; stable announcements, 5.4.163 in its review (46 of 92, 2021-11-29)";
    /// An ACK on a fresh entry makes it ESTABLISHED (before: CLOSE), and sloppy_tcp exists.
    AckEstablishes "ack-establishes"
        since Some(v(3, 11, 0)), backports [], el7 false, "read in 3.10.4 (absent), 4.1.6; release from memory";
    /// Half-open connections count as active; before, only ESTABLISHED ones.
    HalfOpenActive "half-open-active"
        since Some(v(4, 8, 0)), backports [], el7 false, "be2cef49904b; read in 3.18.y, 4.4.y (absent), 4.9.227; release from memory, el7 not read";
    /// lc and wlc cost 257 * active + inactive instead of 256 * active + inactive.
    OverheadTotal "overhead-total"
        since None, backports [v(6, 1, 192), v(6, 12, 117)], el7 false, "read in 6.1.192, 6.12.117; absent in 6.19.0; exact releases unknown";
    /// A persistence template shows ASSURED once a connection under it was established.
    TemplateAssured "template-assured"
        since Some(v(4, 19, 0)), backports [], el7 false, "read in 6.12.117; release from memory";
    /// The hierarchical timer wheel: timers fire at the next boundary of their level, late and in batches.
    TimerWheel "timer-wheel"
        since Some(v(4, 8, 0)), backports [], el7 false, "500462a9de65; release from memory";
    /// Conntrack entries carry a time stamp and are reaped by a collector, instead of a timer each.
    ConntrackGc "conntrack-gc"
        since Some(v(4, 9, 0)), backports [], el7 false, "release from memory";
    /// An accepted RST that does not hit the expected sequence number exactly leaves an established conntrack entry established.
    RstExactSeq "rst-exact-seq"
        since Some(v(5, 1, 0)), backports [], el7 false, "read in 4.19.0 (absent), 5.4.214";
    /// An RST in a closing conntrack state is always accepted; tcp_ignore_invalid_rst exists.
    RstClosingAccepted "rst-closing-accepted"
        since Some(v(5, 14, 0)), backports [], el7 false, "read in 5.10.44 (absent), 5.15.16";
    /// A retransmitted SYN does not refresh the timeout of an unreplied conntrack entry.
    SynRetransKeepsTimeout "syn-retrans-keeps-timeout"
        since Some(v(5, 14, 0)), backports [], el7 false, "read in 5.10.44 (absent), 5.15.16";
    /// An out-of-window FIN or RST can shorten the timeout of an assured conntrack entry to 300 s.
    OutOfWindowShortens "out-of-window-shortens"
        since Some(v(6, 1, 0)), backports [], el7 false, "read in 5.17 (absent), 6.1.192";
    /// Conntrack understands the challenge ACK that answers a SYN on a reused port.
    ChallengeAckReuse "challenge-ack-reuse"
        since Some(v(6, 2, 0)), backports [v(6, 1, 192)], el7 false, "read in 5.17 (absent), 6.4, 6.1.192; exact 6.1.y release unknown";
    /// An accepted RST that leaves conntrack ESTABLISHED gives it at most 300 s instead of 10 s.
    RstKeepsEstablished300 "rst-keeps-established-300"
        since None, backports [v(6, 12, 117)], el7 false, "read in 6.12.117; absent in 6.1.192 and 6.19.0; exact release unknown";
    /// Source NAT evicts a closing conntrack entry when it runs out of ports.
    NatEvictsClosing "nat-evicts-closing"
        since Some(v(6, 7, 0)), backports [], el7 false, "read in 6.4 (absent), 6.8";
    /// A conntrack entry whose peer has not been heard yet accepts any lower edge of the window (an older SYN passes).
    WindowUnknownPasses "window-unknown-passes"
        since Some(v(3, 12, 0)), backports [], el7 true, "356d7d88e088; absent in 3.10.4; release and el7 from memory";
    /// Conntrack lets a SYN from the server's side reopen a TIME_WAIT entry.
    ReplySynReopens "reply-syn-reopens"
        since Some(v(3, 19, 0)), backports [], el7 true, "e37ad9fd6360; absent in 3.10.4, read in 4.4; release and el7 from memory";
    /// Conntrack does not take the challenge ACK after an ignored SYN in LAST_ACK for the last ACK.
    ChallengeAckLastAck "challenge-ack-last-ack"
        since Some(v(4, 0, 0)), backports [], el7 true, "b3cad287d13b; absent in 3.10.4, read in el7; release from memory";
    /// A conntrack entry whose last segment advertised a closed window lives at most 300 s.
    ZeroWindow300 "zero-window-300"
        since Some(v(4, 16, 0)), backports [], el7 false, "fbcd253d2448; read in 4.19.0; release from memory";
    /// Source NAT tries 128 ports from a random start, then ever shorter runs; before, the whole range from a rover.
    NatSearch128 "nat-search-128"
        since Some(v(5, 0, 0)), backports [], el7 false, "a504b703bb1d; read in 5.7, absent in 4.19; release from memory";
    /// A UDP conntrack entry gets the stream timeout only after two seconds.
    UdpStreamAfter2s "udp-stream-after-2s"
        since Some(v(5, 0, 0)), backports [], el7 false, "d535c8a69c19; release from memory";
    /// A UDP conntrack entry is assured only once it is a stream.
    UdpAssuredWhenStream "udp-assured-when-stream"
        since Some(v(5, 15, 0)), backports [], el7 false, "read in 6.1.192; release from memory";
    /// TCP options of a SYN leave conntrack's liberal mark of an entry picked up in mid-stream in place.
    OptionsKeepLiberal "options-keep-liberal"
        since Some(v(5, 17, 0)), backports [v(5, 15, 26)], el7 false, "f2dd495a8d58; absent in 5.10.13, read in 5.18; exact 5.15.y from memory";
    /// Conntrack takes the window of a newer SYN or SYN-ACK from either side; before, of any newer segment of the side that is due.
    SynReinit "syn-reinit"
        since Some(v(5, 18, 0)), backports [], el7 false, "82b72cb94666, c7aab4f17021; read in 5.18, absent in 5.10.13 and late 5.15.y";
    /// A retransmitted SYN of the client does not switch window scaling off in conntrack.
    ReinitKeepsScale "reinit-keeps-scale"
        since Some(v(6, 8, 0)), backports [v(5, 15, 149), v(6, 1, 77), v(6, 6, 16)], el7 false, "fb366fc7541a; read in 6.1.192, absent in 5.18; exact releases from memory";
    /// Conntrack lets overly delayed segments pass untouched instead of calling them invalid.
    DelayedIgnored "delayed-ignored"
        since Some(v(6, 1, 0)), backports [], el7 false, "read in 6.1.192, absent in 5.18";
    /// Only a RST from the side that did not send the ignored SYN counts as its answer.
    RstAnswersOther "rst-answers-other"
        since None, backports [v(6, 1, 192), v(6, 12, 117)], el7 false, "read in 6.1.192, 6.12.117; absent in 5.18 and a 6.1x fork; exact releases unknown";
    /// A datagram merges with the entry it clashes with only if that is the same flow (before: if NAT never saw that); source NAT knows the reversed case.
    NatReverseClash "nat-reverse-clash"
        since Some(v(6, 12, 0)), backports [], el7 false, "a4e6a1031e77, d8f84a9bc7c4; read in 6.12.117, absent in 6.1.192; lab";
    /// connect() starts its port search at an even port.
    ConnectEven "connect-even"
        since Some(v(4, 2, 0)), backports [], el7 true, "07f4c90062f8";
    /// connect() walks the whole even half of the range before the odd half.
    ConnectTwoPass "connect-two-pass"
        since Some(v(4, 6, 0)), backports [], el7 false, "1580ab63fc9a";
    /// connect() keeps its port hints in a table of 256 slots instead of one global.
    ConnectPerturb256 "connect-perturb-256"
        since Some(v(5, 12, 0)), backports [], el7 false, "190cc82489f4, c579bd1b4021";
    /// connect() has 65536 slots, re-salts every 10 s and advances by a random even step.
    ConnectRandomStep "connect-random-step"
        since Some(v(5, 18, 0)),
        backports [v(4, 9, 320), v(4, 14, 285), v(4, 19, 249), v(5, 4, 201), v(5, 10, 125), v(5, 15, 41), v(5, 17, 9)],
        el7 false, "ca7af0402550, 4c2c8f03a5ab; announced for 4.9.320, 4.14.285, 5.4.201, 5.10.125, 5.15.41; 4.19.249 and 5.17.9 from memory";
    /// tcp_tw_reuse=2 (loopback only) is the default and reuse is allowed within the second.
    TwReuseLoopback "tw-reuse-loopback"
        since Some(v(4, 19, 0)), backports [], el7 false, "79e9fed46038";
    /// tcp_tw_reuse refuses a socket that is still in FIN_WAIT2.
    TwReuseRefusesFinWait2 "tw-reuse-refuses-fin-wait2"
        since Some(v(6, 9, 0)), backports [v(6, 1, 192), v(6, 12, 117)], el7 false, "read in 6.8.0 (absent), 6.1.192, 6.12.117";
    /// tcp_tw_reuse_delay (milliseconds since entry into TIME_WAIT) replaces the one-second rule.
    TwReuseDelay "tw-reuse-delay"
        since Some(v(6, 14, 0)), backports [], el7 false, "read in 6.19; release from memory";
    /// A timer for each TIME_WAIT socket (60 s); before: a calendar of 7.5 s slots (52.5 to 60 s).
    TwTimerPerSocket "tw-timer-per-socket"
        since Some(v(4, 2, 0)), backports [], el7 false, "release from memory";
    /// The SYN is sent again two jiffies after an unacceptable ACK in SYN_SENT.
    SynResendAfterBadAck "syn-resend-after-bad-ack"
        since Some(v(5, 7, 0)), backports [], el7 false, "read in 5.4.214 (absent), 5.7.14";
    /// A FIN waits for room in the congestion window as data do: while data are being sent again after a timeout there is none.
    FinWaitsForWindow "fin-waits-for-window"
        since Some(v(6, 10, 0)), backports [], el7 false, "22555032c513; read in 6.1.192 (absent), 6.12.117; release from memory";
    /// The first four SYN retransmissions are a second apart (tcp_syn_linear_timeouts=4).
    SynLinear "syn-linear"
        since Some(v(6, 5, 0)), backports [], el7 false, "read in 6.4.6 (absent), 6.5.0";
    /// Timestamp offsets are drawn per four-tuple (as in 4.10) instead of per host pair.
    TsOffsetPerTuple "ts-offset-per-tuple"
        since Some(v(7, 0, 0)), backports [v(6, 1, 192), v(6, 12, 94)], el7 false, "165573e41f2f; announced for 6.12.94";
    /// Timestamps start at a random offset instead of at the kernel's own clock.
    TsOffsetRandom "ts-offset-random"
        since Some(v(4, 11, 0)), backports [], el7 false, "read in 4.9.115 (absent), 4.19.0; release from memory";
    /// An inexact RST for a half-open request is challenged instead of killing it.
    RequestResetExact "request-reset-exact"
        since None, backports [v(6, 1, 192), v(6, 12, 117)], el7 false, "read in 6.1.192, 6.12.117; mainline release unknown";
    /// An ICMP error takes from the machine's allowance a random 0 to 2 (before 6.12: one more than that).
    IcmpRandomCredit "icmp-random-credit"
        since Some(v(5, 10, 0)), backports [], el7 false, "b38e7819cae9; release from memory, taken over by stables not listed here";
    /// An ICMP error that the limit per peer suppresses costs nothing of the machine's allowance.
    IcmpPeerFirst "icmp-peer-first"
        since Some(v(6, 12, 0)), backports [v(6, 1, 192)], el7 false, "8c2bd38b95f7; read in 6.12.117, 6.1.192; release from memory";
    /// An ICMP error that a node sends at once to a client on the same machine finds connect() done, and ends it.
    IcmpAfterConnect "icmp-after-connect"
        since Some(v(6, 1, 0)), backports [], el7 false, "seen: absent in the 5.7.14 recording, present in 6.1.192 and 6.12.117; cause and release unknown";
    /// ip_local_port_range ends at 60999 instead of 61000.
    PortRange60999 "port-range-60999"
        since Some(v(4, 2, 0)), backports [], el7 true, "read in 4.1 (absent), 4.4; el7 from memory";
    /// somaxconn is 4096 instead of 128.
    Somaxconn4096 "somaxconn-4096"
        since Some(v(5, 4, 0)), backports [], el7 false, "release from memory";
}

impl Gate {
    /// The gate's row in the table.
    pub const fn row(self) -> &'static GateRow {
        &GATES[self as usize]
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().name)
    }
}

/// The gate of a name as scenarios write it.
impl FromStr for Gate {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        GATES
            .iter()
            .find(|row| row.name == name)
            .map(|row| row.gate)
            .ok_or_else(|| format!("unknown kernel behaviour `{name}`; `sim kernels` lists them"))
    }
}

/// A set of gates: all that the rules know of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Behaviours(u64);

impl Behaviours {
    /// Whether the kernel has this behaviour.
    #[inline]
    pub const fn has(self, gate: Gate) -> bool {
        self.0 & (1 << gate as u8) != 0
    }

    /// The same set with one gate added or removed.
    #[must_use]
    pub const fn with(self, gate: Gate, present: bool) -> Self {
        let bit = 1 << gate as u8;
        Self(if present { self.0 | bit } else { self.0 & !bit })
    }

    /// The rounding of this kernel's timers.
    pub const fn timer_era(self) -> TimerEra {
        if self.has(Gate::TimerWheel) {
            TimerEra::Wheel
        } else {
            TimerEra::Slack
        }
    }

    /// The era of the port-reuse decision, A to F, as facts 1.6.1 names them. For display only.
    pub const fn reuse_era(self) -> &'static str {
        let fixed = self.has(Gate::WeightZeroAnyMode);
        if !self.has(Gate::ReuseMode) {
            "A"
        } else if !self.has(Gate::ReuseDropsTracked) {
            "B"
        } else if !self.has(Gate::ReuseDropsConfirmed) {
            if fixed { "C+F" } else { "C" }
        } else if !self.has(Gate::DeletedDestReschedules) {
            if fixed { "D+F" } else { "D" }
        } else if fixed {
            "F"
        } else {
            "E"
        }
    }
}

/// Whether a kernel has a behaviour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has.
    Yes,
    /// It has not.
    No,
    /// The release string does not tell; the pessimistic reading is that it has not.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(release: &str) -> Kernel {
        release.parse().unwrap()
    }

    /// The effective eras on long-term branches: facts 1.6.1.
    #[test]
    fn eras_of_the_stable_branches() {
        let rows = [
            ("3.10.108", "A"),
            ("4.0.5", "A"),
            ("4.1.6", "B"),
            ("4.5.0", "B"),
            ("4.6.2", "C"),
            ("4.9.115", "C"),
            ("4.14.193", "C"),
            ("4.14.194", "D"),
            ("4.14.257", "D+F"),
            ("4.19.139", "C"),
            ("4.19.140", "D"),
            ("4.19.218", "D"),
            ("4.19.219", "D+F"),
            ("5.4.58", "C"),
            ("5.4.59", "D"),
            ("5.4.162", "D"),
            ("5.4.163", "D+F"),
            ("5.7.14", "C"),
            ("5.8.1", "C"),
            ("5.8.2", "D"),
            ("5.9.1", "E"),
            ("5.10.82", "E"),
            ("5.10.83", "F"),
            ("5.11.4", "E"),
            ("5.15.5", "E"),
            ("5.15.6", "F"),
            ("5.16", "F"),
            ("6.1.192", "F"),
            ("6.12.117", "F"),
            ("3.10.0-1160.el7", "C"),
        ];
        for (release, era) in rows {
            assert_eq!(kernel(release).behaviours().reuse_era(), era, "{release}");
        }
    }

    #[test]
    fn gates_fit_the_set_and_have_unique_names() {
        assert!(GATES.len() <= 64);
        for (index, row) in GATES.iter().enumerate() {
            assert_eq!(row.gate as usize, index);
            assert_eq!(row.name.parse::<Gate>().unwrap(), row.gate);
        }
    }
}

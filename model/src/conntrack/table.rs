//! The TCP states of conntrack and their transition tables, as data.
//!
//! Faithful to: `tcp_conntracks` and `get_conntrack_index`, 3.19 to 6.19 (facts 5.1). Before 3.19 a SYN of the
//! server's side in TIME_WAIT is invalid: `next_state` asks the gate.
//! Leaves out: nothing.

use core::fmt;

use super::entry::Dir;
use crate::kernel::{Behaviours, Gate};
use crate::segment::Flags;

/// What conntrack believes of a TCP connection (`enum tcp_conntrack`, in the kernel's order).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum CtState {
    /// Before the first segment has been judged.
    #[default]
    None,
    /// A SYN was seen.
    SynSent,
    /// A SYN-ACK was seen.
    SynRecv,
    /// The handshake is complete, or assumed.
    Established,
    /// A FIN was seen.
    FinWait,
    /// A FIN and an ACK after it were seen.
    CloseWait,
    /// FINs of both sides were seen.
    LastAck,
    /// The last ACK was seen.
    TimeWait,
    /// A RST was seen.
    Close,
    /// SYNs of both sides were seen.
    SynSent2,
}

impl CtState {
    /// All states, in the kernel's order.
    pub const ALL: [Self; 10] = [
        Self::None,
        Self::SynSent,
        Self::SynRecv,
        Self::Established,
        Self::FinWait,
        Self::CloseWait,
        Self::LastAck,
        Self::TimeWait,
        Self::Close,
        Self::SynSent2,
    ];

    /// The name in `/proc/net/nf_conntrack`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::SynSent => "SYN_SENT",
            Self::SynRecv => "SYN_RECV",
            Self::Established => "ESTABLISHED",
            Self::FinWait => "FIN_WAIT",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::SynSent2 => "SYN_SENT2",
        }
    }

    /// Whether a full table may sacrifice an entry in this state (`tcp_can_early_drop`).
    pub const fn is_closing(self) -> bool {
        matches!(
            self,
            Self::FinWait | Self::CloseWait | Self::LastAck | Self::TimeWait | Self::Close
        )
    }
}

impl fmt::Display for CtState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The row of the table that a segment selects (`enum tcp_bit_set`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FlagClass {
    /// SYN without ACK.
    Syn,
    /// SYN with ACK.
    SynAck,
    /// FIN.
    Fin,
    /// ACK only.
    Ack,
    /// RST, whatever else is set.
    Rst,
    /// None of them.
    #[default]
    None,
}

impl FlagClass {
    /// All classes, in the order of the table's rows.
    pub const ALL: [Self; 6] = [
        Self::Syn,
        Self::SynAck,
        Self::Fin,
        Self::Ack,
        Self::Rst,
        Self::None,
    ];

    /// The class of a segment (`get_conntrack_index`).
    pub const fn of(flags: Flags) -> Self {
        if flags.has(Flags::RST) {
            Self::Rst
        } else if flags.has(Flags::SYN) {
            if flags.has(Flags::ACK) {
                Self::SynAck
            } else {
                Self::Syn
            }
        } else if flags.has(Flags::FIN) {
            Self::Fin
        } else if flags.has(Flags::ACK) {
            Self::Ack
        } else {
            Self::None
        }
    }

    /// Flags that belong to the class.
    pub const fn example(self) -> Flags {
        match self {
            Self::Syn => Flags::SYN,
            Self::SynAck => Flags::SYN.with(Flags::ACK),
            Self::Fin => Flags::FIN.with(Flags::ACK),
            Self::Ack => Flags::ACK,
            Self::Rst => Flags::RST,
            Self::None => Flags(0),
        }
    }

    /// Lower-case name, as the facts' tables have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Syn => "syn",
            Self::SynAck => "synack",
            Self::Fin => "fin",
            Self::Ack => "ack",
            Self::Rst => "rst",
            Self::None => "none",
        }
    }
}

/// One cell of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// The next state.
    To(CtState),
    /// The segment passes and the entry stays as it is.
    Ignore,
    /// The segment is invalid.
    Invalid,
}

const SS: Cell = Cell::To(CtState::SynSent);
const SR: Cell = Cell::To(CtState::SynRecv);
const ES: Cell = Cell::To(CtState::Established);
const FW: Cell = Cell::To(CtState::FinWait);
const CW: Cell = Cell::To(CtState::CloseWait);
const LA: Cell = Cell::To(CtState::LastAck);
const TW: Cell = Cell::To(CtState::TimeWait);
const CL: Cell = Cell::To(CtState::Close);
const S2: Cell = Cell::To(CtState::SynSent2);
const IG: Cell = Cell::Ignore;
const IV: Cell = Cell::Invalid;

/// The tables of facts 5.1: direction, flag class, state.
#[rustfmt::skip]
pub const TRANSITIONS: [[[Cell; 10]; 6]; 2] = [
    // Original direction
    //   NO  SS  SR  ES  FW  CW  LA  TW  CL  S2
    [
        [SS, SS, IG, IG, IG, IG, IG, SS, SS, S2], // syn
        [IV, IV, SR, IV, IV, IV, IV, IV, IV, SR], // synack
        [IV, IV, FW, FW, LA, LA, LA, TW, CL, IV], // fin
        [ES, IV, ES, ES, CW, CW, TW, TW, CL, IV], // ack
        [IV, CL, CL, CL, CL, CL, CL, CL, CL, CL], // rst
        [IV, IV, IV, IV, IV, IV, IV, IV, IV, IV], // none
    ],
    // Reply direction
    //   NO  SS  SR  ES  FW  CW  LA  TW  CL  S2
    [
        [IV, S2, IV, IV, IV, IV, IV, SS, IV, S2], // syn
        [IV, SR, IG, IG, IG, IG, IG, IG, IG, SR], // synack
        [IV, IV, FW, FW, LA, LA, LA, TW, CL, IV], // fin
        [IV, IG, SR, ES, CW, CW, TW, TW, CL, IG], // ack
        [IV, CL, CL, CL, CL, CL, CL, CL, CL, CL], // rst
        [IV, IV, IV, IV, IV, IV, IV, IV, IV, IV], // none
    ],
];

/// The table's cell, with the one exception of old kernels.
pub const fn next_state(kernel: Behaviours, dir: Dir, class: FlagClass, state: CtState) -> Cell {
    if matches!(
        (dir, class, state),
        (Dir::Reply, FlagClass::Syn, CtState::TimeWait)
    ) && !kernel.has(Gate::ReplySynReopens)
    {
        return Cell::Invalid;
    }
    TRANSITIONS[dir as usize][class as usize][state as usize]
}

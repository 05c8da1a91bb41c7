//! The TCP state machine of an IPVS entry: three tables of transitions, timeouts, and which states count as active.
//!
//! Faithful to: `ip_vs_proto_tcp.c` `tcp_states`, `tcp_states_dos`, `tcp_timeouts`, `set_tcp_state`, 3.10 to 6.19.
//! Leaves out: sequence numbers (the kernel does not look at them either) and SCTP.

use crate::kernel::{Behaviours, Gate};
use crate::segment::Flags;

/// State of an IPVS entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum State {
    /// NONE: just created.
    No,
    /// ESTABLISHED.
    Es,
    /// SYN_SENT: a SYN from the real server.
    Ss,
    /// SYN_RECV: a SYN from the client.
    Sr,
    /// FIN_WAIT: the server's FIN was seen.
    Fw,
    /// TIME_WAIT: both FINs were seen.
    Tw,
    /// CLOSE: reset.
    Cl,
    /// CLOSE_WAIT: the client's FIN was seen.
    Cw,
    /// LAST_ACK.
    La,
    /// LISTEN.
    Li,
    /// SYNACK: flood defence.
    Sa,
}

use State::{Cl, Cw, Es, Fw, La, Li, No, Sa, Sr, Ss, Tw};

impl State {
    /// Every state, in the order of the tables' columns.
    pub const ALL: [Self; 11] = [No, Es, Ss, Sr, Fw, Tw, Cl, Cw, La, Li, Sa];

    /// The name in `/proc/net/ip_vs_conn`.
    pub const fn name(self) -> &'static str {
        match self {
            No => "NONE",
            Es => "ESTABLISHED",
            Ss => "SYN_SENT",
            Sr => "SYN_RECV",
            Fw => "FIN_WAIT",
            Tw => "TIME_WAIT",
            Cl => "CLOSE",
            Cw => "CLOSE_WAIT",
            La => "LAST_ACK",
            Li => "LISTEN",
            Sa => "SYNACK",
        }
    }

    /// The state with a name of `/proc/net/ip_vs_conn`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Whether an entry in this state counts as an active connection of its real server (`tcp_state_active`).
    pub const fn is_active(self, kernel: Behaviours) -> bool {
        match self {
            Es => true,
            Ss | Sr | Sa => kernel.has(Gate::HalfOpenActive),
            No | Fw | Tw | Cl | Cw | La | Li => false,
        }
    }

    /// Default lifetime after a packet, in seconds.
    pub const fn timeout_s(self) -> u32 {
        match self {
            No => 2,
            Es => 900,
            Ss | Fw | Tw | Li | Sa => 120,
            Sr | Cw => 60,
            Cl => 10,
            La => 30,
        }
    }
}

/// Which way a packet goes through the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From the client to the virtual service.
    Input,
    /// From the real server to the client.
    Output,
    /// From the client, on an entry whose replies bypass the node (direct routing, tunnel).
    InputOnly,
}

/// The class of a segment: the row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// SYN, with or without ACK.
    Syn,
    /// FIN without SYN.
    Fin,
    /// ACK alone.
    Ack,
    /// RST, whatever else is set.
    Rst,
    /// None of the four.
    Other,
}

impl Class {
    /// Every class with a row.
    pub const ALL: [Self; 5] = [Self::Syn, Self::Fin, Self::Ack, Self::Rst, Self::Other];

    /// The class of a segment: RST wins over SYN over FIN over ACK (`tcp_state_idx`).
    pub const fn of(flags: Flags) -> Self {
        if flags.has(Flags::RST) {
            Self::Rst
        } else if flags.has(Flags::SYN) {
            Self::Syn
        } else if flags.has(Flags::FIN) {
            Self::Fin
        } else if flags.has(Flags::ACK) {
            Self::Ack
        } else {
            Self::Other
        }
    }
}

/// Rows: SYN, FIN, ACK, RST. Columns: the current state, in the order of [`State::ALL`].
type Table = [[State; 11]; 4];

/// Client to virtual service.
#[rustfmt::skip]
const INPUT: Table = [
    //        NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
    /*syn*/ [Sr, Es, Es, Sr, Sr, Sr, Sr, Sr, Sr, Sr, Sr],
    /*fin*/ [Cl, Cw, Ss, Tw, Tw, Tw, Cl, Cw, La, Li, Tw],
    /*ack*/ [Es, Es, Ss, Es, Fw, Tw, Cl, Cw, Cl, Li, Es],
    /*rst*/ [Cl, Cl, Cl, Sr, Cl, Cl, Cl, Cl, La, Li, Sr],
];

/// Real server to client.
#[rustfmt::skip]
const OUTPUT: Table = [
    //        NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
    /*syn*/ [Ss, Es, Ss, Sr, Ss, Ss, Ss, Ss, Ss, Li, Sr],
    /*fin*/ [Tw, Fw, Ss, Tw, Fw, Tw, Cl, Tw, La, Li, Tw],
    /*ack*/ [Es, Es, Ss, Es, Fw, Tw, Cl, Cw, La, Es, Es],
    /*rst*/ [Cl, Cl, Ss, Cl, Cl, Tw, Cl, Cl, Cl, Cl, Cl],
];

/// Client to virtual service when the replies are not seen.
#[rustfmt::skip]
const INPUT_ONLY: Table = [
    //        NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
    /*syn*/ [Sr, Es, Es, Sr, Sr, Sr, Sr, Sr, Sr, Sr, Sr],
    /*fin*/ [Cl, Fw, Ss, Tw, Fw, Tw, Cl, Cw, La, Li, Tw],
    /*ack*/ [Es, Es, Ss, Es, Fw, Tw, Cl, Cw, Cl, Li, Es],
    /*rst*/ [Cl, Cl, Cl, Sr, Cl, Cl, Cl, Cl, La, Li, Cl],
];

/// Client to virtual service under `secure_tcp`.
#[rustfmt::skip]
const DOS_INPUT: Table = [
    //        NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
    /*syn*/ [Sr, Es, Es, Sr, Sr, Sr, Sr, Sr, Sr, Sr, Sa],
    /*fin*/ [Cl, Cw, Ss, Tw, Tw, Tw, Cl, Cw, La, Li, Sa],
    /*ack*/ [Es, Es, Ss, Sr, Fw, Tw, Cl, Cw, Cl, Li, Sa],
    /*rst*/ [Cl, Cl, Cl, Sr, Cl, Cl, Cl, Cl, La, Li, Cl],
];

/// Real server to client under `secure_tcp`.
#[rustfmt::skip]
const DOS_OUTPUT: Table = [
    //        NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
    /*syn*/ [Ss, Es, Ss, Sa, Ss, Ss, Ss, Ss, Ss, Li, Sa],
    /*fin*/ [Tw, Fw, Ss, Tw, Fw, Tw, Cl, Tw, La, Li, Tw],
    /*ack*/ [Es, Es, Ss, Es, Fw, Tw, Cl, Cw, La, Es, Es],
    /*rst*/ [Cl, Cl, Ss, Cl, Cl, Tw, Cl, Cl, Cl, Cl, Cl],
];

/// Client to virtual service under `secure_tcp` when the replies are not seen.
#[rustfmt::skip]
const DOS_INPUT_ONLY: Table = [
    //        NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
    /*syn*/ [Sa, Es, Es, Sr, Sa, Sa, Sa, Sa, Sa, Sa, Sa],
    /*fin*/ [Cl, Fw, Ss, Tw, Fw, Tw, Cl, Cw, La, Li, Tw],
    /*ack*/ [Es, Es, Ss, Es, Fw, Tw, Cl, Cw, Cl, Li, Es],
    /*rst*/ [Cl, Cl, Cl, Sr, Cl, Cl, Cl, Cl, La, Li, Cl],
];

/// The state after a segment (`set_tcp_state`). `secure`: the tables against floods are in force.
pub const fn transition(
    kernel: Behaviours,
    secure: bool,
    direction: Direction,
    class: Class,
    from: State,
) -> State {
    let table = match (secure, direction) {
        (false, Direction::Input) => &INPUT,
        (false, Direction::Output) => &OUTPUT,
        (false, Direction::InputOnly) => &INPUT_ONLY,
        (true, Direction::Input) => &DOS_INPUT,
        (true, Direction::Output) => &DOS_OUTPUT,
        (true, Direction::InputOnly) => &DOS_INPUT_ONLY,
    };
    let row = match class {
        Class::Syn => 0,
        Class::Fin => 1,
        Class::Ack => 2,
        Class::Rst => 3,
        Class::Other => return Cl,
    };
    if matches!(class, Class::Ack) && matches!(from, No) && !kernel.has(Gate::AckEstablishes) {
        return Cl;
    }
    table[row][from as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modern() -> Behaviours {
        "6.12.117"
            .parse::<crate::kernel::Kernel>()
            .unwrap()
            .behaviours()
    }

    /// Facts 2.1 and trap 27: SYN+ACK is the SYN row, so the entry stays SYN_RECV until the client's ACK.
    #[test]
    fn a_syn_ack_from_the_server_leaves_syn_recv() {
        let class = Class::of(Flags::SYN.with(Flags::ACK));
        assert_eq!(
            transition(modern(), false, Direction::Output, class, Sr),
            Sr
        );
        assert_eq!(
            transition(modern(), false, Direction::Input, Class::Ack, Sr),
            Es
        );
    }

    /// Facts 2.2: in 3.10 and RHEL 7 an ACK on a fresh entry closes it.
    #[test]
    fn an_ack_on_a_fresh_entry_depends_on_the_kernel() {
        let old = "3.10.4"
            .parse::<crate::kernel::Kernel>()
            .unwrap()
            .behaviours();
        assert_eq!(transition(old, false, Direction::Input, Class::Ack, No), Cl);
        assert_eq!(
            transition(modern(), false, Direction::Input, Class::Ack, No),
            Es
        );
    }

    /// Facts 2.2: a segment with none of the four flags closes the entry.
    #[test]
    fn a_segment_without_flags_closes() {
        assert_eq!(
            transition(modern(), false, Direction::Input, Class::Other, Es),
            Cl
        );
    }

    #[test]
    fn names_are_unique() {
        for state in State::ALL {
            assert_eq!(State::from_name(state.name()), Some(state));
        }
    }
}

//! The transition table of a TCP socket.
//!
//! Faithful to: RFC 793 as Linux walks it (`net/ipv4/tcp_input.c`, `tcp.c`, `tcp_minisocks.c`; 3.10 to 6.12).
//! Linux's deviations: FIN_WAIT2 of a socket that no process holds is a small socket with a timer of its own
//! (here `OrphanFinWait2`); a TIME_WAIT that finds no room is skipped.
//! Leaves out: simultaneous open, fast open.

use core::fmt;

/// The state of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum State {
    /// No connection.
    Closed,
    /// Waits for SYNs.
    Listen,
    /// Has sent a SYN.
    SynSent,
    /// Has answered a SYN (a request socket, `TCP_NEW_SYN_RECV`).
    SynRecv,
    /// Open.
    Established,
    /// Has sent a FIN that is not acknowledged.
    FinWait1,
    /// Our FIN is acknowledged, the peer's has not come; a process still holds the socket.
    FinWait2,
    /// The same without a process: a TIME_WAIT socket with substate FIN_WAIT2.
    OrphanFinWait2,
    /// The peer has sent a FIN, our side has not closed.
    CloseWait,
    /// Both have sent FINs that crossed.
    Closing,
    /// Has sent a FIN after the peer's.
    LastAck,
    /// 60 s of quiet after an active close.
    TimeWait,
}

/// What moves a socket from one state to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Input {
    /// connect(): a SYN leaves.
    Connect,
    /// listen().
    Listen,
    /// A SYN arrives (for a listener: what becomes of its child).
    Syn,
    /// An acceptable SYN-ACK arrives.
    SynAck,
    /// The acknowledgement of our SYN-ACK arrives and the accept queue has room.
    AckOfSyn,
    /// close() or shutdown(): a FIN leaves, if there is anyone to tell.
    Close,
    /// The last process lets go of a socket in FIN_WAIT2.
    Orphan,
    /// The peer's FIN arrives in order.
    Fin,
    /// Everything that we sent, our FIN included, is acknowledged.
    AckOfFin,
    /// An acceptable RST arrives, or a hard ICMP error.
    Reset,
    /// We give up without a FIN: a RST leaves, or nothing.
    Abort,
    /// The last timer fires.
    GiveUp,
    /// TIME_WAIT is due, but `tcp_max_tw_buckets` sockets are in it already.
    NoRoom,
}

/// Every state, in the order of the table's columns.
pub const STATES: [State; 12] = [
    State::Closed,
    State::Listen,
    State::SynSent,
    State::SynRecv,
    State::Established,
    State::FinWait1,
    State::FinWait2,
    State::OrphanFinWait2,
    State::CloseWait,
    State::Closing,
    State::LastAck,
    State::TimeWait,
];

/// Every input, in the order of the table's rows.
pub const INPUTS: [Input; 13] = [
    Input::Connect,
    Input::Listen,
    Input::Syn,
    Input::SynAck,
    Input::AckOfSyn,
    Input::Close,
    Input::Orphan,
    Input::Fin,
    Input::AckOfFin,
    Input::Reset,
    Input::Abort,
    Input::GiveUp,
    Input::NoRoom,
];

const CL: Option<State> = Some(State::Closed);
const LI: Option<State> = Some(State::Listen);
const SS: Option<State> = Some(State::SynSent);
const SR: Option<State> = Some(State::SynRecv);
const ES: Option<State> = Some(State::Established);
const F1: Option<State> = Some(State::FinWait1);
const F2: Option<State> = Some(State::FinWait2);
const O2: Option<State> = Some(State::OrphanFinWait2);
const CW: Option<State> = Some(State::CloseWait);
const CG: Option<State> = Some(State::Closing);
const LA: Option<State> = Some(State::LastAck);
const TW: Option<State> = Some(State::TimeWait);
/// The input cannot occur in this state.
const NO: Option<State> = None;

/// The next state, by input (row) and state (column).
#[rustfmt::skip]
pub const TABLE: [[Option<State>; STATES.len()]; INPUTS.len()] = [
    //              CL  LI  SS  SR  ES  F1  F2  O2  CW  CG  LA  TW
    /* Connect  */ [SS, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO],
    /* Listen   */ [LI, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO, NO],
    /* Syn      */ [NO, SR, NO, SR, ES, F1, F2, O2, CW, CG, LA, TW],
    /* SynAck   */ [NO, NO, ES, NO, NO, NO, NO, NO, NO, NO, NO, NO],
    /* AckOfSyn */ [NO, NO, NO, ES, NO, NO, NO, NO, NO, NO, NO, NO],
    /* Close    */ [NO, CL, CL, NO, F1, NO, NO, NO, LA, NO, NO, NO],
    /* Orphan   */ [NO, NO, NO, NO, NO, NO, O2, NO, NO, NO, NO, NO],
    /* Fin      */ [NO, NO, NO, NO, CW, CG, TW, TW, NO, NO, NO, NO],
    /* AckOfFin */ [NO, NO, NO, NO, NO, F2, NO, NO, NO, TW, CL, NO],
    /* Reset    */ [NO, NO, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL],
    /* Abort    */ [NO, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL],
    /* GiveUp   */ [NO, NO, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL],
    /* NoRoom   */ [NO, NO, NO, NO, NO, NO, CL, NO, NO, CL, NO, NO],
];

impl State {
    /// The next state; `None` if `input` cannot occur in this state.
    pub const fn after(self, input: Input) -> Option<Self> {
        TABLE[input as usize][self as usize]
    }

    /// Whether the socket is a small one without a process: `ss` shows both as TIME-WAIT or FIN-WAIT-2.
    pub const fn is_time_wait(self) -> bool {
        matches!(self, Self::TimeWait | Self::OrphanFinWait2)
    }

    /// As `ss` prints it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "UNCONN",
            Self::Listen => "LISTEN",
            Self::SynSent => "SYN-SENT",
            Self::SynRecv => "SYN-RECV",
            Self::Established => "ESTAB",
            Self::FinWait1 => "FIN-WAIT-1",
            Self::FinWait2 | Self::OrphanFinWait2 => "FIN-WAIT-2",
            Self::CloseWait => "CLOSE-WAIT",
            Self::Closing => "CLOSING",
            Self::LastAck => "LAST-ACK",
            Self::TimeWait => "TIME-WAIT",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use petgraph::algo::tarjan_scc;
    use petgraph::dot::{Config, Dot};
    use petgraph::graph::{DiGraph, NodeIndex};
    use petgraph::visit::Dfs;

    fn graph() -> DiGraph<State, String> {
        let mut graph = DiGraph::new();
        for state in STATES {
            graph.add_node(state);
        }
        for from in STATES {
            for to in STATES {
                let inputs: Vec<String> = INPUTS
                    .into_iter()
                    .filter(|&input| from.after(input) == Some(to) && from != to)
                    .map(|input| format!("{input:?}"))
                    .collect();
                if !inputs.is_empty() {
                    let node = |state: State| NodeIndex::new(state as usize);
                    graph.add_edge(node(from), node(to), inputs.join(", "));
                }
            }
        }
        graph
    }

    #[test]
    fn the_table_is_in_the_order_of_its_enums() {
        for (index, state) in STATES.into_iter().enumerate() {
            assert_eq!(state as usize, index);
        }
        for (index, input) in INPUTS.into_iter().enumerate() {
            assert_eq!(input as usize, index);
        }
    }

    #[test]
    fn every_state_is_reached_and_every_state_is_left() {
        let graph = graph();
        let start = NodeIndex::new(State::Closed as usize);
        let mut reached = 0;
        let mut search = Dfs::new(&graph, start);
        while search.next(&graph).is_some() {
            reached += 1;
        }
        assert_eq!(reached, STATES.len());
        // No trap: everything is one cycle through CLOSED.
        assert_eq!(tarjan_scc(&graph).len(), 1);
        for state in STATES {
            assert!(
                INPUTS
                    .iter()
                    .any(|&input| { state.after(input).is_some_and(|next| next != state) })
            );
        }
    }

    /// Facts 6.4: only who sent a FIN first, or both at once, get TIME_WAIT; a reset gives none.
    #[test]
    fn time_wait_comes_from_an_active_close_only() {
        let before: Vec<State> = STATES
            .into_iter()
            .filter(|state| {
                *state != State::TimeWait
                    && INPUTS
                        .iter()
                        .any(|&input| state.after(input) == Some(State::TimeWait))
            })
            .collect();
        assert_eq!(
            before,
            [State::FinWait2, State::OrphanFinWait2, State::Closing]
        );
        for state in STATES {
            let closed = state.after(Input::Reset).unwrap_or(State::Closed);
            assert_eq!(closed, State::Closed, "{state}");
        }
    }

    #[test]
    fn the_graph_is_as_drawn() {
        let graph = graph();
        let dot = Dot::with_attr_getters(
            &graph,
            &[Config::NodeNoLabel, Config::EdgeNoLabel],
            &|_, edge| format!("label=\"{}\"", edge.weight()),
            &|_, (_, state)| format!("label=\"{state:?}\""),
        );
        insta::with_settings!({
            snapshot_path => concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshots"),
            prepend_module_to_snapshot => false,
        }, {
            insta::assert_snapshot!("tcp-states.dot", format!("{dot:?}"));
        });
    }
}

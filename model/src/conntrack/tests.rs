//! The TCP machine as a graph, and lifetimes.

use petgraph::algo::has_path_connecting;
use petgraph::dot::{Config, Dot};
use petgraph::graph::{DiGraph, NodeIndex};

use super::graph::{Edge, History, Next, edges};
use super::{CtState, Dir, FlagClass, TRANSITIONS, timeout_of};
use crate::kernel::{Behaviours, Kernel};
use crate::sysctl::CtSysctls;

const KERNELS: [&str; 5] = ["3.10.108", "4.19.57", "5.4.120", "6.1.192", "6.12.117"];

fn kernel(release: &str) -> Behaviours {
    release.parse::<Kernel>().unwrap().behaviours()
}

/// What an entry may have seen: nothing, an answer, a whole handshake, a FIN, or a reset of either side.
fn histories() -> [History; 6] {
    let answered = History {
        replied: true,
        ..History::default()
    };
    let open = History {
        assured: true,
        ..answered
    };
    let closing = History {
        fin_seen: true,
        ..open
    };
    let reset_by = |dir| History {
        last: Some((dir, FlagClass::Rst)),
        ..open
    };
    [
        History::default(),
        answered,
        open,
        closing,
        reset_by(Dir::Original),
        reset_by(Dir::Reply),
    ]
}

/// The node that stands for "no entry any more".
const GONE: usize = CtState::ALL.len();

/// Where an edge leads, as a node; `None` if the entry stays as it is.
fn target(edge: &Edge) -> Option<usize> {
    match edge.next {
        Next::State(state, _) => (state != edge.from).then_some(state as usize),
        Next::Deleted => Some(GONE),
        Next::Reopened => Some(CtState::SynSent as usize),
        Next::Invalid => None,
    }
}

fn graph(all: &[Edge]) -> DiGraph<&'static str, String> {
    let mut graph = DiGraph::new();
    for state in CtState::ALL {
        graph.add_node(state.name());
    }
    graph.add_node("gone");
    for from in CtState::ALL {
        for to in 0..=GONE {
            let mut labels: Vec<String> = all
                .iter()
                .filter(|edge| edge.from == from && target(edge) == Some(to))
                .map(|edge| {
                    let reopens = matches!(edge.next, Next::Reopened);
                    let mark = if reopens { " (anew)" } else { "" };
                    format!("{:?} {}{mark}", edge.dir, edge.class.name())
                })
                .collect();
            labels.sort();
            labels.dedup();
            if !labels.is_empty() {
                let node = NodeIndex::new;
                graph.add_edge(node(from as usize), node(to), labels.join("\n"));
            }
        }
    }
    graph
}

/// Every state is reached from a new entry, and from every state a segment leads to CLOSE; no state is a trap.
#[test]
fn every_state_is_reached_and_none_is_a_trap() {
    for release in KERNELS {
        let all: Vec<Edge> = histories()
            .into_iter()
            .flat_map(|history| edges(kernel(release), history))
            .collect();
        let graph = graph(&all);
        let node = |state: CtState| NodeIndex::new(state as usize);
        let path = |from, to| has_path_connecting(&graph, from, to, None);
        for state in CtState::ALL {
            assert!(path(node(CtState::None), node(state)), "{release} {state}");
            assert!(path(node(state), node(CtState::Close)), "{release} {state}");
            assert!(path(node(state), NodeIndex::new(GONE)), "{release} {state}");
        }
    }
}

/// Every accepted segment leaves a lifetime above zero, at most that of the state it leads to; one that keeps the
/// deadline keeps the state too. Facts 5.2.
#[test]
fn every_state_has_a_lifetime() {
    let sysctls = CtSysctls::default();
    for release in KERNELS {
        for history in histories() {
            for edge in edges(kernel(release), history) {
                match edge.next {
                    Next::State(state, Some(secs)) => {
                        let whole = timeout_of(state, &sysctls);
                        assert!(secs > 0 && secs <= whole, "{release} {edge:?}");
                    }
                    // Since 5.14 the SYN that crosses the first one keeps its deadline, too.
                    Next::State(CtState::SynSent2, None) if edge.from != CtState::SynSent2 => {
                        assert_eq!((edge.from, edge.dir), (CtState::SynSent, Dir::Reply));
                    }
                    Next::State(state, None) => assert_eq!(state, edge.from, "{edge:?}"),
                    Next::Deleted | Next::Reopened | Next::Invalid => {}
                }
            }
        }
    }
    let rows = [
        (CtState::SynSent, 120),
        (CtState::SynRecv, 60),
        (CtState::Established, 432_000),
        (CtState::FinWait, 120),
        (CtState::CloseWait, 60),
        (CtState::LastAck, 30),
        (CtState::TimeWait, 120),
        (CtState::Close, 10),
        (CtState::SynSent2, 120),
    ];
    for (state, secs) in rows {
        assert_eq!(timeout_of(state, &sysctls), secs, "{state}");
    }
    assert_eq!(rows.len() + 1, CtState::ALL.len(), "all but NONE");
}

/// Facts 5.3.4 and 5.4: a SYN of the client begins anew in TIME_WAIT and CLOSE after a FIN or its own RST, and nowhere
/// else.
#[test]
fn only_finished_connections_are_reopened() {
    for release in KERNELS {
        for history in histories() {
            for edge in edges(kernel(release), history) {
                let reopens = edge.next == Next::Reopened;
                if !reopens {
                    continue;
                }
                assert!(matches!(edge.from, CtState::TimeWait | CtState::Close));
                assert_eq!(edge.class, FlagClass::Syn);
                let own_reset = history.last == Some((edge.dir, FlagClass::Rst));
                assert!(history.fin_seen || own_reset, "{release} {edge:?}");
            }
        }
    }
}

/// The machine is the table where the table alone decides: an in-window segment of an open connection.
#[test]
fn the_graph_follows_the_table() {
    use super::Cell;
    let open = histories()[2];
    for edge in edges(kernel("6.12.117"), open) {
        let cell = TRANSITIONS[edge.dir as usize][edge.class as usize][edge.from as usize];
        match (cell, edge.next) {
            (Cell::Invalid, next) => assert_eq!(next, Next::Invalid, "{edge:?}"),
            (Cell::Ignore, Next::State(state, None)) => assert_eq!(state, edge.from),
            (Cell::Ignore, next) => panic!("{edge:?} {next:?}"),
            (Cell::To(_), Next::Reopened) => panic!("{edge:?}: no FIN was seen"),
            (Cell::To(to), Next::State(state, _)) if state != to => {
                // Not reopened, a RST off the number, or simultaneous open: the record decides.
                assert!(
                    matches!(edge.class, FlagClass::Syn | FlagClass::Rst | FlagClass::Ack),
                    "{edge:?}"
                );
            }
            (Cell::To(_), _) => {}
        }
    }
}

/// One picture: an entry after a whole handshake, and one that has seen a FIN.
#[test]
fn the_graph_is_as_drawn() {
    let [_, _, open, closing, _, _] = histories();
    for (history, name) in [
        (open, "conntrack_states_open"),
        (closing, "conntrack_states_closing"),
    ] {
        let graph = graph(&edges(kernel("6.12.117"), history));
        let dot = Dot::with_config(&graph, &[Config::GraphContentOnly]).to_string();
        insta::with_settings!({
            snapshot_path => concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshots"),
            prepend_module_to_snapshot => false
        }, {
            insta::assert_snapshot!(name, dot);
        });
    }
}

//! The transition tables as graphs, built by running the transition function: what can be reached, and that nothing
//! holds an entry for ever.

use petgraph::algo::has_path_connecting;
use petgraph::dot::{Config, Dot};
use petgraph::graph::{DiGraph, NodeIndex};

use super::state::{Class, Direction, State, transition};
use crate::kernel::Kernel;
use State::{Cl, Cw, Es, Fw, La, Li, No, Sa, Sr, Ss, Tw};

/// Under masquerading both directions pass the node; under direct routing and tunnels only the client's does.
const MASQUERADING: &[Direction] = &[Direction::Input, Direction::Output];
const DIRECT: &[Direction] = &[Direction::InputOnly];

/// The four machines: `secure_tcp` and directions, with the name of the picture.
const MACHINES: [(bool, &[Direction], &str); 4] = [
    (false, MASQUERADING, "ipvs_states"),
    (false, DIRECT, "ipvs_states_direct"),
    (true, MASQUERADING, "ipvs_states_secure"),
    (true, DIRECT, "ipvs_states_secure_direct"),
];

fn graph(secure: bool, directions: &[Direction]) -> DiGraph<&'static str, String> {
    let kernel = "6.12.117".parse::<Kernel>().unwrap().behaviours();
    let mut graph = DiGraph::new();
    let nodes = State::ALL.map(|state| graph.add_node(state.name()));
    for from in State::ALL {
        for to in State::ALL {
            let labels = directions
                .iter()
                .flat_map(|direction| Class::ALL.map(|class| (*direction, class)))
                .filter(|(direction, class)| {
                    transition(kernel, secure, *direction, *class, from) == to
                })
                .map(|(direction, class)| format!("{direction:?} {class:?}"))
                .collect::<Vec<_>>();
            if from != to && !labels.is_empty() {
                graph.add_edge(nodes[from as usize], nodes[to as usize], labels.join("\n"));
            }
        }
    }
    graph
}

fn node(state: State) -> NodeIndex {
    NodeIndex::new(state as usize)
}

/// The states to which no segment leads from a new entry.
fn unreached(secure: bool, directions: &[Direction]) -> Vec<State> {
    let graph = graph(secure, directions);
    let reaches = |state| has_path_connecting(&graph, node(No), node(state), None);
    State::ALL
        .into_iter()
        .filter(|state| !reaches(*state))
        .collect()
}

/// No state is a trap: a segment leads out of each, CLOSE is reachable from each, and each times out.
#[test]
fn every_state_can_close_and_times_out() {
    for (secure, directions, name) in MACHINES {
        let graph = graph(secure, directions);
        for state in State::ALL {
            assert!(
                has_path_connecting(&graph, node(state), node(Cl), None),
                "{name}: {state:?}"
            );
            assert!(
                graph.neighbors(node(state)).next().is_some(),
                "{name}: {state:?}"
            );
            assert!((1..=900).contains(&state.timeout_s()));
        }
    }
}

/// LAST_ACK and LISTEN are columns that nothing leads to; SYNACK belongs to `secure_tcp`. Where replies are not seen,
/// nothing tells of the server's SYN or of who closes first, and under `secure_tcp` SYNACK takes the place of SYN_RECV.
#[test]
fn states_that_are_reached_from_a_new_entry() {
    assert_eq!(unreached(false, MASQUERADING), [La, Li, Sa]);
    assert_eq!(unreached(true, MASQUERADING), [La, Li]);
    assert_eq!(unreached(false, DIRECT), [Ss, Cw, La, Li, Sa]);
    assert_eq!(unreached(true, DIRECT), [Ss, Sr, Cw, La, Li]);
}

/// Facts 2.4: seconds by state, and which count as active.
#[test]
fn timeouts_and_activity_by_state() {
    let rows = [
        (No, 2, false),
        (Es, 900, true),
        (Ss, 120, true),
        (Sr, 60, true),
        (Fw, 120, false),
        (Tw, 120, false),
        (Cl, 10, false),
        (Cw, 60, false),
        (La, 30, false),
        (Li, 120, false),
        (Sa, 120, true),
    ];
    assert_eq!(rows.map(|row| row.0), State::ALL);
    let [old, new] = ["4.4.155", "6.12.117"].map(|r| r.parse::<Kernel>().unwrap().behaviours());
    for (state, secs, active) in rows {
        assert_eq!((state.timeout_s(), state.is_active(new)), (secs, active));
        // Before 4.8 a handshake was no connection yet.
        assert_eq!(state.is_active(old), state == Es);
    }
}

#[test]
fn the_tables_are_drawn() {
    for (secure, directions, name) in MACHINES {
        let graph = graph(secure, directions);
        let dot = Dot::with_config(&graph, &[Config::GraphContentOnly]).to_string();
        insta::with_settings!({
            snapshot_path => concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshots"),
            prepend_module_to_snapshot => false
        }, {
            insta::assert_snapshot!(name, dot);
        });
    }
}

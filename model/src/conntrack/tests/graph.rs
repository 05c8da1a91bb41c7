//! The TCP machine as a graph: what must hold of it, and its picture.

use super::*;
use crate::conntrack::graph::{Edge, History, Next, edge, edges};
use core::fmt::Write;
use petgraph::algo::{dominators, tarjan_scc};
use petgraph::graphmap::DiGraphMap;

const PLAIN: History = History {
    fin_seen: false,
    last: None,
    replied: true,
    assured: false,
};

/// States as nodes; deletion leads to `None`.
fn state_graph(kernel: Behaviours) -> DiGraphMap<CtState, ()> {
    let mut graph = DiGraphMap::new();
    for edge in edges(kernel, PLAIN) {
        let to = match edge.next {
            Next::State(state, _) => state,
            Next::Deleted => CtState::None,
            Next::Reopened => CtState::SynSent,
            Next::Invalid => continue,
        };
        graph.add_edge(edge.from, to, ());
    }
    graph
}

/// What runs is what the table of facts 5.1 says.
#[test]
fn the_machine_does_what_the_table_says() {
    for release in ["3.10.4", "4.19.0", "5.9.1", "6.12.117"] {
        let kernel = behaviours(release);
        for Edge {
            from,
            dir,
            class,
            next,
            ..
        } in edges(kernel, PLAIN)
        {
            let place = format!("{release} {from} {dir:?} {class:?}");
            match next_state(kernel, dir, class, from) {
                // Impossible flags never reach the table; it calls them invalid as well.
                Cell::Invalid => assert_eq!(next, Next::Invalid, "{place}"),
                Cell::Ignore => assert_eq!(next, Next::State(from, None), "{place}"),
                // A finished entry without a FIN in its history is not reopened.
                Cell::To(CtState::SynSent) if from >= CtState::TimeWait => {
                    assert_eq!(next, Next::State(from, None), "{place}");
                }
                Cell::To(to) => {
                    let Next::State(state, timeout) = next else {
                        panic!("{place}: {next:?}");
                    };
                    assert_eq!(state, to, "{place}");
                    assert!(timeout.is_some_and(|secs| secs >= 10), "{place}");
                }
            }
        }
    }
}

#[test]
fn every_state_is_reached_and_left_and_has_a_lifetime() {
    for release in ["3.10.4", "5.7.14", "6.12.117"] {
        let graph = state_graph(behaviours(release));
        let reached = dominators::simple_fast(&graph, CtState::None);
        for state in CtState::ALL {
            assert!(
                state == CtState::None || reached.immediate_dominator(state).is_some(),
                "{release}: {state} is never reached"
            );
            // Time is the way out of every state; packets lead out of all but CLOSE without a FIN before it.
            assert!(timeout_of(state, &CtSysctls::default()) > 0);
            let leaves = graph.neighbors(state).any(|next| next != state);
            assert_eq!(leaves, state != CtState::Close, "{release}: {state}");
        }
        // A connection never gets younger except through a SYN: no cycle but the self-loops.
        let cycles = tarjan_scc(&graph).into_iter().filter(|scc| scc.len() > 1);
        let cycles: Vec<Vec<CtState>> = cycles.collect();
        assert!(cycles.is_empty(), "{release}: {cycles:?}");
        // TIME_WAIT only after a FIN.
        let path = reached
            .dominators(CtState::TimeWait)
            .expect("reached")
            .collect::<Vec<_>>();
        assert!(path.contains(&CtState::FinWait), "{release}: {path:?}");
    }
}

/// Facts 5.3.4: what a SYN of each side does to a finished entry, by what it saw last.
#[test]
fn reopening_by_history() {
    let kernel = behaviours("6.12.117");
    let syn = |from, fin_seen, last| {
        let history = History {
            fin_seen,
            last,
            ..PLAIN
        };
        edge(kernel, from, Dir::Original, FlagClass::Syn, history).next
    };
    let client_rst = Some((Dir::Original, FlagClass::Rst));
    let server_rst = Some((Dir::Reply, FlagClass::Rst));
    for from in [CtState::TimeWait, CtState::Close] {
        assert_eq!(syn(from, true, None), Next::Reopened);
        assert_eq!(syn(from, false, client_rst), Next::Reopened);
        assert_eq!(syn(from, false, server_rst), Next::State(from, None));
        assert_eq!(syn(from, true, server_rst), Next::Reopened);
    }
}

/// Each distinct arrow once, labelled with who sends what.
fn dot(kernel: Behaviours) -> String {
    let mut out = String::from("digraph conntrack {\n");
    for from in CtState::ALL {
        for to in CtState::ALL {
            let labels: Vec<String> = edges(kernel, PLAIN)
                .into_iter()
                .filter(|edge| edge.from == from && from != to)
                .filter(|edge| matches!(edge.next, Next::State(state, _) if state == to))
                .map(|edge| {
                    let side = match edge.dir {
                        Dir::Original => "orig",
                        Dir::Reply => "reply",
                    };
                    format!("{side} {}", edge.class.name())
                })
                .collect();
            if !labels.is_empty() {
                writeln!(out, "  {from} -> {to} [label=\"{}\"]", labels.join(", "))
                    .expect("writing to a string cannot fail");
            }
        }
    }
    out.push_str("}\n");
    out
}

#[test]
fn picture_of_the_machine() {
    insta::with_settings!({
        snapshot_path => concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshots"),
        prepend_module_to_snapshot => false,
    }, {
        insta::assert_snapshot!("conntrack_tcp_dot", dot(behaviours("6.12.117")));
    });
}

/// The same machine as a matrix, by kernel: a changed transition or timeout shows as a changed cell.
#[test]
fn matrix_of_the_machine() {
    let mut out = String::new();
    for release in ["3.10.4", "5.9.1", "6.1.192", "6.12.117"] {
        let kernel = behaviours(release);
        for dir in [Dir::Original, Dir::Reply] {
            writeln!(out, "{release} {dir:?}").expect("string");
            write!(out, "{:<8}", "").expect("string");
            for from in CtState::ALL {
                write!(out, " {:<19}", from.name()).expect("string");
            }
            out.truncate(out.trim_end().len());
            out.push('\n');
            for class in FlagClass::ALL {
                write!(out, "{:<8}", class.name()).expect("string");
                for from in CtState::ALL {
                    let next = edge(kernel, from, dir, class, PLAIN).next;
                    let cell = match next {
                        Next::State(state, None) => format!("{state} kept"),
                        Next::State(state, Some(secs)) => format!("{state} {secs}"),
                        Next::Deleted => "deleted".to_owned(),
                        Next::Reopened => "reopened".to_owned(),
                        Next::Invalid => "-".to_owned(),
                    };
                    write!(out, " {cell:<19}").expect("string");
                }
                out.truncate(out.trim_end().len());
                out.push('\n');
            }
        }
    }
    insta::with_settings!({
        snapshot_path => concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshots"),
        prepend_module_to_snapshot => false,
    }, {
        insta::assert_snapshot!("conntrack_tcp_matrix", out);
    });
}

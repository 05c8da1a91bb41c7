//! A chain as a graph, and the graph as DOT.

use std::fmt::Write as _;

use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef as _;

use super::chain::{Chain, Link, Place};

/// The chain as a graph: a node for each link (by its place in the chain), an edge from a reason to what follows from it.
pub fn graph(chain: &Chain) -> DiGraph<usize, ()> {
    let mut graph = DiGraph::new();
    let nodes: Vec<NodeIndex> = (0..chain.links.len())
        .map(|link| graph.add_node(link))
        .collect();
    for (place, link) in chain.links.iter().enumerate() {
        for reason in &link.because {
            graph.add_edge(nodes[*reason], nodes[place], ());
        }
    }
    graph
}

/// The layer of each link: one below the lowest of its reasons.
pub fn layers(chain: &Chain) -> Vec<usize> {
    let mut layers = vec![0; chain.links.len()];
    for (place, link) in chain.links.iter().enumerate() {
        let above = link.because.iter().map(|reason| layers[*reason] + 1);
        layers[place] = above.max().unwrap_or(0);
    }
    layers
}

/// Fill and border of a place.
pub const fn colours(place: Place) -> (&'static str, &'static str) {
    match place {
        Place::Rollout => ("#e8e3f8", "#6b4fbb"),
        Place::Pod => ("#e1eefc", "#2a6fb5"),
        Place::KubeProxy => ("#dff3f1", "#1b7f79"),
        Place::Client => ("#fdf1d8", "#a86a00"),
        Place::Node => ("#fbe4e4", "#b3261e"),
        Place::Network => ("#eceff1", "#546e7a"),
    }
}

/// When, and what, on lines of at most `width` characters.
pub fn label(link: &Link, width: usize) -> Vec<String> {
    let head = match link.at_ns {
        Some(at) => format!(
            "{} · {} s",
            link.place.word(),
            crate::report::text::seconds(at, 3)
        ),
        None => link.place.word().to_owned(),
    };
    let mut lines = vec![head];
    lines.extend(crate::report::text::wrap(&link.what, width));
    lines
}

/// As DOT, for graphviz. The same bytes for the same chain.
pub fn dot(chain: &Chain) -> String {
    let graph = graph(chain);
    let mut out = String::from(
        "digraph why {\n  rankdir=TB;\n  node [shape=box, style=\"rounded,filled\", fontname=\"sans-serif\", fontsize=11];\n",
    );
    for node in graph.node_indices() {
        let link = &chain.links[graph[node]];
        let (fill, border) = colours(link.place);
        let lines: Vec<String> = label(link, 44).iter().map(|line| escaped(line)).collect();
        let tip = link.rule.as_deref().unwrap_or(link.key);
        let _ = writeln!(
            out,
            "  n{} [label=\"{}\", fillcolor=\"{fill}\", color=\"{border}\", tooltip=\"{}\"];",
            node.index(),
            lines.join("\\n"),
            escaped(tip)
        );
    }
    for edge in graph.edge_references() {
        let _ = writeln!(
            out,
            "  n{} -> n{};",
            edge.source().index(),
            edge.target().index()
        );
    }
    out.push_str("}\n");
    out
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

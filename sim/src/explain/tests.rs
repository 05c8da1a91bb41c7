use super::*;
use crate::engine::story::StoriesOf;
use crate::engine::trace::TraceOptions;
use crate::engine::{self, RunResult};
use crate::outcome::{Cause, Outcome};
use crate::report::why::{View, text};
use crate::scenario::{Document, Scenario};

/// The founding case in small, with more settings laid over it.
fn small(more: &[(&str, &str)]) -> Scenario {
    let mut document = Document::default();
    let few = [
        ("duration", "260s"),
        ("client.0.ports", "40000-40399"),
        ("client.0.arrivals", "{ constant = { rate = 4 } }"),
    ];
    for (path, value) in few.iter().chain(more) {
        document.set(path, value).expect("a field");
    }
    document.resolve().expect("a good scenario").scenario
}

fn run(scenario: &Scenario) -> RunResult {
    let options = TraceOptions {
        stories: StoriesOf::Troubled(usize::MAX),
        ..TraceOptions::default()
    };
    engine::run(scenario, 1, &options).expect("runs")
}

fn first(scenario: &Scenario, result: &RunResult, cause: Cause) -> Chain {
    let story = result
        .trace
        .stories
        .iter()
        .find(|story| story.cause == Some(cause));
    let story = story.unwrap_or_else(|| panic!("no {cause:?} among {:?}", result.summary.causes));
    let chain = of(story, &result.trace.events, scenario);
    chain.check().expect("a chain");
    chain
}

fn keys(chain: &Chain) -> Vec<&'static str> {
    chain.links.iter().map(|link| link.key).collect()
}

#[test]
fn the_founding_case_goes_from_the_rollout_to_the_lost_packet() {
    let scenario = small(&[]);
    let result = run(&scenario);
    let stories: Vec<_> = result
        .trace
        .stories
        .iter()
        .filter(|story| story.outcome == Outcome::ConnectTimeout)
        .collect();
    let story = stories[stories.len() / 2];
    let chain = of(story, &result.trace.events, &scenario);
    chain.check().expect("a chain");
    let keys = keys(&chain);
    for key in [
        "load",
        "port-again",
        "bound",
        "entry-stays",
        "rollout-started",
        "pod-terminating",
        "weight-set",
        "syn-at-node",
        "process-exited",
        "address-went",
        "address-gone",
        "gave-up",
        "end",
    ] {
        assert!(keys.contains(&key), "{key} is not in {keys:?}");
    }
    let syn = chain
        .links
        .iter()
        .find(|link| link.key == "syn-at-node")
        .expect("a SYN");
    assert_eq!(syn.rule.as_deref(), Some("Ipvs(SynKeptAtWeightZero)"));
    assert!(syn.cut.contains(&"reuse-mode-1") && syn.cut.contains(&"kernel-fix"));
    let source = syn.source.as_ref().expect("a source");
    assert!(source.releases.contains("c95c07836fa4"), "{source:?}");
    let view = View {
        look: crate::report::text::Look {
            unicode: true,
            colour: false,
        },
        command: format!("sim why --seed 0x1 --connection {}", story.number),
        kernel: scenario.node.kernel.to_string(),
    };
    insta::with_settings!({
        snapshot_path => concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshots"),
        prepend_module_to_snapshot => false,
    }, {
        insta::assert_snapshot!("why_founding", text(&chain, &result.summary, &view));
        insta::assert_snapshot!("why_founding_dot", graph::dot(&chain));
        insta::assert_snapshot!("why_founding_svg", svg::svg(&chain));
    });
}

#[test]
fn a_late_answer_is_explained_by_the_syn_that_was_dropped() {
    let scenario = small(&[("node.sysctl.net.ipv4.vs.conn_reuse_mode", "1")]);
    let result = run(&scenario);
    let chain = first(&scenario, &result, Cause::SynDroppedOnReuse);
    let keys = keys(&chain);
    assert!(
        keys.contains(&"again") && keys.contains(&"connected"),
        "{keys:?}"
    );
    let dropped = chain
        .links
        .iter()
        .find(|link| link.key == "syn-at-node")
        .expect("a SYN");
    assert!(
        dropped.cut.contains(&"reuse-mode-1-fixed-kernel"),
        "{dropped:?}"
    );
    assert_eq!(chain.ended, "answered late");
}

#[test]
fn no_port_is_explained_by_what_holds_them() {
    let scenario = small(&[
        ("client.0.closes_first", "client"),
        ("client.0.ports", "40000-40099"),
    ]);
    let result = run(&scenario);
    let chain = first(&scenario, &result, Cause::PortsExhausted);
    assert_eq!(keys(&chain), ["load", "ports-held", "end"]);
    assert!(
        chain.links[1].what.contains("TIME_WAIT"),
        "{}",
        chain.links[1].what
    );
}

#[test]
fn a_cut_connection_is_explained_by_the_end_of_its_pod() {
    let slow = [
        ("server.service_time", "8s"),
        ("client.0.timeout", "20s"),
        ("rollout.deployment.pre_stop", "0s"),
    ];
    let scenario = small(&slow);
    let result = run(&scenario);
    let chain = first(&scenario, &result, Cause::ConnectionCut);
    let keys = keys(&chain);
    assert!(
        keys.contains(&"process-exited") && keys.contains(&"rollout-started"),
        "{keys:?}"
    );
    let cut: Vec<&str> = chain
        .links
        .iter()
        .flat_map(|link| link.cut.clone())
        .collect();
    assert!(cut.contains(&"drain"), "{cut:?}");
}

#[test]
fn session_affinity_is_named_where_its_template_chose() {
    let scenario = small(&[
        ("service.session_affinity", "10800s"),
        ("node.sysctl.net.ipv4.vs.expire_quiescent_template", "0"),
        ("client.0.ports", "1024-65535"),
    ]);
    let result = run(&scenario);
    let found = result
        .trace
        .stories
        .iter()
        .map(|story| of(story, &result.trace.events, &scenario));
    let by_template: Vec<Chain> = found
        .filter(|chain| chain.links.iter().any(|link| link.key == "template"))
        .collect();
    assert!(!by_template.is_empty(), "{:?}", result.summary.causes);
    for chain in by_template {
        chain.check().expect("a chain");
    }
}

/// Graph and pictures hold every link and every reason, whatever the chain.
#[test]
fn pictures_hold_the_whole_chain() {
    let scenario = small(&[]);
    let result = run(&scenario);
    for story in result.trace.stories.iter().step_by(17) {
        let chain = of(story, &result.trace.events, &scenario);
        let reasons: usize = chain.links.iter().map(|link| link.because.len()).sum();
        let graph = graph::graph(&chain);
        assert_eq!(
            (graph.node_count(), graph.edge_count()),
            (chain.links.len(), reasons)
        );
        assert!(!petgraph::algo::is_cyclic_directed(&graph));
        let dot = graph::dot(&chain);
        assert_eq!(dot.matches(" -> ").count(), reasons);
        let svg = svg::svg(&chain);
        assert_eq!(svg.matches("<rect").count(), chain.links.len());
        assert_eq!(svg.matches("marker-end").count(), reasons);
        assert_eq!(svg, svg::svg(&chain));
    }
}

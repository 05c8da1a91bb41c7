//! Ways to the node: which tuple reaches IPVS, whom the pods see, and what that does to a rollout (facts kernel.md 1.1,
//! kube-proxy.md 5). Each scenario of `scenarios/topology` shows what its text says.

use std::path::Path;

use ipvs_model::time::{Instant, Span};
use ipvs_sim::engine::trace::TraceOptions;
use ipvs_sim::engine::{RunResult, run, run_checked};
use ipvs_sim::outcome::{Cause, Outcome};
use ipvs_sim::scenario::{Document, Scenario};

fn scenario(name: &str, changes: &[(&str, &str)]) -> Scenario {
    let file = format!("../scenarios/topology/{name}.toml");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let mut document =
        Document::load(&path).unwrap_or_else(|found| panic!("{}", found.render(false)));
    for (path, value) in changes {
        document.set(path, value).unwrap();
    }
    let loaded = document.resolve();
    let loaded = loaded.unwrap_or_else(|found| panic!("{}", found.render(false)));
    assert_eq!(loaded.scenario.name, name);
    loaded.scenario
}

fn play(name: &str, changes: &[(&str, &str)]) -> RunResult {
    let scenario = scenario(name, changes);
    let options = TraceOptions {
        attempts: true,
        tables_at: vec![Instant::ZERO + Span::from_secs(50)],
        ..TraceOptions::default()
    };
    let result =
        run_checked(&scenario, 5, &options, 1_000).unwrap_or_else(|error| panic!("{error}"));
    let plain = run(&scenario, 5, &TraceOptions::default()).unwrap();
    assert_eq!(plain.summary.outcomes, result.summary.outcomes);
    assert_eq!(
        result.summary.outcomes.iter().sum::<u64>(),
        result.summary.requests
    );
    result
}

fn cause(result: &RunResult, cause: Cause) -> u64 {
    result.summary.causes[cause.index()]
}

/// Whom IPVS sees (the source of its entries) and whom the pods see (where conntrack awaits the answers).
fn seen(result: &RunResult) -> (String, String) {
    let tables = &result.trace.tables[0];
    let entry = tables
        .connections
        .lines()
        .find(|line| line.starts_with("TCP "))
        .unwrap();
    let source = entry.split_whitespace().nth(3).unwrap();
    let source = source.split(':').next().unwrap().to_owned();
    let tracked = tables
        .conntrack
        .lines()
        .find(|line| line.contains("dport="))
        .unwrap();
    let answers = tracked.split("dst=").nth(2).unwrap();
    let answers = answers.split_whitespace().next().unwrap().to_owned();
    (source, answers)
}

#[test]
fn whom_ipvs_and_the_pods_see() {
    const NODE: &str = "10.20.79.226";
    let rows = [
        ("cluster-ip-from-a-pod", "10.27.1.100", "10.27.1.100"),
        ("cluster-ip-from-the-host", "10.27.255.42", NODE),
        ("node-port-remote", "10.23.31.87", NODE),
        ("load-balancer-replaces", "100.97.130.6", NODE),
    ];
    for (name, ipvs, pods) in rows {
        let result = play(name, &[]);
        assert_eq!(seen(&result), (ipvs.to_owned(), pods.to_owned()), "{name}");
        // IPVS looks before NAT: whoever is seen, a port of its own that comes round is kept on the old pod.
        assert!(
            cause(&result, Cause::PinnedToDrained) > 500,
            "{name}: {:?}",
            result.summary.causes
        );
    }
    // Policy Local: the pods see the client.
    let local = [("service.traffic_policy", "local"), ("server.nodes", "2")];
    let result = play("node-port-remote", &local);
    assert_eq!(seen(&result).1, "10.23.31.87");
}

/// A port of a load balancer comes round as fast as all its clients together open connections.
#[test]
fn clients_behind_one_address_share_its_ports() {
    let replaced = play("load-balancer-replaces", &[]);
    let kept = play("load-balancer-keeps", &[]);
    assert!(
        cause(&replaced, Cause::PinnedToDrained) > 500,
        "{:?}",
        replaced.summary.causes
    );
    assert_eq!(kept.summary.failed(), 0, "{:?}", kept.summary.causes);
    // More ports put it off: 64512 of them come round after 1290 s.
    let wide = play(
        "load-balancer-replaces",
        &[("load_balancer.replace.ports", "1024-65535")],
    );
    assert_eq!(wide.summary.failed(), 0, "{:?}", wide.summary.causes);
    // Taken at random, ports are met again at any age.
    let random = [
        ("load_balancer.replace.ports", "1024-65535"),
        ("load_balancer.replace.port_order", "random"),
    ];
    let random = play("load-balancer-replaces", &random);
    let pinned = cause(&random, Cause::PinnedToDrained);
    assert!(pinned > 0 && pinned < 1_500, "{pinned}");
}

/// A balancer without a free port loses the SYN.
#[test]
fn a_balancer_runs_out_of_ports() {
    let few = [
        ("load_balancer.replace.ports", "1024-1073"),
        ("load_balancer.replace.hold", "10s"),
        ("node.sysctl.net.ipv4.vs.conn_reuse_mode", "1"),
    ];
    let result = play("load-balancer-replaces", &few);
    assert!(
        cause(&result, Cause::NatPortsExhausted) > 5_000,
        "{:?}",
        result.summary.causes
    );
}

/// facts kube-proxy.md 5: the fallback of 1.21 (#97081).
#[test]
fn a_node_without_a_pod_of_its_own_refuses_before_1_21() {
    let before = play("local-policy", &[]);
    let refused = cause(&before, Cause::NoDestination);
    assert!(refused > 1_500, "{:?}", before.summary.causes);
    let since = play("local-policy", &[("kube_proxy.version", "1.21.0")]);
    assert_eq!(since.summary.failed(), 0, "{:?}", since.summary.causes);
    let cluster = play("local-policy", &[("service.traffic_policy", "cluster")]);
    assert_eq!(cluster.summary.failed(), 0, "{:?}", cluster.summary.causes);
}

/// KUBE-LOOP-BACK: without it a pod that is given itself hears nothing.
#[test]
fn a_pod_reaches_itself_only_if_it_is_masqueraded() {
    let with = play("hairpin", &[]);
    assert_eq!(with.summary.failed(), 0, "{:?}", with.summary.outcomes);
    let without = play("hairpin", &[("kube_proxy.masquerade", "none")]);
    let share = without.summary.failed() as f64 / without.summary.requests as f64;
    assert!((0.45..0.55).contains(&share), "{share}");
    assert_eq!(
        without.summary.count(Outcome::ConnectTimeout),
        without.summary.failed()
    );
}

#[test]
fn what_cannot_stand_there_is_refused() {
    for (text, word) in [
        (
            "load_balancer = { keep = {} }\n[node]\nmode = \"headless\"\n",
            "connect to pods",
        ),
        (
            "load_balancer = { keep = {} }\n[service]\nkind = \"cluster-ip\"\n",
            "cluster address",
        ),
        (
            "load_balancer = { replace = {} }\n[service]\nprotocol = \"udp\"\n",
            "UDP",
        ),
        (
            "[[client]]\nlocation = \"pod\"\naddress = \"10.27.1.245\"\n",
            "die with it",
        ),
    ] {
        let found = Scenario::parse(text, "test").unwrap_err().render(false);
        assert!(found.contains(word), "{found}");
    }
    let text = "[service]\ntraffic_policy = \"local\"\n";
    let warned = Scenario::parse(text, "test")
        .unwrap()
        .warnings
        .render(false);
    assert!(warned.contains("server.nodes"), "{warned}");
}

//! What balances in the place of IPVS, on one rollout: the failures that each leaves, and those that it does not have
//! (facts kube-proxy.md 7, field cases F12 and F21).

use ipvs_sim::engine::trace::TraceOptions;
use ipvs_sim::engine::{RunResult, run};
use ipvs_sim::outcome::{Cause, Outcome};
use ipvs_sim::scenario::{Document, Scenario};

/// The founding case in small: 40 s until a port comes round, two pods replaced, silence from dead addresses.
const BASE: &str = r#"
    duration = "200s"
    [node]
    kernel = "4.19.57"
    uptime = "1h"
    [kube_proxy]
    version = "1.28.3"
    [[client]]
    ports = 4000
    arrivals = { constant = { rate = 50 } }
    timeout = "2s"
    [rollout.deployment]
    start = "50s"
"#;

/// The scenario files of the alternatives: the founding rollout, and what is left of its failures.
#[test]
fn the_scenario_files_of_the_alternatives_show_what_they_say() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/alternatives");
    let mut count = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        // A tenth of the load, so that the test is quick; ports come round as fast as in the file.
        let tenth: Changes<'_> = &[
            ("client.0.arrivals", "{ constant = { rate = 50 } }"),
            ("client.0.ports", "2823"),
        ];
        let result = play(&text, &[tenth]);
        let pinned = cause(&result, Cause::PinnedToDrained);
        assert_eq!(pinned, 0, "{}", path.display());
        let few = result.summary.requests / 100;
        assert!(
            result.summary.failed() < few,
            "{}: {:?}",
            path.display(),
            result.summary.causes
        );
        count += 1;
    }
    assert_eq!(count, 4);
}

const PINNING: &str = include_str!("../../scenarios/field/f12-syn-sent-pinning.toml");

type Changes<'a> = &'a [(&'a str, &'a str)];

fn of(text: &str, changes: &[Changes<'_>]) -> Scenario {
    let mut document = Document::parse(text, "test").unwrap();
    for (path, value) in changes.concat() {
        document.set(path, value).unwrap();
    }
    let loaded = document.resolve();
    loaded
        .unwrap_or_else(|found| panic!("{}", found.render(false)))
        .scenario
}

fn play(text: &str, changes: &[Changes<'_>]) -> RunResult {
    let options = TraceOptions {
        attempts: true,
        requests_max: usize::MAX,
        ..TraceOptions::default()
    };
    let result = run(&of(text, changes), 3, &options).unwrap_or_else(|error| panic!("{error}"));
    let ended: u64 = result.summary.outcomes.iter().sum();
    assert_eq!(ended, result.summary.requests);
    result
}

fn base(changes: &[Changes<'_>]) -> RunResult {
    play(BASE, changes)
}

fn cause(result: &RunResult, cause: Cause) -> u64 {
    result.summary.causes[cause.index()]
}

/// The same rollout, mode by mode. What is left out of IPVS's failures is what port reuse causes there.
#[test]
fn only_ipvs_and_old_cilium_keep_reused_ports_on_pods_that_are_gone() {
    let ipvs: Changes<'_> = &[("node.sysctl.net.ipv4.vs.conn_reuse_mode", "0")];
    let ipvs = base(&[ipvs]);
    assert!(
        cause(&ipvs, Cause::PinnedToDrained) > 1_000,
        "{:?}",
        ipvs.summary.causes
    );
    for mode in ["iptables", "nftables", "cilium-socket", "headless"] {
        let result = base(&[&[("node.mode", mode)]]);
        assert_eq!(
            result.summary.failed(),
            0,
            "{mode}: {:?}",
            result.summary.causes
        );
        assert_eq!(result.summary.count(Outcome::Answered), 10_000, "{mode}");
    }
}

/// F21: before 1.12 a reused port stays with a terminating backend until the endpoint is gone, which is a while after the
/// process; from 1.12 on a SYN leaves it.
#[test]
fn cilium_keeps_reused_ports_on_a_terminating_backend_before_1_12() {
    let version = |version| {
        let changes: Changes<'_> = &[("node.mode", "cilium-packet"), ("cilium.version", version)];
        // The agent hears two seconds late that a pod's process has ended.
        let slow: Changes<'_> = &[("kube_proxy.endpoint_latency", "2s")];
        base(&[changes, slow])
    };
    let old = version("1.11.6");
    let pinned = cause(&old, Cause::PinnedByConntrack);
    // Each of two pods is dead and listed for two seconds; half of 50 connections a second are its own.
    assert!((50..150).contains(&pinned), "{:?}", old.summary.causes);
    assert_eq!(old.summary.failed(), pinned);
    for new in ["1.12.0", "1.19.1"] {
        assert_eq!(version(new).summary.failed(), 0, "{new}");
    }
}

/// F12: SYN_SENT pins a fixed port in nftables mode as in iptables mode; where connect() chooses the pod, it does not.
#[test]
fn a_half_open_entry_pins_in_every_mode_of_conntrack() {
    for (mode, pinned) in [
        ("iptables", true),
        ("nftables", true),
        ("cilium-socket", false),
        ("headless", false),
    ] {
        let result = play(PINNING, &[&[("node.mode", mode)]]);
        let late = result.trace.attempts.iter().rev().take(5);
        let answered = late
            .filter(|attempt| attempt.outcome == Outcome::Answered)
            .count();
        assert_eq!(answered, if pinned { 0 } else { 5 }, "{mode}");
        assert_eq!(
            cause(&result, Cause::PinnedByConntrack) > 5,
            pinned,
            "{mode}"
        );
    }
}

/// Address reuse hits every mode with a table of connections: who is pinned to an address meets its next owner.
#[test]
fn a_pinned_port_meets_the_next_owner_of_the_address_in_iptables_mode_too() {
    let reused: Changes<'_> = &[(
        "server.dead_end",
        "{ reassigned = { after = '30s', port = 'open' } }",
    )];
    let result = play(PINNING, &[reused]);
    assert!(
        result.summary.count(Outcome::WrongService) > 0,
        "{:?}",
        result.summary.outcomes
    );
    let socket = play(PINNING, &[reused, &[("node.mode", "cilium-socket")]]);
    assert_eq!(socket.summary.count(Outcome::WrongService), 0);
}

/// Without preStop the lag of the control plane remains in every mode; a headless service adds what clients remember.
#[test]
fn lag_remains_everywhere_and_dns_adds_its_ttl() {
    let at_once: Changes<'_> = &[
        ("rollout.deployment.pre_stop", "0s"),
        ("kube_proxy.endpoint_latency", "500ms"),
        ("kube_proxy.sync_latency", "500ms"),
    ];
    let failed = |mode, ttl| {
        let changes: Changes<'_> = &[("node.mode", mode), ("service.dns_ttl", ttl)];
        let result = base(&[at_once, changes]);
        assert_eq!(cause(&result, Cause::PinnedByConntrack), 0, "{mode}");
        cause(&result, Cause::EndpointLag)
    };
    // Two pods, each for one second, with half of 50 connections a second: about 50.
    for mode in ["iptables", "nftables", "cilium-socket"] {
        let lag = failed(mode, "5s");
        assert!((25..80).contains(&lag), "{mode}: {lag}");
    }
    let (short, long) = (failed("headless", "0s"), failed("headless", "20s"));
    assert!((25..80).contains(&short), "{short}");
    assert!(long > 3 * short, "{long} against {short}");
}

/// Pools of kept-alive connections hardly open any: what fails is a request under way when the pod dies.
#[test]
fn pools_lose_only_what_is_under_way() {
    let pool: Changes<'_> = &[
        ("client.0.requests_per_connection", "1000000"),
        (
            "client.0.arrivals",
            "{ closed = { concurrency = 20, think_time = '20ms' } }",
        ),
        ("client.0.closes_first", "client"),
        ("server.keep_alive_timeout", "600s"),
    ];
    for mode in ["ipvs", "cilium-socket", "headless"] {
        let result = base(&[pool, &[("node.mode", mode)]]);
        let summary = &result.summary;
        assert!(summary.requests > 100_000, "{mode}: {}", summary.requests);
        assert!(summary.connections < 200, "{mode}: {}", summary.connections);
        assert!(summary.failed() <= 40, "{mode}: {:?}", summary.causes);
    }
}

/// A service without pods fails at once where the client's side chooses, and silently where Cilium does.
#[test]
fn without_pods_the_socket_fails_and_the_packet_is_dropped() {
    let none: Changes<'_> = &[(
        "rollout",
        "{ scale = { at = '50s', from = 2, to = 0, killed_after = '0s' } }",
    )];
    for (mode, outcome) in [
        ("headless", Outcome::HostUnreachable),
        ("cilium-socket", Outcome::HostUnreachable),
        ("cilium-packet", Outcome::ConnectTimeout),
    ] {
        let result = base(&[none, &[("node.mode", mode)]]);
        let share = result.summary.count(outcome) as f64 / result.summary.failed() as f64;
        assert!(share > 0.9, "{mode}: {:?}", result.summary.outcomes);
        assert!(cause(&result, Cause::NoDestination) > 6_000, "{mode}");
    }
    // iptables mode rejects, as often as the node may send an ICMP error to one client: once a second.
    let rejects = base(&[none, &[("node.mode", "iptables")]]);
    let refused = rejects.summary.count(Outcome::Refused);
    assert!((145..165).contains(&refused), "{refused}");
}

/// UDP through the alternatives: a fixed port follows the change of endpoints in all of them.
#[test]
fn udp_follows_the_endpoints_in_every_alternative() {
    let udp: Changes<'_> = &[
        ("service.protocol", "udp"),
        ("client.0.port_choice", "[40000]"),
        ("client.0.udp.retries", "0"),
    ];
    for mode in [
        "iptables",
        "nftables",
        "cilium-packet",
        "cilium-socket",
        "headless",
    ] {
        let result = base(&[udp, &[("node.mode", mode)]]);
        // Cilium keeps a terminating UDP backend until its endpoint is gone (#24131); an answer that is under way when
        // kube-proxy deletes its conntrack entry keeps the pod's address.
        let allowed = if mode == "cilium-packet" { 20 } else { 2 };
        let summary = result.summary;
        assert!(summary.failed() <= allowed, "{mode}: {:?}", summary.causes);
    }
}

/// What a mode cannot do is refused or warned of, with the field's name.
#[test]
fn fields_of_another_data_plane_are_named() {
    let text = "[node]\nmode = \"headless\"\n[kube_proxy]\nmasquerade = \"masquerade\"\n";
    let found = Scenario::parse(text, "test").unwrap_err().render(false);
    assert!(
        found.contains("kube_proxy.masquerade") && found.contains("headless"),
        "{found}"
    );
    let text = "[cilium]\nversion = \"1.12\"\n[service]\nsession_affinity = \"1h\"\n[node]\nmode = \"headless\"\n";
    let warnings = Scenario::parse(text, "test")
        .unwrap()
        .warnings
        .render(false);
    assert!(
        warnings.contains("`cilium`") && warnings.contains("session_affinity"),
        "{warnings}"
    );
    let bad = Scenario::parse("[cilium]\nversion = \"2.0\"\n", "test").unwrap_err();
    assert!(
        bad.render(false).contains("1.11.6"),
        "{}",
        bad.render(false)
    );
}

/// Session affinity in every mode that has it: one client, one pod.
#[test]
fn a_client_with_affinity_stays_with_its_pod() {
    for (mode, affinity, pods) in [
        ("ipvs", "1h", 1),
        ("iptables", "1h", 1),
        ("nftables", "1h", 1),
        ("cilium-packet", "1h", 1),
        ("cilium-socket", "1h", 1),
        ("iptables", "none", 5),
        ("cilium-socket", "none", 5),
    ] {
        let scenario = of(
            BASE,
            &[&[
                ("node.mode", mode),
                ("service.session_affinity", affinity),
                ("rollout", "{ none = { pods = 5 } }"),
            ]],
        );
        let options = TraceOptions {
            sample_every: Some(ipvs_model::time::Span::from_secs(1)),
            ..TraceOptions::default()
        };
        let result = run(&scenario, 1, &options).unwrap();
        let servers = result.trace.servers.iter();
        let served = servers.filter(|sample| sample.syns > 0);
        let served: std::collections::BTreeSet<_> = served.map(|sample| sample.server).collect();
        assert_eq!(served.len(), pods, "{mode}, {affinity}: {served:?}");
        assert_eq!(result.summary.failed(), 0, "{mode}");
    }
}

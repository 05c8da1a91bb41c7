//! UDP behind the service: what a DNS client sees while pods are replaced (facts kube-proxy.md 3 and 4, field case F14).

use ipvs_model::time::Instant;
use ipvs_sim::engine::trace::{Attempt, TraceOptions};
use ipvs_sim::engine::{RunResult, run, run_checked};
use ipvs_sim::outcome::{Cause, Outcome};
use ipvs_sim::scenario::Scenario;

/// Two servers of a DNS service, of which one or both go at 100 s and are killed at once; the kernel is of before 5.9.
const BASE: &str = r#"
    duration = "700s"
    [node]
    kernel = "4.15.18"
    [kube_proxy]
    version = "1.14.3"
    endpoint_latency = "0s"
    sync_latency = "10ms"
    [service]
    protocol = "udp"
    address = "10.96.0.10:53"
    target_port = 53
    [[client]]
    arrivals = { constant = { rate = 1 } }
    start = "500ms"
    port_choice = [40000]
    timeout = "2s"
    udp = { retries = 0 }
    [rollout.scale]
    at = "100s"
    from = 2
    to = 1
    killed_after = "0s"
"#;

/// The same with both servers replaced.
const REPLACED: &[(&str, &str)] = &[(
    "rollout",
    "{ scripted = { at = '100s', old_die_at = '100s', old_pods = 2, new_pods = 2 } }",
)];

fn scenario(changes: &[&[(&str, &str)]]) -> Scenario {
    let changes = changes.concat();
    let loaded = Scenario::with_overrides(Some((BASE, "dns")), &changes);
    loaded
        .unwrap_or_else(|found| panic!("{}", found.render(false)))
        .scenario
}

fn play(changes: &[&[(&str, &str)]]) -> RunResult {
    let options = TraceOptions {
        attempts: true,
        requests_max: usize::MAX,
        ..TraceOptions::default()
    };
    run(&scenario(changes), 1, &options).unwrap_or_else(|error| panic!("{error}"))
}

/// Attempts that began in a stretch of seconds.
fn between(result: &RunResult, from: u64, to: u64) -> Vec<&Attempt> {
    let range = Instant::from_secs(from)..Instant::from_secs(to);
    let attempts = result.trace.attempts.iter();
    attempts
        .filter(|attempt| range.contains(&attempt.start))
        .collect()
}

fn failed(attempts: &[&Attempt]) -> usize {
    attempts
        .iter()
        .filter(|attempt| attempt.outcome.is_failure())
        .count()
}

fn share(attempts: &[&Attempt]) -> f64 {
    failed(attempts) as f64 / attempts.len() as f64
}

/// F14, kube-proxy 1.14.3 and before: weight 0 does nothing to an entry, and each datagram renews its 300 s.
#[test]
fn one_source_port_is_black_holed_for_ever_before_1_14_4() {
    let result = play(&[REPLACED]);
    assert_eq!(failed(&between(&result, 0, 99)), 0);
    let after = between(&result, 101, 700);
    assert_eq!((failed(&after), after.len()), (599, 599));
    assert!(
        after
            .iter()
            .all(|attempt| attempt.outcome == Outcome::ResponseTimeout)
    );
    let causes = result.summary.causes;
    assert!(causes[Cause::PinnedToDrained.index()] >= 599, "{causes:?}");
    // Silence of more than 300 s ends it: the entry and then the real server go.
    let pause: &[_] = &[("client.0.arrivals", "{ constant = { rate = 0.003 } }")];
    let result = play(&[REPLACED, pause, &[("duration", "1500s")]]);
    assert_eq!(result.summary.failed(), 0);
}

/// F14: from 1.14.4 and 1.15 on the real server is deleted at once. Before 5.9 the first datagram of a tuple is dropped
/// and its entry with it; from 5.9 on the deletion itself ends the entries.
#[test]
fn at_most_one_datagram_a_tuple_is_lost_where_udp_is_deleted_at_once() {
    let ports: &[_] = &[(
        "client.0.port_choice",
        "[40000, 40001, 40002, 40003, 40004]",
    )];
    for version in ["1.14.4", "1.15.0", "1.30.3"] {
        let proxy: &[_] = &[("kube_proxy.version", version)];
        let result = play(&[REPLACED, ports, proxy]);
        assert_eq!(result.summary.failed(), 5, "{version}");
        assert_eq!(result.summary.causes[Cause::PinnedToDeleted.index()], 5);
        let mut lost: Vec<u16> = result
            .trace
            .troubled
            .iter()
            .map(|one| one.client.port)
            .collect();
        lost.sort_unstable();
        assert_eq!(lost, [40_000, 40_001, 40_002, 40_003, 40_004]);
        let result = play(&[REPLACED, ports, proxy, &[("node.kernel", "5.10.44")]]);
        assert_eq!(result.summary.failed(), 0, "{version}");
    }
}

/// F14: random ports meet entries of the dead server, fewer and fewer: they last 300 s, and only a hit renews one.
#[test]
fn random_ports_fail_for_five_minutes_and_decay() {
    let random: &[_] = &[
        ("client.0.port_choice", "connect"),
        ("client.0.arrivals", "{ constant = { rate = 60 } }"),
        ("rollout.scale.at", "310s"),
        ("duration", "1000s"),
    ];
    let result = play(&[random]);
    assert_eq!(failed(&between(&result, 0, 309)), 0);
    // 60 a second for 300 s leave 28232 * (1 - exp(-18000/28232)) = 13,310 tuples, 47.1 % of the ports; half of them on
    // the server that goes, whose share is 23.6 % in the first second.
    let first = share(&between(&result, 310, 320));
    assert!((0.19..0.28).contains(&first), "{first}");
    let quarters: Vec<f64> = (0..4)
        .map(|at| share(&between(&result, 310 + 100 * at, 410 + 100 * at)))
        .collect();
    assert!(quarters.is_sorted_by(|a, b| a > b), "{quarters:?}");
    // Entries that a hit renewed: at 60/28232 a second, 47 % of them within 300 s.
    let late = share(&between(&result, 615, 700));
    assert!(late > 0.0 && late < first / 2.0, "{late} of {first}");
    assert!(share(&between(&result, 940, 1_000)) < late);
}

/// F14: a high share of failures tells of sockets that stay open: those of the dead server never work again.
#[test]
fn a_pool_of_sockets_keeps_failing_with_those_of_the_dead_server() {
    let pool: &[_] = &[("client.0.port_choice", "{ pool = 8 }")];
    let result = play(&[pool]);
    let after = between(&result, 110, 700);
    assert!((share(&after) - 0.5).abs() < 0.01, "{}", share(&after));
    let ports: std::collections::BTreeSet<u16> = result
        .trace
        .troubled
        .iter()
        .map(|one| one.client.port)
        .collect();
    assert_eq!(ports.len(), 4);
}

/// A repetition from the request's own socket meets the same entry, one from a new socket is scheduled anew.
#[test]
fn a_repetition_helps_only_from_another_port() {
    let again: &[_] = &[
        ("client.0.port_choice", "connect"),
        ("client.0.udp.retries", "1"),
        ("client.0.udp.retry_after", "1s"),
        // Few ports, so that all of them have entries.
        ("client.0.ports", "40"),
    ];
    let same = play(&[again]);
    let new = play(&[again, &[("client.0.udp.retry_port", "new")]]);
    let (same, new) = (
        share(&between(&same, 110, 650)),
        share(&between(&new, 110, 650)),
    );
    assert!((0.3..0.7).contains(&same), "{same}");
    assert!(new < same * 0.7 && new > 0.0, "{new} of {same}");
}

/// A late answer counts as late, not as failed: the second datagram of a tuple goes to a live server.
#[test]
fn a_repetition_after_the_dropped_datagram_is_answered_late() {
    let again: &[_] = &[
        ("kube_proxy.version", "1.15.0"),
        ("client.0.udp.retries", "1"),
        ("client.0.udp.retry_after", "1s"),
    ];
    let result = play(&[REPLACED, again]);
    assert_eq!(result.summary.failed(), 0);
    assert_eq!(result.summary.delayed[Cause::PinnedToDeleted.index()], 1);
}

/// iptables mode: a fixed port stays with its conntrack entry until kube-proxy deletes that.
#[test]
fn kube_proxy_deletes_the_udp_entries_of_endpoints_that_go() {
    let iptables: &[_] = &[("node.mode", "iptables"), ("kube_proxy.version", "1.28.3")];
    let result = play(&[REPLACED, iptables]);
    assert_eq!(failed(&between(&result, 101, 700)), 0);
    // Nothing of the kind is done for TCP: see `f12_*` in field_cases.rs.
}

/// kubernetes#139628: from 1.32 on a service that has lost its last endpoint keeps its UDP flows.
#[test]
fn a_service_without_endpoints_keeps_its_flows_from_1_32_on() {
    let none: &[_] = &[("node.mode", "iptables"), ("rollout.scale.to", "0")];
    let before = play(&[none, &[("kube_proxy.version", "1.31.0")]]);
    let after = between(&before, 101, 650);
    assert!(
        after
            .iter()
            .all(|attempt| attempt.outcome == Outcome::Refused)
    );
    let since = play(&[none, &[("kube_proxy.version", "1.32.0")]]);
    let after = between(&since, 101, 650);
    assert!(
        after
            .iter()
            .all(|attempt| attempt.outcome == Outcome::ResponseTimeout)
    );
    let causes = since.summary.causes;
    assert!(causes[Cause::PinnedByConntrack.index()] > 500, "{causes:?}");
}

/// Only a connected socket hears of an ICMP error.
#[test]
fn an_unconnected_socket_waits_where_a_connected_one_is_refused() {
    let none: &[_] = &[("rollout.scale.to", "0"), ("kube_proxy.version", "1.15.0")];
    let unconnected: &[_] = &[("client.0.udp.connected", "false")];
    let (told, untold) = (play(&[none]), play(&[none, unconnected]));
    assert!(told.summary.count(Outcome::Refused) > 500);
    assert_eq!(untold.summary.count(Outcome::Refused), 0);
    assert!(untold.summary.count(Outcome::ResponseTimeout) > 500);
}

/// Requests are neither lost nor counted twice, and the tables stay sound, with everything at random.
#[test]
fn every_datagram_request_ends_once() {
    let random: &[_] = &[
        ("client.0.arrivals", "{ poisson = { rate = 50 } }"),
        ("client.0.port_choice", "connect"),
        ("client.0.udp.retries", "2"),
        ("client.0.udp.retry_after", "500ms"),
        ("client.0.udp.retry_port", "new"),
        ("client.0.ports", "300"),
        ("kube_proxy.masquerade", "random-fully"),
        ("duration", "300s"),
    ];
    for seed in 0..3 {
        let scenario = scenario(&[random]);
        let run = |()| run_checked(&scenario, seed, &TraceOptions::default(), 500).unwrap();
        let (a, b) = (run(()), run(()));
        assert_eq!(a.summary, b.summary);
        let ended: u64 = a.summary.outcomes.iter().sum();
        assert_eq!(ended, a.summary.requests);
        assert_eq!(a.summary.failed(), a.summary.causes.iter().sum::<u64>());
        assert_eq!(a.summary.causes[Cause::Other.index()], 0);
        assert!(a.summary.count(Outcome::Answered) > 10_000);
    }
}

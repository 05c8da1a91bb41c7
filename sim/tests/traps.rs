//! Traps of facts 9 that only show when client, node and pods play together; docs/traps.md lists all 34.
//!
//! The base is a recorded rollout (kernel 5.7.14, mode 0, a thousand client ports, the old pods die at 180 s).

use std::collections::BTreeSet;

use ipvs_model::time::Span;
use ipvs_sim::engine::trace::TraceOptions;
use ipvs_sim::engine::{RunResult, run};
use ipvs_sim::outcome::{Cause, Outcome};
use ipvs_sim::scenario::Document;

const BASE: &str = include_str!("../../scenarios/rollouts/57-m0-sf-c41.toml");

/// Runs the base with these fields changed.
fn play(changes: &[(&str, &str)]) -> RunResult {
    let mut document = Document::parse(BASE, "57-m0-sf-c41.toml").unwrap();
    for (path, value) in changes {
        document.set(path, value).unwrap();
    }
    let scenario = document.resolve().unwrap().scenario;
    let options = TraceOptions {
        requests_max: 100_000,
        ..TraceOptions::default()
    };
    run(&scenario, 7, &options).unwrap()
}

fn pinned(result: &RunResult) -> u64 {
    result.summary.causes[Cause::PinnedToDrained.index()]
}

/// How long each port had been idle when it first met the drained real server. Later ones meet the entry that the first
/// failure left, and say nothing about TIME_WAIT.
fn first_hits(result: &RunResult) -> Vec<Span> {
    let mut seen = BTreeSet::new();
    result
        .trace
        .troubled
        .iter()
        .filter(|request| request.cause == Cause::PinnedToDrained)
        .filter(|request| seen.insert(request.client.port))
        .filter_map(|request| request.port_idle)
        .collect()
}

/// Trap 7: the client's own TIME_WAIT keeps its ports for 60 of the entry's 120 s; if the server closes first, nothing
/// keeps them.
#[test]
fn trap_7_who_closes_first_decides_how_soon_a_port_is_reused() {
    let closed_by = |side| {
        play(&[
            ("client.0.closes_first", side),
            ("client.0.kernel", "6.12.117"),
        ])
    };
    let (server, client) = (
        first_hits(&closed_by("server")),
        first_hits(&closed_by("client")),
    );
    assert!(server.len() > 100 && client.len() > 100);
    assert!(server.iter().any(|idle| *idle < Span::from_secs(30)));
    let (earliest, latest) = (client.iter().min().unwrap(), client.iter().max().unwrap());
    assert!(*earliest >= Span::from_secs(60), "{earliest:?}");
    assert!(
        *latest <= Span::from_secs(126),
        "HZ 100: 5.12 s late at most"
    );
}

/// Trap 10: at 3 connections a second, 500 even ports last for 167 s: a sequential client (up to 5.17) never comes round
/// in time, one that jumps (from 5.18) does. At 12 a second they last for 42 s and both do.
#[test]
fn trap_10_the_clients_kernel_decides_whether_ports_come_round() {
    let hits = |kernel: &str, rate: &str| {
        let arrivals = format!("{{ constant = {{ rate = {rate} }} }}");
        let result = play(&[
            ("client.0.kernel", kernel),
            ("client.0.arrivals", &arrivals),
        ]);
        pinned(&result)
    };
    assert_eq!(hits("5.7.14", "3"), 0);
    assert!(hits("6.12.117", "3") > 10);
    assert!(hits("5.7.14", "12") > 1000);
    assert!(hits("6.12.117", "12") > 1000);
}

/// Trap 25: a SYN that mode 1 dropped is sent again a second later and is then scheduled: late, not failed.
#[test]
fn trap_25_a_dropped_syn_is_scheduled_a_second_later() {
    let result = play(&[("node.sysctl.net.ipv4.vs.conn_reuse_mode", "1")]);
    let late: Vec<_> = result
        .trace
        .troubled
        .iter()
        .filter(|request| request.cause == Cause::SynDroppedOnReuse)
        .collect();
    assert!(late.len() > 1000, "{}", late.len());
    for request in late {
        assert_eq!(request.outcome, Outcome::Answered);
        let took = request.end.since(request.start);
        assert!(
            took >= Span::from_secs(1) && took < Span::from_millis(1100),
            "{took:?}"
        );
    }
    assert_eq!(pinned(&result), 0);
}

/// Trap 26: what the client is told of a dead pod is a matter of the network, not of IPVS: the same SYNs are pinned, and
/// fail as a timeout, no route, or refused. (Without the limit of trap 18, which turns most ICMP errors into silence.)
#[test]
fn trap_26_the_network_decides_what_the_client_is_told() {
    for (dead_end, outcome) in [
        ("blackhole", Outcome::ConnectTimeout),
        ("arp-failure", Outcome::HostUnreachable),
        ("reset", Outcome::Refused),
    ] {
        let result = play(&[
            ("server.dead_end", dead_end),
            ("node.sysctl.net.ipv4.icmp_ratelimit", "0"),
        ]);
        assert!(pinned(&result) > 100, "{dead_end}");
        let failed = result.summary.failed();
        let share = result.summary.count(outcome) * 100 / failed;
        assert!(share >= 80, "{dead_end}: {share} % of {failed}");
    }
}

/// Trap 30: tcp_tw_reuse=1 gives a closing client its ports back after a second: hits come at ages at which its own
/// TIME_WAIT would have kept them.
#[test]
fn trap_30_tw_reuse_exposes_a_client_that_closes_first() {
    let with = |tw_reuse| {
        first_hits(&play(&[
            ("client.0.closes_first", "client"),
            ("client.0.tcp_tw_reuse", tw_reuse),
        ]))
    };
    let early = |hits: &[Span]| {
        hits.iter()
            .filter(|idle| **idle < Span::from_secs(60))
            .count()
    };
    let (off, on) = (with("0"), with("1"));
    assert!(off.len() > 100 && on.len() > 100);
    assert_eq!(early(&off), 0);
    assert!(early(&on) > 100, "{}", early(&on));
}

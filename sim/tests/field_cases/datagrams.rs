//! UDP services: F14.

use ipvs_model::time::Instant;
use ipvs_sim::engine::RunResult;
use ipvs_sim::engine::trace::Attempt;
use ipvs_sim::outcome::Outcome;
use ipvs_sim::scenario::{ProxyVersion, Scenario};

use crate::kit::*;

fn proxy(mut scenario: Scenario, version: &str) -> Scenario {
    scenario.kube_proxy.version = ProxyVersion::parse(version).unwrap();
    scenario
}

fn lost(result: &RunResult, from: u64, to: u64) -> usize {
    begun(result, Instant::from_secs(from), Instant::from_secs(to))
        .filter(|attempt| attempt.outcome.is_failure())
        .count()
}

/// F14: releases that drain UDP black-hole a port that goes on sending; those that delete at once lose one packet of it.
#[test]
fn f14_a_port_that_goes_on_sending_by_release() {
    for version in ["1.11.6", "1.12.4", "1.13.1", "1.14.3"] {
        let result = play(&proxy(load("f14-fixed-port"), version));
        assert_eq!(lost(&result, 61, 699), 638, "{version}");
    }
    for version in ["1.14.4", "1.15.0", "1.22.0", "1.35.0"] {
        let result = play(&proxy(load("f14-fixed-port"), version));
        assert!(
            lost(&result, 60, 699) <= 1,
            "{version}: {}",
            lost(&result, 60, 699)
        );
        assert_eq!(lost(&result, 62, 699), 0, "{version}");
    }
    line(
        "F14.1",
        "up to 1.14.3, a fixed UDP port that sends more often than every 300 s: a black hole for ever",
        "all 638 packets after the pod's death lost (1.11.6, 1.12.4, 1.13.1, 1.14.3)",
        "agrees",
    );
    line(
        "F14.2",
        "fixed releases: real server deleted at once, at most one packet of a tuple lost",
        "at most one packet lost (1.14.4, 1.15.0, 1.22.0, 1.35.0)",
        "agrees",
    );
}

/// F14: random ports: errors until five minutes after the deletion; their share is that of reused tuples and not more.
#[test]
fn f14_queries_from_random_ports() {
    let result = play(&load("f14-dig-every-50ms"));
    let failing = |from: u64, to: u64| {
        let attempts: Vec<&Attempt> =
            begun(&result, Instant::from_secs(from), Instant::from_secs(to)).collect();
        share(&attempts, |attempt| attempt.outcome != Outcome::Answered)
    };
    assert_eq!(failing(0, 309), 0.0);
    let (first, later) = (failing(311, 371), failing(630, 890));
    // 300 s of queries at 20 a second hold 6000 of 28,232 ports, half of them on the pod that goes.
    assert!((0.05..0.13).contains(&first), "{first}");
    assert!(later < first / 4.0, "{first} {later}");
    let fixed = play(&proxy(load("f14-dig-every-50ms"), "1.15.0"));
    let after = lost(&fixed, 310, 899);
    line(
        "F14.3",
        "2 pods, dig every 0.05 s, one deleted: timeouts, fine after 5 minutes",
        &format!(
            "{} fail in the first minute, {} after 5 minutes",
            per_cent(first),
            per_cent(later)
        ),
        "agrees; \"many\" timeouts need a client that keeps its ports",
    );
    line(
        "F14.4",
        "the same with a fixed release",
        &format!(
            "{after} of 11,780 queries after the deletion fail: the first on each reused tuple"
        ),
        "agrees",
    );
}

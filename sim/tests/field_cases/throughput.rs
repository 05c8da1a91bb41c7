//! What load generators saw: kubernetes#71114, #65820, and the negative control F24.

use ipvs_model::time::{Instant, Span};
use ipvs_sim::engine::RunResult;
use ipvs_sim::engine::trace::Attempt;
use ipvs_sim::scenario::{Arrivals, Closed, DataPlane, Dist};

use crate::kit::*;

fn connects(result: &RunResult) -> Vec<f64> {
    let attempts = result.trace.attempts.iter();
    let mut took: Vec<f64> = attempts
        .filter_map(|attempt| attempt.connect)
        .map(|took| took.as_secs_f64())
        .collect();
    took.sort_by(f64::total_cmp);
    took
}

/// kubernetes#71114: 48,983 requests in 120 s with 300 workers, connect 722 ms in the mean, 999 ms in the median. 14,116 of
/// them are the even ports; after that each worker gets one a second.
#[test]
fn i71114_ab_with_300_workers_in_mode_1() {
    let result = play(&load("i71114-ab-300"));
    let done = result.summary.count(ipvs_sim::outcome::Outcome::Answered);
    let off = done as f64 / 48_983.0 - 1.0;
    assert!(off.abs() < 0.02, "{done}");
    assert_eq!(result.summary.failed(), 0);
    let took = connects(&result);
    let mean = took.iter().sum::<f64>() / took.len() as f64;
    let median = took[took.len() / 2];
    assert!((mean - 0.722).abs() < 0.03, "{mean}");
    assert!((median - 0.999).abs() < 0.03, "{median}");
    line(
        "#71114.1",
        "ab, 300 workers, mode 1: 48983 requests in 120 s, none failed",
        &format!("{done}, none failed"),
        "agrees within 2 %",
    );
    line(
        "#71114.2",
        "connect: mean 722 ms, median 999 ms",
        &format!("mean {:.0} ms, median {:.0} ms", mean * 1e3, median * 1e3),
        "agrees",
    );
    let cured = play(&mode(load("i71114-ab-300"), 0));
    let more = cured.summary.count(ipvs_sim::outcome::Outcome::Answered) as f64 / done as f64;
    assert!(cured.summary.delayed_total() == 0 && more > 10.0, "{more}");
    line(
        "#71114.3",
        "mode 0 \"will highly improve IPVS proxier performance\"",
        &format!("no late connect, {more:.0} times the requests (nothing else limits them here)"),
        "agrees",
    );
}

/// kubernetes#65820: good for the first minute or two, then slow; iptables mode stays as it is.
#[test]
fn i65820_slow_once_the_ports_come_round() {
    let late = |result: &RunResult, from: u64, to: u64| {
        let attempts: Vec<&Attempt> =
            begun(result, Instant::from_secs(from), Instant::from_secs(to)).collect();
        share(&attempts, |attempt| {
            attempt
                .connect
                .is_some_and(|took| took > Span::from_millis(900))
        })
    };
    let scenario = load("i65820-slow-after-a-minute");
    let result = play(&scenario);
    let turn = (60..150)
        .find(|second| late(&result, *second, second + 1) > 0.5)
        .expect("never slow");
    assert!((60..=120).contains(&turn), "{turn}");
    assert_eq!(late(&result, 0, turn - 5), 0.0);
    let after = late(&result, turn + 5, 238);
    assert!(after > 0.95, "{after}");
    let mut other = scenario;
    other.node.mode = DataPlane::Iptables;
    let other = play(&other);
    assert_eq!(
        (other.summary.failed(), other.summary.delayed_total()),
        (0, 0)
    );
    line(
        "#65820.1",
        "good at the beginning, \"after 1 or 2 minutes\" slow",
        &format!(
            "fast for {turn} s, then {} of the connects take a second",
            per_cent(after)
        ),
        "agrees (rate chosen)",
    );
    line(
        "#65820.2",
        "iptables mode: stable",
        "no late connect",
        "agrees",
    );
}

/// F24: a light load reuses no port: no delay in either proxy mode, with every old kernel and mode 1.
#[test]
fn f24_a_light_load_has_no_delay() {
    let mut scenario = load("f24-light-load");
    for plane in [DataPlane::Ipvs, DataPlane::Iptables] {
        scenario.node.mode = plane;
        let result = play(&scenario);
        assert_eq!(result.summary.requests, 300);
        assert_eq!(
            (result.summary.failed(), result.summary.delayed_total()),
            (0, 0)
        );
    }
    line(
        "F24.1",
        "1 s or 63 s from the first connection on, in both proxy modes (VXLAN checksum offload)",
        "no delay in either mode: not this fault",
        "agrees (negative control)",
    );
}

/// F2, second article: in mode 1 before the fix "cps from 30k to 1.5K". 1.5k a second at a second each are 1,500 workers; 30k a second by
/// as many are 50 ms a request. On a kernel with the fix the rate stays.
#[test]
fn f02_mode_1_takes_the_rate_from_30k_to_1_5k() {
    let rates = |kernel: &str| {
        let mut scenario = on_kernel(load("i71114-ab-300"), kernel);
        scenario.client[0].arrivals = Arrivals::Closed(Closed {
            concurrency: 1_500,
            think_time: Dist::Constant(Span::ZERO),
        });
        scenario.server.service_time = Dist::Constant(Span::from_millis(49));
        scenario.duration = Span::from_secs(6);
        let result = play(&scenario);
        let timeline = &result.summary.timeline;
        let first: u64 = result
            .trace
            .attempts
            .iter()
            .filter(|a| a.start < Instant::from_millis(400))
            .count() as u64;
        (
            first as f64 / 0.4,
            (timeline[4].answered + timeline[5].answered) as f64 / 2.0,
        )
    };
    let (before, after) = rates("4.15.0");
    assert!((27_000.0..33_000.0).contains(&before), "{before}");
    assert!((1_300.0..1_700.0).contains(&after), "{after}");
    let (_, fixed) = rates("4.19.140");
    assert!((27_000.0..33_000.0).contains(&fixed), "{fixed}");
    line(
        "F2.7",
        "mode 1 before the fix: \"cps from 30k to 1.5K\"",
        &format!("from {before:.0} to {after:.0} a second; {fixed:.0} on 4.19.140"),
        "agrees (concurrency and service time inferred from the two figures)",
    );
}

//! Against brute force: the same scenario, its failures counted, with a probability that can be counted.

use super::*;
use crate::engine::probe;
use crate::scenario::Scenario;

/// Few requests on few ports that bind() draws; the old pods die in the middle. About one request in a thousand fails.
const SCENARIO: &str = r#"
schema = 1
duration = "330s"
[kube_proxy]
first_check = "300s"
[[client]]
ports = "40000-43999"
port_choice = "bind"
arrivals = { poisson = { rate = 0.1 } }
[rollout.deployment]
start = "130s"
pre_stop = "1s"
"#;

fn scenario() -> Scenario {
    let loaded = Scenario::parse(SCENARIO, "rare").unwrap_or_else(|errors| panic!("{errors}"));
    loaded.scenario
}

fn conditioned(scenario: &Scenario, seed: u64) -> RunSummary {
    let (run, probed) = probe::run(scenario, seed, None).expect("runs");
    let mut play = |request, port| {
        let forced = probe::run(scenario, seed, Some((request, port)));
        Ok(forced.expect("runs").1.forced)
    };
    condition(run.summary, &probed, seed, &mut play).expect("conditioned")
}

/// Mean and its variance over runs.
fn moments(values: &[f64]) -> (f64, f64) {
    let m = values.len() as f64;
    let mean = values.iter().sum::<f64>() / m;
    let squares: f64 = values
        .iter()
        .map(|value| (value - mean) * (value - mean))
        .sum();
    (mean, squares / (m * (m - 1.0)))
}

#[test]
fn conditioning_agrees_with_counting_at_one_in_a_thousand() {
    let scenario = scenario();
    let (mut counted, mut expected) = (Vec::new(), Vec::new());
    let mut requests = 0;
    for run in 0..2_000 {
        let seed = seed_of(0xabc, run);
        let plain = crate::engine::run(
            &scenario,
            seed,
            &crate::engine::trace::TraceOptions::default(),
        )
        .expect("runs")
        .summary;
        requests += plain.decided();
        counted.push(plain.failed() as f64);
    }
    // Other seeds: two independent estimates of one number.
    for run in 0..200 {
        let parts = conditioned(&scenario, seed_of(0xdef, run)).conditioned;
        expected.push(parts.expect("conditioned") as f64 / PARTS as f64);
    }
    let ((brute, brute_variance), (mean, variance)) = (moments(&counted), moments(&expected));
    let p = brute * 2_000.0 / requests as f64;
    assert!((5e-4..2e-3).contains(&p), "meant to be near 1e-3: {p:e}");
    let deviations = (brute - mean).abs() / (brute_variance + variance).sqrt();
    assert!(
        deviations < 3.0,
        "{brute} counted, {mean} conditioned: {deviations} standard errors"
    );
    // A tenth of the runs, and no worse: what it is for.
    assert!(variance < brute_variance, "{variance:e} {brute_variance:e}");
}

#[test]
fn a_probe_changes_nothing() {
    let scenario = scenario();
    for seed in 0..20 {
        let options = crate::engine::trace::TraceOptions::default();
        let plain = crate::engine::run(&scenario, seed, &options)
            .expect("runs")
            .summary;
        let (probed, found) = probe::run(&scenario, seed, None).expect("runs");
        assert_eq!(probed.summary.outcomes, plain.outcomes);
        assert_eq!(probed.summary.timeline, plain.timeline);
        assert_eq!(found.forced, None);
    }
}

#[test]
fn a_forced_request_gets_its_port_and_what_was_before_stays() {
    let scenario = scenario();
    let mut met = 0;
    for seed in 0..60 {
        let (_, free) = probe::run(&scenario, seed, None).expect("runs");
        let Some(chance) = free.chances.get(free.chances.len() / 2) else {
            continue;
        };
        let forced = probe::run(&scenario, seed, Some((chance.request, chance.port)));
        let (_, forced) = forced.expect("runs");
        let until = |probed: &Probed| -> Vec<Chance> {
            let before = probed
                .chances
                .iter()
                .filter(|other| other.request <= chance.request);
            before.copied().collect()
        };
        assert_eq!(until(&free), until(&forced), "the past is the same");
        met += u64::from(forced.forced.is_some_and(Outcome::is_failure));
    }
    assert!(met > 10, "a port of a dead real server mostly fails: {met}");
}

#[test]
fn chances_add_up_and_played_failures_are_weighed_by_them() {
    let chance = |request, port, starts| Chance {
        request,
        port,
        starts,
        of: 1_000,
    };
    let mut summary = RunSummary {
        requests: 100,
        ..RunSummary::default()
    };
    summary.outcomes[Outcome::Answered.index()] = 97;
    summary.outcomes[Outcome::ConnectTimeout.index()] = 3;
    let probed = Probed {
        chances: vec![chance(4, 40_000, 1), chance(9, 40_001, 3)],
        hits_failed: 1,
        forced: None,
    };
    let with = |outcome| {
        let mut asked = Vec::new();
        let run = condition(summary.clone(), &probed, 7, &mut |request, port| {
            asked.push((request, port));
            Ok(Some(outcome))
        });
        assert!(
            asked
                .iter()
                .all(|pair| [(4, 40_000), (9, 40_001)].contains(pair))
        );
        assert_eq!(asked.len(), 4);
        run.expect("conditioned").conditioned
    };
    // Two failures that drew no such port, and four thousandths of a request.
    assert_eq!(
        with(Outcome::ConnectTimeout),
        Some(2 * PARTS + PARTS * 4 / 1_000)
    );
    assert_eq!(with(Outcome::Answered), Some(2 * PARTS));
}

#[test]
fn what_draws_no_ports_is_refused_with_a_remedy() {
    let error = probe::run(&Scenario::default(), 1, None).expect_err("connect() does not draw");
    assert!(error.contains("--port-choice bind"), "{error}");
}

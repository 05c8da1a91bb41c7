use super::*;
use crate::experiment::seeds::SplitMix64;
use crate::outcome::Outcome;
use crate::scenario::Arrivals;

struct Still;

impl Stopwatch for Still {
    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }
}

fn rate_of(scenario: &Scenario) -> u64 {
    match scenario.client[0].arrivals {
        Arrivals::Constant(rate) => rate.rate as u64,
        _ => panic!("a constant rate"),
    }
}

/// Rollouts that fail `share(rate)` of ten thousand requests, with a scatter of a tenth.
fn search(share: impl Fn(u64) -> u64 + Sync, tolerance: f64) -> Capacity {
    let simulate = |scenario: &Scenario, seed: u64| {
        let mean = share(rate_of(scenario));
        let failed = mean - mean / 10 + SplitMix64::new(seed).below(mean / 5 + 1);
        let mut summary = RunSummary::default();
        summary.outcomes[Outcome::Reset.index()] = failed;
        summary.outcomes[Outcome::Answered.index()] = 10_000 - failed;
        Ok(summary)
    };
    let quantity = Quantity::parse("rate", Some((1, 10_000)), None).expect("a quantity");
    let target = Target {
        event: Event::Fail(None),
        limit: 0.01,
        rare: 0.25,
    };
    let search = Search {
        document: &Document::default(),
        quantity: &quantity,
        target: (target, "p(fail) < 1 %".to_owned()),
        plan: Plan {
            max_runs: 20,
            ..Plan::default()
        },
        tolerance,
        budget: None,
        simulate: &simulate,
        stopwatch: &Still,
    };
    search.run(&mut |_| {}).expect("runs")
}

#[test]
fn a_cliff_is_found_to_the_tolerance() {
    let found = search(|rate| if rate <= 1_234 { 0 } else { 5_000 }, 0.01);
    let (keeps, breaks) = (
        found.keeps.expect("kept below"),
        found.breaks.expect("broken above"),
    );
    assert!(keeps <= 1_234 && breaks > 1_234, "{keeps} {breaks}");
    assert!(breaks - keeps <= 1 + keeps / 100, "{keeps} {breaks}");
    assert!(found.exceptions.is_empty(), "{found:?}");
}

/// A slope through the limit has a stretch in which few rollouts do not decide: the interval shows it.
#[test]
fn a_slope_leaves_an_interval_with_the_undecided_inside() {
    // 1 % of 10,000 at 2,000 requests/s.
    let found = search(|rate| rate / 20, 0.02);
    let (keeps, breaks) = (
        found.keeps.expect("kept below"),
        found.breaks.expect("broken above"),
    );
    assert!(keeps < 2_000 && breaks > 2_000, "{keeps} {breaks}");
    let undecided = found.probes.iter().filter(|probe| probe.keeps().is_none());
    assert!(undecided.count() > 0, "{found:?}");
    assert!(
        found
            .probes
            .iter()
            .all(|probe| probe.keeps() != Some(true) || probe.value < 2_000)
    );
}

#[test]
fn a_response_that_goes_up_and_down_is_reported() {
    let found = search(
        |rate| {
            if rate <= 100 || (4_000..9_000).contains(&rate) {
                0
            } else {
                3_000
            }
        },
        0.05,
    );
    assert!(
        found.keeps.is_some_and(|keeps| keeps <= 100) || !found.exceptions.is_empty(),
        "{found:?}"
    );
    let island = found
        .exceptions
        .iter()
        .any(|value| (4_000..9_000).contains(value));
    let inside = found
        .keeps
        .is_some_and(|keeps| (4_000..9_000).contains(&keeps));
    assert!(island || inside, "{found:?}");
    // Whatever is called kept has no broken value before it.
    let keeps = found.keeps.unwrap_or(0);
    assert!(
        found
            .probes
            .iter()
            .all(|probe| probe.value >= keeps || probe.keeps() != Some(false)),
        "{found:?}"
    );
}

#[test]
fn all_kept_or_all_broken_have_one_end() {
    let all = search(|_| 0, 0.05);
    assert_eq!(
        (all.keeps, all.breaks, all.probes.len()),
        (Some(10_000), None, 2)
    );
    let none = search(|_| 4_000, 0.05);
    assert_eq!((none.keeps, none.breaks), (None, Some(1)));
}

#[test]
fn quantities_are_named_or_paths() {
    assert_eq!(
        Quantity::parse("ports", None, None).expect("named").sought,
        Sought::Smallest
    );
    let path = Quantity::parse("server.backlog", Some((1, 4_096)), Some(Sought::Smallest))
        .expect("a path");
    assert_eq!(path.flags(16), "--set server.backlog=16");
    for (name, between, words) in [
        ("rat", None, "did you mean `rate`"),
        ("server.backlog", None, "--between"),
        ("rate", Some((5, 5)), "less than the second"),
    ] {
        let error = Quantity::parse(name, between, None).expect_err(name);
        assert!(error.contains(words), "{error}");
    }
    // Every named quantity can be laid over the founding case at both of its ends.
    for (name, _) in names() {
        let quantity = Quantity::parse(name, None, None).expect("named");
        for value in [quantity.low, quantity.high] {
            let laid = quantity.lay(&Document::default(), value);
            assert!(laid.is_ok(), "{name} {value}: {:?}", laid.err());
        }
    }
}

#[test]
fn maps_spread_their_values_by_factors() {
    assert_eq!(
        map::spread(100, 10_000, 5),
        [100, 320, 1_000, 3_200, 10_000]
    );
    assert_eq!(map::spread(1, 4, 8), [1, 2, 3, 4]);
}

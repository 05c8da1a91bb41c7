use super::*;
use crate::experiment::seeds::{SplitMix64, seed_of};

fn summary(failed: u64, dead_seconds: u64) -> RunSummary {
    let mut summary = RunSummary {
        requests: 10_000,
        longest_dead_ns: Span::from_secs(dead_seconds).0,
        ..RunSummary::default()
    };
    summary.outcomes[Outcome::Answered.index()] = 10_000 - failed;
    summary.outcomes[Outcome::ConnectTimeout.index()] = failed;
    summary.causes[Cause::PinnedToDrained.index()] = failed;
    summary
}

struct Ticks(std::sync::atomic::AtomicU64);

impl Stopwatch for Ticks {
    fn elapsed(&self) -> Duration {
        Duration::from_secs(self.0.load(std::sync::atomic::Ordering::Relaxed))
    }
}

/// Checks synthetic rollouts; each takes a second.
fn check(text: &str, rare: f64, budget: u64, run: impl Fn(u64) -> RunSummary + Sync) -> Check {
    let ticks = Ticks(std::sync::atomic::AtomicU64::new(0));
    let simulate = |_: &Scenario, seed: u64| {
        ticks.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(run(seed))
    };
    let plan = Plan {
        budget: Some(Duration::from_secs(budget)),
        ..Plan::default()
    };
    let thresholds: Vec<Threshold> = text
        .split(';')
        .map(|one| Threshold::parse(one).expect("good"))
        .collect();
    let scenario = Scenario::default();
    super::run(
        &scenario,
        &thresholds,
        rare,
        &plan,
        &ticks,
        &simulate,
        &mut |_, _, _| {},
    )
    .expect("runs")
}

#[test]
fn thresholds_are_read() {
    let read = |text: &str| {
        let threshold = Threshold::parse(text).expect(text);
        (threshold.event, threshold.limit)
    };
    assert_eq!(read("p(fail) < 1e-4"), (Event::Fail(None), 1e-4));
    assert_eq!(read("p(late) < 1 %"), (Event::Late, 0.01));
    assert_eq!(read(" p( no-port )<=50%"), (Event::NoPort, 0.5));
    assert_eq!(read("p(any-failure) < 0.05"), (Event::AnyFailure, 0.05));
    assert_eq!(
        read("dead < 10s"),
        (Event::Dead(Span::from_secs(10)), DEAD_SHARE)
    );
    assert_eq!(
        read("p(dead >= 30s) < 5%"),
        (Event::Dead(Span::from_secs(30)), 0.05)
    );
    let cause = Event::Fail(Some(Cause::EndpointLag));
    assert_eq!(read("p(fail:endpoint_lag) < 0.1%"), (cause, 0.001));
    for (text, words) in [
        ("p(fail) > 1", "there is no `<`"),
        ("p(fial) < 1%", "did you mean `fail`"),
        ("p(fail:endpoint-lgg) < 1%", "did you mean `endpoint_lag`"),
        ("fail < 1%", "is not p(...)"),
        ("p(fail) < 0", "no share above 0"),
        ("p(fail) < 200%", "no share above 0"),
        ("dead < soon", "no time"),
        ("", "there is no `<`"),
    ] {
        let error = Threshold::parse(text).expect_err(text);
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn what_is_plainly_broken_is_found_by_the_first_look() {
    let check = check("p(fail) < 1e-4", 0.0, 1_000, |seed| {
        summary(4_000 + seed % 100, 200)
    });
    assert_eq!(check.thresholds[0].verdict, Verdict::Broken);
    assert_eq!(check.runs, PILOT);
    assert_eq!(check.causes[0].key, "pinned_to_drained");
}

#[test]
fn no_failure_passes_only_what_so_many_rollouts_can_tell() {
    let strict = check("p(fail) < 1e-4", 0.0, 100, |_| summary(0, 0));
    assert_eq!(strict.thresholds[0].verdict, Verdict::Undecided);
    let needed = strict.thresholds[0].runs_needed.expect("no failure yet");
    assert!(needed > 30_000, "{needed}");
    let wide = check("p(fail) < 30 %", 0.0, 100, |_| summary(0, 0));
    assert_eq!((wide.thresholds[0].verdict, wide.runs), (Verdict::Pass, 20));
    // Accepting that a kind of rollout below one in four may be missed.
    let rare = check("p(fail) < 1e-4", 0.25, 100, |_| summary(0, 0));
    assert_eq!(rare.thresholds[0].verdict, Verdict::PassButForRare);
    // But not if anything failed.
    let one = check("p(fail) < 1e-4", 0.25, 100, |seed| {
        summary(3 * u64::from(seed % 3 == 0), 0)
    });
    assert_eq!(one.thresholds[0].verdict, Verdict::Undecided);
}

#[test]
fn rollouts_and_requests_have_thresholds_of_their_own() {
    let found = check(
        "dead < 10s; p(late) < 1%; p(any-failure) < 99 %",
        0.0,
        400,
        |seed| summary(seed % 2, if seed % 40 == 0 { 11 } else { 9 }),
    );
    let verdicts: Vec<Verdict> = found.thresholds.iter().map(|one| one.verdict).collect();
    assert_eq!(verdicts[0], Verdict::Pass, "{found:?}");
    assert_eq!(verdicts[2], Verdict::Pass, "{found:?}");
    assert_eq!(found.thresholds[0].estimate.of, found.runs);
}

/// Wrong verdicts are rarer than one in twenty, although the check stops when it likes.
#[test]
fn verdicts_near_the_limit_are_seldom_wrong() {
    let (mut wrong, mut decided) = (0, 0);
    for experiment in 0..100_u64 {
        // Three rollouts in ten fail between 1 and 59 %: 9 % of requests; the limits are 6 % and 12 %.
        let run = |seed: u64| {
            let mut rng = SplitMix64::new(seed_of(experiment, seed));
            summary(
                if rng.below(10) < 3 {
                    100 * (1 + rng.below(59))
                } else {
                    0
                },
                0,
            )
        };
        let found = check("p(fail) < 6 %; p(fail) < 12 %", 0.0, 700, run);
        let verdicts: Vec<Verdict> = found.thresholds.iter().map(|one| one.verdict).collect();
        wrong += u64::from(verdicts[0] == Verdict::Pass || verdicts[1] == Verdict::Broken);
        decided += u64::from(
            verdicts
                .iter()
                .any(|verdict| *verdict != Verdict::Undecided),
        );
    }
    assert!(wrong <= 5, "{wrong} of 100");
    assert!(decided >= 30, "{decided} of 100: it decides nothing");
}

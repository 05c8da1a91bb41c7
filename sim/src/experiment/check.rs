//! `sim check`: thresholds on a scenario, each passed, broken or undecided.
//!
//! Passed: the whole 95 % interval lies below the limit. Broken: it lies above. Else undecided. With k thresholds each gets its part
//! of the error, so that all verdicts together are wrong in one check of twenty at most. A first look at a few rollouts finds what is
//! plainly broken; then looks at 20, 40, 80, ... rollouts go on until every threshold is decided or the budget is spent.

use std::time::Duration;

use ipvs_model::time::Span;
use serde::Serialize;

use super::estimate::ALPHA;
use super::rows::{Plan, Rows, RowsError, Stopped, run_rows};
use super::stats::{Interval, binomial, looks, ratio::RatioSums};
use super::whatif::{CauseCount, Estimate};
use super::{RunError, clock::Stopwatch};
use crate::outcome::{Cause, Outcome, RunSummary};
use crate::scenario::{Scenario, nearest, parse_span, span_text};

/// What a threshold is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request that got a port fails, for any cause or one.
    Fail(Option<Cause>),
    /// A request that got a port is answered late.
    Late,
    /// A request finds no free port.
    NoPort,
    /// A rollout fails at least one request.
    AnyFailure,
    /// A rollout leaves the service dead for at least so long.
    Dead(Span),
}

/// A probability that must stay below a limit.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    /// As it was written.
    pub text: String,
    /// The event.
    pub event: Event,
    /// The limit of its probability.
    pub limit: f64,
}

/// `dead < 10s` without a probability of its own means: in less than one rollout of ten.
pub const DEAD_SHARE: f64 = 0.10;

const GRAMMAR: &str = "write p(EVENT) < SHARE, with EVENT one of fail, fail:CAUSE, late, no-port, any-failure, dead >= TIME and SHARE \
                       such as 1e-4 or 1 %; or dead < TIME (in less than 10 % of rollouts)";

impl Threshold {
    /// Reads a threshold: `p(fail) < 1e-4`, `p(late) < 1 %`, `p(fail:endpoint_lag) < 0.1%`, `p(dead >= 30s) < 5%`, `dead < 10s`.
    ///
    /// # Errors
    /// What is wrong with it, and what to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fail = |what: String| format!("`{text}`: {what}; {GRAMMAR}");
        let (left, right) = text.rsplit_once('<').ok_or_else(|| {
            fail("there is no `<`: a threshold says what must stay below".to_owned())
        })?;
        let (left, right) = (left.trim(), right.trim().trim_start_matches('=').trim());
        if left == "dead" {
            let span = parse_span(right)
                .ok_or_else(|| fail(format!("`{right}` is no time such as 10s")))?;
            return Ok(Self {
                text: text.trim().to_owned(),
                event: Event::Dead(span),
                limit: DEAD_SHARE,
            });
        }
        let inside = left
            .strip_prefix("p(")
            .and_then(|rest| rest.strip_suffix(')'));
        let inside = inside
            .ok_or_else(|| fail(format!("`{left}` is not p(...)")))?
            .trim();
        let limit = share(right)
            .ok_or_else(|| fail(format!("`{right}` is no share above 0 and up to 100 %")))?;
        let event = event(inside).map_err(fail)?;
        Ok(Self {
            text: text.trim().to_owned(),
            event,
            limit,
        })
    }
}

fn share(text: &str) -> Option<f64> {
    let (number, scale) = text
        .strip_suffix('%')
        .map_or((text, 1.0), |number| (number, 100.0));
    let value = number.trim().parse::<f64>().ok()? / scale;
    (value > 0.0 && value <= 1.0).then_some(value)
}

fn event(text: &str) -> Result<Event, String> {
    if let Some(key) = text.strip_prefix("fail:") {
        let key = key.trim().replace('-', "_");
        let found = Cause::ALL.iter().find(|cause| cause.key() == key);
        return found.map(|cause| Event::Fail(Some(*cause))).ok_or_else(|| {
            let near = nearest(&key, Cause::ALL.iter().map(|cause| cause.key()));
            let near = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
            format!("there is no cause `{key}`{near}")
        });
    }
    if let Some(rest) = text.strip_prefix("dead") {
        let time = rest.trim().trim_start_matches(['>', '=']).trim();
        let span =
            parse_span(time).ok_or_else(|| format!("`{text}` names no time: p(dead >= 10s)"))?;
        return Ok(Event::Dead(span));
    }
    match text.replace('_', "-").as_str() {
        "fail" => Ok(Event::Fail(None)),
        "late" => Ok(Event::Late),
        "no-port" => Ok(Event::NoPort),
        "any-failure" => Ok(Event::AnyFailure),
        other => {
            let near = nearest(other, ["fail", "late", "no-port", "any-failure", "dead"]);
            let near = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
            Err(format!("there is no event `{text}`{near}"))
        }
    }
}

impl Event {
    /// In words.
    pub fn describe(self) -> String {
        match self {
            Self::Fail(None) => "a request fails".to_owned(),
            Self::Fail(Some(cause)) => format!("a request fails because {}", cause.describe()),
            Self::Late => "a request is answered late".to_owned(),
            Self::NoPort => "a request finds no free port".to_owned(),
            Self::AnyFailure => "a rollout fails a request".to_owned(),
            Self::Dead(span) => format!(
                "a rollout leaves the service dead for {} or longer",
                span_text(span)
            ),
        }
    }

    /// How often it happened in a run, out of how many.
    fn part(self, run: &RunSummary) -> (u64, u64) {
        match self {
            Self::Fail(None) => (run.failed(), run.decided()),
            Self::Fail(Some(cause)) => (run.causes[cause.index()], run.decided()),
            Self::Late => (run.delayed_total(), run.decided()),
            Self::NoPort => (run.count(Outcome::PortsExhausted), run.ended()),
            Self::AnyFailure => (u64::from(run.failed() > 0), 1),
            Self::Dead(span) => (u64::from(run.longest_dead_ns >= span.0.max(1)), 1),
        }
    }

    /// Whether its unit is the rollout itself.
    const fn of_rollouts(self) -> bool {
        matches!(self, Self::AnyFailure | Self::Dead(_))
    }
}

/// What became of a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The probability is below the limit.
    Pass,
    /// None of the rollouts did it, and a kind of rollout that would is rarer than was asked to be accepted.
    PassButForRare,
    /// The probability is above the limit.
    Broken,
    /// The interval holds the limit.
    Undecided,
}

/// A threshold with what was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judged {
    /// The threshold as written.
    pub threshold: String,
    /// The event in words.
    pub event: String,
    /// The limit.
    pub limit: f64,
    /// The estimate and its interval.
    pub estimate: Estimate,
    /// The verdict.
    pub verdict: Verdict,
    /// About how many rollouts would decide it, if none of them did it; none if it did happen, or is decided.
    pub runs_needed: Option<u64>,
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// Version of this form.
    pub format: u32,
    /// The thresholds, in the order given.
    pub thresholds: Vec<Judged>,
    /// Causes of failure, the most frequent first.
    pub causes: Vec<CauseCount>,
    /// Rollouts.
    pub runs: u64,
    /// What ended them.
    pub stopped: Stopped,
    /// Root of all seeds, hexadecimal.
    pub root_seed: String,
}

/// Rollouts of the first look, which finds what is plainly broken.
pub const PILOT: u64 = 5;
/// The part of the error that the first look may spend.
const PILOT_PART: f64 = 0.25;

/// The part of `alpha` that a look after `runs` rollouts may use.
fn alpha_at(runs: u64, alpha: f64) -> f64 {
    if runs <= PILOT {
        alpha * PILOT_PART
    } else {
        looks::alpha_at(runs, alpha * (1.0 - PILOT_PART))
    }
}

/// Judges one threshold after some rollouts. `alpha` is its part of the error, over all looks; `rare` is the greatest probability of
/// a kind of rollout that may stay unseen, 0 for none.
pub fn judge(threshold: &Threshold, runs: &[&RunSummary], alpha: f64, rare: f64) -> Judged {
    let count = runs.len() as u64;
    let alpha = alpha_at(count, alpha);
    let mut sums = RatioSums::default();
    for run in runs {
        let (part, of) = threshold.event.part(run);
        sums.add(part, of);
    }
    let interval = if threshold.event.of_rollouts() {
        binomial::clopper_pearson(sums.y, sums.x, alpha)
    } else {
        sums.interval(alpha)
    };
    let unseen = binomial::unseen(count, alpha);
    let limit = threshold.limit;
    let verdict = verdict(interval, &sums, limit, (unseen, rare));
    let undecided = verdict == Verdict::Undecided && sums.y == 0;
    Judged {
        threshold: threshold.text.clone(),
        event: threshold.event.describe(),
        limit,
        estimate: Estimate {
            count: sums.y,
            of: sums.x,
            share: sums.estimate(),
            low: interval.low,
            high: interval.high,
        },
        verdict,
        runs_needed: undecided.then(|| needed(limit, alpha)),
    }
}

fn verdict(
    interval: Interval,
    sums: &RatioSums,
    limit: f64,
    (unseen, rare): (f64, f64),
) -> Verdict {
    if interval.high < limit {
        Verdict::Pass
    } else if interval.low >= limit {
        Verdict::Broken
    } else if sums.y == 0 && sums.x > 0 && unseen <= rare {
        Verdict::PassButForRare
    } else {
        Verdict::Undecided
    }
}

/// The looks at which a threshold passes if nothing ever happens: the first whose bound is below the limit.
fn needed(limit: f64, alpha: f64) -> u64 {
    let mut runs = looks::FIRST_LOOK;
    while binomial::unseen(runs, alpha_at(runs, alpha)) >= limit && runs < 1 << 40 {
        runs *= 2;
    }
    runs
}

/// Checks a scenario.
///
/// # Errors
/// The first run that fails.
pub fn run(
    scenario: &Scenario,
    thresholds: &[Threshold],
    rare: f64,
    plan: &Plan,
    stopwatch: &dyn Stopwatch,
    simulate: &(dyn Fn(&Scenario, u64) -> Result<RunSummary, RunError> + Sync),
    progress: &mut dyn FnMut(&[Judged], u64, Duration),
) -> Result<Check, RowsError> {
    let alpha = ALPHA / thresholds.len().max(1) as f64;
    let judged = |rows: &[Vec<RunSummary>]| -> Vec<Judged> {
        let runs: Vec<&RunSummary> = rows.iter().flatten().collect();
        thresholds
            .iter()
            .map(|threshold| judge(threshold, &runs, alpha, rare))
            .collect()
    };
    let decided = |all: &[Judged]| all.iter().all(|one| one.verdict != Verdict::Undecided);
    let one = |_: usize, seed: u64| {
        let mut summary = simulate(scenario, seed)?;
        summary.timeline = Vec::new();
        Ok(summary)
    };
    let mut told =
        |rows: &[Vec<RunSummary>], elapsed| progress(&judged(rows), rows.len() as u64, elapsed);
    let broken = |all: &[Judged]| all.iter().any(|one| one.verdict == Verdict::Broken);
    let pilot = Plan {
        exact_runs: Some(plan.exact_runs.unwrap_or(PILOT).min(PILOT)),
        ..*plan
    };
    let mut rows = run_rows(1, &one, &pilot, stopwatch, &mut |_| false, &mut told)?;
    rows.stopped = Stopped::Enough;
    // Undecided ones cannot mend what is broken; who asks for a number of rollouts gets that number.
    let more = plan
        .exact_runs
        .map_or_else(|| !broken(&judged(&rows.rows)), |runs| runs > PILOT);
    if more {
        let mut enough = |rows: &[Vec<RunSummary>]| {
            let all = judged(rows);
            decided(&all) || broken(&all)
        };
        rows = run_rows(1, &one, plan, stopwatch, &mut enough, &mut told)?;
    }
    Ok(finish(&rows, judged(&rows.rows), plan.root_seed))
}

fn finish(rows: &Rows<RunSummary>, thresholds: Vec<Judged>, root_seed: u64) -> Check {
    let mut causes = [0_u64; Cause::COUNT];
    for run in rows.rows.iter().flatten() {
        crate::outcome::add_each(&mut causes, &run.causes);
    }
    Check {
        format: 1,
        thresholds,
        causes: super::whatif::by_count(&causes),
        runs: rows.runs(),
        stopped: rows.stopped,
        root_seed: format!("{root_seed:#x}"),
    }
}

#[cfg(test)]
mod tests;

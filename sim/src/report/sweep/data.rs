//! The data for machines.

use serde_json::{Map, Value as Json, json};

use super::Report;
use crate::experiment::estimate::{Probability, Settled};
use crate::experiment::rare::PARTS;
use crate::experiment::seeds;
use crate::experiment::stats::Interval;
use crate::experiment::sweep::{PointResult, Stopped};
use crate::outcome::{Cause, Outcome};

/// Version of the JSON. Raised when anything in it changes, additions included.
const FORMAT: u32 = 2;

/// Significant digits of the ends of intervals: what they depend on (logarithms, the beta function) agrees between
/// machines to more than that.
const DIGITS: usize = 6;

/// An end of an interval, to [`DIGITS`].
fn rounded(value: f64) -> f64 {
    format!("{value:.*e}", DIGITS - 1).parse().unwrap_or(value)
}

/// The sweep as JSON. Probabilities are counts with an interval; seeds are strings, because JSON readers keep 53 bits.
pub fn json(report: &Report<'_>) -> String {
    let (base, sweep) = (report.base, report.sweep);
    let stopped = match sweep.stopped {
        Stopped::Precision => json!({ "by": "precision" }),
        Stopped::Budget => json!({ "by": "budget" }),
        Stopped::Asked { enough } => {
            json!({ "by": "runs", "precision_reached_after_runs": enough })
        }
    };
    let axes: Vec<Json> = report
        .axes
        .iter()
        .map(|axis| json!({ "path": axis.path, "values": axis.values }))
        .collect();
    let points: Vec<Json> = sweep
        .points
        .iter()
        .map(|result| point(report, result))
        .collect();
    let differences: Vec<Json> = sweep
        .comparisons
        .iter()
        .map(|comparison| {
            let failure = &comparison.failure;
            json!({
                "point": comparison.point,
                "against": 0,
                "request_fails": rounded(failure.estimate),
                "interval": [rounded(failure.low), rounded(failure.high)],
                "runs": failure.runs,
                "runs_that_differ": failure.differing,
                "verdict": failure.verdict,
            })
        })
        .collect();
    let whole = json!({
        "format": FORMAT,
        "command": "sweep",
        "version": env!("CARGO_PKG_VERSION"),
        "scenario": { "name": base.name, "file": base.file, "set": base.set, "in_words": base.words },
        "axes": axes,
        "root_seed": format!("{:#018x}", sweep.root_seed),
        "runs_per_point": sweep.runs,
        "confidence": "95 % for each interval, rollouts as the unit, group-sequential looks",
        "precision": sweep.precision,
        "stopped": stopped,
        "points": points,
        "differences": differences,
    });
    format!("{whole:#}\n")
}

fn point(report: &Report<'_>, result: &PointResult) -> Json {
    let (tally, estimates) = (&result.tally, &result.estimates);
    let settings: Map<String, Json> = result
        .point
        .settings
        .iter()
        .map(|s| (s.path.clone(), s.value.clone().into()))
        .collect();
    let worst = tally.worst.map(|worst| {
        let seed = format!(
            "{:#018x}",
            seeds::seed_of(report.sweep.root_seed, worst.run)
        );
        json!({ "run": worst.run, "seed": seed, "failed": worst.failed })
    });
    let dead: Map<String, Json> = tally
        .dead_seconds
        .iter()
        .map(|(seconds, runs)| (seconds.to_string(), (*runs).into()))
        .collect();
    json!({
        "settings": settings,
        "runs": tally.runs(),
        "settled": match result.settled {
            Settled::Precise => "precise",
            Settled::Alike => "all_runs_alike",
            Settled::No => "no",
        },
        "request_fails": probability(&estimates.failure),
        "request_fails_conditioned": estimates.conditioned.as_ref().map(|conditioned| {
            let Interval { low, high } = conditioned.interval;
            json!({
                "expected": rounded(conditioned.count as f64 / PARTS as f64),
                "of": conditioned.of / PARTS,
                "interval": [rounded(low), rounded(high)],
            })
        }),
        "rollout_has_failure": probability(&estimates.any_failure),
        "rollout_dead_over_10_s": probability(&estimates.dead),
        "request_finds_no_port": probability(&estimates.exhausted),
        "request_connects_late": probability(&estimates.delayed),
        "unseen_kind_of_rollout_at_most": rounded(estimates.unseen),
        "design_effect": estimates.design_effect.map(rounded),
        "requests": tally.requests,
        "outcomes": counts(Outcome::ALL.map(Outcome::key), &tally.outcomes),
        "causes": counts(Cause::ALL.map(Cause::key), &tally.causes),
        "late_causes": counts(Cause::ALL.map(Cause::key), &tally.delayed_causes),
        "rollouts_by_longest_dead_seconds": dead,
        "connections": tally.connections,
        "packets": tally.packets,
        "worst": worst,
    })
}

fn probability(probability: &Probability) -> Json {
    let Interval { low, high } = probability.interval;
    json!({
        "count": probability.count,
        "of": probability.of,
        "interval": [rounded(low), rounded(high)],
    })
}

fn counts<const N: usize>(keys: [&str; N], counts: &[u64; N]) -> Json {
    keys.into_iter()
        .zip(counts)
        .map(|(key, count)| (key.to_owned(), (*count).into()))
        .collect::<Map<_, _>>()
        .into()
}

/// The sweep as CSV: a line for each point, counts with intervals.
///
/// # Errors
/// None in practice: the writer is memory.
pub fn csv(report: &Report<'_>) -> Result<Vec<u8>, csv::Error> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut head: Vec<String> = report.axes.iter().map(|axis| axis.path.clone()).collect();
    head.extend(["root_seed", "runs"].map(str::to_owned));
    let names = [
        "request_fails",
        "rollout_has_failure",
        "rollout_dead_over_10_s",
        "request_finds_no_port",
        "request_connects_late",
    ];
    for name in names {
        head.extend(["count", "of", "low", "high"].map(|part| format!("{name}_{part}")));
    }
    head.push("requests".to_owned());
    head.extend(Outcome::ALL.map(|outcome| format!("outcome_{}", outcome.key())));
    head.extend(Cause::ALL.map(|cause| format!("cause_{}", cause.key())));
    head.extend(Cause::ALL.map(|cause| format!("late_{}", cause.key())));
    writer.write_record(&head)?;
    for result in &report.sweep.points {
        let (tally, estimates) = (&result.tally, &result.estimates);
        let mut row: Vec<String> = result
            .point
            .settings
            .iter()
            .map(|s| s.value.clone())
            .collect();
        row.push(format!("{:#018x}", report.sweep.root_seed));
        row.push(tally.runs().to_string());
        for p in [
            &estimates.failure,
            &estimates.any_failure,
            &estimates.dead,
            &estimates.exhausted,
            &estimates.delayed,
        ] {
            row.extend([p.count, p.of].map(|count| count.to_string()));
            row.extend([p.interval.low, p.interval.high].map(|end| rounded(end).to_string()));
        }
        row.push(tally.requests.to_string());
        for counts in [&tally.outcomes[..], &tally.causes, &tally.delayed_causes] {
            row.extend(counts.iter().map(u64::to_string));
        }
        writer.write_record(&row)?;
    }
    writer
        .into_inner()
        .map_err(|error| error.into_error().into())
}

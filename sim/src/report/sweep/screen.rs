//! The screen for people.

use std::fmt::Write as _;

use comfy_table::{ContentArrangement, Table, presets};

use super::{Report, Round, compare, end, interval_text, map};
use crate::experiment::estimate::{Probability, Settled};
use crate::experiment::rare::PARTS;
use crate::experiment::seeds;
use crate::experiment::stats::looks::FIRST_LOOK;
use crate::experiment::sweep::{PointResult, Stopped};
use crate::experiment::tally::Tally;
use crate::outcome::{Cause, Outcome};
use crate::report::text::{Look, Tone, count_of, percent, thousands, wrap};

/// Up to so many points get a paragraph each; more get a line of a table each.
const PARAGRAPHS_MAX: usize = 4;
/// So many causes are listed; the rest are summed.
const CAUSES_MAX: usize = 4;

/// The whole screen.
pub fn text(report: &Report<'_>, look: Look) -> String {
    let mut out = head(report);
    if report.sweep.points.len() <= PARAGRAPHS_MAX {
        for result in &report.sweep.points {
            out.push('\n');
            paragraph(&mut out, report, result, look);
        }
        out.push_str(&compare::text(report));
    } else {
        out.push('\n');
        out.push_str(&table(report));
        out.push_str(&map::text(report, look));
        out.push('\n');
        extremes(&mut out, report, look);
    }
    out.push('\n');
    out.push_str(&foot(report));
    out
}

pub(super) fn line(out: &mut String, label: &str, text: &str) {
    for (place, part) in wrap(text, 97).iter().enumerate() {
        let label = if place == 0 { label } else { "" };
        let _ = writeln!(out, "{label:<11}{part}");
    }
}

fn head(report: &Report<'_>) -> String {
    let (base, sweep) = (report.base, report.sweep);
    let mut out = String::new();
    let origin = match &base.file {
        Some(file) => format!("{} ({file})", base.name),
        None => format!(
            "{}, built in: the founding case's rollout (--scenario FILE for yours)",
            base.name
        ),
    };
    line(&mut out, "scenario", &origin);
    line(&mut out, "", &base.words.join(", "));
    let fixed = report.axes.iter().filter(|axis| axis.values.len() == 1);
    let mut settings: Vec<String> = fixed
        .map(|axis| format!("{} {}", axis.path, axis.values[0]))
        .collect();
    settings.extend(base.set.iter().cloned());
    for (_, axis) in report.varied() {
        settings.push(format!("{} {}", axis.path, span_of(&axis.values)));
    }
    if !settings.is_empty() {
        line(&mut out, "settings", &settings.join("; "));
    }
    let points = match sweep.points.len() {
        1 => String::new(),
        count => format!(" at each of {count} points"),
    };
    let runs = match sweep.runs_span() {
        (fewest, most) if fewest < most => {
            format!("{fewest} to {}", count_of(most, "rollout", "rollouts"))
        }
        (_, most) => count_of(most, "rollout", "rollouts"),
    };
    let seed = format!("root seed {:#x}", sweep.root_seed);
    line(
        &mut out,
        "runs",
        &format!("{runs}{points}, {seed}; {}", why_stopped(report)),
    );
    out
}

/// The values of an axis: all of few, the ends of many.
fn span_of(values: &[String]) -> String {
    match values {
        [first, .., last] if values.len() > 6 => {
            format!("{first} ... {last} ({} values)", values.len())
        }
        _ => values.join(", "),
    }
}

fn why_stopped(report: &Report<'_>) -> String {
    let sweep = report.sweep;
    let wanted = format!("±{} %", (sweep.precision * 1e6).round() / 1e4);
    let open = sweep
        .points
        .iter()
        .filter(|point| point.settled == Settled::No);
    match sweep.stopped {
        Stopped::Precision => format!("stopped by precision ({wanted} or better)"),
        Stopped::Asked { enough } => {
            format!("as many as asked ({wanted} was reached after {enough})")
        }
        Stopped::Budget => {
            let widths = open.map(|point| point.estimates.relative_half_width());
            let reached = match widths.collect::<Option<Vec<f64>>>() {
                Some(widths) if !widths.is_empty() => {
                    let widest = widths.into_iter().fold(0.0, f64::max);
                    format!("reached ±{:.0} %", (widest * 100.0).ceil())
                }
                _ => "not all points had failures to estimate from".to_owned(),
            };
            format!("stopped by the budget before precision {wanted} ({reached})")
        }
    }
}

fn paragraph(out: &mut String, report: &Report<'_>, result: &PointResult, look: Look) {
    let name = report.name_of(result);
    if !name.is_empty() {
        let _ = writeln!(out, "{}", look.paint(Tone::Heading, &name));
    }
    let tone = if result.tally.failure.y == 0 {
        Tone::Good
    } else {
        Tone::Bad
    };
    let _ = writeln!(out, "  {}", look.paint(tone, &verdict(result)));
    let estimates = &result.estimates;
    let effect = estimates.design_effect.filter(|effect| *effect >= 1.5);
    let effect = effect.map_or(String::new(), |effect| {
        format!(
            "; {} dependent ones weigh as one",
            thousands(effect.round() as u64)
        )
    });
    let requests = |p: &Probability| {
        format!(
            "{} of {}",
            thousands(p.count),
            count_of(p.of, "request", "requests")
        )
    };
    let rollouts = |p: &Probability| {
        format!(
            "{} of {}",
            thousands(p.count),
            count_of(p.of, "rollout", "rollouts")
        )
    };
    let tally = &result.tally;
    let dead = match tally.longest_dead_seconds() {
        0 => String::new(),
        longest => format!(
            "; median {} s, longest {longest} s",
            tally.median_dead_seconds()
        ),
    };
    let conditioned = estimates.conditioned.as_ref().map(|conditioned| {
        let expected = conditioned.count as f64 / PARTS as f64;
        let words = format!("{expected:.3e} expected, from the chances of each draw");
        ("the same, conditioned", conditioned, words)
    });
    let rows = [
        (
            "a request fails",
            &estimates.failure,
            requests(&estimates.failure) + &effect,
        ),
        (
            "any failure in a rollout",
            &estimates.any_failure,
            rollouts(&estimates.any_failure),
        ),
        (
            "dead for over 10 s",
            &estimates.dead,
            rollouts(&estimates.dead) + &dead,
        ),
        (
            "apart: no free port",
            &estimates.exhausted,
            requests(&estimates.exhausted),
        ),
        (
            "apart: connects late",
            &estimates.delayed,
            requests(&estimates.delayed),
        ),
    ];
    let [failure, others @ ..] = rows;
    let rows = std::iter::once(failure).chain(conditioned).chain(others);
    for (label, probability, counts) in rows {
        let share = percent(probability.count, probability.of);
        let range = interval_text(&probability.interval);
        let _ = writeln!(out, "    {label:<25} {share:>9}  {range:<23} {counts}");
    }
    reasons(out, "why failed", &tally.causes);
    reasons(out, "why late", &tally.delayed_causes);
    seen_as(out, tally);
    if let Some(worst) = tally.worst {
        let seed = seeds::seed_of(report.sweep.root_seed, worst.run);
        let _ = writeln!(
            out,
            "    worst run  seed {seed:#018x}: {} failed",
            count_of(worst.failed, "request", "requests")
        );
    }
}

/// In plain words what a rollout does to the clients.
fn verdict(result: &PointResult) -> String {
    let (tally, estimates) = (&result.tally, &result.estimates);
    let failure = &estimates.failure;
    let mut said = match (failure.count, failure.of) {
        (_, 0) if tally.requests == 0 => return "No request was counted.".to_owned(),
        (_, 0) => "No request got a port and ended".to_owned(),
        (0, _) => format!(
            "No request failed in {}; at most {} of rollouts can be of another kind",
            count_of(tally.runs(), "rollout", "rollouts"),
            end(estimates.unseen, Round::Up)
        ),
        (failed, of) => {
            let mut said = format!("In this rollout {} of requests fail", percent(failed, of));
            let dead = tally.median_dead_seconds();
            if tally.dead_runs * 2 > tally.runs() {
                let _ = write!(said, "; the service is dead for {dead} s");
            } else if tally.failing_runs() < tally.runs() {
                let share = percent(tally.failing_runs(), tally.runs());
                let _ = write!(said, ", all of them in {share} of rollouts");
            }
            said
        }
    };
    if estimates.exhausted.count > 0 {
        let share = percent(estimates.exhausted.count, estimates.exhausted.of);
        let _ = write!(said, "; {share} of requests find no free port");
    }
    if estimates.delayed.count > 0 {
        let share = percent(estimates.delayed.count, estimates.delayed.of);
        let _ = write!(said, "; {share} connect late");
    }
    said + "."
}

/// Causes by count, the most frequent first.
fn by_count(counts: &[u64; Cause::COUNT]) -> Vec<(Cause, u64)> {
    let mut all: Vec<(Cause, u64)> = Cause::ALL.into_iter().zip(*counts).collect();
    all.retain(|(_, count)| *count > 0);
    all.sort_by_key(|(cause, count)| (std::cmp::Reverse(*count), cause.index()));
    all
}

fn reasons(out: &mut String, label: &str, counts: &[u64; Cause::COUNT]) {
    let all = by_count(counts);
    let total: u64 = counts.iter().sum();
    let mut row = |place: usize, count: u64, what: &str| {
        let label = if place == 0 { label } else { "" };
        let (share, count) = (percent(count, total), thousands(count));
        let _ = writeln!(out, "    {label:<10} {share:>8} {count:>12}  {what}");
    };
    for (place, (cause, count)) in all.iter().take(CAUSES_MAX).enumerate() {
        row(place, *count, cause.describe());
    }
    if let Some(rest) = all.get(CAUSES_MAX..).filter(|rest| !rest.is_empty()) {
        row(
            CAUSES_MAX,
            rest.iter().map(|(_, count)| count).sum(),
            "other causes",
        );
    }
}

/// How clients saw the failures, the most frequent first, and how many requests the run's end cut off.
fn seen_as(out: &mut String, tally: &Tally) {
    let mut seen: Vec<(Outcome, u64)> = Outcome::ALL.into_iter().zip(tally.outcomes).collect();
    seen.retain(|(outcome, count)| outcome.is_failure() && *count > 0);
    seen.sort_by_key(|(outcome, count)| (std::cmp::Reverse(*count), outcome.index()));
    let open = tally.outcomes[Outcome::Unfinished.index()];
    seen.extend((open > 0).then_some((Outcome::Unfinished, open)));
    let words =
        |(outcome, count): &(Outcome, u64)| format!("{} {}", thousands(*count), outcome.describe());
    let parts: Vec<String> = seen.iter().map(words).collect();
    if !parts.is_empty() {
        let _ = writeln!(out, "    seen as    {}", parts.join("; "));
    }
}

/// A line for every point.
fn table(report: &Report<'_>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .force_no_tty()
        .set_content_arrangement(ContentArrangement::Disabled);
    let mut head: Vec<String> = report.varied().map(|(_, axis)| axis.path.clone()).collect();
    let names = [
        "a request fails",
        "95 %",
        "any failure",
        "dead > 10 s",
        "no port",
        "late",
    ];
    head.extend(names.map(str::to_owned));
    head.push("main cause".to_owned());
    table.set_header(head);
    for result in &report.sweep.points {
        let mut row: Vec<String> = report
            .varied()
            .map(|(place, _)| result.point.settings[place].value.clone())
            .collect();
        let estimates = &result.estimates;
        let share = |p: &Probability| percent(p.count, p.of);
        row.push(share(&estimates.failure));
        row.push(interval_text(&estimates.failure.interval));
        for probability in [
            &estimates.any_failure,
            &estimates.dead,
            &estimates.exhausted,
            &estimates.delayed,
        ] {
            row.push(share(probability));
        }
        row.push(
            by_count(&result.tally.causes)
                .first()
                .map_or(String::new(), |(cause, count)| {
                    format!(
                        "{} {}",
                        percent(*count, result.tally.failure.y),
                        cause.key()
                    )
                }),
        );
        table.add_row(row);
    }
    let text = table.to_string();
    text.lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

/// The worst and the best point of many, in words.
fn extremes(out: &mut String, report: &Report<'_>, look: Look) {
    let share = |result: &&PointResult| result.estimates.failure.share().unwrap_or(0.0);
    let points = &report.sweep.points;
    let worst = points
        .iter()
        .rev()
        .max_by(|a, b| share(a).total_cmp(&share(b)));
    let best = points.iter().min_by(|a, b| share(a).total_cmp(&share(b)));
    for (label, result) in [("worst", worst), ("best", best)] {
        let Some(result) = result else { continue };
        let name = look.paint(Tone::Heading, &report.name_of(result));
        line(out, label, &format!("{name}: {}", verdict(result)));
    }
}

fn foot(report: &Report<'_>) -> String {
    let sweep = report.sweep;
    let mut out = String::new();
    let second = FIRST_LOOK * 2;
    line(
        &mut out,
        "intervals",
        &format!(
            "95 % each, with rollouts as the unit (requests of one rollout fail together), valid although the sweep \
             chose when to stop each point: it looks at {FIRST_LOOK}, {second}, {}, ... runs and splits the error between the looks.",
            second * 2
        ),
    );
    if sweep.points.len() > PARAGRAPHS_MAX {
        let text = format!(
            "Each holds alone: of {} such intervals about one in twenty may miss.",
            sweep.points.len()
        );
        line(&mut out, "", &text);
    }
    let fewest = sweep.points.iter().min_by_key(|result| result.tally.runs());
    if let Some(point) = fewest {
        let unseen = end(point.estimates.unseen, Round::Up);
        let runs = count_of(point.tally.runs(), "run", "runs");
        let text = format!(
            "A kind of rollout rarer than {unseen} may not be among {runs}, however bad it is."
        );
        line(&mut out, "", &text);
    }
    let narrower = "--precision 5% --budget 5m narrows them";
    let again = match sweep.runs_span() {
        (fewest, most) if fewest < most => format!("--max-runs {most} --budget none"),
        (_, most) => format!("--runs {most}"),
    };
    line(
        &mut out,
        "more",
        &format!(
            "{narrower}; {again} --seed {:#x} repeats these bytes.",
            sweep.root_seed
        ),
    );
    out
}

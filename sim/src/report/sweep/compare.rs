//! The points of a sweep against the first one, in words.

use super::screen::line;
use super::{Report, Round, end};
use crate::experiment::paired::Verdict;
use crate::report::text::count_of;

/// The differences between points, on the same rollouts.
pub fn text(report: &Report<'_>) -> String {
    let (sweep, mut out) = (report.sweep, String::new());
    let Some(first) = sweep.points.first() else {
        return out;
    };
    for (place, comparison) in sweep.comparisons.iter().enumerate() {
        if place == 0 {
            out.push('\n');
        }
        let difference = &comparison.failure;
        let names = format!(
            "{} against {}",
            report.name_of(&sweep.points[comparison.point]),
            report.name_of(first)
        );
        let same = count_of(difference.runs, "rollout", "rollouts");
        let range = format!(
            "[{}, {}]",
            signed(difference.low, Round::Down),
            signed(difference.high, Round::Up)
        );
        let said = match difference.verdict {
            Verdict::Same => format!("no rollout of {same} fails differently, {range} points"),
            verdict => {
                let estimate = signed(difference.estimate, Round::Down);
                let unclear = if verdict == Verdict::Unclear {
                    "; more rollouts are needed to tell"
                } else {
                    ""
                };
                format!(
                    "the share of failed requests by {estimate} points {range}, on the same {same}{unclear}"
                )
            }
        };
        let label = if place == 0 { "difference" } else { "" };
        line(&mut out, label, &format!("{names}: {said}"));
    }
    out
}

/// A difference in percentage points, rounded downwards or upwards.
fn signed(value: f64, round: Round) -> String {
    if value < 0.0 {
        let away = match round {
            Round::Down => Round::Up,
            Round::Up => Round::Down,
        };
        with_sign('-', &end(-value, away))
    } else {
        with_sign('+', &end(value, round))
    }
}

fn with_sign(sign: char, percent: &str) -> String {
    let number = percent.trim_end_matches(" %");
    if number == "0" {
        number.to_owned()
    } else {
        format!("{sign}{number}")
    }
}

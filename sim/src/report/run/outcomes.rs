//! All counts of a run in one place: how requests ended, and why not well. Late and out of ports stand apart from failed.

use std::collections::BTreeMap;

use super::heading;
use crate::engine::trace::TroubledRequest;
use crate::outcome::{Cause, DELAYED_AFTER, Outcome, RunSummary};
use crate::report::text::{Align, Look, columns, length, percent, thousands};

/// Rules named under a cause.
const RULES_MAX: usize = 3;

/// The tables; empty if no request was counted.
pub fn text(look: Look, summary: &RunSummary, troubled: &[TroubledRequest]) -> String {
    if summary.requests == 0 {
        return String::new();
    }
    let mut out = heading(
        look,
        "Outcomes",
        &format!("{} requests", thousands(summary.requests)),
    );
    out.push_str(&outcomes(summary));
    let failed = |t: &&TroubledRequest| t.outcome.is_failure();
    let late = |t: &&TroubledRequest| t.outcome == Outcome::Answered;
    let rules_failed = rules(troubled.iter().filter(failed));
    let rules_late = rules(troubled.iter().filter(late));
    out.push_str(&causes(
        look,
        "Causes of failure",
        &summary.causes,
        &rules_failed,
    ));
    out.push_str(&causes(
        look,
        "Causes of late connects",
        &summary.delayed,
        &rules_late,
    ));
    out
}

fn outcomes(summary: &RunSummary) -> String {
    let mut rows = Vec::new();
    for outcome in Outcome::ALL {
        let count = summary.count(outcome);
        if count == 0 && outcome != Outcome::Answered {
            continue;
        }
        let share = percent(count, summary.requests);
        rows.push(vec![thousands(count), share, outcome.describe().to_owned()]);
        let late = summary.delayed_total();
        if outcome == Outcome::Answered && late > 0 {
            let words = format!(
                "  of these late: connected after more than {}",
                length(DELAYED_AFTER)
            );
            rows.push(vec![
                thousands(late),
                percent(late, summary.requests),
                words,
            ]);
        }
    }
    columns("  ", &[Align::Right, Align::Right, Align::Left], &rows)
}

/// Rules that decided on first SYNs, with how often, by cause.
type Rules = BTreeMap<Cause, BTreeMap<&'static str, u64>>;

fn rules<'a>(troubled: impl Iterator<Item = &'a TroubledRequest>) -> Rules {
    let mut rules = Rules::new();
    for request in troubled.filter(|request| !request.rule.is_empty()) {
        *rules
            .entry(request.cause)
            .or_default()
            .entry(request.rule)
            .or_default() += 1;
    }
    rules
}

fn causes(look: Look, title: &str, counts: &[u64; Cause::COUNT], rules: &Rules) -> String {
    let total = counts.iter().sum::<u64>();
    if total == 0 {
        return String::new();
    }
    let mut causes = Cause::ALL.to_vec();
    causes.retain(|cause| counts[cause.index()] > 0);
    causes.sort_by_key(|cause| std::cmp::Reverse(counts[cause.index()]));
    let mut rows = Vec::new();
    for cause in causes {
        let count = counts[cause.index()];
        rows.push(vec![
            thousands(count),
            percent(count, total),
            cause.describe().to_owned(),
        ]);
        let Some(by_rule) = rules.get(&cause) else {
            continue;
        };
        let mut by_rule = by_rule.iter().collect::<Vec<_>>();
        by_rule.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        // The counts are of the kept requests, which may be fewer than all: say only which came most.
        let names = by_rule
            .iter()
            .take(RULES_MAX)
            .map(|(rule, _)| **rule)
            .collect::<Vec<_>>();
        let words = format!("  the node's rule: {}", names.join("; or: "));
        rows.push(vec![String::new(), String::new(), words]);
    }
    let lines = columns("  ", &[Align::Right, Align::Right, Align::Left], &rows);
    format!("\n{}{lines}", heading(look, title, ""))
}

//! The same rollout on each kernel that a release may stand for.

use serde_json::{Value, json};

use super::heading;
use crate::outcome::RunSummary;
use crate::report::text::{Align, Look, columns, percent, seconds, thousands};

/// The rollout with one kernel decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PossibleRun {
    /// The field that is decided, such as `node.kernel`.
    pub path: String,
    /// For what, such as `5.4.0-1051-gke as 5.4.163`.
    pub kernel: String,
    /// What became of the requests.
    pub summary: RunSummary,
}

/// A line for each; empty if the releases leave nothing open.
pub fn text(look: Look, runs: &[PossibleRun]) -> String {
    if runs.is_empty() {
        return String::new();
    }
    let mut rows = Vec::new();
    for run in runs {
        let summary = &run.summary;
        rows.push(vec![
            run.path.clone(),
            run.kernel.clone(),
            format!("{} failed", percent(summary.failed(), summary.decided())),
            format!("dead for {} s", seconds(summary.longest_dead_ns, 0)),
            format!("{} late", thousands(summary.delayed_total())),
        ]);
    }
    let remark =
        "the release does not tell which it is; the rest of this report is for the first of each";
    let aligns = [
        Align::Left,
        Align::Left,
        Align::Right,
        Align::Right,
        Align::Right,
    ];
    format!(
        "{}{}",
        heading(look, "Possible kernels", remark),
        columns("  ", &aligns, &rows)
    )
}

/// The same for machines.
pub fn json(runs: &[PossibleRun]) -> Value {
    let one = |run: &PossibleRun| {
        json!({
            "path": run.path,
            "kernel": run.kernel,
            "requests": run.summary.requests,
            "decided": run.summary.decided(),
            "failed": run.summary.failed(),
            "late": run.summary.delayed_total(),
            "longest_dead_ns": run.summary.longest_dead_ns,
        })
    };
    runs.iter().map(one).collect()
}

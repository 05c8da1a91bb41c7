//! What `sim run` shows of one rollout: first the verdict in words, then the timeline in which a dead service is
//! visible, then real servers, outcomes, examples, and tables if they were asked for.
//!
//! Pure functions of what a run left behind. Leaves out: why one request failed in all its steps; that is for
//! `explain`.

mod examples;
mod header;
mod headline;
mod machine;
mod outcomes;
mod pictures;
mod possible;
mod servers;
mod tables;
mod timeline;

use ipvs_model::time::Span;

use super::text::{Align, Look, Tone, columns, thousands};
use crate::engine::trace::RunTrace;
use crate::outcome::{Cause, Outcome, RunSummary};

pub use headline::recommended_flags;
pub use machine::{FORMAT, attempts_csv, json, timeline_csv};
pub use pictures::pictures;
pub use possible::PossibleRun;

/// What was run: the words around the results.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The scenario's name.
    pub name: String,
    /// The file it came from; `None` for the built-in founding case.
    pub file: Option<String>,
    /// What is worth knowing of it, as pairs of a short label and words.
    pub facts: Vec<(String, String)>,
    /// The seed.
    pub seed: u64,
    /// Simulated time.
    pub duration: Span,
    /// Requests that began before this are not in the counts.
    pub warmup: Span,
    /// Whether IPVS balances; conntrack alone does otherwise.
    pub ipvs: bool,
    /// The command that repeats this run: `sim run FILE --seed 0x1 --set ...`.
    pub command: String,
    /// The same rollout on each kernel that an open release may stand for.
    pub possible: Vec<PossibleRun>,
}

/// How to show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// What the reader's terminal can show.
    pub look: Look,
    /// Seconds in a line of the timeline; `None` for the finest that stays on a screen.
    pub bucket_s: Option<u64>,
    /// Examples of requests that did not go well.
    pub failures: usize,
    /// Lines of tables must contain this.
    pub matching: Option<String>,
}

/// The whole report for people.
pub fn text(header: &Header, view: &View, summary: &RunSummary, trace: &RunTrace) -> String {
    let parts = [
        headline::text(header, view.look, summary),
        possible::text(view.look, &header.possible),
        setup(header, view.look),
        timeline::text(header, view, summary, &trace.events),
        servers::text(header, view.look, trace),
        outcomes::text(view.look, summary, &trace.troubled),
        examples::text(view, summary, &trace.troubled),
        tables::text(header, view, &trace.tables),
        more(view, summary, trace),
        explained(header, view.look, summary, trace),
    ];
    let parts = parts.into_iter().filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("\n")
}

/// A heading on a line of its own, with a remark that matters less.
fn heading(look: Look, title: &str, remark: &str) -> String {
    let title = look.paint(Tone::Heading, title);
    if remark.is_empty() {
        return format!("{title}\n");
    }
    format!("{title}  {}\n", look.paint(Tone::Dim, remark))
}

/// What was simulated, in a few lines.
fn setup(header: &Header, look: Look) -> String {
    let from = match &header.file {
        Some(file) => file.clone(),
        None => "no file given: the founding case, built in".to_owned(),
    };
    let mut rows = vec![vec![
        "scenario".to_owned(),
        format!("{} ({from}), seed {:#x}", header.name, header.seed),
    ]];
    let facts = header.facts.iter();
    rows.extend(facts.map(|(label, words)| vec![label.clone(), words.clone()]));
    rows.push(vec!["command".to_owned(), header.command.clone()]);
    let lines = columns("  ", &[Align::Left, Align::Left], &rows);
    format!("{}{lines}", heading(look, "Simulated", ""))
}

/// Flags that show more of the same run.
fn more(view: &View, summary: &RunSummary, trace: &RunTrace) -> String {
    let mut rows = Vec::new();
    let mut row = |flags: &str, words: &str| {
        rows.push(vec![flags.to_owned(), words.to_owned()]);
    };
    let first = trace.troubled.iter().find(|t| t.outcome.is_failure());
    if summary.failed() > view.failures as u64 {
        row("--failures 50", "more failed requests");
    }
    if let (Some(first), true) = (first, trace.tables.is_empty()) {
        // By the client's port: whatever real server its entries name, they are found.
        let at = first.start.as_secs() + 1;
        let flags = format!("--tables-at {at}s --match {}", first.client);
        row(
            &flags,
            "what the node's tables held soon after the first of them began",
        );
    }
    row("--format csv", "the timeline, second by second");
    row("--attempts", "every request, as CSV");
    let lines = columns("  ", &[Align::Left, Align::Left], &rows);
    let title = heading(view.look, "More: the same command with", "");
    format!("{title}{lines}")
}

/// Causes that are explained.
const EXPLAINED_MAX: usize = 4;

/// The top causes, each with the command that shows the chain of one request.
fn explained(header: &Header, look: Look, summary: &RunSummary, trace: &RunTrace) -> String {
    let no_port = summary.count(Outcome::PortsExhausted);
    let count = |cause: &Cause| match cause {
        Cause::PortsExhausted => no_port,
        _ => summary.causes[cause.index()] + summary.delayed[cause.index()],
    };
    let mut causes = Cause::ALL.to_vec();
    causes.retain(|cause| count(cause) > 0);
    causes.sort_by_key(|cause| std::cmp::Reverse(count(cause)));
    let why = header.command.replacen("sim run", "sim why", 1);
    let mut rows = Vec::new();
    for cause in causes.into_iter().take(EXPLAINED_MAX) {
        let mut of = trace
            .troubled
            .iter()
            .filter(|request| request.cause == cause);
        let all = of.clone().count();
        // One from the middle: the first ones may be of a beginning that passes.
        let command = match of.nth(all / 2) {
            Some(request) => format!("{why} --connection {}", request.number),
            None => format!("{why} --cause {}", cause.key()),
        };
        rows.push(vec![thousands(count(&cause)), cause.describe().to_owned()]);
        rows.push(vec![String::new(), command]);
    }
    if rows.is_empty() {
        return String::new();
    }
    let lines = columns("  ", &[Align::Right, Align::Left], &rows);
    let title = heading(
        look,
        "Why, link by link",
        "from the rollout to the lost packet, and what would have cut it",
    );
    let what_if = header.command.replacen("sim run", "sim whatif", 1);
    // The seed of one run is no root of many.
    let what_if = what_if.replace(&format!(" --seed {:#x}", header.seed), "");
    format!("{title}{lines}\n  what to change, and at which price: {what_if}\n")
}

#[cfg(test)]
mod tests;

//! The report of `sim check`: a line for each threshold, the worst first thing to do; JUnit and annotations for CI.

use std::fmt::Write as _;
use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::sweep::interval_text;
use super::text::{Align, Look, Tone, columns, count_of, percent, thousands, wrap};
use crate::experiment::check::{Check, Judged, Verdict};
use crate::experiment::stats::Interval;

/// A line of a scenario file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
}

/// How to show it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// What the reader's terminal can show.
    pub look: Look,
    /// The share of rollouts that may go unseen.
    pub rare: f64,
    /// The line of the scenario file to point at.
    pub place: Option<Place>,
    /// The scenario and its flags, for commands to recommend.
    pub again: String,
}

const fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass | Verdict::PassButForRare => "pass",
        Verdict::Broken => "FAIL",
        Verdict::Undecided => "undecided",
    }
}

const fn tone(verdict: Verdict) -> Tone {
    match verdict {
        Verdict::Pass | Verdict::PassButForRare => Tone::Good,
        Verdict::Broken => Tone::Bad,
        Verdict::Undecided => Tone::Warn,
    }
}

fn interval(one: &Judged) -> String {
    interval_text(&Interval {
        low: one.estimate.low,
        high: one.estimate.high,
    })
}

fn share(one: &Judged) -> String {
    percent(one.estimate.count, one.estimate.of)
}

/// A threshold in a sentence.
fn sentence(one: &Judged, runs: u64, rare: f64) -> String {
    let found = format!("{} in {} {}", one.event, share(one), interval(one));
    match one.verdict {
        Verdict::Pass => format!("{found}: below the limit"),
        Verdict::PassButForRare => format!(
            "{found}: none of {}; a kind of rollout up to --rare {} % may be missed",
            count_of(runs, "rollout", "rollouts"),
            rare * 100.0
        ),
        Verdict::Broken => format!("{found}: above the limit"),
        Verdict::Undecided => match one.runs_needed {
            Some(needed) => format!(
                "{found}: it was not seen, and {} cannot tell more; about {} rollouts would, or accept rare kinds with --rare",
                count_of(runs, "rollout", "rollouts"),
                thousands(needed)
            ),
            None => format!("{found}: the limit lies inside"),
        },
    }
}

/// The line while it runs.
pub fn so_far(judged: &[Judged], runs: u64, elapsed: Duration) -> String {
    let parts: Vec<String> = judged
        .iter()
        .map(|one| format!("{}: {} {}", one.threshold, share(one), word(one.verdict)))
        .collect();
    format!(
        "{} in {:.1} s; {}",
        count_of(runs, "rollout", "rollouts"),
        elapsed.as_secs_f64(),
        parts.join("; ")
    )
}

/// The whole report.
pub fn text(result: &Check, view: &View) -> String {
    let look = view.look;
    let rows: Vec<Vec<String>> = result
        .thresholds
        .iter()
        .map(|one| {
            vec![
                word(one.verdict).to_owned(),
                one.threshold.clone(),
                share(one),
                interval(one),
            ]
        })
        .collect();
    let lines = columns(
        "",
        &[Align::Left, Align::Left, Align::Right, Align::Left],
        &rows,
    );
    let mut out = String::new();
    for (line, one) in lines.lines().zip(&result.thresholds) {
        let _ = writeln!(out, "{}", look.paint(tone(one.verdict), line));
        for part in wrap(&sentence(one, result.runs, view.rare), 96) {
            let _ = writeln!(out, "           {part}");
        }
    }
    if let Some(cause) = result.causes.first() {
        let all: u64 = result.causes.iter().map(|cause| cause.count).sum();
        let words = ["sim whatif", &view.again].join(" ");
        let _ = writeln!(
            out,
            "\nmost fail because {} ({})",
            cause.what,
            percent(cause.count, all)
        );
        let _ = writeln!(
            out,
            "why        {}",
            ["sim why", &view.again].join(" ").trim_end()
        );
        let _ = writeln!(out, "remedies   {}", words.trim_end());
    }
    let _ = writeln!(
        out,
        "\n{}, root seed {}; 95 % for all thresholds together, with rollouts as the unit",
        count_of(result.runs, "rollout", "rollouts"),
        result.root_seed
    );
    out
}

/// A line for GitHub Actions for each threshold that does not pass.
pub fn annotations(result: &Check, view: &View) -> String {
    let mut out = String::new();
    for one in &result.thresholds {
        let level = match one.verdict {
            Verdict::Broken => "error",
            Verdict::Undecided => "warning",
            Verdict::Pass | Verdict::PassButForRare => continue,
        };
        let at = view.place.as_ref().map_or_else(String::new, |place| {
            format!("file={},line={},", property(&place.file), place.line)
        });
        let message = format!(
            "{} is {}: {}",
            one.threshold,
            state(one.verdict),
            sentence(one, result.runs, view.rare)
        );
        let _ = writeln!(out, "::{level} {at}title=sim check::{}", data(&message));
    }
    out
}

const fn state(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass | Verdict::PassButForRare => "kept",
        Verdict::Broken => "broken",
        Verdict::Undecided => "undecided",
    }
}

/// A message of a workflow command.
fn data(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

/// A property of a workflow command.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

/// The JUnit report: a test case for each threshold. An undecided one is an error, not a failure.
///
/// # Errors
/// If it cannot be written as XML.
pub fn junit(result: &Check, view: &View) -> Result<String, quick_junit::SerializeError> {
    let mut suite = TestSuite::new("sim check");
    for one in &result.thresholds {
        let said = sentence(one, result.runs, view.rare);
        let status = match one.verdict {
            Verdict::Pass | Verdict::PassButForRare => TestCaseStatus::success(),
            Verdict::Broken => non_success(NonSuccessKind::Failure, &said),
            Verdict::Undecided => non_success(NonSuccessKind::Error, &said),
        };
        let mut case = TestCase::new(one.threshold.clone(), status);
        case.set_classname("sim.check");
        if let Some(place) = &view.place {
            case.extra.insert("file".into(), place.file.clone().into());
            case.extra
                .insert("line".into(), place.line.to_string().into());
        }
        case.set_system_out(said);
        suite.add_test_case(case);
    }
    let mut report = Report::new("sim");
    report.add_test_suite(suite);
    report.to_string()
}

fn non_success(kind: NonSuccessKind, said: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::non_success(kind);
    status.set_message(said.to_owned());
    status
}

/// The fields of a scenario that have most to do with a cause, the most telling first.
pub fn fields_of(cause: Option<&str>) -> &'static [&'static str] {
    match cause {
        Some("pinned_to_drained" | "syn_dropped_on_reuse" | "pinned_to_deleted") => &[
            "node.sysctl.net.ipv4.vs.conn_reuse_mode",
            "node.kernel",
            "kube_proxy.version",
            "client.0.ports",
            "client.0.arrivals",
            "node",
        ],
        Some("connection_cut") => &[
            "rollout.deployment.on_sigterm",
            "rollout.deployment.pre_stop",
            "rollout",
        ],
        Some("endpoint_lag") => &[
            "rollout.deployment.pre_stop",
            "kube_proxy.sync_latency",
            "rollout",
        ],
        Some("listen_queue_full") => &["server.backlog", "server"],
        Some("conntrack_full") => &["node.sysctl.net.netfilter.nf_conntrack_max", "node"],
        Some("ports_exhausted" | "nat_ports_exhausted") => {
            &["client.0.ports", "client.0.arrivals", "client"]
        }
        _ => &["rollout", "client", "node"],
    }
}

#[cfg(test)]
mod tests;

//! The report of `sim why` for people: the chain from its roots to the error, each link with its rule, where that comes from, and what
//! would have cut it.

use std::fmt::Write as _;

use super::text::{Look, Tone, percent, seconds, thousands, wrap};
use crate::experiment::whatif::remedies;
use crate::explain::{Chain, Link};
use crate::outcome::{Cause, RunSummary};

/// How to show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// What the reader's terminal can show.
    pub look: Look,
    /// The command that shows the same chain.
    pub command: String,
    /// The node's kernel.
    pub kernel: String,
}

/// Characters on a line.
const WIDTH: usize = 108;
/// Before the words of a link.
const INDENT: usize = 30;

/// The whole report.
pub fn text(chain: &Chain, summary: &RunSummary, view: &View) -> String {
    let look = view.look;
    let mut out = String::new();
    let title = format!("Request {}: {}.", thousands(chain.request), chain.ended);
    let _ = writeln!(out, "{}", look.paint(Tone::Bad, &title));
    if let (Some(why), Some(key)) = (chain.why, chain.cause) {
        let _ = writeln!(out, "Because {why}{}.", how_many(key, summary));
    }
    let arrow = look.pick("→", "->");
    let begun = seconds(chain.start_ns, 3);
    let ended = chain.end_ns.map_or_else(
        || "never ended".to_owned(),
        |end| format!("ended at {} s", seconds(end, 3)),
    );
    let _ = writeln!(
        out,
        "{} {arrow} {}, begun at {begun} s, {ended}\n",
        chain.client, chain.service
    );
    for (place, link) in chain.links.iter().enumerate() {
        one(&mut out, place, link, chain, look);
    }
    cuts(&mut out, chain, view);
    let _ = writeln!(out, "\nagain      {}", view.command);
    let _ = writeln!(
        out,
        "as graph   the same with --format svg --out why.svg, or --format dot"
    );
    out
}

/// Of how many.
fn how_many(key: &str, summary: &RunSummary) -> String {
    let Some(cause) = Cause::ALL.iter().find(|cause| cause.key() == key) else {
        return String::new();
    };
    let (failed, late) = (
        summary.causes[cause.index()],
        summary.delayed[cause.index()],
    );
    if failed > 0 {
        return format!(
            ", as for {} of {} failures of this run ({})",
            thousands(failed),
            thousands(summary.failed()),
            percent(failed, summary.failed())
        );
    }
    if late > 0 {
        return format!(
            ", as for {} of {} late answers of this run",
            thousands(late),
            thousands(summary.delayed_total())
        );
    }
    String::new()
}

fn one(out: &mut String, place: usize, link: &Link, chain: &Chain, look: Look) {
    let last = place + 1 == chain.links.len();
    let at = link
        .at_ns
        .map_or_else(String::new, |at| format!("{} s", seconds(at, 3)));
    let number = format!("[{}]", place + 1);
    let head = format!("{number:>4}  {:<10}  {at:>10}  ", link.place.word());
    let because: Vec<String> = link
        .because
        .iter()
        .map(|reason| (reason + 1).to_string())
        .collect();
    // What follows from the link before it needs no word.
    let plain = link.because.len() == 1 && link.because[0] + 1 == place;
    let mut what = link.what.clone();
    if !because.is_empty() && !plain {
        let _ = write!(what, " {} {}", look.pick("⇐", "<="), because.join(", "));
    }
    let tone = if last { Tone::Bad } else { Tone::Event };
    for (row, line) in wrap(&what, WIDTH - INDENT).iter().enumerate() {
        if row == 0 {
            let _ = writeln!(out, "{}{line}", look.paint(tone, &head));
        } else {
            let _ = writeln!(out, "{:INDENT$}{line}", "");
        }
    }
    let mut dim = |words: &str| {
        for line in wrap(words, WIDTH - INDENT - 2) {
            let _ = writeln!(out, "{:INDENT$}  {}", "", look.paint(Tone::Dim, &line));
        }
    };
    if let (Some(rule), Some(source)) = (&link.rule, &link.source) {
        dim(&format!(
            "rule {rule}: {}, {}; {}",
            source.function, source.file, source.releases
        ));
    } else if let Some(source) = &link.source {
        dim(&format!(
            "{}, {}; {}",
            source.function, source.file, source.releases
        ));
    }
    if !link.cut.is_empty() {
        dim(&format!("cut here by: {}", link.cut.join(", ")));
    }
}

/// What would have cut the chain, with the words of the remedies.
fn cuts(out: &mut String, chain: &Chain, view: &View) {
    let mut ids: Vec<&str> = Vec::new();
    // Nearest to the error first.
    for id in chain.links.iter().rev().flat_map(|link| &link.cut) {
        if !ids.contains(id) {
            ids.push(id);
        }
    }
    if ids.is_empty() {
        return;
    }
    let look = view.look;
    let _ = writeln!(
        out,
        "\n{}",
        look.paint(
            Tone::Heading,
            "What would have cut it, nearest to the error first"
        )
    );
    for id in &ids {
        if let Some(remedy) = remedies::by_id(id) {
            let _ = writeln!(out, "  {id:<26}  {}", remedy.title);
        }
    }
    let known: Vec<&str> = ids
        .into_iter()
        .filter(|id| remedies::by_id(id).is_some())
        .collect();
    let scenario = view.command.strip_prefix("sim why").unwrap_or_default();
    let scenario = scenario.split(" --seed").next().unwrap_or_default();
    let _ = writeln!(
        out,
        "  whether it helps, and at which price: sim whatif{scenario} --only {}",
        known.join(",")
    );
}

//! The words of `sim advise`: what happens if it is rolled out now, why, what to change, and what all that stands on.

use std::fmt::Write as _;

use super::text::{Look, Tone, length, percent, seconds, wrap};
use super::whatif::{self, View};
use crate::advise::{Watched, one_in};
use crate::experiment::whatif::{Estimate, WhatIf};
use crate::fit::Fitted;
use crate::scenario::annotate::Origin;

/// Characters on a line.
const WIDTH: usize = 110;
/// Links of the chain that are told; `sim why` tells all.
const LINKS_MAX: usize = 14;

/// What is told.
#[derive(Debug)]
pub struct Advice<'a> {
    /// The fit, with the rollout laid over it.
    pub fitted: &'a Fitted,
    /// One rollout, watched.
    pub watched: &'a Watched,
    /// Today against remedies.
    pub whatif: &'a WhatIf,
}

/// The verdict in a sentence: "If you roll this out now, 1 in 12 requests from 10.23.31.87 fails for 3 m: connect timed out."
pub fn headline(advice: &Advice<'_>) -> String {
    let Some(window) = advice.watched.window else {
        let runs = advice.whatif.runs;
        let late = advice.whatif.today.late.share.unwrap_or(0.0);
        let late = if late > 0.0 {
            format!(", and {} of them connects late", one_in(late))
        } else {
            String::new()
        };
        let at_most = advice.whatif.today.unseen;
        return format!(
            "If you roll this out now, no request fails in {runs} simulated rollouts{late}; a kind of rollout rarer than {} may not be among them.",
            share_text(at_most)
        );
    };
    let from = match &advice.watched.clients[..] {
        [] => String::new(),
        [one] => format!(" from {}", one.address),
        [first, rest @ ..] if first.share > 0.9 => {
            format!(
                " (from {} above all, of {} clients)",
                first.address,
                rest.len() + 1
            )
        }
        many => format!(" of {} clients", many.len()),
    };
    let share = window.share();
    let fails = if (0.35..0.95).contains(&share) {
        "fail"
    } else {
        "fails"
    };
    let requests = if share >= 0.95 { "request" } else { "requests" };
    let how_often = match share {
        s if s >= 0.95 => "nearly every".to_owned(),
        s => one_in(s),
    };
    let how_long = match window.to_the_end {
        true => format!(
            "from {} after the rollout's start on, for as long as the load lasts",
            length(ipvs_model::time::Span::from_secs(
                window.from_s.saturating_sub(window.rollout_s)
            ))
        ),
        false => format!(
            "for {}, beginning {} after the rollout's start",
            length(window.length()),
            length(ipvs_model::time::Span::from_secs(
                window.from_s.saturating_sub(window.rollout_s)
            ))
        ),
    };
    let seen = advice
        .watched
        .seen_as
        .first()
        .map_or("", |(words, _)| words);
    format!("If you roll this out now, {how_often} {requests}{from} {fails} {how_long}: {seen}.")
}

/// The whole text.
pub fn text(advice: &Advice<'_>, view: &View) -> String {
    let look = view.look;
    let mut out = String::new();
    let tone = if advice.watched.window.is_some() {
        Tone::Bad
    } else {
        Tone::Good
    };
    for line in wrap(&headline(advice), WIDTH) {
        let _ = writeln!(out, "{}", look.paint(tone, &line));
    }
    out.push('\n');
    numbers(&mut out, advice);
    why(&mut out, advice, look);
    let _ = writeln!(out, "\n{}", look.paint(Tone::Heading, "What to change"));
    out.push_str(&whatif::text(advice.whatif, view));
    stands_on(&mut out, advice, look);
    out
}

fn numbers(out: &mut String, advice: &Advice<'_>) {
    let today = &advice.whatif.today;
    let mut row = |what: &str, estimate: &Estimate| {
        let _ = writeln!(
            out,
            "  {what:<30}{:>8}  [{}, {}]",
            percent(estimate.count, estimate.of),
            share_text(estimate.low),
            share_text(estimate.high)
        );
    };
    row("a request fails, all in all", &today.failure);
    row("any failure in a rollout", &today.any_failure);
    row("dead for over 10 s", &today.dead);
    row("a request connects late", &today.late);
}

fn share_text(share: f64) -> String {
    percent((share * 1e9) as u64, 1_000_000_000)
}

fn why(out: &mut String, advice: &Advice<'_>, look: Look) {
    let Some(chain) = &advice.watched.chain else {
        return;
    };
    let _ = writeln!(
        out,
        "\n{}  {}",
        look.paint(Tone::Heading, "Why"),
        look.paint(Tone::Dim, "one of them, step by step")
    );
    if let Some(cause) = chain.why {
        let today = &advice.whatif.today;
        let causes = if today.failure.count > 0 {
            &today.causes
        } else {
            &today.late_causes
        };
        let total = causes.iter().map(|cause| cause.count).sum::<u64>();
        let share = causes
            .iter()
            .find(|found| Some(found.key) == chain.cause)
            .map_or(0, |found| found.count);
        let _ = writeln!(out, "  {}: {} of all.", cause, percent(share, total));
    }
    for link in chain.links.iter().take(LINKS_MAX) {
        let at = link
            .at_ns
            .map_or_else(String::new, |at| format!("{} s", seconds(at, 3)));
        let rule = link
            .rule
            .as_ref()
            .map_or_else(String::new, |rule| format!(" [{rule}]"));
        for (place, line) in wrap(&format!("{}{rule}", link.what), WIDTH - 16)
            .iter()
            .enumerate()
        {
            let at = if place == 0 { at.as_str() } else { "" };
            let _ = writeln!(out, "  {at:>11}  {line}");
        }
    }
    if chain.links.len() > LINKS_MAX {
        let _ = writeln!(
            out,
            "  {:>11}  and {} more; sim why shows all, with sources",
            "",
            chain.links.len() - LINKS_MAX
        );
    }
}

/// What was measured and what was assumed: the assumptions decide how far to trust the rest.
fn stands_on(out: &mut String, advice: &Advice<'_>, look: Look) {
    let _ = writeln!(
        out,
        "\n{}",
        look.paint(Tone::Heading, "What this stands on")
    );
    let of = |origin: Origin| {
        advice
            .fitted
            .notes
            .iter()
            .filter(move |(_, note)| note.origin == origin)
    };
    let known = [
        (Origin::Measured, "measured"),
        (Origin::Read, "read"),
        (Origin::Derived, "derived"),
    ];
    let known = known.map(|(origin, word)| format!("{} {word}", of(origin).count()));
    let _ = writeln!(
        out,
        "  {} values; {} assumed. Look at these first:",
        known.join(", "),
        of(Origin::Assumed).count()
    );
    for (path, note) in of(Origin::Assumed) {
        for (place, line) in wrap(&format!("{path}: {}", note.text), WIDTH - 4)
            .iter()
            .enumerate()
        {
            let indent = if place == 0 { "  " } else { "      " };
            let _ = writeln!(out, "{indent}{line}");
        }
    }
    for remark in &advice.fitted.remarks {
        for (place, line) in wrap(remark, WIDTH - 4).iter().enumerate() {
            let indent = if place == 0 { "  - " } else { "    " };
            let _ = writeln!(out, "{indent}{line}");
        }
    }
}

//! The report of `sim whatif` for people: today in two lines, a table of the remedies with the best first, then for those that
//! help what to type, and for the others why not.

use std::fmt::Write as _;
use std::time::Duration;

use super::sweep::interval_text;
use super::text::{Align, Look, Tone, columns, count_of, percent, thousands, wrap};
use crate::experiment::paired::{Difference, Verdict};
use crate::experiment::rows::Stopped;
use crate::experiment::stats::Interval;
use crate::experiment::whatif::{Assessment, Estimate, SoFar, Tried, WhatIf};

/// How to show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// What the reader's terminal can show.
    pub look: Look,
    /// Say what to type for every remedy.
    pub details: bool,
    /// The scenario and its flags, for commands to recommend.
    pub again: String,
}

/// Characters on a line.
const WIDTH: usize = 110;

/// The line while it runs.
pub fn so_far(seen: &SoFar, elapsed: Duration) -> String {
    format!(
        "{} of each of {} settings, {:.1} s; today {} fail so far, with {} of {} remedies none",
        count_of(seen.runs, "rollout", "rollouts"),
        seen.settings,
        elapsed.as_secs_f64(),
        percent(seen.today.0, seen.today.1),
        seen.none_failed,
        seen.settings.saturating_sub(1)
    )
}

/// The whole report.
pub fn text(result: &WhatIf, view: &View) -> String {
    let look = view.look;
    let mut out = String::new();
    head(&mut out, result, look);
    out.push('\n');
    today(&mut out, result, view);
    if !result.remedies.is_empty() {
        let _ = writeln!(
            out,
            "\n{}",
            look.paint(Tone::Heading, "Remedies, best first")
        );
        out.push_str(&table(result, look));
    }
    details(&mut out, result, view);
    left_out(&mut out, result, look);
    out.push('\n');
    foot(&mut out, result, view);
    out
}

fn labelled(out: &mut String, label: &str, text: &str) {
    for (place, line) in wrap(text, WIDTH - 11).iter().enumerate() {
        let label = if place == 0 { label } else { "" };
        let _ = writeln!(out, "{label:<11}{line}");
    }
}

fn head(out: &mut String, result: &WhatIf, look: Look) {
    let from = match &result.file {
        Some(file) => format!("{} ({file})", result.scenario),
        None => format!("{}, built in (give a FILE for yours)", result.scenario),
    };
    labelled(out, "scenario", &from);
    labelled(out, "", &result.words.join(", "));
    let why = match result.stopped {
        Stopped::Enough => "every difference is decided",
        Stopped::Budget => "stopped by the time budget",
        Stopped::Count => "as many as asked",
    };
    let runs = count_of(result.runs, "rollout", "rollouts");
    let text = format!(
        "{runs} of each setting, on the same seeds (root {}); {why}",
        result.root_seed
    );
    labelled(out, "runs", &text);
    let _ = look;
}

fn interval(estimate: &Estimate) -> String {
    interval_text(&Interval {
        low: estimate.low,
        high: estimate.high,
    })
}

fn share(estimate: &Estimate) -> String {
    percent(estimate.count, estimate.of)
}

/// What a setting does, in a sentence.
fn sentence(result: &Assessment, runs: u64) -> String {
    let mut said = if result.failure.count == 0 {
        format!(
            "no request fails in {}",
            count_of(runs, "rollout", "rollouts")
        )
    } else {
        format!(
            "{} of requests fail {}",
            share(&result.failure),
            interval(&result.failure)
        )
    };
    if result.dead.count > 0 {
        let _ = write!(
            said,
            "; the service is dead for over 10 s in {} of {} (median {} s)",
            thousands(result.dead.count),
            count_of(result.dead.of, "rollout", "rollouts"),
            result.dead_median_s
        );
    }
    if result.late.count > 0 {
        let _ = write!(said, "; {} connect late", share(&result.late));
    }
    if result.no_port.count > 0 {
        let _ = write!(said, "; {} find no free port", share(&result.no_port));
    }
    said
}

fn today(out: &mut String, result: &WhatIf, view: &View) {
    let look = view.look;
    let tone = if result.today.failure.count == 0 {
        Tone::Good
    } else {
        Tone::Bad
    };
    let said = format!("Today {}.", sentence(&result.today, result.runs));
    for line in wrap(&said, WIDTH) {
        let _ = writeln!(out, "{}", look.paint(tone, &line));
    }
    for cause in result.today.causes.iter().take(2) {
        let _ = writeln!(
            out,
            "  because  {}  {}",
            percent(cause.count, result.today.failure.count),
            cause.what
        );
    }
    if result.today.failure.count + result.today.late.count > 0 {
        let words = ["sim why", &view.again].join(" ");
        let _ = writeln!(
            out,
            "  the chain of one, from the rollout to the lost packet: {}",
            words.trim_end()
        );
    }
}

/// What a verdict is called, with its tone.
fn verdict(tried: &Tried, today: &Assessment, look: Look) -> (&'static str, Tone) {
    let ended = tried.result.failure.count == 0 && today.failure.count > 0;
    match tried.failure.verdict {
        Verdict::Lower if ended && worse(&tried.late) => ("ends it, at a price", Tone::Warn),
        Verdict::Lower if ended => (look.pick("ends it ✓", "ends it"), Tone::Good),
        Verdict::Lower if worse(&tried.late) || worse(&tried.no_port) => {
            ("better, at a price", Tone::Warn)
        }
        Verdict::Lower => (look.pick("better ✓", "better"), Tone::Good),
        Verdict::Higher => (look.pick("worse ✗", "worse"), Tone::Bad),
        Verdict::Same if better(&tried.late) => ("less late", Tone::Good),
        Verdict::Same if worse(&tried.late) || worse(&tried.no_port) => {
            (look.pick("worse ✗", "worse"), Tone::Bad)
        }
        Verdict::Same => ("no difference", Tone::Dim),
        Verdict::Unclear if ended => ("seems to end it", Tone::Warn),
        Verdict::Unclear => ("no clear difference", Tone::Dim),
    }
}

fn worse(difference: &Difference) -> bool {
    difference.verdict == Verdict::Higher
}

fn better(difference: &Difference) -> bool {
    difference.verdict == Verdict::Lower
}

/// A difference in points of a hundred, its interval rounded outwards: `-52.4 [-55.0, -30.1]`.
fn points(difference: &Difference) -> String {
    let signed = |value: f64| {
        format!("{value:+.1}")
            .replace("+0.0", "0.0")
            .replace("-0.0", "0.0")
    };
    format!(
        "{} [{}, {}]",
        signed(difference.estimate * 100.0),
        signed(round_down(difference.low * 100.0)),
        signed(round_up(difference.high * 100.0))
    )
}

fn table(result: &WhatIf, look: Look) -> String {
    let head = [
        "",
        "remedy",
        "fails",
        "95 %",
        "late",
        "no port",
        "points against today",
        "skew",
        "ipvs / conntrack",
        "verdict",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let mut tones = vec![Tone::Dim];
    let row = |rank: String, name: &str, setting: &Assessment, points: String, verdict: String| {
        let side = &setting.side;
        let skew = side.skew_milli.map_or_else(
            || "-".to_owned(),
            |milli| format!("{:.2}", milli as f64 / 1000.0),
        );
        vec![
            rank,
            name.to_owned(),
            share(&setting.failure),
            interval(&setting.failure),
            share(&setting.late),
            share(&setting.no_port),
            points,
            skew,
            format!(
                "{} / {}",
                thousands(side.ipvs_entries_max),
                thousands(side.conntrack_entries_max)
            ),
            verdict,
        ]
    };
    rows.push(row(
        String::new(),
        "today",
        &result.today,
        String::new(),
        String::new(),
    ));
    tones.push(Tone::Heading);
    for (rank, tried) in (1..).zip(&result.remedies) {
        let (words, tone) = verdict(tried, &result.today, look);
        rows.push(row(
            format!("{rank}"),
            &tried.id,
            &tried.result,
            points(&tried.failure),
            words.to_owned(),
        ));
        tones.push(tone);
    }
    let aligns = [
        Align::Right,
        Align::Left,
        Align::Right,
        Align::Left,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Left,
    ];
    let lines = columns("  ", &aligns, &rows);
    let painted = lines
        .lines()
        .zip(tones)
        .map(|(line, tone)| look.paint(tone, line) + "\n");
    painted.collect()
}

/// What changed beside failures, as far as it is worth a word.
fn effects(tried: &Tried, today: &Assessment) -> Vec<String> {
    let mut effects = Vec::new();
    let result = &tried.result;
    if worse(&tried.late) || better(&tried.late) {
        let word = if worse(&tried.late) { "more" } else { "fewer" };
        effects.push(format!(
            "{word} late connects: {} (today {}){}",
            share(&result.late),
            share(&today.late),
            result
                .late_causes
                .first()
                .map_or_else(String::new, |cause| format!(", because {}", cause.what))
        ));
    }
    if worse(&tried.no_port) || better(&tried.no_port) {
        let word = if worse(&tried.no_port) {
            "more"
        } else {
            "fewer"
        };
        effects.push(format!(
            "{word} requests without a free port: {} (today {})",
            share(&result.no_port),
            share(&today.no_port)
        ));
    }
    if let (Some(now), Some(then)) = (result.side.skew_milli, today.side.skew_milli)
        && now.abs_diff(then) > 50
    {
        effects.push(format!(
            "the busiest real server in service gets {:.2} times its share (today {:.2})",
            now as f64 / 1000.0,
            then as f64 / 1000.0
        ));
    }
    if differs(result.side.ports_max, today.side.ports_max) {
        effects.push(format!(
            "a client holds up to {} of {} ports (today {} of {})",
            thousands(result.side.ports_max),
            thousands(result.side.ports_of),
            thousands(today.side.ports_max),
            thousands(today.side.ports_of)
        ));
    }
    let (now, then) = (&result.side, &today.side);
    if differs(now.ipvs_entries_max, then.ipvs_entries_max)
        || differs(now.conntrack_entries_max, then.conntrack_entries_max)
    {
        effects.push(format!(
            "up to {} IPVS and {} conntrack entries (today {} and {})",
            thousands(now.ipvs_entries_max),
            thousands(now.conntrack_entries_max),
            thousands(then.ipvs_entries_max),
            thousands(then.conntrack_entries_max)
        ));
    }
    if let Some(cause) = result
        .causes
        .first()
        .filter(|cause| today.causes.first().is_none_or(|t| t.key != cause.key))
    {
        effects.push(format!("what fails now fails because {}", cause.what));
    }
    effects
}

/// Whether two sizes differ by more than a tenth.
const fn differs(one: u64, other: u64) -> bool {
    one.abs_diff(other) * 10 > if one > other { one } else { other }
}

fn helps(tried: &Tried, today: &Assessment) -> bool {
    let ended = tried.result.failure.count == 0 && today.failure.count > 0;
    ended
        || better(&tried.failure)
        || (tried.failure.verdict == Verdict::Same && better(&tried.late))
}

fn details(out: &mut String, result: &WhatIf, view: &View) {
    let look = view.look;
    let mut others = Vec::new();
    for (rank, tried) in (1..).zip(&result.remedies) {
        if !view.details && !helps(tried, &result.today) {
            others.push((rank, tried));
            continue;
        }
        let (words, tone) = verdict(tried, &result.today, look);
        let title = look.paint(Tone::Heading, &format!("{rank}  {}", tried.title));
        let _ = writeln!(out, "\n{title}  {}", look.paint(tone, words));
        line(
            out,
            "result",
            &format!("{}{}", sentence(&tried.result, result.runs), ratio(tried)),
        );
        if !tried.window.is_empty() {
            line(out, "", &tried.window);
        }
        for (place, effect) in effects(tried, &result.today).iter().enumerate() {
            line(out, if place == 0 { "measured" } else { "" }, effect);
        }
        if !tried.side.is_empty() {
            line(out, "mind", &tried.side);
        }
        for apply in &tried.apply {
            line(out, "to apply", &format!("{}:", apply.on));
            for typed in apply.text.lines() {
                // Commands and YAML stay on their lines; only prose is longer than this.
                let parts = match typed.chars().count() > WIDTH {
                    true => wrap(typed, WIDTH - 16),
                    false => vec![typed.to_owned()],
                };
                for part in parts {
                    let _ = writeln!(out, "                {part}");
                }
            }
        }
        let set: Vec<String> = tried
            .settings
            .iter()
            .map(|(path, value)| format!("{path}={value}"))
            .collect();
        line(out, "tried as", &set.join("  "));
        line(out, "source", &tried.source);
    }
    if others.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "\n{}",
        look.paint(Tone::Heading, "Tried, and no help here")
    );
    for (rank, tried) in others {
        let mut said = format!("{}: {}", tried.title, sentence(&tried.result, result.runs));
        if !tried.window.is_empty() {
            let _ = write!(said, " ({})", tried.window);
        }
        if !tried.side.is_empty() {
            let _ = write!(said, ". {}", tried.side);
        }
        for (place, line) in wrap(&said, WIDTH - 6).iter().enumerate() {
            let label = if place == 0 {
                format!("{rank:>4}  ")
            } else {
                "      ".to_owned()
            };
            let _ = writeln!(out, "{label}{line}");
        }
    }
}

/// A line of a remedy's paragraph, with more below it if it is long.
fn line(out: &mut String, label: &str, text: &str) {
    for (place, part) in wrap(text, WIDTH - 14).iter().enumerate() {
        let label = if place == 0 { label } else { "" };
        let _ = writeln!(out, "   {label:<11}{part}");
    }
}

fn ratio(tried: &Tried) -> String {
    let Some(ratio) = tried
        .ratio
        .filter(|_| tried.failure.verdict == Verdict::Lower)
    else {
        return String::new();
    };
    match (ratio.estimate, ratio.high) {
        (Some(estimate), Some(high)) => format!(
            "; {estimate:.1} times less often ({:.1} to {high:.1})",
            ratio.low
        ),
        _ if ratio.low > 1.05 => format!("; at least {:.1} times less often", ratio.low),
        _ => String::new(),
    }
}

fn left_out(out: &mut String, result: &WhatIf, look: Look) {
    if result.left_out.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{}", look.paint(Tone::Heading, "Not tried"));
    let widest = result
        .left_out
        .iter()
        .map(|left| left.id.len())
        .max()
        .unwrap_or(0);
    for left in &result.left_out {
        let said = format!("{}: {}", left.title, left.reason);
        for (place, line) in wrap(&said, WIDTH - widest - 4).iter().enumerate() {
            let id = if place == 0 { left.id.as_str() } else { "" };
            let _ = writeln!(out, "  {id:<widest$}  {line}");
        }
    }
}

fn foot(out: &mut String, result: &WhatIf, view: &View) {
    let text = format!(
        "95 %, with rollouts as the unit. Differences are paired: rollout r of both settings has the same seed. Each holds alone. A kind of \
         rollout rarer than {:.1} % may not be among {}.",
        round_up(result.today.unseen * 100.0),
        count_of(result.runs, "rollout", "rollouts")
    );
    labelled(out, "intervals", &text);
    labelled(
        out,
        "columns",
        "late: answered after more than 0.5 s to connect; skew: connections of the busiest real server in service over an even share; ipvs / \
         conntrack: most entries at a moment",
    );
    let words = [
        "sim whatif",
        &view.again,
        &format!("--runs {} --seed {}", result.runs, result.root_seed),
    ];
    let again: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    labelled(
        out,
        "more",
        &format!(
            "--budget 5m narrows the intervals; --details says what to type for all; again: {}",
            again.join(" ")
        ),
    );
}

/// Rounded down to a tenth.
fn round_down(value: f64) -> f64 {
    (value * 10.0).floor() / 10.0
}

/// Rounded up to a tenth.
fn round_up(value: f64) -> f64 {
    (value * 10.0).ceil() / 10.0
}

#[cfg(test)]
mod tests;

//! The report of `sim capacity`: the answer in a sentence, what was tried, and the safe region as a map.

use std::fmt::Write as _;

use super::sweep::interval_text;
use super::text::{Align, Look, Tone, columns, percent, thousands, wrap};
use crate::experiment::capacity::map::Map;
use crate::experiment::capacity::{Capacity, Probe, Quantity, Sought};
use crate::experiment::stats::Interval;

/// How to show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// What the reader's terminal can show.
    pub look: Look,
    /// The scenario and its flags, for commands to recommend.
    pub again: String,
}

const WIDTH: usize = 108;

const fn word(probe: &Probe) -> (&'static str, Tone) {
    match probe.keeps() {
        Some(true) => ("keeps", Tone::Good),
        Some(false) => ("breaks", Tone::Bad),
        None => ("undecided", Tone::Warn),
    }
}

fn found(probe: &Probe) -> String {
    let estimate = &probe.judged.estimate;
    let interval = Interval {
        low: estimate.low,
        high: estimate.high,
    };
    format!(
        "{} {}",
        percent(estimate.count, estimate.of),
        interval_text(&interval)
    )
}

/// The line while it runs.
pub fn so_far(quantity: &Quantity, probe: &Probe) -> String {
    format!(
        "{} {}: {} ({})",
        quantity.name,
        thousands(probe.value),
        word(probe).0,
        found(probe)
    )
}

/// The answer in a sentence.
fn answer(found: &Capacity) -> (Tone, String) {
    let target = &found.target;
    let what = &found.what;
    let (most, beyond) = match found.sought {
        Sought::Largest => ("up to", "from"),
        Sought::Smallest => ("down to", "at"),
    };
    match (found.keeps, found.breaks) {
        (Some(keeps), Some(breaks)) => (
            Tone::Good,
            format!(
                "{target} is kept {most} {} {what}, and broken {beyond} {} on: the limit lies between.",
                thousands(keeps),
                thousands(breaks)
            ),
        ),
        (Some(keeps), None) => (
            Tone::Good,
            format!(
                "{target} is kept {most} {} {what}; nothing beyond it was seen to break it.",
                thousands(keeps)
            ),
        ),
        (None, Some(breaks)) => (
            Tone::Bad,
            format!(
                "{target} is kept at no value that was tried: it is broken at {} {what} already.",
                thousands(breaks)
            ),
        ),
        (None, None) => (
            Tone::Warn,
            format!(
                "{target}: undecided at every value; more rollouts (--max-runs) or a larger --rare would tell more."
            ),
        ),
    }
}

/// The whole report.
pub fn text(found_all: &Capacity, quantity: &Quantity, view: &View) -> String {
    let look = view.look;
    let (tone, sentence) = answer(found_all);
    let mut out = String::new();
    for line in wrap(&sentence, WIDTH) {
        let _ = writeln!(out, "{}", look.paint(tone, &line));
    }
    if !found_all.exceptions.is_empty() {
        let values: Vec<String> = found_all
            .exceptions
            .iter()
            .map(|value| thousands(*value))
            .collect();
        let said = format!(
            "The response does not go one way: beyond a value that breaks it, it is kept again at {}. Do not rely on those.",
            values.join(", ")
        );
        for line in wrap(&said, WIDTH) {
            let _ = writeln!(out, "{}", look.paint(Tone::Warn, &line));
        }
    }
    if found_all.cut_short {
        let _ = writeln!(
            out,
            "{}",
            look.paint(
                Tone::Warn,
                "Time ended the search (--budget): the two ends may be far apart."
            )
        );
    }
    out.push('\n');
    let rows: Vec<Vec<String>> = found_all
        .probes
        .iter()
        .map(|probe| {
            vec![
                thousands(probe.value),
                word(probe).0.to_owned(),
                found(probe),
                format!("{} rollouts", probe.runs),
            ]
        })
        .collect();
    let lines = columns(
        "  ",
        &[Align::Right, Align::Left, Align::Left, Align::Right],
        &rows,
    );
    let _ = writeln!(
        out,
        "{}",
        look.paint(Tone::Heading, &format!("Tried: {}", found_all.what))
    );
    for (line, probe) in lines.lines().zip(&found_all.probes) {
        let _ = writeln!(out, "{}", look.paint(word(probe).1, line));
    }
    out.push('\n');
    foot(&mut out, found_all.rare);
    let at = found_all
        .breaks
        .or(found_all.keeps)
        .unwrap_or(quantity.high);
    let words = ["sim why", &view.again, &quantity.flags(at)];
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    let _ = writeln!(out, "why        {}", words.join(" "));
    out
}

fn foot(out: &mut String, rare: f64) {
    let said = format!(
        "keeps: the 95 % interval lies below the limit, or none of the rollouts crossed it and a kind of rollout that would has a probability of at \
         most {:.0} % (--rare). breaks: the interval lies above. Each value holds alone.",
        rare * 100.0
    );
    for (place, line) in wrap(&said, WIDTH - 11).iter().enumerate() {
        let label = if place == 0 { "verdicts" } else { "" };
        let _ = writeln!(out, "{label:<11}{line}");
    }
}

/// The safe region.
pub fn map(map: &Map, view: &View) -> String {
    let look = view.look;
    let mut out = format!(
        "{}: {} down, {} across\n\n",
        map.target, map.rows, map.columns
    );
    let sign = |cell: &Option<Probe>| match cell.as_ref().map(Probe::keeps) {
        Some(Some(true)) => (look.pick("█", "+"), Tone::Good),
        Some(Some(false)) => (look.pick("×", "x"), Tone::Bad),
        Some(None) => (look.pick("▒", "~"), Tone::Warn),
        None => (" ", Tone::Dim),
    };
    let heads: Vec<String> = map
        .column_values
        .iter()
        .map(|value| thousands(*value))
        .collect();
    let width = heads.iter().map(String::len).max().unwrap_or(1).max(3) + 2;
    let left = map
        .row_values
        .iter()
        .map(|value| thousands(*value).len())
        .max()
        .unwrap_or(1);
    let _ = write!(out, "{:left$}", "");
    for head in &heads {
        let _ = write!(out, "{head:>width$}");
    }
    out.push('\n');
    for (row, cells) in map.row_values.iter().zip(&map.cells) {
        let _ = write!(out, "{:>left$}", thousands(*row));
        for cell in cells {
            let (sign, tone) = sign(cell);
            let block = sign.repeat(3);
            let _ = write!(out, "{}{}", " ".repeat(width - 3), look.paint(tone, &block));
        }
        out.push('\n');
    }
    let _ = writeln!(
        out,
        "\n{} keeps the target   {} undecided   {} breaks it   (blank: no time left)\n",
        look.paint(Tone::Good, look.pick("███", "+++")),
        look.paint(Tone::Warn, look.pick("▒▒▒", "~~~")),
        look.paint(Tone::Bad, look.pick("×××", "xxx"))
    );
    foot(&mut out, map.rare);
    out
}

#[cfg(test)]
mod tests;

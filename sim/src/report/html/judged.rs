//! What was held against a limit: thresholds of `sim check`, and values and maps of `sim capacity`.

use std::fmt::Write as _;

use serde_json::Value;

use super::heat::{self, Cell, Safety};
use super::read::{at, list, number, text, whole};
use super::{Input, Section, figure, percent, shares, table};
use crate::report::text::thousands;
use crate::svg::{Anchor, Svg, escape};

/// A verdict as a colour of words, and in words.
fn verdict(judged: &Value) -> (Safety, &'static str) {
    match text(judged, "verdict") {
        "pass" => (Safety::Safe, "kept"),
        "pass_but_for_rare" => (Safety::Safe, "kept, but for rare kinds of rollouts"),
        "broken" => (Safety::Unsafe, "broken"),
        _ => (Safety::Undecided, "undecided"),
    }
}

fn cell(judged: &Value) -> Option<Cell> {
    let estimate = at(judged, "estimate")?;
    Some(Cell {
        share: number(estimate, "share").unwrap_or(0.0),
        interval: (number(estimate, "low")?, number(estimate, "high")?),
        safety: verdict(judged).0,
    })
}

fn told(cell: &Cell) -> String {
    let (low, high) = cell.interval;
    format!(
        "{} [{}, {}]",
        percent(cell.share),
        percent(low),
        percent(high)
    )
}

/// `sim check`: a bar for each threshold with its limit.
pub(super) fn check(id: &str, input: &Input) -> Section {
    let value = &input.value;
    let thresholds = list(value, "thresholds");
    let again = text(value, "again");
    let count = |wanted: Safety| {
        let found = thresholds.iter().map(|judged| verdict(judged).0);
        found.filter(|safety| *safety == wanted).count()
    };
    let (broken, open) = (count(Safety::Unsafe), count(Safety::Undecided));
    let (class, said) = match (broken, open) {
        (0, 0) => ("verdict-ok", "All thresholds are kept.".to_owned()),
        (0, open) => ("", format!("{open} of {} undecided.", thresholds.len())),
        (broken, _) => (
            "verdict-bad",
            format!("{broken} of {} broken.", thresholds.len()),
        ),
    };
    let mut body = format!("<h2>A check</h2>\n<p class=\"lead {class}\">{said}</p>\n");
    let _ = writeln!(
        body,
        "<p>{} rollouts, root seed {}; 95 % for all thresholds together, with rollouts as the unit.</p>",
        thousands(whole(value, "runs")),
        escape(text(value, "root_seed"))
    );
    let rows = thresholds.iter().filter_map(|judged| {
        Some(Bar {
            name: text(judged, "threshold").to_owned(),
            cell: cell(judged)?,
            word: verdict(judged).1,
            limit: number(judged, "limit")?,
        })
    });
    let title = "What was found, and the limit of each threshold";
    let drawing = bars(&format!("{id}-check"), title, &rows.collect::<Vec<_>>());
    body.push_str(&figure(
        &drawing,
        "The share, its interval as a line, the limit dashed.",
        again,
    ));
    let causes = list(value, "causes").iter().map(|cause| {
        let count = thousands(whole(cause, "count"));
        vec![escape(text(cause, "what")), count]
    });
    let causes = causes.collect::<Vec<_>>();
    if !causes.is_empty() {
        body.push_str("<h3>Why requests failed</h3>\n");
        body.push_str(&table(&["cause", "requests"], &[1], &causes));
    }
    let _ = writeln!(body, "<pre>{}</pre>", escape(again));
    Section {
        title: format!("{} thresholds: {said}", thresholds.len()),
        body,
    }
}

/// `sim capacity`: every value that was tried, and the two ends.
pub(super) fn capacity(id: &str, input: &Input) -> Section {
    let value = &input.value;
    let (what, target) = (text(value, "what"), text(value, "target"));
    let again = text(value, "again");
    let end = |key: &str| at(value, key).and_then(Value::as_u64).map(thousands);
    let said = match (end("keeps"), end("breaks")) {
        (Some(keeps), Some(breaks)) => {
            format!(
                "{target} is kept at {keeps} {what} and broken at {breaks}: the limit lies between."
            )
        }
        (Some(keeps), None) => {
            format!("{target} is kept at {keeps} {what}; nothing beyond was seen to break it.")
        }
        (None, Some(breaks)) => {
            format!("{target} is kept at no value that was tried, and broken at {breaks} {what}.")
        }
        (None, None) => format!("{target}: undecided at every value that was tried."),
    };
    let mut body = format!(
        "<h2>How much is safe</h2>\n<p class=\"lead\">{}</p>\n",
        escape(&said)
    );
    let exceptions = list(value, "exceptions").iter().filter_map(Value::as_u64);
    let exceptions = exceptions.map(thousands).collect::<Vec<_>>();
    if !exceptions.is_empty() {
        let _ = writeln!(
            body,
            "<p class=\"verdict-bad\">The response does not go one way: {} answer otherwise than their neighbours. Do not rely on them.</p>",
            exceptions.join(", ")
        );
    }
    if at(value, "cut_short").and_then(Value::as_bool) == Some(true) {
        body.push_str("<p>Time ended the search: the two ends may be far apart.</p>\n");
    }
    let rows = list(value, "probes").iter().filter_map(|probe| {
        let judged = at(probe, "judged")?;
        Some(Bar {
            name: format!(
                "{} {}",
                text(value, "quantity"),
                thousands(whole(probe, "value"))
            ),
            cell: cell(judged)?,
            word: verdict(judged).1,
            limit: number(judged, "limit")?,
        })
    });
    let title = format!("What was tried: {what}");
    let drawing = bars(&format!("{id}-tried"), &title, &rows.collect::<Vec<_>>());
    let caption = format!(
        "{}. The share, its interval as a line, the limit dashed. A kind of rollout up to {} may have been missed.",
        escape(&title),
        percent(number(value, "rare").unwrap_or(0.0))
    );
    body.push_str(&figure(&drawing, &caption, again));
    let _ = writeln!(body, "<pre>{}</pre>", escape(again));
    Section { title: said, body }
}

/// `sim capacity --map`: the safe region.
pub(super) fn map(id: &str, input: &Input) -> Section {
    let value = &input.value;
    let (rows, columns) = (text(value, "rows"), text(value, "columns"));
    let target = text(value, "target");
    let again = text(value, "again");
    let names = |path: &str| {
        let values = list(value, path).iter().filter_map(Value::as_u64);
        values.map(thousands).collect::<Vec<_>>()
    };
    let cells = list(value, "cells");
    let found = |row: usize, column: usize| cell(at(cells.get(row)?.get(column)?, "judged")?);
    let title = format!("Where {target} is kept: {rows} and {columns}");
    let mut body = format!("<h2>{}</h2>\n", escape(&title));
    body.push_str(&heat::legend(target));
    let drawing = heat::draw(
        &format!("{id}-map"),
        &title,
        (rows, columns),
        &names("row_values"),
        &names("column_values"),
        found,
        target,
    );
    let caption = format!(
        "{}. A kind of rollout up to {} may have been missed.",
        escape(&title),
        percent(number(value, "rare").unwrap_or(0.0))
    );
    body.push_str(&figure(&drawing, &caption, again));
    let _ = writeln!(body, "<pre>{}</pre>", escape(again));
    Section { title, body }
}

/// A share beside its limit.
struct Bar {
    name: String,
    cell: Cell,
    word: &'static str,
    limit: f64,
}

fn bars(id: &str, title: &str, rows: &[Bar]) -> String {
    const ROW: f64 = 40.0;
    let bottom = rows.len() as f64 * ROW + 6.0;
    let mut svg = Svg::new(760.0, bottom + 24.0);
    shares::axis(&mut svg, bottom);
    let x = shares::place;
    let mut words = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let y = index as f64 * ROW;
        let said = format!("{}: {}, {}", row.name, row.word, told(&row.cell));
        svg.text(4.0, y + 14.0, Anchor::Start, "small", &said);
        let class = match row.cell.safety {
            Safety::Safe => "safe",
            Safety::Undecided => "warn",
            Safety::Unsafe => "bad",
        };
        svg.rect(0.0, y + 19.0, x(row.cell.share).max(1.0), 12.0, class);
        if row.cell.safety == Safety::Unsafe {
            svg.rect(0.0, y + 19.0, x(row.cell.share), 12.0, "hatch");
        }
        let (low, high) = row.cell.interval;
        let end = x(high).max(x(low) + 1.0);
        svg.line((x(low), y + 25.0), (end, y + 25.0), "ci");
        svg.line((x(row.limit), y + 16.0), (x(row.limit), y + 34.0), "mark");
        words.push(said);
    }
    svg.finish(id, title, &words.join("; "))
}

//! Results as one HTML file: no network, no script, every drawing inline, the command that reproduces it below each.
//!
//! Everything is drawn from the JSON that the commands write, so a result that was kept is drawn as it was. The bytes
//! are the same everywhere: no time of day, no machine, no random id.

mod advice;
mod compare;
mod diff;
mod heat;
mod judged;
mod ports;
mod read;
mod run;
mod shares;
mod style;
mod sweep;
mod timeline;
mod why;

#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use serde_json::Value;

use crate::svg::escape;
use read::{list, text};

/// A result and where it came from.
#[derive(Clone, Debug)]
pub struct Input {
    /// The file, or the scenario that was run for this.
    pub name: String,
    /// The result.
    pub value: Value,
}

/// What a result is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `sim run`.
    Run,
    /// `sim sweep`.
    Sweep,
    /// `sim whatif`.
    WhatIf,
    /// `sim diff`.
    Diff,
    /// `sim why`.
    Why,
    /// `sim advise`.
    Advice,
    /// `sim check`.
    Check,
    /// `sim capacity`.
    Capacity,
    /// `sim capacity --map`.
    Map,
}

impl Kind {
    /// What a result is of; `None` if it is none that can be drawn.
    pub fn of(value: &Value) -> Option<Self> {
        match text(value, "kind") {
            "run" => return Some(Self::Run),
            "advice" => return Some(Self::Advice),
            "check" => return Some(Self::Check),
            "capacity" => return Some(Self::Capacity),
            "capacity-map" => return Some(Self::Map),
            _ => {}
        }
        let has = |key: &str| value.get(key).is_some();
        match text(value, "command") {
            "sweep" => Some(Self::Sweep),
            _ if has("remedies") && has("today") => Some(Self::WhatIf),
            _ if has("divergences") => Some(Self::Diff),
            _ if has("links") && has("ended") => Some(Self::Why),
            _ => None,
        }
    }
}

/// What the page is to say beside the results.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The page's title; without it, one that says what was asked.
    pub title: Option<String>,
    /// A failure probability that is acceptable: what is surely below it is safe.
    pub safe_below: f64,
}

/// The page.
pub fn page(inputs: &[Input], options: &Options) -> String {
    let sections = inputs.iter().enumerate().filter_map(|(index, input)| {
        let id = format!("s{}", index + 1);
        let section = match Kind::of(&input.value)? {
            Kind::Run => run::section(&id, input),
            Kind::Sweep => sweep::section(&id, input, options.safe_below),
            Kind::WhatIf => compare::section(&id, input),
            Kind::Diff => diff::section(&id, input),
            Kind::Why => why::section(&id, input),
            Kind::Advice => advice::section(&id, input),
            Kind::Check => judged::check(&id, input),
            Kind::Capacity => judged::capacity(&id, input),
            Kind::Map => judged::map(&id, input),
        };
        Some((id, section))
    });
    let sections = sections.collect::<Vec<_>>();
    let title = options.title.clone().unwrap_or_else(|| {
        sections.first().map_or_else(
            || "sim report".to_owned(),
            |(_, section)| section.title.clone(),
        )
    });
    let mut body = String::new();
    let _ = writeln!(body, "<h1>{}</h1>", escape(&title));
    if sections.len() > 1 {
        body.push_str("<nav aria-label=\"Contents\"><ul>\n");
        for (id, section) in &sections {
            let _ = writeln!(
                body,
                "<li><a href=\"#{id}\">{}</a></li>",
                escape(&section.title)
            );
        }
        body.push_str("</ul></nav>\n");
    }
    for (id, section) in &sections {
        let _ = writeln!(
            body,
            "<section id=\"{id}\" aria-label=\"{}\">\n{}</section>",
            escape(&section.title),
            section.body
        );
    }
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"generator\" content=\"sim {version}\">\n<title>{}</title>\n<link rel=\"icon\" href=\"data:,\">\n<style>{}</style>\n</head>\n<body>\n{}<main>\n{body}</main>\n</body>\n</html>\n",
        escape(&title),
        style::STYLE,
        style::PATTERNS
    )
}

/// A part of the page.
struct Section {
    title: String,
    body: String,
}

/// A figure with its caption and the command that makes it again.
fn figure(drawing: &str, caption: &str, command: &str) -> String {
    let again = if command.is_empty() {
        String::new()
    } else {
        format!(
            "<details><summary>Make this figure again</summary><pre>{}</pre></details>\n",
            escape(command)
        )
    };
    format!(
        "<figure>\n<p class=\"hint\">Swipe sideways to see all of it.</p>\n<div class=\"wide\">{drawing}</div>\n<figcaption>{caption}</figcaption>\n{again}</figure>\n"
    )
}

/// A legend: a class and what it means.
fn key(entries: &[(&str, &str)]) -> String {
    let mut out = String::from("<ul class=\"key\">\n");
    for (class, words) in entries {
        let hatch = if class.contains("hatched") {
            "<rect width=\"16\" height=\"12\" class=\"hatch\"/>"
        } else {
            ""
        };
        let class = class.replace(" hatched", "");
        let _ = writeln!(
            out,
            "<li><svg viewBox=\"0 0 16 12\" aria-hidden=\"true\"><rect width=\"16\" height=\"12\" class=\"{class}\"/>{hatch}</svg>{}</li>",
            escape(words)
        );
    }
    out.push_str("</ul>\n");
    out
}

/// A table; the first row is its head. Columns named in `numeric` hold numbers.
fn table(head: &[&str], numeric: &[usize], rows: &[Vec<String>]) -> String {
    let class = |column: usize| {
        if numeric.contains(&column) {
            " class=\"num\""
        } else {
            ""
        }
    };
    let mut out = String::from("<table class=\"stack\">\n<thead><tr>");
    for (column, name) in head.iter().enumerate() {
        let _ = write!(
            out,
            "<th scope=\"col\"{}>{}</th>",
            class(column),
            escape(name)
        );
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        out.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let name = head.get(column).copied().unwrap_or("");
            let _ = write!(
                out,
                "<td{} data-name=\"{}\">{cell}</td>",
                class(column),
                escape(name)
            );
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table>\n");
    out
}

/// Pairs of a label and words.
fn facts(pairs: &[(String, String)]) -> String {
    let mut out = String::from("<dl>\n");
    for (label, words) in pairs {
        let _ = writeln!(out, "<dt>{}</dt><dd>{}</dd>", escape(label), escape(words));
    }
    out.push_str("</dl>\n");
    out
}

/// A share as percent: "12.3 %", "0.02 %", "0 %".
fn percent(share: f64) -> String {
    let value = share * 100.0;
    let digits = match value {
        0.0 => return "0 %".to_owned(),
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        v if v >= 0.01 => 3,
        v if v >= 1e-4 => 4,
        _ => return format!("{value:.1e} %"),
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    format!("{text} %")
}

/// A share over its interval, for a narrow column.
fn estimated(share: &str, (low, high): (f64, f64)) -> String {
    format!(
        "{share}<br><span class=\"dim\">[{}, {}]</span>",
        percent(low),
        percent(high)
    )
}

/// The sentences of a list in a value.
fn sentences(value: &Value, path: &str) -> Vec<String> {
    let words = list(value, path).iter().filter_map(Value::as_str);
    words.map(str::to_owned).collect()
}

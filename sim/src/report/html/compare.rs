//! Today against remedies: how much less fails, what it costs, and what to type.

use std::fmt::Write as _;

use serde_json::Value;

use super::read::{at, list, number, text, whole};
use super::{Input, Section, estimated, figure, percent, sentences, shares, table};
use crate::report::text::thousands;
use crate::svg::{Anchor, Svg, escape};

pub(super) fn section(id: &str, input: &Input) -> Section {
    let value = &input.value;
    let name = text(value, "scenario");
    let file = text(value, "file");
    let runs = whole(value, "runs");
    // Results of older releases do not have the whole command.
    let command = match text(value, "again") {
        "" => format!(
            "sim whatif {file} --runs {runs} --seed {}",
            text(value, "root_seed")
        ),
        again => again.to_owned(),
    };
    let mut body = String::new();
    let _ = writeln!(body, "<h2>What would change it: {}</h2>", escape(name));
    let today = at(value, "today").unwrap_or(&Value::Null);
    let _ = writeln!(
        body,
        "<p class=\"lead\">Today {} of requests fail and {} connect late; {} of rollouts fail at least one.</p>",
        told(today, "failure"),
        told(today, "late"),
        told(today, "any_failure")
    );
    let _ = writeln!(
        body,
        "<p class=\"dim\">{}</p>",
        escape(&sentences(value, "words").join("; "))
    );
    let _ = writeln!(
        body,
        "<p>{} rollouts of each setting, with the same random numbers; intervals hold with 95 % each.</p>",
        thousands(runs)
    );
    body.push_str(&chart(id, today, list(value, "remedies"), &command));
    body.push_str(&rows(list(value, "remedies")));
    body.push_str(&apply(list(value, "remedies")));
    let left_out = list(value, "left_out");
    if !left_out.is_empty() {
        body.push_str("<details><summary>Remedies that make no sense here</summary>\n<ul>\n");
        for left in left_out {
            let _ = writeln!(
                body,
                "<li>{}: {}</li>",
                escape(text(left, "title")),
                escape(text(left, "reason"))
            );
        }
        body.push_str("</ul></details>\n");
    }
    let _ = writeln!(body, "<pre>{}</pre>", escape(&command));
    Section {
        title: format!(
            "{name}: {} remedies compared",
            list(value, "remedies").len()
        ),
        body,
    }
}

fn told(assessment: &Value, path: &str) -> String {
    let Some(found) = at(assessment, path) else {
        return String::new();
    };
    let share = number(found, "share").map_or_else(|| "none".to_owned(), percent);
    format!(
        "{share} [{}, {}]",
        percent(number(found, "low").unwrap_or(0.0)),
        percent(number(found, "high").unwrap_or(1.0))
    )
}

/// The same for a table.
fn cell(assessment: &Value, path: &str) -> String {
    let Some(found) = at(assessment, path) else {
        return String::new();
    };
    let share = number(found, "share").map_or_else(|| "none".to_owned(), percent);
    let end = |key: &str, unknown: f64| number(found, key).unwrap_or(unknown);
    estimated(&share, (end("low", 0.0), end("high", 1.0)))
}

/// A row for each setting: failed and late, with intervals.
fn chart(id: &str, today: &Value, remedies: &[Value], command: &str) -> String {
    let row = 44.0;
    let mut all = vec![("today".to_owned(), today)];
    all.extend(
        remedies
            .iter()
            .filter_map(|remedy| Some((text(remedy, "title").to_owned(), at(remedy, "result")?))),
    );
    let mut svg = Svg::new(760.0, all.len() as f64 * row + 26.0);
    let x = shares::place;
    let bottom = all.len() as f64 * row + 4.0;
    shares::axis(&mut svg, bottom);
    let mut words = Vec::new();
    for (index, (name, result)) in all.iter().enumerate() {
        let y = index as f64 * row;
        let (failure, late) = (told(result, "failure"), told(result, "late"));
        let late_share = number(result, "late.share").unwrap_or(0.0);
        let short = name.chars().take(70).collect::<String>();
        svg.text(
            4.0,
            y + 13.0,
            Anchor::Start,
            if index == 0 { "small strong" } else { "small" },
            &format!(
                "{short}: {failure}{}",
                if late_share > 0.0 {
                    format!("; {} connect late", percent(late_share))
                } else {
                    String::new()
                }
            ),
        );
        let share = |path: &str| number(result, path).unwrap_or(0.0);
        let failed = x(share("failure.share"));
        svg.rect(0.0, y + 18.0, failed, 12.0, "bad");
        svg.rect(0.0, y + 18.0, failed, 12.0, "hatch");
        svg.rect(0.0, y + 31.0, x(late_share), 6.0, "late");
        svg.line(
            (x(share("failure.low")), y + 24.0),
            (x(share("failure.high")), y + 24.0),
            "ci",
        );
        words.push(format!("{name}: {failure} fail, {late} late"));
    }
    let drawing = svg.finish(
        &format!("{id}-remedies"),
        "The share of failed and late requests, today and with each remedy",
        &words.join("; "),
    );
    let mut out = super::key(&[
        ("bad hatched", "a request fails, with its 95 % interval"),
        ("late", "a request connects late"),
    ]);
    out.push_str(&figure(&drawing, "The best remedy first.", command));
    out
}

fn difference(remedy: &Value) -> String {
    let points = |path: &str| {
        number(remedy, path).map(|d| {
            let text = percent(d.abs()).replace(" %", "");
            format!("{}{text}", if d < 0.0 { "−" } else { "+" })
        })
    };
    let part = |path: &str| points(path).unwrap_or_default();
    format!(
        "{} points<br><span class=\"dim\">[{}, {}]</span>",
        part("failure.estimate"),
        part("failure.low"),
        part("failure.high")
    )
}

fn rows(remedies: &[Value]) -> String {
    let rows = remedies.iter().map(|remedy| {
        let result = at(remedy, "result").unwrap_or(&Value::Null);
        let skew = number(result, "side.skew_milli")
            .map_or_else(|| "–".to_owned(), |skew| format!("{:.2}", skew / 1_000.0));
        let tables = format!(
            "{} / {}",
            thousands(whole(result, "side.ipvs_entries_max")),
            thousands(whole(result, "side.conntrack_entries_max"))
        );
        vec![
            format!(
                "<strong>{}</strong><br><span class=\"dim\">{}</span>",
                escape(text(remedy, "title")),
                escape(text(remedy, "side"))
            ),
            cell(result, "failure"),
            difference(remedy),
            cell(result, "late"),
            skew,
            tables,
        ]
    });
    let head = [
        "remedy, and what else it does",
        "a request fails",
        "difference, paired",
        "connects late",
        "load skew",
        "IPVS / conntrack entries",
    ];
    table(&head, &[1, 2, 3, 4, 5], &rows.collect::<Vec<_>>())
}

fn apply(remedies: &[Value]) -> String {
    let mut out = String::from("<h3>What to type</h3>\n");
    for remedy in remedies
        .iter()
        .filter(|remedy| !list(remedy, "apply").is_empty())
    {
        let _ = writeln!(
            out,
            "<details class=\"printed\"><summary>{}</summary>",
            escape(text(remedy, "title"))
        );
        for apply in list(remedy, "apply") {
            let _ = writeln!(
                out,
                "<p class=\"dim\">{}</p><pre>{}</pre>",
                escape(text(apply, "on")),
                escape(text(apply, "text"))
            );
        }
        out.push_str("</details>\n");
    }
    out
}

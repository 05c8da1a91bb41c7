//! A recording against the model: counts, findings, divergences.

use std::fmt::Write as _;

use serde_json::Value;

use super::read::{at, list, text, whole};
use super::{Input, Section, facts, sentences, table};
use crate::report::text::thousands;
use crate::svg::escape;

pub(super) fn section(_id: &str, input: &Input) -> Section {
    let value = &input.value;
    let divergences = list(value, "divergences");
    let capture = text(value, "capture");
    let mut body = String::new();
    let _ = writeln!(
        body,
        "<h2>A recording against the model: {}</h2>",
        escape(capture)
    );
    let total = whole(value, "counts.divergences");
    let verdict = match total {
        0 => "<p class=\"lead verdict-ok\">No divergence: the node did what the model says.</p>"
            .to_owned(),
        count => format!(
            "<p class=\"lead verdict-bad\">{} divergences: the node did not do what the model says.</p>",
            thousands(count)
        ),
    };
    let _ = writeln!(body, "{verdict}");
    let mut pairs = Vec::new();
    if let Some(Value::Object(map)) = at(value, "counts") {
        let told = |(key, count): (&String, &Value)| {
            Some((key.replace('_', " "), thousands(count.as_u64()?)))
        };
        pairs.extend(map.iter().filter_map(told));
    }
    body.push_str(&facts(&pairs));
    for (name, path) in [("Scope", "scope"), ("Notes", "notes")] {
        let words = sentences(value, path);
        if !words.is_empty() {
            let _ = writeln!(body, "<h3>{name}</h3>\n<ul>");
            for sentence in words {
                let _ = writeln!(body, "<li>{}</li>", escape(&sentence));
            }
            body.push_str("</ul>\n");
        }
    }
    let findings = list(value, "findings");
    if !findings.is_empty() {
        let rows = findings.iter().map(|f| {
            ["at", "subject", "text"]
                .map(|key| escape(text(f, key)))
                .to_vec()
        });
        body.push_str("<h3>What must have happened</h3>\n");
        body.push_str(&table(
            &["when", "connection", "what"],
            &[],
            &rows.collect::<Vec<_>>(),
        ));
    }
    if !divergences.is_empty() {
        let rows = divergences.iter().map(|d| {
            ["at", "class", "subject", "model", "node", "rule"]
                .map(|key| escape(text(d, key)))
                .to_vec()
        });
        body.push_str("<h3>Divergences</h3>\n");
        body.push_str(&table(
            &[
                "when",
                "in what",
                "subject",
                "the model",
                "the node",
                "rule",
            ],
            &[],
            &rows.collect::<Vec<_>>(),
        ));
    }
    let command = format!("sim diff {capture}");
    let _ = writeln!(body, "<pre>{}</pre>", escape(&command));
    Section {
        title: format!("{capture} against the model"),
        body,
    }
}

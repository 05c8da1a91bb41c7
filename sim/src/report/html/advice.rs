//! Advice: what will happen, why, what to change, and what all of it stands on.

use std::fmt::Write as _;

use serde_json::Value;

use super::read::{at, text};
use super::{Input, Section, compare, facts, sentences, why};
use crate::svg::escape;

pub(super) fn section(id: &str, input: &Input) -> Section {
    let value = &input.value;
    let (headline, again) = (text(value, "headline"), text(value, "again"));
    let mut body = format!(
        "<h2>Advice</h2>\n<p class=\"lead\">{}</p>\n",
        escape(headline)
    );
    if let Some(chain) = at(value, "watched.chain").filter(|chain| chain.is_object()) {
        body.push_str("<h3>Why: one of them, step by step</h3>\n");
        body.push_str(&why::chain(&format!("{id}-why"), chain, again));
    }
    let mut compared = at(value, "whatif").cloned().unwrap_or(Value::Null);
    if let Some(fields) = compared.as_object_mut() {
        fields.insert("again".to_owned(), again.into());
    }
    let compared = Input {
        name: input.name.clone(),
        value: compared,
    };
    body.push_str(&compare::section(&format!("{id}-what"), &compared).body);
    body.push_str("<h3>What this stands on</h3>\n");
    for (name, open) in [
        ("assumed", true),
        ("derived", false),
        ("measured", false),
        ("read", false),
    ] {
        let pairs = at(value, name).and_then(Value::as_object).into_iter();
        let pairs = pairs.flatten().map(|(path, note)| {
            let words = note.as_str().unwrap_or("").to_owned();
            (path.clone(), words)
        });
        let pairs = pairs.collect::<Vec<_>>();
        if !pairs.is_empty() {
            let _ = writeln!(
                body,
                "<details{}><summary>{} values {name}</summary>\n{}</details>",
                if open { " open" } else { "" },
                pairs.len(),
                facts(&pairs)
            );
        }
    }
    let remarks = sentences(value, "remarks");
    if !remarks.is_empty() {
        body.push_str("<ul>\n");
        for remark in remarks {
            let _ = writeln!(body, "<li>{}</li>", escape(&remark));
        }
        body.push_str("</ul>\n");
    }
    Section {
        title: headline.to_owned(),
        body,
    }
}

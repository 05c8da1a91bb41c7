//! The causal chain of a failure: its graph, and the links as a list with rule, source and what would have cut them.

use std::fmt::Write as _;

use serde_json::Value;

use super::read::{at, list, text, whole};
use super::{Input, Section, figure};
use crate::report::text::thousands;
use crate::svg::escape;

pub(super) fn section(id: &str, input: &Input) -> Section {
    let value = &input.value;
    let mut body = String::from("<h2>Why a request failed</h2>\n");
    body.push_str(&chain(id, value, text(value, "command")));
    Section {
        title: format!(
            "Request {}: {}",
            thousands(whole(value, "request")),
            text(value, "ended")
        ),
        body,
    }
}

/// One chain as `sim why` gives it; `graph` is its drawing, if there is one.
pub(super) fn chain(id: &str, value: &Value, command: &str) -> String {
    let mut out = String::new();
    let why = text(value, "why");
    let because = if why.is_empty() {
        String::new()
    } else {
        format!(", because {}", escape(why))
    };
    let _ = writeln!(
        out,
        "<p><strong>Request {} from {}: {}</strong>{because}.</p>",
        thousands(whole(value, "request")),
        escape(text(value, "client")),
        escape(text(value, "ended"))
    );
    let graph = text(value, "graph");
    if !graph.is_empty() {
        out.push_str(&figure(&embedded(id, graph), "Each box follows from those above it that point to it. The list below says the same in words.", command));
    }
    out.push_str("<ol>\n");
    for link in list(value, "links") {
        let when = at(link, "at_ns").and_then(Value::as_u64);
        let when = when.map_or_else(String::new, |at| format!(" at {:.3} s", at as f64 / 1e9));
        let place = text(link, "place").replace('_', "-");
        let _ = write!(
            out,
            "<li>{} <span class=\"dim\">({}{when}",
            escape(text(link, "what")),
            escape(&place)
        );
        let because = list(link, "because")
            .iter()
            .filter_map(Value::as_u64)
            .map(|place| (place + 1).to_string());
        let because = because.collect::<Vec<_>>();
        if !because.is_empty() {
            let _ = write!(out, "; follows from {}", because.join(" and "));
        }
        let rule = text(link, "rule");
        if !rule.is_empty() {
            let _ = write!(out, "; rule {}", escape(rule));
        }
        let source = at(link, "source").map(words).unwrap_or_default();
        if !source.is_empty() {
            let _ = write!(out, "; {}", escape(&source));
        }
        let cut = list(link, "cut")
            .iter()
            .filter_map(Value::as_str)
            .collect::<Vec<_>>();
        if !cut.is_empty() {
            let _ = write!(out, "; cut by {}", escape(&cut.join(", ")));
        }
        out.push_str(")</span></li>\n");
    }
    out.push_str("</ol>\n");
    out
}

/// The texts of a value, joined.
fn words(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(map) => map
            .values()
            .map(words)
            .filter(|text| !text.is_empty())
            .collect::<Vec<_>>()
            .join(", "),
        Value::Array(items) => items.iter().map(words).collect::<Vec<_>>().join(", "),
        _ => String::new(),
    }
}

/// A drawing of its own as a part of the page: its ids become the page's, it needs no name space, and as its boxes are light in
/// every look, so its text is dark.
fn embedded(id: &str, graph: &str) -> String {
    graph
        .replace(" xmlns=\"http://www.w3.org/2000/svg\"", " class=\"graph\"")
        .replace("why-arrow", &format!("{id}-arrow"))
}

//! Durations and random durations.

use ipvs_model::time::{NANOS_PER_SEC, Span};
use serde_json::{Value as Json, json};

use crate::scenario::field::{Cx, Field, quoted};
use crate::scenario::tree::{Tree, Value};

/// No duration in a scenario is longer: a year.
const SPAN_MAX: Span = Span::from_secs(366 * 86_400);

const DURATION_HELP: &str = "write a number and a unit: \"250ms\", \"20s\", \"2m 30s\" or \"1h\"";

/// Reads `250ms`, `2m 30s`, `1h`. `None` if it is no duration or longer than a year.
pub fn parse_span(text: &str) -> Option<Span> {
    let duration = text.trim().parse::<jiff::SignedDuration>().ok()?;
    let nanos = u64::try_from(duration.as_nanos()).ok()?;
    (nanos <= SPAN_MAX.0).then_some(Span(nanos))
}

/// A duration as scenarios write it: whole units of the largest unit that leaves no rest.
pub fn span_text(span: Span) -> String {
    let units = [
        (NANOS_PER_SEC, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
        (1, "ns"),
    ];
    let (unit, name) = units
        .into_iter()
        .find(|(unit, _)| span.0.is_multiple_of(*unit))
        .unwrap_or((1, "ns"));
    format!("{}{name}", span.0 / unit)
}

impl Field for Span {
    fn kind() -> String {
        "duration".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        match &tree.value {
            Value::Text(text) => match parse_span(text) {
                Some(span) => Some(span),
                None => cx.bad(tree, "not a duration (of at most a year)", DURATION_HELP),
            },
            Value::Integer(_) | Value::Float(_) => {
                cx.bad(tree, "a duration needs a unit", DURATION_HELP)
            }
            _ => cx.expected(tree, "a duration", "\"20s\""),
        }
    }

    fn encode(&self) -> Option<String> {
        Some(quoted(&span_text(*self)))
    }

    fn schema() -> Json {
        json!({ "type": "string", "examples": ["250ms", "20s", "2m 30s"] })
    }
}

/// `"random"`, drawn anew in every run, or a fixed duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Drawn from the run's seed.
    Random,
    /// Always this.
    Fixed(Span),
}

impl Field for Phase {
    fn kind() -> String {
        "duration or \"random\"".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        match &tree.value {
            Value::Text(text) if text == "random" => Some(Self::Random),
            _ => Span::decode(tree, cx).map(Self::Fixed),
        }
    }

    fn encode(&self) -> Option<String> {
        match self {
            Self::Random => Some("\"random\"".to_owned()),
            Self::Fixed(span) => span.encode(),
        }
    }

    fn schema() -> Json {
        json!({ "anyOf": [{ "const": "random" }, Span::schema()] })
    }
}

/// A random length of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dist {
    /// Always the same.
    Constant(Span),
    /// Every length from the first to the second with equal probability.
    Uniform(Span, Span),
    /// Exponential with this mean.
    Exponential(Span),
    /// Logarithm normally distributed.
    LogNormal {
        /// Half of the draws are shorter.
        median: Span,
        /// Standard deviation of the logarithm, 0 to 5.
        sigma: f64,
    },
}

const DIST_HELP: &str = "write \"5ms\", { uniform = [\"1ms\", \"5ms\"] }, { exponential = \"10ms\" } or \
                         { log_normal = { median = \"5ms\", sigma = 0.5 } }";

impl Dist {
    fn decode_kind(key: &str, tree: &Tree, cx: &mut Cx) -> Option<Self> {
        match key {
            "constant" => Span::decode(tree, cx).map(Self::Constant),
            "exponential" => Span::decode(tree, cx).map(Self::Exponential),
            "uniform" => {
                let Value::Array(items) = &tree.value else {
                    return cx.expected(tree, "two durations", "[\"1ms\", \"5ms\"]");
                };
                let [low, high] = items.as_slice() else {
                    return cx.bad(tree, "two durations are needed", DIST_HELP);
                };
                let (low, high) = (Span::decode(low, cx), Span::decode(high, cx));
                let (low, high) = (low?, high?);
                if low > high {
                    return cx.bad(tree, "ends before it starts", "write the shorter one first");
                }
                Some(Self::Uniform(low, high))
            }
            "log_normal" => {
                let table = cx.table(tree, &["median", "sigma"])?;
                let limits = 0.0..=5.0;
                let median = cx.field(table, "median", || Span::from_millis(5));
                let sigma = cx.field_in(table, "sigma", || 0.5, &limits);
                Some(Self::LogNormal { median, sigma })
            }
            _ => None,
        }
    }
}

impl Field for Dist {
    fn kind() -> String {
        "distribution".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        let names = ["constant", "uniform", "exponential", "log_normal"];
        match &tree.value {
            Value::Table(table) => match table.as_slice() {
                [(key, value)] if names.contains(&key.name.as_str()) => {
                    cx.within(&key.name, value.place, |cx| {
                        Self::decode_kind(&key.name, value, cx)
                    })
                }
                _ => cx.not_a_choice(tree, &[], &names),
            },
            Value::Text(_) => Span::decode(tree, cx).map(Self::Constant),
            Value::Integer(_) | Value::Float(_) => {
                cx.bad(tree, "a duration needs a unit", DIST_HELP)
            }
            _ => cx.expected(
                tree,
                "a duration or a distribution",
                "{ exponential = \"10ms\" }",
            ),
        }
    }

    fn encode(&self) -> Option<String> {
        let text = |span: Span| quoted(&span_text(span));
        Some(match *self {
            Self::Constant(span) => text(span),
            Self::Uniform(low, high) => format!("{{ uniform = [{}, {}] }}", text(low), text(high)),
            Self::Exponential(mean) => format!("{{ exponential = {} }}", text(mean)),
            Self::LogNormal { median, sigma } => format!(
                "{{ log_normal = {{ median = {}, sigma = {sigma} }} }}",
                text(median)
            ),
        })
    }

    fn schema() -> Json {
        let one = |name: &str, inner: Json| {
            json!({
                "type": "object",
                "properties": { name: inner },
                "required": [name],
                "additionalProperties": false,
            })
        };
        let log_normal = json!({
            "type": "object",
            "properties": {
                "median": Span::schema(),
                "sigma": { "type": "number", "minimum": 0, "maximum": 5 },
            },
            "additionalProperties": false,
        });
        let pair = json!({
            "type": "array", "items": Span::schema(), "minItems": 2, "maxItems": 2,
        });
        json!({ "anyOf": [
            Span::schema(),
            one("constant", Span::schema()),
            one("uniform", pair),
            one("exponential", Span::schema()),
            one("log_normal", log_normal),
        ]})
    }
}

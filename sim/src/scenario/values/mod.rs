//! The values that fields hold. Here the plain ones; durations, addresses and what names a node in files of their own.

mod net;
mod node;
mod time;

pub use net::*;
pub use node::*;
use serde_json::{Value as Json, json};
pub use time::*;

use super::ENTRIES_MAX;
use super::field::{Cx, Field, Section, quoted};
use super::tree::{Tree, Value};

impl Field for bool {
    fn kind() -> String {
        "boolean".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        match tree.value {
            Value::Bool(value) => Some(value),
            _ => cx.expected(tree, "true or false", "true"),
        }
    }

    fn encode(&self) -> Option<String> {
        Some(self.to_string())
    }

    fn schema() -> Json {
        json!({ "type": "boolean" })
    }
}

macro_rules! integer {
    ($($ty:ty),+) => { $(
        impl Field for $ty {
            fn kind() -> String {
                "integer".to_owned()
            }

            fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
                let Value::Integer(value) = tree.value else {
                    return cx.expected(tree, "a whole number", "5");
                };
                match Self::try_from(value) {
                    Ok(value) => Some(value),
                    Err(_) => cx.bad(
                        tree,
                        "out of range",
                        &format!("write a whole number from {} to {}", Self::MIN, Self::MAX),
                    ),
                }
            }

            fn encode(&self) -> Option<String> {
                Some(self.to_string())
            }

            fn schema() -> Json {
                json!({ "type": "integer", "minimum": Self::MIN, "maximum": Self::MAX })
            }
        }
    )+ };
}
integer!(u8, u16, u32);

impl Field for f64 {
    fn kind() -> String {
        "number".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        let value = match tree.value {
            Value::Float(value) => value,
            Value::Integer(value) => value as Self,
            _ => return cx.expected(tree, "a number", "12.5"),
        };
        if value.is_finite() {
            Some(value)
        } else {
            cx.bad(
                tree,
                "not a finite number",
                "write a number such as 500 or 12.5",
            )
        }
    }

    fn encode(&self) -> Option<String> {
        Some(format!("{self}"))
    }

    fn schema() -> Json {
        json!({ "type": "number" })
    }
}

impl Field for String {
    fn kind() -> String {
        "string".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        match tree.text() {
            Some(text) => Some(text.to_owned()),
            None => cx.expected(tree, "a string", "\"text\""),
        }
    }

    fn encode(&self) -> Option<String> {
        Some(quoted(self))
    }

    fn schema() -> Json {
        json!({ "type": "string" })
    }
}

/// `"none"` or a value.
impl<T: Field> Field for Option<T> {
    fn kind() -> String {
        format!("{} or \"none\"", T::kind())
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        match &tree.value {
            Value::Text(text) if text == "none" => Some(None),
            _ => T::decode(tree, cx).map(Some),
        }
    }

    fn encode(&self) -> Option<String> {
        match self {
            None => Some("\"none\"".to_owned()),
            Some(value) => value.encode(),
        }
    }

    fn schema() -> Json {
        json!({ "anyOf": [{ "const": "none" }, T::schema()] })
    }
}

/// `"kernel"` for the default of the host's kernel, or a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd)]
pub struct OrKernel<T>(pub Option<T>);

impl<T: Field> Field for OrKernel<T> {
    fn kind() -> String {
        format!("{} or \"kernel\"", T::kind())
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        match &tree.value {
            Value::Text(text) if text == "kernel" => Some(Self(None)),
            _ => T::decode(tree, cx).map(|value| Self(Some(value))),
        }
    }

    fn encode(&self) -> Option<String> {
        match &self.0 {
            None => Some("\"kernel\"".to_owned()),
            Some(value) => value.encode(),
        }
    }

    fn schema() -> Json {
        json!({ "anyOf": [{ "const": "kernel" }, T::schema()] })
    }
}

impl<T: Section> Field for Vec<T> {
    fn kind() -> String {
        "array of tables".to_owned()
    }

    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self> {
        let Value::Array(items) = &tree.value else {
            let name = cx.path();
            return cx.expected(tree, "one or more tables", &format!("[[{name}]]"));
        };
        if items.is_empty() {
            return cx.bad(tree, "empty", "leave it out, or write at least one table");
        }
        if items.len() > ENTRIES_MAX {
            let reason = format!("{} tables; at most {ENTRIES_MAX}", items.len());
            return cx.bad(tree, &reason, "use `count` for hosts that are alike");
        }
        let mut all = Vec::new();
        for (index, item) in items.iter().enumerate() {
            all.extend(cx.within(&index.to_string(), item.place, |cx| T::decode(item, cx)));
        }
        (all.len() == items.len()).then_some(all)
    }

    fn encode(&self) -> Option<String> {
        let items = self.iter().filter_map(Field::encode).collect::<Vec<_>>();
        Some(format!("[{}]", items.join(", ")))
    }

    fn schema() -> Json {
        json!({ "type": "array", "minItems": 1, "items": T::schema() })
    }
}

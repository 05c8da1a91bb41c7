//! YAML and JSON into the tree that diagnostics can point into. JSON is read as the YAML that it is.
//!
//! Leaves out: null, which Kubernetes takes as absent, and tags.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use crate::diag::{Diag, Place};
use crate::scenario::tree::{Key, Tree, Value};

/// A value before it is told where it stands.
enum Raw {
    Null,
    Scalar(Value),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Integer(value.into())))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Integer(value.into())))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Float(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Text(value.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

/// The documents of text number `source`.
///
/// # Errors
/// If it is neither YAML nor JSON; the diagnostic points at the place.
pub fn documents(text: &str, source: usize) -> Result<Vec<Tree>, Diag> {
    let options = serde_saphyr::options! { with_snippet: false };
    let found = serde_saphyr::from_multiple_with_options::<Spanned<Raw>>(text, options);
    let documents = found.map_err(|error| {
        let at = error.location().map(|at| place(at, text, source));
        let message = error.to_string();
        let message = message.lines().next().unwrap_or_default();
        Diag::error("syntax", format!("neither YAML nor JSON: {message}"))
            .at(at, "")
            .help("give what `kubectl get -o yaml` or `-o json` prints")
    })?;
    let trees = documents.into_iter();
    Ok(trees
        .filter_map(|document| convert(document, text, source))
        .collect())
}

/// `None` for null.
fn convert(node: Spanned<Raw>, text: &str, source: usize) -> Option<Tree> {
    let at = place(node.referenced, text, source);
    let value = match node.value {
        Raw::Null => return None,
        Raw::Scalar(value) => value,
        Raw::List(items) => {
            let items = items.into_iter();
            Value::Array(
                items
                    .filter_map(|item| convert(item, text, source))
                    .collect(),
            )
        }
        Raw::Map(entries) => Value::Table(
            entries
                .into_iter()
                .filter_map(|(key, value)| {
                    let place = place(key.referenced, text, source);
                    let name = key.value;
                    Some((Key { name, place }, convert(value, text, source)?))
                })
                .collect(),
        ),
    };
    Some(Tree {
        value,
        place: at,
        raw: None,
    })
}

/// A location as a range of bytes; of a map or a list, its first word.
fn place(at: serde_saphyr::Location, text: &str, source: usize) -> Place {
    let span = at.span();
    let start = match span.byte_offset() {
        Some(offset) => usize::try_from(offset).unwrap_or(text.len()),
        None => {
            let line = usize::try_from(at.line()).unwrap_or(1).max(1);
            let before = text.split_inclusive('\n').take(line - 1);
            before.map(str::len).sum()
        }
    }
    .min(text.len());
    let rest = text.get(start..).unwrap_or_default();
    let line_end = rest.find(['\n', '\r']).unwrap_or(rest.len());
    let length = usize::try_from(span.byte_len().unwrap_or(1)).unwrap_or(1);
    Place::new(source, start..start + length.clamp(1, line_end.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at<'t>(tree: &'t Tree, name: &str) -> &'t Tree {
        let Value::Table(table) = &tree.value else {
            panic!("{tree:?}");
        };
        &table.iter().find(|(key, _)| key.name == name).unwrap().1
    }

    #[test]
    fn documents_know_their_places() {
        let text = "a: 1\nb: [\"25%\", null, x]\n---\n# nothing\n---\nc:\n  d: true\n";
        let found = documents(text, 3).unwrap();
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(at(&found[0], "a").value, Value::Integer(1));
        let Value::Array(items) = &at(&found[0], "b").value else {
            panic!("{found:?}");
        };
        assert_eq!(items.len(), 2, "null is absent");
        let share = items[0].place;
        assert_eq!(
            (share.source, &text[share.start..share.end]),
            (3, "\"25%\"")
        );
        assert_eq!(at(at(&found[1], "c"), "d").value, Value::Bool(true));
    }

    #[test]
    fn json_is_yaml() {
        let text =
            "{\n    \"kind\": \"List\",\n    \"items\": [ { \"n\": -3, \"t\": \"no\\n\" } ]\n}\n";
        let found = documents(text, 0).unwrap();
        let Value::Array(items) = &at(&found[0], "items").value else {
            panic!("{found:?}");
        };
        assert_eq!(at(&items[0], "n").value, Value::Integer(-3));
        assert_eq!(at(&items[0], "t").value, Value::Text("no\n".to_owned()));
    }

    #[test]
    fn broken_text_is_pointed_at() {
        for text in [
            "a: [1, 2\nb: 3\n",
            "{\"a\": 1,, }",
            "a: 1\na: 2\n",
            "a: *nowhere\n",
        ] {
            let diag = documents(text, 0).unwrap_err();
            assert!(diag.title.starts_with("neither YAML nor JSON"), "{diag:?}");
            assert!(!diag.labels.is_empty(), "{text}: {diag:?}");
        }
    }
}

//! How a field of a scenario is read, written and described: one trait, two macros, so that a field's name, default,
//! limits and documentation stand in one place and cannot drift apart.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::RangeInclusive;

use serde_json::{Map, Value as Json, json};

use super::suggest::nearest;
use super::tree::{Table, Tree, Value};
use crate::diag::{Diag, Place};

/// A type that a scenario can hold.
pub trait Field: Sized {
    /// Short name of what to write, for the documentation: "duration", "integer".
    fn kind() -> String;
    /// Reads the value; on a mistake reports it to `cx` and returns `None`.
    fn decode(tree: &Tree, cx: &mut Cx) -> Option<Self>;
    /// The value as TOML on one line; `None` for "not set".
    fn encode(&self) -> Option<String>;
    /// JSON schema (draft-07) of the TOML value.
    fn schema() -> Json;
}

/// A table with named fields, made by [`section!`](crate::scenario::field).
pub trait Section: Field + Default + PartialEq {
    /// The fields' names in order.
    const NAMES: &'static [&'static str];
    /// Name, value, and whether it is the default, of each field that fits on a line.
    fn lines(&self) -> Vec<(&'static str, Option<String>, bool)>;
}

/// What decoding collects: mistakes, and where each field stood.
#[derive(Debug, Default)]
pub struct Cx {
    /// Mistakes so far.
    pub diags: Vec<Diag>,
    path: Vec<String>,
    places: BTreeMap<String, Place>,
}

impl Cx {
    /// Where a field's value stands; `None` if it was not written.
    pub fn place(&self, path: &str) -> Option<Place> {
        self.places.get(path).copied()
    }

    /// The dotted path of the field being read.
    pub fn path(&self) -> String {
        self.path.join(".")
    }

    /// Runs `read` one level deeper in the path.
    pub fn within<R>(&mut self, name: &str, place: Place, read: impl FnOnce(&mut Self) -> R) -> R {
        self.path.push(name.to_owned());
        let path = self.path();
        self.places.insert(path, place);
        let result = read(self);
        self.path.pop();
        result
    }

    /// Reports a value of the wrong kind; always `None`.
    pub fn expected<T>(&mut self, tree: &Tree, what: &str, example: &str) -> Option<T> {
        let title = format!("`{}` must be {what}", self.path());
        self.diags.push(
            Diag::error("wrong-type", title)
                .at(tree.place, format!("this is {}", tree.kind()))
                .help(format!("write for example `{example}`")),
        );
        None
    }

    /// Reports a value that cannot be; always `None`.
    pub fn bad<T>(&mut self, tree: &Tree, reason: &str, help: &str) -> Option<T> {
        let title = format!("bad value for `{}`", self.path());
        self.diags.push(
            Diag::error("bad-value", title)
                .at(tree.place, reason)
                .help(help),
        );
        None
    }

    /// The value as a table whose keys are all among `names`.
    pub fn table<'t>(&mut self, tree: &'t Tree, names: &[&str]) -> Option<&'t Table> {
        let Value::Table(table) = &tree.value else {
            let example = names
                .first()
                .map_or("{ }".to_owned(), |n| format!("{{ {n} = ... }}"));
            return self.expected(tree, "a table", &example);
        };
        for (key, _) in table {
            if !names.contains(&key.name.as_str()) {
                let diag = self.unknown_key(&key.name, key.place, names);
                self.diags.push(diag);
            }
        }
        Some(table)
    }

    fn unknown_key(&self, name: &str, place: Place, names: &[&str]) -> Diag {
        let path = self.path();
        let section = if path.is_empty() {
            "a scenario".to_owned()
        } else {
            format!("`{path}`")
        };
        let short = name.chars().take(60).collect::<String>();
        let diag = Diag::error("unknown-key", format!("{section} has no field `{short}`"))
            .at(place, "unknown field");
        match nearest(name, names.iter().copied()) {
            Some(near) => diag.help(format!("did you mean `{near}`?")),
            None => diag.help(format!("its fields are {}", names.join(", "))),
        }
    }

    /// Reads field `name` of a table, or takes its default.
    pub fn field<T: Field>(&mut self, table: &Table, name: &str, default: impl FnOnce() -> T) -> T {
        let Some((_, tree)) = table.iter().find(|(key, _)| key.name == name) else {
            return default();
        };
        self.within(name, tree.place, |cx| T::decode(tree, cx))
            .unwrap_or_else(default)
    }

    /// The same with limits.
    pub fn field_in<T: Field + PartialOrd>(
        &mut self,
        table: &Table,
        name: &str,
        default: impl FnOnce() -> T,
        limits: &RangeInclusive<T>,
    ) -> T {
        let value = self.field(table, name, default);
        if limits.contains(&value) {
            return value;
        }
        let text = |value: &T| value.encode().unwrap_or_default();
        let path = if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path())
        };
        let title = format!("`{path}` is out of range");
        let help = if limits.start() == limits.end() {
            format!("write {}", text(limits.start()))
        } else {
            format!("write {} to {}", text(limits.start()), text(limits.end()))
        };
        let place = self.place(&path);
        self.diags.push(
            Diag::error("out-of-range", title)
                .at(place, format!("{} is not allowed", text(&value)))
                .help(help),
        );
        value
    }

    /// Reports a word that is none of a choice's; always `None`.
    pub fn not_a_choice<T>(&mut self, tree: &Tree, words: &[&str], tables: &[&str]) -> Option<T> {
        let title = format!("bad value for `{}`", self.path());
        let diag = Diag::error("bad-value", title);
        let mut forms = words.iter().map(|w| format!("\"{w}\"")).collect::<Vec<_>>();
        forms.extend(tables.iter().map(|t| format!("{{ {t} = ... }}")));
        let all = format!("write {}", forms.join(" or "));
        let form = |name: &str| match words.contains(&name) {
            true => format!("\"{name}\""),
            false => format!("{{ {name} = ... }}"),
        };
        let guess = |given: &str| {
            let near = nearest(given, words.iter().chain(tables).copied());
            near.map_or_else(
                || all.clone(),
                |near| format!("did you mean {}?", form(near)),
            )
        };
        let diag = match &tree.value {
            Value::Text(word) => diag
                .at(tree.place, "not one of the choices")
                .help(guess(word)),
            Value::Table(table) => match table.as_slice() {
                [(key, _)] => diag
                    .at(key.place, "not one of the choices")
                    .help(guess(&key.name)),
                [] => diag.at(tree.place, "nothing is chosen").help(all),
                many => many
                    .iter()
                    .fold(diag, |diag, (key, _)| diag.at(key.place, "one choice"))
                    .help("a choice has exactly one key: keep one, or set the whole field at once"),
            },
            _ => diag
                .at(tree.place, format!("this is {}", tree.kind()))
                .help(all),
        };
        self.diags.push(diag);
        None
    }
}

/// A string as TOML.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The text of doc comments: lines joined, blank lines between paragraphs.
pub fn doc_text(lines: &[&str]) -> String {
    let mut out = String::new();
    for line in lines.iter().map(|line| line.trim()) {
        if line.is_empty() {
            out.push_str("\n\n");
        } else {
            if !out.is_empty() && !out.ends_with('\n') {
                out.push(' ');
            }
            out.push_str(line);
        }
    }
    out
}

/// One property of a section's schema: what the type says plus documentation, default and limits.
pub fn property<T: Field>(docs: &[&str], default: &T, limits: Option<(&T, &T)>) -> Json {
    let mut schema = match T::schema() {
        Json::Object(map) => map,
        _ => Map::new(),
    };
    schema.insert("description".into(), doc_text(docs).into());
    schema.insert("x-type".into(), T::kind().into());
    if let Some(text) = default.encode() {
        schema.insert("default".into(), toml_to_json(&text));
        schema.insert("x-default".into(), text.into());
    }
    if let Some((low, high)) = limits {
        let (low, high) = (
            low.encode().unwrap_or_default(),
            high.encode().unwrap_or_default(),
        );
        if let (Ok(low), Ok(high)) = (low.parse::<f64>(), high.parse::<f64>()) {
            let number = |n: f64| {
                if n.fract() == 0.0 && n.abs() < 9e15 {
                    json!(n as i64)
                } else {
                    json!(n)
                }
            };
            schema.insert("minimum".into(), number(low));
            schema.insert("maximum".into(), number(high));
        }
        let plain = |text: String| text.trim_matches('"').to_owned();
        schema.insert(
            "x-range".into(),
            format!("{} to {}", plain(low), plain(high)).into(),
        );
    }
    Json::Object(schema)
}

fn toml_to_json(text: &str) -> Json {
    let document = format!("value = {text}");
    match toml::from_str::<Json>(&document) {
        Ok(mut json) => json["value"].take(),
        Err(_) => Json::Null,
    }
}

/// Declares a table of a scenario: each field with its documentation, type, default and, if it has any, limits.
macro_rules! section {
    (
        $(#[doc = $doc:literal])+
        $(#[derive($extra:ident)])?
        pub struct $name:ident {
            $(
                $(#[doc = $fdoc:literal])+
                $field:ident : $ty:ty = $default:expr $(; in $limits:expr)? ,
            )+
        }
    ) => {
        $(#[doc = $doc])+
        #[derive(Clone, Debug, PartialEq)]
        $(#[derive($extra)])?
        pub struct $name {
            $( $(#[doc = $fdoc])+ pub $field: $ty, )+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )+ }
            }
        }

        impl $crate::scenario::field::Field for $name {
            fn kind() -> String {
                "table".to_owned()
            }

            fn decode(
                tree: &$crate::scenario::tree::Tree,
                cx: &mut $crate::scenario::field::Cx,
            ) -> Option<Self> {
                use $crate::scenario::field::Section;
                let table = cx.table(tree, Self::NAMES)?;
                Some(Self {
                    $( $field: section!(@get cx, table, $field, $ty, $default $(, $limits)?), )+
                })
            }

            fn encode(&self) -> Option<String> {
                let mut parts = Vec::new();
                $(
                    if let Some(text) = $crate::scenario::field::Field::encode(&self.$field) {
                        parts.push(format!("{} = {text}", stringify!($field)));
                    }
                )+
                Some(format!("{{ {} }}", parts.join(", ")))
            }

            fn schema() -> serde_json::Value {
                use $crate::scenario::field::property;
                let default = Self::default();
                let mut properties = serde_json::Map::new();
                $(
                    properties.insert(
                        stringify!($field).to_owned(),
                        section!(@property [$($fdoc),+], default.$field $(, $limits)?),
                    );
                )+
                serde_json::json!({
                    "type": "object",
                    "description": $crate::scenario::field::doc_text(&[$($doc),+]),
                    "properties": properties,
                    "additionalProperties": false,
                })
            }
        }

        impl $crate::scenario::field::Section for $name {
            const NAMES: &'static [&'static str] = &[$( stringify!($field) ),+];

            fn lines(&self) -> Vec<(&'static str, Option<String>, bool)> {
                let default = Self::default();
                vec![$( (
                    stringify!($field),
                    $crate::scenario::field::Field::encode(&self.$field),
                    self.$field == default.$field,
                ), )+]
            }
        }
    };
    (@get $cx:ident, $table:ident, $field:ident, $ty:ty, $default:expr) => {
        $cx.field::<$ty>($table, stringify!($field), || $default)
    };
    (@get $cx:ident, $table:ident, $field:ident, $ty:ty, $default:expr, $limits:expr) => {
        $cx.field_in::<$ty>($table, stringify!($field), || $default, &$limits)
    };
    (@property [$($doc:literal),+], $value:expr) => {
        property(&[$($doc),+], &$value, None)
    };
    (@property [$($doc:literal),+], $value:expr, $limits:expr) => {{
        let limits = $limits;
        property(&[$($doc),+], &$value, Some((limits.start(), limits.end())))
    }};
}
pub(super) use section;

/// Declares a choice: a plain word for variants without a payload, `{ name = payload }` for the others.
macro_rules! choice {
    (
        $(#[doc = $doc:literal])+
        $(#[derive($extra:ident)])?
        pub enum $name:ident {
            $( $(#[doc = $vdoc:literal])+ $text:literal => $variant:ident $( ( $payload:ty ) )? , )+
        }
    ) => {
        $(#[doc = $doc])+
        #[derive(Clone, Debug, PartialEq)]
        $(#[derive($extra)])?
        pub enum $name {
            $( $(#[doc = $vdoc])+ $variant $( ( $payload ) )? , )+
        }

        impl $crate::scenario::field::Field for $name {
            fn kind() -> String {
                [$( choice!(@form $text $(, $payload)?) ),+].join(" or ")
            }

            fn decode(
                tree: &$crate::scenario::tree::Tree,
                cx: &mut $crate::scenario::field::Cx,
            ) -> Option<Self> {
                use $crate::scenario::tree::Value;
                let forms = [$( ($text, choice!(@is_table $($payload)?)) ),+];
                let words = forms.iter().filter(|f| !f.1).map(|f| f.0).collect::<Vec<_>>();
                let tables = forms.iter().filter(|f| f.1).map(|f| f.0).collect::<Vec<_>>();
                if let Value::Text(word) = &tree.value {
                    let _ = word;
                    $( choice!(@word word, $text, $name, $variant $(, $payload)?); )+
                }
                if let Value::Table(table) = &tree.value
                    && let [(key, value)] = table.as_slice()
                {
                    let _ = (key, value);
                    $( choice!(@table cx, key, value, $text, $name, $variant $(, $payload)?); )+
                }
                cx.not_a_choice(tree, &words, &tables)
            }

            fn encode(&self) -> Option<String> {
                $( choice!(@encode self, $text, $name, $variant $(, $payload)?); )+
                None
            }

            fn schema() -> serde_json::Value {
                let forms = vec![$( choice!(@schema [$($vdoc),+], $text $(, $payload)?) ),+];
                serde_json::json!({ "oneOf": forms })
            }
        }
    };
    (@form $text:literal) => { concat!("\"", $text, "\"") };
    (@form $text:literal, $payload:ty) => { concat!("{ ", $text, " = ... }") };
            (@is_table) => { false };
    (@is_table $payload:ty) => { true };
    (@word $word:ident, $text:literal, $name:ident, $variant:ident) => {
        if $word == $text { return Some($name::$variant); }
    };
    (@word $word:ident, $text:literal, $name:ident, $variant:ident, $payload:ty) => {};
    (@table $cx:ident, $key:ident, $value:ident, $text:literal, $name:ident, $variant:ident) => {};
    (@table $cx:ident, $key:ident, $value:ident, $text:literal, $name:ident, $variant:ident, $payload:ty) => {
        if $key.name == $text {
            return $cx
                .within($text, $value.place, |cx| {
                    <$payload as $crate::scenario::field::Field>::decode($value, cx)
                })
                .map($name::$variant);
        }
    };
    (@encode $self:ident, $text:literal, $name:ident, $variant:ident) => {
        if let $name::$variant = $self { return Some(concat!("\"", $text, "\"").to_owned()); }
    };
    (@encode $self:ident, $text:literal, $name:ident, $variant:ident, $payload:ty) => {
        if let $name::$variant(payload) = $self {
            let text = $crate::scenario::field::Field::encode(payload)?;
            return Some(format!("{{ {} = {text} }}", $text));
        }
    };
    (@schema [$($doc:literal),+], $text:literal) => {
        serde_json::json!({
            "const": $text,
            "description": $crate::scenario::field::doc_text(&[$($doc),+]),
        })
    };
    (@schema [$($doc:literal),+], $text:literal, $payload:ty) => {{
        let mut inner = <$payload as $crate::scenario::field::Field>::schema();
        inner["x-type"] = <$payload as $crate::scenario::field::Field>::kind().into();
        serde_json::json!({
            "type": "object",
            "description": $crate::scenario::field::doc_text(&[$($doc),+]),
            "properties": { $text: inner },
            "required": [$text],
            "additionalProperties": false,
        })
    }};
}
pub(super) use choice;

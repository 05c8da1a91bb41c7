//! A TOML document in which every key and value knows its place, so that flags can be laid over a file and an error
//! still points at whichever of the two was wrong.

use toml::de::{DeTable, DeValue};

use crate::diag::{Diag, Place};

/// A key as written.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// The key, unquoted.
    pub name: String,
    /// Where.
    pub place: Place,
}

/// A value as written.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A string.
    Text(String),
    /// An integer; beyond 128 bits it saturates, which no range check lets through.
    Integer(i128),
    /// A float, NaN and infinities included.
    Float(f64),
    /// `true` or `false`.
    Bool(bool),
    /// A date or time: no field takes one.
    Date,
    /// An array.
    Array(Vec<Tree>),
    /// A table.
    Table(Table),
}

/// Keys and values in the order written.
pub type Table = Vec<(Key, Tree)>;

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Tree {
    /// The value.
    pub value: Value,
    /// Where.
    pub place: Place,
    /// The text of a flag's value: `--kernel 5.4` looks like a float and means a release.
    pub raw: Option<String>,
}

impl Tree {
    /// Parses TOML text number `source`. Every syntax error is reported.
    pub fn parse(text: &str, source: usize) -> Result<Self, Vec<Diag>> {
        let (table, errors) = DeTable::parse_recoverable(text);
        if errors.is_empty() {
            let place = Place::new(source, table.span());
            let value = Value::Table(convert_table(table.get_ref(), source));
            return Ok(Self {
                value,
                place,
                raw: None,
            });
        }
        let diag = |error: &toml::de::Error| {
            let message = error.message().lines().collect::<Vec<_>>().join("; ");
            let place = error.span().map(|span| Place::new(source, span));
            Diag::error("syntax", format!("not TOML: {message}")).at(place, "")
        };
        let mut diags = errors.iter().map(diag).collect::<Vec<_>>();
        diags.sort_by_key(|diag| diag.labels.first().map(|label| label.place));
        Err(diags)
    }

    /// The value of a flag: TOML if it is a number, a boolean, a quoted string, an array or a table, else a string.
    pub fn of_flag(text: &str, place: Place) -> Self {
        let value = match DeValue::parse(text) {
            Ok(value) => convert(&value, place.source).moved_to(place).value,
            Err(_) => Value::Text(text.to_owned()),
        };
        let value = match value {
            Value::Date => Value::Text(text.to_owned()),
            value => value,
        };
        let raw = Some(text.to_owned());
        Self { value, place, raw }
    }

    /// An empty table.
    pub const fn empty_table(place: Place) -> Self {
        Self {
            value: Value::Table(Vec::new()),
            place,
            raw: None,
        }
    }

    /// The value as a string: a string, or whatever a flag was given.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => self.raw.as_deref(),
        }
    }

    /// What the value is, for "expected X, found Y".
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Text(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::Float(_) => "a float",
            Value::Bool(_) => "a boolean",
            Value::Date => "a date",
            Value::Array(_) => "an array",
            Value::Table(_) => "a table",
        }
    }

    /// The same value with every place replaced.
    #[must_use]
    pub fn moved_to(mut self, place: Place) -> Self {
        self.place = place;
        match &mut self.value {
            Value::Array(items) => {
                *items = std::mem::take(items)
                    .into_iter()
                    .map(|item| item.moved_to(place))
                    .collect();
            }
            Value::Table(table) => {
                *table = std::mem::take(table)
                    .into_iter()
                    .map(|(key, value)| (Key { place, ..key }, value.moved_to(place)))
                    .collect();
            }
            _ => {}
        }
        self
    }
}

fn convert_table(table: &DeTable<'_>, source: usize) -> Table {
    let mut entries = table
        .iter()
        .map(|(key, value)| {
            let name = key.get_ref().clone().into_owned();
            let place = Place::new(source, key.span());
            (Key { name, place }, convert(value, source))
        })
        .collect::<Table>();
    entries.sort_by_key(|(key, _)| key.place);
    entries
}

fn convert(value: &toml::Spanned<DeValue<'_>>, source: usize) -> Tree {
    let place = Place::new(source, value.span());
    let value = match value.get_ref() {
        DeValue::String(text) => Value::Text(text.clone().into_owned()),
        DeValue::Integer(int) => {
            let parsed = i128::from_str_radix(int.as_str(), int.radix());
            let overflow = if int.as_str().starts_with('-') {
                i128::MIN
            } else {
                i128::MAX
            };
            Value::Integer(parsed.unwrap_or(overflow))
        }
        DeValue::Float(float) => Value::Float(float.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(bool) => Value::Bool(*bool),
        DeValue::Datetime(_) => Value::Date,
        DeValue::Array(items) => {
            Value::Array(items.iter().map(|item| convert(item, source)).collect())
        }
        DeValue::Table(table) => Value::Table(convert_table(table, source)),
    };
    Tree {
        value,
        place,
        raw: None,
    }
}

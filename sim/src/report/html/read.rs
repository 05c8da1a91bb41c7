//! Reading the fields of a result: what is missing or of another kind reads as nothing, since results of older releases
//! lack fields.

use serde_json::Value;

/// A whole number; 0 if there is none.
pub fn whole(value: &Value, path: &str) -> u64 {
    at(value, path).and_then(Value::as_u64).unwrap_or(0)
}

/// A number.
pub fn number(value: &Value, path: &str) -> Option<f64> {
    at(value, path).and_then(Value::as_f64)
}

/// A text; empty if there is none.
pub fn text<'v>(value: &'v Value, path: &str) -> &'v str {
    at(value, path).and_then(Value::as_str).unwrap_or("")
}

/// A list; empty if there is none.
pub fn list<'v>(value: &'v Value, path: &str) -> &'v [Value] {
    at(value, path)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// The value at a dotted path.
pub fn at<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(value, |value, key| value.get(key))
}

/// Nanoseconds at a path, as seconds.
pub fn seconds(value: &Value, path: &str) -> f64 {
    whole(value, path) as f64 / 1e9
}

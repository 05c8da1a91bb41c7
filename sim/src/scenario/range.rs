//! Lists and ranges of values on the command line: `0,1,2`, `100..2000 step 100`, `1k..8k x2`.

/// No range or list has more values.
pub const VALUES_MAX: usize = 1000;

/// A list that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not a list of values: {reason}; {help}")]
pub struct RangeError {
    /// What was written.
    pub given: String,
    /// What is wrong.
    pub reason: String,
    /// What to write instead.
    pub help: String,
}

/// Decimal numbers are counted in billionths, so that steps add up exactly.
const SCALE: i128 = 1_000_000_000;

/// Expands a list: items between commas, each a plain value or a range. Both ends belong to a range.
///
/// # Errors
/// If it is empty, a range cannot be read or never ends, or there would be more than [`VALUES_MAX`] values.
pub fn expand(text: &str) -> Result<Vec<String>, RangeError> {
    let fail = |reason: &str, help: &str| RangeError {
        given: text.chars().take(80).collect(),
        reason: reason.to_owned(),
        help: help.to_owned(),
    };
    let mut values = Vec::new();
    for item in items(text) {
        let item = item.trim();
        if item.is_empty() {
            return Err(fail(
                "an item is empty",
                "write values with commas between them",
            ));
        }
        let room = VALUES_MAX - values.len();
        match item.split_once("..") {
            Some((low, rest)) => match range(low, rest, room) {
                Ok(more) => values.extend(more),
                Err((reason, help)) => return Err(fail(&reason, help)),
            },
            None => values.push(plain(item)),
        }
        if values.len() > VALUES_MAX {
            return Err(fail("more than 1000 values", "write fewer"));
        }
    }
    Ok(values)
}

/// The text between commas that are not inside brackets, braces or quotes.
fn items(text: &str) -> Vec<&str> {
    let (mut depth, mut quoted, mut start) = (0i32, false, 0);
    let mut items = Vec::new();
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '[' | '{' if !quoted => depth += 1,
            ']' | '}' if !quoted => depth -= 1,
            ',' if !quoted && depth == 0 => {
                items.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items.push(&text[start..]);
    items
}

/// `2k` is 2000; everything else stays as written.
fn plain(item: &str) -> String {
    match number(item) {
        Some((value, "")) if item.ends_with(['k', 'M']) => text_of(value, ""),
        _ => item.to_owned(),
    }
}

const RANGE_HELP: &str = "write LOW..HIGH step STEP, or LOW..HIGH xFACTOR";

fn range(low: &str, rest: &str, room: usize) -> Result<Vec<String>, (String, &'static str)> {
    let fail = |reason: &str| Err((reason.to_owned(), RANGE_HELP));
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim();
    let (high, tail) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let Some((low, low_unit)) = number(low.trim()) else {
        return fail("its start is not a number");
    };
    let Some((high, unit)) = number(high) else {
        return fail("its end is not a number");
    };
    if low_unit != unit && !(low == 0 && low_unit.is_empty()) {
        return fail("its ends have different units");
    }
    if low > high {
        return fail("it ends before it starts");
    }
    let next: Box<dyn Fn(i128) -> i128> = match tail.trim() {
        "" => Box::new(|value| value + SCALE),
        tail => match (tail.strip_prefix("step"), tail.strip_prefix('x')) {
            (Some(step), _) => match number(step.trim()) {
                Some((step, u)) if step > 0 && (u == unit || u.is_empty()) => {
                    Box::new(move |value| value + step)
                }
                Some((step, _)) if step <= 0 => return fail("its step is not greater than 0"),
                _ => return fail("its step is not a number of the same unit"),
            },
            (None, Some(factor)) => match number(factor.trim()) {
                Some((factor, "")) if factor > SCALE && low > 0 => {
                    // A value grows by at least a billionth, or the range would never end.
                    Box::new(move |value| match value.checked_mul(factor) {
                        Some(product) => (product / SCALE).max(value + 1),
                        None => i128::MAX,
                    })
                }
                Some((factor, "")) if factor > SCALE => {
                    return fail("it multiplies, so it must start above 0");
                }
                _ => return fail("its factor is not a number above 1"),
            },
            _ => return fail("after its end stands neither `step` nor `x`"),
        },
    };
    let mut values = Vec::new();
    let mut value = low;
    while value <= high {
        if values.len() == room {
            let reason = "more than 1000 values".to_owned();
            return Err((reason, "write a larger step: LOW..HIGH step STEP"));
        }
        values.push(text_of(value, unit));
        value = next(value);
    }
    Ok(values)
}

/// A decimal number in billionths with its unit: `k` and `M` multiply, units of time are kept.
fn number(text: &str) -> Option<(i128, &str)> {
    let end = text
        .find(|c: char| !matches!(c, '0'..='9' | '.' | '_' | '-'))
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let digits = digits.replace('_', "");
    let (negative, digits) = match digits.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, digits.as_str()),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let all_digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !all_digits(whole) || !all_digits(fraction) || whole.len() > 15 || fraction.len() > 9 {
        return None;
    }
    let fraction = format!("{fraction:0<9}").parse::<i128>().ok()?;
    let value = whole.parse::<i128>().ok()? * SCALE + fraction;
    let value = if negative { -value } else { value };
    match unit {
        "k" => Some((value * 1_000, "")),
        "M" => Some((value * 1_000_000, "")),
        "" | "ns" | "us" | "ms" | "s" | "m" | "h" => Some((value, unit)),
        _ => None,
    }
}

fn text_of(value: i128, unit: &str) -> String {
    let sign = if value < 0 { "-" } else { "" };
    let (whole, fraction) = (value.abs() / SCALE, value.abs() % SCALE);
    let fraction = match fraction {
        0 => String::new(),
        fraction => format!(".{}", format!("{fraction:09}").trim_end_matches('0')),
    };
    format!("{sign}{whole}{fraction}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Vec<String> {
        expand(text).unwrap()
    }

    #[test]
    fn lists_and_ranges_expand() {
        assert_eq!(values("28232"), ["28232"]);
        assert_eq!(values("0,1,2"), ["0", "1", "2"]);
        assert_eq!(values("0..2"), ["0", "1", "2"]);
        assert_eq!(values("1k..8k x2"), ["1000", "2000", "4000", "8000"]);
        assert_eq!(values("100..450 step 100"), ["100", "200", "300", "400"]);
        assert_eq!(values("0.1..0.3 step 0.1"), ["0.1", "0.2", "0.3"]);
        assert_eq!(values("0s..60s step 30s, 2m"), ["0s", "30s", "60s", "2m"]);
        assert_eq!(values("100..2000 step 100").len(), 20);
        assert_eq!(
            values("4.19.57,5.15.0-91-generic"),
            ["4.19.57", "5.15.0-91-generic"]
        );
        assert_eq!(values("[2348,2349],connect"), ["[2348,2349]", "connect"]);
        assert_eq!(
            values("900000000000000M..900000000000001M x900000000000000M").len(),
            1
        );
        assert_eq!(values("32768-60999, 2k"), ["32768-60999", "2000"]);
    }

    #[test]
    fn what_cannot_be_expanded_says_why() {
        for (text, reason) in [
            ("", "an item is empty"),
            ("1,,2", "an item is empty"),
            ("1..x", "its end is not a number"),
            ("..5", "its start is not a number"),
            ("5..1", "it ends before it starts"),
            ("1..5 step 0", "not greater than 0"),
            ("1..5 step -1", "not greater than 0"),
            ("1..5 x1", "not a number above 1"),
            ("0..5 x2", "must start above 0"),
            ("1s..5ms", "different units"),
            ("1..5 by 2", "neither `step` nor `x`"),
            ("1..100000", "more than 1000 values"),
            ("0.000000001..1 x1.000000001", "more than 1000 values"),
            ("1..600,1..600", "more than 1000 values"),
        ] {
            let error = expand(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}

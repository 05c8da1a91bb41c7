//! What a sweep varies: axes of values, and the points of their product.

use std::fmt;

use thiserror::Error;

/// The most points of one sweep. More is nearly always a slip (`1..100000`), and takes hours.
pub const MAX_POINTS: usize = 2_000;

/// A setting of one field: its path (or shortcut) and the text of its value, as a person would type it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setting {
    /// The field's path in the scenario, or a shortcut (`rps`).
    pub path: String,
    /// The value.
    pub value: String,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.path, self.value)
    }
}

/// One field and the values it takes, in the order they were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    /// The field's path in the scenario, or a shortcut.
    pub path: String,
    /// At least one value.
    pub values: Vec<String>,
}

impl Axis {
    /// Reads the values: a list (`0,1`), a range (`100..2000 step 100`, the end included if a step meets it), or
    /// a list of both. See [`read_values`].
    ///
    /// # Errors
    /// As [`read_values`].
    pub fn parse(path: &str, values: &str) -> Result<Self, GridError> {
        Ok(Self {
            path: path.to_owned(),
            values: read_values(path, values)?,
        })
    }

    /// The values as numbers, if all of them are.
    pub fn numbers(&self) -> Option<Vec<f64>> {
        self.values
            .iter()
            .map(|value| value.replace('_', "").parse().ok())
            .collect()
    }
}

/// One point: a value for every axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Its place in the grid's order.
    pub index: usize,
    /// One setting for each axis, in the order of the axes.
    pub settings: Vec<Setting>,
}

/// The product of axes. The last axis runs fastest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grid {
    axes: Vec<Axis>,
}

impl Grid {
    /// The product of `axes`; none gives one point without settings.
    ///
    /// # Errors
    /// Two axes of one path, the same value twice, or more than [`MAX_POINTS`] points.
    pub fn new(axes: Vec<Axis>) -> Result<Self, GridError> {
        let mut points = 1_usize;
        for (place, axis) in axes.iter().enumerate() {
            if axes[..place].iter().any(|other| other.path == axis.path) {
                return Err(GridError::Twice {
                    path: axis.path.clone(),
                });
            }
            for (i, value) in axis.values.iter().enumerate() {
                if axis.values[..i].contains(value) {
                    return Err(GridError::SameValue {
                        path: axis.path.clone(),
                        value: value.clone(),
                    });
                }
            }
            points = points.saturating_mul(axis.values.len());
        }
        if points > MAX_POINTS {
            return Err(GridError::TooManyPoints { points });
        }
        Ok(Self { axes })
    }

    /// The axes.
    pub fn axes(&self) -> &[Axis] {
        &self.axes
    }

    /// The points, in order.
    pub fn points(&self) -> Vec<Point> {
        let count = self.axes.iter().map(|axis| axis.values.len()).product();
        (0..count).map(|index| self.point(index)).collect()
    }

    fn point(&self, index: usize) -> Point {
        let mut rest = index;
        let mut settings = Vec::with_capacity(self.axes.len());
        for axis in self.axes.iter().rev() {
            let value = axis.values[rest % axis.values.len()].clone();
            settings.push(Setting {
                path: axis.path.clone(),
                value,
            });
            rest /= axis.values.len();
        }
        settings.reverse();
        Point { index, settings }
    }
}

/// What is wrong with the values or their product.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum GridError {
    /// No value.
    #[error(
        "{path}: no value given: write one (`2000`), a list (`0,1`) or a range (`100..2000 step 100`)"
    )]
    Empty {
        /// The field.
        path: String,
    },
    /// A range that cannot be read.
    #[error(
        "{path}: cannot read the range `{range}`: {reason}; write for example `100..2000 step 100`"
    )]
    Range {
        /// The field.
        path: String,
        /// What was written.
        range: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A bracket or quote that is not closed.
    #[error("{path}: `{values}` has an unclosed bracket or quote")]
    Unclosed {
        /// The field.
        path: String,
        /// What was written.
        values: String,
    },
    /// A field varied by two flags.
    #[error("{path} is given twice: put all its values into one list")]
    Twice {
        /// The field.
        path: String,
    },
    /// A value twice on one axis.
    #[error("{path}: the value {value} is listed twice")]
    SameValue {
        /// The field.
        path: String,
        /// The value.
        value: String,
    },
    /// Too many values or points.
    #[error(
        "too many points: at least {points}, at most {MAX_POINTS} are allowed; widen a step, or \
         sweep fewer fields at a time"
    )]
    TooManyPoints {
        /// How many were asked for (at least).
        points: usize,
    },
}

/// Reads the values of one field: items separated by commas, each a value or a range `A..B` with an optional
/// `step S` (1 if not given). Numbers are decimal and may carry one unit, the same in all places (`5s..60s step
/// 5s`). Commas within brackets, braces and quotes do not separate. Plain values are not interpreted here.
///
/// # Errors
/// No value, an unreadable or descending range, a step of zero, or more than [`MAX_POINTS`] values.
pub fn read_values(path: &str, text: &str) -> Result<Vec<String>, GridError> {
    let mut values = Vec::new();
    for item in split_items(path, text)? {
        if item.is_empty() {
            return Err(GridError::Empty {
                path: path.to_owned(),
            });
        }
        match item
            .split_once("..")
            .filter(|_| !item.starts_with(['"', '\'', '[', '{']))
        {
            Some((from, rest)) => expand(path, item, from, rest, &mut values)?,
            None => values.push(item.to_owned()),
        }
        if values.len() > MAX_POINTS {
            return Err(GridError::TooManyPoints {
                points: values.len(),
            });
        }
    }
    Ok(values)
}

fn split_items<'a>(path: &str, text: &'a str) -> Result<Vec<&'a str>, GridError> {
    let (mut items, mut start, mut depth, mut quote) = (Vec::new(), 0, 0_u32, None);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => depth = depth.saturating_sub(1),
            (None, ',') if depth == 0 => {
                items.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    if depth > 0 || quote.is_some() {
        return Err(GridError::Unclosed {
            path: path.to_owned(),
            values: text.to_owned(),
        });
    }
    items.push(text[start..].trim());
    Ok(items)
}

fn expand(
    path: &str,
    range: &str,
    from: &str,
    rest: &str,
    values: &mut Vec<String>,
) -> Result<(), GridError> {
    let wrong = |reason| GridError::Range {
        path: path.to_owned(),
        range: range.to_owned(),
        reason,
    };
    let (to, step) = match rest.split_once("step") {
        Some((to, step)) => (
            to,
            Some(Decimal::parse(step).ok_or(wrong("the step is not a number"))?),
        ),
        None => (rest, None),
    };
    let from = Decimal::parse(from).ok_or(wrong("the start is not a number"))?;
    let to = to.trim_start().trim_start_matches('=');
    let to = Decimal::parse(to).ok_or(wrong("the end is not a number"))?;
    let step = step.unwrap_or(Decimal {
        digits: 1,
        places: 0,
        unit: from.unit,
    });
    if from.unit != to.unit || from.unit != step.unit {
        return Err(wrong("the units differ"));
    }
    let places = from.places.max(to.places).max(step.places);
    let (first, last, by) = (from.scaled(places), to.scaled(places), step.scaled(places));
    let (Some(first), Some(last), Some(by)) = (first, last, by) else {
        return Err(wrong("a number is too long"));
    };
    if by <= 0 {
        return Err(wrong("the step must be above zero"));
    }
    if last < first {
        return Err(wrong("the end lies before the start"));
    }
    let count = usize::try_from((last - first) / by)
        .unwrap_or(usize::MAX)
        .saturating_add(1);
    if count > MAX_POINTS {
        return Err(GridError::TooManyPoints { points: count });
    }
    let mut digits = first;
    while digits <= last {
        values.push(
            Decimal {
                digits,
                places,
                unit: from.unit,
            }
            .to_string(),
        );
        digits += by;
    }
    Ok(())
}

/// A decimal number with a unit, exact, so that `0.1..0.3 step 0.1` has three values and prints them so.
#[derive(Clone, Copy, Debug)]
struct Decimal<'a> {
    digits: i128,
    /// Digits after the point.
    places: u32,
    unit: &'a str,
}

impl<'a> Decimal<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let text = text.trim();
        let is_number = |c: char| c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
        let end = text.find(|c: char| !is_number(c)).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let number = number.replace('_', "");
        let (whole, part) = number.split_once('.').unwrap_or((number.as_str(), ""));
        // 15 digits on each side leave room for every sum and scale below.
        let short = whole.len() <= 16 && part.len() <= 15;
        let digits = (short && whole.ends_with(|c: char| c.is_ascii_digit()))
            .then(|| format!("{whole}{part}").parse().ok())??;
        Some(Self {
            digits,
            places: part.len() as u32,
            unit: unit.trim(),
        })
    }

    fn scaled(&self, places: u32) -> Option<i128> {
        self.digits
            .checked_mul(10_i128.checked_pow(places - self.places)?)
    }
}

impl fmt::Display for Decimal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.digits < 0 { "-" } else { "" };
        let unit = 10_u128.pow(self.places);
        let (whole, part) = (
            self.digits.unsigned_abs() / unit,
            self.digits.unsigned_abs() % unit,
        );
        write!(f, "{sign}{whole}")?;
        if part > 0 {
            let width = self.places as usize;
            write!(f, ".{}", format!("{part:0width$}").trim_end_matches('0'))?;
        }
        f.write_str(self.unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Vec<String> {
        read_values("x", text).expect("readable")
    }

    fn error(text: &str) -> String {
        read_values("x", text).expect_err("unreadable").to_string()
    }

    #[test]
    fn lists_and_ranges_expand_exactly() {
        assert_eq!(values("28232"), ["28232"]);
        assert_eq!(values("0, 1"), ["0", "1"]);
        assert_eq!(values("100..400 step 100"), ["100", "200", "300", "400"]);
        assert_eq!(values("1..3"), ["1", "2", "3"]);
        assert_eq!(values("1..=3,9"), ["1", "2", "3", "9"]);
        assert_eq!(values("0.1..0.35 step 0.1"), ["0.1", "0.2", "0.3"]);
        assert_eq!(values("-1..1"), ["-1", "0", "1"]);
        assert_eq!(values("5s..60s step 25s"), ["5s", "30s", "55s"]);
        assert_eq!(values("1_000..2_000 step 1_000"), ["1000", "2000"]);
    }

    #[test]
    fn plain_values_pass_untouched() {
        assert_eq!(values("32768-60999"), ["32768-60999"]);
        assert_eq!(
            values("5.15.0-91-generic,3.10.0-1160.el7"),
            ["5.15.0-91-generic", "3.10.0-1160.el7"]
        );
        assert_eq!(
            values("[1,2],{a=1,b=2},\"a,b..c\""),
            ["[1,2]", "{a=1,b=2}", "\"a,b..c\""]
        );
    }

    #[test]
    fn unreadable_values_say_what_to_write() {
        assert!(error("").contains("no value given"));
        assert!(error("1,,2").contains("no value given"));
        assert!(error("1..x").contains("not a number"));
        assert!(error("..3").contains("not a number"));
        assert!(error("9..1").contains("before the start"));
        assert!(error("1..9 step 0").contains("above zero"));
        assert!(error("1..9 step -1").contains("above zero"));
        assert!(error("1s..9ms").contains("units differ"));
        assert!(error("[1,2").contains("unclosed"));
        assert!(error("1..9999999999999999999999999").contains("not a number"));
    }

    #[test]
    fn too_many_points_are_refused_without_making_them() {
        assert!(error("0..1000000000000").contains("too many points"));
        let axis = |path: &str| Axis::parse(path, "1..100").expect("readable");
        let error = Grid::new(vec![axis("a"), axis("b")]).expect_err("10,000 points");
        assert!(error.to_string().contains("10000"), "{error}");
    }

    #[test]
    fn the_last_axis_runs_fastest() {
        let axes = vec![
            Axis::parse("a", "1,2").unwrap(),
            Axis::parse("b", "x,y,z").unwrap(),
        ];
        let points = Grid::new(axes).unwrap().points();
        let texts: Vec<String> = points
            .iter()
            .map(|p| {
                p.settings
                    .iter()
                    .map(|s| s.value.as_str())
                    .collect::<String>()
            })
            .collect();
        assert_eq!(texts, ["1x", "1y", "1z", "2x", "2y", "2z"]);
        assert_eq!(points[4].index, 4);
        assert_eq!(Grid::new(vec![]).unwrap().points().len(), 1);
    }

    #[test]
    fn the_same_field_or_value_twice_is_an_error() {
        let axis = |values| Axis::parse("a", values).unwrap();
        assert!(matches!(
            Grid::new(vec![axis("1"), axis("2")]),
            Err(GridError::Twice { .. })
        ));
        assert!(matches!(
            Grid::new(vec![axis("1,1")]),
            Err(GridError::SameValue { .. })
        ));
    }
}

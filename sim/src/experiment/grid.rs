//! What a sweep varies: axes of values, and the points of their product.

use std::fmt;

use thiserror::Error;

use crate::scenario::range::{self, RangeError};

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
    /// An axis with the values that `crate::scenario::range::expand` makes of `values`: a list (`0,1`), a range
    /// (`100..2000 step 100`), or a list of both.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn parse(path: &str, values: &str) -> Result<Self, RangeError> {
        let values = range::expand(values)?;
        let path = path.to_owned();
        Ok(Self { path, values })
    }

    /// Whether all values are numbers, with the same unit or without.
    pub fn is_numeric(&self) -> bool {
        let unit = |value: &String| {
            let end = value.trim_start_matches(|c: char| c.is_ascii_digit() || "._-".contains(c));
            let (number, unit) = value.split_at(value.len() - end.len());
            number
                .replace('_', "")
                .parse::<f64>()
                .ok()
                .map(|_| unit.trim().to_owned())
        };
        let first = self.values.first().and_then(unit);
        first.is_some() && self.values.iter().all(|value| unit(value) == first)
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
    /// Too many points.
    #[error(
        "too many points: {points}, and at most {MAX_POINTS} are allowed; widen a step, or sweep fewer fields at a time"
    )]
    TooManyPoints {
        /// How many were asked for.
        points: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_points_are_refused_without_making_them() {
        let axis = |path: &str| Axis::parse(path, "1..1000").expect("readable");
        let error = Grid::new(vec![axis("a"), axis("b"), axis("c")])
            .expect_err("a thousand million points");
        assert!(error.to_string().contains("1000000000"), "{error}");
    }

    #[test]
    fn numbers_are_told_from_words() {
        for (values, numeric) in [
            ("1,2.5", true),
            ("5s..60s step 5s", true),
            ("5s,10ms", false),
            ("rr,wrr", false),
            ("5.15.0,6.1.0", false),
            ("32768-60999", false),
            ("none,5s", false),
        ] {
            assert_eq!(
                Axis::parse("x", values).expect("readable").is_numeric(),
                numeric,
                "{values}"
            );
        }
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

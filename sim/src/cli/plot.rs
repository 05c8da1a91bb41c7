//! `sim plot`: a sweep's CSV as a picture, recordings of real kernels beside it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{CommonError, Exit, validate};
use crate::output;
use crate::report::plot::{Plot, Series};
use crate::scenario::{Arrivals, Side};
use crate::validate::{Quantity, Recording};

/// Arguments of `sim plot`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What `sim sweep --format csv` wrote.
    sweep: PathBuf,
    /// What runs to the right: a column, NUMBER/COLUMN or COLUMN/NUMBER.
    #[arg(long, value_name = "EXPRESSION")]
    x: String,
    /// What runs upwards.
    #[arg(long, value_name = "EXPRESSION")]
    y: String,
    /// A line for each value of this column.
    #[arg(long, value_name = "COLUMN")]
    by: Option<String>,
    /// Recordings of rollouts to draw as dots. They have the columns rps, closes-first, requests, request_fails_count,
    /// request_finds_no_port_count and request_connects_late_count.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    recordings: Vec<PathBuf>,
    /// A dashed line at an x, with a word: 120=TIME_WAIT. Repeatable.
    #[arg(long, value_name = "X=WORDS", value_parser = border)]
    border: Vec<(f64, String)>,
    /// Over the plot.
    #[arg(long, default_value = "")]
    title: String,
    /// Under the plot; without it, the expression.
    #[arg(long, value_name = "WORDS")]
    x_label: Option<String>,
    /// Beside the plot; without it, the expression.
    #[arg(long, value_name = "WORDS")]
    y_label: Option<String>,
    /// Write to this file instead of standard output; it appears complete or not at all.
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
}

const EXAMPLES: &str = "Example:
  sim sweep --rps '3..25 step 1' --runs 1 --format csv --out sweep.csv
  sim plot sweep.csv --x rps --y request_fails_count --by conn-reuse-mode --out sweep.svg";

fn border(text: &str) -> Result<(f64, String), String> {
    let parts = text.split_once('=');
    let parts = parts.and_then(|(x, words)| Some((x.parse().ok()?, words.to_owned())));
    parts.ok_or_else(|| "write a number and words: 120=TIME_WAIT".to_owned())
}

/// A value of a row: a column, or a quotient of a column and a number.
#[derive(Clone, Debug, PartialEq)]
enum Expression {
    Column(String),
    Over(f64, String),
    Divided(String, f64),
}

impl Expression {
    fn parse(text: &str) -> Self {
        if let Some((left, right)) = text.split_once('/') {
            if let Ok(number) = left.trim().parse() {
                return Self::Over(number, right.trim().to_owned());
            }
            if let Ok(number) = right.trim().parse() {
                return Self::Divided(left.trim().to_owned(), number);
            }
        }
        Self::Column(text.trim().to_owned())
    }

    fn column(&self) -> &str {
        match self {
            Self::Column(name) | Self::Over(_, name) | Self::Divided(name, _) => name,
        }
    }

    fn of(&self, row: &Row) -> Result<f64, String> {
        let name = self.column();
        let Some(text) = row.get(name) else {
            let known: Vec<&str> = row.keys().map(String::as_str).collect();
            return Err(format!(
                "there is no column `{name}`; there are {}",
                known.join(", ")
            ));
        };
        let value: f64 = text
            .parse()
            .map_err(|_| format!("column `{name}` holds `{text}`, which is no number"))?;
        let value = match self {
            Self::Column(_) => value,
            Self::Over(number, _) => number / value,
            Self::Divided(_, number) => value / number,
        };
        if value.is_finite() {
            Ok(value)
        } else {
            Err(format!("column `{name}` holds `{text}`: cannot divide"))
        }
    }
}

type Row = BTreeMap<String, String>;

fn rows(path: &PathBuf) -> Result<Vec<Row>, String> {
    let mut reader = csv::Reader::from_path(path).map_err(|error| error.to_string())?;
    let found: Result<Vec<Row>, csv::Error> = reader.deserialize().collect();
    found.map_err(|error| error.to_string())
}

/// A recording as a row of a sweep.
fn recorded(recording: &Recording) -> Row {
    let rate: f64 = recording
        .scenario
        .client
        .iter()
        .map(|client| match client.arrivals {
            Arrivals::Constant(rate) | Arrivals::Poisson(rate) => rate.rate,
            Arrivals::Closed(_) => 0.0,
        })
        .sum();
    let client = recording.scenario.client.first();
    let closes = match client.map(|client| client.closes_first) {
        Some(Side::Client) => "client",
        _ => "server",
    };
    let count = |quantity| recording.counts.get(quantity).to_string();
    [
        ("rps", rate.to_string()),
        ("closes-first", closes.to_owned()),
        ("requests", count(Quantity::Requests)),
        ("request_fails_count", count(Quantity::Failed)),
        ("request_finds_no_port_count", count(Quantity::NoPort)),
        ("request_connects_late_count", count(Quantity::Late)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into_iter()
    .collect()
}

/// One series for each value of `by`, in the order in which they come; with the colours of those that are there already.
fn series(
    rows: &[Row],
    args: &Args,
    marks: bool,
    into: &mut Vec<Series>,
) -> Result<(), CommonError> {
    let (x, y) = (Expression::parse(&args.x), Expression::parse(&args.y));
    let mut kinds: Vec<String> = into.iter().map(|series| series.name.clone()).collect();
    let mut found: Vec<Series> = Vec::new();
    for row in rows {
        let kind = match &args.by {
            None => String::new(),
            Some(by) => row.get(by).cloned().ok_or_else(|| {
                CommonError::Usage(format!("--by {by}: there is no such column\n"))
            })?,
        };
        let name = match &args.by {
            None => "model".to_owned(),
            Some(by) => format!("{by} {kind}"),
        };
        let colour = kinds
            .iter()
            .position(|known| *known == name)
            .unwrap_or_else(|| {
                kinds.push(name.clone());
                kinds.len() - 1
            });
        let point = x.of(row).and_then(|x| Ok((x, y.of(row)?)));
        let point = point.map_err(|error| CommonError::Usage(format!("{error}\n")))?;
        let name = if marks {
            format!("{name}, kernel")
        } else {
            name
        };
        match found.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => found.push(Series {
                name,
                points: vec![point],
                marks,
                colour,
            }),
        }
    }
    for series in &mut found {
        series.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    into.extend(found);
    Ok(())
}

/// Runs `sim plot`.
///
/// # Errors
/// If a file cannot be read, has no such column, or the output cannot be written.
pub fn run(args: Args) -> Result<u8, CommonError> {
    let table = rows(&args.sweep).map_err(|error| {
        CommonError::Usage(format!(
            "{}: {error}; give what `sim sweep --format csv` wrote\n",
            args.sweep.display()
        ))
    })?;
    let mut all = Vec::new();
    series(&table, &args, false, &mut all)?;
    if !args.recordings.is_empty() {
        let recordings = validate::load(&args.recordings)?;
        let table: Vec<Row> = recordings.iter().map(recorded).collect();
        series(&table, &args, true, &mut all)?;
    }
    let plot = Plot {
        title: args.title.clone(),
        x: args.x_label.clone().unwrap_or_else(|| args.x.clone()),
        y: args.y_label.clone().unwrap_or_else(|| args.y.clone()),
        series: all,
        borders: args.border.clone(),
    };
    output::write(args.out.as_deref(), plot.svg().as_bytes())?;
    Ok(Exit::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        [("rps", "12"), ("failed", "600"), ("mode", "server")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into_iter()
            .collect()
    }

    #[test]
    fn columns_and_quotients_are_computed() {
        let value = |text: &str| Expression::parse(text).of(&row());
        assert_eq!(value("rps"), Ok(12.0));
        assert_eq!(value("600/rps"), Ok(50.0));
        assert_eq!(value("failed/500"), Ok(1.2));
    }

    #[test]
    fn what_cannot_be_computed_is_said() {
        let wrong = |text: &str| Expression::parse(text).of(&row()).expect_err("no number");
        assert!(wrong("rate").contains("there are failed, mode, rps"));
        assert!(wrong("mode").contains("`server`"));
        assert!(wrong("failed/0").contains("divide"));
    }
}

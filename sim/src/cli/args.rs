//! What several commands take: how much to run, and small readers of values.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{CommonError, Overrides};
use crate::experiment::rows::{Plan, RowsError};
use crate::report::text::Look;
use crate::scenario::{Document, FieldName, parse_span};

/// How much to run.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "How much to run")]
pub struct HowMuch {
    /// Exactly this many rollouts of each setting, whatever the budget says.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub runs: Option<u64>,
    /// At most this many rollouts of each setting.
    #[arg(long, value_name = "N", default_value_t = 1 << 16, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub max_runs: u64,
    /// Stop after this time; "none" for as long as it takes.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = budget)]
    pub budget: Budget,
    /// The root of all random choices, decimal or 0x hexadecimal.
    #[arg(long, value_name = "SEED", default_value = "0x1", value_parser = seed)]
    pub seed: u64,
    /// Threads; without it, one for each processor. The result is the same with any number.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub threads: Option<u64>,
}

impl HowMuch {
    /// The plan of it.
    pub fn plan(&self) -> Plan {
        let all = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self
            .threads
            .and_then(|threads| usize::try_from(threads).ok());
        Plan {
            root_seed: self.seed,
            exact_runs: self.runs,
            max_runs: self.max_runs,
            budget: self.budget.0,
            threads: threads.unwrap_or_else(all),
        }
    }
}

/// Time to spend; none for no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget(pub Option<Duration>);

/// Reads a budget.
pub fn budget(text: &str) -> Result<Budget, String> {
    if text == "none" {
        return Ok(Budget(None));
    }
    let span = parse_span(text).ok_or("write a time such as 10s or 5m, or none")?;
    Ok(Budget(Some(Duration::from_nanos(span.0))))
}

/// Reads a seed.
pub fn seed(text: &str) -> Result<u64, String> {
    let seed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    seed.map_err(|_| "write a number below 2^64, decimal or hexadecimal with 0x".to_owned())
}

/// Reads a number that may be in per cent: `20%`, `0.2`, `1e-4`, `1 %`.
pub fn fraction(text: &str) -> Option<f64> {
    let (number, scale) = text
        .strip_suffix('%')
        .map_or((text, 1.0), |number| (number, 100.0));
    Some(number.trim().parse::<f64>().ok()? / scale)
}

/// Reads a share, as a [`fraction`].
pub fn share(text: &str) -> Result<f64, String> {
    let share = fraction(text).filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "write a share from 0 to 1, such as 1e-4, 0.2 or 20%".to_owned())
}

/// The document of a file, or of the founding case.
pub fn document(path: Option<&Path>) -> Result<Document, CommonError> {
    Ok(match path {
        Some(path) => Document::load(path)?,
        None => Document::default(),
    })
}

/// The words that a command line gave for scenario fields, for a shell.
pub fn given(overrides: &Overrides) -> Vec<String> {
    let word = |(field, value): &(FieldName, String)| match field {
        FieldName::Short(name) => format!("--{name} {}", quoted(value)),
        FieldName::Path(path) => format!("--set {}", quoted(&format!("{path}={value}"))),
    };
    overrides.given.iter().map(word).collect()
}

/// The scenario's part of a command line, to give it again.
pub fn again(scenario: Option<&Path>, overrides: &Overrides) -> String {
    let file = scenario.map(|path| quoted(&path.display().to_string()));
    let words: Vec<String> = file.into_iter().chain(given(overrides)).collect();
    words.join(" ")
}

/// A result as it is kept.
#[derive(serde::Serialize)]
struct Kept<'r, T> {
    /// Which command's.
    kind: &'static str,
    /// The command that repeats it.
    again: String,
    #[serde(flatten)]
    result: &'r T,
}

/// A result as JSON, with the command that repeats it, of which empty words are left out.
///
/// # Errors
/// If it cannot be written as JSON, which is a defect.
pub fn json<T: serde::Serialize>(
    kind: &'static str,
    again: Vec<String>,
    result: &T,
) -> Result<String, CommonError> {
    let words = again.into_iter().filter(|word| !word.is_empty());
    let again = words.collect::<Vec<_>>().join(" ");
    let kept = Kept {
        kind,
        again,
        result,
    };
    let json =
        serde_json::to_string_pretty(&kept).map_err(|error| CommonError::Internal(error.into()))?;
    Ok(format!("{json}\n"))
}

/// A word as a shell reads it back.
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-+=./:,@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Colours for standard output only, which strips them where they do not belong; signs outside ASCII where the locale
/// says UTF-8.
pub fn look(ascii: bool, to_file: bool) -> Look {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(|name| {
        let value = std::env::var(name).ok()?;
        (!value.is_empty()).then_some(value)
    });
    Look {
        unicode: !ascii && locale.is_some_and(|locale| says_utf8(&locale)),
        colour: !to_file,
    }
}

pub(super) fn says_utf8(locale: &str) -> bool {
    let locale = locale.to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

/// A failed row of runs as an error of the command line.
pub fn rows_error(error: RowsError) -> CommonError {
    match error {
        RowsError::Run { .. } => CommonError::Usage(error.to_string()),
        RowsError::Threads(_) => CommonError::Internal(error.into()),
    }
}

/// Between two lines of a log.
const LOG_PERIOD: Duration = Duration::from_secs(5);
/// Between two drawings on a terminal.
const DRAW_PERIOD: Duration = Duration::from_millis(150);

/// A line on standard error that says how far it has come: rewritten on a terminal, seldom repeated in a log.
#[derive(Debug)]
pub struct Teller {
    bar: Option<ProgressBar>,
    shown_at: Duration,
}

impl Default for Teller {
    fn default() -> Self {
        Self::new()
    }
}

impl Teller {
    /// Nothing said yet.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            // The template is a constant and known to be good.
            let style = ProgressStyle::with_template("{spinner} {wide_msg}");
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
        });
        Self {
            bar,
            shown_at: Duration::ZERO,
        }
    }

    /// Says `line`, if it is time to.
    pub fn say(&mut self, elapsed: Duration, line: impl FnOnce() -> String) {
        let period = if self.bar.is_some() {
            DRAW_PERIOD
        } else {
            LOG_PERIOD
        };
        if elapsed < self.shown_at + period {
            return;
        }
        self.shown_at = elapsed;
        match &self.bar {
            Some(bar) => {
                bar.set_message(line());
                bar.tick();
            }
            // If standard error is gone there is nobody to tell.
            None => drop(writeln!(anstream::stderr(), "sim: {}", line())),
        }
    }

    /// Takes the line off the terminal.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

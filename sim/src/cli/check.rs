//! `sim check`: thresholds for CI.

use std::io::Write as _;
use std::path::PathBuf;

use clap::ValueEnum;

use super::args::{self, HowMuch, Teller};
use super::{CommonError, Exit, Format, Overrides, simulate};
use crate::experiment::check::{self, Check, Threshold, Verdict};
use crate::experiment::clock::WallClock;
use crate::output::{self, Output};
use crate::report::check::{self as report, Place, View};
use crate::scenario::Document;

/// Arguments of `sim check`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The scenario; without one, the founding case's rollout.
    scenario: Option<PathBuf>,
    /// A threshold, such as 'p(fail) < 1e-4'; several, each with a --max of its own.
    #[arg(long = "max", value_name = "THRESHOLD", required = true, value_parser = Threshold::parse)]
    max: Vec<Threshold>,
    /// Let a threshold pass if none of the rollouts crossed it, although a kind of rollout up to this share may have been missed.
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = args::share)]
    rare: f64,
    /// What an undecided threshold counts as, for those who need one of two answers.
    #[arg(long, value_enum)]
    undecided: Option<Undecided>,
    #[command(flatten)]
    overrides: Overrides,
    #[command(flatten)]
    how_much: HowMuch,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Write a JUnit report to this file as well.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Print annotations for GitHub Actions as well.
    #[arg(long)]
    github: bool,
    /// Draw with ASCII only.
    #[arg(long)]
    ascii: bool,
    /// Write to this file instead of standard output; it appears complete or not at all.
    #[arg(short, long, visible_alias = "output", value_name = "FILE")]
    out: Option<PathBuf>,
}

const EXAMPLES: &str = "Examples:
  sim check scenarios/founding-case.toml --max 'p(fail) < 1e-4'
  sim check --rps 50 --max 'p(fail) < 1 %' --max 'dead < 10s' --rare 25% --junit check.xml --github

Thresholds:
  p(fail) < SHARE            requests that fail, of those that got a port; p(fail:CAUSE) for one cause
  p(late) < SHARE            requests answered late
  p(no-port) < SHARE         requests without a free local port
  p(any-failure) < SHARE     rollouts with at least one failed request
  p(dead >= TIME) < SHARE    rollouts with a stretch of at least TIME in which nothing was answered
  dead < TIME                the same, with less than 10 % of rollouts

Exit codes: 0 all pass, 3 one is broken, 4 undecided (the 95 % interval holds the limit when the budget is spent). None of n rollouts
failing is no proof that none ever does: without --rare it takes about 40,000 rollouts to pass 1e-4.";

/// What an undecided threshold counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Undecided {
    /// Passed.
    Pass,
    /// Broken.
    Fail,
}

/// Runs `sim check`.
///
/// # Errors
/// Wrong usage, a scenario that cannot be run, or an output that cannot be written.
pub fn run(args: Args) -> Result<u8, CommonError> {
    let mut document = args::document(args.scenario.as_deref())?;
    args.overrides.apply(&mut document)?;
    let loaded = document.resolve()?;
    super::warn(&loaded.warnings);
    let mut output = Output::create(args.out.as_deref())?;
    let clock = WallClock::start();
    let mut teller = Teller::new();
    let plan = args.how_much.plan();
    let mut told = |judged: &[check::Judged], runs: u64, elapsed: std::time::Duration| {
        teller.say(elapsed, || report::so_far(judged, runs, elapsed));
    };
    let result = check::run(
        &loaded.scenario,
        &args.max,
        args.rare,
        &plan,
        &clock,
        &simulate,
        &mut told,
    );
    teller.clear();
    let result = result.map_err(args::rows_error)?;

    let view = View {
        look: args::look(args.ascii, args.out.is_some()),
        rare: args.rare,
        place: place(&args, &document, &result),
        again: args::again(args.scenario.as_deref(), &args.overrides),
    };
    let mut text = match args.format {
        Format::Text => report::text(&result, &view),
        Format::Json => args::json("check", repeat(&args, result.runs), &result)?,
    };
    if args.github {
        text.push_str(&report::annotations(&result, &view));
    }
    output.write(text.as_bytes())?;
    output.finish()?;
    if let Some(path) = &args.junit {
        let xml =
            report::junit(&result, &view).map_err(|error| CommonError::Internal(error.into()))?;
        output::write(Some(path), xml.as_bytes())?;
    }
    let code = exit_code(&result, args.undecided);
    if code == Exit::UNDECIDED {
        // If standard error is gone there is nobody to tell.
        let _ = writeln!(
            anstream::stderr(),
            "sim: undecided; --budget 5m runs longer, --undecided pass|fail chooses"
        );
    }
    Ok(code)
}

/// The command that repeats it.
fn repeat(args: &Args, runs: u64) -> Vec<String> {
    let mut words = vec![
        "sim check".to_owned(),
        args::again(args.scenario.as_deref(), &args.overrides),
    ];
    let max = args.max.iter().map(|max| args::quoted(&max.text));
    words.extend(max.map(|max| format!("--max {max}")));
    if args.rare > 0.0 {
        words.push(format!("--rare {}", args.rare));
    }
    words.push(format!("--runs {runs} --seed {:#x}", args.how_much.seed));
    words
}

fn exit_code(result: &Check, undecided: Option<Undecided>) -> u8 {
    let any = |verdict| result.thresholds.iter().any(|one| one.verdict == verdict);
    match (any(Verdict::Broken), any(Verdict::Undecided), undecided) {
        (true, ..) | (_, true, Some(Undecided::Fail)) => Exit::THRESHOLD_BROKEN,
        (_, true, None) => Exit::UNDECIDED,
        _ => Exit::OK,
    }
}

/// The scenario's file, and its line that has most to do with what fails.
fn place(args: &Args, document: &Document, result: &Check) -> Option<Place> {
    let file = args.scenario.as_ref()?.display().to_string();
    let fields = report::fields_of(result.causes.first().map(|cause| cause.key));
    let line = fields.iter().find_map(|field| document.line_of(field));
    Some(Place {
        file,
        line: line.unwrap_or(1),
    })
}

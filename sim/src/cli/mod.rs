//! The command line: one file a subcommand, arguments in, one call, one report out.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Parser, Subcommand, ValueEnum};

use crate::diag::Diagnostics;
use crate::engine::{self, trace::TraceOptions};
use crate::experiment::RunError;
use crate::outcome::RunSummary;
use crate::scenario::{Document, Loaded, Scenario};

pub mod advise;
pub mod args;
pub mod capacity;
pub mod check;
pub mod completions;
pub mod diff;
pub mod exit;
pub mod explain;
pub mod fit;
pub mod import;
pub mod interrupt;
pub mod kernels;
pub mod matrix;
pub mod merge;
pub mod overrides;
pub mod plot;
pub mod record;
pub mod report;
pub mod run;
pub mod scenario;
pub mod sweep;
pub mod validate;
pub mod whatif;
pub mod why;

pub use exit::{CommonError, Exit};
pub use overrides::Overrides;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const EXIT_CODES: &str = "Exit codes: 0 ok, 1 internal error, 2 wrong usage or scenario, 3 threshold broken, 4 threshold \
                          undecided, 5 divergence, 6 capture unreadable, 7 output not writable, 8 nothing matched, \
                          130 interrupted.";

/// Replays Kubernetes rollouts against a model of IPVS and conntrack, and predicts which connections fail.
#[derive(Debug, Parser)]
#[command(name = "sim", version, styles = STYLES, after_help = EXIT_CODES, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Replay one rollout and show what fails, when and why.
    Run(run::Args),
    /// Predict how often a rollout fails, over ranges of settings.
    Sweep(sweep::Args),
    /// Put the shards of a sweep together: one report, or what is missing.
    Merge(merge::Args),
    /// Compare today's setting with remedies: how often does each fail, what does it cost, what to type.
    Whatif(whatif::Args),
    /// How far a rate, a port range or another setting can go while a target is kept.
    Capacity(capacity::Args),
    /// Check thresholds for CI: pass, broken or undecided, with exit codes, JUnit and annotations.
    Check(check::Args),
    /// Why a request failed: the causal chain from the rollout to the lost packet.
    Why(why::Args),
    /// The handbook: what TIME_WAIT, conn_reuse_mode, weight 0 and the like are, with sources.
    Explain(explain::Args),
    /// Check, describe or show scenario files.
    Scenario(scenario::Args),
    /// Compare captures from real nodes with the model: verdicts, tables, trajectories.
    Diff(diff::Args),
    /// Record a capture on the node that this runs on, for `sim diff`.
    Record(record::Args),
    /// Make a scenario from a node's recording: what was measured, and what had to be assumed.
    Fit(fit::Args),
    /// Make a scenario's rollout from Kubernetes objects: Deployment, Service, EndpointSlice.
    Import(import::Args),
    /// From a recording and a Deployment: what fails if it is rolled out now, why, and what to change.
    Advise(advise::Args),
    /// Draw results as one HTML file: timeline, port space, heat maps, comparison, causes.
    Report(report::Args),
    /// What kernels do: the table of behaviours, or those of one release.
    Kernels(kernels::Args),
    /// Which kernel with which kube-proxy has no problem, delays, failures, or a real server that never goes.
    Matrix(matrix::Args),
    /// Print a shell's completions.
    Completions(completions::CompletionsArgs),
    /// Print manual pages.
    Man(completions::ManArgs),
    /// Draw a sweep's CSV as SVG, recordings of real kernels beside it.
    Plot(plot::Args),
    /// Hold recordings of whole rollouts on real kernels against predictions.
    Validate(validate::Args),
}

/// How a report is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

/// The scenario of a file, or the founding case's rollout, with flags laid over it; warnings go to standard error.
///
/// # Errors
/// All mistakes in file and flags.
pub fn load(path: Option<&PathBuf>, overrides: &Overrides) -> Result<Loaded, CommonError> {
    let mut document = match path {
        Some(path) => Document::load(path)?,
        None => Document::default(),
    };
    overrides.apply(&mut document)?;
    let loaded = document.resolve()?;
    warn(&loaded.warnings);
    Ok(loaded)
}

/// One rollout of a sweep: its counts, and nothing else.
fn simulate(scenario: &Scenario, seed: u64) -> Result<RunSummary, RunError> {
    let result = engine::run(scenario, seed, &TraceOptions::default());
    result.map(|run| run.summary).map_err(RunError)
}

/// The same, every packet one by one.
fn simulate_packets(scenario: &Scenario, seed: u64) -> Result<RunSummary, RunError> {
    let options = TraceOptions {
        no_quiet: true,
        ..TraceOptions::default()
    };
    let result = engine::run(scenario, seed, &options);
    result.map(|run| run.summary).map_err(RunError)
}

/// Sweeps with the engine that was asked for.
fn sweep(args: sweep::Args) -> Result<u8, CommonError> {
    let interrupt = interrupt::Interrupt::watch()
        .map_err(|error| anyhow::Error::from(error).context("cannot wait for signals"))?;
    let simulate: sweep::Simulate<'_> = if args.no_quiet {
        &simulate_packets
    } else {
        &simulate
    };
    sweep::run(args, simulate, &interrupt)
}

/// Prints warnings on standard error.
pub fn warn(warnings: &Diagnostics) {
    // If standard error is gone there is nobody to tell.
    let _ = anstream::stderr().write_all(warnings.render(true).as_bytes());
}

/// Runs a command line; prints its errors; returns the exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors" with exit code 0. A closed pipe is no failure.
            let _ = error.print();
            return u8::try_from(error.exit_code()).unwrap_or(Exit::USAGE);
        }
    };
    let result = match cli.command {
        Command::Run(args) => run::run(args),
        Command::Sweep(args) => sweep(args),
        Command::Merge(args) => merge::run(args),
        Command::Whatif(args) => whatif::run(args),
        Command::Capacity(args) => capacity::run(args),
        Command::Check(args) => check::run(args),
        Command::Why(args) => why::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Scenario(args) => scenario::run(args),
        Command::Diff(args) => diff::run(args),
        Command::Record(args) => record::run(args),
        Command::Fit(args) => fit::run(args),
        Command::Import(args) => import::run(args),
        Command::Advise(args) => advise::run(args),
        Command::Report(args) => report::report(args),
        Command::Kernels(args) => kernels::run(args),
        Command::Matrix(args) => matrix::run(args),
        Command::Completions(args) => completions::completions(&args),
        Command::Man(args) => completions::man(&args),
        Command::Plot(args) => plot::run(args),
        Command::Validate(args) => validate::run(args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            let _ = anstream::stderr().write_all(error.message().as_bytes());
            error.code()
        }
    }
}

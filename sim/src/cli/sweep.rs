//! `sim sweep`: how often a rollout fails, over settings.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use super::args::{self, Teller, seed};
use super::interrupt::Interrupt;
use super::{CommonError, Exit, Overrides};
use crate::experiment::RunError;
use crate::experiment::clock::{Stopwatch, WallClock};
use crate::experiment::ledger::{Forget, Ledger};
use crate::experiment::share::Share;
use crate::experiment::store::Store;
use crate::experiment::store::manifest::Recipe;
use crate::experiment::sweep::{Plan, Stopped, Sweep, run_kept};
use crate::outcome::RunSummary;
use crate::output::Output;
use crate::report::sweep::{self as report, Report};
use crate::report::text::{count_of, thousands};
use crate::scenario::Scenario;
pub(super) use keep::kept;
use keep::{Keep, asked, ended, open};
pub(super) use prepared::Prepared;
use shard::Shard;

mod emit;
mod keep;
mod kernels;
mod prepared;
mod progress;
mod rare;
mod shard;
pub(super) mod words;

/// Arguments of `sim sweep`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    overrides: Overrides,
    /// A field by its path, with a list or range of values: --vary rollout.deployment.pre_stop=0s,20s.
    #[arg(long, value_name = "PATH=VALUES")]
    vary: Vec<String>,
    /// The rollout to start from; without it, the founding case's.
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// Run a point until the interval of its failure probability is this narrow: half its width, relative to the estimate
    /// [default: 20%].
    #[arg(long, value_name = "SHARE", value_parser = precision)]
    precision: Option<f64>,
    /// Stop after this time; "none" for as long as it takes [default: 10s; with --dir, none].
    #[arg(long, value_name = "TIME", value_parser = budget)]
    budget: Option<Budget>,
    /// Exactly this many rollouts at every point, whatever precision and budget say.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    runs: Option<u64>,
    /// At most this many rollouts at every point [default: 65536].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    max_runs: Option<u64>,
    /// Estimate failures too rare to be counted (below one request in 100,000) from the chances that each draw of a port had.
    /// For clients that draw their ports: --port-choice bind.
    #[arg(long)]
    rare: bool,
    /// The root of all random choices, decimal or 0x hexadecimal [default: 0x1].
    #[arg(long, value_name = "SEED", value_parser = seed)]
    seed: Option<u64>,
    /// Threads; without it, one for each processor. The result is the same with any number.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    threads: Option<u64>,
    /// Take every packet one by one, also of connections that meet nothing on their way: slower, with the same result.
    #[arg(long)]
    pub(super) no_quiet: bool,
    /// Keep the result of every rollout in this folder as soon as it is there. The same command goes on where it was
    /// stopped, whatever stopped it.
    #[arg(long, value_name = "DIR", help_heading = KEEPING)]
    dir: Option<PathBuf>,
    /// Go on with the sweep in this folder; --runs, --precision, --max-runs and --budget may be given anew.
    #[arg(long, value_name = "DIR", help_heading = KEEPING,
          conflicts_with_all = ["dir", "scenario", "vary", "seed", "rare", "shard", "shards", "set"])]
    resume: Option<PathBuf>,
    /// Only the rollouts of one shard, into its own folder under --dir: m/n, or auto for what Kubernetes, Slurm, AWS Batch
    /// or CI say. `sim merge` puts the shards together.
    #[arg(long, value_name = "M/N", value_parser = shard::parse, requires = "dir", help_heading = KEEPING)]
    shard: Option<Shard>,
    /// How many shards there are, if whoever started this one does not say.
    #[arg(long, value_name = "N", help_heading = KEEPING)]
    shards: Option<u64>,
    /// Run nothing: write this sweep, in --shards N, as a file for a scheduler.
    #[arg(long, value_enum, value_name = "FOR", help_heading = KEEPING, conflicts_with_all = ["shard", "resume"])]
    emit: Option<emit::Target>,
    /// The container image of the Kubernetes Job.
    #[arg(long, value_name = "IMAGE", default_value = concat!("sim:", env!("CARGO_PKG_VERSION")), help_heading = KEEPING)]
    image: String,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Write to this file instead of standard output; it appears complete or not at all.
    #[arg(short, long, visible_alias = "output", value_name = "FILE")]
    out: Option<PathBuf>,
}

const KEEPING: &str = "Keeping and dividing";

const EXAMPLES: &str = "Examples:
  sim sweep --ports 28232 --rps 2000
  sim sweep --ports 28232 --rps '500..4000 step 500' --conn-reuse-mode 0,1 --format csv --out sweep.csv
  sim sweep --scenario mine.toml --kernel 4.19.57,5.15.0 --vary rollout.deployment.pre_stop=0s,20s,60s
  sim sweep --rps 2000 --runs 500 --dir work              # stop it, and give the same command again
  sim sweep --rps 2000 --runs 500 --dir work --shard 3/64 # on each of 64 machines; then: sim merge work
  sim sweep --rps 2000 --runs 6400 --emit kubernetes --shards 64 --image example/sim:1 --out sweep.yaml

The short names of scenario fields and --vary take one value (2000), a list (0,1) or a range (100..2000 step 100,
1k..8k x2); --set takes one value. Without --conn-reuse-mode, modes 0 and 1 are compared.";

/// How the result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A screen for people.
    #[default]
    Text,
    /// One object; counts and intervals.
    Json,
    /// A line for each point.
    Csv,
}

/// Time to spend; none for no limit. With the words it was given in.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Budget(Option<Duration>, String);

/// The budget of a sweep that keeps nothing.
const BUDGET: Duration = Duration::from_secs(10);

fn budget(text: &str) -> Result<Budget, String> {
    Ok(Budget(args::budget(text)?.0, text.to_owned()))
}

fn precision(text: &str) -> Result<f64, String> {
    let share = args::fraction(text).filter(|share| (1e-4..=10.0).contains(share));
    share.ok_or_else(|| "write a share from 0.01% to 1000%, such as 20% or 0.2".to_owned())
}

/// What simulates one rollout with one seed.
pub type Simulate<'a> = &'a (dyn Fn(&Scenario, u64) -> Result<RunSummary, RunError> + Sync);

/// Runs `sim sweep` with the engine `simulate`, until it is done or `interrupt` is seen.
///
/// # Errors
/// Wrong usage, a scenario that cannot be run at some point, or an output that cannot be written: all found before
/// the first run. A disk that fills up later: what was done is kept.
pub fn run(args: Args, simulate: Simulate<'_>, interrupt: &Interrupt) -> Result<u8, CommonError> {
    let (recipe, keep) = asked(&args)?;
    let prepared = Prepared::of(recipe)?;
    if let Some(target) = args.emit {
        emit::run(&args, target, &prepared)?;
        return Ok(Exit::OK);
    }
    let plan = plan(&args, &prepared, keep.as_ref())?;
    let mut output = Output::create(args.out.as_deref())?;
    let store = keep
        .as_ref()
        .map(|keep| open(keep, &prepared))
        .transpose()?;
    let ledger: &dyn Ledger = match &store {
        Some(store) => store,
        None => &Forget,
    };

    let clock = Session {
        clock: WallClock::start(),
        interrupt,
    };
    let mut watch = Teller::new();
    let simulate: Simulate<'_> = if prepared.recipe.rare {
        &rare::simulate
    } else {
        simulate
    };
    let runner = prepared.runner(simulate);
    let result = run_kept(
        &runner,
        &prepared.points,
        &plan,
        &clock,
        ledger,
        &mut |at| {
            watch.say(at.elapsed, || progress::line(at));
        },
    );
    watch.clear();
    let sweep = result.map_err(|error| ended(error, keep.as_ref()))?;
    tell(&plan, &sweep, store.as_ref(), &clock);
    if interrupt.seen() {
        if let Some(keep) = &keep {
            say(&format!(
                "interrupted; what was done is kept. Go on with: {}",
                keep.again()
            ));
            return Ok(Exit::INTERRUPTED);
        }
        if sweep.runs == 0 {
            say(
                "interrupted before the first rollout; nothing to report (--dir DIR keeps rollouts one by one)",
            );
            return Ok(Exit::INTERRUPTED);
        }
    }
    if plan.share.is_whole() {
        let report = Report {
            base: &prepared.base,
            axes: prepared.grid.axes(),
            sweep: &sweep,
        };
        output.write(&render(args.format, args.out.is_none(), &report)?)?;
        output.finish()?;
    }
    Ok(if interrupt.seen() {
        Exit::INTERRUPTED
    } else {
        Exit::OK
    })
}

/// Time, and the user.
struct Session<'a> {
    clock: WallClock,
    interrupt: &'a Interrupt,
}

impl Stopwatch for Session<'_> {
    fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }

    fn interrupted(&self) -> bool {
        self.interrupt.seen()
    }
}

fn plan(args: &Args, prepared: &Prepared, keep: Option<&Keep>) -> Result<Plan, CommonError> {
    let (recipe, plan) = (&prepared.recipe, plan_of(prepared));
    let share = keep.map_or(Share::WHOLE, |keep| keep.share);
    if !share.is_whole() {
        check_limit(recipe)?;
    }
    let budget = match recipe.budget.as_deref().map(budget) {
        Some(given) => given.map_err(usage)?.0,
        None => keep.is_none().then_some(BUDGET),
    };
    Ok(Plan {
        budget,
        threads: threads(args.threads),
        share,
        ..plan
    })
}

/// A sweep in shards must end by a rule that one shard can follow.
fn check_limit(recipe: &Recipe) -> Result<(), CommonError> {
    if recipe.runs.is_some() || recipe.max_runs.is_some() || recipe.budget.is_some() {
        return Ok(());
    }
    Err(usage(
        "a shard sees no results but its own, so it cannot tell when all together are precise enough: say how many \
         rollouts all shards have together with --runs N, or how long each of them has with --budget TIME",
    ))
}

/// The plan that a recipe names, without what depends on this process.
pub(super) fn plan_of(prepared: &Prepared) -> Plan {
    let (recipe, plan) = (&prepared.recipe, Plan::default());
    Plan {
        root_seed: prepared.seed,
        exact_runs: recipe.runs,
        max_runs: recipe.max_runs.unwrap_or(plan.max_runs),
        precision: recipe.precision.unwrap_or(plan.precision),
        ..plan
    }
}

pub(super) fn usage(error: impl std::fmt::Display) -> CommonError {
    CommonError::Usage(error.to_string())
}

fn threads(asked: Option<u64>) -> usize {
    let all = || std::thread::available_parallelism().map_or(1, usize::from);
    asked
        .and_then(|threads| usize::try_from(threads).ok())
        .unwrap_or_else(all)
}

/// The report in a format; `terminal` if it goes to standard output. Whoever writes there takes the colours out if it
/// is no terminal; a file gets none.
pub(super) fn render(
    format: Format,
    terminal: bool,
    report: &Report<'_>,
) -> Result<Vec<u8>, CommonError> {
    let look = args::look(false, !terminal);
    Ok(match format {
        Format::Text => report::text(report, look).into_bytes(),
        Format::Json => report::json(report).into_bytes(),
        Format::Csv => report::csv(report).map_err(|error| CommonError::Internal(error.into()))?,
    })
}

/// A line on standard error. If that is gone there is nobody to tell.
pub(super) fn say(line: &str) {
    let _ = writeln!(anstream::stderr(), "sim: {line}");
}

/// One line on standard error: what was done, how fast, and what ended it. It holds all that depends on the clock.
fn tell(plan: &Plan, sweep: &Sweep, store: Option<&Store>, clock: &dyn Stopwatch) {
    let seconds = clock.elapsed().as_secs_f64();
    let connections: u64 = sweep
        .points
        .iter()
        .map(|result| result.tally.connections)
        .sum();
    let ended = match sweep.stopped {
        _ if clock.interrupted() => "interrupted".to_owned(),
        _ if !plan.share.is_whole() => format!("shard {}", plan.share),
        Stopped::Precision => "precise enough".to_owned(),
        Stopped::Asked { .. } => "as many as asked".to_owned(),
        Stopped::Budget if plan.exact_runs == Some(sweep.runs) => "as many as asked".to_owned(),
        Stopped::Budget if sweep.runs == plan.max_runs => "stopped by --max-runs".to_owned(),
        Stopped::Budget => "stopped by the time budget (--budget)".to_owned(),
    };
    let mut line = count_of(sweep.rollouts(), "rollout", "rollouts");
    line += &format!(" in {seconds:.1} s");
    // Those that were there before took no time.
    if seconds > 0.0 && connections > 0 && store.is_none_or(Store::is_empty) {
        let rate = (connections as f64 / seconds) as u64;
        line += &format!(", {} connections/s", thousands(rate));
    }
    say(&format!("{line}; {ended}"));
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod kept_tests;

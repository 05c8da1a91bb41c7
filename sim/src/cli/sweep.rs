//! `sim sweep`: how often a rollout fails, over settings.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use super::{CommonError, Exit, Overrides};
use crate::experiment::clock::{Stopwatch as _, WallClock};
use crate::experiment::grid::GridError;
use crate::experiment::sweep::{Plan, Stopped, Sweep, SweepError, run_sweep};
use crate::experiment::{Axis, Grid, Point, RunError, Runner};
use crate::outcome::RunSummary;
use crate::output::Output;
use crate::report::sweep::{self as report, Base, Report};
use crate::report::text::{Look, count_of, thousands};
use crate::scenario::overrides::SHORTCUTS;
use crate::scenario::{DataPlane, Document, FieldName, Scenario, parse_span};

mod progress;

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
    /// Stop when the interval of every failure probability is this narrow: half its width, relative to the estimate.
    #[arg(long, value_name = "SHARE", default_value = "20%", value_parser = precision)]
    precision: f64,
    /// Stop after this time; "none" for as long as it takes.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = budget)]
    budget: Budget,
    /// Exactly this many rollouts at every point, whatever precision and budget say.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    runs: Option<u64>,
    /// At most this many rollouts at every point.
    #[arg(long, value_name = "N", default_value_t = 1 << 16, value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    max_runs: u64,
    /// The root of all random choices, decimal or 0x hexadecimal.
    #[arg(long, value_name = "SEED", default_value = "0x1", value_parser = seed)]
    seed: u64,
    /// Threads; without it, one for each processor. The result is the same with any number.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    threads: Option<u64>,
    /// Take every packet one by one, also of connections that meet nothing on their way: slower, with the same result.
    #[arg(long)]
    pub(super) no_quiet: bool,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Write to this file instead of standard output; it appears complete or not at all.
    #[arg(short, long, visible_alias = "output", value_name = "FILE")]
    out: Option<PathBuf>,
}

const EXAMPLES: &str = "Examples:
  sim sweep --ports 28232 --rps 2000
  sim sweep --ports 28232 --rps '500..4000 step 500' --conn-reuse-mode 0,1 --format csv --out sweep.csv
  sim sweep --scenario mine.toml --kernel 4.19.57,5.15.0 --vary rollout.deployment.pre_stop=0s,20s,60s

The short names of scenario fields and --vary take one value (2000), a list (0,1) or a range (100..2000 step 100,
1k..8k x2); --set takes one value. Without --conn-reuse-mode, modes 0 and 1 are compared.";

/// How the result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A screen for people.
    #[default]
    Text,
    /// One object; counts and intervals.
    Json,
    /// A line for each point.
    Csv,
}

/// Time to spend; none for no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Budget(Option<Duration>);

fn budget(text: &str) -> Result<Budget, String> {
    if text == "none" {
        return Ok(Budget(None));
    }
    let span = parse_span(text).ok_or("write a time such as 10s or 5m, or none")?;
    Ok(Budget(Some(Duration::from_nanos(span.0))))
}

fn precision(text: &str) -> Result<f64, String> {
    let (number, scale) = text
        .strip_suffix('%')
        .map_or((text, 1.0), |number| (number, 100.0));
    let share = number.trim().parse::<f64>().map(|number| number / scale);
    let share = share.ok().filter(|share| (1e-4..=10.0).contains(share));
    share.ok_or_else(|| "write a share from 0.01% to 1000%, such as 20% or 0.2".to_owned())
}

fn seed(text: &str) -> Result<u64, String> {
    let seed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    seed.map_err(|_| "write a number below 2^64, decimal or hexadecimal with 0x".to_owned())
}

/// What simulates one rollout with one seed.
pub type Simulate<'a> = &'a (dyn Fn(&Scenario, u64) -> Result<RunSummary, RunError> + Sync);

/// Runs `sim sweep` with the engine `simulate`.
///
/// # Errors
/// Wrong usage, a scenario that cannot be run at some point, or an output that cannot be written: all found before
/// the first run.
pub fn run(args: Args, simulate: Simulate<'_>) -> Result<u8, CommonError> {
    let mut document = match &args.scenario {
        Some(path) => Document::load(path)?,
        None => Document::default(),
    };
    let set = fixed(&args, &mut document)?;
    let grid = Grid::new(axes(&args, &document)?).map_err(usage)?;
    let points = grid.points();
    let scenarios = scenarios(&document, &points)?;
    let mut output = Output::create(args.out.as_deref())?;

    let plan = Plan {
        root_seed: args.seed,
        exact_runs: args.runs,
        max_runs: args.max_runs,
        precision: args.precision,
        budget: args.budget.0,
        threads: threads(&args),
        ..Plan::default()
    };
    let clock = WallClock::start();
    let mut watch = progress::Watch::new();
    let runner = Prepared {
        scenarios: &scenarios,
        simulate,
    };
    let result = run_sweep(&runner, &points, &plan, &clock, &mut |progress| {
        watch.show(progress)
    });
    watch.clear();
    let sweep = result.map_err(|error| match error {
        SweepError::Run { .. } => usage(error),
        SweepError::Threads(_) => CommonError::Internal(error.into()),
    })?;
    tell(&args, &sweep, clock.elapsed());

    let base = Base {
        name: scenarios
            .first()
            .map_or_else(String::new, |scenario| scenario.name.clone()),
        file: args
            .scenario
            .as_ref()
            .map(|path| path.display().to_string()),
        words: report::settings_in_words(&scenarios),
        set,
    };
    output.write(&render(
        &args,
        &Report {
            base: &base,
            axes: grid.axes(),
            sweep: &sweep,
        },
    )?)?;
    output.finish()?;
    Ok(Exit::OK)
}

fn usage(error: impl std::fmt::Display) -> CommonError {
    CommonError::Usage(error.to_string())
}

fn threads(args: &Args) -> usize {
    let all = || std::thread::available_parallelism().map_or(1, usize::from);
    args.threads
        .and_then(|threads| usize::try_from(threads).ok())
        .unwrap_or_else(all)
}

fn render(args: &Args, report: &Report<'_>) -> Result<Vec<u8>, CommonError> {
    Ok(match args.format {
        // Whoever writes to standard output takes the colours out if it is no terminal; a file gets none.
        Format::Text => report::text(
            report,
            Look {
                unicode: true,
                colour: args.out.is_none(),
            },
        )
        .into_bytes(),
        Format::Json => report::json(report).into_bytes(),
        Format::Csv => report::csv(report).map_err(|error| CommonError::Internal(error.into()))?,
    })
}

/// The field that the founding case turns on: compared unless something else is asked.
const REUSE_MODE: &str = "conn-reuse-mode";
const REUSE_MODE_KEY: &str = "net.ipv4.vs.conn_reuse_mode";

/// Lays what `--set` gives over the scenario that all points start from, and returns it for the report.
fn fixed(args: &Args, document: &mut Document) -> Result<Vec<String>, CommonError> {
    let mut set = Vec::new();
    for (field, value) in &args.overrides.given {
        if let FieldName::Path(path) = field {
            document.set(path, value)?;
            set.push(format!("{path}={value}"));
        }
    }
    Ok(set)
}

/// The axes: short names in the order of the command line, then `--vary` in its own. If nothing says what
/// conn_reuse_mode is to be and the node balances with IPVS, both modes are compared.
fn axes(args: &Args, document: &Document) -> Result<Vec<Axis>, CommonError> {
    let axis = |flag: &str, path: &str, values: &str| {
        Axis::parse(path, values).map_err(|error| CommonError::Usage(format!("{flag}: {error}")))
    };
    let mut axes = Vec::new();
    for (field, values) in &args.overrides.given {
        if let FieldName::Short(name) = field {
            axes.push(axis(&format!("--{name}"), name, values)?);
        }
    }
    for vary in &args.vary {
        let Some((path, values)) = vary.split_once('=') else {
            return Err(CommonError::Usage(format!(
                "--vary {vary}: there is no `=`; write --vary PATH=VALUES, such as --vary node.hz=100,250"
            )));
        };
        axes.push(axis(&format!("--vary {path}"), path.trim(), values)?);
    }
    let paths: Vec<&str> = axes.iter().map(|axis| field_of(&axis.path)).collect();
    if let Some(place) = (1..paths.len()).find(|place| paths[..*place].contains(&paths[*place])) {
        let path = axes[place].path.clone();
        return Err(usage(GridError::Twice { path }));
    }
    let decides = |path: &&str| path.contains(REUSE_MODE_KEY) || *path == "node.mode";
    if !paths.iter().any(decides) {
        let scenario = document.resolve()?.scenario;
        let given = scenario
            .node_sysctl_overrides()
            .iter()
            .any(|(key, _)| key == REUSE_MODE_KEY);
        if scenario.node.mode == DataPlane::Ipvs && !given {
            axes.push(axis("--conn-reuse-mode", REUSE_MODE, "0,1")?);
        }
    }
    Ok(axes)
}

/// The path of the field that an axis varies, whether or not it is called by its short name.
fn field_of(path: &str) -> &str {
    SHORTCUTS
        .iter()
        .find(|shortcut| shortcut.name == path)
        .map_or(path, |shortcut| shortcut.path())
}

/// The scenario of every point, checked. Warnings go to standard error, each once.
fn scenarios(document: &Document, points: &[Point]) -> Result<Vec<Scenario>, CommonError> {
    let mut scenarios = Vec::with_capacity(points.len());
    let mut warnings = BTreeSet::new();
    for point in points {
        let mut document = document.clone();
        for setting in &point.settings {
            if SHORTCUTS
                .iter()
                .any(|shortcut| shortcut.name == setting.path)
            {
                document.set_named(&setting.path, &setting.value)?;
            } else {
                document.set(&setting.path, &setting.value)?;
            }
        }
        let loaded = document.resolve()?;
        if warnings.insert(loaded.warnings.render(false)) {
            super::warn(&loaded.warnings);
        }
        scenarios.push(loaded.scenario);
    }
    Ok(scenarios)
}

/// The scenarios of the points, with the engine.
struct Prepared<'a> {
    scenarios: &'a [Scenario],
    simulate: Simulate<'a>,
}

impl Runner for Prepared<'_> {
    fn run(&self, point: &Point, seed: u64) -> Result<RunSummary, RunError> {
        (self.simulate)(&self.scenarios[point.index], seed)
    }
}

/// One line on standard error: what was done, how fast, and what ended it. It holds all that depends on the clock.
fn tell(args: &Args, sweep: &Sweep, elapsed: Duration) {
    let seconds = elapsed.as_secs_f64();
    let rollouts = sweep.runs * sweep.points.len() as u64;
    let connections: u64 = sweep
        .points
        .iter()
        .map(|result| result.tally.connections)
        .sum();
    let ended = match sweep.stopped {
        Stopped::Precision => "precise enough".to_owned(),
        Stopped::Asked { .. } => "as many as asked".to_owned(),
        Stopped::Budget if args.runs == Some(sweep.runs) => "as many as asked".to_owned(),
        Stopped::Budget if sweep.runs == args.max_runs => "stopped by --max-runs".to_owned(),
        Stopped::Budget => "stopped by the time budget (--budget)".to_owned(),
    };
    let mut line = format!(
        "sim: {} in {seconds:.1} s",
        count_of(rollouts, "rollout", "rollouts")
    );
    if seconds > 0.0 && connections > 0 {
        let rate = (connections as f64 / seconds) as u64;
        line += &format!(", {} connections/s", thousands(rate));
    }
    // If standard error is gone there is nobody to tell.
    let _ = writeln!(anstream::stderr(), "{line}; {ended}");
}

#[cfg(test)]
mod tests;

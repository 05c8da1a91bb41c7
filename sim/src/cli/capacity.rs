//! `sim capacity`: how far one setting can go while a target is kept.

use std::path::PathBuf;

use clap::ValueEnum;

use super::args::{self, Budget, Teller};
use super::{CommonError, Exit, Format, Overrides, simulate};
use crate::experiment::capacity::map::{Map, spread};
use crate::experiment::capacity::{self, Quantity, Search, SearchError, Sought, Target};
use crate::experiment::check::Threshold;
use crate::experiment::clock::{Stopwatch as _, WallClock};
use crate::experiment::rows::Plan;
use crate::output::Output;
use crate::report::capacity::{self as report, View};

/// Arguments of `sim capacity`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The scenario; without one, the founding case's rollout.
    scenario: Option<PathBuf>,
    /// The share of requests that may fail.
    #[arg(long, value_name = "SHARE", value_parser = limit, conflicts_with = "max")]
    max_failure: Option<f64>,
    /// Another target, as for `sim check`: 'p(late) < 1 %', 'dead < 10s'.
    #[arg(long, value_name = "THRESHOLD", value_parser = Threshold::parse)]
    max: Option<Threshold>,
    /// What to seek: rate, concurrency, ports, clients, keep-alive, replicas, pre-stop, min-ready, or a field's path.
    #[arg(long, value_name = "WHAT", default_value = "rate")]
    find: String,
    /// Between which whole numbers.
    #[arg(long, value_name = "LOW..HIGH", value_parser = between)]
    between: Option<(u64, u64)>,
    /// Which end of it, if it is no named one.
    #[arg(long, value_enum)]
    sought: Option<End>,
    /// A map of the safe region over this and what --find names: rate, ports, ...
    #[arg(long, value_name = "WHAT")]
    map: Option<String>,
    /// Between which whole numbers the map goes.
    #[arg(long, value_name = "LOW..HIGH", value_parser = between, requires = "map")]
    map_between: Option<(u64, u64)>,
    /// Stop when the two ends differ by less than this.
    #[arg(long, value_name = "SHARE", default_value = "5%", value_parser = args::share)]
    tolerance: f64,
    /// At most this many rollouts at each value.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    max_runs: u64,
    /// Count a value as kept if none of its rollouts crossed the target, although a kind of rollout up to this share may have been missed.
    #[arg(long, value_name = "SHARE", default_value = "25%", value_parser = args::share)]
    rare: f64,
    /// Try no further value after this time; "none" for as long as it takes.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = args::budget)]
    budget: Budget,
    /// The root of all random choices, decimal or 0x hexadecimal.
    #[arg(long, value_name = "SEED", default_value = "0x1", value_parser = args::seed)]
    seed: u64,
    /// Threads; without it, one for each processor. The result is the same with any number.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    threads: Option<u64>,
    #[command(flatten)]
    overrides: Overrides,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Draw with ASCII only.
    #[arg(long)]
    ascii: bool,
    /// Write to this file instead of standard output; it appears complete or not at all.
    #[arg(short, long, visible_alias = "output", value_name = "FILE")]
    out: Option<PathBuf>,
}

const EXAMPLES: &str = "Examples:
  sim capacity scenarios/founding-case.toml --max-failure 1e-4
  sim capacity scenarios/founding-case.toml --max-failure 1e-4 --find ports
  sim capacity --max 'p(no-port) < 1 %' --closes-first client --between 100..2000
  sim capacity --max-failure 1% --find rate --between 20..400 --map ports --map-between 5000..64000

The answer is an interval: between the furthest value that keeps the target and the nearest that breaks it. Values on both sides are tried as
well, and those that answer otherwise are reported.";

/// Which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum End {
    /// The largest value that keeps the target.
    Largest,
    /// The smallest.
    Smallest,
}

fn limit(text: &str) -> Result<f64, String> {
    let share = args::share(text)?;
    if share > 0.0 {
        return Ok(share);
    }
    Err("write a share above 0, such as 1e-4 or 1%: no number of rollouts can show that nothing ever fails".to_owned())
}

fn between(text: &str) -> Result<(u64, u64), String> {
    let ends = text.split_once("..").and_then(|(low, high)| {
        let number = |text: &str| text.trim().replace('_', "").parse::<u64>().ok();
        Some((number(low)?, number(high)?))
    });
    ends.ok_or_else(|| "write two whole numbers: 100..2000".to_owned())
}

/// Cells of a map's rows and columns.
const ROWS: u32 = 6;
const COLUMNS: u32 = 9;

/// Runs `sim capacity`.
///
/// # Errors
/// Wrong usage, a scenario that cannot be run at some value, or an output that cannot be written.
pub fn run(args: Args) -> Result<u8, CommonError> {
    let (target, words) = target(&args)?;
    let sought = args.sought.map(|end| match end {
        End::Largest => Sought::Largest,
        End::Smallest => Sought::Smallest,
    });
    let quantity = Quantity::parse(&args.find, args.between, sought).map_err(CommonError::Usage)?;
    let rows = args
        .map
        .as_ref()
        .map(|name| Quantity::parse(name, args.map_between, None));
    let rows = rows.transpose().map_err(CommonError::Usage)?;
    let mut document = args::document(args.scenario.as_deref())?;
    args.overrides.apply(&mut document)?;
    super::warn(&document.resolve()?.warnings);
    let mut output = Output::create(args.out.as_deref())?;
    let clock = WallClock::start();
    let all = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args
        .threads
        .and_then(|threads| usize::try_from(threads).ok());
    let search = Search {
        document: &document,
        quantity: &quantity,
        target: (target, words),
        plan: Plan {
            root_seed: args.seed,
            max_runs: args.max_runs,
            exact_runs: None,
            budget: None,
            threads: threads.unwrap_or_else(all),
        },
        tolerance: args.tolerance,
        budget: args.budget.0,
        simulate: &simulate,
        stopwatch: &clock,
    };
    let view = View {
        look: args::look(args.ascii, args.out.is_some()),
        again: args::again(args.scenario.as_deref(), &args.overrides),
    };
    let text = match rows {
        Some(rows) => map(&args, &search, &quantity, &rows, &view, &clock)?,
        None => one(&args, &search, &quantity, &view, &clock)?,
    };
    output.write(text.as_bytes())?;
    output.finish()?;
    Ok(Exit::OK)
}

fn target(args: &Args) -> Result<(Target, String), CommonError> {
    let threshold = match (&args.max, args.max_failure) {
        (Some(threshold), _) => threshold.clone(),
        (None, Some(limit)) => Threshold {
            text: format!("p(fail) < {limit}"),
            event: crate::experiment::check::Event::Fail(None),
            limit,
        },
        (None, None) => {
            let message = "say what must be kept: --max-failure 1e-4, or --max 'p(late) < 1 %'";
            return Err(CommonError::Usage(message.to_owned()));
        }
    };
    let target = Target {
        event: threshold.event,
        limit: threshold.limit,
        rare: args.rare,
    };
    Ok((target, threshold.text))
}

fn failed(error: SearchError) -> CommonError {
    match error {
        SearchError::Scenario(found) => CommonError::Scenario(found),
        SearchError::Rows(error) => args::rows_error(error),
    }
}

/// The command that repeats it.
fn repeat(args: &Args) -> Vec<String> {
    let mut words = vec![
        "sim capacity".to_owned(),
        args::again(args.scenario.as_deref(), &args.overrides),
    ];
    let max = args.max.as_ref().map(|max| args::quoted(&max.text));
    words.extend(max.map(|max| format!("--max {max}")));
    let limit = args.max_failure;
    words.extend(limit.map(|limit| format!("--max-failure {limit}")));
    words.push(format!("--find {}", args::quoted(&args.find)));
    let ends = |flag: &str, (low, high): (u64, u64)| format!("--{flag} {low}..{high}");
    words.extend(args.between.map(|found| ends("between", found)));
    words.extend(args.sought.map(|end| match end {
        End::Largest => "--sought largest".to_owned(),
        End::Smallest => "--sought smallest".to_owned(),
    }));
    let map = args.map.as_ref().map(|map| args::quoted(map));
    words.extend(map.map(|map| format!("--map {map}")));
    words.extend(args.map_between.map(|found| ends("map-between", found)));
    words.push(format!(
        "--tolerance {} --max-runs {} --rare {} --seed {:#x}",
        args.tolerance, args.max_runs, args.rare, args.seed
    ));
    words
}

fn one(
    args: &Args,
    search: &Search<'_>,
    quantity: &Quantity,
    view: &View,
    clock: &WallClock,
) -> Result<String, CommonError> {
    let mut teller = Teller::new();
    let mut told = |probe: &capacity::Probe| {
        teller.say(clock.elapsed(), || report::so_far(quantity, probe));
    };
    let found = search.run(&mut told);
    teller.clear();
    let found = found.map_err(failed)?;
    match args.format {
        Format::Text => Ok(report::text(&found, quantity, view)),
        Format::Json => args::json("capacity", repeat(args), &found),
    }
}

fn map(
    args: &Args,
    search: &Search<'_>,
    columns: &Quantity,
    rows: &Quantity,
    view: &View,
    clock: &WallClock,
) -> Result<String, CommonError> {
    let mut teller = Teller::new();
    let mut told = |done: u64, all: u64| {
        let elapsed = clock.elapsed();
        teller.say(elapsed, || {
            format!("{done} of {all} cells, {:.0} s", elapsed.as_secs_f64())
        });
    };
    let row_values = spread(rows.low, rows.high, ROWS);
    let column_values = spread(columns.low, columns.high, COLUMNS);
    let found = Map::fill(
        search,
        (rows, row_values),
        (columns, column_values),
        &mut told,
    );
    teller.clear();
    let found = found.map_err(failed)?;
    match args.format {
        Format::Text => Ok(report::map(&found, view)),
        Format::Json => args::json("capacity-map", repeat(args), &found),
    }
}

//! `sim run`: replays one rollout and shows what happened.

use std::io::Write as _;
use std::path::PathBuf;

use clap::ValueEnum;
use ipvs_model::time::{Instant, NANOS_PER_SEC, Span};

use super::{CommonError, Exit, Overrides, args, load};
use crate::engine::trace::TraceOptions;
use crate::engine::{self, RunResult};
use crate::experiment::clock::{Stopwatch as _, WallClock};
use crate::outcome::RunSummary;
use crate::output::Output;
use crate::report::run::{self as report, Header, PossibleRun, View};
use crate::report::text::{seconds, thousands};
use crate::scenario::{Scenario, parse_span, span_text};

/// Requests that a report chooses its examples from.
const TROUBLED_KEPT: usize = 10_000;
/// The shortest time between two samples of the real servers.
const SAMPLE_MIN: Span = Span::from_millis(10);
/// Moments at which tables may be asked for.
const TABLES_MAX: usize = 100;

/// Arguments of `sim run`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The scenario; without one, the founding case's rollout.
    scenario: Option<PathBuf>,
    /// What random choices come from, decimal or 0x hexadecimal. The same seed gives the same run.
    #[arg(long, value_name = "SEED", default_value = "0x1", value_parser = args::seed)]
    seed: u64,
    #[command(flatten)]
    overrides: Overrides,
    /// How to print.
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Write to this file instead of standard output; it appears complete or not at all.
    #[arg(short, long, visible_alias = "output", value_name = "FILE")]
    out: Option<PathBuf>,
    /// Seconds in a line of the timeline; without it, as fine as fits on a screen.
    #[arg(long, value_name = "TIME", value_parser = bucket)]
    bucket: Option<u64>,
    /// Look at the real servers this often.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = sample)]
    sample: Span,
    /// Show this many requests that failed or were late.
    #[arg(long, value_name = "N", default_value_t = 5)]
    failures: usize,
    /// Print every request as CSV instead of the report.
    #[arg(long)]
    attempts: bool,
    /// Show the node's tables at this moment, as ipvsadm -Ln, ipvsadm -Lnc and /proc/net/nf_conntrack do. Repeatable.
    #[arg(long, value_name = "TIME", value_parser = span)]
    tables_at: Vec<Span>,
    /// Of the tables, show only lines with this text: an address, a port (40000, not :40000) or a word.
    #[arg(long = "match", value_name = "TEXT", requires = "tables_at")]
    matching: Option<String>,
    /// With --format json: also what `sim report` draws, the port space and failures by cause over time.
    #[arg(long)]
    pictures: bool,
    /// Draw with ASCII only.
    #[arg(long)]
    ascii: bool,
    /// Take every packet one by one, also of connections that meet nothing on their way: slower, with the same result.
    #[arg(long)]
    no_quiet: bool,
}

const EXAMPLES: &str = "Examples:
  sim run
  sim run scenarios/founding-case.toml --conn-reuse-mode 1
  sim run --seed 0x7f3a --tables-at 181s --match 10.27.1.245
  sim run --format csv --out timeline.csv";

/// How the result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Some screens for people.
    #[default]
    Text,
    /// One object with everything.
    Json,
    /// The timeline, a line a second.
    Csv,
}

fn span(text: &str) -> Result<Span, String> {
    parse_span(text).ok_or_else(|| "write a number and a unit: 250ms, 171s, 2m 30s".to_owned())
}

fn sample(text: &str) -> Result<Span, String> {
    let span = span(text)?;
    let least = span_text(SAMPLE_MIN);
    if span < SAMPLE_MIN {
        return Err(format!("write {least} or more"));
    }
    Ok(span)
}

fn bucket(text: &str) -> Result<u64, String> {
    let span = span(text)?;
    if span.0 == 0 || !span.0.is_multiple_of(NANOS_PER_SEC) {
        return Err("the timeline counts by whole seconds: write 1s or more".to_owned());
    }
    Ok(span.as_secs())
}

/// Runs `sim run`.
///
/// # Errors
/// Wrong usage, a scenario that cannot be run, or an output that cannot be written: all found before the run.
pub fn run(args: Args) -> Result<u8, CommonError> {
    let format = format(&args)?;
    let loaded = load(args.scenario.as_ref(), &args.overrides)?;
    let scenario = &loaded.scenario.with_first_kernels();
    let options = options(&args, format, scenario)?;
    let sysctls = engine::node_sysctls(scenario).map_err(CommonError::Usage)?;
    let file = args
        .scenario
        .as_ref()
        .map(|path| path.display().to_string());
    let mut header = Header::of(scenario, file, args.seed, &sysctls, command(&args));
    let mut output = Output::create(args.out.as_deref())?;

    let clock = WallClock::start();
    let result = engine::run(scenario, args.seed, &options).map_err(CommonError::Usage)?;
    let wall = clock.elapsed();
    if format != Format::Csv {
        header.possible = possible(&loaded.scenario, scenario, args.seed, &result.summary)?;
    }

    output.write(render(&args, format, scenario, &header, &result).as_bytes())?;
    output.finish()?;
    let speed = speed(&result.summary, scenario.duration, wall.as_nanos());
    // If standard error is gone there is nobody to tell.
    let _ = anstream::stderr().write_all(speed.as_bytes());
    Ok(Exit::OK)
}

/// The same rollout on every kernel that the scenario leaves open; `first` is the scenario that ran with each of them
/// decided for its first possibility, `summary` its result.
fn possible(
    open: &Scenario,
    first: &Scenario,
    seed: u64,
    summary: &RunSummary,
) -> Result<Vec<PossibleRun>, CommonError> {
    let mut runs = Vec::new();
    for kernel in open.open_kernels() {
        for (place, value) in kernel.values.iter().enumerate() {
            let summary = if place == 0 {
                summary.clone()
            } else {
                let decided = first.with_kernel(&kernel.path, value);
                super::simulate(&decided, seed).map_err(|error| CommonError::Usage(error.0))?
            };
            runs.push(PossibleRun {
                path: kernel.path.clone(),
                kernel: value.to_string(),
                summary,
            });
        }
    }
    Ok(runs)
}

fn format(args: &Args) -> Result<Format, CommonError> {
    match (args.attempts, args.format) {
        (false, format) => Ok(format.unwrap_or_default()),
        (true, None | Some(Format::Csv)) => Ok(Format::Csv),
        (true, Some(_)) => {
            let message = "--attempts prints CSV; leave out --format, or write --format csv";
            Err(CommonError::Usage(message.to_owned()))
        }
    }
}

fn options(args: &Args, format: Format, scenario: &Scenario) -> Result<TraceOptions, CommonError> {
    if let Some(late) = args.tables_at.iter().find(|at| **at > scenario.duration) {
        return Err(CommonError::Usage(format!(
            "--tables-at {}: the run ends after {}; ask for an earlier moment, or make it longer with --duration",
            span_text(*late),
            span_text(scenario.duration),
        )));
    }
    if args.tables_at.len() > TABLES_MAX {
        let message = format!("--tables-at may be given {TABLES_MAX} times");
        return Err(CommonError::Usage(message));
    }
    if args.pictures && format != Format::Json {
        let message = "--pictures adds to JSON; write --format json with it";
        return Err(CommonError::Usage(message.to_owned()));
    }
    if !args.tables_at.is_empty() && format == Format::Csv {
        let message = "--tables-at has no place in CSV; use --format text or --format json";
        return Err(CommonError::Usage(message.to_owned()));
    }
    Ok(TraceOptions {
        sample_every: (!args.attempts).then_some(args.sample),
        pins: args.pictures,
        tables_at: args
            .tables_at
            .iter()
            .map(|at| Instant::ZERO + *at)
            .collect(),
        requests_max: if format == Format::Csv {
            0
        } else if args.pictures {
            usize::MAX
        } else {
            TROUBLED_KEPT.max(args.failures)
        },
        attempts: args.attempts,
        no_quiet: args.no_quiet,
        ..TraceOptions::default()
    })
}

fn render(
    args: &Args,
    format: Format,
    scenario: &Scenario,
    header: &Header,
    result: &RunResult,
) -> String {
    let RunResult { summary, trace } = result;
    match format {
        Format::Text => {
            let view = View {
                look: args::look(args.ascii, args.out.is_some()),
                bucket_s: args.bucket,
                failures: args.failures,
                matching: args.matching.clone(),
            };
            report::text(header, &view, summary, trace)
        }
        Format::Json => {
            let mut json = report::json(
                header,
                args.failures,
                args.matching.as_deref(),
                summary,
                trace,
            );
            if args.pictures {
                json["pictures"] = report::pictures(scenario, summary, trace);
            }
            format!("{json:#}\n")
        }
        Format::Csv if args.attempts => report::attempts_csv(&trace.attempts),
        Format::Csv => report::timeline_csv(header, summary, trace),
    }
}

/// The command that repeats the run.
fn command(args: &Args) -> String {
    let mut words = vec!["sim".to_owned(), "run".to_owned()];
    words.extend(
        args.scenario
            .as_ref()
            .map(|path| args::quoted(&path.display().to_string())),
    );
    words.push(format!("--seed {:#x}", args.seed));
    words.extend(args::given(&args.overrides));
    words.join(" ")
}

/// One line on how fast it went. The only thing that depends on the clock.
fn speed(summary: &RunSummary, simulated: Span, wall_nanos: u128) -> String {
    let wall = u64::try_from(wall_nanos).unwrap_or(u64::MAX).max(1);
    let per_second = u128::from(summary.connections) * u128::from(NANOS_PER_SEC) / u128::from(wall);
    format!(
        "{} connections in {} s: {} connections/s, {} times real time\n",
        thousands(summary.connections),
        seconds(wall, 2),
        thousands(u64::try_from(per_second).unwrap_or(u64::MAX)),
        thousands(simulated.0 / wall),
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(flags: &[&str]) -> Result<Args, String> {
        let words = ["sim", "run"].iter().chain(flags);
        match Cli::try_parse_from(words)
            .map_err(|error| error.to_string())?
            .command
        {
            Command::Run(args) => Ok(args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_that_repeats_a_run_survives_a_shell() {
        let args = parse(&[
            "my case.toml",
            "--seed",
            "32570",
            "--ports",
            "1024-65535",
            "--set",
            "server.dead_end={ reassigned = {} }",
        ]);
        assert_eq!(
            command(&args.unwrap()),
            "sim run 'my case.toml' --seed 0x7f3a --ports 1024-65535 \
             --set 'server.dead_end={ reassigned = {} }'"
        );
        assert_eq!(args::quoted("it's"), r"'it'\''s'");
    }

    #[test]
    fn wrong_flags_say_what_to_write() {
        let cases: [(&[&str], &str); 6] = [
            (&["--seed=-1"], "decimal or hexadecimal"),
            (&["--seed", "0x"], "decimal or hexadecimal"),
            (&["--bucket", "250ms"], "whole seconds"),
            (&["--bucket", "0s"], "whole seconds"),
            (&["--sample", "0s"], "10ms or more"),
            (&["--tables-at", "171"], "a unit"),
        ];
        for (flags, words) in cases {
            let error = parse(flags).unwrap_err();
            assert!(error.contains(words), "{flags:?}: {error}");
        }
        assert!(
            parse(&["--match", "10.0.0.1"]).is_err(),
            "--match without tables"
        );
    }

    #[test]
    fn a_kernel_that_its_release_leaves_open_runs_as_each() {
        let flags = [
            "--kernel",
            "5.4.0-1051-gke",
            "--set",
            "duration=2s",
            "--set",
            "rollout.none.pods=2",
            "--rps",
            "50",
        ];
        let args = parse(&flags).unwrap();
        let open = load(None, &args.overrides).unwrap().scenario;
        let first = open.with_first_kernels();
        let result = engine::run(&first, 1, &TraceOptions::default()).unwrap();
        let runs = possible(&open, &first, 1, &result.summary).unwrap();
        let kernels: Vec<&str> = runs.iter().map(|run| run.kernel.as_str()).collect();
        let levels = ["5.4.58", "5.4.59", "5.4.163"];
        assert_eq!(
            kernels,
            levels.map(|level| format!("5.4.0-1051-gke as {level}"))
        );
        assert!(runs.iter().all(|run| run.summary.requests == 100));
        let header = Header {
            possible: runs,
            ..Header::default()
        };
        let text = report::text(&header, &View::default(), &result.summary, &result.trace);
        for level in levels {
            assert!(
                text.contains(&format!("5.4.0-1051-gke as {level}")),
                "{text}"
            );
        }
    }

    #[test]
    fn contradictory_flags_are_refused_before_the_run() {
        let scenario = Scenario::default();
        let args = parse(&["--tables-at", "421s"]).unwrap();
        let error = options(&args, Format::Text, &scenario)
            .unwrap_err()
            .to_string();
        assert!(error.contains("ends after 420s"), "{error}");
        let args = parse(&["--tables-at", "1s"]).unwrap();
        assert!(options(&args, Format::Csv, &scenario).is_err());
        let args = parse(&["--attempts", "--format", "json"]).unwrap();
        assert_eq!(format(&args).unwrap_err().code(), Exit::USAGE);
    }

    #[test]
    fn every_flag_that_the_report_recommends_is_one() {
        for flags in crate::report::run::recommended_flags() {
            let words = flags.split_whitespace().collect::<Vec<_>>();
            let args = parse(&words).unwrap_or_else(|error| panic!("{flags}: {error}"));
            let loaded = load(None, &args.overrides);
            assert!(loaded.is_ok(), "{flags}: {}", loaded.unwrap_err());
        }
    }

    #[test]
    fn utf8_locales_are_known_by_their_names() {
        for (locale, expected) in [("C.UTF-8", true), ("de_DE.utf8", true), ("C", false)] {
            assert_eq!(args::says_utf8(locale), expected, "{locale}");
        }
    }

    #[test]
    fn the_speed_line_counts_connections_and_simulated_time() {
        let summary = RunSummary {
            connections: 210_000,
            ..RunSummary::default()
        };
        let line = speed(&summary, Span::from_secs(420), 840_000_000);
        assert_eq!(
            line,
            "210,000 connections in 0.84 s: 250,000 connections/s, 500 times real time\n"
        );
    }
}

//! `sim why`: the causal chain of a request that did not go well.

use std::path::PathBuf;

use clap::ValueEnum;

use super::{CommonError, Exit, Overrides, args, load};
use crate::engine;
use crate::engine::story::{StoriesOf, Story};
use crate::engine::trace::{RunTrace, TraceOptions};
use crate::experiment::seeds;
use crate::explain::{self, graph, svg};
use crate::outcome::Cause;
use crate::output::Output;
use crate::report::text::thousands;
use crate::report::why::{self as report, View};

/// Stories from which one of each cause is chosen.
const STORIES: usize = 200_000;

/// Arguments of `sim why`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The scenario; without one, the founding case's rollout.
    scenario: Option<PathBuf>,
    /// The seed of the run, as `sim run` has it; with --run, the root seed of a sweep. Decimal or 0x hexadecimal.
    #[arg(long, value_name = "SEED", default_value = "0x1", value_parser = args::seed)]
    seed: u64,
    /// The number of a rollout of a sweep, from 0.
    #[arg(long, value_name = "R")]
    run: Option<u64>,
    /// The number of the request in the run; without it, one of the most frequent cause.
    #[arg(long, visible_alias = "request", value_name = "N")]
    connection: Option<u64>,
    /// A request of this cause, by its key: pinned_to_drained, endpoint_lag, ...
    #[arg(long, value_name = "KEY", conflicts_with = "connection", value_parser = cause)]
    cause: Option<Cause>,
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
  sim why scenarios/founding-case.toml
  sim why --conn-reuse-mode 1 --cause syn_dropped_on_reuse
  sim why scenarios/founding-case.toml --connection 95000 --format svg --out why.svg
  sim why scenarios/founding-case.toml --run 3 --format dot";

/// How the chain is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
    /// For graphviz.
    Dot,
    /// A picture.
    Svg,
}

fn cause(text: &str) -> Result<Cause, String> {
    let key = text.replace('-', "_");
    let found = Cause::ALL.iter().find(|cause| cause.key() == key);
    found.copied().ok_or_else(|| {
        let keys = Cause::ALL.iter().map(|cause| cause.key());
        match crate::scenario::nearest(&key, keys.clone()) {
            Some(near) => format!("there is no cause `{text}`; did you mean `{near}`?"),
            None => format!(
                "there is no cause `{text}`; write one of {}",
                keys.collect::<Vec<_>>().join(", ")
            ),
        }
    })
}

/// Runs `sim why`.
///
/// # Errors
/// Wrong usage, a scenario that cannot be run, no such request, or an output that cannot be written.
pub fn run(args: Args) -> Result<u8, CommonError> {
    let loaded = load(args.scenario.as_ref(), &args.overrides)?;
    let scenario = &loaded.scenario;
    let mut output = Output::create(args.out.as_deref())?;
    let seed = args
        .run
        .map_or(args.seed, |run| seeds::seed_of(args.seed, run));
    let of = args
        .connection
        .map_or(StoriesOf::Troubled(STORIES), StoriesOf::Request);
    let options = TraceOptions {
        stories: of,
        ..TraceOptions::default()
    };
    let result = engine::run(scenario, seed, &options).map_err(CommonError::Usage)?;
    let story = chosen(&args, &result.trace, result.summary.requests)?;
    let chain = explain::of(story, &result.trace.events, scenario);
    let text = match args.format {
        Format::Text => {
            let view = View {
                look: args::look(args.ascii, args.out.is_some()),
                command: command(&args, story.number),
                kernel: scenario.node.kernel.to_string(),
            };
            report::text(&chain, &result.summary, &view)
        }
        Format::Json => {
            let json = serde_json::to_string_pretty(&chain)
                .map_err(|error| CommonError::Internal(error.into()))?;
            format!("{json}\n")
        }
        Format::Dot => graph::dot(&chain),
        Format::Svg => svg::svg(&chain),
    };
    output.write(text.as_bytes())?;
    output.finish()?;
    Ok(Exit::OK)
}

/// The story that was asked for: of a number, of a cause, or of the most frequent cause. Of a cause, the one in the middle: the first
/// ones may be of a beginning that passes.
fn chosen<'a>(args: &Args, trace: &'a RunTrace, requests: u64) -> Result<&'a Story, CommonError> {
    let stories = &trace.stories;
    if let Some(number) = args.connection {
        return stories.first().ok_or_else(|| {
            CommonError::NothingMatched(format!(
                "no request {number} ended in this run: there were {} (numbered from 0; those of the warm-up are not counted)",
                thousands(requests)
            ))
        });
    }
    let of = |cause: Cause| {
        let all: Vec<&Story> = stories
            .iter()
            .filter(|story| story.cause == Some(cause))
            .collect();
        all.get(all.len() / 2)
            .copied()
            .map(|story| (all.len(), story))
    };
    if let Some(cause) = args.cause {
        return of(cause).map(|(_, story)| story).ok_or_else(|| {
            CommonError::NothingMatched(format!(
                "no request of this run has the cause {}",
                cause.key()
            ))
        });
    }
    let failures = |story: &&Story| story.outcome.is_failure();
    let any_failure = stories.iter().any(|story| failures(&story));
    let of_all = Cause::ALL.iter().filter_map(|cause| of(*cause));
    // Failures come before late answers and missing ports.
    let most = of_all
        .filter(|(_, story)| !any_failure || story.outcome.is_failure())
        .max_by_key(|(count, story)| (*count, std::cmp::Reverse(story.cause)));
    most.map(|(_, story)| story).ok_or_else(|| {
        CommonError::NothingMatched(
            "no request failed, was late or found no port in this run; another --seed, or --connection N for one that went well".to_owned(),
        )
    })
}

/// The command that shows the same chain.
fn command(args: &Args, number: u64) -> String {
    let mut words = vec!["sim why".to_owned()];
    words.extend(
        args.scenario
            .iter()
            .map(|path| args::quoted(&path.display().to_string())),
    );
    words.push(format!("--seed {:#x}", args.seed));
    words.extend(args.run.map(|run| format!("--run {run}")));
    words.extend(args::given(&args.overrides));
    words.push(format!("--connection {number}"));
    words.join(" ")
}

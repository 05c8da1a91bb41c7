//! `sim report`: results as one HTML file.

use std::path::{Path, PathBuf};

use ipvs_model::time::{NANOS_PER_SEC, Span};
use serde_json::Value;

use super::{CommonError, Exit, Overrides, args, load};
use crate::advise;
use crate::engine::story::StoriesOf;
use crate::engine::{self, trace::TraceOptions};
use crate::explain::{self, svg};
use crate::output;
use crate::report::html::{self, Input, Kind, Options};
use crate::report::run::{self as run_report, Header};
use crate::scenario::Scenario;

/// Failed requests that are kept of a run, for failures by cause over time.
const TROUBLED_KEPT: usize = 4_000_000;
/// Looks at the tables in a run.
const SAMPLES: u64 = 84;
/// Results longer than this are refused, in bytes.
const TEXT_MAX: u64 = 256 << 20;

/// Arguments of `sim report`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Results: what run, sweep, whatif, capacity, check, why, diff or advise print with --format json; or scenarios (.toml), which are run.
    /// Without any, the founding case's rollout.
    inputs: Vec<PathBuf>,
    /// What random choices of scenarios come from, decimal or 0x hexadecimal.
    #[arg(long, value_name = "SEED", default_value = "0x1", value_parser = args::seed)]
    seed: u64,
    #[command(flatten)]
    overrides: Overrides,
    /// Title of the page.
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
    /// A failure probability that is acceptable: what is surely below it is marked as safe.
    #[arg(long, value_name = "SHARE", default_value = "0.1%", value_parser = args::share)]
    safe_below: f64,
    /// Write to this file instead of standard output; it appears complete or not at all.
    #[arg(short, long, visible_alias = "output", value_name = "FILE")]
    out: Option<PathBuf>,
}

const EXAMPLES: &str = "Examples:
  sim report --out report.html
  sim report scenarios/founding-case.toml --conn-reuse-mode 1 --out report.html
  sim sweep --rps 50,200,800 --ports 2000,8000,28232 --runs 4 --format json --out sweep.json && sim report sweep.json --out report.html";

/// Runs `sim report`.
///
/// # Errors
/// Inputs that cannot be read or are no results, scenarios that cannot be run, an output that cannot be written.
pub fn report(args: Args) -> Result<u8, CommonError> {
    let mut inputs = Vec::new();
    if args.inputs.is_empty() {
        inputs.push(rollout(&args, None)?);
    }
    for path in &args.inputs {
        if path.extension().is_some_and(|ending| ending == "toml") {
            inputs.push(rollout(&args, Some(path))?);
        } else {
            inputs.extend(results(path)?);
        }
    }
    let options = Options {
        title: args.title.clone(),
        safe_below: args.safe_below,
    };
    let page = html::page(&inputs, &options);
    output::write(args.out.as_deref(), page.as_bytes())?;
    Ok(Exit::OK)
}

/// Runs a scenario, watched.
fn rollout(args: &Args, path: Option<&PathBuf>) -> Result<Input, CommonError> {
    let loaded = load(path, &args.overrides)?;
    let command = command(path, args);
    let file = path.map(|path| path.display().to_string());
    Ok(Input {
        name: file
            .clone()
            .unwrap_or_else(|| "the founding case, built in".to_owned()),
        value: watched(&loaded.scenario, file, args.seed, command)?,
    })
}

/// The command that makes the page of a scenario again.
fn command(path: Option<&PathBuf>, given: &Args) -> String {
    let mut words = vec!["sim report".to_owned()];
    words.extend(path.map(|path| args::quoted(&path.display().to_string())));
    words.push(format!("--seed {:#x}", given.seed));
    words.extend(args::given(&given.overrides));
    words.push("--out report.html".to_owned());
    words.join(" ")
}

/// A run's JSON with all that is drawn of it.
///
/// # Errors
/// If the scenario cannot be run.
pub fn watched(
    scenario: &Scenario,
    file: Option<String>,
    seed: u64,
    command: String,
) -> Result<Value, CommonError> {
    let sysctls = engine::node_sysctls(scenario).map_err(CommonError::Usage)?;
    let options = TraceOptions {
        sample_every: Some(looks(scenario.duration)),
        pins: true,
        stories: StoriesOf::Troubled(advise::STORIES),
        requests_max: TROUBLED_KEPT,
        ..TraceOptions::default()
    };
    let result = engine::run(scenario, seed, &options).map_err(CommonError::Usage)?;
    let header = Header::of(scenario, file, seed, &sysctls, command);
    let mut value = run_report::json(&header, 8, None, &result.summary, &result.trace);
    if let Some(story) = advise::told(&result.summary, &result.trace) {
        let chain = explain::of(story, &result.trace.events, scenario);
        let mut told =
            serde_json::to_value(&chain).map_err(|error| CommonError::Internal(error.into()))?;
        told["graph"] = svg::svg(&chain).into();
        told["command"] = why(&header.command, chain.request).into();
        value["chains"] = vec![told].into();
    }
    value["pictures"] = run_report::pictures(scenario, &result.summary, &result.trace);
    Ok(value)
}

/// The command that shows a chain by itself, if the page is of a scenario.
fn why(command: &str, request: u64) -> String {
    match command.strip_prefix("sim report") {
        Some(rest) => format!(
            "sim why{} --connection {request}",
            rest.replace(" --out report.html", "")
        ),
        None => command.to_owned(),
    }
}

/// Whole seconds between two looks at the tables.
fn looks(duration: Span) -> Span {
    Span::from_secs(duration.0.div_ceil(NANOS_PER_SEC).div_ceil(SAMPLES).max(1))
}

/// The results of a file: one, or a list of them.
fn results(path: &Path) -> Result<Vec<Input>, CommonError> {
    let fail = |reason: String| CommonError::Usage(format!("{}: {reason}", path.display()));
    let size = std::fs::metadata(path)
        .map_err(|error| fail(format!("cannot be read: {error}")))?
        .len();
    if size > TEXT_MAX {
        return Err(fail(
            "is longer than 256 MiB; leave tables out of it".to_owned(),
        ));
    }
    let bytes = std::fs::read(path).map_err(|error| fail(format!("cannot be read: {error}")))?;
    let value = serde_json::from_slice::<Value>(&bytes).map_err(|error| {
        fail(format!("is no JSON ({error}). Give what a command prints with --format json, or a scenario that ends in .toml"))
    })?;
    let values = match value {
        Value::Array(values) => values,
        one => vec![one],
    };
    if let Some(index) = values.iter().position(|value| Kind::of(value).is_none()) {
        return Err(fail(format!(
            "result {} of {} is none of sim run, sweep, whatif, capacity, check, why, diff or advise",
            index + 1,
            values.len()
        )));
    }
    let name = path.display().to_string();
    Ok(values
        .into_iter()
        .map(|value| Input {
            name: name.clone(),
            value,
        })
        .collect())
}

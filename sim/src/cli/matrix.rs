//! `sim matrix`: which kernel with which kube-proxy has no problem, delays, failures, or a real server that never goes.

use std::path::PathBuf;

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table};
use ipvs_model::kernel::Kernel;
use ipvs_model::time::Span;
use serde_json::{Value as Json, json};

use super::{CommonError, Exit};
use crate::engine::trace::{Happening, TraceOptions};
use crate::engine::{self, RunResult};
use crate::experiment::RunError;
use crate::experiment::matrix::{self, Cell, KERNELS, Matrix, Mode, PROXIES, SCENARIO};
use crate::output;
use crate::scenario::{ProxyVersion, Scenario, range};

/// Arguments of `sim matrix`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Releases of the node's kernel, with commas between them; without it, a list that shows every era.
    #[arg(long, value_name = "RELEASES")]
    kernel: Option<String>,
    /// Releases of kube-proxy; without it, one for each set of rules.
    #[arg(long, value_name = "VERSIONS")]
    proxy_version: Option<String>,
    /// Who decides conn_reuse_mode: kube-proxy ("proxy"), or an operator after it (0 or 1).
    #[arg(long, value_name = "MODES", default_value = "proxy,0,1")]
    mode: String,
    /// The rollout to play; without it, scenarios/matrix.toml, built in.
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// The seed of every run, decimal or 0x hexadecimal.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

const EXAMPLES: &str = "Examples:
  sim matrix --kernel 5.4.0-91-generic,5.15.0-91-generic --proxy-version 1.21,1.22
  sim matrix --format markdown";

/// How the matrix is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Tables for people.
    #[default]
    Text,
    /// Tables in Markdown, as in docs/matrix.md.
    Markdown,
    /// For machines.
    Json,
}

/// Runs `sim matrix`.
///
/// # Errors
/// A release that cannot be read, a scenario that cannot be run, or an output that cannot be written.
pub fn run(args: Args) -> Result<u8, CommonError> {
    let kernels = list(args.kernel.as_deref(), KERNELS, |text| {
        text.parse::<Kernel>().map_err(|error| error.to_string())
    })?;
    let proxies = list(args.proxy_version.as_deref(), PROXIES, |text| {
        ProxyVersion::parse(text).ok_or_else(|| {
            format!("`{text}` is not a version of kube-proxy that is modelled (1.11 and later)")
        })
    })?;
    let modes = list(Some(&args.mode), &[], |text| match text {
        "proxy" => Ok(Mode::Proxy),
        "0" => Ok(Mode::Forced(0)),
        "1" => Ok(Mode::Forced(1)),
        _ => Err(format!("--mode {text}: write proxy, 0 or 1")),
    })?;
    let base = match &args.scenario {
        Some(path) => Scenario::load(path)?,
        None => Scenario::parse(SCENARIO, "scenarios/matrix.toml")?,
    };
    let tables = modes
        .into_iter()
        .map(|mode| {
            matrix::matrix(&base.scenario, mode, &kernels, &proxies, &|scenario| {
                play(scenario, args.seed)
            })
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| CommonError::Usage(error.0))?;
    let text = match args.format {
        Format::Text => tables.iter().map(table).collect::<Vec<_>>().join("\n"),
        Format::Markdown => tables
            .iter()
            .map(Matrix::markdown)
            .collect::<Vec<_>>()
            .join("\n"),
        Format::Json => format!("{:#}\n", Json::Array(tables.iter().map(json).collect())),
    };
    output::write(None, text.as_bytes())?;
    Ok(Exit::OK)
}

/// What a list of the command line, or the one that is built in, names.
fn list<T>(
    given: Option<&str>,
    built_in: &[&str],
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, CommonError> {
    let texts = match given {
        Some(text) => range::expand(text).map_err(|error| CommonError::Usage(error.to_string()))?,
        None => built_in.iter().map(|text| (*text).to_owned()).collect(),
    };
    let items = texts.iter().map(|text| read(text));
    items.collect::<Result<_, _>>().map_err(CommonError::Usage)
}

/// One rollout. A kube-proxy that does not start on the kernel is an answer, not an error.
fn play(scenario: &Scenario, seed: u64) -> Result<Cell, RunError> {
    if engine::node_sysctls(scenario).is_err() {
        return Ok(Cell::default());
    }
    // Events are traced with samples only.
    let options = TraceOptions {
        sample_every: Some(Span::from_secs(60)),
        ..TraceOptions::default()
    };
    let result = engine::run(scenario, seed, &options).map_err(RunError)?;
    Ok(Cell {
        starts: true,
        requests: result.summary.requests,
        failed: result.summary.failed(),
        late: result.summary.delayed_total(),
        stuck: stuck(&result),
    })
}

/// Whether a real server that was drained has not been deleted by the end.
fn stuck(result: &RunResult) -> bool {
    let events = &result.trace.events;
    let deleted = |pod| {
        let mut found = events.iter().rev();
        found
            .find(|event| event.kind == Happening::ServerDeleted && event.pod == pod)
            .map(|event| event.at)
    };
    events
        .iter()
        .filter(|event| event.kind == Happening::WeightSet(0))
        .any(|event| deleted(event.pod) < Some(event.at))
}

fn table(matrix: &Matrix) -> String {
    let mut table = Table::new();
    table
        .load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic);
    if table.width().is_none() {
        table.set_width(200);
    }
    let columns = matrix.columns();
    let versions = columns.iter().map(|column| matrix.heading(column));
    table.set_header(["kernel".to_owned()].into_iter().chain(versions));
    for (kernel, cells) in matrix.kernels.iter().zip(&matrix.cells) {
        table.add_row(
            [kernel.to_string()]
                .into_iter()
                .chain(columns.iter().map(|column| cells[*column.start()].words())),
        );
    }
    format!("{}\n{table}\n", matrix.title())
}

fn json(matrix: &Matrix) -> Json {
    let cell = |kernel: &Kernel, proxy: &ProxyVersion, cell: &Cell| {
        json!({
            "kernel": kernel.to_string(),
            "kube_proxy": proxy.to_string(),
            "starts": cell.starts,
            "requests": cell.requests,
            "failed": cell.failed,
            "late": cell.late,
            "stuck": cell.stuck,
            "words": cell.words(),
        })
    };
    let rows = matrix.kernels.iter().zip(&matrix.cells);
    let cells = rows.flat_map(|(kernel, cells)| {
        let of = matrix.proxies.iter().zip(cells);
        of.map(|(proxy, one)| cell(kernel, proxy, one))
            .collect::<Vec<_>>()
    });
    json!({ "title": matrix.title(), "cells": cells.collect::<Vec<_>>() })
}

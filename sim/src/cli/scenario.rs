//! `sim scenario check|schema|show`.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::{CommonError, Exit, Format, Overrides, load};
use crate::diag::Diagnostics;
use crate::output;
use crate::scenario::{Document, Loaded, Rollout, Scenario, schema, span_text};

/// Arguments of `sim scenario`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what is wrong with scenario files, where, and what to write instead.
    Check {
        /// The files.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        #[command(flatten)]
        overrides: Overrides,
        /// How to print what was found.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Print the JSON schema of scenario files (draft-07), for editors.
    Schema {
        /// Write to this file instead of standard output.
        #[arg(short, long, visible_alias = "out")]
        output: Option<PathBuf>,
    },
    /// Print a scenario as the simulator understands it, defaults included.
    Show {
        /// The file; without one, the founding case's rollout.
        file: Option<PathBuf>,
        #[command(flatten)]
        overrides: Overrides,
        /// Write to this file instead of standard output.
        #[arg(short, long, visible_alias = "out")]
        output: Option<PathBuf>,
    },
}

const EXAMPLES: &str = "Examples:
  sim scenario check scenarios/founding-case.toml
  sim scenario show --rps 2000
  sim scenario schema --out scenario.schema.json";

/// Runs `sim scenario`.
///
/// # Errors
/// All mistakes in the scenarios; an output that cannot be written.
pub fn run(args: Args) -> Result<u8, CommonError> {
    match args.command {
        Command::Check {
            files,
            overrides,
            format,
        } => check(&files, &overrides, format),
        Command::Schema { output } => {
            let mut text = format!("{:#}", schema::json_schema());
            text.push('\n');
            output::write(output.as_deref(), text.as_bytes())?;
            Ok(Exit::OK)
        }
        Command::Show {
            file,
            overrides,
            output,
        } => {
            let loaded = load(file.as_ref(), &overrides)?;
            let text = loaded.scenario.to_toml();
            output::write(output.as_deref(), text.as_bytes())?;
            Ok(Exit::OK)
        }
    }
}

fn check(files: &[PathBuf], overrides: &Overrides, format: Format) -> Result<u8, CommonError> {
    let mut code = Exit::OK;
    let mut reports = Vec::new();
    let mut text = String::new();
    for path in files {
        let (verdict, found) = match check_one(path, overrides)? {
            Ok(loaded) => (summary(&loaded.scenario), loaded.warnings),
            Err(found) => {
                code = Exit::USAGE;
                let count = count_errors(&found);
                let s = if count == 1 { "" } else { "s" };
                (format!("{count} mistake{s}"), found)
            }
        };
        match format {
            Format::Text => {
                text.push_str(&found.render(true));
                text.push_str(&format!("{}: {verdict}\n", path.display()));
            }
            Format::Json => reports.push(serde_json::json!({
                "file": path.display().to_string(),
                "ok": !found.has_errors(),
                "diagnostics": found.to_json(),
            })),
        }
    }
    if format == Format::Json {
        text = format!("{:#}\n", serde_json::Value::Array(reports));
    }
    output::write(None, text.as_bytes())?;
    Ok(code)
}

fn check_one(
    path: &Path,
    overrides: &Overrides,
) -> Result<Result<Loaded, Diagnostics>, CommonError> {
    let mut document = match Document::load(path) {
        Ok(document) => document,
        Err(found) => return Ok(Err(found)),
    };
    match overrides.apply(&mut document) {
        Ok(()) => Ok(document.resolve()),
        Err(CommonError::Scenario(found)) => Ok(Err(found)),
        Err(other) => Err(other),
    }
}

fn count_errors(found: &Diagnostics) -> usize {
    let is_error = |d: &&crate::diag::Diag| d.severity == crate::diag::Severity::Error;
    found.diags.iter().filter(is_error).count()
}

fn summary(scenario: &Scenario) -> String {
    let clients = scenario
        .client
        .iter()
        .map(|c| u64::from(c.count))
        .sum::<u64>();
    let rollout = match &scenario.rollout {
        Rollout::None(_) => "no rollout".to_owned(),
        Rollout::Deployment(d) => format!("Deployment rollout at {}", span_text(d.start)),
        Rollout::Scripted(s) => format!("scripted rollout at {}", span_text(s.at)),
        Rollout::Flap(f) => format!(
            "{} of {} unready at {}",
            f.flapping,
            f.pods,
            span_text(f.at)
        ),
        Rollout::Scale(s) => format!("scaled to {} at {}", s.to, span_text(s.at)),
    };
    format!(
        "ok ({}: {}, {clients} client{}, {} pods, {rollout}, kernel {})",
        scenario.name,
        span_text(scenario.duration),
        if clients == 1 { "" } else { "s" },
        scenario.rollout.old_pods(),
        scenario.node.kernel
    )
}

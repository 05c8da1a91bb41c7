//! `sim validate`: recordings of whole rollouts on real kernels beside what the model predicts.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::{CommonError, Exit};
use crate::output;
use crate::report::validation as report;
use crate::validate::{Recording, validate};

/// Arguments of `sim validate`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Recordings of the rollout lab, or folders of them.
    #[arg(required = true, value_name = "FILE|FOLDER")]
    recordings: Vec<PathBuf>,
    /// Predict from this many rollouts each. The 95 % interval needs 39.
    #[arg(long, value_name = "N", default_value_t = 79, value_parser = clap::value_parser!(u32).range(39..=100_000))]
    runs: u32,
    /// Root of the runs' seeds.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    seed: u64,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Write to this file instead of standard output; it appears complete or not at all.
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
}

const EXAMPLES: &str = "Examples:
  sim validate captures/rollouts
  sim validate captures/rollouts captures/rollouts-recorded --format markdown
  sim validate captures/rollouts/612-m0-en0-sf.txt --runs 999

Exit code 5: a rollout without chance differs, or fewer than 93 % of the others lie inside the interval.";

/// How the result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table for people.
    #[default]
    Text,
    /// The table of docs/validation.md.
    Markdown,
    /// For machines.
    Json,
}

/// The recordings of these files and folders, sorted within each folder.
///
/// # Errors
/// If one cannot be read, or a folder has none.
pub fn load(paths: &[PathBuf]) -> Result<Vec<Recording>, CommonError> {
    let mut found = Vec::new();
    for path in paths {
        if !path.is_dir() {
            found.push(read(path)?);
            continue;
        }
        let unreadable = |error: std::io::Error| {
            CommonError::Capture(format!("{}: cannot be listed: {error}\n", path.display()))
        };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path).map_err(unreadable)? {
            let file = entry.map_err(unreadable)?.path();
            if file.extension().is_some_and(|kind| kind == "txt") {
                files.push(file);
            }
        }
        files.sort();
        if files.is_empty() {
            return Err(CommonError::NothingMatched(format!(
                "{} holds no recording (NAME.txt); `ipvs-lab rollout --out` makes them\n",
                path.display()
            )));
        }
        for file in files {
            found.push(read(&file)?);
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Recording, CommonError> {
    Recording::load(path).map_err(|error| CommonError::Capture(format!("{error}\n")))
}

/// Runs `sim validate`.
///
/// # Errors
/// If a recording cannot be read, its scenario not be run, or the output not be written.
pub fn run(args: Args) -> Result<u8, CommonError> {
    let mut rows = Vec::new();
    for recording in load(&args.recordings)? {
        let name = recording.name.clone();
        let row = validate(recording, args.runs, args.seed);
        rows.push(row.map_err(|error| CommonError::Usage(format!("{name}: {error}\n")))?);
    }
    let text = match args.format {
        Format::Text => report::text(&rows, args.runs),
        Format::Markdown => report::markdown(&rows),
        Format::Json => format!("{:#}\n", report::json(&rows, args.runs)),
    };
    output::write(args.out.as_deref(), text.as_bytes())?;
    if report::Score::of(&rows).holds() {
        Ok(Exit::OK)
    } else {
        Ok(Exit::DIVERGENCE)
    }
}

//! `sim sweep --emit`: the same sweep, divided, as a file for a scheduler that people have already.

use clap::ValueEnum;

use super::words::words;
use super::{Args, CommonError, Prepared, usage};
use crate::experiment::share::SHARDS_MAX;
use crate::output::Output;

mod kubernetes;
mod slurm;

/// For whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// An Indexed Job with its volume, and a Job that merges, suspended. From Kubernetes 1.33 on.
    Kubernetes,
    /// A script for sbatch.
    Slurm,
}

/// A divided sweep.
struct Division<'a> {
    prepared: &'a Prepared,
    /// How many shards.
    shards: u64,
    /// Lower-case letters, digits and dashes: what all objects of this sweep are called.
    name: String,
}

impl Division<'_> {
    /// The words of every shard; results go to `dir`, and the scenario, if it is a file, is at `scenario`.
    fn words(&self, dir: &str, scenario: Option<&str>) -> Vec<String> {
        let mut recipe = self.prepared.recipe.clone();
        if let (Some(file), Some(place)) = (&mut recipe.scenario_file, scenario) {
            place.clone_into(file);
        }
        let mut words = words(&recipe);
        let shards = self.shards.to_string();
        for (flag, value) in [
            ("--dir", dir),
            ("--shard", "auto"),
            ("--shards", &shards),
            // A scheduler counts processors: one for each shard.
            ("--threads", "1"),
        ] {
            words.extend([flag.to_owned(), value.to_owned()]);
        }
        words
    }
}

/// Writes what `--emit` asks for.
///
/// # Errors
/// If the number of shards is missing or the output cannot be written.
pub fn run(args: &Args, target: Target, prepared: &Prepared) -> Result<(), CommonError> {
    let shards = args
        .shards
        .filter(|shards| (1..=SHARDS_MAX).contains(shards))
        .ok_or_else(|| {
            usage(format!(
                "--emit needs the number of shards: --shards N, 1 to {SHARDS_MAX}; one for each processor that may work at \
                 the same time, or more"
            ))
        })?;
    super::check_limit(&prepared.recipe)?;
    let division = Division {
        prepared,
        shards,
        name: format!("sim-{}", &prepared.identity()[..10]),
    };
    let text = match target {
        Target::Kubernetes => kubernetes::manifests(&division, &args.image)?,
        Target::Slurm => {
            let dir = args.dir.as_ref().ok_or_else(|| {
                usage("--emit slurm needs --dir DIR: a folder that all nodes see, for the results")
            })?;
            slurm::script(&division, &dir.display().to_string())
        }
    };
    let mut output = Output::create(args.out.as_deref())?;
    output.write(text.as_bytes())?;
    Ok(output.finish()?)
}

#[cfg(test)]
mod tests;

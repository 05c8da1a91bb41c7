//! A job array for Slurm.

use super::super::words::line;
use super::Division;
use crate::cli::args::quoted;

/// The script. Tasks count from 0, so that a part of the array can be run again with `--array`.
pub fn script(division: &Division<'_>, dir: &str) -> String {
    let (name, last) = (&division.name, division.shards - 1);
    let words = line(&division.words(dir, None));
    let folder = quoted(dir);
    format!(
        "#!/bin/sh
# A sweep in {shards} shards. All nodes see {folder} and the scenario's file, and have `sim` on their path.
#   sbatch THIS_FILE
#   sim merge {folder}
# The merge puts the shards together, or names those that are missing and how to run just them.
# A task that is killed or runs out of time goes on where it was when it is run again.
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --output={name}-%a.log
#SBATCH --open-mode=append
# Before its time is over a task is asked to finish its rollout.
#SBATCH --signal=B:TERM@60
exec {words}
",
        shards = division.shards,
    )
}

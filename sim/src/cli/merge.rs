//! `sim merge`: the shards of a sweep as one result, or what is missing of it.
//!
//! Counts are added; intervals, verdicts and the rule that stops the sweep are computed anew from all runs, as the sweep
//! that was never divided does. Percentages and verdicts of shards are never combined: a shard has none.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::sweep::{self, Prepared, words};
use super::{CommonError, Exit};
use crate::experiment::clock::WallClock;
use crate::experiment::ledger::{Done, Ledger};
use crate::experiment::share::{Share, ShareError};
use crate::experiment::store::{Manifest, Store, StoreError};
use crate::experiment::sweep::{Plan, Stopped, Sweep, run_kept};
use crate::experiment::{Point, RunError, Runner};
use crate::outcome::RunSummary;
use crate::output::Output;
use crate::report::sweep::Report;
use crate::report::text::count_of;

/// Arguments of `sim merge`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folders of `sim sweep --dir`: of one shard, or of all of them.
    #[arg(required = true, value_name = "DIR")]
    pub(super) dirs: Vec<PathBuf>,
    /// Report what is there although shards are missing: the runs up to the first that is missing.
    #[arg(long)]
    pub(super) partial: bool,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: sweep::Format,
    /// Write to this file instead of standard output; it appears complete or not at all.
    #[arg(short, long, visible_alias = "output", value_name = "FILE")]
    pub(super) out: Option<PathBuf>,
}

const EXAMPLES: &str = "Examples:
  sim merge work
  sim merge work-of-monday work-of-tuesday --format json --out sweep.json

Exit status 4: runs are missing; the message names the shards, and the commands that run just those.";

/// Runs `sim merge`.
///
/// # Errors
/// Folders that are no results, or of different sweeps; missing shards; an output that cannot be written.
pub fn run(args: Args) -> Result<u8, CommonError> {
    let shards = find(&args.dirs)?;
    let prepared = same_sweep(&shards)?;
    let mut output = Output::create(args.out.as_deref())?;
    for remark in shards.iter().flat_map(|shard| shard.store.remarks()) {
        sweep::say(&remark);
    }
    let union = Union(&shards);
    union.no_contradiction()?;
    let plan = Plan {
        known_only: true,
        ..sweep::plan_of(&prepared)
    };
    let clock = WallClock::start();
    let merged = run_kept(
        &Nobody,
        &prepared.points,
        &plan,
        &clock,
        &union,
        &mut |_| {},
    );
    let merged = merged.map_err(|error| CommonError::Internal(error.into()))?;
    if let Some(missing) = missing(&prepared, &plan, &shards, &merged, &args.dirs) {
        if !args.partial {
            return Err(CommonError::Incomplete(missing));
        }
        sweep::say(&missing);
    }
    if merged.runs == 0 {
        return Err(CommonError::Incomplete(
            "no rollout is there at every point: nothing to report".to_owned(),
        ));
    }
    let report = Report {
        base: &prepared.base,
        axes: prepared.grid.axes(),
        sweep: &merged,
    };
    output.write(&sweep::render(args.format, args.out.is_none(), &report)?)?;
    output.finish()?;
    Ok(Exit::OK)
}

/// A shard's results, or those of a sweep that was not divided.
struct Found {
    dir: PathBuf,
    manifest: Manifest,
    share: Share,
    store: Store,
}

/// All results in the folders and one level below them, in the order of shards.
fn find(dirs: &[PathBuf]) -> Result<Vec<Found>, CommonError> {
    let mut found: Vec<Found> = Vec::new();
    for dir in dirs {
        let mut all = vec![dir.clone()];
        let entries = std::fs::read_dir(dir)
            .map_err(|error| sweep::usage(format!("cannot read {}: {error}", dir.display())))?;
        all.extend(
            entries
                .filter_map(Result::ok)
                .map(|entry| entry.path())
                .filter(|path| path.is_dir()),
        );
        for dir in all {
            let known = |path: &Path| std::fs::canonicalize(path).ok();
            if found.iter().any(|other| known(&other.dir) == known(&dir)) {
                continue;
            }
            let Some(manifest) = Manifest::read(&dir).map_err(sweep::kept)? else {
                continue;
            };
            let share = match &manifest.shard {
                None => Share::WHOLE,
                Some(text) => text
                    .parse()
                    .map_err(|error: ShareError| sweep::usage(error))?,
            };
            let store = Store::read(&dir).map_err(sweep::kept)?;
            found.push(Found {
                dir,
                manifest,
                share,
                store,
            });
        }
    }
    if found.is_empty() {
        let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
        return Err(CommonError::NothingMatched(format!(
            "no results of a sweep in {}: neither there nor one level below is a manifest.json; give what was given to \
             sim sweep --dir",
            dirs.join(", ")
        )));
    }
    found.sort_by(|a, b| {
        (a.share.of(), a.share.index(), &a.dir).cmp(&(b.share.of(), b.share.index(), &b.dir))
    });
    Ok(found)
}

/// The sweep that all results belong to.
fn same_sweep(shards: &[Found]) -> Result<Prepared, CommonError> {
    let first = &shards[0];
    let asked = |found: &Found| {
        let recipe = &found.manifest.recipe;
        (recipe.runs, recipe.max_runs, recipe.precision)
    };
    for other in &shards[1..] {
        let differs = if other.manifest.identity != first.manifest.identity {
            "scenario, settings or seed"
        } else if asked(other) != asked(first) {
            "--runs, --max-runs or --precision"
        } else {
            continue;
        };
        return Err(sweep::usage(format!(
            "{} and {} are not of one sweep: they differ in {differs}\n  {}\n  {}",
            first.dir.display(),
            other.dir.display(),
            words::line(&words::words(&first.manifest.recipe)),
            words::line(&words::words(&other.manifest.recipe)),
        )));
    }
    let prepared = Prepared::of(first.manifest.recipe.clone())?;
    if prepared.identity() != first.manifest.identity {
        return Err(sweep::usage(format!(
            "{}: this sim makes other scenarios of the same command line (its defaults have changed); merge with the sim that \
             ran the shards",
            first.dir.display()
        )));
    }
    Ok(prepared)
}

/// The results of all shards together.
struct Union<'a>(&'a [Found]);

impl Union<'_> {
    /// Whoever has a run has it with the same counts.
    fn no_contradiction(&self) -> Result<(), CommonError> {
        let mut seen: BTreeMap<(usize, u64), &Found> = BTreeMap::new();
        for found in self.0 {
            for (point, run) in found.store.runs() {
                let Some(other) = seen.insert((point, run), found) else {
                    continue;
                };
                if other.store.line(point, run) != found.store.line(point, run) {
                    return Err(sweep::usage(format!(
                        "{} and {} have different results of run {run} at point {point}: one of them was not made by this \
                         program, or a machine computes wrongly",
                        other.dir.display(),
                        found.dir.display()
                    )));
                }
            }
        }
        Ok(())
    }

    fn has(&self, point: usize, run: u64) -> bool {
        self.0.iter().any(|found| found.store.has(point, run))
    }
}

impl Ledger for Union<'_> {
    fn known(&self, point: usize, run: u64) -> Option<RunSummary> {
        let mut stores = self.0.iter().map(|found| &found.store);
        stores.find_map(|store| store.known(point, run))
    }

    fn keep(&self, _: &mut dyn Iterator<Item = &Done>) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Runs nothing: a merge only adds.
struct Nobody;

impl Runner for Nobody {
    fn run(&self, _: &Point, _: u64) -> Result<RunSummary, RunError> {
        Err(RunError("a merge runs nothing".to_owned()))
    }
}

/// Runs that a shard has, and that it should have.
type Part = (u64, u64);

/// What is missing and how to get it; none if the result is complete.
fn missing(
    prepared: &Prepared,
    plan: &Plan,
    shards: &[Found],
    merged: &Sweep,
    dirs: &[PathBuf],
) -> Option<String> {
    if merged.stopped == Stopped::Precision && plan.exact_runs.is_none() {
        return None;
    }
    let union = Union(shards);
    let of = shards.iter().map(|found| found.share.of()).max()?;
    let mut parts: BTreeMap<u64, Part> = BTreeMap::new();
    for index in 0..of {
        let share = Share::new(index, of).ok()?;
        let width = prepared.points.len() as u64;
        let part = match plan.exact_runs {
            Some(runs) => {
                let rows = share.rows(runs);
                let has = (0..rows).flat_map(|row| {
                    let run = share.run(row);
                    (0..prepared.points.len()).map(move |point| (point, run))
                });
                let has = has.filter(|(point, run)| union.has(*point, *run)).count();
                (has as u64, rows * width)
            }
            // Without a number, a shard that has begun has what its time allowed.
            None => (u64::from(union.has(0, share.run(0))), 1),
        };
        if part.0 < part.1 {
            parts.insert(index, part);
        }
    }
    (!parts.is_empty()).then(|| message(prepared, shards, &parts, of, dirs, plan.exact_runs))
}

fn message(
    prepared: &Prepared,
    shards: &[Found],
    parts: &BTreeMap<u64, Part>,
    of: u64,
    dirs: &[PathBuf],
    exact: Option<u64>,
) -> String {
    /// So many shards are named one by one with their commands.
    const NAMED: usize = 8;
    let begun: BTreeSet<u64> = shards
        .iter()
        .filter(|found| found.share.of() == of)
        .map(|found| found.share.index())
        .collect();
    let mut lines = vec![format!(
        "{} of {} not complete",
        parts.len(),
        if of == 1 {
            "1 sweep is".to_owned()
        } else {
            format!("{of} shards are")
        },
    )];
    for (index, (has, should)) in parts.iter().take(NAMED) {
        let state = match (exact, begun.contains(index)) {
            (_, false) => "missing".to_owned(),
            (Some(_), true) => format!("{has} of {}", count_of(*should, "rollout", "rollouts")),
            (None, true) => "begun, without a result".to_owned(),
        };
        lines.push(format!("  shard {}/{of}: {state}", index + 1));
    }
    if parts.len() > NAMED {
        lines.push(format!("  and {} more", parts.len() - NAMED));
    }
    let dir = dirs
        .first()
        .map_or_else(String::new, |dir| dir.display().to_string());
    let indexes: Vec<String> = parts.keys().map(u64::to_string).collect();
    lines.push("What runs just these (finished rollouts are not run again):".to_owned());
    for index in parts.keys().take(NAMED) {
        let mut words = words::words(&prepared.recipe);
        words.extend(["--dir".to_owned(), dir.clone()]);
        if of > 1 {
            words.extend(["--shard".to_owned(), format!("{}/{of}", index + 1)]);
        }
        lines.push(format!("  {}", words::line(&words)));
    }
    if of > 1 {
        lines.push(format!(
            "In an array counted from 0 (--shard auto --shards {of}): indexes {0}; Slurm: sbatch --array={0}",
            indexes.join(",")
        ));
    }
    lines.push("--partial reports what is there".to_owned());
    lines.join("\n")
}

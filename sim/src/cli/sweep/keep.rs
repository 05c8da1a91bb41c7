//! Where the results of a sweep are kept, and what is known of it from there.

use std::path::{Path, PathBuf};

use super::shard::{self, Shard};
use super::{Args, Budget, CommonError, Prepared, prepared, say, usage, words};
use crate::experiment::share::{Share, ShareError};
use crate::experiment::store::manifest::{Manifest, Recipe};
use crate::experiment::store::{Store, StoreError};
use crate::experiment::sweep::SweepError;
use crate::report::text::count_of;

/// Where results are kept.
pub struct Keep {
    /// The store's folder.
    pub store: PathBuf,
    /// Which runs.
    pub share: Share,
}

impl Keep {
    fn new(dir: &Path, share: Share) -> Self {
        let store = if share.is_whole() {
            dir.to_owned()
        } else {
            dir.join(format!("shard-{}-of-{}", share.index() + 1, share.of()))
        };
        Self { store, share }
    }

    /// The command that goes on.
    pub fn again(&self) -> String {
        let words = ["sim", "sweep", "--resume"].map(str::to_owned);
        let store = self.store.display().to_string();
        words::line(&[words.as_slice(), &[store]].concat())
    }
}

/// What is to be swept, and where it is kept: from the flags, or from the folder to go on with.
pub fn asked(args: &Args) -> Result<(Recipe, Option<Keep>), CommonError> {
    let Some(dir) = &args.resume else {
        let share = match &args.shard {
            None => Share::WHOLE,
            Some(Shard::Given(share)) => *share,
            Some(Shard::Auto) => {
                let (share, found) =
                    shard::auto(args.shards, &|name| std::env::var(name).ok()).map_err(usage)?;
                say(&format!("shard {share}, from {found}"));
                share
            }
        };
        let keep = args.dir.as_ref().map(|dir| Keep::new(dir, share));
        return Ok((recipe(args)?, keep));
    };
    if !args.overrides.given.is_empty() {
        return Err(usage(
            "--resume goes on with the sweep as it was asked for; leave the scenario's fields out, or begin anew with --dir",
        ));
    }
    let manifest = Manifest::read(dir).map_err(kept)?.ok_or_else(|| {
        usage(format!(
            "{}: there is no sweep to go on with (no manifest.json)",
            dir.display()
        ))
    })?;
    let share = match &manifest.shard {
        None => Share::WHOLE,
        Some(text) => text.parse().map_err(|error: ShareError| usage(error))?,
    };
    let mut recipe = manifest.recipe;
    recipe.runs = args.runs.or(recipe.runs);
    recipe.max_runs = args.max_runs.or(recipe.max_runs);
    recipe.precision = args.precision.or(recipe.precision);
    if let Some(Budget(_, text)) = &args.budget {
        recipe.budget = Some(text.clone());
    }
    let keep = Keep {
        store: dir.clone(),
        share,
    };
    Ok((recipe, Some(keep)))
}

/// The recipe that the flags make.
pub(super) fn recipe(args: &Args) -> Result<Recipe, CommonError> {
    let text = args.scenario.as_deref().map(prepared::scenario_text);
    let file = |path: &PathBuf| path.display().to_string();
    Ok(Recipe {
        scenario_file: args.scenario.as_ref().map(file),
        scenario_text: text.transpose()?,
        fields: args
            .overrides
            .given
            .iter()
            .map(prepared::kept_field)
            .collect(),
        vary: args.vary.clone(),
        seed: format!("{:#x}", args.seed.unwrap_or(1)),
        runs: args.runs,
        max_runs: args.max_runs,
        precision: args.precision,
        rare: args.rare,
        budget: args.budget.as_ref().map(|budget| budget.1.clone()),
    })
}

/// Opens the folder of results, if it is this sweep's.
pub fn open(keep: &Keep, prepared: &Prepared) -> Result<Store, CommonError> {
    let identity = prepared.identity();
    if let Some(found) = Manifest::read(&keep.store).map_err(kept)?
        && found.identity != identity
    {
        return Err(usage(format!(
            "{} has the results of another sweep: its scenario, settings or seed differ. That one was\n  {}\nGive this one \
             another --dir",
            keep.store.display(),
            words::line(&words::words(&found.recipe))
        )));
    }
    let shard = (!keep.share.is_whole()).then(|| keep.share.to_string());
    let manifest = Manifest::new(identity, prepared.recipe.clone(), shard);
    let store = Store::open(&keep.store, &manifest).map_err(kept)?;
    for remark in store.remarks() {
        say(&remark);
    }
    if !store.is_empty() {
        say(&format!(
            "going on with {}: {} are there",
            keep.store.display(),
            count_of(store.len() as u64, "rollout", "rollouts")
        ));
    }
    Ok(store)
}

/// What ended a sweep without a result, as an error of the command.
pub fn ended(error: SweepError, keep: Option<&Keep>) -> CommonError {
    match (error, keep) {
        (SweepError::Keep(error), Some(keep)) => CommonError::Unkept(format!(
            "{error}. What was done before is kept. Free some space, then go on with: {}",
            keep.again()
        )),
        (SweepError::Keep(error), None) => kept(error),
        (error @ SweepError::Run { .. }, _) => usage(error),
        (error @ SweepError::Threads(_), _) => CommonError::Internal(error.into()),
    }
}

/// What a store could not do, as an error of the command.
pub fn kept(error: StoreError) -> CommonError {
    match error {
        StoreError::Write { .. } => CommonError::Unkept(error.to_string()),
        _ => usage(error),
    }
}

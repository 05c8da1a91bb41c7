//! What a store holds results of: enough to go on, to merge, and to refuse what does not belong together.

use std::fs;
use std::hash::Hasher as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use siphasher::sip128::{Hasher128 as _, SipHasher13};

use super::{MANIFEST, StoreError, write_whole};
use crate::experiment::grid::Point;
use crate::scenario::Scenario;

/// The version of the folder's layout. Raised when anything in it changes.
const FORMAT: u32 = 1;

/// What runs give is pinned by these digests; those of the counts are the model's epoch.
const DIGESTS: &str = include_str!("../../../tests/digests/digests.txt");

/// The manifest of a store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u32,
    /// The program that made it, for people.
    version: String,
    /// What the model was: [`epoch`].
    epoch: String,
    /// The scenarios of all points and the root seed: [`identity`].
    pub identity: String,
    /// How the sweep was asked for.
    pub recipe: Recipe,
    /// The shard, `m/n`; none for a whole sweep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<String>,
}

/// A sweep's command line, and the text of its scenario: with it the sweep goes on wherever the folder is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The scenario's file as it was given; none for the built-in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scenario_file: Option<String>,
    /// Its text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scenario_text: Option<String>,
    /// Fields set by flags, in their order: the flag without dashes, and its value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<(String, String)>,
    /// What `--vary` was given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vary: Vec<String>,
    /// The root seed, hexadecimal.
    pub seed: String,
    /// `--runs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs: Option<u64>,
    /// `--max-runs`, if it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_runs: Option<u64>,
    /// `--precision`, if it was given: a share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<f64>,
    /// `--rare`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rare: bool,
    /// `--budget` as it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<String>,
}

impl Manifest {
    /// The manifest of a sweep made by this program.
    pub fn new(identity: String, recipe: Recipe, shard: Option<String>) -> Self {
        Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: epoch(),
            identity,
            recipe,
            shard,
        }
    }

    /// Reads the manifest of a store that this program can go on with; none if there is no such file.
    ///
    /// # Errors
    /// If it is none, or from a program with another model.
    pub fn read(dir: &Path) -> Result<Option<Self>, StoreError> {
        let path = dir.join(MANIFEST);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(reason) => return Err(StoreError::Read { path, reason }),
        };
        let wrong = |reason: String| StoreError::Manifest {
            path: path.clone(),
            reason,
        };
        let value: serde_json::Value = serde_json::from_str(&text)
            .map_err(|error| wrong(format!("this is no manifest of a sweep: {error}")))?;
        if value["format"] != FORMAT {
            return Err(wrong(format!(
                "written in format {}, and this sim reads format {FORMAT}; use the sim that wrote it",
                value["format"]
            )));
        }
        let manifest: Self = serde_json::from_value(value)
            .map_err(|error| wrong(format!("this is no manifest of a sweep: {error}")))?;
        if manifest.epoch != epoch() {
            return Err(wrong(format!(
                "its results come from another model (epoch {}, sim {}; this sim has epoch {}): they cannot be mixed. \
                 Go on with the sim that began it, or begin anew in another folder",
                manifest.epoch,
                manifest.version,
                epoch()
            )));
        }
        Ok(Some(manifest))
    }

    /// Writes it, unless it is there already.
    pub(super) fn write(&self, dir: &Path) -> Result<(), StoreError> {
        if Self::read(dir).is_ok_and(|found| found.as_ref() == Some(self)) {
            return Ok(());
        }
        let text = serde_json::to_string_pretty(self).unwrap_or_default() + "\n";
        write_whole(&dir.join(MANIFEST), text.as_bytes())
    }
}

fn hash<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    let mut hasher = SipHasher13::new_with_keys(0x5eed, 0x0f51);
    for part in parts {
        hasher.write_u64(part.len() as u64);
        hasher.write(part.as_bytes());
    }
    format!("{:032x}", hasher.finish128().as_u128())
}

/// What this program's model is: a digest of the golden digests of what runs give. It changes whenever a run of a
/// pinned scenario gives other counts.
pub fn epoch() -> String {
    let pinned = DIGESTS
        .lines()
        .flat_map(|line| line.split(' ').take(3))
        .collect::<Vec<_>>();
    hash(pinned.into_iter())
}

/// What makes two sweeps the same: the root seed, and at every point its settings and its whole scenario, defaults
/// included; and whether rare events are conditioned. How many runs are asked for is no part of it.
pub fn identity(root_seed: u64, rare: bool, points: &[Point], scenarios: &[Scenario]) -> String {
    let mut parts = vec![format!("{root_seed:#x} {rare}")];
    for (point, scenario) in points.iter().zip(scenarios) {
        parts.extend(point.settings.iter().map(ToString::to_string));
        parts.push(scenario.to_toml());
    }
    hash(parts.iter().map(String::as_str))
}

//! From a recipe (flags, or a manifest) to the points of a sweep and their scenarios.

use std::collections::BTreeSet;
use std::path::Path;

use crate::cli::{CommonError, warn};
use crate::experiment::grid::GridError;
use crate::experiment::store::manifest::{self, Recipe};
use crate::experiment::{Axis, Grid, Point};
use crate::report::sweep::{Base, settings_in_words};
use crate::scenario::overrides::SHORTCUTS;
use crate::scenario::{DataPlane, Document, FieldName, Scenario};

use super::kernels::open_kernels;
use super::{Simulate, usage};
use crate::experiment::{RunError, Runner};
use crate::outcome::RunSummary;

/// A sweep that can begin.
pub struct Prepared {
    /// How it was asked for.
    pub recipe: Recipe,
    /// What it varies.
    pub grid: Grid,
    /// Its points.
    pub points: Vec<Point>,
    /// Their scenarios, checked.
    pub scenarios: Vec<Scenario>,
    /// What the report says of where it started.
    pub base: Base,
    /// The root seed.
    pub seed: u64,
}

impl Prepared {
    /// Reads and checks everything that a recipe names.
    ///
    /// # Errors
    /// All mistakes in it, before any run.
    pub fn of(recipe: Recipe) -> Result<Self, CommonError> {
        let name = recipe.scenario_file.as_deref().unwrap_or("scenario");
        let mut document = match &recipe.scenario_text {
            Some(text) => Document::parse(text, name)?,
            None => Document::default(),
        };
        let seed = super::seed(&recipe.seed).map_err(usage)?;
        let set = fixed(&recipe, &mut document)?;
        let grid = Grid::new(axes(&recipe, &document)?).map_err(usage)?;
        let points = grid.points();
        let scenarios = scenarios(&document, &points)?;
        let first = scenarios.first();
        let base = Base {
            name: first.map_or_else(String::new, |scenario| scenario.name.clone()),
            file: recipe.scenario_file.clone(),
            words: settings_in_words(&scenarios),
            set,
        };
        Ok(Self {
            recipe,
            grid,
            points,
            scenarios,
            base,
            seed,
        })
    }

    /// What tells this sweep from others: see [`manifest::identity`].
    pub fn identity(&self) -> String {
        let rare = self.recipe.rare;
        manifest::identity(self.seed, rare, &self.points, &self.scenarios)
    }

    /// The scenarios with an engine.
    pub fn runner<'a>(&'a self, simulate: Simulate<'a>) -> impl Runner + 'a {
        WithEngine {
            scenarios: &self.scenarios,
            simulate,
        }
    }
}

struct WithEngine<'a> {
    scenarios: &'a [Scenario],
    simulate: Simulate<'a>,
}

impl Runner for WithEngine<'_> {
    fn run(&self, point: &Point, seed: u64) -> Result<RunSummary, RunError> {
        (self.simulate)(&self.scenarios[point.index], seed)
    }
}

/// The text of a scenario file.
///
/// # Errors
/// If it cannot be read.
pub fn scenario_text(path: &Path) -> Result<String, CommonError> {
    Ok(crate::scenario::read_text(path)?)
}

/// The name of `--set` among a recipe's fields.
const SET: &str = "set";

/// A field as a recipe keeps it.
pub fn kept_field((field, value): &(FieldName, String)) -> (String, String) {
    match field {
        FieldName::Path(path) => (SET.to_owned(), format!("{path}={value}")),
        FieldName::Short(name) => ((*name).to_owned(), value.clone()),
    }
}

/// The field that the founding case turns on: compared unless something else is asked.
const REUSE_MODE: &str = "conn-reuse-mode";
const REUSE_MODE_KEY: &str = "net.ipv4.vs.conn_reuse_mode";

/// Lays what `--set` gives over the scenario that all points start from, and returns it for the report.
pub(super) fn fixed(recipe: &Recipe, document: &mut Document) -> Result<Vec<String>, CommonError> {
    let mut set = Vec::new();
    for (name, value) in &recipe.fields {
        if name != SET {
            continue;
        }
        let (path, value) = value
            .split_once('=')
            .ok_or_else(|| usage(format!("--set {value}: there is no `=`")))?;
        document.set(path, value)?;
        set.push(format!("{path}={value}"));
    }
    Ok(set)
}

/// The axes: short names in the order of the command line, then `--vary` in its own. If nothing says what
/// conn_reuse_mode is to be and the node balances with IPVS, both modes are compared.
pub(super) fn axes(recipe: &Recipe, document: &Document) -> Result<Vec<Axis>, CommonError> {
    let axis = |flag: &str, path: &str, values: &str| {
        Axis::parse(path, values).map_err(|error| CommonError::Usage(format!("{flag}: {error}")))
    };
    let mut axes = Vec::new();
    for (name, values) in recipe.fields.iter().filter(|(name, _)| name != SET) {
        axes.push(axis(&format!("--{name}"), name, values)?);
    }
    for vary in &recipe.vary {
        let Some((path, values)) = vary.split_once('=') else {
            return Err(CommonError::Usage(format!(
                "--vary {vary}: there is no `=`; write --vary PATH=VALUES, such as --vary node.hz=100,250"
            )));
        };
        axes.push(axis(&format!("--vary {path}"), path.trim(), values)?);
    }
    let paths: Vec<&str> = axes.iter().map(|axis| field_of(&axis.path)).collect();
    if let Some(place) = (1..paths.len()).find(|place| paths[..*place].contains(&paths[*place])) {
        let path = axes[place].path.clone();
        return Err(usage(GridError::Twice { path }));
    }
    let decides = |path: &&str| path.contains(REUSE_MODE_KEY) || *path == "node.mode";
    if !paths.iter().any(decides) {
        let scenario = document.resolve()?.scenario;
        let given = scenario
            .node_sysctl_overrides()
            .iter()
            .any(|(key, _)| key == REUSE_MODE_KEY);
        if scenario.node.mode == DataPlane::Ipvs && !given {
            axes.push(axis("--conn-reuse-mode", REUSE_MODE, "0,1")?);
        }
    }
    open_kernels(document, &mut axes)?;
    Ok(axes)
}

/// The path of the field that an axis varies, whether or not it is called by its short name.
pub(super) fn field_of(path: &str) -> &str {
    SHORTCUTS
        .iter()
        .find(|shortcut| shortcut.name == path)
        .map_or(path, |shortcut| shortcut.path())
}

/// The scenario of every point, checked. Warnings go to standard error, each once.
fn scenarios(document: &Document, points: &[Point]) -> Result<Vec<Scenario>, CommonError> {
    let mut scenarios = Vec::with_capacity(points.len());
    let mut warnings = BTreeSet::new();
    for point in points {
        let mut document = document.clone();
        for setting in &point.settings {
            if SHORTCUTS
                .iter()
                .any(|shortcut| shortcut.name == setting.path)
            {
                document.set_named(&setting.path, &setting.value)?;
            } else {
                document.set(&setting.path, &setting.value)?;
            }
        }
        let loaded = document.resolve()?;
        if warnings.insert(loaded.warnings.render(false)) {
            warn(&loaded.warnings);
        }
        scenarios.push(loaded.scenario);
    }
    Ok(scenarios)
}

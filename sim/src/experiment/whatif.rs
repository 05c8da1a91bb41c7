//! `sim whatif`: today's setting against remedies, on common random numbers.
//!
//! Every remedy is run beside today's setting, rollout by rollout with the same seeds ([`super::rows`]); what it changes is the
//! paired difference ([`super::paired`]). Which remedies there are is data ([`remedies`]), which make sense for a scenario is
//! decided by [`choose`], and what they cost beside failures is measured in the same runs ([`super::side`]).
//!
//! A library first: [`plan`] and [`run`] need no command line, and [`WhatIf`] is serialisable.

use serde::Serialize;

use super::estimate::{ALPHA, Estimates, Probability};
use super::paired::{Difference, Measure, Paired, Ratio, RunCounts, Verdict};
use super::rows::{Plan, Rows, RowsError, Stopped, run_rows};
use super::side::{RunSide, Side};
use super::tally::Tally;
use super::{RunError, clock::Stopwatch, seeds};
use crate::diag::Diagnostics;
use crate::engine::{self, trace::TraceOptions};
use crate::outcome::{Cause, RunSummary};
use crate::scenario::{Document, Scenario};
use ipvs_model::time::Span;
use std::time::Duration;

pub mod choose;
pub mod remedies;

use choose::{Setting, Today};
use remedies::{Place, REMEDIES, Remedy};

/// Version of the serialised form.
pub const FORMAT: u32 = 1;
/// How often the tables and the real servers are looked at in a run.
const SAMPLE_EVERY: Span = Span::from_secs(5);
/// Rollouts named for looking at, of each remedy.
const LOOK_AT: usize = 3;
/// A difference whose interval is narrower than this is known well enough.
const NARROW: f64 = 0.02;

/// Which remedies to try.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Only these; empty for all.
    pub only: Vec<String>,
    /// Not these.
    pub skip: Vec<String>,
    /// One's own: settings to be laid over the scenario together.
    pub own: Vec<Vec<Setting>>,
}

/// A remedy that will be tried.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its name.
    pub id: String,
    /// What it is.
    pub title: String,
    /// Who changes something; none for one's own.
    pub place: Option<Place>,
    /// What it sets.
    pub settings: Vec<Setting>,
    /// How the counted time differs from today's.
    pub window: String,
    /// What is known of its side effects.
    pub side: String,
    /// What to do.
    pub apply: Vec<ApplyText>,
    /// Where it comes from.
    pub source: String,
    /// The scenario with it.
    pub scenario: Scenario,
}

/// One thing to do, with names filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ApplyText {
    /// Where.
    pub on: String,
    /// What to type.
    pub text: String,
}

/// A remedy that was not tried, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Its name.
    pub id: String,
    /// What it is.
    pub title: String,
    /// Why.
    pub reason: String,
}

/// What will be compared.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The scenario as it is.
    pub today: Scenario,
    /// What to try.
    pub candidates: Vec<Candidate>,
    /// What not, and why.
    pub left_out: Vec<LeftOut>,
}

/// Why nothing can be compared.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The scenario, or one of one's own remedies, cannot be used.
    #[error("{0}")]
    Scenario(#[from] Diagnostics),
    /// There is no such remedy.
    #[error("{0}")]
    Unknown(String),
    /// The scenario cannot be run.
    #[error("{0}")]
    Unrunnable(String),
}

/// Chooses remedies for a scenario.
///
/// # Errors
/// A scenario that cannot be used, or a name of no remedy.
pub fn plan(document: &Document, selection: &Selection) -> Result<Comparison, PlanError> {
    let today = document.resolve()?.scenario;
    let sysctls = engine::node_sysctls(&today).map_err(PlanError::Unrunnable)?;
    for id in selection.only.iter().chain(&selection.skip) {
        if remedies::by_id(id).is_none() {
            return Err(PlanError::Unknown(unknown(id)));
        }
    }
    let (mut candidates, mut left_out) = (Vec::new(), Vec::new());
    for remedy in REMEDIES {
        let named = |list: &[String]| list.iter().any(|id| id == remedy.id);
        if named(&selection.skip) || !(selection.only.is_empty() || named(&selection.only)) {
            continue;
        }
        let now = Today {
            scenario: &today,
            sysctls: &sysctls,
        };
        match candidate(remedy, document, now) {
            Ok(candidate) => candidates.push(candidate),
            Err(reason) => left_out.push(LeftOut {
                id: remedy.id.to_owned(),
                title: remedy.title.to_owned(),
                reason,
            }),
        }
    }
    for (number, settings) in (1..).zip(&selection.own) {
        candidates.push(own(number, settings, document)?);
    }
    Ok(Comparison {
        today,
        candidates,
        left_out,
    })
}

fn unknown(id: &str) -> String {
    let ids = REMEDIES.iter().map(|remedy| remedy.id);
    let near = crate::scenario::nearest(id, ids.clone());
    let near = near.map_or_else(
        || ".".to_owned(),
        |near| format!("; did you mean `{near}`?"),
    );
    let all = ids.collect::<Vec<_>>().join(", ");
    format!("there is no remedy `{id}`{near} There are: {all}")
}

fn candidate(remedy: &Remedy, document: &Document, today: Today<'_>) -> Result<Candidate, String> {
    let chosen = choose::choose(remedy, today)?;
    let scenario = with(document, &chosen.settings).map_err(|found| {
        // A data plane that the model does not have yet is no choice of its field.
        let title = found
            .diags
            .first()
            .map_or(String::new(), |diag| diag.title.clone());
        format!("cannot be tried on this scenario: {title}")
    })?;
    if let Err(reason) = engine::node_sysctls(&scenario) {
        return Err(format!("cannot be tried on this scenario: {reason}"));
    }
    let fill = |text: &str| {
        let each = chosen.names.iter();
        each.fold(text.to_owned(), |text, (name, value)| {
            text.replace(name, value)
        })
    };
    let apply = remedy.apply.iter().map(|apply| ApplyText {
        on: apply.on.to_owned(),
        text: fill(apply.text),
    });
    Ok(Candidate {
        id: remedy.id.to_owned(),
        title: fill(remedy.title),
        place: Some(remedy.place),
        apply: apply.collect(),
        settings: chosen.settings,
        window: chosen.window,
        side: remedy.side.to_owned(),
        source: remedy.source.to_owned(),
        scenario,
    })
}

/// The scenario with settings laid over it.
fn with(document: &Document, settings: &[Setting]) -> Result<Scenario, Diagnostics> {
    let mut document = document.clone();
    for (path, value) in settings {
        document.set(path, value)?;
    }
    Ok(document.resolve()?.scenario)
}

fn own(number: usize, settings: &[Setting], document: &Document) -> Result<Candidate, PlanError> {
    let scenario = with(document, settings)?;
    engine::node_sysctls(&scenario).map_err(PlanError::Unrunnable)?;
    let words: Vec<String> = settings
        .iter()
        .map(|(path, value)| format!("{path}={value}"))
        .collect();
    Ok(Candidate {
        id: format!("own-{number}"),
        title: words.join(", "),
        place: None,
        settings: settings.to_vec(),
        window: String::new(),
        side: String::new(),
        apply: Vec::new(),
        source: "the command line".to_owned(),
        scenario,
    })
}

/// What is kept of one run.
#[derive(Clone, Debug)]
pub struct Ran {
    summary: RunSummary,
    side: RunSide,
}

impl Ran {
    /// One rollout, watched.
    ///
    /// # Errors
    /// If the scenario cannot be run.
    pub fn once(scenario: &Scenario, seed: u64) -> Result<Self, RunError> {
        let options = TraceOptions {
            sample_every: Some(SAMPLE_EVERY),
            ..TraceOptions::default()
        };
        let result = engine::run(scenario, seed, &options).map_err(RunError)?;
        let mut summary = result.summary;
        // Rows are kept: what nobody reads again would only take room.
        summary.timeline = Vec::new();
        Ok(Self {
            side: RunSide::of(&result.trace),
            summary,
        })
    }
}

/// A probability as data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// How often.
    pub count: u64,
    /// Out of how many.
    pub of: u64,
    /// The share; none if there was nothing to count.
    pub share: Option<f64>,
    /// Lower end of the 95 % interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl From<&Probability> for Estimate {
    fn from(probability: &Probability) -> Self {
        Self {
            count: probability.count,
            of: probability.of,
            share: probability.share(),
            low: probability.interval.low,
            high: probability.interval.high,
        }
    }
}

/// How often a cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CauseCount {
    /// Its key.
    pub key: &'static str,
    /// In words.
    pub what: &'static str,
    /// How many requests.
    pub count: u64,
}

/// What a setting does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Assessment {
    /// A request that got a port fails.
    pub failure: Estimate,
    /// A request that got a port is answered late.
    pub late: Estimate,
    /// A request finds no free port.
    pub no_port: Estimate,
    /// A rollout fails at least one request.
    pub any_failure: Estimate,
    /// A rollout leaves the service dead for over ten seconds.
    pub dead: Estimate,
    /// The median over rollouts of the longest dead stretch, in whole seconds.
    pub dead_median_s: u64,
    /// Causes of failure, the most frequent first.
    pub causes: Vec<CauseCount>,
    /// Causes of late connects, the most frequent first.
    pub late_causes: Vec<CauseCount>,
    /// What it costs beside.
    pub side: Side,
    /// A kind of rollout that no run showed has at most this probability.
    pub unseen: f64,
}

/// A remedy that was tried.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tried {
    /// Its name.
    pub id: String,
    /// What it is.
    pub title: String,
    /// Who changes something; none for one's own.
    pub place: Option<Place>,
    /// What it sets in the scenario.
    pub settings: Vec<Setting>,
    /// How the counted time differs from today's.
    pub window: String,
    /// What it does.
    pub result: Assessment,
    /// How it changes the probability of failure, paired.
    pub failure: Difference,
    /// How it changes the probability of a late answer, paired.
    pub late: Difference,
    /// How it changes the probability of finding no port, paired.
    pub no_port: Difference,
    /// How many times less often requests fail.
    pub ratio: Option<Ratio>,
    /// What is known of its side effects beside what was measured.
    pub side: String,
    /// What to do.
    pub apply: Vec<ApplyText>,
    /// Where it comes from.
    pub source: String,
    /// Seeds of the rollouts in which it differs most from today.
    pub look_at: Vec<String>,
}

/// The comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WhatIf {
    /// Version of this form.
    pub format: u32,
    /// The scenario's name.
    pub scenario: String,
    /// The file it came from; none for the built-in founding case.
    pub file: Option<String>,
    /// What was run, in words.
    pub words: Vec<String>,
    /// Root of all seeds, hexadecimal.
    pub root_seed: String,
    /// Rollouts of each setting.
    pub runs: u64,
    /// What ended them.
    pub stopped: Stopped,
    /// Today.
    pub today: Assessment,
    /// The remedies, the best first.
    pub remedies: Vec<Tried>,
    /// Those that make no sense here, and why.
    pub left_out: Vec<LeftOut>,
}

/// What a comparison has seen while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoFar {
    /// Rollouts of each setting.
    pub runs: u64,
    /// Settings, today's included.
    pub settings: u64,
    /// Requests that failed as things are today, and of how many.
    pub today: (u64, u64),
    /// Remedies with which none has failed.
    pub none_failed: u64,
}

impl SoFar {
    fn of(rows: &[Vec<Ran>]) -> Self {
        let settings = rows.first().map_or(0, Vec::len);
        let sum = |setting: usize| {
            let counts = counts(rows, setting).into_iter();
            counts.fold((0, 0), |(failed, of), run| {
                (failed + run.failed, of + run.decided)
            })
        };
        Self {
            runs: rows.len() as u64,
            settings: settings as u64,
            today: sum(0),
            none_failed: (1..settings).filter(|setting| sum(*setting).0 == 0).count() as u64,
        }
    }
}

/// Compares. `simulate` runs one rollout ([`Ran::once`] unless a test has another); `progress` hears what has been seen so
/// far, and the time.
///
/// # Errors
/// The first run that fails.
pub fn run(
    comparison: &Comparison,
    file: Option<String>,
    plan: &Plan,
    stopwatch: &dyn Stopwatch,
    simulate: &(dyn Fn(&Scenario, u64) -> Result<Ran, RunError> + Sync),
    progress: &mut dyn FnMut(&SoFar, Duration),
) -> Result<WhatIf, RowsError> {
    let scenarios: Vec<&Scenario> = std::iter::once(&comparison.today)
        .chain(
            comparison
                .candidates
                .iter()
                .map(|candidate| &candidate.scenario),
        )
        .collect();
    let one = |setting: usize, seed: u64| simulate(scenarios[setting], seed);
    let mut enough = |rows: &[Vec<Ran>]| decided(rows, scenarios.len());
    let mut told = |rows: &[Vec<Ran>], elapsed| progress(&SoFar::of(rows), elapsed);
    let rows = run_rows(
        scenarios.len(),
        &one,
        plan,
        stopwatch,
        &mut enough,
        &mut told,
    )?;
    let mut remedies: Vec<Tried> = (1..)
        .zip(&comparison.candidates)
        .map(|(setting, candidate)| tried(candidate, &rows, setting, plan.root_seed))
        .collect();
    // Stable: equal ones stay in the order of the table.
    remedies.sort_by(|a, b| {
        rank(a)
            .partial_cmp(&rank(b))
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    Ok(WhatIf {
        format: FORMAT,
        scenario: comparison.today.name.clone(),
        file,
        words: crate::report::sweep::settings_in_words(std::slice::from_ref(&comparison.today)),
        root_seed: format!("{:#x}", plan.root_seed),
        runs: rows.runs(),
        stopped: rows.stopped,
        today: assess(&rows, 0),
        remedies,
        left_out: comparison.left_out.clone(),
    })
}

/// The fewest failures first, then the fewest late answers, then the fewest without a port.
fn rank(tried: &Tried) -> [f64; 3] {
    let result = &tried.result;
    [result.failure, result.late, result.no_port].map(|estimate| estimate.share.unwrap_or(1.0))
}

fn counts(rows: &[Vec<Ran>], setting: usize) -> Vec<RunCounts> {
    let of = rows.iter().filter_map(|row| row.get(setting));
    of.map(|ran| RunCounts::of(&ran.summary)).collect()
}

/// Whether every remedy is known to be better or worse, or no different.
fn decided(rows: &[Vec<Ran>], settings: usize) -> bool {
    let today = counts(rows, 0);
    (1..settings).all(|setting| {
        let paired = Paired::of(&today, &counts(rows, setting), Measure::Failure);
        let difference = paired.difference(ALPHA);
        difference.verdict != Verdict::Unclear || difference.high - difference.low < NARROW
    })
}

fn tried(candidate: &Candidate, rows: &Rows<Ran>, setting: usize, root: u64) -> Tried {
    let (today, with) = (counts(&rows.rows, 0), counts(&rows.rows, setting));
    let paired = |measure| Paired::of(&today, &with, measure);
    let failure = paired(Measure::Failure);
    let seed = |run| format!("{:#x}", seeds::seed_of(root, run));
    Tried {
        id: candidate.id.clone(),
        title: candidate.title.clone(),
        place: candidate.place,
        settings: candidate.settings.clone(),
        window: candidate.window.clone(),
        result: assess(rows, setting),
        failure: failure.difference(ALPHA),
        late: paired(Measure::Late).difference(ALPHA),
        no_port: paired(Measure::NoPort).difference(ALPHA),
        ratio: failure.ratio(ALPHA),
        side: candidate.side.clone(),
        apply: candidate.apply.clone(),
        source: candidate.source.clone(),
        look_at: failure.disagreeing(LOOK_AT).into_iter().map(seed).collect(),
    }
}

fn assess(rows: &Rows<Ran>, setting: usize) -> Assessment {
    let mut tally = Tally::default();
    for (run, ran) in (0..).zip(rows.of(setting)) {
        tally.add(run, &ran.summary);
    }
    let estimates = Estimates::of(&tally);
    Assessment {
        failure: (&estimates.failure).into(),
        late: (&estimates.delayed).into(),
        no_port: (&estimates.exhausted).into(),
        any_failure: (&estimates.any_failure).into(),
        dead: (&estimates.dead).into(),
        dead_median_s: tally.median_dead_seconds(),
        causes: by_count(&tally.causes),
        late_causes: by_count(&tally.delayed_causes),
        side: Side::of(rows.of(setting).map(|ran| &ran.side)),
        unseen: estimates.unseen,
    }
}

pub(super) fn by_count(counts: &[u64; Cause::COUNT]) -> Vec<CauseCount> {
    let mut all: Vec<CauseCount> = Cause::ALL
        .iter()
        .map(|cause| CauseCount {
            key: cause.key(),
            what: cause.describe(),
            count: counts[cause.index()],
        })
        .filter(|cause| cause.count > 0)
        .collect();
    all.sort_by_key(|cause| std::cmp::Reverse(cause.count));
    all
}

#[cfg(test)]
mod tests;

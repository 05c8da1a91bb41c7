//! `sim capacity`: how far one setting can go while a target is kept.
//!
//! A search among noisy answers: at each value a few rollouts are checked against the target ([`super::check`]), and each answer is
//! "keeps", "breaks" or "undecided". The boundary is an interval: between the furthest value that keeps the target and the nearest that
//! breaks it. A bisection presumes that more is worse; so values on both sides are tried as well, and those that answer otherwise are
//! reported instead of hidden: ports, timers and periods make responses that go up and down.

use std::time::Duration;

use serde::Serialize;

use super::check::{self, Event, Judged, Threshold, Verdict};
use super::rows::{Plan, RowsError};
use super::{RunError, clock::Stopwatch};
use crate::diag::Diagnostics;
use crate::outcome::RunSummary;
use crate::scenario::{Document, Scenario};

pub mod map;

/// Which direction is sought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sought {
    /// The largest value that keeps the target.
    Largest,
    /// The smallest.
    Smallest,
}

/// How a value is laid over a scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Lay {
    /// By a short name.
    Short(&'static str),
    /// At a path.
    Path(String),
    /// At a path, as seconds.
    Seconds(String),
    /// A port range of so many ports that ends at 65535.
    Ports,
    /// preStop seconds, with the grace period behind it.
    PreStop,
}

/// Something that can be sought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantity {
    /// Its name.
    pub name: String,
    /// What it is, with its unit.
    pub what: String,
    /// Which end.
    pub sought: Sought,
    /// The least value that is tried.
    pub low: u64,
    /// The greatest.
    pub high: u64,
    lay: Lay,
}

/// Everything that has a name of its own: name, what, sought, least, greatest.
const NAMED: &[(&str, &str, Sought, u64, u64)] = &[
    (
        "rate",
        "requests/s of each client table",
        Sought::Largest,
        1,
        20_000,
    ),
    (
        "concurrency",
        "workers of each client table",
        Sought::Largest,
        1,
        20_000,
    ),
    (
        "ports",
        "ports of each client",
        Sought::Smallest,
        100,
        64_512,
    ),
    (
        "clients",
        "client addresses of each table",
        Sought::Smallest,
        1,
        1_024,
    ),
    (
        "keep-alive",
        "requests on a connection",
        Sought::Smallest,
        1,
        1_000,
    ),
    (
        "replicas",
        "pods of the Deployment",
        Sought::Largest,
        1,
        100,
    ),
    ("pre-stop", "seconds of preStop", Sought::Smallest, 0, 300),
    (
        "min-ready",
        "seconds of minReadySeconds",
        Sought::Smallest,
        0,
        600,
    ),
];

/// The names of quantities.
pub fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    NAMED.iter().map(|(name, what, ..)| (*name, *what))
}

impl Quantity {
    /// The quantity of a name, or of a field's path with a range of whole numbers.
    ///
    /// # Errors
    /// What to write instead.
    pub fn parse(
        name: &str,
        between: Option<(u64, u64)>,
        sought: Option<Sought>,
    ) -> Result<Self, String> {
        let found = NAMED.iter().find(|row| row.0 == name);
        let (what, end, low, high, lay) = match (found, between) {
            (Some((name, what, end, low, high)), _) => {
                let lay = match *name {
                    "rate" => Lay::Short("rps"),
                    "concurrency" => Lay::Short("concurrency"),
                    "ports" => Lay::Ports,
                    "clients" => Lay::Short("clients"),
                    "keep-alive" => Lay::Short("requests-per-connection"),
                    "replicas" => Lay::Short("replicas"),
                    "pre-stop" => Lay::PreStop,
                    _ => Lay::Seconds("rollout.deployment.min_ready".to_owned()),
                };
                ((*what).to_owned(), *end, *low, *high, lay)
            }
            (None, Some((low, high))) if name.contains('.') || name == "duration" => (
                name.to_owned(),
                Sought::Largest,
                low,
                high,
                Lay::Path(name.to_owned()),
            ),
            (None, None) if name.contains('.') => {
                return Err(format!(
                    "{name}: say between which whole numbers: --between 1..1000"
                ));
            }
            _ => {
                let all: Vec<&str> = NAMED.iter().map(|row| row.0).collect();
                let near = crate::scenario::nearest(name, all.iter().copied());
                let near = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                return Err(format!(
                    "`{name}` cannot be sought{near} Write one of {}, or a field's path with --between LOW..HIGH",
                    all.join(", ")
                ));
            }
        };
        let (low, high) = between.unwrap_or((low, high));
        if low >= high {
            return Err(format!(
                "--between {low}..{high}: the first must be less than the second"
            ));
        }
        Ok(Self {
            name: name.to_owned(),
            what,
            sought: sought.unwrap_or(end),
            low,
            high,
            lay,
        })
    }

    /// The scenario with the value laid over it.
    ///
    /// # Errors
    /// What the scenario says to that.
    pub fn lay(&self, document: &Document, value: u64) -> Result<Scenario, Diagnostics> {
        let mut document = document.clone();
        self.put(&mut document, value)?;
        Ok(document.resolve()?.scenario)
    }

    /// Lays the value over a document.
    fn put(&self, document: &mut Document, value: u64) -> Result<(), Diagnostics> {
        match &self.lay {
            Lay::Short(name) => document.set_named(name, &value.to_string()),
            Lay::Path(path) => document.set(path, &value.to_string()),
            Lay::Seconds(path) => document.set(path, &format!("{value}s")),
            Lay::Ports => {
                let first = 65_536_u64.saturating_sub(value).max(1);
                document.set("client.*.ports", &format!("{first}-65535"))
            }
            Lay::PreStop => {
                document.set("rollout.deployment.pre_stop", &format!("{value}s"))?;
                let grace = format!("{}s", value + 30);
                document.set("rollout.deployment.termination_grace_period", &grace)
            }
        }
    }

    /// What to type to lay a value over a scenario.
    pub fn flags(&self, value: u64) -> String {
        match &self.lay {
            Lay::Short(name) => format!("--{name} {value}"),
            Lay::Path(path) => format!("--set {path}={value}"),
            Lay::Seconds(path) => format!("--set {path}={value}s"),
            Lay::Ports => format!("--ports {}-65535", 65_536_u64.saturating_sub(value).max(1)),
            Lay::PreStop => format!("--pre-stop {value}s --grace-period {}s", value + 30),
        }
    }
}

/// The target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// What must stay rare.
    pub event: Event,
    /// Below this.
    pub limit: f64,
    /// A kind of rollout that may go unseen has at most this probability.
    pub rare: f64,
}

impl Target {
    /// As a threshold.
    pub fn threshold(&self, text: &str) -> Threshold {
        Threshold {
            text: text.to_owned(),
            event: self.event,
            limit: self.limit,
        }
    }
}

/// What a value gave.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Probe {
    /// The value.
    pub value: u64,
    /// What was found.
    pub judged: Judged,
    /// Rollouts.
    pub runs: u64,
}

impl Probe {
    /// Whether the target is kept there; none if undecided.
    pub const fn keeps(&self) -> Option<bool> {
        match self.judged.verdict {
            Verdict::Pass | Verdict::PassButForRare => Some(true),
            Verdict::Broken => Some(false),
            Verdict::Undecided => None,
        }
    }
}

/// The result of a search.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Capacity {
    /// Version of this form.
    pub format: u32,
    /// What was sought.
    pub quantity: String,
    /// In words.
    pub what: String,
    /// Which end.
    pub sought: Sought,
    /// The target, as written.
    pub target: String,
    /// A kind of rollout that may have gone unseen has at most this probability.
    pub rare: f64,
    /// The furthest value that keeps the target, with all nearer ones that were tried; none if none does.
    pub keeps: Option<u64>,
    /// The nearest value beyond it that breaks the target; none if none was found.
    pub breaks: Option<u64>,
    /// Values that answer otherwise than their neighbours: kept beyond a broken one, or broken before a kept one.
    pub exceptions: Vec<u64>,
    /// Everything that was tried, by value.
    pub probes: Vec<Probe>,
    /// Whether time ended the search.
    pub cut_short: bool,
    /// Root of all seeds, hexadecimal.
    pub root_seed: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// A value cannot be laid over the scenario.
    #[error("{0}")]
    Scenario(#[from] Diagnostics),
    /// A run failed.
    #[error(transparent)]
    Rows(#[from] RowsError),
}

/// What a search needs.
pub struct Search<'a> {
    /// The scenario.
    pub document: &'a Document,
    /// What is sought.
    pub quantity: &'a Quantity,
    /// The target and its words.
    pub target: (Target, String),
    /// How much to run at each value.
    pub plan: Plan,
    /// Stop bisecting when the two ends differ by less than this share.
    pub tolerance: f64,
    /// Spend at most this much time; the two ends are tried in any case.
    pub budget: Option<Duration>,
    /// Runs one rollout.
    pub simulate: &'a (dyn Fn(&Scenario, u64) -> Result<RunSummary, RunError> + Sync),
    /// The clock.
    pub stopwatch: &'a dyn Stopwatch,
}

/// Values tried on either side of the boundary, to find where the response does not go one way.
const WITNESSES: u32 = 3;

impl Search<'_> {
    /// Searches. `progress` hears of every value that was tried.
    ///
    /// # Errors
    /// A value that cannot be laid over the scenario, or a run that fails.
    pub fn run(&self, progress: &mut dyn FnMut(&Probe)) -> Result<Capacity, SearchError> {
        let mut probes: Vec<Probe> = Vec::new();
        let mut cut_short = false;
        // Positions go from easy to hard: position 0 is the end at which the target is kept, if anywhere.
        let span = self.quantity.high - self.quantity.low;
        let value = |position: u64| match self.quantity.sought {
            Sought::Largest => self.quantity.low + position,
            Sought::Smallest => self.quantity.high - position,
        };
        let mut ask =
            |position: u64, probes: &mut Vec<Probe>| -> Result<Option<bool>, SearchError> {
                let value = value(position);
                if let Some(known) = probes.iter().find(|probe| probe.value == value) {
                    return Ok(known.keeps());
                }
                let probe = self.probe(value)?;
                progress(&probe);
                let keeps = probe.keeps();
                probes.push(probe);
                Ok(keeps)
            };
        let easy = ask(0, &mut probes)?;
        let hard = ask(span, &mut probes)?;
        if easy == Some(true) && hard != Some(true) {
            // First the furthest that keeps, then the nearest beyond it that breaks.
            let (mut kept, mut not) = (0, span);
            while !self.near(value(kept), value(not)) {
                if self.out_of_time() {
                    cut_short = true;
                    break;
                }
                let middle = self.between(kept, not);
                if ask(middle, &mut probes)? == Some(true) {
                    kept = middle
                } else {
                    not = middle
                }
            }
            let (mut open, mut broken) = (not, span);
            while !cut_short && open < broken && !self.near(value(open), value(broken)) {
                if self.out_of_time() {
                    cut_short = true;
                    break;
                }
                if ask(open, &mut probes)? == Some(false) {
                    broken = open;
                    break;
                }
                let middle = self.between(open, broken);
                if ask(middle, &mut probes)? == Some(false) {
                    broken = middle
                } else {
                    open = middle
                }
            }
            for step in 1..=u64::from(WITNESSES) {
                let parts = u64::from(WITNESSES) + 1;
                let before = kept * step / parts;
                let after = broken + (span - broken) * step / parts;
                for position in [before, after] {
                    if self.out_of_time() {
                        cut_short = true;
                    } else {
                        ask(position, &mut probes)?;
                    }
                }
            }
        }
        probes.sort_by_key(|probe| probe.value);
        Ok(self.sum_up(probes, cut_short))
    }

    fn sum_up(&self, probes: Vec<Probe>, cut_short: bool) -> Capacity {
        // From easy to hard.
        let mut ordered: Vec<&Probe> = probes.iter().collect();
        if self.quantity.sought == Sought::Smallest {
            ordered.reverse();
        }
        let first_broken = ordered
            .iter()
            .position(|probe| probe.keeps() == Some(false));
        let before = &ordered[..first_broken.unwrap_or(ordered.len())];
        let keeps = before
            .iter()
            .rev()
            .find(|probe| probe.keeps() == Some(true))
            .map(|probe| probe.value);
        let breaks = first_broken.map(|place| ordered[place].value);
        let beyond = first_broken.map_or(&[][..], |place| &ordered[place..]);
        let exceptions = beyond
            .iter()
            .filter(|probe| probe.keeps() == Some(true))
            .map(|probe| probe.value)
            .collect();
        Capacity {
            format: 1,
            quantity: self.quantity.name.clone(),
            what: self.quantity.what.clone(),
            sought: self.quantity.sought,
            target: self.target.1.clone(),
            rare: self.target.0.rare,
            keeps,
            breaks,
            exceptions,
            cut_short,
            root_seed: format!("{:#x}", self.plan.root_seed),
            probes,
        }
    }

    /// Whether two values are as near as was asked, or neighbours.
    fn near(&self, one: u64, other: u64) -> bool {
        let (low, high) = (one.min(other), one.max(other));
        high - low <= 1 || (high - low) as f64 <= self.tolerance * low.max(1) as f64
    }

    /// A position between two: the geometric mean of the values, which asks large values as finely as small ones.
    fn between(&self, one: u64, other: u64) -> u64 {
        let value = |position: u64| match self.quantity.sought {
            Sought::Largest => self.quantity.low + position,
            Sought::Smallest => self.quantity.high - position,
        };
        let mean = (value(one).max(1) as f64 * value(other).max(1) as f64).sqrt() as u64;
        let position = match self.quantity.sought {
            Sought::Largest => mean.saturating_sub(self.quantity.low),
            Sought::Smallest => self.quantity.high.saturating_sub(mean),
        };
        position.clamp(one.min(other) + 1, one.max(other) - 1)
    }

    fn out_of_time(&self) -> bool {
        self.budget
            .is_some_and(|budget| self.stopwatch.elapsed() >= budget)
    }

    fn probe(&self, value: u64) -> Result<Probe, SearchError> {
        let scenario = self.quantity.lay(self.document, value)?;
        let threshold = self.target.0.threshold(&self.target.1);
        let checked = check::run(
            &scenario,
            &[threshold],
            self.target.0.rare,
            &self.plan,
            self.stopwatch,
            self.simulate,
            &mut |_, _, _| {},
        )?;
        let judged = checked.thresholds.into_iter().next();
        Ok(Probe {
            value,
            judged: judged.expect("one threshold, one verdict"),
            runs: checked.runs,
        })
    }
}

#[cfg(test)]
mod tests;

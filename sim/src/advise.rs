//! From a recording and a Deployment to advice: what fails if it is rolled out now, why, and what to change.
//!
//! One watched rollout gives the words (when, who, the causal chain of one failure), many unwatched ones the probabilities: the
//! comparison is that of `sim whatif`, on the same seeds.
//! Leaves out: nothing of its own is decided here; every number is another module's.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipvs_model::time::Span;
use serde::Serialize;

use crate::engine;
use crate::engine::story::{StoriesOf, Story};
use crate::engine::trace::{RunTrace, TraceOptions};
use crate::experiment::RunError;
use crate::explain::{self, Chain};
use crate::outcome::{Cause, Outcome, RunSummary};
use crate::scenario::{Arrivals, Scenario};

/// Stories from which the one that is told is chosen.
pub const STORIES: usize = 200_000;
/// Failed requests that are counted by client.
const TROUBLED: usize = 4_000_000;

/// What one watched rollout shows.
#[derive(Clone, Debug, Serialize)]
pub struct Watched {
    /// Its seed, hexadecimal.
    pub seed: String,
    /// The time in which requests failed; none if none did.
    pub window: Option<Window>,
    /// The clients that failed, the most affected first.
    pub clients: Vec<Affected>,
    /// How failures ended, in words, the most frequent first.
    pub seen_as: Vec<(&'static str, u64)>,
    /// The chain of a request that failed of the most frequent cause, or was late of it.
    pub chain: Option<Chain>,
}

/// The time in which requests failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Window {
    /// The first second with a failure.
    pub from_s: u64,
    /// One past the last.
    pub to_s: u64,
    /// Requests that ended within.
    pub ended: u64,
    /// Of these, those that failed.
    pub failed: u64,
    /// When the rollout began, in seconds; 0 if there is none.
    pub rollout_s: u64,
    /// It lasts to the end of the run: how long it would go on is not known.
    pub to_the_end: bool,
}

impl Window {
    /// The share of requests that fail within.
    pub fn share(&self) -> f64 {
        self.failed as f64 / self.ended.max(1) as f64
    }

    /// How long it is.
    pub const fn length(&self) -> Span {
        Span::from_secs(self.to_s - self.from_s)
    }
}

/// What becomes of a client's requests.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Affected {
    /// Its address, the first of its table.
    pub address: Ipv4Addr,
    /// Its failed requests.
    pub failed: u64,
    /// Its share of all failures.
    pub share: f64,
    /// Requests a second of its table, if it is an open loop.
    pub rate: Option<f64>,
}

/// Runs a rollout and looks.
///
/// # Errors
/// If the scenario cannot be run.
pub fn watch(scenario: &Scenario, seed: u64) -> Result<Watched, RunError> {
    let options = TraceOptions {
        stories: StoriesOf::Troubled(STORIES),
        requests_max: TROUBLED,
        ..TraceOptions::default()
    };
    let result = engine::run(scenario, seed, &options).map_err(RunError)?;
    let (summary, trace) = (&result.summary, &result.trace);
    let chain = told(summary, trace).map(|story| explain::of(story, &trace.events, scenario));
    Ok(Watched {
        seed: format!("{seed:#x}"),
        window: window(scenario, summary),
        clients: clients(scenario, trace),
        seen_as: seen_as(summary),
        chain,
    })
}

fn window(scenario: &Scenario, summary: &RunSummary) -> Option<Window> {
    let failing = |second: &crate::outcome::SecondCounts| second.failed > 0;
    let from = summary.timeline.iter().position(failing)?;
    let to = summary.timeline.iter().rposition(failing)? + 1;
    let within = &summary.timeline[from..to];
    let failed = within.iter().map(|second| second.failed).sum();
    let answered = within.iter().map(|second| second.answered).sum::<u64>();
    let end = scenario.duration.as_secs();
    Some(Window {
        from_s: from as u64,
        to_s: to as u64,
        ended: answered + failed,
        failed,
        rollout_s: scenario.rollout.start().map_or(0, Span::as_secs),
        // A request fails a few seconds after it began.
        to_the_end: to as u64 + 2 >= end,
    })
}

fn clients(scenario: &Scenario, trace: &RunTrace) -> Vec<Affected> {
    let failed = trace
        .troubled
        .iter()
        .filter(|request| request.outcome.is_failure());
    let mut by_table = BTreeMap::<usize, u64>::new();
    let mut total = 0_u64;
    for request in failed {
        total += 1;
        let ip = request.client.ip;
        let table = scenario.client.iter().position(|client| {
            client.addresses().any(|address| address == ip)
                || (client.location == crate::scenario::Location::Host
                    && ip == scenario.service.address.ip)
        });
        if let Some(table) = table {
            *by_table.entry(table).or_default() += 1;
        }
    }
    let mut all = by_table
        .into_iter()
        .map(|(table, failed)| {
            let client = &scenario.client[table];
            Affected {
                address: client.address,
                failed,
                share: failed as f64 / total as f64,
                rate: match &client.arrivals {
                    Arrivals::Constant(rate) | Arrivals::Poisson(rate) => Some(rate.rate),
                    Arrivals::Closed(_) => None,
                },
            }
        })
        .collect::<Vec<_>>();
    all.sort_by_key(|client| (std::cmp::Reverse(client.failed), client.address));
    all
}

fn seen_as(summary: &RunSummary) -> Vec<(&'static str, u64)> {
    let failures = Outcome::ALL
        .into_iter()
        .filter(|outcome| outcome.is_failure());
    let counts = failures.map(|outcome| (outcome.describe(), summary.count(outcome)));
    let mut counts = counts.filter(|(_, count)| *count > 0).collect::<Vec<_>>();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts
}

/// A request of the most frequent cause of failure, else of late connects: the one in the middle.
pub fn told<'t>(summary: &RunSummary, trace: &'t RunTrace) -> Option<&'t Story> {
    let counts = if summary.failed() > 0 {
        &summary.causes
    } else {
        &summary.delayed
    };
    let (cause, count) = Cause::ALL
        .iter()
        .map(|cause| (*cause, counts[cause.index()]))
        .max_by_key(|(_, count)| *count)?;
    if count == 0 {
        return None;
    }
    let wanted = |story: &&Story| {
        story.cause == Some(cause) && (summary.failed() == 0 || story.outcome.is_failure())
    };
    let all = trace.stories.iter().filter(wanted).collect::<Vec<_>>();
    all.get(all.len() / 2).copied()
}

/// "1 in 12", "7 in 10", "nearly every one".
pub fn one_in(share: f64) -> String {
    match share {
        s if s <= 0.0 => "none".to_owned(),
        s if s >= 0.95 => "nearly every one".to_owned(),
        s if s >= 0.35 => format!("{} in 10", (s * 10.0).round().clamp(4.0, 9.0)),
        s => format!(
            "1 in {}",
            crate::report::text::thousands((1.0 / s).round() as u64)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_said_as_people_say_them() {
        let said = [0.0, 0.0004, 0.083, 0.3, 0.36, 0.5, 0.9, 0.951].map(one_in);
        assert_eq!(
            said,
            [
                "none",
                "1 in 2,500",
                "1 in 12",
                "1 in 3",
                "4 in 10",
                "5 in 10",
                "9 in 10",
                "nearly every one"
            ]
        );
    }

    #[test]
    fn a_watched_rollout_tells_when_who_and_why() {
        let toml = "duration = \"150s\"\nserver = { dead_end = \"reset\" }\n\
            client = [{ ports = 400, arrivals = { constant = { rate = 10 } } }, { address = \"10.9.9.9\", arrivals = { constant = { rate = 1 } } }]\n\
            rollout = { scripted = { at = \"50s\", old_die_at = \"70s\" } }\n";
        let scenario = crate::scenario::Document::parse(toml, "test")
            .unwrap()
            .resolve()
            .unwrap()
            .scenario;
        let found = watch(&scenario, 7).unwrap();
        let window = found.window.unwrap();
        assert!(
            (70..80).contains(&window.from_s) && window.rollout_s == 50,
            "{window:?}"
        );
        // A reset leaves the entry 10 s to live, less than the 20 s in which the 200 even ports come round: each fails once.
        assert!(!window.to_the_end && window.failed == 200, "{window:?}");
        // The second client's ports do not come round in that time.
        assert_eq!(found.clients.len(), 1, "{:?}", found.clients);
        assert_eq!(found.clients[0].address.to_string(), "10.23.31.87");
        assert_eq!(found.chain.unwrap().cause, Some("pinned_to_drained"));
    }
}
